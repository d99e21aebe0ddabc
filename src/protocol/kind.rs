//! Kinds of lock, and what a lease grants.

/// What kind of lock a name names: two of different kinds are different locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum LockKind {
    Exclusive,
    ReadWrite,
    Semaphore,
}

/// What a lease gives its holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LeaseKind {
    /// An exclusive lock.
    Exclusive,
    /// A read lock, beside others.
    Read,
    /// A write lock.
    Write,
    /// One permit of a semaphore, beside others.
    Permit {
        /// Which of them, from 0 on.
        index: u16,
        /// How many the semaphore has.
        total: u16,
    },
    /// A writer's place at the gate that keeps new readers out while it waits. Never held, only left.
    GateEntry,
}

impl LeaseKind {
    /// Whether others can have the same beside it.
    pub(crate) fn is_shared(self) -> bool {
        matches!(self, LeaseKind::Read | LeaseKind::Permit { .. })
    }

    /// The kind of lock that it is a claim of.
    pub(crate) fn lock_kind(self) -> LockKind {
        match self {
            LeaseKind::Exclusive => LockKind::Exclusive,
            LeaseKind::Read | LeaseKind::Write | LeaseKind::GateEntry => LockKind::ReadWrite,
            LeaseKind::Permit { .. } => LockKind::Semaphore,
        }
    }
}
