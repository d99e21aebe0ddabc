//! A lock that goes from thread to thread of one process on real nodes: without overlap, in the order of its numbers, whatever
//! nodes fail, and not past other processes for ever.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use redguard::{LockOptions, Locker, RedisLocker};

use crate::support::fixtures::{LIMIT, TTL, config, connect, nowhere, sluggish, take, takes_part};
use crate::support::{eventually, servers, unique_key};

const THREADS: usize = 8;

/// Lets threads end, also when the test fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Eight threads that take a lock in turns, while `disturb` goes on, which is given a wait for so many more holders. Answers how
/// many there were.
fn in_turns(locker: &RedisLocker, key: &str, disturb: impl FnOnce(&dyn Fn(usize))) -> usize {
    let (inside, holders, end) = (
        AtomicBool::new(false),
        AtomicUsize::new(0),
        AtomicBool::new(false),
    );
    let last = Mutex::new(0);
    let options = LockOptions::new(TTL).wait_for(2 * LIMIT).fencing(true);
    let work = || {
        while !end.load(Ordering::Acquire) {
            let guard = locker.acquire(key, &options).unwrap();
            assert!(!inside.swap(true, Ordering::AcqRel), "two are inside");
            let number = guard.fencing_token().unwrap();
            let before = std::mem::replace(&mut *last.lock().unwrap(), number);
            assert!(before < number, "{before}, {number}");
            holders.fetch_add(1, Ordering::AcqRel);
            assert!(inside.swap(false, Ordering::AcqRel));
            match guard.release() {
                // What a node had that has ended nobody knows.
                Err(error) if error.is_unavailable() => {}
                released => released.unwrap(),
            }
        }
    };
    let more = |count: usize| {
        let goal = holders.load(Ordering::Acquire) + count;
        eventually(LIMIT, "they go on", || {
            holders.load(Ordering::Acquire) >= goal
        });
    };
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(work);
        }
        let _ends = Ends(&end);
        disturb(&more);
    });
    holders.into_inner()
}

#[test]
fn a_lock_goes_from_thread_to_thread_while_a_node_hangs_and_comes_back() {
    let nodes = servers(3);
    let (locker, key) = (connect(&nodes), unique_key("relay"));
    let holders = in_turns(&locker, &key, |more| {
        more(100);
        nodes[2].stop().unwrap();
        more(100);
        nodes[2].resume().unwrap();
        takes_part(&locker, &nodes[2]);
        more(100);
    });
    assert!(holders >= 300);
    nowhere(&nodes, &key);
}

/// The other one is woken by releases alone: its own clock is much slower.
#[test]
fn another_process_has_its_turn_soon_again_and_again() {
    let nodes = servers(3);
    let (locker, key) = (connect(&nodes), unique_key("turn"));
    let other = RedisLocker::connect(config(&nodes).retry(sluggish())).unwrap();
    in_turns(&locker, &key, |more| {
        more(50);
        for _ in 0..10 {
            take(&other, &key).release().unwrap();
        }
        more(50);
    });
    nowhere(&nodes, &key);
}
