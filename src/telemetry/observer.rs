//! What a program can have told to it of each lock, at the moment when it happens: [`Observer`].

use std::sync::Arc;
use std::time::Duration;

use crate::protocol::mode::Mode;
use crate::protocol::reply::Reply;
use crate::sync::threads;

/// Hears what happens to the locks of a [`Nodes`](crate::Nodes): for metrics and traces of one's own. See
/// [`Config::observer`](crate::Config::observer).
///
/// Every method does nothing unless it is written. A lock on several keys goes by the first of them, in the order of their names.
///
/// They are called on the thread in which the event happens: that of a caller, or one of the library's own, which serves many
/// locks; and [`replied`](Observer::replied) while nobody else can use the connection. So a method must be quick, and must not
/// block or take locks of these nodes; a panic in it is caught and logged as an `error`. Counts that need no more than
/// a look now and then are in [`Nodes::stats`](crate::Nodes::stats) without an observer.
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
///     // Likewise `attempted`, `contended`, `unavailable`, `renewed`, `released` and `replied`.
///     fn lost(&self, key: &str) {
///         eprintln!("{key} was lost");
///     }
/// }
///
/// let slow = Arc::new(SlowLocks::default());
/// let config = Config::new(["10.0.0.1", "10.0.0.2", "10.0.0.3"]).observer(slow.clone());
/// ```
#[expect(unused_variables, reason = "the names are for those who implement it")]
pub trait Observer: Send + Sync {
    /// The nodes are about to be asked for a lock, once.
    fn attempted(&self, key: &str) {}

    /// A lock was handed out, after a wait of `waited` from the call on.
    fn acquired(&self, key: &str, mode: Mode, waited: Duration) {}

    /// An acquire ended without the lock, after `waited`: others held it for all of that time.
    fn contended(&self, key: &str, waited: Duration) {}

    /// An acquire ended without the lock, after `waited`: whether it is free could not be found out, as
    /// [`Error::is_unavailable`](crate::Error::is_unavailable) and [`Error::is_denied`](crate::Error::is_denied) have it.
    fn unavailable(&self, key: &str, waited: Duration) {}

    /// A lock that was held is lost.
    fn lost(&self, key: &str) {}

    /// A guard on the nodes has ended, `held` after it was handed out; `late` if its lock was lost by then.
    fn released(&self, key: &str, held: Duration, late: bool) {}

    /// A lock was renewed on a quorum of nodes.
    fn renewed(&self, key: &str) {}

    /// A node has answered one request, `latency` after the batch that it was in was sent, or it is known that it will not.
    fn replied(&self, node: &str, reply: NodeReply, latency: Duration) {}
}

/// How a node has replied to one request.
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
    /// It did what it was asked: granted, extended, deleted, or told.
    Done,
    /// It said no: another holds the lock, or it is not ours.
    Refused,
    /// It answered with an error.
    Error,
    /// Its answer did not come in time, or the connection broke.
    NoReply,
}

/// Tells an observer of something, if there is one.
pub(crate) fn notify(observer: Option<&Arc<dyn Observer>>, event: impl FnOnce(&dyn Observer)) {
    let Some(observer) = observer else {
        return;
    };
    threads::catch("observer", || event(&**observer));
}

impl Reply {
    /// The same for an observer.
    pub(crate) fn reply(&self) -> NodeReply {
        match self {
            Reply::Done | Reply::DoneNotified(_) | Reply::Fenced(_) | Reply::Holder(_) => {
                NodeReply::Done
            }
            Reply::SwappedAbsent(_) => NodeReply::Done,
            Reply::Held(..) | Reply::Absent | Reply::OtherToken => NodeReply::Refused,
            Reply::PermitTaken(..) | Reply::PermitCountMismatch(_) => NodeReply::Refused,
            Reply::Failed(_) => NodeReply::Error,
        }
    }
}
