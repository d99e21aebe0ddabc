//! Read-write locks among several processes: groups of readers and writers while nodes fail and
//! come back, and ends by SIGKILL.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use std::{fs, thread};

use redguard::{LockOptions, RedisRwLocker, RwLocker};

use crate::support::child_process::{BRIEF, Part, Program, scratch};
use crate::support::fixtures::{LIMIT, TTL, ask, at, connect, now, wire};
use crate::support::servers::Server;
use crate::support::witness::{Journal, Kind};
use crate::support::{eventually, servers, unique_key};

const CROWD: usize = 4;
const THREADS: usize = 4;
/// Number of sections of all threads of all processes together.
const ROUNDS: usize = 10_000;
/// Number of keys, so that not all threads wait.
const KEYS: usize = 8;
/// One of this number of sections writes.
const ONE_WRITES: u32 = 5;

fn patient() -> LockOptions {
    LockOptions::new(TTL).wait_for(4 * LIMIT)
}

fn rw(nodes: &[Server]) -> RedisRwLocker {
    RedisRwLocker::new(connect(nodes).nodes())
}

#[test]
fn part_of_a_group() {
    let Some(part) = Part::mine() else { return };
    let exclusive = part.locker();
    let locker = RedisRwLocker::new(exclusive.nodes());
    let journal = Journal::at(&part.file);
    let rounds = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while rounds.fetch_add(1, Ordering::Relaxed) < ROUNDS / CROWD {
                    let key = format!("{}-{}", part.key, rand::random_range(0..KEYS));
                    if rand::random_ratio(1, ONE_WRITES) {
                        let guard = locker.acquire_write(&key, &patient()).unwrap();
                        let entry = journal.enter(&key);
                        thread::yield_now();
                        drop(entry);
                        if rand::random() {
                            let guard = guard.downgrade().unwrap();
                            let entry = journal.enter_shared(&key);
                            thread::yield_now();
                            drop((entry, guard));
                        }
                    } else {
                        let guard = locker.acquire_read(&key, &patient()).unwrap();
                        let entry = journal.enter_shared(&key);
                        thread::yield_now();
                        drop((entry, guard));
                    }
                }
            });
        }
    });
    part.settle(&exclusive);
}

/// Runs a group of processes on some keys while `disturb` runs, which receives a function that
/// waits for a number of sections.
fn crowd(nodes: &[Server], disturb: impl FnOnce(&dyn Fn(usize))) {
    let key = unique_key("crowd");
    let (_dir, file) = scratch();
    let playing = || Program::playing(module_path!(), "part_of_a_group", nodes, &key, file.clone());
    let programs: Vec<Program> = (0..CROWD).map(|_| playing()).collect();
    let lines = || fs::read(&file).map_or(0, |text| text.iter().filter(|b| **b == b'\n').count());
    disturb(&|holds| eventually(4 * LIMIT, "so many sections", || lines() >= holds));
    for program in programs {
        assert!(program.end().success());
    }
    let journal = Journal::at(&file);
    let sections = journal
        .check()
        .unwrap_or_else(|conflicts| panic!("{conflicts}"));
    let mut holds = journal.holds();
    holds.sort_by_key(|hold| (hold.key.clone(), hold.begin));
    let readers: Vec<_> = holds
        .iter()
        .filter(|hold| hold.kind == Kind::Shared)
        .collect();
    let together = readers
        .windows(2)
        .filter(|pair| pair[0].key == pair[1].key && pair[1].begin < pair[0].end);
    let (together, written) = (together.count(), sections - readers.len());
    eprintln!(
        "{sections} sections: {written} written, {} read, {together} beside the one before",
        readers.len()
    );
    // A downgraded section counts twice.
    assert!(
        sections >= ROUNDS && written > ROUNDS / 10,
        "{sections}, {written}"
    );
    assert!(together > 0, "readers never overlapped");
    for key in (0..KEYS).map(|number| format!("{key}-{number}")) {
        eventually(LIMIT, "no caller holds or waits", || {
            nodes.iter().all(|node| left(node, &key) == 0)
        });
    }
}

/// Returns the number of a read-write lock's keys on a node, without the short-lived reader turn.
fn left(node: &Server, key: &str) -> usize {
    let named = |ending: &str| format!("{{{}}}:{ending}", wire(key));
    let [writer, readers, gate] = ["writer", "readers", "gate"].map(named);
    ask(node, &["EXISTS", &writer, &readers, &gate])
}

#[test]
fn group_of_readers_and_writers_does_not_overlap() {
    crowd(&servers(3), |_| ());
}

#[test]
fn readers_and_writers_do_not_overlap_while_a_node_hangs_and_dies() {
    let start = || Server::options().append_always().start().unwrap();
    let nodes = [(); 3].map(|()| start());
    crowd(&nodes, |reached| {
        reached(1_000);
        nodes[0].stop().unwrap();
        reached(3_000);
        nodes[0].resume().unwrap();
        reached(5_000);
        nodes[1].kill();
        reached(7_000);
        nodes[1].restart().unwrap();
    });
}

