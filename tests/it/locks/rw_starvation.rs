//! Neither side of a read-write lock starves, and colliding writers settle: with sections that
//! follow without a pause.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use redguard::{LockOptions, RedisRwLocker, RetryPolicy, RwLocker};

use crate::support::fixtures::{LIMIT, TTL, config, connect_by, now};
use crate::support::servers::Server;
use crate::support::{servers, unique_key};

/// Length of a section while other callers wait.
const SECTION: Duration = Duration::from_millis(200);
/// Lifetime of a gate entry, and of a reader turn, with the default policy: a refresh interval is
/// 100 ms.
const GATE: Duration = Duration::from_millis(300);
const TURN: Duration = Duration::from_millis(100);
const ROUNDS: usize = 5;
/// Delay that a busy machine may add, while threads are ready and do not run.
const BUSY: Duration = Duration::from_secs(5);

fn rw(nodes: &[Server]) -> RedisRwLocker {
    let config = config(nodes).retry(RetryPolicy::default());
    RedisRwLocker::new(connect_by(config, nodes).nodes())
}

fn patient() -> LockOptions {
    LockOptions::new(TTL).wait_for(LIMIT)
}

/// Holds a section for its length.
#[expect(clippy::disallowed_methods, reason = "a section takes its time")]
fn section(length: Duration) {
    thread::sleep(length);
}

/// Ends all threads on drop, also by a panic: otherwise they would never end, and the test would
/// report nothing.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The longest section of several threads.
#[derive(Default)]
struct Longest(AtomicUsize);

impl Longest {
    fn note(&self, section: Duration) {
        self.0
            .fetch_max(section.as_micros() as usize, Ordering::Relaxed);
    }

    fn get(&self) -> Duration {
        Duration::from_micros(self.0.load(Ordering::Relaxed) as u64)
    }
}

#[test]
fn writer_acquires_beside_overlapping_readers() {
    let nodes = servers(3);
    let key = unique_key("readers");
    // Two processes read, and one writes.
    let lockers = [rw(&nodes), rw(&nodes), rw(&nodes)];
    let (inside, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (longest, empty) = (Longest::default(), AtomicUsize::new(0));
    thread::scope(|scope| {
        let over = Ends(&over);
        for number in 0..6 {
            let (locker, key) = (&lockers[number % 2], &key);
            let (inside, over, longest, empty) = (&inside, over.0, &longest, &empty);
            // Sections differ in length, so that readers that entered together do not all leave
            // together.
            let length = SECTION - number as u32 * SECTION / 12;
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let guard = locker.acquire_read(key, &patient()).unwrap();
                    let began = now();
                    inside.fetch_add(1, Ordering::Relaxed);
                    section(length);
                    if inside.fetch_sub(1, Ordering::Relaxed) == 1 {
                        empty.fetch_add(1, Ordering::Relaxed);
                    }
                    guard.release().unwrap();
                    longest.note(began.elapsed());
                }
            });
        }
        let bound = || 2 * longest.get().max(SECTION) + GATE;
        assert_gets_in(bound, || {
            // Readers alone for a while: they overlap, so the lock never becomes free.
            section(SECTION);
            section(SECTION);
            let began = now();
            let guard = lockers[2].acquire_write(&key, &patient());
            let waited = began.elapsed();
            guard.unwrap().release().unwrap();
            waited
        });
    });
    // Once for each writer; more often only if a busy machine delayed all readers between two
    // sections.
    let empty = empty.into_inner();
    eprintln!("no reader was inside {empty} times, for {ROUNDS} writers");
}

#[test]
fn reader_acquires_beside_successive_writers() {
    let nodes = servers(3);
    let key = unique_key("writers");
    let lockers = [rw(&nodes), rw(&nodes), rw(&nodes)];
    let (over, longest) = (AtomicBool::new(false), Longest::default());
    thread::scope(|scope| {
        let over = Ends(&over);
        // Two threads in each of two processes: while one writes, the other already waits.
        for number in 0..4 {
            let (locker, key) = (&lockers[number % 2], &key);
            let (over, longest) = (over.0, &longest);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let guard = locker.acquire_write(key, &patient()).unwrap();
                    let began = now();
                    section(SECTION);
                    guard.release().unwrap();
                    longest.note(began.elapsed());
                }
            });
        }
        let bound = || 2 * longest.get().max(SECTION) + TURN;
        assert_gets_in(bound, || {
            section(SECTION);
            let began = now();
            let guard = lockers[2].acquire_read(&key, &patient());
            let waited = began.elapsed();
            guard.unwrap().release().unwrap();
            waited
        });
    });
}

/// Runs several rounds, each of which returns a wait. Most must keep to the bound, and all must
/// come near it, because a busy machine adds delays.
fn assert_gets_in(bound: impl Fn() -> Duration, round: impl Fn() -> Duration) {
    let mut waits = [(); ROUNDS].map(|()| {
        let (waited, bound) = (round(), bound());
        eprintln!("waited {waited:?} (bound {bound:?})");
        assert!(waited <= bound + BUSY, "{waited:?}, not {bound:?}");
        waited
    });
    waits.sort();
    let (usual, bound) = (waits[ROUNDS / 2], bound());
    assert!(usual <= bound, "{waits:?}, not {bound:?}");
}

/// Four nodes, or five with one hung: two writers can get two grants each.
#[test]
fn split_vote_of_writers_settles_within_round_trips() {
    for stopped in [false, true] {
        let nodes = servers(if stopped { 5 } else { 4 });
        let key = unique_key("split");
        // The first round that misses the stopped node waits for it, once.
        let config = || config(&nodes).node_timeout(Duration::from_millis(500));
        let lockers = [(); 2].map(|()| connect_by(config(), &nodes));
        let lockers = lockers.map(|locker| RedisRwLocker::new(locker.nodes()));
        if stopped {
            nodes[4].stop().unwrap();
        }
        let rounds = 100;
        let barrier = Barrier::new(lockers.len());
        let began: Instant = now();
        let failure = Mutex::new(None);
        thread::scope(|scope| {
            for locker in &lockers {
                let (key, barrier, failure) = (&key, &barrier, &failure);
                scope.spawn(move || {
                    for _ in 0..rounds {
                        barrier.wait();
                        if let Err(error) = locker.acquire_write(key, &patient()).map(drop) {
                            *failure.lock().unwrap() = Some(error);
                        }
                        // Both threads check the end here, or one would wait at the barrier without
                        // end.
                        barrier.wait();
                        if failure.lock().unwrap().is_some() {
                            return;
                        }
                    }
                });
            }
        });
        assert_eq!(failure.into_inner().unwrap(), None);
        eprintln!("{:?} a round", began.elapsed() / rounds);
        assert!(
            began.elapsed() < 4 * LIMIT,
            "{:?} is no matter of round trips",
            began.elapsed()
        );
    }
}

#[test]
fn many_readers_of_one_process_overlap() {
    let nodes = servers(3);
    let key = unique_key("many");
    let locker = rw(&nodes);
    let all = Barrier::new(64);
    thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(|| {
                let guard = locker.acquire_read(&key, &patient()).unwrap();
                all.wait();
                guard.release().unwrap();
            });
        }
    });
}
