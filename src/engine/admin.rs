//! What operators may do with other people's locks: look who holds one, and take it away.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::engine::core::Engine;
use crate::error::{Error, Operation};
use crate::protocol::holder::{Holder, NodeHolder, merge_holders};
use crate::protocol::key::Key;
use crate::protocol::kind::LeaseKind;
use crate::protocol::lease::Lease;
use crate::protocol::quorum::majority;
use crate::protocol::reply::Reply;
use crate::protocol::request::{Op, Request};
use crate::protocol::token::Token;
use crate::time::clock;
use crate::transport::inbox::Inbox;
use crate::transport::job::ReplySink;
use crate::transport::round::RoundOutcome;

impl Engine {
    /// Who holds an exclusive lock. Blocks until all nodes that are connected have answered, for `node_timeout` at most.
    pub(crate) fn holder(&self, key: Key) -> Result<Option<Holder>, Error> {
        let told = self.ask_all_nodes(key, Op::Inspect)?;
        let sights = told.into_iter().filter_map(|answer| match answer {
            Reply::Holder(sight) => Some(*sight),
            _ => None,
        });
        let sights: Vec<NodeHolder> = sights.collect();
        Ok(merge_holders(&sights, majority(self.nodes.total())))
    }

    /// Deletes an exclusive lock on all nodes, whoever holds it. `true` if one of them had it. Blocks likewise.
    pub(crate) fn force_release(&self, key: Key) -> Result<bool, Error> {
        let told = self.ask_all_nodes(key, Op::ForceRelease)?;
        let deleted = |answer: &Reply| matches!(answer, Reply::Done | Reply::DoneNotified(_));
        Ok(told.iter().any(deleted))
    }

    /// What all nodes say to one question about a key, of whom a quorum must answer.
    fn ask_all_nodes(&self, key: Key, verb: Op) -> Result<Vec<Reply>, Error> {
        if self.is_forked() || self.lock_table.is_closed() {
            return Err(Error::Closed);
        }
        // Never held: a request needs one to say whose key it is about.
        let lease = Arc::new(Lease::new(key, Token::empty(), LeaseKind::Exclusive));
        let mut request = Request::new(verb, &lease, 0);
        request.publish = true;
        let inbox = Arc::new(Inbox::new());
        let hearer = Arc::new(RecordingSink {
            inbox: Arc::clone(&inbox),
            answers: Mutex::default(),
        });
        let addressee = Arc::clone(&hearer) as Arc<dyn ReplySink>;
        let round = self.nodes.send_with_sink(&request, &inbox, addressee);
        let RoundOutcome { tally, .. } = round.wait_all(self.node_budget(clock::now()));
        if tally.granted().len() + tally.refused().len() < majority(self.nodes.total()) {
            return Err(self.insufficient_quorum(Operation::Inspect, tally));
        }
        Ok(std::mem::take(&mut *hearer.answers.lock()))
    }
}

/// Keeps what nodes say, besides how they vote.
struct RecordingSink {
    inbox: Arc<Inbox>,
    answers: Mutex<Vec<Reply>>,
}

impl ReplySink for RecordingSink {
    fn deliver(&self, round: u32, node: usize, answer: Reply) {
        self.answers.lock().push(answer.clone());
        self.inbox.deliver(round, node, answer);
    }
}
