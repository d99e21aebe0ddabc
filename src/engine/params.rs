//! What a caller asks for, and what it gets.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::local::entry::{Access, Refused};
use crate::local::guard::Pass;
use crate::protocol::key_set::Keys;
use crate::protocol::kind::Claim;
use crate::protocol::lease::Lease;
use crate::protocol::lost_lock::OnLost;
use crate::protocol::ttl::Ttl;
use crate::time::clock;
use crate::transport::cancel::CancelToken;

/// What an acquire is to take.
#[derive(Debug)]
pub(crate) struct Wish {
    pub(crate) keys: Keys,
    pub(crate) claim: Claim,
    pub(crate) ttl: Ttl,
    /// Whether it is to have a fencing token. Without meaning for readers.
    pub(crate) fenced: bool,
    /// What can end it from outside.
    pub(crate) cancel: Option<CancelToken>,
    /// What is to be done for it once it is held.
    pub(crate) care: Care,
}

/// What is done for a lease that is held without its holder's doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Care {
    pub(crate) renews: bool,
    /// How long it is renewed at the longest.
    pub(crate) max_hold: Option<Duration>,
    pub(crate) on_lost: Option<OnLost>,
}

/// What an acquire has taken.
#[derive(Debug)]
pub(crate) enum Taken {
    /// A lease on a quorum of nodes.
    Quorum(Arc<Lease>, Pass),
    /// The slot in this process, while no quorum answers.
    Local(Pass),
}

/// How long an acquire is ready to try.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    pub(crate) end: Option<Instant>,
    pub(crate) attempts: Option<u32>,
}

impl Patience {
    /// Whether this is over after so many attempts.
    pub(crate) fn is_over(&self, attempts: u32) -> bool {
        self.attempts.is_some_and(|most| attempts >= most)
            || self.end.is_some_and(|end| end <= clock::now())
    }
}

/// Whether a claim shares the slot of its key.
pub(crate) fn access(claim: Claim) -> Access {
    match claim {
        Claim::Read => Access::Shared,
        Claim::Permit { of, .. } => Access::Counted(of),
        Claim::Exclusive | Claim::Write | Claim::Gate => Access::Alone,
    }
}

/// The error of one whose limit ran out while others held the lock.
pub(crate) fn contended(
    claim: Claim,
    by: Access,
    attempts: u32,
    waited: Duration,
    remaining: Option<Duration>,
) -> Error {
    match (claim, by) {
        (Claim::Read, _) => Error::WriteLockTimeout {
            attempts,
            waited,
            remaining,
        },
        (Claim::Write, Access::Alone | Access::Counted(_)) => Error::WriteLockHeld {
            attempts,
            waited,
            remaining,
        },
        (Claim::Write, Access::Shared) => Error::ReadersTimeout {
            attempts,
            waited,
            remaining,
        },
        (Claim::Exclusive | Claim::Permit { .. } | Claim::Gate, _) => Error::Contended {
            attempts,
            waited,
            remaining,
        },
    }
}

/// The error of one who did not get into the slot of a key.
pub(crate) fn turned_away(
    refused: Refused,
    keys: &Keys,
    claim: Claim,
    attempts: u32,
    waited: Duration,
) -> Error {
    match refused {
        Refused::Closed => Error::Closed,
        Refused::Cancelled => Error::Cancelled,
        Refused::OtherPermits(other) => other_permits(keys, claim, u32::from(other)),
        Refused::Busy { by, remaining } => contended(claim, by, attempts, waited, remaining),
    }
}

/// The error of one who says that a semaphore has another number of permits than those do who hold some.
pub(crate) fn other_permits(keys: &Keys, claim: Claim, other: u32) -> Error {
    let ours = match claim {
        Claim::Permit { of, .. } => of,
        _ => 0,
    };
    Error::InvalidConfig(format!(
        "the semaphore {:?} is to have {ours} permits, but has {other} while one of them is held",
        keys.first().name()
    ))
}

/// How long an acquire waits for its way.
#[derive(Clone, Copy)]
pub(crate) struct Stay {
    /// When its caller came.
    pub(crate) started: Instant,
    /// When the caller's wait ends, or all attempts would be over.
    pub(crate) queue_end: Option<Instant>,
}

impl Stay {
    /// Whether the caller waits at all.
    pub(crate) fn waits(self) -> bool {
        self.queue_end.is_none_or(|end| end > self.started)
    }
}
