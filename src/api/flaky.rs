//! A locker that fails on demand, for the tests of programs that acquire locks.

use std::collections::VecDeque;
use std::mem;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;
use std::time::Duration;

use crate::api::acquire;
use crate::api::acquire::{AcquireCall, AcquireFrom};
use crate::api::guard::LockGuard;
use crate::api::guard_inner::GuardInner;
use crate::api::locker::Locker;
use crate::api::options::{DefaultWait, LockOptions};
use crate::error::contended_lock::ContendedLock;
use crate::error::error::Error;
use crate::error::failed_node::FailedNode;
use crate::error::loss_reason::LossReason;
use crate::error::node_failure::NodeFailure;
use crate::error::operation::Operation;
use crate::local::lock_table::LockTable;
use crate::protocol::kind::LeaseKind;
use crate::protocol::lease::Lease;
use crate::protocol::lost_lock::{LostLock, OnLostCallback};
use crate::sync::primitives::Mutex;

/// Exclusive locks in this process that fail on demand, behind the trait [`Locker`].
///
/// Programs test with them how they behave when a lock is contended, unavailable, or lost while it
/// is held. With the feature `testing`.
///
/// Behaves as a [`LocalLocker`](crate::LocalLocker) until a failure is queued. A cheap clone; all
/// clones share their locks and their queued failures.
///
/// ```
/// use redguard::{Error, FlakyLocker, Locker};
/// use std::time::Duration;
///
/// /// The function under test.
/// fn job(locker: &dyn Locker, step: impl Fn()) -> Result<&'static str, Error> {
///     let Some(guard) = locker.try_lock("job", Duration::from_secs(30))? else {
///         return Ok("skipped");
///     };
///     step();
///     guard.check()?;
///     guard.release().map(|()| "done")
/// }
///
/// let locker = FlakyLocker::new();
/// assert_eq!(job(&locker, || {}), Ok("done"));
/// locker.contend(1);
/// assert_eq!(job(&locker, || {}), Ok("skipped"));
/// locker.fail(1);
/// assert!(job(&locker, || {}).unwrap_err().is_unavailable());
/// let lose = || assert!(locker.lose("job"));
/// assert!(matches!(job(&locker, lose), Err(Error::LockLost { .. })));
/// assert_eq!(job(&locker, || {}), Ok("done"));
/// ```
#[derive(Debug, Clone)]
pub struct FlakyLocker {
    lock_table: Arc<LockTable>,
    state: Arc<Mutex<FlakyState>>,
}

#[derive(Debug, Default)]
struct FlakyState {
    failures: VecDeque<QueuedFailure>,
    held: Vec<Held>,
}

/// How the next acquire fails.
#[derive(Debug, Clone, Copy)]
enum QueuedFailure {
    Contended,
    Unavailable,
}

#[derive(Debug)]
struct Held {
    lease: Arc<Lease>,
    on_lost: Option<OnLostCallback>,
}

impl FlakyLocker {
    /// Creates a locker whose locks are all free, without a queued failure.
    pub fn new() -> FlakyLocker {
        FlakyLocker {
            lock_table: Arc::new(LockTable::new()),
            state: Arc::default(),
        }
    }

    /// Makes the next `times` acquires fail as *contended*, after the failures queued before.
    ///
    /// They return [`Contended`](Error::Contended) at once, whatever their wait; `try_` calls
    /// return `None`.
    pub fn contend(&self, times: usize) {
        self.queue_outcome(QueuedFailure::Contended, times);
    }

    /// Makes the next `times` acquires fail as *unavailable*, after the failures queued before.
    ///
    /// They return [`InsufficientQuorum`](Error::InsufficientQuorum) at once.
    pub fn fail(&self, times: usize) {
        self.queue_outcome(QueuedFailure::Unavailable, times);
    }

    fn queue_outcome(&self, failure: QueuedFailure, times: usize) {
        let mut state = self.state.lock();
        state.failures.extend(std::iter::repeat_n(failure, times));
    }

    /// Makes the lock that has `key` among its names lost, as if its lease had expired. Returns
    /// `false` if there is none.
    ///
    /// Its guard and watches see the loss, the callback of its options has been called when this
    /// returns, and the next caller can acquire the lock.
    pub fn lose(&self, key: &str) -> bool {
        let mut state = self.state.lock();
        let has = |held: &Held| held.lease.keys().as_slice().iter().any(|k| k.name() == key);
        let at = state
            .held
            .iter()
            .position(|held| has(held) && held.lease.mark_lost(LossReason::Expired));
        let lost = at.map(|at| state.held.swap_remove(at));
        drop(state); // unlock before the callback
        let Some(Held { lease, on_lost }) = lost else {
            return false;
        };
        self.lock_table.recheck(lease.keys());
        if let Some(OnLostCallback(callback)) = on_lost {
            callback(&LostLock::of(lease));
        }
        true
    }

