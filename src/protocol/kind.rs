//! Kinds of lock, and what a lease grants.

/// What kind of lock a name names: two of different kinds are different locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Family {
    Exclusive,
    ReadWrite,
    Semaphore,
}

/// What a lease gives its holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// An exclusive lock.
    Exclusive,
    /// A read lock, beside others.
    Read,
    /// A write lock.
    Write,
    /// One permit of a semaphore, beside others.
    Permit {
        /// Which of them, from 0 on.
        slot: u16,
        /// How many the semaphore has.
        of: u16,
    },
    /// A writer's place at the gate that keeps new readers out while it waits. Never held, only left.
    Gate,
}

impl Claim {
    /// Whether others can have the same beside it.
    pub(crate) fn is_shared(self) -> bool {
        matches!(self, Claim::Read | Claim::Permit { .. })
    }

    /// The kind of lock that it is a claim of.
    pub(crate) fn family(self) -> Family {
        match self {
            Claim::Exclusive => Family::Exclusive,
            Claim::Read | Claim::Write | Claim::Gate => Family::ReadWrite,
            Claim::Permit { .. } => Family::Semaphore,
        }
    }
}
