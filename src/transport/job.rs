//! A request on its way to a node, and who is told the answer.

use std::sync::Arc;
use std::time::Instant;

use crate::protocol::lease::Lease;
use crate::protocol::reply::Reply;
use crate::protocol::request::Request;

/// Who is told what nodes answer.
pub(crate) trait ReplySink: Send + Sync {
    /// A node's answer in one of its rounds. Must not block.
    fn deliver(&self, round: u32, node: usize, answer: Reply);
}

/// Where an answer goes: to whom, and in which of its rounds.
pub(crate) type ReplyTo = (Arc<dyn ReplySink>, u32);

/// A request on its way, and where its answer goes.
pub(crate) struct Job {
    pub(crate) request: Request,
    /// `None` where nobody waits.
    pub(crate) reply: Option<ReplyTo>,
}

/// A release that waits for the node, or for its next try.
pub(crate) type Pending = (Request, PendingReply);

/// Where the answer to a request goes.
pub(crate) struct PendingReply {
    /// As in [`Job::reply`].
    to: Option<ReplyTo>,
    /// It is a release that was sent before, and may have taken effect then.
    pub(crate) was_sent: bool,
    pub(crate) state: State,
    /// It is a release that was answered with an error before.
    pub(crate) was_refused: bool,
}

/// What became of a request that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It has no answer yet.
    Open,
    /// It is a release, and the answer is an error that may pass.
    Refused,
    Answered,
}

impl PendingReply {
    pub(crate) fn new(to: Option<ReplyTo>) -> PendingReply {
        PendingReply {
            to,
            was_sent: false,
            state: State::Open,
            was_refused: false,
        }
    }

    pub(crate) fn deliver(&mut self, node: usize, answer: Reply) {
        if let Some((addressee, round)) = self.to.take() {
            addressee.deliver(round, node, answer);
        }
    }

    /// The same for an answer of a server that has run since then. Absent after a release that was sent before: that one deleted
    /// the key. A server that has restarted since a quorum confirmed the lease may have lost it, and granted it to another
    /// meanwhile.
    pub(crate) fn post_from(&mut self, since: Instant, lease: &Lease, node: usize, answer: Reply) {
        let is_ours = || self.was_sent && lease.was_confirmed_since(since);
        let is_our_doing = answer == Reply::Absent && is_ours();
        self.deliver(node, if is_our_doing { Reply::Done } else { answer });
    }
}

/// The most requests that are sent as one pipeline.
pub(crate) const MAX_BATCH: usize = 256;
