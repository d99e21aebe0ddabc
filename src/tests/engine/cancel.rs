//! Cancellation over fake nodes: every wait ends, and everything that a node may have granted is
//! released.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::api::locker::Locker;
use crate::api::options::LockOptions;
use crate::api::rw_locker::{RedisRwLocker, RwLocker};
use crate::error::error::Error;
use crate::protocol::key::Key;
use crate::protocol::kind::LockKind;
use crate::protocol::request::Op;
use crate::tests::engine::setup::slowly_retrying;
use crate::tests::fake_node::node::{FakeNode, Fault, eventually, gate_entries_were_released};
use crate::time::clock;
use crate::transport::cancel::CancelToken;

const TTL: Duration = Duration::from_secs(300);

fn cancellable(token: &CancelToken) -> LockOptions {
    LockOptions::new(TTL).cancel_on(token)
}

/// Checks that the cancellation took effect soon. The bound is wide: an unloaded machine needs less
/// than 10 ms.
fn at_once(cancelled: Instant) {
    let took = clock::now().saturating_duration_since(cancelled);
    assert!(took < Duration::from_secs(4), "{took:?}");
}

fn slot_key(family: LockKind) -> Key {
    Key::parse("redguard:", "x", family).expect("a good name")
}

#[test]
fn acquire_with_a_cancelled_token_sends_no_request() {
    let fakes = FakeNode::fakes(3);
    let locker = slowly_retrying(&fakes);
    let token = CancelToken::new();
    token.cancel();
    let options = cancellable(&token);
    let cancelled = Some(Error::Cancelled);
    assert_eq!(locker.acquire("x", &options).err(), cancelled);
    assert_eq!(locker.try_acquire("x", &options).err(), cancelled);
    // Input is validated before the cancellation is checked, and a busy entry after it.
    let bad = locker.acquire("", &options).err();
    assert!(matches!(bad, Some(Error::InvalidKey { .. })));
    let _held = locker.lock("y", TTL).expect("free");
    assert_eq!(locker.try_acquire("y", &options).err(), cancelled);
    assert!(fakes.iter().all(|fake| fake.count(Op::Acquire) <= 1));
}

#[test]
fn hundred_queued_waiters_are_cancelled_and_leave_the_queue() {
    let fakes = FakeNode::fakes(3);
    let locker = slowly_retrying(&fakes);
    let held = locker.lock("x", TTL).expect("free");
    let token = CancelToken::new();
    let waiting = || {
        locker
            .nodes()
            .engine()
            .lock_table
            .waiting(&slot_key(LockKind::Exclusive))
    };
    thread::scope(|scope| {
        let waiters =
            [(); 100].map(|()| scope.spawn(|| locker.acquire("x", &cancellable(&token)).err()));
        let patient = scope.spawn(|| locker.lock("x", TTL));
        eventually("all queue", || waiting() == 101);
        let began = clock::now();
        token.cancel();
        for waiter in waiters {
            assert_eq!(waiter.join().expect("no panic"), Some(Error::Cancelled));
        }
        at_once(began);
        assert_eq!(waiting(), 1, "only the one that was not cancelled");
        drop(held);
        drop(patient.join().expect("no panic").expect("its turn"));
    });
}

#[test]
fn cancellation_ends_the_delay_between_attempts() {
    let fakes = FakeNode::fakes(1);
    let locker = slowly_retrying(&fakes);
    fakes.iter().for_each(|fake| fake.seize("x", TTL));
    let token = CancelToken::new();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| locker.acquire("x", &cancellable(&token)).err());
        // The waiter asks a second time after its subscription.
        eventually("it is refused twice", || fakes[0].count(Op::Acquire) == 2);
        let began = clock::now();
        token.cancel();
        assert_eq!(waiting.join().expect("no panic"), Some(Error::Cancelled));
        at_once(began);
    });
    assert_eq!(fakes[0].count(Op::Acquire), 2);
}

#[test]
fn cancellation_ends_a_round_and_late_grants_are_undone() {
    let fakes = FakeNode::fakes(3);
    let locker = slowly_retrying(&fakes);
    let late = [fakes[1].delay(Op::Acquire), fakes[2].delay(Op::Acquire)];
    let token = CancelToken::new();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| locker.acquire("x", &cancellable(&token)).err());
        late.iter().for_each(|late| late.arrived());
        eventually("the third has granted it", || fakes[0].token("x").is_some());
        let began = clock::now();
        token.cancel();
        assert_eq!(waiting.join().expect("no panic"), Some(Error::Cancelled));
        at_once(began); // the round would have gone on for 5 s
    });
    fakes.iter().for_each(|fake| fake.set_fault(Fault::None));
    late.iter().for_each(|late| late.go());
    eventually("the grants are undone", || {
        fakes
            .iter()
            .all(|fake| fake.count(Op::Release) == 1 && fake.token("x").is_none())
    });
    let is_calm = locker.nodes().engine().circuit.is_calm();
    assert!(is_calm, "no outage");
    drop(locker.lock("x", TTL).expect("free"));
}

#[test]
fn cancellation_ends_following_readers_and_a_waiting_writer() {
    let fakes = FakeNode::fakes(3);
    let locker = RedisRwLocker::new(slowly_retrying(&fakes).nodes());
    let seize = |until| {
        for fake in &fakes {
            fake.modify("x", LockKind::ReadWrite, |stored| {
                stored.owner = Some(("stranger".into(), until));
            });
        }
    };
    seize(clock::now() + TTL);
    let token = CancelToken::new();
    let options = cancellable(&token);
    thread::scope(|scope| {
        let readers = [0; 4].map(|_| scope.spawn(|| locker.acquire_read("x", &options).err()));
        eventually("all have asked", || fakes[0].count(Op::Acquire) >= 4);
        let began = clock::now();
        token.cancel();
        for reader in readers {
            assert_eq!(reader.join().expect("no panic"), Some(Error::Cancelled));
        }
        at_once(began);
    });
    let gate = |fake: &Arc<FakeNode>| fake.stored_lock("x", LockKind::ReadWrite).gate;
    let waits_and_is_cancelled = || {
        let token = CancelToken::new();
        thread::scope(|scope| {
            let writer = scope.spawn(|| locker.acquire_write("x", &cancellable(&token)).err());
            eventually("it waits", || {
                fakes.iter().all(|fake| gate(fake).len() == 1)
            });
            let began = clock::now();
            token.cancel();
            assert_eq!(writer.join().expect("no panic"), Some(Error::Cancelled));
            at_once(began);
        });
        eventually("no place is left", || {
            fakes.iter().all(|fake| gate(fake).is_empty())
        });
        gate_entries_were_released(&fakes)
    };
    // The gate entry is released, not only expired. A worker delayed beyond its expiry need not
    // release it, so one success is enough.
    assert!((0..20).any(|_| waits_and_is_cancelled()));
}

#[test]
fn cancellation_does_not_affect_a_held_lock() {
    let fakes = FakeNode::fakes(3);
    let locker = slowly_retrying(&fakes);
    let token = CancelToken::new();
    let held = locker.acquire("x", &cancellable(&token)).expect("free");
    token.cancel();
    held.extend(TTL).expect("ours");
    held.release().expect("ours");
}
