//! What a caller asks for, and what it gets.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::local::entry::{AccessMode, Refusal};
use crate::local::guard::LocalGuard;
use crate::protocol::key_set::KeySet;
use crate::protocol::kind::LeaseKind;
use crate::protocol::lease::Lease;
use crate::protocol::lost_lock::OnLostCallback;
use crate::protocol::ttl::Ttl;
use crate::time::clock;
use crate::transport::cancel::CancelToken;

/// What an acquire is to take.
#[derive(Debug)]
pub(crate) struct AcquireParams {
    pub(crate) keys: KeySet,
    pub(crate) kind: LeaseKind,
    pub(crate) ttl: Ttl,
    /// Whether it is to have a fencing token. Without meaning for readers.
    pub(crate) fenced: bool,
    /// What can end it from outside.
    pub(crate) cancel: Option<CancelToken>,
    /// What is to be done for it once it is held.
    pub(crate) lease_options: LeaseOptions,
}

/// What is done for a lease that is held without its holder's doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LeaseOptions {
    pub(crate) auto_renew: bool,
    /// How long it is renewed at the longest.
    pub(crate) max_renewal: Option<Duration>,
    pub(crate) on_lost: Option<OnLostCallback>,
}

/// What an acquire has taken.
#[derive(Debug)]
pub(crate) enum Acquired {
    /// A lease on a quorum of nodes.
    Quorum(Arc<Lease>, LocalGuard),
    /// The slot in this process, while no quorum answers.
    Local(LocalGuard),
}

/// How long an acquire is ready to try.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WaitLimit {
    pub(crate) deadline: Option<Instant>,
    pub(crate) max_attempts: Option<u32>,
}

impl WaitLimit {
    /// Whether this is over after so many attempts.
    pub(crate) fn is_exhausted(&self, attempts: u32) -> bool {
        self.max_attempts.is_some_and(|most| attempts >= most)
            || self.deadline.is_some_and(|end| end <= clock::now())
    }
}

/// Whether a claim shares the slot of its key.
pub(crate) fn access_mode(claim: LeaseKind) -> AccessMode {
    match claim {
        LeaseKind::Read => AccessMode::Shared,
        LeaseKind::Permit { total: of, .. } => AccessMode::Limited(of),
        LeaseKind::Exclusive | LeaseKind::Write | LeaseKind::GateEntry => AccessMode::Exclusive,
    }
}

/// The error of one whose limit ran out while others held the lock.
pub(crate) fn contended_error(
    claim: LeaseKind,
    by: AccessMode,
    attempts: u32,
    waited: Duration,
    remaining: Option<Duration>,
) -> Error {
    match (claim, by) {
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

/// The error of one who did not get into the slot of a key.
pub(crate) fn refusal_error(
    refused: Refusal,
    keys: &KeySet,
    claim: LeaseKind,
    attempts: u32,
    waited: Duration,
) -> Error {
    match refused {
        Refusal::Closed => Error::Closed,
        Refusal::Cancelled => Error::Cancelled,
        Refusal::PermitCountMismatch(other) => permit_count_error(keys, claim, u32::from(other)),
        Refusal::Busy { by, remaining } => contended_error(claim, by, attempts, waited, remaining),
    }
}

/// The error of one who says that a semaphore has another number of permits than those do who hold some.
pub(crate) fn permit_count_error(keys: &KeySet, claim: LeaseKind, other: u32) -> Error {
    let ours = match claim {
        LeaseKind::Permit { total: of, .. } => of,
        _ => 0,
    };
    Error::InvalidConfig(format!(
        "the semaphore {:?} is to have {ours} permits, but has {other} while one of them is held",
        keys.first().name()
    ))
}

/// How long an acquire waits for its way.
#[derive(Clone, Copy)]
pub(crate) struct Deadlines {
    /// When its caller came.
    pub(crate) started: Instant,
    /// When the caller's wait ends, or all attempts would be over.
    pub(crate) queue: Option<Instant>,
}

impl Deadlines {
    /// Whether the caller waits at all.
    pub(crate) fn waits(self) -> bool {
        self.queue.is_none_or(|end| end > self.started)
    }
}
