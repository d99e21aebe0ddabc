//! Neither side of a read-write lock starves, and writers that meet settle: with sections that follow without a pause.

use crate::rig::{LIMIT, TTL, config, connect, connect_by, now};
use crate::support::servers::Server;
use crate::support::{servers, unique_key};
use redguard::{LockOptions, RedisRwLocker, RwLocker};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long a section is that others queue behind.
const SECTION: Duration = Duration::from_millis(60);
/// A place at the gate, and a turn, with the policy of the rig: a refresh interval is 20 ms.
const GATE: Duration = Duration::from_millis(60);
const TURN: Duration = Duration::from_millis(20);
/// What a busy machine may add: threads that are ready and do not run.
const BUSY: Duration = Duration::from_secs(5);

fn rw(nodes: &[Server]) -> RedisRwLocker {
    RedisRwLocker::new(connect(nodes).nodes())
}

fn patient() -> LockOptions {
    LockOptions::new(TTL).wait_for(LIMIT)
}

/// Is inside a section for its length; answers how long that really was.
#[expect(clippy::disallowed_methods, reason = "a section takes its time")]
fn section() -> Duration {
    let began = now();
    thread::sleep(SECTION);
    began.elapsed()
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
fn a_writer_gets_in_among_readers_that_overlap_without_a_pause() {
    let nodes = servers(3);
    let key = unique_key("readers");
    // Two processes that read, and one that writes.
    let lockers = [rw(&nodes), rw(&nodes), rw(&nodes)];
    let (inside, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (longest, empty) = (Longest::default(), AtomicUsize::new(0));
    thread::scope(|scope| {
        for number in 0..6 {
            let (locker, key) = (&lockers[number % 2], &key);
            let (inside, over, longest, empty) = (&inside, &over, &longest, &empty);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let guard = locker.acquire_read(key, &patient()).unwrap();
                    let began = now();
                    inside.fetch_add(1, Ordering::Relaxed);
                    section();
                    if inside.fetch_sub(1, Ordering::Relaxed) == 1 {
                        empty.fetch_add(1, Ordering::Relaxed);
                    }
                    guard.release().unwrap();
                    longest.note(began.elapsed());
                }
            });
        }
        for round in 0..5 {
            // Readers alone for a while: they overlap, so the lock is never free by itself.
            section();
            section();
            let began = now();
            let guard = lockers[2].acquire_write(&key, &patient());
            let waited = began.elapsed();
            if guard.is_err() {
                over.store(true, Ordering::Relaxed);
            }
            guard.unwrap().release().unwrap();
            let bound = 2 * longest.get().max(SECTION) + GATE;
            eprintln!("round {round}: the writer waited {waited:?} (bound {bound:?})");
            assert_waited(waited, bound, &over);
        }
        over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_reader_gets_in_among_writers_that_follow_without_a_pause() {
    let nodes = servers(3);
    let key = unique_key("writers");
    let lockers = [rw(&nodes), rw(&nodes), rw(&nodes)];
    let (over, longest) = (AtomicBool::new(false), Longest::default());
    thread::scope(|scope| {
        // Two threads in each of two processes: while one writes the other waits already.
        for number in 0..4 {
            let (locker, key) = (&lockers[number % 2], &key);
            let (over, longest) = (&over, &longest);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let guard = locker.acquire_write(key, &patient()).unwrap();
                    let began = now();
                    section();
                    guard.release().unwrap();
                    longest.note(began.elapsed());
                }
            });
        }
        for round in 0..5 {
            section();
            let began = now();
            let guard = lockers[2].acquire_read(&key, &patient());
            let waited = began.elapsed();
            if guard.is_err() {
                over.store(true, Ordering::Relaxed);
            }
            guard.unwrap().release().unwrap();
            let bound = 2 * longest.get().max(SECTION) + TURN;
            eprintln!("round {round}: the reader waited {waited:?} (bound {bound:?})");
            assert_waited(waited, bound, &over);
        }
        over.store(true, Ordering::Relaxed);
    });
}

fn assert_waited(waited: Duration, bound: Duration, over: &AtomicBool) {
    let good = waited <= bound + BUSY;
    if !good {
        over.store(true, Ordering::Relaxed); // or the others never end, and nobody learns why
    }
    assert!(good, "{waited:?}, not {bound:?}");
}

/// Four nodes, or five of which one hangs: two writers can have two each.
#[test]
fn writers_that_split_the_nodes_settle_within_round_trips() {
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
        thread::scope(|scope| {
            for locker in &lockers {
                let (key, barrier) = (&key, &barrier);
                scope.spawn(move || {
                    for _ in 0..rounds {
                        barrier.wait();
                        drop(locker.acquire_write(key, &patient()).unwrap());
                    }
                });
            }
        });
        eprintln!("{:?} a round", began.elapsed() / rounds);
        assert!(
            began.elapsed() < LIMIT,
            "{:?} is no matter of round trips",
            began.elapsed()
        );
    }
}

#[test]
fn many_readers_of_one_process_are_inside_together() {
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
