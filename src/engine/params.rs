//! The parameters of an acquire, its limits, its result, and its errors.
//!
//! Tests: `src/tests/engine/holder_told.rs` (errors), `cancel.rs` (limits).

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::contended_lock::ContendedLock;
use crate::error::error::Error;
use crate::local::guard::LocalGuard;
use crate::local::lock_table::LockTable;
use crate::local::request::{AccessMode, Refusal};
use crate::protocol::endangered_lock::OnEndangered;
use crate::protocol::key_set::KeySet;
use crate::protocol::kind::LeaseKind;
use crate::protocol::lease::Lease;
use crate::protocol::lost_lock::OnLostCallback;
use crate::protocol::retry::RetryPolicy;
use crate::protocol::token::OwnerLabel;
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
    pub(crate) owner_label: Option<OwnerLabel>,
    pub(crate) lease_options: LeaseOptions,
}

/// The background services of a held lease.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LeaseOptions {
    pub(crate) auto_renew: bool,
    /// The time after which renewal ends; `None` for no limit.
    pub(crate) max_renewal: Option<Duration>,
    /// How long after the acquire a release frees the lock at the earliest.
    pub(crate) min_hold: Duration,
    pub(crate) on_lost: Option<OnLostCallback>,
    pub(crate) on_endangered: Option<OnEndangered>,
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
    /// Whether the caller gets an error that tells who holds the lock.
    pub(crate) tells_holder: bool,
}

impl WaitLimit {
    /// Returns whether no further attempt may follow after this number of attempts.
    pub(super) fn is_exhausted(&self, attempts: u32) -> bool {
        self.max_attempts.is_some_and(|max| attempts >= max)
            || self.deadline.is_some_and(|end| end <= clock::now())
    }

    /// Returns whether an attempt with this number, which lasts at most until `end`, may be the
    /// last one.
    pub(super) fn may_be_last(&self, attempt: u32, end: Instant) -> bool {
        self.max_attempts.is_some_and(|max| attempt >= max)
            || self.deadline.is_some_and(|deadline| deadline <= end)
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

/// How a lock is held, as a caller that does not get it is told.
#[derive(Debug)]
pub(crate) struct HeldBy {
    /// How the holders share the lock.
    pub(crate) access: AccessMode,
    /// The position of the key that is held, in a lock of several keys.
    pub(crate) key: usize,
    pub(crate) owner_label: Option<Box<str>>,
    /// The time until the holders may be gone.
    pub(crate) remaining: Option<Duration>,
}

/// The attempts and the wait of a caller.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    pub(crate) attempts: u32,
    pub(crate) waited: Duration,
}

/// Returns the error of a caller whose limit ended while the lock was held.
pub(super) fn contended_error(
    keys: &KeySet,
    kind: LeaseKind,
    held: HeldBy,
    effort: Effort,
) -> Error {
    let Effort { attempts, waited } = effort;
    let remaining = held.remaining;
    let key = keys.as_slice().get(held.key).unwrap_or(keys.first());
    let permits = match kind {
        LeaseKind::Permit { total, .. } => Some(u32::from(total)),
        _ => None,
    };
    let lock = Box::new(ContendedLock {
        key: key.name().to_owned(),
        owner_label: held.owner_label.map(String::from),
        permits,
    });
    match (kind, held.access) {
        (LeaseKind::Read, _) => Error::WriteLockTimeout {
            lock,
            attempts,
            waited,
            remaining,
        },
        (LeaseKind::Write, AccessMode::Exclusive | AccessMode::Limited(_)) => {
            Error::WriteLockHeld {
                lock,
                attempts,
                waited,
                remaining,
            }
        }
        (LeaseKind::Write, AccessMode::Shared) => Error::ReadersTimeout {
            lock,
            attempts,
            waited,
            remaining,
        },
        (LeaseKind::Exclusive | LeaseKind::Permit { .. } | LeaseKind::GateEntry, _) => {
            Error::Contended {
                lock,
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
    lock_table: &LockTable,
    keys: &KeySet,
    kind: LeaseKind,
    effort: Effort,
) -> Error {
    match refusal {
        Refusal::Closed => Error::Closed,
        Refusal::Cancelled => Error::Cancelled,
        Refusal::PermitCountMismatch(count) => permit_count_error(keys, kind, u32::from(count)),
        Refusal::Busy { by, remaining } => {
            let (key, owner_label) = lock_table.holder(keys);
            let held = HeldBy {
                access: by,
                key,
                owner_label,
                remaining,
            };
            contended_error(keys, kind, held, effort)
        }
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