    fn acquire_with(
        &self,
        names: &[&str],
        options: &LockOptions,
        acquire: impl FnOnce(&AcquireCall<'_>) -> Result<GuardInner, Error>,
    ) -> Result<LockGuard, Error> {
        let failure = self.state.lock().failures.pop_front();
        if let Some(failure) = failure {
            let key = names.iter().min().copied().unwrap_or_default();
            return Err(failure.into_error(key));
        }
        let guard = acquire(&AcquireCall::new(names, LeaseKind::Exclusive, options))?;
        self.remember(&guard, options);
        Ok(LockGuard::from(guard))
    }

    /// Keeps the lease of a lock for `lose`, and forgets the locks that have ended.
    fn remember(&self, guard: &GuardInner, options: &LockOptions) {
        let mut state = self.state.lock();
        let held = mem::take(&mut state.held).into_iter();
        let (held, ended): (Vec<_>, Vec<_>) = held.partition(|held| held.lease.is_held());
        state.held = held;
        state.held.push(Held {
            lease: Arc::clone(guard.lease()),
            on_lost: options.lease_options().on_lost.clone(),
        });
        drop(state); // unlock before the callbacks are dropped
        drop(ended);
    }
}

impl QueuedFailure {
    fn into_error(self, key: &str) -> Error {
        match self {
            QueuedFailure::Contended => Error::Contended {
                lock: Box::new(ContendedLock {
                    key: key.to_owned(),
                    owner_label: Some("flaky".to_owned()),
                    permits: None,
                }),
                attempts: 1,
                waited: Duration::ZERO,
                remaining: None,
            },
            QueuedFailure::Unavailable => Error::InsufficientQuorum {
                operation: Operation::Acquire,
                needed: 1,
                reachable: 0,
                total: 1,
                causes: [FailedNode {
                    node: "flaky".to_owned(),
                    failure: NodeFailure::Unreachable("simulated by FlakyLocker".to_owned()),
                    limit: None,
                }]
                .into(),
            },
        }
    }
}

impl Locker for FlakyLocker {
    fn acquire(&self, key: &str, options: &LockOptions) -> Result<LockGuard, Error> {
        self.acquire_all(&[key], options)
    }

    fn try_acquire(&self, key: &str, options: &LockOptions) -> Result<Option<LockGuard>, Error> {
        self.try_acquire_all(&[key], options)
    }

    fn acquire_all(&self, keys: &[&str], options: &LockOptions) -> Result<LockGuard, Error> {
        self.acquire_with(keys, options, |call| self.lock_table.acquire_guard(call))
    }

    fn try_acquire_all(
        &self,
        keys: &[&str],
        options: &LockOptions,
    ) -> Result<Option<LockGuard>, Error> {
        acquire::none_if_contended(self.acquire_with(keys, options, |call| {
            self.lock_table.acquire_guard(&AcquireCall {
                default_wait: DefaultWait::NoWait,
                ..*call
            })
        }))
    }

    fn acquire_any(&self, keys: &[&str], options: &LockOptions) -> Result<LockGuard, Error> {
        self.acquire_with(keys, options, |call| {
            self.lock_table.acquire_any_guard(call)
        })
    }
}

/// A panic cannot leave it inconsistent: no lock inside it is held across a callback or code of the
/// caller.
impl UnwindSafe for FlakyLocker {}
impl RefUnwindSafe for FlakyLocker {}

impl Default for FlakyLocker {
    fn default() -> FlakyLocker {
        FlakyLocker::new()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::api::watch::WatchOutcome;

    const TTL: Duration = Duration::from_secs(30);

    #[test]
    fn acquire_with_queued_failures_fails_in_their_order() {
        let locker = FlakyLocker::new();
        locker.clone().contend(2);
        locker.fail(1);
        assert!(locker.lock("a", TTL).unwrap_err().is_contended());
        assert!(locker.try_lock("a", TTL).unwrap().is_none());
        let error = locker.try_lock("a", TTL).unwrap_err();
        assert!(error.is_unavailable() && error.to_string().contains("simulated by FlakyLocker"));
        locker.lock("a", TTL).unwrap().release().unwrap();
        locker.fail(0);
        locker.lock("a", TTL).unwrap().release().unwrap();
    }

    #[test]
    fn lock_lost_on_demand_is_reported_once() {
        let locker = FlakyLocker::new();
        assert!(!locker.lose("a"));
        let calls = Arc::new(AtomicUsize::new(0));
        let calls_seen = Arc::clone(&calls);
        let options = LockOptions::new(TTL).on_lost(move |lost| {
            assert_eq!((lost.key(), lost.reason()), ("a", LossReason::Expired));
            calls_seen.fetch_add(1, Ordering::Relaxed);
        });
        let guard = locker.acquire_all(&["b", "a"], &options).unwrap();
        let watch = guard.watch();
        assert!(locker.lose("b"));
        assert!(!locker.lose("a"), "already lost");
        assert_eq!(calls.load(Ordering::Relaxed), 1);
        assert_eq!(watch.wait_ended(Duration::MAX), WatchOutcome::Lost);
        assert!(!guard.is_held() && guard.check().unwrap_err().is_lost());
        assert!(guard.extend(TTL).unwrap_err().is_lost());
        let error = guard.extend(Duration::ZERO).unwrap_err();
        assert!(matches!(error, Error::InvalidTtl { .. }), "{error}");
        let next = locker.try_lock("a", TTL).unwrap().expect("free");
        assert!(matches!(guard.release(), Err(Error::LockLost { .. })));
        assert!(
            next.is_held(),
            "releasing a lost lock does not free the next holder's"
        );
        next.release().unwrap();
        assert!(!locker.lose("a"), "released");
    }

    #[test]
    fn waiting_thread_acquires_a_lock_that_was_lost() {
        let locker = FlakyLocker::new();
        let hung = locker.lock("a", TTL).unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| locker.lock("a", TTL).unwrap().release());
            assert!(locker.lose("a"));
            waiter.join().unwrap().unwrap();
        });
        drop(hung);
    }
}
