//! A request on its way to a node, and the sink that receives its reply.
//!
//! A request that was sent has one reply, or one failure. A reply that no caller waits for is
//! dropped.
//!
//! Tests: `src/tests/transport/pipeline.rs`.

use std::sync::Arc;
use std::time::Instant;

use crate::protocol::lease::Lease;
use crate::protocol::reply::Reply;
use crate::protocol::request::Request;

/// The largest number of requests that are sent as one pipeline.
pub(crate) const MAX_BATCH: usize = 256;

/// A receiver of replies.
pub(crate) trait ReplySink: Send + Sync {
    /// Delivers a node's reply in one of the sink's rounds. Must not block.
    fn deliver(&self, round: u32, node: usize, reply: Reply);
}

/// The destination of a reply: a sink, and one of its rounds.
pub(crate) type ReplyTo = (Arc<dyn ReplySink>, u32);

/// A request, which the jobs of all nodes share, and the destination of its reply.
pub(crate) struct Job {
    pub(crate) request: Arc<Request>,
    /// `None` if the reply is dropped.
    pub(crate) reply: Option<ReplyTo>,
}

/// A pending release: it waits for its node, or for its next attempt there.
pub(crate) type Pending = (Arc<Request>, PendingReply);

/// The destination and the state of a request whose reply is outstanding.
pub(crate) struct PendingReply {
    /// `None` once the reply has been delivered.
    to: Option<ReplyTo>,
    /// Whether this is a release that was sent before and may have taken effect then.
    pub(super) was_sent: bool,
    pub(crate) state: RequestState,
    /// Whether a node has replied to this release with an error before.
    pub(super) was_refused: bool,
}

/// The state of a request that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestState {
    /// The reply is outstanding.
    Open,
    /// The reply to a release was an error that may pass.
    Refused,
    /// The reply has arrived.
    Replied,
}

impl PendingReply {
    pub(crate) fn new(to: Option<ReplyTo>) -> PendingReply {
        PendingReply {
            to,
            was_sent: false,
            state: RequestState::Open,
            was_refused: false,
        }
    }

    /// Delivers the reply, unless one was delivered before.
    pub(crate) fn deliver(&mut self, node: usize, reply: Reply) {
        if let Some((sink, round)) = self.to.take() {
            sink.deliver(round, node, reply);
        }
    }

    /// Delivers the reply of servers that have not restarted since `runs_since`.
    ///
    /// `Absent` after a release that was sent before becomes `Done`, because that release deleted
    /// the key. A server that has restarted since a quorum confirmed the lease may have lost the
    /// key and granted it to another owner meanwhile, so its `Absent` stays.
    pub(super) fn deliver_from(
        &mut self,
        runs_since: Instant,
        lease: &Lease,
        node: usize,
        reply: Reply,
    ) {
        let is_our_doing =
            reply == Reply::Absent && self.was_sent && lease.was_confirmed_since(runs_since);
        self.deliver(node, if is_our_doing { Reply::Done } else { reply });
    }
}
