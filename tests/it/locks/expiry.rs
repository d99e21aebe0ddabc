//! Leases that expire: when the next caller acquires the lock, and what the former guard returns.

use std::thread;
use std::time::Duration;

use redguard::{Error, LockGuard, LockOptions, Locker, RedisLocker, RetryPolicy};

use crate::support::fixtures::{
    LIMIT, STRANGER, TTL, acquire_lock, ask, calls, config, connect, connect_by, everywhere,
    holder, now, nowhere, pttl, shared, store_foreign_token, token, wire, with_short_timeouts,
};
use crate::support::log_capture::{Level, captured_log};
use crate::support::servers::Server;
use crate::support::{eventually, servers, unique_key};

/// TTL whose end a test can wait for.
const SHORT: Duration = Duration::from_millis(300);

/// Accepts any remaining validity, because a busy machine may consume most of a short TTL.
fn content(nodes: &[Server]) -> RedisLocker {
    connect_by(config(nodes).min_validity(0.0), nodes)
}

/// Acquires a lock for a short time, on all nodes, on connections of its own.
fn short(nodes: &[Server], key: &str) -> (RedisLocker, LockGuard) {
    let locker = content(nodes);
    let guard = locker.lock(key, SHORT).unwrap();
    (locker, guard)
}

#[test]
fn next_acquire_succeeds_after_the_ttl_and_not_before_the_validity_ends() {
    let (key, nodes) = (unique_key("next"), shared());
    let others = connect(nodes);
    let (locker, first) = short(nodes, &key);
    let end = now() + first.remaining();
    let next = acquire_lock(&others, &key);
    let got = now();
    assert!(got >= end, "{:?} too early", end - got);
    assert!(!first.is_held());
    assert_eq!(first.remaining(), Duration::ZERO);
    assert!(matches!(first.check(), Err(Error::LockLost { .. })));
    let stored = holder(nodes, &key);
    assert!(matches!(first.release(), Err(Error::LockLost { .. })));
    // Waits until the workers of the former holder have sent everything.
    assert!(locker.nodes().shutdown(LIMIT));
    assert!(stored.is_some() && holder(nodes, &key) == stored);
    next.release().unwrap();
}

#[test]
fn drop_of_an_expired_guard_warns_and_deletes_nothing() {
    let (key, nodes) = (unique_key("ends"), shared());
    let log = captured_log();
    let others = connect(nodes);
    let (locker, first) = short(nodes, &key);
    let next = acquire_lock(&others, &key);
    let stored = holder(nodes, &key);
    assert_eq!(locker.nodes().drop_failures(), 0);
    drop(first);
    assert_eq!(locker.nodes().drop_failures(), 1);
    let warned = log.lines(Level::Warn, &key);
    // One line for one fact: the drop discovers the loss.
    let lost = format!("{key:?}: lock lost: its lease ended");
    assert_eq!(warned, [lost]);
    // Waits until the workers of the former holder have sent everything.
    assert!(locker.nodes().shutdown(LIMIT));
    assert!(stored.is_some() && holder(nodes, &key) == stored);
    next.release().unwrap();
}

#[test]
fn expired_guard_is_lost_and_its_extension_restores_nothing() {
    let nodes = &servers(3);
    let key = unique_key("expired");
    let (locker, guard) = short(nodes, &key);
    // The key has expired on the nodes; no call has read the guard.
    nowhere(nodes, &key);
    let takes: Vec<u64> = nodes.iter().map(|node| calls(node, "set")).collect();
    assert!(matches!(guard.extend(TTL), Err(Error::LockLost { .. })));
    assert!(matches!(guard.extend(TTL), Err(Error::LockLost { .. })));
    assert!(!guard.is_held());
    assert_eq!(guard.remaining(), Duration::ZERO);
    assert!(matches!(guard.check(), Err(Error::LockLost { .. })));
    assert!(matches!(guard.release(), Err(Error::LockLost { .. })));
    assert!(locker.nodes().shutdown(LIMIT));
    for (node, takes) in nodes.iter().zip(takes) {
        assert_eq!((pttl(node, &key), calls(node, "set")), (-2, takes));
    }
}

