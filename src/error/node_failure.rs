//! Why a node did not do as it was asked.

use std::time::Duration;

/// Why a node did not do as it was asked.
///
/// ```
/// use redguard::NodeFailure;
///
/// let cause = NodeFailure::Unreachable("Connection refused (os error 111)".to_owned());
/// assert_eq!(cause.to_string(), "unreachable: Connection refused (os error 111)");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NodeFailure {
    /// The node is not connected, or the connection broke. The text is the operating system's.
    #[error("unreachable: {0}")]
    Unreachable(String),

    /// The node is connected, but did not reply in time.
    #[error("no answer in time")]
    TimedOut,

    /// The credentials are wrong or missing, a right is missing, or one side does not accept the
    /// other's certificate.
    #[error("access denied: {0}")]
    AccessDenied(String),

    /// The server replied an error (`READONLY`, `LOADING`, `OOM` …). The text is the server's.
    #[error("server error: {0}")]
    ServerError(String),

    /// Another holder has the lock on the node.
    #[error("held by another")]
    Held {
        /// The rest of the holder's TTL, unless it is extended; `None` if the key does not expire.
        remaining: Option<Duration>,
    },

    /// Readers hold the lock on the node, or have their turn.
    #[error("held by readers")]
    HeldByReaders {
        /// The time until the last reader's lease ends, unless one is extended.
        remaining: Option<Duration>,
    },

    /// A writer waits for the lock on the node, so new readers are refused.
    #[error("a writer is waiting")]
    WriterWaiting {
        /// The time until the writer's gate entry ends, unless it is refreshed.
        remaining: Option<Duration>,
    },

    /// The node has started so recently that it may have lost locks which are still held. It does
    /// not vote on new locks ([`Config::restart_quarantine`](crate::Config::restart_quarantine)).
    #[error("quarantined after its start")]
    Quarantined {
        /// The time until the node votes.
        remaining: Duration,
    },

    /// The semaphore has another number of permits on the node, where one of them is held.
    #[error("semaphore of {permits} permits")]
    PermitCountMismatch {
        /// The number of permits on the node.
        permits: u32,
    },

    /// The lock is not ours on the node, or not any more.
    #[error("not ours")]
    NotOurs,

    /// One of the lock's keys has a value of another type on the node, or its fence counter is not
    /// a number. The value is left untouched.
    #[error("value of another type under the key")]
    WrongType,

    /// The node is a cluster, and the keys of the lock are in different hash slots.
    #[error("keys in different cluster slots")]
    CrossSlot,
}

impl NodeFailure {
    /// Returns whether a repeated request would fail in the same way.
    pub(crate) fn is_permanent(&self) -> bool {
        matches!(self, NodeFailure::WrongType | NodeFailure::CrossSlot)
    }

    /// Returns whether the node could not be reached, did not reply, or is loading its data: then
    /// it serves no other holder either. Any other error is a reply of a node that could serve
    /// another holder (S9).
    pub(crate) fn is_outage(&self) -> bool {
        match self {
            NodeFailure::Unreachable(_) | NodeFailure::TimedOut => true,
            // The text starts with an address if a sentinel named the server. A server at its
            // client limit refuses to connect.
            NodeFailure::ServerError(text) => {
                let is_loading = text.starts_with("LOADING") || text.contains(": LOADING");
                is_loading || text.contains("max number of clients")
            }
            _ => false,
        }
    }

    /// Returns whether the failure is an error that the node replied.
    pub(crate) fn is_reply(&self) -> bool {
        self.is_permanent()
            || matches!(
                self,
                NodeFailure::ServerError(_) | NodeFailure::AccessDenied(_)
            )
    }

    /// Returns for how long the node will refuse, if that is known.
    pub(crate) fn remaining(&self) -> Option<Duration> {
        match self {
            NodeFailure::Held { remaining } | NodeFailure::HeldByReaders { remaining } => {
                *remaining
            }
            NodeFailure::Quarantined { remaining } => Some(*remaining),
            // A waiting writer may acquire the lock first.
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::error::node_failure::NodeFailure;

    #[test]
    fn outage_is_only_silence_refusal_to_connect_or_loading() {
        let server = |text: &str| NodeFailure::ServerError(text.into());
        for (cause, expected) in [
            (NodeFailure::TimedOut, true),
            (NodeFailure::Unreachable("refused".into()), true),
            (
                server("LOADING Redis is loading the dataset in memory"),
                true,
            ),
            (server("10.0.0.1:6379: LOADING Redis is loading"), true),
            (server("ERR max number of clients reached"), true),
            (server("OOM command not allowed"), false),
            (server("TRYAGAIN Multiple keys"), false),
            (server("MISCONF Redis is configured to save"), false),
            (server("BUSY Redis is busy running a script"), false),
            (server("MASTERDOWN Link with MASTER is down"), false),
            (server("CLUSTERDOWN the cluster is down"), false),
            (server("ERR value is not an integer or out of range"), false),
            (NodeFailure::AccessDenied("NOPERM".into()), false),
            (NodeFailure::WrongType, false),
            (NodeFailure::Held { remaining: None }, false),
        ] {
            assert_eq!(cause.is_outage(), expected, "{cause}");
        }
    }
}
