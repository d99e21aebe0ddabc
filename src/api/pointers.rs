//! The traits of lockers for references and shared pointers to them, so that a generic function
//! takes either.

use std::sync::Arc;

use crate::api::guard::{LockGuard, ReadGuard, SemaphorePermit, WriteGuard};
use crate::api::locker::Locker;
use crate::api::options::LockOptions;
use crate::api::rw_locker::RwLocker;
use crate::api::semaphore::Semaphore;
use crate::error::error::Error;

/// Implements the traits for one kind of pointer.
macro_rules! forward {
    ($pointer:ty) => {
        impl<L: Locker + ?Sized> Locker for $pointer {
            fn acquire(&self, key: &str, options: &LockOptions) -> Result<LockGuard, Error> {
                (**self).acquire(key, options)
            }

            fn try_acquire(
                &self,
                key: &str,
                options: &LockOptions,
            ) -> Result<Option<LockGuard>, Error> {
                (**self).try_acquire(key, options)
            }

            fn acquire_all(
                &self,
                keys: &[&str],
                options: &LockOptions,
            ) -> Result<LockGuard, Error> {
                (**self).acquire_all(keys, options)
            }

            fn try_acquire_all(
                &self,
                keys: &[&str],
                options: &LockOptions,
            ) -> Result<Option<LockGuard>, Error> {
                (**self).try_acquire_all(keys, options)
            }

            fn acquire_any(
                &self,
                keys: &[&str],
                options: &LockOptions,
            ) -> Result<LockGuard, Error> {
                (**self).acquire_any(keys, options)
            }
        }

        impl<L: RwLocker + ?Sized> RwLocker for $pointer {
            fn acquire_read(&self, key: &str, options: &LockOptions) -> Result<ReadGuard, Error> {
                (**self).acquire_read(key, options)
            }

            fn try_acquire_read(
                &self,
                key: &str,
                options: &LockOptions,
            ) -> Result<Option<ReadGuard>, Error> {
                (**self).try_acquire_read(key, options)
            }

            fn acquire_write(&self, key: &str, options: &LockOptions) -> Result<WriteGuard, Error> {
                (**self).acquire_write(key, options)
            }

            fn try_acquire_write(
                &self,
                key: &str,
                options: &LockOptions,
            ) -> Result<Option<WriteGuard>, Error> {
                (**self).try_acquire_write(key, options)
            }
        }

        impl<L: Semaphore + ?Sized> Semaphore for $pointer {
            fn acquire(&self, options: &LockOptions) -> Result<SemaphorePermit, Error> {
                (**self).acquire(options)
            }

            fn try_acquire(&self, options: &LockOptions) -> Result<Option<SemaphorePermit>, Error> {
                (**self).try_acquire(options)
            }

            fn permits(&self) -> u32 {
                (**self).permits()
            }
        }
    };
}

forward!(&L);
forward!(Box<L>);
forward!(Arc<L>);

#[cfg(all(test, not(loom)))]
mod tests {
    #![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

    use std::time::Duration;

    use super::*;
    use crate::api::ext::LockerExt;
    use crate::api::local_locker::LocalLocker;
    use crate::api::rw_locker::LocalRwLocker;
    use crate::api::semaphore::LocalSemaphore;

    const TTL: Duration = Duration::from_secs(30);

    /// Takes lockers by value, as a generic type that stores one does.
    fn use_all<L: Locker, R: RwLocker, S: Semaphore>(lockers: (L, R, S)) {
        let (locker, rw, semaphore) = lockers;
        let options = LockOptions::new(TTL);
        let guards = (
            locker.lock("x", TTL).unwrap(),
            rw.write("x", TTL).unwrap(),
            semaphore.acquire(&options).unwrap(),
        );
        assert!(locker.try_lock("x", TTL).unwrap().is_none());
        assert!(
            locker
                .try_acquire_all(&["a", "x"], &options)
                .unwrap()
                .is_none()
        );
        assert!(rw.try_read("x", TTL).unwrap().is_none());
        assert!(rw.try_write("x", TTL).unwrap().is_none());
        assert!(semaphore.try_acquire(&options).unwrap().is_none());
        assert_eq!(semaphore.permits(), 1);
        drop(guards);
        let both = locker.acquire_all(&["a", "x"], &options).unwrap();
        drop(both);
        assert_eq!(locker.with_lock("x", TTL, |_| 7), Ok(7));
        drop(rw.read("x", TTL).unwrap());
    }

    #[test]
    fn pointers_to_lockers_are_lockers() {
        let (locker, rw) = (LocalLocker::new(), LocalRwLocker::new());
        let semaphore = LocalSemaphore::new(1).unwrap();
        use_all((&locker, &rw, &semaphore));
        let behind: (&dyn Locker, &dyn RwLocker, &dyn Semaphore) = (&locker, &rw, &semaphore);
        use_all(behind);
        let boxed: (Box<dyn Locker>, Box<dyn RwLocker>, Box<dyn Semaphore>) = (
            Box::new(locker.clone()),
            Box::new(rw.clone()),
            Box::new(semaphore.clone()),
        );
        use_all(boxed);
        use_all((
            Arc::new(locker) as Arc<dyn Locker>,
            Arc::new(rw) as Arc<dyn RwLocker>,
            Arc::new(semaphore) as Arc<dyn Semaphore>,
        ));
    }
}
