//! Holding on and being told: renewal and loss on real nodes that hang, die, come back, and forget.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use std::{fs, thread};

use nix::sys::signal::{Signal, kill};
use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};
use redguard::{
    Config, LockGuard, LockOptions, LockWatch, Locker, RedisLocker, RedisRwLocker, RwLocker,
    WatchOutcome,
};

use crate::support::child_process::{Part, Program, scratch};
use crate::support::fixtures::{
    BRIEF, LIMIT, STRANGER, TTL, ask, assert_no_timeout_elapsed, config, connect, everywhere, now,
    nowhere, pttl, subscribers, takes_part, token, wire,
};
use crate::support::servers::Server;
use crate::support::{eventually, fixtures, servers, unique_key};

/// What a busy machine may add: threads that are ready and do not run.
const BUSY: Duration = Duration::from_secs(5);

fn renewed(ttl: Duration) -> LockOptions {
    LockOptions::new(ttl).auto_renew(true)
}

/// A lock on all nodes that is renewed, and how often its loss was told.
fn keep(locker: &RedisLocker, nodes: &[Server], key: &str) -> (LockGuard, Arc<AtomicUsize>) {
    let told = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&told);
    let options = renewed(BRIEF).on_lost(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
    });
    let guard = locker.acquire(key, &options).unwrap();
    everywhere(nodes, key);
    (guard, told)
}

fn is_lost(watch: &LockWatch, told: &AtomicUsize) {
    assert_eq!(watch.wait_ended(LIMIT), WatchOutcome::Lost);
    eventually(LIMIT, "it is told", || told.load(Ordering::SeqCst) == 1);
}

#[test]
fn a_lock_is_kept_for_ten_ttls_while_each_node_hangs_dies_and_comes_back() {
    let nodes = servers(3);
    let locker = connect(&nodes);
    let rival = connect(&nodes);
    let key = unique_key("kept");
    let (guard, told) = keep(&locker, &nodes, &key);
    let mine = token(&nodes[0], &key);
    let watch = guard.watch();
    let goes_on = || {
        // Longer than what a renewal takes; the lease would end in two of these.
        assert_eq!(watch.wait_ended(BRIEF / 2), WatchOutcome::TimedOut);
        let taken = rival.try_lock(&key, TTL).unwrap();
        assert!(taken.is_none(), "two holders");
    };
    for node in &nodes {
        node.stop().unwrap();
        goes_on();
        goes_on();
        node.resume().unwrap();
        goes_on();
        node.kill();
        goes_on();
        goes_on();
        node.restart_empty().unwrap();
        takes_part(&rival, node);
        eventually(LIMIT, "the key is back", || token(node, &key) == mine);
        goes_on();
    }
    goes_on();
    goes_on();
    guard.release().unwrap();
    assert_eq!(watch.wait_ended(LIMIT), WatchOutcome::Released);
    nowhere(&nodes, &key);
    assert_eq!(told.load(Ordering::SeqCst), 0);
}

#[test]
fn a_majority_that_dies_is_a_loss_and_the_survivors_key_is_released() {
    let nodes = servers(3);
    let locker = connect(&nodes);
    let key = unique_key("majority");
    let (guard, told) = keep(&locker, &nodes, &key);
    let killed = now();
    nodes[..2].iter().for_each(Server::kill);
    is_lost(&guard.watch(), &told);
    let took = killed.elapsed();
    assert!(took < BRIEF + BUSY, "{took:?}");
    assert!(guard.check().unwrap_err().is_lost());
    nowhere(&nodes[2..], &key);
    assert!(guard.release().unwrap_err().is_lost());
}

