//! The parameters of an acquire, its limits, its result, and its errors.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::local::entry::{AccessMode, Refusal};
use crate::local::guard::LocalGuard;
use crate::protocol::key_set::KeySet;
use crate::protocol::kind::LeaseKind;
use crate::protocol::lease::Lease;
use crate::protocol::lost_lock::OnLostCallback;
use crate::protocol::retry::RetryPolicy;
use crate::protocol::ttl::Ttl;
use crate::time::{clock, deadline};
use crate::transport::cancel::CancelToken;

/// The lock that an acquire asks for.
#[derive(Debug)]
pub(crate) struct AcquireParams {
    pub(crate) keys: KeySet,
    pub(crate) kind: LeaseKind,
    pub(crate) ttl: Ttl,
    /// The lease needs a fencing token. Ignored for read locks.
    pub(crate) fenced: bool,
    pub(crate) cancel: Option<CancelToken>,
    pub(crate) lease_options: LeaseOptions,
}

/// The background services of a held lease.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LeaseOptions {
    pub(crate) auto_renew: bool,
    /// The time after which renewal ends; `None` for no limit.
    pub(crate) max_renewal: Option<Duration>,
    pub(crate) on_lost: Option<OnLostCallback>,
}

/// An acquired lock.
#[derive(Debug)]
pub(crate) enum Acquired {
    /// A lease on a quorum of nodes.
    Quorum(Arc<Lease>, LocalGuard),
    /// The entry in the lock table alone, in degraded mode (S9).
    Local(LocalGuard),
}

/// The limits that a caller sets to its wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WaitLimit {
    /// When the wait ends; `None` for no limit.
    pub(crate) deadline: Option<Instant>,
    /// The number of attempts, at least one; `None` for no limit.
    pub(crate) max_attempts: Option<u32>,
}

impl WaitLimit {
    /// Returns whether no further attempt may follow after this number of attempts.
    pub(super) fn is_exhausted(&self, attempts: u32) -> bool {
        self.max_attempts.is_some_and(|max| attempts >= max)
            || self.deadline.is_some_and(|end| end <= clock::now())
    }
}

/// When an acquire began, and when its wait in queues ends.
#[derive(Clone, Copy)]
pub(super) struct Deadlines {
    pub(super) started: Instant,
    /// When the caller's wait ends, or the retry delays of all its attempts would have passed.
    pub(super) queue: Option<Instant>,
}

impl Deadlines {
    pub(super) fn new(started: Instant, limit: WaitLimit, retry: &RetryPolicy) -> Deadlines {
        let delays = limit.max_attempts.map(|max| retry.total_delay(max));
        let delays_end = delays.and_then(|delays| deadline::deadline(started, delays));
        Deadlines {
            started,
            queue: deadline::earlier(limit.deadline, delays_end),
        }
    }

    /// Returns whether the caller waits at all.
    pub(super) fn waits(self) -> bool {
        self.queue.is_none_or(|end| end > self.started)
    }
}

/// Returns how a kind of lease shares the entry of its key in the lock table.
pub(crate) fn access_mode(kind: LeaseKind) -> AccessMode {
    match kind {
        LeaseKind::Read => AccessMode::Shared,
        LeaseKind::Permit { total, .. } => AccessMode::Limited(total),
        LeaseKind::Exclusive | LeaseKind::Write | LeaseKind::GateEntry => AccessMode::Exclusive,
    }
}

/// Returns the error of a caller whose limit ended while the lock was held.
///
/// `held_by` is the access mode of the holders, `remaining` the time until they may be gone.
pub(super) fn contended_error(
    kind: LeaseKind,
    held_by: AccessMode,
    attempts: u32,
    waited: Duration,
    remaining: Option<Duration>,
) -> Error {
    match (kind, held_by) {
        (LeaseKind::Read, _) => Error::WriteLockTimeout {
            attempts,
            waited,
            remaining,
        },
        (LeaseKind::Write, AccessMode::Exclusive | AccessMode::Limited(_)) => {
            Error::WriteLockHeld {
                attempts,
                waited,
                remaining,
            }
        }
        (LeaseKind::Write, AccessMode::Shared) => Error::ReadersTimeout {
            attempts,
            waited,
            remaining,
        },
        (LeaseKind::Exclusive | LeaseKind::Permit { .. } | LeaseKind::GateEntry, _) => {
            Error::Contended {
                attempts,
                waited,
                remaining,
            }
        }
    }
}

/// Returns the error of a caller that did not acquire its entry in the lock table.
pub(crate) fn refusal_error(
    refusal: Refusal,
    keys: &KeySet,
    kind: LeaseKind,
    attempts: u32,
    waited: Duration,
) -> Error {
    match refusal {
        Refusal::Closed => Error::Closed,
        Refusal::Cancelled => Error::Cancelled,
        Refusal::PermitCountMismatch(count) => permit_count_error(keys, kind, u32::from(count)),
        Refusal::Busy { by, remaining } => contended_error(kind, by, attempts, waited, remaining),
    }
}

/// Returns the error of a caller whose number of permits differs from the one in use.
pub(super) fn permit_count_error(keys: &KeySet, kind: LeaseKind, in_use: u32) -> Error {
    let requested = match kind {
        LeaseKind::Permit { total, .. } => total,
        _ => 0,
    };
    Error::InvalidConfig(format!(
        "semaphore {:?}: {requested} permits requested, but it has {in_use} while one is held",
        keys.first().name()
    ))
}
