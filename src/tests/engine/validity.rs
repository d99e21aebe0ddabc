//! Validity and extension over fake nodes: how long a lease counts, and which keys an extension
//! restores (S2).

use std::thread;
use std::time::Duration;

use crate::api::locker::Locker;
use crate::error::error::Error;
use crate::protocol::request::Op;
use crate::protocol::retry::RetryPolicy;
use crate::tests::engine::setup::{
    TTL, all_free, delay_grants, exclusive_key, healthy, holders, impatient,
};
use crate::tests::fake_node::node::{FakeNode, Fault, connected_locker, eventually};
use crate::time::clock;

#[test]
fn grant_after_the_validity_returns_no_guard() {
    let fakes = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    let late = fakes[0].delay(Op::Acquire);
    let ttl = Duration::from_millis(100);
    thread::scope(|scope| {
        let tried = scope.spawn(|| locker.try_lock("x", ttl));
        late.arrived();
        let started = clock::now();
        eventually("half the TTL has passed", || {
            clock::now().duration_since(started) > ttl
        });
        late.go();
        let error = tried.join().expect("no panic").expect_err("too late");
        assert!(
            matches!(error, Error::ValidityExhausted { attempts: 1, .. }),
            "{error}"
        );
    });
    all_free(&fakes, "x");
    eventually("it was undone", || fakes[0].count(Op::Release) == 1);
}

#[test]
fn caller_paused_after_the_verdict_gets_no_guard() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let ttl = Duration::from_millis(100);
    delay_grants(ttl);
    let error = locker.try_lock("late", ttl).expect_err("too late");
    assert!(matches!(error, Error::ValidityExhausted { .. }), "{error}");
    all_free(&fakes, "late");
}

#[test]
fn acquire_ends_after_three_slow_attempts() {
    let fakes = FakeNode::fakes(1);
    let locker = connected_locker(&fakes, |config| {
        config.retry(RetryPolicy {
            initial_delay: Duration::from_millis(1),
            ..RetryPolicy::default()
        })
    })
    .expect("it is up");
    let late = fakes[0].delay(Op::Acquire);
    thread::scope(|scope| {
        let tried = scope.spawn(|| locker.lock("x", Duration::from_millis(60)));
        let error = tried.join().expect("no panic").expect_err("too slow");
        assert!(
            matches!(error, Error::ValidityExhausted { attempts: 3, .. }),
            "{error}"
        );
    });
    // Acquires that were not sent yet are dropped, because their round is over.
    for _ in 0..3 {
        late.go();
    }
    all_free(&fakes, "x");
    assert!(fakes[0].count(Op::Acquire) < 3);
}

#[test]
fn validity_excludes_the_time_of_the_acquire() {
    let fakes = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    let late = fakes[0].delay(Op::Acquire);
    let ttl = Duration::from_secs(2);
    let elapsed = Duration::from_millis(50);
    thread::scope(|scope| {
        let tried = scope.spawn(|| locker.lock("x", ttl));
        late.arrived();
        let started = clock::now();
        eventually("time has passed", || {
            clock::now().duration_since(started) >= elapsed
        });
        late.go();
        let guard = tried.join().expect("no panic").expect("in time");
        let drift = ttl / 100 + Duration::from_millis(2);
        assert!(
            guard.remaining() <= ttl - elapsed - drift,
            "{:?}",
            guard.remaining()
        );
        fakes[0].set_fault(Fault::None);
    });
}

#[test]
fn extension_restores_a_lost_key() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let guard = locker.lock("x", TTL).expect("free");
    eventually("all three", || holders(&fakes, "x") == 3);
    fakes[0].wipe();
    // The extension may be decided before that node replies. Then the next extension finds the
    // missing key.
    eventually("it is back", || {
        guard.extend(TTL).expect("two of three");
        fakes[0].token("x") == fakes[1].token("x")
    });
    drop(guard);
    all_free(&fakes, "x");
}

#[test]
fn lost_extension_restores_nothing() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let guard = locker.lock("x", TTL).expect("free");
    eventually("all three", || holders(&fakes, "x") == 3);
    fakes[0].wipe();
    fakes[1].wipe();
    assert!(matches!(guard.extend(TTL), Err(Error::LockLost { .. })));
    // The lock is lost, so its token is released on the third node too, and no key is restored.
    all_free(&fakes, "x");
    assert!(fakes.iter().all(|fake| fake.count(Op::Restore) == 0));
    assert!(matches!(guard.check(), Err(Error::LockLost { .. })));
}

#[test]
fn failed_extension_leaves_the_lock_held() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let guard = locker.lock("x", TTL).expect("free");
    eventually("all three", || holders(&fakes, "x") == 3);
    let before = guard.remaining();
    fakes[0].set_fault(Fault::FailsAfterApplying(Op::Extend));
    fakes[1].set_fault(Fault::FailsAfterApplying(Op::Extend));
    let error = guard.extend(2 * TTL).expect_err("one of three");
    assert!(error.is_unavailable(), "{error}");
    assert!(guard.is_held() && guard.remaining() <= before);
    assert_eq!(
        holders(&fakes, "x"),
        3,
        "a failed extension deletes nothing"
    );
    fakes.iter().for_each(|fake| fake.set_fault(Fault::None));
    guard.extend(2 * TTL).expect("it works again");
    assert!(guard.remaining() > TTL);
    guard.extend(TTL / 10).expect("shorter than what is left");
    assert!(guard.remaining() > TTL, "never shortens");
}