#[test]
fn a_writer_and_readers_are_kept_while_a_node_hangs_and_told_of_their_loss() {
    let nodes = servers(3);
    let exclusive = connect(&nodes);
    let locker = RedisRwLocker::new(exclusive.nodes());
    let rival = RedisRwLocker::new(connect(&nodes).nodes());
    let key = unique_key("rw");
    let told = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&told);
    let options = renewed(BRIEF).on_lost(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
    });
    let kept =
        |watch: &LockWatch| assert_eq!(watch.wait_ended(BRIEF * 3 / 2), WatchOutcome::TimedOut);
    let writer = locker.acquire_write(&key, &options).unwrap();
    nodes[0].stop().unwrap();
    kept(&writer.watch());
    assert!(rival.try_read(&key, TTL).unwrap().is_none());
    let readers = [
        writer.downgrade().unwrap(),
        locker.acquire_read(&key, &options).unwrap(),
    ];
    kept(&readers[0].watch());
    assert!(readers[1].is_held());
    assert!(rival.try_write(&key, TTL).unwrap().is_none());
    nodes[0].resume().unwrap();
    takes_part(&exclusive, &nodes[0]);
    let readers_there = |node| ask::<usize>(node, &["ZCARD", &wire_part(&key, "readers")]);
    eventually(LIMIT, "both are on every node", || {
        nodes.iter().all(|node| readers_there(node) == 2)
    });
    // One is released, and the other lost.
    let [lost, released] = readers;
    released.release().unwrap();
    eventually(LIMIT, "it is lost", || {
        let forgetful = nodes[1..].iter();
        forgetful.for_each(|node| ask(node, &["FLUSHALL"]));
        lost.watch().wait_ended(BRIEF / 2) == WatchOutcome::Lost
    });
    eventually(LIMIT, "it is told", || told.load(Ordering::SeqCst) > 0);
    assert!(lost.release().unwrap_err().is_lost());
    // A writer, too.
    let writer = locker.acquire_write(&key, &options).unwrap();
    eventually(LIMIT, "it is lost", || {
        let forgetful = nodes[1..].iter();
        forgetful.for_each(|node| ask(node, &["FLUSHALL"]));
        writer.watch().wait_ended(BRIEF / 2) == WatchOutcome::Lost
    });
    eventually(LIMIT, "it is told", || told.load(Ordering::SeqCst) > 1);
    drop(writer);
    assert!(exclusive.nodes().shutdown(LIMIT));
    assert_eq!(told.load(Ordering::SeqCst), 2, "once each");
}

/// One of a read-write lock's keys.
fn wire_part(key: &str, ending: &str) -> String {
    format!("{{{}}}:{ending}", wire(key))
}

#[test]
fn flushed_nodes_and_a_strangers_value_are_a_loss_long_before_the_lease_ends() {
    let nodes = servers(3);
    let locker = connect(&nodes);
    for strangers in [true, false] {
        let key = unique_key("flushed");
        let (guard, told) = keep(&locker, &nodes, &key);
        // Again and again: a renewal that comes between the two nodes puts back what the first one has lost.
        eventually(LIMIT, "it is lost", || {
            for node in &nodes[1..] {
                match strangers {
                    true => ask::<()>(node, &["SET", &wire(&key), STRANGER]),
                    false => ask::<()>(node, &["FLUSHALL"]),
                }
            }
            guard.watch().wait_ended(BRIEF / 2) == WatchOutcome::Lost
        });
        is_lost(&guard.watch(), &told);
        nowhere(&nodes[..1], &key);
        let theirs = token(&nodes[1], &key);
        assert_eq!(theirs.as_deref(), strangers.then_some(STRANGER));
        if !strangers {
            locker.lock(&key, TTL).unwrap().release().unwrap();
        }
        assert!(!guard.is_held());
    }
}

#[test]
fn a_lease_that_somebody_shortened_is_made_whole_by_the_next_renewal() {
    let nodes = servers(3);
    let locker = connect(&nodes);
    let key = unique_key("shortened");
    let (guard, told) = keep(&locker, &nodes, &key);
    for node in &nodes {
        let short = (BRIEF * 2 / 3).as_millis().to_string();
        ask::<()>(node, &["PEXPIRE", &wire(&key), &short]);
    }
    for node in &nodes {
        let whole = (BRIEF * 3 / 4).as_millis() as i64;
        eventually(LIMIT, "renewed", || pttl(node, &key) > whole);
    }
    assert!(guard.is_held());
    guard.release().unwrap();
    assert_eq!(told.load(Ordering::SeqCst), 0);
}

#[test]
fn key_is_restored_on_a_node_that_lost_it() {
    let nodes = servers(3);
    let locker = connect(&nodes);
    let key = unique_key("forgets");
    let (guard, _) = keep(&locker, &nodes, &key);
    ask::<()>(&nodes[0], &["FLUSHALL"]);
    everywhere(&nodes, &key);
    // A stranger's value is left alone, and the lock is ours all the same.
    ask::<()>(&nodes[0], &["SET", &wire(&key), STRANGER]);
    assert_eq!(guard.watch().wait_ended(BRIEF), WatchOutcome::TimedOut);
    assert_eq!(token(&nodes[0], &key).as_deref(), Some(STRANGER));
    guard.release().unwrap();
}

// A holder that stands still.

/// The clock that all processes of a machine share, in ns.
fn clock() -> i64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
    time.num_nanoseconds()
}

