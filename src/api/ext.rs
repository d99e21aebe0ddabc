//! A lock for as long as a closure runs: a scope that cannot be written wrong.

use std::time::Duration;

use log::warn;

use crate::api::guard::LockGuard;
use crate::api::locker::Locker;
use crate::error::Error;

/// What every [`Locker`] can do besides, also behind `dyn`: a trait of its own, since a method that takes a closure cannot be in
/// one that is used so.
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
    /// Runs `work` under the lock of `key`: a scope that cannot be written wrong. Waits as [`Locker::lock`] does, and
    /// releases the lock when `work` returns or panics.
    ///
    /// `Ok` with what `work` returned means that the lock was held to its end. For options there are guards.
    ///
    /// # Errors
    /// As [`Locker::acquire`], and `work` was not run. [`LockLost`](Error::LockLost) when the lock was lost while it ran:
    /// it may have overlapped with another holder's, and what it returned is dropped. A `work` that takes its time asks the guard
    /// whether it is still held.
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

/// Runs `work` under a lock, and releases it.
fn run_locked<R>(guard: LockGuard, work: impl FnOnce(&LockGuard) -> R) -> Result<R, Error> {
    let done = work(&guard);
    let key = guard.key().to_owned();
    match guard.release() {
        // It was held to the end; that it was not confirmed does not harm what was done.
        Err(error) if !error.is_lost() => warn!("{key:?}: release failed: {error}"),
        released => released?,
    }
    Ok(done)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::api::locker::LocalLocker;

    const TTL: Duration = Duration::from_secs(30);

    #[test]
    fn the_lock_is_held_while_it_runs_and_free_after_it() {
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
