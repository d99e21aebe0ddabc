//! A node with its failure, and the texts of failures in an error.
//!
//! Tests: beside `error.rs` (lists), `details.rs` (limits).

use std::fmt;
use std::time::Duration;

use crate::error::duration_text;
use crate::error::node_failure::NodeFailure;

/// A node and its failure, in an [`Error::InsufficientQuorum`](crate::Error::InsufficientQuorum) or
/// [`Error::CircuitOpen`](crate::Error::CircuitOpen).
///
/// ```
/// use redguard::{NodeFailure, Error};
///
/// /// The nodes that need an operator: waiting does not help.
/// fn denied(error: &Error) -> Vec<&str> {
///     let Error::InsufficientQuorum { causes, .. } = error else {
///         return Vec::new();
///     };
///     let denied = causes.iter().filter(|c| matches!(c.failure, NodeFailure::AccessDenied(_)));
///     denied.map(|c| c.node.as_str()).collect()
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FailedNode {
    /// The node's address, without credentials.
    pub node: String,
    /// The error that it replied, or why it did not reply.
    pub failure: NodeFailure,
    /// For a time-out the limit that was exceeded.
    pub(crate) limit: Option<ReplyLimit>,
}

impl fmt::Display for FailedNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.failure, &self.limit) {
            (NodeFailure::TimedOut, Some(limit)) => {
                write!(f, "{}: no answer within {limit}", self.node)
            }
            _ => write!(f, "{}: {}", self.node, self.failure),
        }
    }
}

/// The time limit of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReplyLimit {
    /// The node was connected. `connecting` is the round trip measured then: it distinguishes a
    /// short limit from a hung node.
    Node {
        node_timeout: Duration,
        connecting: Duration,
    },
    /// The node was being connected to.
    Connect { connect_timeout: Duration },
}

impl fmt::Display for ReplyLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReplyLimit::Node {
                node_timeout,
                connecting,
            } => {
                let [limit, connecting] =
                    [*node_timeout, *connecting].map(duration_text::format_duration);
                write!(f, "{limit} (node_timeout; connecting took {connecting})")
            }
            ReplyLimit::Connect { connect_timeout } => {
                let limit = duration_text::format_duration(*connect_timeout);
                write!(f, "{limit} (connect_timeout)")
            }
        }
    }
}

/// Failures at the end of a message: `: a; b`.
pub(super) struct FailureList<'a>(pub(super) &'a [FailedNode]);

impl fmt::Display for FailureList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, cause) in self.0.iter().enumerate() {
            write!(f, "{}{cause}", if i == 0 { ": " } else { "; " })?;
        }
        Ok(())
    }
}

/// Failures after a complete message: `; a; b`.
pub(super) struct Appended<'a>(pub(super) &'a [FailedNode]);

impl fmt::Display for Appended<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|cause| write!(f, "; {cause}"))
    }
}
