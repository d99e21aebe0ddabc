//! Handoffs between threads of one process on real nodes: without overlap, with increasing fencing
//! tokens, with failing nodes, and not ahead of other processes without limit.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use redguard::{LockOptions, Locker, RedisLocker};

use crate::support::fixtures::{
    LIMIT, TTL, acquire_lock, config, connect, nowhere, sluggish, wait_until_it_grants,
};
use crate::support::{eventually, servers, unique_key};

const THREADS: usize = 8;

/// Stops threads, also when the test fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Lets eight threads acquire a lock in turn while `disturb` runs, which receives a function that
/// waits for a number of further holders. Returns the number of holders.
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
            assert!(!inside.swap(true, Ordering::AcqRel), "two holders");
            let number = guard.fencing_token().unwrap();
            let before = std::mem::replace(&mut *last.lock().unwrap(), number);
            assert!(before < number, "{before}, {number}");
            holders.fetch_add(1, Ordering::AcqRel);
            assert!(inside.swap(false, Ordering::AcqRel));
            match guard.release() {
                // The keys of a killed node are unknown.
                Err(error) if error.is_unavailable() => {}
                released => released.unwrap(),
            }
        }
    };
    let more = |count: usize| {
        let goal = holders.load(Ordering::Acquire) + count;
        eventually(LIMIT, "handoffs continue", || {
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
fn handoffs_continue_while_a_node_hangs_and_comes_back() {
    let nodes = servers(3);
    let (locker, key) = (connect(&nodes), unique_key("handoff"));
    let holders = in_turns(&locker, &key, |more| {
        more(100);
        nodes[2].stop().unwrap();
        more(100);
        nodes[2].resume().unwrap();
        wait_until_it_grants(&locker, &nodes[2]);
        more(100);
    });
    assert!(holders >= 300);
    nowhere(&nodes, &key);
}

/// Only releases wake the other process: its retry delay is much longer.
#[test]
fn handoffs_yield_to_another_process_repeatedly() {
    let nodes = servers(3);
    let (locker, key) = (connect(&nodes), unique_key("turn"));
    let other = RedisLocker::connect(config(&nodes).retry(sluggish())).unwrap();
    in_turns(&locker, &key, |more| {
        more(50);
        for _ in 0..10 {
            acquire_lock(&other, &key).release().unwrap();
        }
        more(50);
    });
    nowhere(&nodes, &key);
}
