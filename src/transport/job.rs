//! A request on its way to a node, and who is told the answer.

use std::sync::Arc;

use crate::protocol::request::{Answer, Request};

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
