//! Semaphores on real nodes: never more holders than permits, in one process or several, with
//! failing nodes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use redguard::{Error, LockOptions, Nodes, RedisSemaphore, Semaphore, SemaphorePermit};

use crate::support::child_process::{BRIEF, Part, Program, scratch};
use crate::support::fixtures::{LIMIT, PREFIX, TTL, ask, config, connect, is_token, shared};
use crate::support::servers::Server;
use crate::support::witness::Journal;
use crate::support::{eventually, servers, unique_key};

fn semaphore(nodes: &[Server], name: &str, permits: u32) -> RedisSemaphore {
    RedisSemaphore::new(connect(nodes).nodes(), name, permits).unwrap()
}

fn patient() -> LockOptions {
    LockOptions::new(TTL).wait_for(2 * LIMIT)
}

fn tried(semaphore: &RedisSemaphore) -> Option<SemaphorePermit> {
    semaphore.try_acquire(&LockOptions::new(TTL)).unwrap()
}

fn wire(name: &str) -> String {
    format!("{{{PREFIX}{name}}}:permits")
}

/// Returns the fields of a semaphore on a node.
fn kept(node: &Server, name: &str) -> HashMap<String, String> {
    ask(node, &["HGETALL", &wire(name)])
}

/// Returns the number of held permits on each node.
fn held(nodes: &[Server], name: &str) -> Vec<usize> {
    let held = |node| kept(node, name).len().saturating_sub(1);
    nodes.iter().map(held).collect()
}

#[test]
fn permits_are_fields_of_one_hash_with_their_number() {
    let (nodes, name) = (shared(), unique_key("permits"));
    let exports = semaphore(nodes, &name, 3);
    let permits = [(); 3].map(|()| exports.acquire(&patient()).unwrap());
    eventually(LIMIT, "the permits are on every node", || {
        held(nodes, &name) == [3, 3, 3]
    });
    for node in nodes {
        let (seconds, _): (u64, u64) = ask(node, &["TIME"]);
        let fields = kept(node, &name);
        assert_eq!(fields["permits"], "3");
        for permit in ["0", "1", "2"] {
            let (end, token) = fields[permit].split_once(' ').unwrap();
            let left = end.parse::<u64>().unwrap() / 1000 - seconds;
            assert!(left <= TTL.as_secs() && left > TTL.as_secs() / 2, "{left}");
            assert!(is_token(token), "{token:?}");
        }
        let left: u64 = ask(node, &["PTTL", &wire(&name)]);
        let whole = TTL.as_millis() as u64 + 1000;
        assert!(left <= whole && left > whole / 2, "{left}");
    }
    assert!(tried(&exports).is_none());
    permits[0].extend(2 * TTL).unwrap();
    let [first, rest @ ..] = permits;
    first.release().unwrap();
    tried(&exports).unwrap().release().unwrap();
    drop(rest);
    eventually(LIMIT, "no key is left", || {
        nodes.iter().all(|node| kept(node, &name).is_empty())
    });
}

#[test]
fn different_number_of_permits_is_refused_while_one_is_held() {
    let (nodes, name) = (shared(), unique_key("number"));
    let [three, four] = [3, 4].map(|permits| semaphore(nodes, &name, permits));
    let permit = three.acquire(&patient()).unwrap();
    eventually(LIMIT, "the key is on every node", || {
        held(nodes, &name) == [1, 1, 1]
    });
    let error = four.acquire(&patient()).unwrap_err();
    assert!(
        matches!(&error, Error::InvalidConfig(text) if text.contains("4 permits requested, but it has 3")),
        "{error}"
    );
    assert_eq!(held(nodes, &name), [1, 1, 1]);
    permit.release().unwrap();
    eventually(LIMIT, "the lock is free", || {
        held(nodes, &name) == [0, 0, 0]
    });
    let permits = [(); 4].map(|()| four.acquire(&patient()).unwrap());
    assert!(matches!(
        three.acquire(&patient()),
        Err(Error::InvalidConfig(_))
    ));
    drop(permits);
}

