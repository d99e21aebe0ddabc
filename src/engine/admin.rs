//! Operator requests on locks of other processes: `Inspect` and `ForceRelease`.
//!
//! Tests: `tests/it/nodes/observability.rs`; `src/tests/engine/notice.rs`.

use std::sync::Arc;

use crate::engine::core::Engine;
use crate::error::error::Error;
use crate::error::operation::Operation;
use crate::protocol::holder::{Holder, NodeHolder, merge_holders};
use crate::protocol::key::Key;
use crate::protocol::key_set::KeySet;
use crate::protocol::kind::LeaseKind;
use crate::protocol::lease::Lease;
use crate::protocol::quorum::majority;
use crate::protocol::reply::Reply;
use crate::protocol::request::{Op, Publish, Request};
use crate::protocol::token::Token;
use crate::sync::primitives::Mutex;
use crate::time::clock;
use crate::transport::inbox::Inbox;
use crate::transport::job::ReplySink;
use crate::transport::round::RoundOutcome;

impl Engine {
    /// Returns the holder of an exclusive lock.
    ///
    /// Blocks until all connected nodes have replied, for at most `node_timeout`.
    ///
    /// # Errors
    /// - `InsufficientQuorum`: fewer nodes than a quorum replied.
    /// - `Closed`: the `Nodes` shut down, before or meanwhile, or this process is a forked child.
    pub(crate) fn holder(&self, key: Key) -> Result<Option<Holder>, Error> {
        let replies = self.ask_all_nodes(key, Op::Inspect)?;
        let holders = replies.into_iter().filter_map(|reply| match reply {
            Reply::Holder(holder) => Some(*holder),
            _ => None,
        });
        let holders: Vec<NodeHolder> = holders.collect();
        Ok(merge_holders(&holders, majority(self.nodes.total())))
    }

    /// Deletes an exclusive lock on all nodes, whatever its token.
    ///
    /// Returns whether a node had it. Blocks, and fails, as [`holder`](Engine::holder) does.
    pub(crate) fn force_release(&self, key: Key) -> Result<bool, Error> {
        let keys = KeySet::from(key.clone());
        let replies = self.ask_all_nodes(key, Op::ForceRelease)?;
        // After the round: while a quorum has its token, a holder that checks would restore it.
        self.nodes.notify_holders(&keys);
        let is_deleted = |reply: &Reply| matches!(reply, Reply::Done | Reply::DoneNotified(_));
        Ok(replies.iter().any(is_deleted))
    }

    /// Returns the replies of all nodes to one request about a key.
    fn ask_all_nodes(&self, key: Key, op: Op) -> Result<Vec<Reply>, Error> {
        if self.is_forked() || self.lock_table.is_closed() {
            return Err(Error::Closed);
        }
        // Only names the key of the request; it is never held.
        let lease = Arc::new(Lease::new(key, Token::empty(), LeaseKind::Exclusive));
        let mut request = Request::new(op, &lease, 0);
        request.publish = Publish::Always;
        let inbox = Arc::new(Inbox::new());
        let recorder = Arc::new(RecordingSink {
            inbox: Arc::clone(&inbox),
            replies: Mutex::default(),
        });
        let sink = Arc::clone(&recorder) as Arc<dyn ReplySink>;
        let round = self.nodes.send_with_sink(&request, &inbox, sink);
        let RoundOutcome { tally, .. } = round.wait_all(self.node_budget(clock::now()));
        let has_quorum =
            tally.granted().len() + tally.refused().len() >= majority(self.nodes.total());
        match has_quorum {
            true => Ok(std::mem::take(&mut *recorder.replies.lock())),
            // Workers that have stopped meanwhile say nothing about the nodes.
            false if self.lock_table.is_closed() => Err(Error::Closed),
            false => Err(self.insufficient_quorum(Operation::Inspect, tally)),
        }
    }
}

/// Records the replies and delivers them to the inbox as votes.
struct RecordingSink {
    inbox: Arc<Inbox>,
    replies: Mutex<Vec<Reply>>,
}

impl ReplySink for RecordingSink {
    fn deliver(&self, round: u32, node: usize, reply: Reply) {
        self.replies.lock().push(reply.clone());
        self.inbox.deliver(round, node, reply);
    }
}
