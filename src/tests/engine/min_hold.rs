//! Minimum times over fake nodes: the keys that an early release leaves, and the next holder.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::api::local_locker::LocalLocker;
use crate::api::locker::Locker;
use crate::api::options::LockOptions;
use crate::api::rw_locker::{LocalRwLocker, RedisRwLocker, RwLocker};
use crate::api::semaphore::{LocalSemaphore, RedisSemaphore, Semaphore};
use crate::config::builder::Config;
use crate::config::on_drop::OnDrop;
use crate::error::error::Error;
use crate::protocol::key::Key;
use crate::protocol::kind::LockKind;
use crate::protocol::request::Op;
use crate::tests::engine::setup::{TTL, all_free, healthy, holders, slowly_retrying};
use crate::tests::fake_node::node::{FakeNode, connected_locker, eventually};
use crate::time::clock;

/// Longer than a delayed thread takes to look at a lock that is kept.
const HOLD: Duration = Duration::from_secs(2);

fn held_for(time: Duration) -> LockOptions {
    LockOptions::new(TTL).min_hold(time)
}

/// Checks that `locker` gets the lock of `key` when `HOLD` has passed since `start`, and not at
/// the end of the TTL.
fn is_free_after_hold(locker: &dyn Locker, key: &str, start: Instant) {
    assert!(
        locker.try_lock(key, TTL).unwrap().is_none(),
        "freed at once"
    );
    let guard = locker.lock(key, TTL).unwrap();
    let waited = clock::now() - start;
    assert!(waited >= HOLD && waited < TTL / 2, "{waited:?}");
    guard.release().unwrap();
}

#[test]
fn release_before_min_hold_keeps_the_lock_on_the_nodes_until_then() {
    for on_drop in [None, Some(OnDrop::Wait), Some(OnDrop::Background)] {
        let fakes = FakeNode::fakes(3);
        let adjust = |config: Config| config.on_drop(on_drop.unwrap_or(OnDrop::Wait));
        let locker = connected_locker(&fakes, adjust).unwrap();
        let start = clock::now();
        let guard = locker
            .acquire("x", &held_for(HOLD).auto_renew(true))
            .unwrap();
        eventually("all nodes have granted", || holders(&fakes, "x") == 3);
        match on_drop {
            None => guard.release().unwrap(),
            Some(_) => drop(guard),
        }
        assert_eq!(locker.nodes().engine().renewal.count(), 0);
        assert_eq!(holders(&fakes, "x"), 3);
        is_free_after_hold(&healthy(&fakes), "x", start);
        all_free(&fakes, "x");
    }
}

#[test]
fn release_after_min_hold_deletes_the_lock() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let guard = locker
        .acquire("x", &held_for(Duration::from_millis(1)))
        .unwrap();
    eventually("it has passed", || {
        guard.remaining() < TTL - TTL / 100 - Duration::from_millis(5)
    });
    guard.release().unwrap();
    all_free(&fakes, "x");
    assert!(locker.try_lock("x", TTL).unwrap().is_some());
}

#[test]
fn waiter_of_another_process_is_woken_when_min_hold_has_passed() {
    let fakes = FakeNode::fakes(3);
    let (locker, rival) = (healthy(&fakes), slowly_retrying(&fakes));
    let start = clock::now();
    let guard = locker.acquire("x", &held_for(HOLD)).unwrap();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| rival.lock("x", TTL).unwrap());
        eventually("it listens", || fakes[0].subscribed("x") > 0);
        guard.release().unwrap();
        drop(waiter.join().unwrap());
    });
    let waited = clock::now() - start;
    assert!(waited >= HOLD && waited < TTL / 2, "{waited:?}");
}

