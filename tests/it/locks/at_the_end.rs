//! Guards that are dropped after the thread-locals of their thread, or at the end of the process. A
//! release must not use a thread-local, because that would then end the process with a panic.

use std::cell::RefCell;
use std::sync::Mutex;
use std::thread;

use nix::libc;
use redguard::{LockGuard, Locker, Nodes, OnDrop, RedisLocker};

use crate::support::child_process::{HUNG, Part, Program, is_listened_to, scratch};
use crate::support::fixtures::{LIMIT, acquire_lock, at, config, wire};
use crate::support::{eventually, raw, servers, unique_key};

thread_local! {
    static KEPT: RefCell<Option<LockGuard>> = const { RefCell::new(None) };
}

/// Whether the guard's thread-local is the first of its thread, and so is dropped last, or the
/// reverse.
#[derive(Clone, Copy)]
enum Order {
    First,
    Last,
}

/// Ends a thread that keeps a guard in a thread-local, while another process waits for the lock or
/// none does.
fn end_a_thread(locker: &RedisLocker, others: &RedisLocker, node: &str, key: &str, order: Order) {
    let contended = !key.ends_with("alone");
    // The thread has waited for the lock, and so used everything that a wait uses.
    let former = acquire_lock(others, key);
    thread::scope(|scope| {
        let (held, told) = crossbeam_channel::bounded(0);
        let (end, ends) = crossbeam_channel::bounded::<()>(0);
        let holds = scope.spawn(move || {
            if matches!(order, Order::First) {
                KEPT.with_borrow(|_| {});
            }
            let guard = acquire_lock(locker, key);
            KEPT.set(Some(guard));
            held.send(()).unwrap();
            // Blocks until the other side disconnects.
            _ = ends.recv();
        });
        eventually(LIMIT, "the caller waits", || is_listened_to(node, key));
        former.release().unwrap();
        told.recv().unwrap();
        eventually(LIMIT, "no waiter is subscribed", || {
            !is_listened_to(node, key)
        });
        let waits = contended.then(|| scope.spawn(|| acquire_lock(others, key).release()));
        if contended {
            eventually(LIMIT, "another caller waits", || is_listened_to(node, key));
        }
        drop(end);
        holds.join().unwrap();
        if let Some(waits) = waits {
            waits.join().unwrap().unwrap();
        }
    });
    acquire_lock(others, key).release().unwrap();
    assert_eq!(locker.nodes().drop_failures(), 0);
}

#[test]
fn part_whose_threads_end_with_guards_in_their_locals() {
    let Some(part) = Part::mine() else { return };
    let others = part.locker();
    for on_drop in [OnDrop::Wait, OnDrop::Background] {
        let config = at(part.nodes.clone()).node_timeout(HUNG).on_drop(on_drop);
        let locker = RedisLocker::connect(config).unwrap();
        for order in [Order::First, Order::Last] {
            for how in ["contended", "alone"] {
                let key = format!("{}{on_drop:?}{}{how}", part.key, order as u8);
                end_a_thread(&locker, &others, &part.nodes[0], &key, order);
            }
        }
    }
}

#[test]
fn a_guard_in_a_thread_local_is_released_when_its_thread_ends() {
    let (nodes, key) = (servers(3), unique_key("locals"));
    let (_dir, told) = scratch();
    let part = "part_whose_threads_end_with_guards_in_their_locals";
    let program = Program::playing(module_path!(), part, &nodes, &key, told);
    let ended = program.end();
    assert!(ended.success(), "{ended}");
}

/// A guard that is dropped after the end of `main`.
static LEFT: Mutex<Option<(LockGuard, Nodes)>> = Mutex::new(None);

extern "C" fn drop_what_is_left() {
    let (guard, nodes) = LEFT.lock().unwrap().take().unwrap();
    drop(guard);
    assert_eq!(nodes.drop_failures(), 0);
}

#[test]
fn part_that_drops_a_guard_when_it_exits() {
    let Some(part) = Part::mine() else { return };
    let on_drop = match part.key.ends_with("HandOff") {
        true => OnDrop::Background,
        false => OnDrop::Wait,
    };
    let config = at(part.nodes.clone()).node_timeout(HUNG).on_drop(on_drop);
    let locker = RedisLocker::connect(config).unwrap();
    let guard = locker.lock(&part.key, 4 * LIMIT).unwrap();
    *LEFT.lock().unwrap() = Some((guard, locker.nodes().clone()));
    // SAFETY: the function needs nothing of the thread that calls it.
    assert_eq!(unsafe { libc::atexit(drop_what_is_left) }, 0);
    part.tell();
    if !part.key.contains("alone") {
        eventually(LIMIT, "another caller waits", || {
            is_listened_to(&part.nodes[0], &part.key)
        });
    }
}

#[test]
fn a_guard_that_is_dropped_at_exit_is_released() {
    let nodes = servers(3);
    let locker = RedisLocker::connect(config(&nodes)).unwrap();
    for how in [
        "aloneWait",
        "aloneHandOff",
        "contendedWait",
        "contendedHandOff",
    ] {
        let key = format!("{}{how}", unique_key("exit"));
        let (_dir, told) = scratch();
        let part = "part_that_drops_a_guard_when_it_exits";
        let program = Program::playing(module_path!(), part, &nodes, &key, told.clone());
        eventually(LIMIT, "the lock is held", || told.exists());
        if how.starts_with("contended") {
            acquire_lock(&locker, &key).release().unwrap();
        }
        let ended = program.end();
        assert!(ended.success(), "{how}: {ended}");
        for node in &nodes {
            let there = || redis::cmd("EXISTS").arg(wire(&key)).query(&mut raw(node));
            eventually(LIMIT, "the lock is free", || there() == Ok(false));
        }
    }
}
