//! Acquires of the first of several locks over fake nodes and in this process.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;

use crate::api::guard::LockGuard;
use crate::api::local_locker::LocalLocker;
use crate::api::locker::Locker;
use crate::api::options::LockOptions;
use crate::config::builder::Config;
use crate::config::on_drop::OnDrop;
use crate::error::error::Error;
use crate::local::lock_table::LockTable;
use crate::protocol::mode::Mode;
use crate::protocol::request::Op;
use crate::protocol::retry::RetryPolicy;
use crate::telemetry::observer::Observer;
use crate::tests::engine::setup::{
    TTL, exclusive_key, healthy, set_faults, slow_retries, slowly_retrying,
};
use crate::tests::fake_node::node::{FakeNode, Fault, connected_locker, eventually};
use crate::time::clock;
use crate::transport::cancel::CancelToken;

const NAMES: [&str; 3] = ["a", "b", "c"];

fn options() -> LockOptions {
    LockOptions::new(TTL)
}

fn any(locker: &dyn Locker) -> Result<LockGuard, Error> {
    locker.acquire_any(&NAMES, &options())
}

#[test]
fn first_free_lock_in_the_order_of_the_list_is_acquired() {
    let fakes = FakeNode::fakes(3);
    let (holder, rival) = (healthy(&fakes), healthy(&fakes));
    let local = LocalLocker::new();
    let pairs: [(&dyn Locker, &dyn Locker); 3] =
        [(&holder, &rival), (&rival, &rival), (&local, &local)];
    for (holder, locker) in pairs {
        let first = holder.lock("a", TTL).unwrap();
        let second = any(locker).unwrap();
        assert_eq!(second.key(), "b");
        drop(first);
        let both = [any(locker).unwrap(), any(locker).unwrap()];
        assert_eq!(both.each_ref().map(LockGuard::key), ["a", "c"]);
        let at_once = options().wait_for(Duration::ZERO);
        let error = locker.acquire_any(&NAMES, &at_once).unwrap_err();
        let lock = error.contended_lock().unwrap();
        assert_eq!(lock.key, "c", "the last one asked for");
        let brief = options().wait_for(Duration::from_millis(50));
        assert!(
            locker
                .acquire_any(&NAMES, &brief)
                .unwrap_err()
                .is_contended()
        );
        let none = locker.acquire_any(&[], &at_once);
        assert!(matches!(none, Err(Error::InvalidKey { .. })));
        let bad = locker.acquire_any(&["a", ""], &at_once);
        assert!(matches!(bad, Err(Error::InvalidKey { .. })));
    }
}

#[test]
fn wait_for_a_held_lock_outlasts_errors_of_another() {
    let fakes = FakeNode::fakes(3);
    let (holder, policy) = (healthy(&fakes), RetryPolicy::default());
    let without_outage = |config: Config| {
        config.retry(RetryPolicy {
            max_outage: Duration::ZERO,
            ..policy.clone()
        })
    };
    let waiter = connected_locker(&fakes, without_outage).unwrap();
    for fake in &fakes {
        fake.set_fault(Fault::ErrsOn("b"));
    }
    for names in [["a", "b"], ["b", "a"]] {
        let held = holder.lock("a", TTL).unwrap();
        let waiter = &waiter;
        thread::scope(|scope| {
            let waiting = scope.spawn(move || waiter.acquire_any(&names, &options()));
            eventually("it waits for the held one", || {
                waiting.is_finished() || fakes[0].subscribed("a") > 0
            });
            held.release().unwrap();
            let guard = waiting.join().unwrap().expect("one was only held");
            assert_eq!(guard.key(), "a", "{names:?}");
            guard.release().unwrap();
        });
        eventually("no caller waits", || fakes[0].subscribed("a") == 0);
    }
    let error = waiter.acquire_any(&["b"], &options()).unwrap_err();
    assert!(error.is_unavailable(), "{error}");
}