#[test]
fn waiter_learns_the_end_of_a_kept_lock_although_its_node_has_the_token_of_an_attempt() {
    let fakes = FakeNode::fakes(3);
    let (locker, rival) = (healthy(&fakes), slowly_retrying(&fakes));
    let start = clock::now();
    let guard = locker.acquire("x", &held_for(HOLD)).unwrap();
    let is_held = |fake: &Arc<FakeNode>| fake.token("x").is_some();
    eventually("held everywhere", || fakes.iter().all(is_held));
    fakes[0].seize("x", TTL);
    thread::scope(|scope| {
        let limited = LockOptions::new(TTL).wait_for(5 * HOLD);
        let waiter = scope.spawn(move || rival.acquire("x", &limited));
        // Once the node has confirmed its subscription.
        eventually("it asks again", || fakes[1].count(Op::Acquire) >= 3);
        guard.release().unwrap();
        drop(waiter.join().unwrap().unwrap());
    });
    assert!(clock::now() - start >= HOLD);
}

#[test]
fn thread_of_the_same_process_waits_without_asking_the_nodes() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let start = clock::now();
    let guard = locker.acquire("x", &held_for(HOLD)).unwrap();
    let asked = || fakes[0].count(Op::Acquire) + fakes[0].count(Op::Swap);
    let before = asked();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| is_free_after_hold(&locker, "x", start));
        let table = &locker.nodes().engine().lock_table;
        let key = Key::parse("redguard:", "x", LockKind::Exclusive).unwrap();
        eventually("it queues", || {
            table.waiting(&key) == 1 || waiter.is_finished()
        });
        guard.release().unwrap();
        let is_queued = table.waiting(&key) == 1;
        assert!(is_queued || clock::now() - start >= HOLD, "admitted");
        assert!(locker.try_lock("x", TTL).unwrap().is_none());
        if clock::now() - start < HOLD {
            assert_eq!(asked(), before, "handed off, or asked for");
        }
    });
}

#[test]
fn several_keys_are_all_kept() {
    let fakes = FakeNode::fakes(3);
    let (locker, rival) = (healthy(&fakes), healthy(&fakes));
    let start = clock::now();
    let guard = locker.acquire_all(&["x", "y"], &held_for(HOLD)).unwrap();
    guard.release().unwrap();
    assert!(rival.try_lock("y", TTL).unwrap().is_none());
    is_free_after_hold(&rival, "x", start);
    all_free(&fakes, "y");
}

#[test]
fn detached_lock_is_kept_for_the_min_hold_of_its_adopter() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let guard = locker.acquire("x", &held_for(TTL)).unwrap();
    let token = guard.into_token().unwrap();
    locker.adopt(&token, TTL).unwrap().release().unwrap();
    all_free(&fakes, "x");
}

#[test]
fn min_hold_over_the_ttl_or_for_another_kind_of_lock_is_invalid() {
    let fakes = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    let nodes = locker.nodes();
    let (long, brief) = (held_for(TTL + Duration::from_nanos(1)), held_for(HOLD));
    let permits = RedisSemaphore::new(nodes, "x", 1).unwrap();
    let local_permits = LocalSemaphore::new(1).unwrap();
    for result in [
        locker.acquire("x", &long).map(drop),
        LocalLocker::new().acquire("x", &long).map(drop),
        RedisRwLocker::new(nodes)
            .acquire_read("x", &brief)
            .map(drop),
        RedisRwLocker::new(nodes)
            .acquire_write("x", &brief)
            .map(drop),
        LocalRwLocker::new().acquire_write("x", &brief).map(drop),
        permits.acquire(&brief).map(drop),
        local_permits.acquire(&brief).map(drop),
    ] {
        assert!(matches!(result, Err(Error::InvalidConfig(_))), "{result:?}");
    }
    assert!(locker.acquire("x", &held_for(TTL)).is_ok());
}

#[test]
fn local_lock_is_kept_until_min_hold_has_passed() {
    let (locker, start) = (LocalLocker::new(), clock::now());
    drop(locker.acquire("x", &held_for(HOLD)).unwrap());
    is_free_after_hold(&locker, "x", start);
}

#[test]
fn shutdown_does_not_wait_for_a_lock_that_is_kept() {
    let fakes: Vec<Arc<FakeNode>> = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    let guard = locker.acquire("x", &held_for(TTL)).unwrap();
    guard.release().unwrap();
    let start = clock::now();
    assert!(locker.nodes().shutdown(TTL));
    assert!(clock::now() - start < TTL / 2);
    assert_eq!(holders(&fakes, "x"), 1);
}
