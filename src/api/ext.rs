//! Runs a closure under a lock.

use std::time::Duration;

use log::warn;

use crate::api::guard::LockGuard;
use crate::api::locker::Locker;
use crate::api::options::LockOptions;
use crate::error::error::Error;

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
    /// Acquires one lock on all of these names, as [`Locker::acquire_all`] does, from any iterator.
    ///
    /// # Errors
    /// As [`Locker::acquire_all`].
    ///
    /// ```
    /// use redguard::{LocalLocker, LockOptions, LockerExt};
    /// use std::time::Duration;
    ///
    /// # fn main() -> Result<(), redguard::Error> {
    /// let accounts = [7, 3].map(|number| format!("account-{number}"));
    /// let options = LockOptions::new(Duration::from_secs(30));
    /// let guard = LocalLocker::new().acquire_each(&accounts, &options)?;
    /// assert!(guard.keys().eq(["account-3", "account-7"]));
    /// # Ok(())
    /// # }
    /// ```
    fn acquire_each<I>(&self, keys: I, options: &LockOptions) -> Result<LockGuard, Error>
    where
        I: IntoIterator<Item: AsRef<str>>;

    /// Acquires one lock on all of these names if all are free, as [`Locker::try_acquire_all`]
    /// does.
    ///
    /// # Errors
    /// As [`Locker::try_acquire_all`].
    fn try_acquire_each<I>(
        &self,
        keys: I,
        options: &LockOptions,
    ) -> Result<Option<LockGuard>, Error>
    where
        I: IntoIterator<Item: AsRef<str>>;

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

/// Returns names as [`Locker::acquire_all`] takes them.
fn with_names<R>(
    keys: impl IntoIterator<Item = impl AsRef<str>>,
    call: impl FnOnce(&[&str]) -> R,
) -> R {
    let keys: Vec<_> = keys.into_iter().collect();
    let names: Vec<&str> = keys.iter().map(AsRef::as_ref).collect();
    call(&names)
}

impl<L: Locker + ?Sized> LockerExt for L {
    fn acquire_each<I>(&self, keys: I, options: &LockOptions) -> Result<LockGuard, Error>
    where
        I: IntoIterator<Item: AsRef<str>>,
    {
        with_names(keys, |names| self.acquire_all(names, options))
    }

    fn try_acquire_each<I>(
        &self,
        keys: I,
        options: &LockOptions,
    ) -> Result<Option<LockGuard>, Error>
    where
        I: IntoIterator<Item: AsRef<str>>,
    {
        with_names(keys, |names| self.try_acquire_all(names, options))
    }

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
    use crate::api::local_locker::LocalLocker;

    const TTL: Duration = Duration::from_secs(30);

    #[test]
    fn names_come_from_any_iterator() {
        let (locker, options) = (LocalLocker::new(), LockOptions::new(TTL));
        let guard = locker.acquire_each(["b", "a"], &options).unwrap();
        assert!(guard.keys().eq(["a", "b"]));
        let owned = vec!["b".to_owned()];
        assert!(locker.try_acquire_each(&owned, &options).unwrap().is_none());
        let set: std::collections::BTreeSet<String> = owned.into_iter().collect();
        drop(guard);
        assert!(locker.try_acquire_each(set, &options).unwrap().is_some());
        let none: [&str; 0] = [];
        assert!(locker.acquire_each(none, &options).is_err());
    }

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