#[test]
fn release_by_another_process_wakes_for_one_attempt() {
    let fakes = FakeNode::fakes(1);
    let holder = healthy(&fakes);
    let waiter = slowly_retrying(&fakes);
    let mut guards = holder_of_all(&holder);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| any(&waiter).unwrap());
        eventually("it listens to all", || {
            NAMES.iter().all(|name| fakes[0].subscribed(name) > 0)
        });
        // After the confirmations it has asked for all once more.
        eventually("it has asked again", || fakes[0].count(Op::Acquire) >= 9);
        guards.remove(1).release().unwrap();
        assert_eq!(waiting.join().unwrap().key(), "b");
    });
}

#[test]
fn waiting_caller_is_woken_neither_by_its_own_attempts_nor_by_other_keys() {
    let fakes = FakeNode::fakes(1);
    let holder = healthy(&fakes);
    let waiter = slowly_retrying(&fakes);
    let mut guards = holder_of_all(&holder);
    let brief = options().wait_for(Duration::from_millis(200));
    let error = waiter.acquire_any(&NAMES, &brief).unwrap_err();
    // One round at first, one for each confirmation at most, and one at the end.
    let is_few = matches!(
        error,
        Error::Contended {
            attempts: 2..=5,
            ..
        }
    );
    assert!(is_few, "{error:?}");
    let before = fakes[0].count(Op::Acquire);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| any(&waiter).unwrap());
        eventually("it has asked", || fakes[0].count(Op::Acquire) >= before + 3);
        for _ in 0..200 {
            waiter.lock("other", TTL).unwrap().release().unwrap();
        }
        guards.remove(1).release().unwrap();
        assert_eq!(waiting.join().unwrap().key(), "b");
    });
    let asked = fakes[0].count(Op::Acquire) - before - 200;
    assert!(asked <= 3 * 5 + 1, "{asked} requests");
}

fn holder_of_all(locker: &dyn Locker) -> Vec<LockGuard> {
    NAMES.map(|name| locker.lock(name, TTL).unwrap()).into()
}

#[test]
fn release_in_the_same_process_wakes_without_a_message() {
    let fakes = FakeNode::fakes(1);
    fakes[0].set_fault(Fault::DeniesSubscribers);
    let redis = slowly_retrying(&fakes);
    let local = LocalLocker::new();
    let tables = [&*redis.nodes().engine().lock_table, local.lock_table()];
    let lockers: [(&dyn Locker, &LockTable); 2] = [(&redis, tables[0]), (&local, tables[1])];
    let (start, limited) = (clock::now(), options().wait_for(TTL));
    // In most of the rounds the thread is asleep when the lock is released.
    for (locker, table) in lockers.into_iter().cycle().take(40) {
        let mut guards = holder_of_all(locker);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| locker.acquire_any(&NAMES, &limited).unwrap());
            eventually("it watches", || table.watching() == 1);
            guards.remove(2).release().unwrap();
            assert_eq!(waiting.join().unwrap().key(), "c");
        });
    }
    assert!(
        clock::now() - start < TTL / 2,
        "woken by the end of a lease"
    );
}

/// The thread has asked for the lock before it is released, and has not begun to wait.
#[test]
fn release_in_the_same_process_during_the_attempts_is_not_missed() {
    let fakes = FakeNode::fakes(1);
    let holder = healthy(&fakes);
    let at_once = |config: Config| slow_retries(config).on_drop(OnDrop::Background);
    let waiter = connected_locker(&fakes, at_once).unwrap();
    let _other = holder.lock("c", TTL).unwrap();
    let own = ["a", "b"].map(|name| waiter.lock(name, TTL).unwrap());
    let start = clock::now();
    let late = fakes[0].delay(Op::Acquire);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| any(&waiter).unwrap());
        late.arrived();
        let [first, _second] = own;
        drop(first);
        fakes[0].set_fault(Fault::DeniesSubscribers);
        late.go();
        assert_eq!(waiting.join().unwrap().key(), "a");
    });
    assert!(clock::now() - start < TTL / 2, "slept on");
}

