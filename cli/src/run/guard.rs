//! The guard of whichever kind of lock `run` holds.

use redguard::{Error, LockGuard, LockWatch, ReadGuard, SemaphorePermit, WriteGuard};

/// A held lock. Released on drop.
#[derive(Debug)]
pub(crate) enum Guard {
    Lock(LockGuard),
    Write(WriteGuard),
    Read(ReadGuard),
    Permit(SemaphorePermit),
}

impl Guard {
    pub(crate) fn fencing_token(&self) -> Option<u64> {
        match self {
            Guard::Lock(guard) => guard.fencing_token(),
            Guard::Write(guard) => guard.fencing_token(),
            Guard::Read(_) | Guard::Permit(_) => None,
        }
    }

    /// Returns the number of the permit, from 0.
    pub(crate) fn permit(&self) -> Option<u32> {
        match self {
            Guard::Permit(guard) => Some(guard.number()),
            _ => None,
        }
    }

    pub(crate) fn watch(&self) -> LockWatch {
        match self {
            Guard::Lock(guard) => guard.watch(),
            Guard::Write(guard) => guard.watch(),
            Guard::Read(guard) => guard.watch(),
            Guard::Permit(guard) => guard.watch(),
        }
    }

    pub(crate) fn release(self) -> Result<(), Error> {
        match self {
            Guard::Lock(guard) => guard.release(),
            Guard::Write(guard) => guard.release(),
            Guard::Read(guard) => guard.release(),
            Guard::Permit(guard) => guard.release(),
        }
    }
}
