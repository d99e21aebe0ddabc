//! Guards of all kinds behind one type.

use std::sync::Arc;
use std::time::Duration;

use crate::api::guard::{LockGuard, ReadGuard, SemaphorePermit, WriteGuard};
use crate::api::lock_token::LockToken;
use crate::api::watch::LockWatch;
use crate::error::error::Error;
use crate::protocol::lease::Lease;
use crate::protocol::mode::Mode;

/// A guard of any kind.
#[derive(Debug)]
pub(crate) enum AnyGuard {
    Lock(LockGuard),
    Read(ReadGuard),
    Write(WriteGuard),
    Permit(SemaphorePermit),
}

/// Calls a method that all guards have.
macro_rules! each {
    ($guard:expr, $method:ident($($argument:expr),*)) => {
        match $guard {
            AnyGuard::Lock(guard) => guard.$method($($argument),*),
            AnyGuard::Read(guard) => guard.$method($($argument),*),
            AnyGuard::Write(guard) => guard.$method($($argument),*),
            AnyGuard::Permit(guard) => guard.$method($($argument),*),
        }
    };
}

impl AnyGuard {
    pub(crate) fn lease(&self) -> Arc<Lease> {
        Arc::clone(each!(self, lease()))
    }

    pub(crate) fn mode(&self) -> Mode {
        each!(self, mode())
    }

    pub(crate) fn is_held(&self) -> bool {
        each!(self, is_held())
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        each!(self, check())
    }

    pub(crate) fn extend(&self, ttl: Duration) -> Result<(), Error> {
        each!(self, extend(ttl))
    }

    pub(crate) fn stop_renewal(&self) {
        each!(self, stop_renewal());
    }

    pub(crate) fn watch(&self) -> LockWatch {
        each!(self, watch())
    }

    pub(crate) fn release(self) -> Result<(), Error> {
        each!(self, release())
    }

    /// Detaches an exclusive lock; releases any other.
    pub(crate) fn detach(self) -> Result<Option<LockToken>, Error> {
        match self {
            AnyGuard::Lock(guard) => guard.into_token().map(Some),
            other => other.release().map(|()| None),
        }
    }

    /// Turns a write lock into a read lock.
    pub(crate) fn downgrade(self) -> Result<AnyGuard, Error> {
        match self {
            AnyGuard::Write(guard) => guard.downgrade().map(AnyGuard::Read),
            other => Ok(other),
        }
    }
}
