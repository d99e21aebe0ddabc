//! Locks of several keys on real nodes: overlapping sets exclude each other, never deadlock, and
//! are acquired whole.

use std::collections::HashMap;
use std::sync::Mutex;
use std::thread;

use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, TestRunner};
use redguard::{Error, LocalLocker, LockGuard, LockOptions, Locker};

use crate::support::fixtures::{
    LIMIT, PREFIX, STRANGER, TTL, acquire_lock, ask, connect, everywhere, nowhere, pttl, shared,
    store_foreign_token, token, wire,
};
use crate::support::servers::Server;
use crate::support::witness::Witness;
use crate::support::{eventually, servers, unique_key};

fn patient() -> LockOptions {
    LockOptions::new(TTL).wait_for(2 * LIMIT)
}

fn acquire_keys(locker: &dyn Locker, keys: &[&str]) -> LockGuard {
    locker.acquire_all(keys, &patient()).unwrap()
}

/// The sets that each thread locks in order.
fn plans() -> impl Strategy<Value = Vec<Vec<Vec<usize>>>> {
    let set = proptest::sample::subsequence((0..5).collect::<Vec<usize>>(), 1..=4).prop_shuffle();
    proptest::collection::vec(proptest::collection::vec(set, 8..12), 6)
}

/// Lets threads lock their planned sets through one of two lockers. Asserts one holder per key, and
/// increasing fencing tokens.
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
fn overlapping_sets_on_nodes_exclude_each_other() {
    let nodes = shared();
    let lockers = [connect(nodes), connect(nodes)];
    let outcome = cases(4).run(&plans(), |plans| {
        play([&lockers[0], &lockers[1]], &plans);
        Ok(())
    });
    outcome.unwrap();
}

#[test]
fn overlapping_sets_in_one_process_exclude_each_other() {
    let outcome = cases(64).run(&plans(), |plans| {
        let locker = LocalLocker::new();
        play([&locker, &locker.clone()], &plans);
        Ok(())
    });
    outcome.unwrap();
}

#[test]
fn keys_of_one_lock_store_the_same_token() {
    let (nodes, keys) = (shared(), ["b", "a", "c"].map(unique_key));
    let names = keys.each_ref().map(String::as_str);
    let [ours, other] = [connect(nodes), connect(nodes)];
    let guard = acquire_keys(&ours, &names);
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
    // Other Redis clients are excluded, and exclude.
    nodes[..2]
        .iter()
        .for_each(|node| store_foreign_token(node, names[2], TTL));
    assert!(
        ours.try_acquire_all(&names, &LockOptions::new(TTL))
            .unwrap()
            .is_none()
    );
    names[..2].iter().for_each(|name| nowhere(nodes, name));
    assert_eq!(token(&nodes[0], names[2]).as_deref(), Some(STRANGER));
}

#[test]
fn lost_key_is_restored_and_foreign_key_loses_the_whole_lock() {
    let nodes = &servers(3);
    let (ours, keys) = (connect(nodes), ["x", "y"].map(unique_key));
    let names = keys.each_ref().map(String::as_str);
    let guard = acquire_keys(&ours, &names);
    let token = everywhere(nodes, names[0]);
    assert_eq!(everywhere(nodes, names[1]), token);
    let delete = |node: &Server, name| assert_eq!(ask::<u32>(node, &["DEL", &wire(name)]), 1);
    delete(&nodes[0], names[0]);
    ask::<()>(&nodes[1], &["SCRIPT", "FLUSH"]);
    guard.extend(TTL).unwrap();
    assert_eq!(everywhere(nodes, names[0]), token);
    for node in &nodes[1..] {
        delete(node, names[1]);
        // Foreign values of any type.
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
fn maximum_number_of_keys_is_acquired_with_a_node_down() {
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
    assert!(acquire_lock(&ours, names[0]).fencing_token().is_none());
}
