//! The request of a thread to the lock table, and why the table refuses it.
//!
//! Tests: `src/tests/local/`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::local::handoff::HandoffOffer;
use crate::protocol::key_set::KeySet;
use crate::transport::inbox::Inbox;

/// The other holders with which a holder shares an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AccessMode {
    /// With no other holder: exclusive locks and writers.
    Exclusive,
    /// With any number of `Shared` holders: readers.
    Shared,
    /// With other holders, up to this number in all: permits of a semaphore.
    Limited(u16),
}

/// A thread's request to the lock table.
#[derive(Clone, Copy)]
pub(crate) struct LocalRequest<'a> {
    /// The keys to acquire, in sorted order.
    pub(crate) keys: &'a KeySet,
    pub(crate) mode: AccessMode,
    /// Lets the former holder hand the lock off; `None` if this thread needs a lease of its own.
    pub(crate) offer: Option<&'a HandoffOffer>,
    /// Where the thread sleeps while it is queued.
    pub(crate) inbox: &'a Arc<Inbox>,
    /// When the wait in the queue ends; `None` means no limit.
    pub(crate) deadline: Option<Instant>,
}

/// Why the lock table did not admit a thread.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The deadline passed.
    Busy {
        /// The mode of the holders, or of the earlier waiters, that were in the way.
        by: AccessMode,
        /// The time until all holders' leases have ended; for a permit, until the first has. For a
        /// permit `None` only if no end is known, else if one is unknown or never comes; also if
        /// earlier waiters are in the way.
        remaining: Option<Duration>,
    },
    /// The holders and waiters use this other number of permits.
    PermitCountMismatch(u16),
    /// The caller's cancel token was cancelled.
    Cancelled,
    /// The lock table is closed.
    Closed,
}
