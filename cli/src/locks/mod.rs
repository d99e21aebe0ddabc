//! Locks of all kinds as the nodes store them (ARCHITECTURE.md of the library, section 8).

pub(crate) mod force_release;
pub(crate) mod glob;
pub(crate) mod inspect;
pub(crate) mod keys;
pub(crate) mod merge;
pub(crate) mod row;
pub(crate) mod scan;
pub(crate) mod survey;

use clap::ValueEnum;

/// The kind of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum LockKind {
    /// The exclusive lock.
    Lock,
    /// The write lock of a read-write lock.
    Write,
    /// A read lock.
    Read,
    /// A permit of a semaphore.
    Permit,
}

impl LockKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            LockKind::Lock => "lock",
            LockKind::Write => "write",
            LockKind::Read => "read",
            LockKind::Permit => "permit",
        }
    }
}
