//! Locks of several keys on real nodes: sets that overlap exclude each other, never dead-lock, and are taken whole.

use std::collections::HashMap;
use std::sync::Mutex;
use std::thread;

use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, TestRunner};
use redguard::{Error, LocalLocker, LockGuard, LockOptions, Locker};

use crate::support::fixtures::{
    LIMIT, PREFIX, STRANGER, TTL, ask, connect, everywhere, nowhere, pttl, seize, shared, take,
    token, wire,
};
use crate::support::servers::Server;
use crate::support::witness::Witness;
use crate::support::{eventually, servers, unique_key};

fn patient() -> LockOptions {
    LockOptions::new(TTL).wait_for(2 * LIMIT)
}

fn take_all(locker: &dyn Locker, keys: &[&str]) -> LockGuard {
    locker.acquire_all(keys, &patient()).unwrap()
}

/// What each thread locks, one after the other.
fn plans() -> impl Strategy<Value = Vec<Vec<Vec<usize>>>> {
    let set = proptest::sample::subsequence((0..5).collect::<Vec<usize>>(), 1..=4).prop_shuffle();
    proptest::collection::vec(proptest::collection::vec(set, 8..12), 6)
}

/// Threads lock what they plan, through one locker or the other. Each key has one holder at a time, and numbers that increase.
fn play(lockers: [&dyn Locker; 2], plans: &[Vec<Vec<usize>>]) {
    let witness = Witness::new();
    let numbers: Mutex<HashMap<usize, u64>> = Mutex::default();
    let keys: Vec<String> = (0..5)
        .map(|n| unique_key(&format!("several {n}")))
        .collect();
    thread::scope(|scope| {
        for (thread, plan) in plans.iter().enumerate() {
            let (keys, witness, numbers) = (&keys, &witness, &numbers);
            let locker = lockers[thread % 2];
            scope.spawn(move || {
                for set in plan {
                    let names: Vec<&str> = set.iter().map(|n| keys[*n].as_str()).collect();
                    let guard = locker
                        .acquire_all(&names, &patient().fencing(true))
                        .unwrap();
                    let inside: Vec<_> = names.iter().map(|name| witness.enter(name)).collect();
                    let number = guard.fencing_token().unwrap();
                    for key in set {
                        let former = numbers.lock().unwrap().insert(*key, number);
                        assert!(former < Some(number), "{former:?} {number}");
                    }
                    drop(inside);
                    guard.release().unwrap();
                }
            });
        }
    });
    assert_eq!(witness.overlaps(), 0);
    let planned = |n: usize| {
        plans
            .iter()
            .flatten()
            .filter(|set| set.contains(&n))
            .count()
    };
    for (n, key) in keys.iter().enumerate() {
        assert_eq!(witness.entries(key), planned(n) as u64);
    }
}

fn cases(count: u32) -> TestRunner {
    TestRunner::new(Cases {
        failure_persistence: None,
        max_shrink_iters: 20,
        ..Cases::with_cases(count)
    })
}

#[test]
fn random_sets_that_overlap_on_nodes() {
    let nodes = shared();
    let lockers = [connect(nodes), connect(nodes)];
    let outcome = cases(4).run(&plans(), |plans| {
        play([&lockers[0], &lockers[1]], &plans);
        Ok(())
    });
    outcome.unwrap();
}

#[test]
fn random_sets_that_overlap_in_one_process() {
    let outcome = cases(64).run(&plans(), |plans| {
        let locker = LocalLocker::new();
        play([&locker, &locker.clone()], &plans);
        Ok(())
    });
    outcome.unwrap();
}

#[test]
fn each_key_is_a_plain_lock_with_one_token_for_all() {
    let (nodes, keys) = (shared(), ["b", "a", "c"].map(unique_key));
    let names = keys.each_ref().map(String::as_str);
    let [ours, other] = [connect(nodes), connect(nodes)];
    let guard = take_all(&ours, &names);
    let tokens = names.map(|name| everywhere(nodes, name));
    assert!(tokens.iter().all(|token| *token == tokens[0]));
    guard.extend(4 * TTL).unwrap();
    for name in names {
        let ttl = TTL.as_millis() as i64;
        eventually(LIMIT, "extended", || {
            nodes.iter().all(|node| pttl(node, name) > 3 * ttl)
        });
        assert!(other.try_lock(name, TTL).unwrap().is_none());
    }
    guard.release().unwrap();
    names.iter().for_each(|name| nowhere(nodes, name));
    // Who speaks to Redis without us is excluded, and excludes.
    nodes[..2]
        .iter()
        .for_each(|node| seize(node, names[2], TTL));
    assert!(
        ours.try_acquire_all(&names, &LockOptions::new(TTL))
            .unwrap()
            .is_none()
    );
    names[..2].iter().for_each(|name| nowhere(nodes, name));
    assert_eq!(token(&nodes[0], names[2]).as_deref(), Some(STRANGER));
}

#[test]
fn a_key_that_a_node_lost_comes_back_and_one_that_others_took_is_the_end_of_all() {
    let nodes = &servers(3);
    let (ours, keys) = (connect(nodes), ["x", "y"].map(unique_key));
    let names = keys.each_ref().map(String::as_str);
    let guard = take_all(&ours, &names);
    let token = everywhere(nodes, names[0]);
    assert_eq!(everywhere(nodes, names[1]), token);
    let delete = |node: &Server, name| assert_eq!(ask::<u32>(node, &["DEL", &wire(name)]), 1);
    delete(&nodes[0], names[0]);
    ask::<()>(&nodes[1], &["SCRIPT", "FLUSH"]);
    guard.extend(TTL).unwrap();
    assert_eq!(everywhere(nodes, names[0]), token);
    for node in &nodes[1..] {
        delete(node, names[1]);
        // Of any type.
        ask::<u32>(node, &["RPUSH", &wire(names[1]), "1"]);
    }
    assert!(matches!(guard.extend(TTL), Err(Error::LockLost { .. })));
    assert!(matches!(guard.release(), Err(Error::LockLost { .. })));
    nowhere(nodes, names[0]);
    let items: Vec<u32> = ask(&nodes[1], &["LRANGE", &wire(names[1]), "0", "-1"]);
    assert_eq!(items, [1]);
    assert!(
        ours.try_acquire_all(&names, &LockOptions::new(TTL))
            .unwrap()
            .is_none()
    );
    nowhere(nodes, names[0]);
}

#[test]
fn the_most_keys_at_once_with_a_node_down() {
    let nodes = servers(3);
    let ours = connect(&nodes);
    nodes[2].kill();
    let keys: Vec<String> = (0..256)
        .map(|n| format!("{n} {}", "é".repeat(50)))
        .collect();
    let names: Vec<&str> = keys.iter().map(String::as_str).collect();
    let guard = ours.acquire_all(&names, &patient().fencing(true)).unwrap();
    let count = |node: &Server| -> usize {
        let keys: Vec<String> = ask(node, &["KEYS", &format!("{PREFIX}*")]);
        keys.len()
    };
    assert_eq!([count(&nodes[0]), count(&nodes[1])], [256, 256]);
    guard.extend(TTL).unwrap();
    guard.release().unwrap();
    assert_eq!([count(&nodes[0]), count(&nodes[1])], [0, 0]);
    assert!(take(&ours, names[0]).fencing_token().is_none());
}
