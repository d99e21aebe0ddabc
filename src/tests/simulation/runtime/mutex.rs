//! Mutexes and condition variables in the shape of those of `parking_lot`.
//!
//! Outside of a simulation they are those of `parking_lot`. A fiber that finds a mutex locked waits
//! for its address.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::panic::Location;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::tests::simulation::runtime::context;
use crate::tests::simulation::runtime::fiber::{Resource, Woken};

#[derive(Default)]
pub(crate) struct Mutex<T>(parking_lot::Mutex<T>, AtomicUsize);

/// A locked mutex. `guard` is `None` only while the mutex is unlocked for a wait.
pub(crate) struct MutexGuard<'a, T> {
    mutex: &'a Mutex<T>,
    guard: Option<parking_lot::MutexGuard<'a, T>>,
}

#[derive(Debug, Default)]
pub(crate) struct Condvar(parking_lot::Condvar);

/// The result of a wait with a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WaitTimeoutResult(bool);

impl<T> Mutex<T> {
    pub(crate) const fn new(value: T) -> Mutex<T> {
        Mutex(parking_lot::Mutex::new(value), AtomicUsize::new(0))
    }

    /// Returns how often the mutex was locked by [`lock`](Mutex::lock).
    pub(crate) fn lock_count(&self) -> usize {
        self.1.load(Ordering::Relaxed)
    }

    #[track_caller]
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.1.fetch_add(1, Ordering::Relaxed);
        MutexGuard {
            mutex: self,
            guard: Some(self.lock_inner(Location::caller())),
        }
    }

    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        context::step();
        let guard = self.0.try_lock()?;
        Some(MutexGuard {
            mutex: self,
            guard: Some(guard),
        })
    }

    fn lock_inner(&self, at: &'static Location<'static>) -> parking_lot::MutexGuard<'_, T> {
        if !context::is_simulated() {
            return self.0.lock();
        }
        context::step();
        loop {
            if let Some(guard) = self.0.try_lock() {
                return guard;
            }
            context::block(context::wait("locks a mutex", Resource::of(self), None, at));
        }
    }
}

impl<T> MutexGuard<'_, T> {
    /// Unlocks the mutex while `f` runs.
    #[track_caller]
    pub(crate) fn unlocked<U>(guard: &mut Self, f: impl FnOnce() -> U) -> U {
        let at = Location::caller();
        guard.unlock();
        let relocked = Relock(guard, at);
        let result = f();
        drop(relocked);
        result
    }

    fn unlock(&mut self) {
        if self.guard.take().is_some() {
            context::wake_all(Resource::of(self.mutex));
        }
    }
}

/// Locks the mutex again, after a panic, too.
struct Relock<'a, 'b, T>(&'a mut MutexGuard<'b, T>, &'static Location<'static>);

impl<T> Drop for Relock<'_, '_, T> {
    fn drop(&mut self) {
        self.0.guard = Some(self.0.mutex.lock_inner(self.1));
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        self.unlock();
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.guard.as_ref().expect("locked")
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.guard.as_mut().expect("locked")
    }
}

impl<T: fmt::Debug> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<T: fmt::Debug> fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl Condvar {
    pub(crate) const fn new() -> Condvar {
        Condvar(parking_lot::Condvar::new())
    }

    #[track_caller]
    pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        match context::is_simulated() {
            true => _ = self.wait_simulated(guard, None, Location::caller()),
            false => self.0.wait(guard.guard.as_mut().expect("locked")),
        }
    }

    #[track_caller]
    pub(crate) fn wait_until<T>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        end: Instant,
    ) -> WaitTimeoutResult {
        let timed_out = match context::is_simulated() {
            true => {
                let woken = self.wait_simulated(guard, Some(end), Location::caller());
                woken == Woken::TimedOut
            }
            false => {
                let guard = guard.guard.as_mut().expect("locked");
                self.0.wait_until(guard, end).timed_out()
            }
        };
        WaitTimeoutResult(timed_out)
    }

    fn wait_simulated<T>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        end: Option<Instant>,
        at: &'static Location<'static>,
    ) -> Woken {
        context::step();
        // Waiting begins before the mutex is unlocked, so that no notification comes in between.
        let wait = context::wait("waits for a condition", Resource::of(self), end, at);
        context::begin_wait(wait);
        guard.unlock();
        let woken = context::end_wait();
        guard.guard = Some(guard.mutex.lock_inner(at));
        woken
    }

    pub(crate) fn notify_one(&self) {
        match context::is_simulated() {
            true => {
                context::step();
                context::wake_one(Resource::of(self));
            }
            false => _ = self.0.notify_one(),
        }
    }

    pub(crate) fn notify_all(&self) {
        match context::is_simulated() {
            true => {
                context::step();
                context::wake_all(Resource::of(self));
            }
            false => _ = self.0.notify_all(),
        }
    }
}

impl WaitTimeoutResult {
    pub(crate) fn timed_out(self) -> bool {
        self.0
    }
}
