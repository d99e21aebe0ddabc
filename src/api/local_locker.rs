//! The handle on exclusive locks of this process alone.
//!
//! It decides nothing about a lock: it passes its arguments on to `acquire.rs` and the lock table.
//!
//! Tests: `tests/it/locks/conformance.rs`.

use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;

use crate::api::acquire::{AcquireCall, AcquireFrom};
use crate::api::guard::LockGuard;
use crate::api::locker::Locker;
use crate::api::options::LockOptions;
use crate::error::error::Error;
use crate::local::lock_table::LockTable;
use crate::protocol::kind::LeaseKind;

/// Exclusive locks in this process alone, behind the same trait: for programs that run without
/// Redis, and for tests.
///
/// Threads acquire a lock in the order in which they asked. Locks **do not expire**: a TTL is
/// validated and then ignored, and [`mode`](LockGuard::mode) is
/// [`Mode::Local`](crate::Mode::Local). Without a limit in the options an acquire blocks until the
/// lock is free. A cheap clone; all clones share their locks.
///
/// ```
/// use redguard::{Locker, LocalLocker, Mode};
/// use std::time::Duration;
///
/// # fn main() -> Result<(), redguard::Error> {
/// let locker = LocalLocker::new();
/// let guard = locker.lock("a", Duration::from_secs(1))?;
/// assert_eq!(guard.mode(), Mode::Local);
/// assert!(locker.try_lock("a", Duration::from_secs(1))?.is_none());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct LocalLocker {
    lock_table: Arc<LockTable>,
}

impl LocalLocker {
    /// Creates a locker whose locks are all free. Clones of a locker share its locks; two lockers
    /// share none.
    pub fn new() -> LocalLocker {
        LocalLocker {
            lock_table: Arc::new(LockTable::new()),
        }
    }

    #[cfg(all(test, not(loom)))]
    pub(crate) fn lock_table(&self) -> &LockTable {
        &self.lock_table
    }
}

impl Locker for LocalLocker {
    fn acquire(&self, key: &str, options: &LockOptions) -> Result<LockGuard, Error> {
        self.acquire_all(&[key], options)
    }

    fn try_acquire(&self, key: &str, options: &LockOptions) -> Result<Option<LockGuard>, Error> {
        self.try_acquire_all(&[key], options)
    }

    fn acquire_all(&self, keys: &[&str], options: &LockOptions) -> Result<LockGuard, Error> {
        self.lock_table
            .acquire_guard(&AcquireCall::new(keys, LeaseKind::Exclusive, options))
    }

    fn try_acquire_all(
        &self,
        keys: &[&str],
        options: &LockOptions,
    ) -> Result<Option<LockGuard>, Error> {
        self.lock_table
            .try_acquire_guard(&AcquireCall::new(keys, LeaseKind::Exclusive, options))
    }

    fn acquire_any(&self, keys: &[&str], options: &LockOptions) -> Result<LockGuard, Error> {
        self.lock_table
            .acquire_any_guard(&AcquireCall::new(keys, LeaseKind::Exclusive, options))
    }
}

/// A panic cannot leave it inconsistent: no lock inside it is held across a callback or code of the
/// caller.
impl UnwindSafe for LocalLocker {}
impl RefUnwindSafe for LocalLocker {}

impl Default for LocalLocker {
    fn default() -> LocalLocker {
        LocalLocker::new()
    }
}