// Ends by SIGKILL.

#[test]
fn part_that_reads_until_it_is_killed() {
    let Some(part) = Part::mine() else { return };
    let locker = RedisRwLocker::new(part.locker().nodes());
    let _guard = locker.read(&part.key, BRIEF).unwrap();
    part.tell();
    thread::park_timeout(4 * LIMIT);
}

#[test]
fn killed_reader_expires_after_its_ttl_beside_living_readers() {
    let nodes = servers(3);
    let key = unique_key("killed");
    let (_dir, told) = scratch();
    let [locker, other] = [rw(&nodes), rw(&nodes)];
    let part = "part_that_reads_until_it_is_killed";
    let program = Program::playing(module_path!(), part, &nodes, &key, told.clone());
    eventually(LIMIT, "the process reads", || told.exists());
    let alive = locker.read(&key, TTL).unwrap();
    program.kill();
    let start = now();
    // Another reader continues: that keeps its own lease alive, and no other.
    let readers = format!("{{{}}}:readers", wire(&key));
    eventually(LIMIT, "the expired reader is removed", || {
        alive.extend(TTL).unwrap();
        drop(other.read(&key, TTL).unwrap());
        let here = nodes
            .iter()
            .map(|node| ask::<usize>(node, &["ZCARD", &readers]));
        here.max() == Some(1)
    });
    alive.release().unwrap();
    drop(other.acquire_write(&key, &patient()).unwrap());
    assert!(start.elapsed() < LIMIT, "{:?}", start.elapsed());
}

#[test]
fn part_that_writes_until_it_is_killed() {
    let Some(part) = Part::mine() else { return };
    let locker = RedisRwLocker::new(part.locker().nodes());
    let _guard = locker.write(&part.key, BRIEF).unwrap();
    part.tell();
    thread::park_timeout(4 * LIMIT);
}

#[test]
fn killed_writer_expires_after_its_ttl() {
    let nodes = servers(3);
    let key = unique_key("killed");
    let (_dir, told) = scratch();
    let locker = rw(&nodes);
    let part = "part_that_writes_until_it_is_killed";
    let program = Program::playing(module_path!(), part, &nodes, &key, told.clone());
    eventually(LIMIT, "the process writes", || told.exists());
    assert!(locker.try_read(&key, TTL).unwrap().is_none());
    program.kill();
    let start = now();
    locker.read(&key, TTL).unwrap().release().unwrap();
    locker.write(&key, TTL).unwrap().release().unwrap();
    assert!(start.elapsed() < LIMIT, "{:?}", start.elapsed());
}

#[test]
fn part_that_waits_until_it_is_killed() {
    let Some(part) = Part::mine() else { return };
    // With the default refresh interval of 100 ms.
    let config = at(part.nodes.clone()).retry(redguard::RetryPolicy::default());
    let locker = RedisRwLocker::connect(config).unwrap();
    _ = locker.acquire_write(&part.key, &patient()).unwrap();
}

#[test]
fn killed_waiting_writer_refuses_readers_for_at_most_one_gate_entry() {
    let nodes = servers(3);
    let key = unique_key("waits");
    let (_dir, told) = scratch();
    let locker = rw(&nodes);
    let reader = locker.read(&key, TTL).unwrap();
    let part = "part_that_waits_until_it_is_killed";
    let program = Program::playing(module_path!(), part, &nodes, &key, told);
    let gate = format!("{{{}}}:gate", wire(&key));
    let entries =
        |node| ask::<Vec<(String, u64)>>(node, &["ZRANGE", &gate, "0", "-1", "WITHSCORES"]);
    eventually(LIMIT, "the gate entry is there", || {
        nodes.iter().all(|node| entries(node).len() == 1)
    });
    // Not at every moment, because a busy machine may delay the refresh of the gate entry.
    eventually(LIMIT, "readers are refused", || {
        locker.try_read(&key, TTL).unwrap().is_none()
    });
    for node in &nodes {
        // In this order, because the gate entry is refreshed repeatedly.
        let entries = entries(node);
        let (seconds, micros): (u64, u64) = ask(node, &["TIME"]);
        let now = seconds * 1000 + micros / 1000;
        for (_, end) in entries {
            let lease = Duration::from_millis(end.saturating_sub(now));
            assert!(lease <= Duration::from_millis(300), "{lease:?}");
        }
    }
    program.kill();
    eventually(LIMIT, "readers acquire the lock", || {
        locker.try_read(&key, TTL).unwrap().is_some()
    });
    drop(reader);
    // No key is left without expiry.
    eventually(LIMIT, "no key is left", || {
        nodes.iter().all(|node| left(node, &key) == 0)
    });
}