#[test]
fn lock_that_is_kept_or_lost_in_the_same_process_is_acquired_when_it_is_free() {
    let fakes = FakeNode::fakes(1);
    fakes[0].set_fault(Fault::DeniesSubscribers);
    let locker = slowly_retrying(&fakes);
    let table = &locker.nodes().engine().lock_table;
    for is_lost in [false, true] {
        let _others = ["a", "c"].map(|name| locker.lock(name, TTL).unwrap());
        let kept = options().min_hold(Duration::from_secs(1));
        let guard = locker.acquire("b", &kept).unwrap();
        let start = clock::now();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| any(&locker).unwrap());
            eventually("it watches", || table.watching() == 1);
            if is_lost {
                fakes[0].free("b");
                assert!(guard.extend(TTL).is_err());
            } else {
                guard.release().unwrap();
            }
            assert_eq!(waiting.join().unwrap().key(), "b");
        });
        assert!(clock::now() - start < TTL / 2, "slept on");
    }
}

#[test]
fn end_of_a_call_wakes_another_that_found_a_lock_busy_with_its_attempt() {
    let fakes = FakeNode::fakes(1);
    fakes[0].set_fault(Fault::DeniesSubscribers);
    let (holder, waiter) = (healthy(&fakes), slowly_retrying(&fakes));
    let table = &waiter.nodes().engine().lock_table;
    let held = holder.lock("a", TTL).unwrap();
    let late = fakes[0].delay(Op::Acquire);
    let start = clock::now();
    let stop = CancelToken::new();
    let cancellable = options().cancel_on(&stop);
    thread::scope(|scope| {
        let first = scope.spawn(|| waiter.acquire_any(&["a"], &cancellable).err());
        late.arrived();
        let second = scope.spawn(|| waiter.acquire_any(&["a"], &options()).unwrap());
        eventually("both watch", || table.watching() == 2);
        fakes[0].set_fault(Fault::DeniesSubscribers);
        fakes[0].free("a");
        stop.cancel();
        assert_eq!(first.join().unwrap(), Some(Error::Cancelled));
        late.go();
        assert_eq!(second.join().unwrap().key(), "a");
    });
    assert!(clock::now() - start < TTL / 2, "slept on");
    drop(held);
}

#[test]
fn cancellation_and_shutdown_end_the_wait() {
    let fakes = FakeNode::fakes(1);
    let redis = healthy(&fakes);
    let local = LocalLocker::new();
    let lockers: [&dyn Locker; 2] = [&redis, &local];
    for locker in lockers {
        let _guards = holder_of_all(locker);
        let stop = CancelToken::new();
        let cancellable = options().cancel_on(&stop);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| locker.acquire_any(&NAMES, &cancellable).err());
            stop.cancel();
            assert_eq!(waiting.join().unwrap(), Some(Error::Cancelled));
        });
    }
    let _guards = redis.try_lock("a", TTL);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| any(&redis).err());
        assert!(!redis.nodes().shutdown(Duration::ZERO) || waiting.is_finished());
        assert_eq!(waiting.join().unwrap(), Some(Error::Closed));
    });
}

#[test]
fn outage_ends_the_wait_although_this_process_has_one_of_the_locks() {
    let fakes = FakeNode::fakes(3);
    let outage = Duration::from_millis(50);
    let locker = connected_locker(&fakes, |config| {
        config.retry(RetryPolicy {
            initial_delay: Duration::from_millis(1),
            max_delay: Duration::from_millis(1),
            max_outage: outage,
            ..RetryPolicy::default()
        })
    })
    .unwrap();
    let held = locker.lock("c", TTL).unwrap();
    set_faults(&fakes, &Fault::Down);
    let began = clock::now();
    let error = any(&locker).unwrap_err();
    assert!(error.is_unavailable(), "{error}");
    assert!(clock::now() >= began + outage);
    assert!(held.is_held(), "the end of this lock ended the wait");
    set_faults(&fakes, &Fault::None);
}

