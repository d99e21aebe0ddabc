//! A locker that misbehaves when it is told to, for the tests of programs that take locks.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::api::acquire;
use crate::api::guard::LockGuard;
use crate::api::locker::{Locker, locker};
use crate::api::options::{DefaultWait, LockOptions};
use crate::error::{Error, FailedNode, LossReason, NodeFailure, Operation};
use crate::local::lock_table::LockTable;
use crate::protocol::kind::LeaseKind;
use crate::protocol::lease::Lease;
use crate::protocol::lost_lock::{LostLock, OnLostCallback};

/// Exclusive locks in this process that fail on demand, behind the trait [`Locker`]: for tests of what a program does when a
/// lock is contended, cannot be had, or is lost under its hands. With the feature `testing`.
///
/// It is a [`LocalLocker`](crate::LocalLocker) until it is told otherwise. A cheap clone; all clones share their locks and
/// what they were told.
///
/// ```
/// use redguard::{Error, FlakyLocker, Locker};
/// use std::time::Duration;
///
/// /// What is to be tested.
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
    gate: Arc<LockTable>,
    state: Arc<Mutex<FlakyState>>,
}

#[derive(Debug, Default)]
struct FlakyState {
    orders: VecDeque<Order>,
    held: Vec<Held>,
}

/// What the next acquire is to be.
#[derive(Debug, Clone, Copy)]
enum Order {
    Contended,
    Unavailable,
}

#[derive(Debug)]
struct Held {
    lease: Arc<Lease>,
    on_lost: Option<OnLostCallback>,
}

impl FlakyLocker {
    /// No locks are held, and nothing is to fail yet.
    pub fn new() -> FlakyLocker {
        FlakyLocker {
            gate: Arc::new(LockTable::new()),
            state: Arc::default(),
        }
    }

    /// Lets the next `times` acquires find the lock held by another, behind those that were told of before:
    /// [`Contended`](Error::Contended) at once, whatever they would wait, and `None` where they only try.
    pub fn contend(&self, times: usize) {
        self.queue_outcome(Order::Contended, times);
    }

    /// Lets the next `times` acquires find no node that answers, behind those that were told of before:
    /// [`InsufficientQuorum`](Error::InsufficientQuorum) at once.
    pub fn fail(&self, times: usize) {
        self.queue_outcome(Order::Unavailable, times);
    }

    fn queue_outcome(&self, order: Order, times: usize) {
        let mut state = self.state.lock();
        state.orders.extend(std::iter::repeat_n(order, times));
    }

    /// Makes the lock lost that has `key` among its names, as if its lease had ended; `false` if there is none.
    ///
    /// Its guard sees that, whoever watches it is woken, the callback of its options has been called when this returns, and the
    /// lock is free for the next one.
    pub fn lose(&self, key: &str) -> bool {
        let mut state = self.state.lock();
        let has = |held: &Held| held.lease.keys().as_slice().iter().any(|k| k.name() == key);
        let at = state
            .held
            .iter()
            .position(|held| has(held) && held.lease.mark_lost(LossReason::Expired));
        let lost = at.map(|at| state.held.swap_remove(at));
        drop(state); // let go before telling
        let Some(Held { lease, on_lost }) = lost else {
            return false;
        };
        self.gate.recheck(lease.keys());
        if let Some(OnLostCallback(tell)) = on_lost {
            tell(&LostLock::of(lease));
        }
        true
    }

    fn take(
        &self,
        keys: &[&str],
        options: &LockOptions,
        how: DefaultWait,
    ) -> Result<LockGuard, Error> {
        let order = self.state.lock().orders.pop_front();
        match order {
            Some(Order::Contended) => Err(Error::Contended {
                attempts: 1,
                waited: Duration::ZERO,
                remaining: None,
            }),
            Some(Order::Unavailable) => Err(Error::InsufficientQuorum {
                operation: Operation::Acquire,
                needed: 1,
                reachable: 0,
                total: 1,
                causes: [FailedNode {
                    node: "flaky".to_owned(),
                    failure: NodeFailure::Unreachable("as it was told".to_owned()),
                    limit: None,
                }]
                .into(),
            }),
            None => {
                let hold =
                    acquire::acquire_local(&self.gate, keys, LeaseKind::Exclusive, options, how)?;
                let mut state = self.state.lock();
                // Those that have ended since can be forgotten.
                state.held.retain(|held| held.lease.is_held());
                state.held.push(Held {
                    lease: Arc::clone(hold.lease()),
                    on_lost: options.lease_options().on_lost.clone(),
                });
                Ok(LockGuard::from(hold))
            }
        }
    }
}

impl Default for FlakyLocker {
    fn default() -> FlakyLocker {
        FlakyLocker::new()
    }
}

locker!(FlakyLocker);

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::api::watch::WatchOutcome;

    const TTL: Duration = Duration::from_secs(30);

    #[test]
    fn it_fails_as_often_as_it_is_told_in_that_order() {
        let locker = FlakyLocker::new();
        locker.clone().contend(2);
        locker.fail(1);
        assert!(locker.lock("a", TTL).unwrap_err().is_contended());
        assert!(locker.try_lock("a", TTL).unwrap().is_none());
        let error = locker.try_lock("a", TTL).unwrap_err();
        assert!(error.is_unavailable() && error.to_string().contains("as it was told"));
        locker.lock("a", TTL).unwrap().release().unwrap();
        locker.fail(0);
        locker.lock("a", TTL).unwrap().release().unwrap();
    }

    #[test]
    fn a_lock_is_lost_on_demand_and_told_once() {
        let locker = FlakyLocker::new();
        assert!(!locker.lose("a"));
        let told = Arc::new(AtomicUsize::new(0));
        let tell = Arc::clone(&told);
        let options = LockOptions::new(TTL).on_lost(move |lost| {
            assert_eq!((lost.key(), lost.reason()), ("a", LossReason::Expired));
            tell.fetch_add(1, Ordering::Relaxed);
        });
        let guard = locker.acquire_all(&["b", "a"], &options).unwrap();
        let watch = guard.watch();
        assert!(locker.lose("b"));
        assert!(!locker.lose("a"), "it is lost already");
        assert_eq!(told.load(Ordering::Relaxed), 1);
        assert_eq!(watch.wait_ended(Duration::MAX), WatchOutcome::Lost);
        assert!(!guard.is_held() && guard.check().unwrap_err().is_lost());
        let next = locker.try_lock("a", TTL).unwrap().expect("it is free");
        assert!(matches!(guard.release(), Err(Error::LockLost { .. })));
        assert!(next.is_held(), "the end of a lost lock frees nobody else's");
        next.release().unwrap();
        assert!(!locker.lose("a"), "it was released");
    }

    #[test]
    fn who_waits_gets_a_lock_that_was_lost() {
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
