//! Cancellation over fake nodes: wherever a wait is, it ends, and what it may have been granted is undone.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::api::locker::{Locker, RedisLocker};
use crate::api::options::LockOptions;
use crate::api::rw_locker::{RedisRwLocker, RwLocker};
use crate::error::Error;
use crate::protocol::key::Key;
use crate::protocol::kind::LockKind;
use crate::protocol::request::Op;
use crate::protocol::retry::RetryPolicy;
use crate::tests::fake_node::node::{
    FakeNode, Fault, connected_locker, eventually, gate_entries_were_released,
};
use crate::time::clock;
use crate::transport::cancel::CancelToken;

const TTL: Duration = Duration::from_secs(300);

/// With delays that no test waits for: only a cancellation ends these waits.
fn sluggish(fakes: &[Arc<FakeNode>]) -> RedisLocker {
    let policy = RetryPolicy {
        initial_delay: TTL,
        max_delay: TTL,
        jitter: 0.0,
        ..RetryPolicy::default()
    };
    connected_locker(fakes, |config| config.retry(policy)).expect("a quorum is up")
}

fn cancellable(token: &CancelToken) -> LockOptions {
    LockOptions::new(TTL).cancel_on(token)
}

/// Wide: within 10 ms on a machine that has nothing else to do.
fn at_once(cancelled: Instant) {
    let took = clock::now().saturating_duration_since(cancelled);
    assert!(took < Duration::from_secs(4), "{took:?}");
}

fn slot_key(family: LockKind) -> Key {
    Key::parse("redguard:", "x", family).expect("a good name")
}

#[test]
fn a_token_that_is_cancelled_beforehand_touches_no_node() {
    let fakes = FakeNode::fakes(3);
    let locker = sluggish(&fakes);
    let token = CancelToken::new();
    token.cancel();
    let options = cancellable(&token);
    let cancelled = Some(Error::Cancelled);
    assert_eq!(locker.acquire("x", &options).err(), cancelled);
    assert_eq!(locker.try_acquire("x", &options).err(), cancelled);
    // Input is looked at first, and a busy slot after it.
    let bad = locker.acquire("", &options).err();
    assert!(matches!(bad, Some(Error::InvalidKey { .. })));
    let _held = locker.lock("y", TTL).expect("free");
    assert_eq!(locker.try_acquire("y", &options).err(), cancelled);
    assert!(fakes.iter().all(|fake| fake.count(Op::Acquire) <= 1));
}

#[test]
fn a_hundred_that_queue_are_cancelled_and_none_is_left_in_the_queue() {
    let fakes = FakeNode::fakes(3);
    let locker = sluggish(&fakes);
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
fn a_pause_between_two_attempts_is_ended() {
    let fakes = FakeNode::fakes(1);
    let locker = sluggish(&fakes);
    fakes.iter().for_each(|fake| fake.seize("x", TTL));
    let token = CancelToken::new();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| locker.acquire("x", &cancellable(&token)).err());
        // Once more when it listens.
        eventually("it is refused twice", || fakes[0].count(Op::Acquire) == 2);
        let began = clock::now();
        token.cancel();
        assert_eq!(waiting.join().expect("no panic"), Some(Error::Cancelled));
        at_once(began);
    });
    assert_eq!(fakes[0].count(Op::Acquire), 2);
}

#[test]
fn a_round_is_ended_and_what_comes_late_is_undone() {
    let fakes = FakeNode::fakes(3);
    let locker = sluggish(&fakes);
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
fn readers_that_follow_and_a_writer_at_the_gate_are_cancelled() {
    let fakes = FakeNode::fakes(3);
    let locker = RedisRwLocker::new(sluggish(&fakes).nodes());
    let seize = |until| {
        for fake in &fakes {
            fake.modify("x", LockKind::ReadWrite, |slot| {
                slot.owner = Some(("stranger".into(), until));
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
    let gate = |fake: &Arc<FakeNode>| fake.slot("x", LockKind::ReadWrite).gate;
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
    // Given back, and not just ended. A lane that is held up until a place has ended need not give it back: once is enough.
    assert!((0..20).any(|_| waits_and_is_cancelled()));
}

#[test]
fn a_lock_that_is_held_does_not_mind() {
    let fakes = FakeNode::fakes(3);
    let locker = sluggish(&fakes);
    let token = CancelToken::new();
    let held = locker.acquire("x", &cancellable(&token)).expect("free");
    token.cancel();
    held.extend(TTL).expect("ours");
    held.release().expect("ours");
}
