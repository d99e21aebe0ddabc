//! A request on its way to a node, and who is told the answer.

use std::sync::Arc;

use crate::protocol::reply::Answer;
use crate::protocol::request::Request;

/// Who is told what nodes answer.
pub(crate) trait Addressee: Send + Sync {
    /// A node's answer in one of its rounds. Must not block.
    fn post(&self, round: u32, node: usize, answer: Answer);
}

/// Where an answer goes: to whom, and in which of its rounds.
pub(crate) type Reply = (Arc<dyn Addressee>, u32);

/// A request on its way, and where its answer goes.
pub(crate) struct Job {
    pub(crate) request: Request,
    /// `None` where nobody waits.
    pub(crate) reply: Option<Reply>,
}

/// A release that waits for the node, or for its next try.
pub(crate) type Pending = (Request, Return);

/// Where the answer to a request goes.
pub(crate) struct Return {
    /// As in [`Job::reply`].
    to: Option<Reply>,
    /// The runs of the servers that it was sent to first, of a release that may have taken effect then.
    pub(crate) sent_to: Option<Arc<str>>,
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

impl Return {
    pub(crate) fn new(to: Option<Reply>) -> Return {
        Return {
            to,
            sent_to: None,
            state: State::Open,
            was_refused: false,
        }
    }

    pub(crate) fn post(&mut self, node: usize, answer: Answer) {
        if let Some((addressee, round)) = self.to.take() {
            addressee.post(round, node, answer);
        }
    }

    /// The same for an answer of a server of these runs. Absent after a release that was sent to them before: that one deleted
    /// the key. A server that has restarted since may have lost it, and granted it to another meanwhile.
    pub(crate) fn post_from(&mut self, runs: &Arc<str>, node: usize, answer: Answer) {
        let is_our_doing = answer == Answer::Absent && self.sent_to.as_ref() == Some(runs);
        self.post(node, if is_our_doing { Answer::Yes } else { answer });
    }
}

/// The most requests that are sent as one pipeline.
pub(crate) const BATCH: usize = 256;