#[test]
fn max_attempts_counts_the_rounds_over_all_locks() {
    let fakes = FakeNode::fakes(1);
    let holder = healthy(&fakes);
    let limited = connected_locker(&fakes, |config| {
        config.retry(RetryPolicy {
            max_attempts: Some(2),
            initial_delay: Duration::from_millis(1),
            max_delay: Duration::from_millis(1),
            ..RetryPolicy::default()
        })
    });
    let _guards = holder_of_all(&holder);
    let error = any(&limited.unwrap()).unwrap_err();
    assert!(
        matches!(error, Error::Contended { attempts: 2, .. }),
        "{error:?}"
    );
    assert_eq!(fakes[0].count(Op::Acquire), 3 + 6);
}

#[test]
fn attempts_of_waiters_wake_none_of_them() {
    let fakes = FakeNode::fakes(1);
    let (holder, waiter) = (healthy(&fakes), slowly_retrying(&fakes));
    let brief = options().wait_for(Duration::from_millis(100));
    let _guards = holder_of_all(&holder);
    let before = fakes[0].count(Op::Acquire);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let error = waiter.acquire_any(&NAMES, &brief).unwrap_err();
                assert!(error.is_contended());
            });
        }
    });
    // Of each: at once, after each of the three confirmations, at the end of the other, at its own.
    let attempts = fakes[0].count(Op::Acquire) - before;
    assert!(attempts <= 2 * 6 * NAMES.len(), "{attempts}");
}

#[test]
fn end_of_a_lock_is_awaited_also_after_the_release_of_another() {
    let fakes = FakeNode::fakes(1);
    let (holder, waiter) = (healthy(&fakes), slowly_retrying(&fakes));
    let _guards = holder_of_all(&holder);
    let start = clock::now();
    fakes[0].seize("a", Duration::from_secs(2));
    thread::scope(|scope| {
        let waiting = scope.spawn(|| any(&waiter).unwrap());
        eventually("it listens to all", || {
            NAMES.iter().all(|name| fakes[0].subscribed(name) > 0)
        });
        let before = fakes[0].count(Op::Acquire);
        // Another caller is quicker, so that only this lock is asked for.
        fakes[0].publish(&exclusive_key("b").channel());
        eventually("it asks", || fakes[0].count(Op::Acquire) > before);
        assert_eq!(waiting.join().unwrap().key(), "a");
    });
    assert!(clock::now() - start < TTL / 2, "slept on");
}

/// The ends of acquires, as an observer is told.
#[derive(Default)]
struct Ends(Mutex<Vec<String>>);

impl Observer for Ends {
    fn acquired(&self, key: &str, _: Mode, _: Duration) {
        self.0.lock().push(format!("acquired {key}"));
    }

    fn contended(&self, key: &str, _: Duration) {
        self.0.lock().push(format!("contended {key}"));
    }

    fn unavailable(&self, key: &str, _: Duration) {
        self.0.lock().push(format!("unavailable {key}"));
    }
}

#[test]
fn observer_gets_the_name_of_the_lock_that_is_acquired_or_in_the_error() {
    let fakes = FakeNode::fakes(3);
    let holder = healthy(&fakes);
    let ends = Arc::new(Ends::default());
    let locker = connected_locker(&fakes, |config| {
        config.observer(ends.clone()).retry(RetryPolicy {
            max_outage: Duration::ZERO,
            ..RetryPolicy::default()
        })
    })
    .unwrap();
    let at_once = options().wait_for(Duration::ZERO);
    let ask = |names: &[&str]| locker.acquire_any(names, &at_once);
    let expect_last = |end: &str| {
        assert_eq!(ends.0.lock().pop().as_deref(), Some(end));
        assert!(ends.0.lock().is_empty(), "one end of each call");
    };
    let _held = holder.lock("a", TTL).unwrap();
    let own = ask(&["a", "b"]).unwrap();
    assert_eq!(own.key(), "b");
    expect_last("acquired b");
    let error = ask(&["a", "b"]).unwrap_err();
    assert_eq!(error.contended_lock().unwrap().key, "b");
    expect_last("contended b");
    for fake in &fakes {
        fake.set_fault(Fault::ErrsOn("c"));
    }
    // No node is asked for the last one. The error is that of the one before.
    assert!(ask(&["b", "c", "b"]).unwrap_err().is_unavailable());
    expect_last("unavailable c");
}
