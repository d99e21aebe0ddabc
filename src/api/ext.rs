//! Runs a closure under a lock.

use std::time::Duration;

use log::warn;

use crate::api::guard::LockGuard;
use crate::api::locker::Locker;
use crate::error::Error;

/// Methods that every [`Locker`] has besides its own, also behind `dyn`. They are generic, which
/// methods of a trait for `dyn` cannot be.
///
/// ```
/// use redguard::{LocalLocker, Locker, LockerExt};
/// use std::time::Duration;
///
/// fn nightly(locker: &dyn Locker) -> Result<(), redguard::Error> {
///     locker.with_lock("nightly", Duration::from_secs(60), |_guard| println!("alone"))
/// }
///
/// nightly(&LocalLocker::new()).unwrap();
/// ```
pub trait LockerExt: Locker {
    /// Runs `work` under the lock of `key`. Waits as [`Locker::lock`] does, and releases the lock
    /// when `work` returns or panics.
    ///
    /// `Ok` with the value of `work` means that the lock was held to its end. [`Locker::acquire`]
    /// takes options.
    ///
    /// # Errors
    /// As [`Locker::acquire`], if `work` was not run, and
    /// - [`LockLost`](Error::LockLost): the lock was lost while `work` ran, which may have
    ///   overlapped with another holder's. Its value is dropped. A long `work` calls
    ///   [`check`](LockGuard::check) on the guard.
    ///
    /// ```
    /// use redguard::{LocalLocker, LockerExt};
    /// use std::time::Duration;
    ///
    /// # fn main() -> Result<(), redguard::Error> {
    /// let sum = LocalLocker::new().with_lock("account-7", Duration::from_secs(30), |guard| {
    ///     guard.check()?;
    ///     Ok::<_, redguard::Error>(1 + 1)
    /// })??;
    /// assert_eq!(sum, 2);
    /// # Ok(())
    /// # }
    /// ```
    fn with_lock<R>(
        &self,
        key: &str,
        ttl: Duration,
        work: impl FnOnce(&LockGuard) -> R,
    ) -> Result<R, Error>;
}

impl<L: Locker + ?Sized> LockerExt for L {
    fn with_lock<R>(
        &self,
        key: &str,
        ttl: Duration,
        work: impl FnOnce(&LockGuard) -> R,
    ) -> Result<R, Error> {
        run_locked(self.lock(key, ttl)?, work)
    }
}

/// Runs `work` under an acquired lock, and releases it.
fn run_locked<R>(guard: LockGuard, work: impl FnOnce(&LockGuard) -> R) -> Result<R, Error> {
    let value = work(&guard);
    let key = guard.key().to_owned();
    match guard.release() {
        // The lock was held to the end of `work`, so an unconfirmed release does no harm.
        Err(error) if !error.is_lost() => warn!("{key:?}: release failed: {error}"),
        released => released?,
    }
    Ok(value)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::api::locker::LocalLocker;

    const TTL: Duration = Duration::from_secs(30);

    #[test]
    fn closure_runs_under_the_lock_which_is_free_after_it() {
        let locker = LocalLocker::new();
        let behind: &dyn Locker = &locker;
        for run in 0..2 {
            let held = |guard: &LockGuard| {
                assert!(guard.is_held() && locker.try_lock("a", TTL).unwrap().is_none());
                run
            };
            assert_eq!(locker.with_lock("a", TTL, held), Ok(run));
            assert_eq!(behind.with_lock("a", TTL, held), Ok(run));
        }
        let error = locker
            .with_lock("", TTL, |_| unreachable!("no such lock"))
            .unwrap_err();
        assert!(matches!(error, Error::InvalidKey { .. }));
        let panics = || locker.with_lock("a", TTL, |_| panic!("in the scope"));
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).unwrap_err();
        locker.lock("a", TTL).unwrap().release().unwrap();
    }
}