#[test]
fn queued_extension_is_dropped_when_the_lease_ends() {
    let fakes = FakeNode::fakes(1);
    let locker = connected_locker(&fakes, impatient).expect("it is up");
    let guard = locker.lock("x", TTL).expect("free");
    // The worker is busy with the release of another key, so the extension of "x" waits in its
    // queue.
    let other = locker.lock("other", TTL).expect("free");
    let late = fakes[0].delay(Op::Release);
    thread::scope(|scope| {
        let releasing = scope.spawn(|| other.release());
        late.arrived();
        let error = guard.extend(TTL).expect_err("no node replies");
        assert!(error.is_unavailable(), "{error}");
        assert!(releasing.join().expect("no panic").is_err());
        drop(guard);
        fakes[0].set_fault(Fault::None);
        late.go();
    });
    all_free(&fakes, "x");
    assert_eq!(fakes[0].count(Op::Extend), 0);
}

#[test]
fn unavailable_extension_restores_nothing() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let guard = locker.lock("x", TTL).expect("free");
    eventually("all three", || holders(&fakes, "x") == 3);
    fakes[0].wipe();
    fakes[1].set_fault(Fault::FailsAfterApplying(Op::Extend));
    fakes[2].set_fault(Fault::FailsAfterApplying(Op::Extend));
    let error = guard.extend(TTL).expect_err("none says it is ours");
    assert!(error.is_unavailable() && guard.is_held(), "{error}");
    // The queued extension is served before a later request of the same connection.
    let other = locker.lock("other", TTL).expect("free");
    eventually("the worker served the queue", || {
        fakes[0].token("other").is_some()
    });
    drop(other);
    assert_eq!(fakes[0].token("x"), None);
}

/// The exclusion of the two is checked in `lease.rs` in all interleavings.
#[test]
fn guard_is_extended_by_two_threads_in_turn() {
    let fakes = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    let guard = locker.lock("x", TTL).expect("free");
    let late = fakes[0].delay(Op::Extend);
    thread::scope(|scope| {
        let first = scope.spawn(|| guard.extend(TTL));
        late.arrived();
        let second = scope.spawn(|| guard.extend(TTL));
        late.go();
        late.arrived();
        late.go();
        first.join().expect("no panic").expect("extended");
        second.join().expect("no panic").expect("extended");
    });
    fakes[0].set_fault(Fault::None);
}

#[test]
fn expired_holder_does_not_block_its_process() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let hung = locker.lock("x", Duration::from_millis(150)).expect("free");
    let next = locker.lock("x", TTL).expect("the lease has ended");
    assert!(next.is_held() && !hung.is_held());
    // The release of the expired guard does not free the entry of the new holder.
    assert!(matches!(hung.release(), Err(Error::LockLost { .. })));
    assert!(locker.try_lock("x", TTL).expect("no error").is_none());
    assert!(next.is_held());
}

#[test]
fn early_loss_admits_the_next_thread() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let guard = locker.lock("x", TTL).expect("free");
    thread::scope(|scope| {
        let waiting = scope.spawn(|| locker.lock("x", TTL));
        let key = exclusive_key("x");
        eventually("it queues", || {
            locker.nodes().engine().lock_table.waiting(&key) == 1
        });
        let lost = clock::now();
        fakes.iter().for_each(|fake| fake.wipe());
        assert!(matches!(guard.extend(TTL), Err(Error::LockLost { .. })));
        let next = waiting.join().expect("no panic").expect("it is free");
        // Without a wake-up the waiter would have slept until the end of the first lease.
        assert!(clock::now().duration_since(lost) < TTL / 2);
        assert!(next.is_held());
    });
}

#[test]
fn time_in_the_wait_queue_uses_up_attempts() {
    let fakes = FakeNode::fakes(1);
    let locker = connected_locker(&fakes, |config| {
        config.retry(RetryPolicy {
            max_attempts: Some(3),
            initial_delay: Duration::from_millis(10),
            max_delay: Duration::from_millis(10),
            ..RetryPolicy::default()
        })
    })
    .expect("it is up");
    let guard = locker.lock("x", TTL).expect("free");
    let error = locker.lock("x", TTL).expect_err("the stored is busy");
    let Error::Contended {
        attempts,
        remaining,
        waited,
        ..
    } = error
    else {
        panic!("{error}")
    };
    assert!(attempts >= 2 && waited >= Duration::from_millis(20));
    assert!(remaining.is_some_and(|left| left <= TTL));
    assert_eq!(fakes[0].count(Op::Acquire), 1);
    drop(guard);
}
