//! The request that an error reports on.
//!
//! Tests: beside `error.rs`.

use std::fmt;

use crate::error::failed_node::FailedNode;
use crate::error::node_failure::NodeFailure;

/// The request that an [`Error::InsufficientQuorum`](crate::Error::InsufficientQuorum) reports on.
/// `Display` is the verb of its text.
///
/// ```
/// use redguard::Operation;
///
/// assert_eq!(format!("{} 1 of 3 nodes", Operation::Release), "released on 1 of 3 nodes");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// Connect to the nodes. Also of an acquire whose wait ended at an open circuit breaker, so that
    /// no node was asked to grant the lock.
    Connect,
    /// Acquire a lock.
    Acquire,
    /// Extend a lock, or confirm that it is held.
    Extend,
    /// Release a lock.
    Release,
    /// Read the holder of a lock, or delete the lock by force.
    Inspect,
}

impl Operation {
    /// Returns the number of nodes that did it. All others have a cause; for `Inspect` some causes
    /// are replies, too.
    pub(super) fn done(self, total: usize, causes: &[FailedNode]) -> usize {
        let is_answer =
            |cause: &NodeFailure| *cause == NodeFailure::NotOurs || cause.is_permanent();
        let others = causes
            .iter()
            .filter(|node| self != Operation::Inspect || !is_answer(&node.failure));
        total.saturating_sub(others.count())
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Operation::Connect => "connected to",
            Operation::Acquire => "granted by",
            Operation::Extend => "extended on",
            Operation::Release => "released on",
            Operation::Inspect => "answered by",
        })
    }
}
