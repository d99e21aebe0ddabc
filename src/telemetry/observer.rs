//! Callbacks for the events of locks and nodes: [`Observer`].
//!
//! An observer is notified of an event and cannot influence it. A panic in a method is caught.
//!
//! Tests: below (`Display`); `tests/it/nodes/observability.rs`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::protocol::mode::Mode;
use crate::protocol::reply::Reply;
use crate::sync::threads;

/// Receives the events of the locks of a [`Nodes`](crate::Nodes), for metrics and tracing. Set by
/// [`Config::observer`](crate::Config::observer).
///
/// Every method does nothing by default. `key` is the name of the lock; for a lock on several keys
/// it is the first one in sorted order. After [`acquire_any`](crate::Locker::acquire_any) it is the
/// name of the lock that was acquired, or else of the lock whose error is returned.
///
/// A method is called on the thread in which the event happens: the caller's, or a thread of the
/// library that serves many locks. [`replied`](Observer::replied) is called while no other thread
/// can use the connection. So a method must return quickly, and must not block or acquire locks of
/// the same nodes. A panic in it is caught and logged as an `error`.
///
/// [`Nodes::stats`](crate::Nodes::stats) has counts that need no observer.
///
/// ```
/// use redguard::{Config, Mode, Observer};
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use std::time::Duration;
///
/// #[derive(Default)]
/// struct SlowLocks(AtomicU64);
///
/// impl Observer for SlowLocks {
///     fn acquired(&self, _key: &str, _mode: Mode, waited: Duration) {
///         if waited > Duration::from_secs(1) {
///             self.0.fetch_add(1, Ordering::Relaxed);
///         }
///     }
///     // The other methods keep their defaults.
///     fn lost(&self, key: &str) {
///         eprintln!("{key} was lost");
///     }
/// }
///
/// let slow = Arc::new(SlowLocks::default());
/// let config = Config::new(["10.0.0.1", "10.0.0.2", "10.0.0.3"]).observer(slow.clone());
/// ```
#[expect(
    unused_variables,
    reason = "parameter names are part of the documentation"
)]
pub trait Observer: Send + Sync {
    /// An attempt begins: one request for the lock goes to the nodes.
    fn attempted(&self, key: &str) {}

    /// A lock was acquired, `waited` after the call.
    fn acquired(&self, key: &str, mode: Mode, waited: Duration) {}

    /// An acquire ended without the lock, `waited` after the call, because others held it.
    fn contended(&self, key: &str, waited: Duration) {}

    /// An acquire ended without the lock, `waited` after the call, and no quorum said whether it is
    /// free. See [`Error::is_unavailable`](crate::Error::is_unavailable) and
    /// [`Error::is_denied`](crate::Error::is_denied).
    fn unavailable(&self, key: &str, waited: Duration) {}

    /// A lock was lost while it was held.
    fn lost(&self, key: &str) {}

    /// A guard on the nodes ended, `held` after the acquire; `late` if its lock was lost before.
    fn released(&self, key: &str, held: Duration, late: bool) {}

    /// A quorum of nodes confirmed the renewal of a lock.
    fn renewed(&self, key: &str) {}

    /// A node replied to one request, `latency` after its batch was sent, or will not reply to it.
    fn replied(&self, node: &str, reply: NodeReply, latency: Duration) {}
}

/// The kind of a node's reply to one request.
///
/// ```
/// use redguard::{NodeReply, Observer};
/// use std::time::Duration;
///
/// struct Slow;
///
/// impl Observer for Slow {
///     fn replied(&self, node: &str, reply: NodeReply, latency: Duration) {
///         if reply != NodeReply::NoReply && latency > Duration::from_millis(50) {
///             eprintln!("{node} took {latency:?}");
///         }
///     }
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NodeReply {
    /// The node executed the request: it granted, extended, released or reported.
    Done,
    /// The node refused: another holds the lock, or it is not ours.
    Refused,
    /// The node replied with an error.
    Error,
    /// The reply did not arrive in time, or the connection broke.
    NoReply,
}

impl fmt::Display for NodeReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NodeReply::Done => "done",
            NodeReply::Refused => "refused",
            NodeReply::Error => "error",
            NodeReply::NoReply => "no reply",
        })
    }
}

/// Calls the observer, if there is one. Catches its panic.
pub(crate) fn notify(observer: Option<&Arc<dyn Observer>>, event: impl FnOnce(&dyn Observer)) {
    let Some(observer) = observer else {
        return;
    };
    threads::catch("observer", || event(&**observer));
}

impl Reply {
    /// Returns the kind of this reply, for observers and counters.
    pub(crate) fn reply(&self) -> NodeReply {
        match self {
            Reply::Done
            | Reply::DoneNotified(_)
            | Reply::DoneWoke(_)
            | Reply::Fenced(_)
            | Reply::Holder(_) => NodeReply::Done,
            Reply::SwappedAbsent(_) => NodeReply::Done,
            Reply::Held(..) | Reply::Absent | Reply::OtherToken => NodeReply::Refused,
            Reply::PermitTaken(..) | Reply::PermitCountMismatch(_) => NodeReply::Refused,
            Reply::Failed(_) => NodeReply::Error,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn node_reply_shown_is_its_kind() {
        for (reply, text) in [
            (NodeReply::Done, "done"),
            (NodeReply::Refused, "refused"),
            (NodeReply::Error, "error"),
            (NodeReply::NoReply, "no reply"),
        ] {
            assert_eq!(reply.to_string(), text);
        }
    }
}