#[test]
fn key_deleted_on_a_quorum_is_not_restored_by_an_extension() {
    let nodes = &servers(3);
    let key = unique_key("deleted");
    let locker = connect(nodes);
    let guard = acquire_lock(&locker, &key);
    everywhere(nodes, &key);
    let sets: Vec<u64> = nodes.iter().map(|node| calls(node, "set")).collect();
    for node in nodes {
        assert_eq!(ask::<u32>(node, &["DEL", &wire(&key)]), 1);
    }
    assert!(guard.is_held(), "the guard has not read the loss");
    assert!(matches!(guard.extend(TTL), Err(Error::LockLost { .. })));
    assert!(matches!(guard.check(), Err(Error::LockLost { .. })));
    assert!(matches!(guard.release(), Err(Error::LockLost { .. })));
    assert!(locker.nodes().shutdown(LIMIT));
    for (node, sets) in nodes.iter().zip(sets) {
        assert_eq!((pttl(node, &key), calls(node, "set")), (-2, sets));
    }
}

#[test]
fn waiter_wakes_at_the_end_of_the_holders_ttl() {
    let (key, nodes) = (unique_key("wakes"), shared());
    let poll = 3 * LIMIT;
    let policy = RetryPolicy {
        initial_delay: poll,
        max_delay: poll,
        jitter: 0.0,
        ..with_short_timeouts()
    };
    let locker = connect_by(config(nodes).retry(policy), nodes);
    for node in nodes {
        store_foreign_token(node, &key, Duration::from_millis(700));
    }
    let start = now();
    let guard = locker.lock(&key, TTL).unwrap();
    assert!(start.elapsed() < LIMIT, "{:?}", start.elapsed());
    assert!(holder(nodes, &key).is_some_and(|token| token != STRANGER));
    guard.release().unwrap();
}

#[test]
fn thread_of_the_same_process_waits_until_the_lease_ends() {
    let (key, nodes) = (unique_key("thread"), shared());
    let locker = content(nodes);
    let first = locker.lock(&key, SHORT).unwrap();
    let end = now() + first.remaining();
    thread::scope(|scope| {
        let next = scope.spawn(|| acquire_lock(&locker, &key)).join().unwrap();
        assert!(now() >= end && next.is_held());
        let stored = holder(nodes, &key);
        assert!(matches!(first.release(), Err(Error::LockLost { .. })));
        next.extend(TTL).unwrap();
        assert!(stored.is_some() && holder(nodes, &key) == stored);
    });
}

#[test]
fn contended_error_contains_the_remaining_time() {
    let (key, nodes) = (unique_key("left"), shared());
    let ttl = Duration::from_secs(100);
    for node in nodes {
        store_foreign_token(node, &key, ttl);
    }
    let locker = connect(nodes);
    let at_once = LockOptions::new(TTL).wait_for(Duration::ZERO);
    let error = locker.acquire(&key, &at_once).unwrap_err();
    let left = pttl(&nodes[0], &key);
    let Error::Contended { remaining, .. } = error else {
        panic!("{error}")
    };
    let least = Duration::from_millis(left.unsigned_abs());
    assert!(
        remaining.is_some_and(|told| least <= told + Duration::from_millis(50) && told <= ttl),
        "{remaining:?} {least:?}"
    );
    assert_eq!(token(&nodes[0], &key).as_deref(), Some(STRANGER));
}

#[test]
fn extended_lease_outlives_its_first_ttl() {
    let (key, nodes) = (unique_key("outlives"), shared());
    let locker = connect(nodes);
    let first = 3 * SHORT;
    let guard = locker.lock(&key, first).unwrap();
    guard.extend(TTL).unwrap();
    // Lasts as long as the first TTL, by the clock of a node.
    let clock = unique_key("clock");
    store_foreign_token(&nodes[0], &clock, first);
    eventually(LIMIT, "the first TTL is over", || {
        pttl(&nodes[0], &clock) == -2
    });
    assert!(guard.is_held() && guard.check().is_ok());
    assert!(connect(nodes).try_lock(&key, TTL).unwrap().is_none());
    guard.release().unwrap();
    assert!(locker.try_lock(&key, TTL).unwrap().is_some());
}
