//! A lease from outside: what a monitor keeps of a guard, and what is owed by whoever sees that it is lost.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::background::loss_handler::LossHandler;
use crate::error::LossReason;
use crate::protocol::lease::{Lease, LeaseState};
use crate::time::{clock, deadline};

/// How a wait for the loss of a lock ended.
///
/// ```
/// use redguard::{LockWatch, WatchOutcome};
/// use std::time::Duration;
///
/// /// Runs beside the work, until the lock has ended in one way or the other.
/// fn beat(watch: &LockWatch, stop: impl FnOnce()) {
///     loop {
///         match watch.wait_ended(Duration::from_secs(10)) {
///             WatchOutcome::TimedOut => println!("at work"),
///             WatchOutcome::Lost => return stop(),
///             _ => return,
///         }
///     }
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum WatchOutcome {
    /// The lock is lost: its lease ended, or a quorum of nodes says that it is not ours.
    Lost,
    /// It was released.
    Released,
    /// Neither, for as long as it was waited.
    TimedOut,
}

/// A guard's lock as a monitor sees it: whether it is held, and when it is lost. A cheap clone.
///
/// It holds nothing: the lock ends with its guard, and it may outlive the guard and the nodes.
///
/// ```
/// use redguard::{LocalLocker, Locker, WatchOutcome};
/// use std::time::Duration;
///
/// # fn main() -> Result<(), redguard::Error> {
/// let guard = LocalLocker::new().lock("report", Duration::from_secs(30))?;
/// let watch = guard.watch();
/// assert!(watch.is_held() && watch.key() == "report" && watch.loss_reason().is_none());
/// assert_eq!(watch.remaining(), Duration::MAX); // of a local lock
/// let monitor = std::thread::spawn(move || watch.wait_ended(Duration::MAX));
/// // … work, which the monitor could stop …
/// guard.release()?;
/// assert_eq!(monitor.join().unwrap(), WatchOutcome::Released);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct LockWatch {
    lease: Arc<Lease>,
    /// Without it the lock is a local one, which does not expire.
    losses: Option<LossHandler>,
}

impl LockWatch {
    pub(crate) fn new(lease: Arc<Lease>, losses: Option<LossHandler>) -> LockWatch {
        LockWatch { lease, losses }
    }

    /// The lock's name, as it was given; of several the first, as [`LockGuard::key`](crate::LockGuard::key).
    pub fn key(&self) -> &str {
        self.lease.key().name()
    }

    /// Whether the lock is still held, as [`LockGuard::is_held`](crate::LockGuard::is_held). Does not block.
    pub fn is_held(&self) -> bool {
        !self.remaining().is_zero()
    }

    /// How long the lock is held for at least; zero when it is lost, released or in doubt, and [`Duration::MAX`] for a local
    /// lock that is held. Does not block.
    pub fn remaining(&self) -> Duration {
        match (self.expire_if_due(), &self.losses) {
            (LeaseState::Held(_), None) => Duration::MAX,
            (LeaseState::Held(expiry), Some(_)) if !self.lease.is_in_doubt() => {
                expiry.saturating_duration_since(clock::now())
            }
            _ => Duration::ZERO,
        }
    }

    /// Why the lock is lost; `None` while it is held, and after its release. Does not block.
    pub fn loss_reason(&self) -> Option<LossReason> {
        self.lease.loss_reason(clock::now())
    }

    /// Waits until the lock is lost or released, for `limit` at most; zero only looks, [`Duration::MAX`] sets no limit.
    ///
    /// A lock that ends because its time is over is lost at that moment, whether anybody looks or not. Who asks after the
    /// loss, or after the release, is told at once.
    pub fn wait_ended(&self, limit: Duration) -> WatchOutcome {
        let end = deadline::deadline(clock::now(), limit);
        loop {
            let expiry = match self.expire_if_due() {
                LeaseState::Held(expiry) => expiry,
                LeaseState::JustLost | LeaseState::Lost => return WatchOutcome::Lost,
                LeaseState::Pending | LeaseState::Ended => return WatchOutcome::Released,
            };
            if is_over(end) {
                return WatchOutcome::TimedOut;
            }
            self.lease.wait_change(deadline::earlier(end, Some(expiry)));
        }
    }

    fn expire_if_due(&self) -> LeaseState {
        match &self.losses {
            Some(losses) => losses.expire_if_due(&self.lease),
            None => self.lease.peek(clock::now()),
        }
    }
}

fn is_over(end: Option<Instant>) -> bool {
    end.is_some_and(|end| end <= clock::now())
}

/// Does not block, and shows no token.
impl fmt::Debug for LockWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("LossWatch");
        shown.field("lease", &self.lease).finish_non_exhaustive()
    }
}
