//! Watches: a view of a lock for threads beside its holder.
//!
//! A watch never keeps a lock alive and never renews it.
//!
//! Tests: below (`Display`); `src/tests/engine/loss.rs`, `danger.rs`.

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::background::loss_handler::LossHandler;
use crate::error::loss_reason::LossReason;
use crate::protocol::lease::{Lease, LeaseState};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::time::{clock, deadline};

/// The result of [`LockWatch::wait_ended`].
///
/// ```
/// use redguard::{LockWatch, WatchOutcome};
/// use std::time::Duration;
///
/// /// Runs beside the work, until the lock is lost or released.
/// fn beat(watch: &LockWatch, stop: impl FnOnce()) {
///     loop {
///         match watch.wait_ended(Duration::from_secs(10)) {
///             WatchOutcome::TimedOut => println!("at work"),
///             WatchOutcome::Endangered => println!("renewals fail"),
///             WatchOutcome::Safe => println!("renewed again"),
///             WatchOutcome::Lost => return stop(),
///             _ => return,
///         }
///     }
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum WatchOutcome {
    /// The lock is lost: [`LockWatch::loss_reason`] returns why.
    Lost,
    /// The lock was released, or detached with
    /// [`LockGuard::into_token`](crate::LockGuard::into_token).
    Released,
    /// The lock is held, but ends within the margin of
    /// [`on_endangered`](crate::LockOptions::on_endangered) unless it is extended. Returned once
    /// per danger and watch.
    Endangered,
    /// The lock was extended after this watch had returned `Endangered`.
    Safe,
    /// The lock is still held at the end of the wait.
    TimedOut,
}

impl fmt::Display for WatchOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WatchOutcome::Lost => "lost",
            WatchOutcome::Released => "released",
            WatchOutcome::Endangered => "endangered",
            WatchOutcome::Safe => "safe again",
            WatchOutcome::TimedOut => "still held",
        })
    }
}

/// A view of a guard's lock for a monitor thread: whether the lock is held, and when it ends. A
/// cheap clone.
///
/// A watch does not hold the lock: the lock ends with its guard. The watch may outlive the guard
/// and the nodes.
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
pub struct LockWatch {
    lease: Arc<Lease>,
    /// Whether the last report of this watch is that the lock is endangered.
    danger_told: AtomicBool,
    /// `None` for a local lock, which does not expire.
    loss_handler: Option<LossHandler>,
}

impl LockWatch {
    pub(crate) fn new(lease: Arc<Lease>, loss_handler: Option<LossHandler>) -> LockWatch {
        LockWatch {
            lease,
            danger_told: AtomicBool::new(false),
            loss_handler,
        }
    }

    /// Returns the lock's name as [`LockGuard::key`](crate::LockGuard::key) does.
    pub fn key(&self) -> &str {
        self.lease.key().name()
    }

    /// Returns whether the lock is held, as [`LockGuard::is_held`](crate::LockGuard::is_held) does.
    /// Does not block.
    pub fn is_held(&self) -> bool {
        !self.remaining().is_zero()
    }

    /// Returns whether the lock is endangered or lost, as
    /// [`LockGuard::is_endangered`](crate::LockGuard::is_endangered) does. Also `true` after a
    /// release; [`loss_reason`](LockWatch::loss_reason) tells a loss from a release. Does not
    /// block.
    pub fn is_endangered(&self) -> bool {
        self.remaining() <= self.lease.danger_margin()
    }

    /// Returns how long the lock is held for at least: zero if it is lost or released, or after a
    /// suspend until the nodes are asked; [`Duration::MAX`] for a held local lock. Does not block.
    pub fn remaining(&self) -> Duration {
        match (self.expire_if_due(), &self.loss_handler) {
            (LeaseState::Held(_), None) => Duration::MAX,
            (LeaseState::Held(expiry), Some(_)) if !self.lease.is_in_doubt() => {
                expiry.saturating_duration_since(clock::now())
            }
            _ => Duration::ZERO,
        }
    }

    /// Returns why the lock is lost; `None` while it is held, and after its release. Does not
    /// block.
    pub fn loss_reason(&self) -> Option<LossReason> {
        self.lease.loss_reason(clock::now())
    }

    /// Blocks until the lock is lost or released, for at most `limit`; zero does not block,
    /// [`Duration::MAX`] sets no limit.
    ///
    /// Returns at the moment at which the lease expires, also if no thread checks the lock. Returns
    /// at once if the lock is lost or released already.
    ///
    /// With [`on_endangered`](crate::LockOptions::on_endangered) this also returns when a danger
    /// begins, and after that when an extension ends it; each once per watch. Clones of a watch are
    /// told by themselves.
    pub fn wait_ended(&self, limit: Duration) -> WatchOutcome {
        let deadline = deadline::deadline(clock::now(), limit);
        loop {
            let expiry = match self.expire_if_due() {
                LeaseState::Held(expiry) => expiry,
                LeaseState::JustLost | LeaseState::Lost => return WatchOutcome::Lost,
                LeaseState::Pending | LeaseState::Ended => return WatchOutcome::Released,
            };
            let (now, danger_start) = (clock::now(), self.lease.danger_start(expiry));
            let is_endangered = danger_start <= now && danger_start < expiry;
            if self.danger_told.swap(is_endangered, Ordering::Relaxed) != is_endangered {
                return match is_endangered {
                    true => WatchOutcome::Endangered,
                    false => WatchOutcome::Safe,
                };
            }
            if is_over(deadline) {
                return WatchOutcome::TimedOut;
            }
            let next = if is_endangered { expiry } else { danger_start };
            self.lease
                .wait_change(expiry, deadline::earlier(deadline, Some(next)));
        }
    }

    fn expire_if_due(&self) -> LeaseState {
        match &self.loss_handler {
            Some(handler) => handler.expire_if_due(&self.lease),
            None => self.lease.peek(clock::now()),
        }
    }
}

fn is_over(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|end| end <= clock::now())
}

impl Clone for LockWatch {
    fn clone(&self) -> LockWatch {
        LockWatch {
            lease: Arc::clone(&self.lease),
            danger_told: AtomicBool::new(self.danger_told.load(Ordering::Relaxed)),
            loss_handler: self.loss_handler.clone(),
        }
    }
}

/// A panic cannot leave it inconsistent: no lock inside it is held across a callback or code of the
/// caller.
impl UnwindSafe for LockWatch {}
impl RefUnwindSafe for LockWatch {}

/// Does not block, and shows no token.
impl fmt::Debug for LockWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("LockWatch");
        shown.field("lease", &self.lease).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn watch_outcome_shown_is_the_state_of_the_lock() {
        for (outcome, text) in [
            (WatchOutcome::Lost, "lost"),
            (WatchOutcome::Released, "released"),
            (WatchOutcome::Endangered, "endangered"),
            (WatchOutcome::Safe, "safe again"),
            (WatchOutcome::TimedOut, "still held"),
        ] {
            assert_eq!(outcome.to_string(), text);
        }
    }
}