/// Threads of two `Nodes` acquire permits while `disturb` runs.
fn crowd(nodes: &[Server], permits: u32, disturb: impl FnOnce(&dyn Fn(usize))) {
    const THREADS: usize = 8;
    const ROUNDS: usize = 25;
    let name = unique_key("crowd");
    let both = [(); 2].map(|()| semaphore(nodes, &name, permits));
    let (inside, taken) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for number in 0..THREADS {
            let (semaphore, inside, taken) = (&both[number % 2], &inside, &taken);
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    let permit = semaphore.acquire(&patient()).unwrap();
                    let now = inside.fetch_add(1, Ordering::SeqCst) + 1;
                    assert!(now <= permits as usize, "{now} of {permits}");
                    thread::yield_now();
                    inside.fetch_sub(1, Ordering::SeqCst);
                    taken.fetch_add(1, Ordering::SeqCst);
                    drop(permit);
                }
            });
        }
        disturb(&|count| {
            eventually(2 * LIMIT, "so many permits", || {
                taken.load(Ordering::SeqCst) >= count
            });
        });
    });
    assert_eq!(taken.into_inner(), THREADS * ROUNDS);
    // A caller can now acquire all of them at once.
    let all: Vec<SemaphorePermit> = (0..permits)
        .map(|n| both[n as usize % 2].acquire(&patient()).unwrap())
        .collect();
    assert!(both.iter().all(|semaphore| tried(semaphore).is_none()));
    drop(all);
}

#[test]
fn threads_of_two_on_three_nodes_never_hold_more() {
    crowd(shared(), 3, |_| ());
}

#[test]
fn threads_of_two_on_five_nodes_never_hold_more_while_two_fail() {
    let nodes = servers(5);
    crowd(&nodes, 2, |reached| {
        reached(20);
        nodes[4].kill();
        reached(50);
        nodes[1].stop().unwrap();
        reached(100);
        nodes[1].resume().unwrap();
    });
}

#[test]
fn part_of_a_group() {
    let Some(part) = Part::mine() else { return };
    let exports = RedisSemaphore::new(part.locker().nodes(), &part.key, 3).unwrap();
    let journal = Journal::at(&part.file);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..15 {
                    let _permit = exports.acquire(&patient()).unwrap();
                    let _entry = journal.enter_shared(&part.key);
                    thread::yield_now();
                }
            });
        }
    });
}

#[test]
fn processes_never_hold_more_together() {
    let (nodes, key) = (shared(), unique_key("processes"));
    let (_dir, file) = scratch();
    let play = || Program::playing(module_path!(), "part_of_a_group", nodes, &key, file.clone());
    let programs = [(); 3].map(|()| play());
    for program in programs {
        assert!(program.end().success());
    }
    let holds = Journal::at(&file).holds();
    assert_eq!(holds.len(), 3 * 4 * 15);
    let mut moments: Vec<(Duration, i32)> = holds
        .iter()
        .flat_map(|hold| [(hold.begin, 1), (hold.end, -1)])
        .collect();
    moments.sort(); // at equal moments the ends first
    let (mut inside, mut most) = (0, 0);
    for (_, change) in moments {
        inside += change;
        most = most.max(inside);
    }
    assert!((1..=3).contains(&most), "{most}");
}

#[test]
fn part_that_holds_until_it_is_killed() {
    let Some(part) = Part::mine() else { return };
    let exports = RedisSemaphore::new(part.locker().nodes(), &part.key, 2).unwrap();
    let brief = LockOptions::new(BRIEF).auto_renew(true);
    let _permits = [(); 2].map(|()| exports.acquire(&brief).unwrap());
    part.tell();
    thread::park_timeout(4 * LIMIT);
}

#[test]
fn permits_of_a_killed_process_expire() {
    let (nodes, key) = (shared(), unique_key("dead"));
    let (_dir, told) = scratch();
    let part = "part_that_holds_until_it_is_killed";
    let program = Program::playing(module_path!(), part, nodes, &key, told.clone());
    eventually(LIMIT, "the locks are held", || told.exists());
    let exports = semaphore(nodes, &key, 2);
    assert!(tried(&exports).is_none());
    program.kill();
    let permits = [(); 2].map(|()| exports.acquire(&patient()).unwrap());
    assert!(tried(&exports).is_none());
    drop(permits);
}

#[test]
fn foreign_value_refuses_permits() {
    let nodes = &servers(3);
    let name = unique_key("type");
    let connected = Nodes::connect(config(nodes)).unwrap();
    let exports = RedisSemaphore::new(&connected, &name, 1).unwrap();
    for node in nodes {
        ask::<()>(node, &["SET", &wire(&name), "1"]);
    }
    assert!(tried(&exports).is_none());
    for node in nodes {
        let value: String = ask(node, &["GET", &wire(&name)]);
        assert_eq!(value, "1");
        ask::<u32>(node, &["DEL", &wire(&name)]);
        ask::<()>(node, &["SCRIPT", "FLUSH"]);
    }
    let permit = exports.acquire(&patient()).unwrap();
    ask::<()>(&nodes[0], &["FLUSHALL"]);
    permit.extend(TTL).unwrap();
    eventually(LIMIT, "the key is restored", || {
        held(nodes, &name) == [1, 1, 1]
    });
    permit.release().unwrap();
}
