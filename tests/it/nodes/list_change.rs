//! The list of nodes changes while clients work: clients with the old and with the new list exclude
//! each other if the lists differ by one node.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use redguard::{LockOptions, Locker, RedisLocker};

use crate::support::fixtures::{LIMIT, TTL, at, connect_by, everywhere, nowhere};
use crate::support::servers::Server;
use crate::support::witness::Witness;
use crate::support::{eventually, servers, unique_key};

/// Holds of each generation of clients before the next step.
const HOLDS: u64 = 60;

/// Clients with one list of nodes.
struct Generation {
    name: &'static str,
    locker: RedisLocker,
    stops: AtomicBool,
}

impl Generation {
    fn of(name: &'static str, nodes: &[Server], list: &[usize]) -> Generation {
        let addresses = list.iter().map(|n| nodes[*n].addr());
        Generation {
            name,
            locker: connect_by(at(addresses), &[]),
            stops: AtomicBool::new(false),
        }
    }

    /// Lets one thread acquire and release until the generation stops. Tokens of a key must
    /// increase over all generations.
    fn work(&self, key: &str, witness: &Witness, newest: &Mutex<u64>) {
        let options = LockOptions::new(TTL).wait_for(LIMIT).fencing(true);
        while !self.stops.load(Ordering::Relaxed) {
            let guard = self.locker.acquire(key, &options).unwrap();
            let inside = [witness.enter(key), witness.enter(self.name)];
            let token = guard.fencing_token().unwrap();
            let former = std::mem::replace(&mut *newest.lock().unwrap(), token);
            assert!(former < token, "{}: {former} before {token}", self.name);
            drop(inside);
            guard.release().unwrap();
        }
    }

    fn stop(&self) {
        self.stops.store(true, Ordering::Relaxed);
    }
}

/// Ends all generations also when a test fails, so that their threads end.
struct StopAll<'a>(&'a [Generation]);

impl Drop for StopAll<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(Generation::stop);
    }
}

#[test]
fn clients_whose_lists_differ_by_one_node_exclude_each_other_under_load() {
    let nodes = servers(5);
    let key = unique_key("rolling");
    // One node is added, then another, then the oldest is removed, and one more.
    let generations = [
        Generation::of("first", &nodes, &[0, 1, 2]),
        Generation::of("second", &nodes, &[0, 1, 2, 3]),
        Generation::of("third", &nodes, &[0, 1, 2, 3, 4]),
        Generation::of("fourth", &nodes, &[1, 2, 3, 4]),
        Generation::of("fifth", &nodes, &[2, 3, 4]),
    ];
    let (witness, newest) = (Witness::new(), Mutex::new(0));
    thread::scope(|scope| {
        let _stop = StopAll(&generations);
        let start = |generation| {
            for _ in 0..3 {
                let (key, witness, newest) = (&key, &witness, &newest);
                let generation: &Generation = generation;
                scope.spawn(move || generation.work(key, witness, newest));
            }
        };
        let both_work = |pair: &[Generation]| {
            let holds = || pair.iter().map(|one| witness.entries(one.name));
            let before: Vec<u64> = holds().collect();
            eventually(2 * LIMIT, "both generations hold the lock", || {
                holds().zip(&before).all(|(now, then)| now >= then + HOLDS)
            });
        };
        start(&generations[0]);
        for pair in generations.windows(2) {
            start(&pair[1]);
            both_work(pair);
            // All have the new list. Its predecessor's locks are released, so no TTL need pass
            // before the next change.
            pair[0].stop();
            pair[0]
                .locker
                .acquire(&key, &LockOptions::new(TTL))
                .unwrap()
                .release()
                .unwrap();
        }
    });
    assert_eq!(witness.overlaps(), 0);
}

#[test]
fn holder_of_the_old_list_refuses_the_list_with_one_more_node_only() {
    let nodes = servers(4);
    let key = unique_key("replaced");
    let old = Generation::of("old", &nodes, &[0, 1, 2]);
    nodes[2].kill();
    let guard = old.locker.lock(&key, TTL).unwrap();
    everywhere(&nodes[..2], &key);
    nodes[2].restart().unwrap();

    let larger = Generation::of("larger", &nodes, &[0, 1, 2, 3]);
    assert!(larger.locker.try_lock(&key, TTL).unwrap().is_none());
    nowhere(&nodes[2..], &key);
    // Why a node is not replaced in one step: the quorum of nodes 2 and 3 knows nothing of that of
    // nodes 0 and 1.
    let replaced = Generation::of("replaced", &nodes, &[1, 2, 3]);
    let second = replaced.locker.try_lock(&key, TTL).unwrap();
    assert!(second.is_some() && guard.is_held(), "two holders");
    guard.release().unwrap();
}