#[test]
fn part_that_is_stopped() {
    let Some(part) = Part::mine() else { return };
    let locker = part.locker();
    let guard = locker.acquire(&part.key, &renewed(BRIEF)).unwrap();
    let watch = guard.watch();
    part.tell();
    // Stopped somewhere in here.
    let mut last_good = 0;
    loop {
        let began = clock();
        match guard.check() {
            Ok(()) => last_good = began,
            Err(_) => break,
        }
        thread::yield_now();
    }
    let looks = [guard.is_held(), watch.is_held()];
    let lost = watch.wait_ended(Duration::ZERO);
    let work = guard.check();
    fs::write(
        &part.file,
        format!("{last_good} {looks:?} {lost:?} {work:?}"),
    )
    .unwrap();
    assert!(guard.release().is_err());
}

#[test]
fn a_holder_that_was_stopped_past_its_ttl_is_told_at_its_first_look() {
    let nodes = servers(3);
    let key = unique_key("stopped");
    let (_dir, told) = scratch();
    let locker = connect(&nodes);
    let program = Program::playing(
        module_path!(),
        "part_that_is_stopped",
        &nodes,
        &key,
        told.clone(),
    );
    eventually(LIMIT, "it is held", || told.exists());
    assert!(locker.try_lock(&key, TTL).unwrap().is_none());
    kill(program.pid(), Signal::SIGSTOP).unwrap();
    // The new holder comes when its lease has ended.
    let ours = locker.lock(&key, TTL).unwrap();
    let granted = clock();
    kill(program.pid(), Signal::SIGCONT).unwrap();
    assert_eq!(program.end().code(), Some(0));
    let looks = fs::read_to_string(&told).unwrap();
    let (last_good, looks) = looks.split_once(' ').unwrap();
    assert!(
        looks.starts_with("[false, false] Lost Err(LockLost {"),
        "{looks}"
    );
    let last_good: i64 = last_good.parse().unwrap();
    assert!(0 < last_good && last_good < granted, "two at work");
    ours.check().unwrap();
    ours.release().unwrap();
}

// Messages.

/// Only a message explains progress.
fn sluggish(nodes: &[Server]) -> Config {
    config(nodes).retry(fixtures::sluggish())
}

#[test]
fn no_wake_up_is_lost_among_two_hundred_waiters() {
    let nodes = servers(3);
    let key = unique_key("woken");
    let lockers = [(); 4].map(|()| RedisLocker::connect(sluggish(&nodes)).unwrap());
    let held = AtomicUsize::new(0);
    let began = now();
    thread::scope(|scope| {
        for locker in &lockers {
            for _ in 0..50 {
                scope.spawn(|| {
                    let guard = locker.lock(&key, TTL).unwrap();
                    assert_eq!(held.fetch_add(1, Ordering::SeqCst), 0, "two holders");
                    held.fetch_sub(1, Ordering::SeqCst);
                    guard.release().unwrap();
                });
            }
        }
    });
    assert_no_timeout_elapsed(began);
    nowhere(&nodes, &key);
    for node in &nodes {
        eventually(LIMIT, "nothing stays subscribed", || {
            subscribers(node, &key) == 0
        });
    }
}

#[test]
fn waiters_hear_of_a_release_though_the_node_that_they_listen_to_dies() {
    let start = || Server::options().append_always().start().unwrap();
    let nodes = [(); 3].map(|()| start());
    let key = unique_key("deaf");
    let holder = connect(&nodes);
    let waiter = RedisLocker::connect(sluggish(&nodes)).unwrap();
    let held = holder.lock(&key, TTL).unwrap();
    everywhere(&nodes, &key);
    thread::scope(|scope| {
        let waits = scope.spawn(|| waiter.lock(&key, TTL));
        eventually(LIMIT, "it listens", || subscribers(&nodes[0], &key) == 1);
        nodes[0].kill();
        // It may try a node that hangs, for a `connect_timeout`, before it sees that another is back.
        eventually(3 * LIMIT, "elsewhere", || subscribers(&nodes[1], &key) == 1);
        nodes[1].stop().unwrap();
        nodes[0].restart().unwrap();
        eventually(3 * LIMIT, "and back", || subscribers(&nodes[0], &key) == 1);
        takes_part(&holder, &nodes[0]);
        let began = now();
        held.release().unwrap();
        waits.join().unwrap().unwrap().release().unwrap();
        assert_no_timeout_elapsed(began);
    });
    nodes[1].resume().unwrap();
}

#[test]
fn try_lock_does_not_subscribe() {
    let node = &servers(1)[0];
    let [locker, other] = [
        connect(std::slice::from_ref(node)),
        connect(std::slice::from_ref(node)),
    ];
    let key = unique_key("published");
    let channels = ["PUBSUB", "CHANNELS", "*"];
    let held = locker.lock(&key, TTL).unwrap();
    assert!(other.try_lock(&key, TTL).unwrap().is_none());
    let heard: Vec<String> = ask(node, &channels);
    assert!(heard.is_empty(), "{heard:?}");
    held.release().unwrap();
}
