//! The kinds of locks, and the kinds of leases on them: for one holder or for several (S10).
//!
//! Tests: `src/tests/store_conformance/`, for each kind.

/// The kind of a lock. Locks of one name and different kinds are different locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum LockKind {
    Exclusive,
    ReadWrite,
    Semaphore,
}

/// The kind of a lease: the access that it grants its holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LeaseKind {
    /// An exclusive lock.
    Exclusive,
    /// A read lock, shared with other readers.
    Read,
    /// A write lock.
    Write,
    /// One permit of a semaphore.
    Permit {
        /// The index of the permit, from 0.
        index: u16,
        /// The number of permits of the semaphore.
        total: u16,
    },
    /// The gate entry of a waiting writer, which refuses new readers. It is never held.
    GateEntry,
}

impl LockKind {
    /// All kinds.
    pub(crate) const ALL: [LockKind; 3] = [
        LockKind::Exclusive,
        LockKind::ReadWrite,
        LockKind::Semaphore,
    ];
}

impl LeaseKind {
    /// Returns whether other holders can have the same at once.
    pub(crate) fn is_shared(self) -> bool {
        matches!(self, LeaseKind::Read | LeaseKind::Permit { .. })
    }

    /// Returns the kind of the lock.
    pub(crate) fn lock_kind(self) -> LockKind {
        match self {
            LeaseKind::Exclusive => LockKind::Exclusive,
            LeaseKind::Read | LeaseKind::Write | LeaseKind::GateEntry => LockKind::ReadWrite,
            LeaseKind::Permit { .. } => LockKind::Semaphore,
        }
    }
}
