//! Renewal and reported losses on real nodes that hang, die, come back, and lose data.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
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
    nowhere, pttl, subscribers, token, wait_until_it_grants, wire,
};
use crate::support::servers::Server;
use crate::support::{eventually, fixtures, servers, unique_key};

/// Delay that a busy machine may add, while threads are ready and do not run.
const BUSY: Duration = Duration::from_secs(5);

fn renewed(ttl: Duration) -> LockOptions {
    LockOptions::new(ttl).auto_renew(true)
}

/// A renewed lock on all nodes, and the number of its reported losses.
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
    eventually(LIMIT, "the event is reported", || {
        told.load(Ordering::SeqCst) == 1
    });
}

#[test]
fn lock_is_renewed_for_ten_ttls_while_each_node_hangs_dies_and_comes_back() {
    let nodes = servers(3);
    let locker = connect(&nodes);
    let rival = connect(&nodes);
    let key = unique_key("kept");
    let (guard, told) = keep(&locker, &nodes, &key);
    let mine = token(&nodes[0], &key);
    let watch = guard.watch();
    let goes_on = || {
        // Longer than a renewal; the lease would end in two of these pauses.
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
        wait_until_it_grants(&rival, node);
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
fn dead_majority_loses_the_lock_and_releases_the_remaining_key() {
    let nodes = servers(3);
    let locker = connect(&nodes);
    let rival = connect(&nodes);
    let key = unique_key("majority");
    let (guard, told) = keep(&locker, &nodes, &key);
    assert!(rival.try_lock(&key, TTL).unwrap().is_none(), "two holders");
    let killed = now();
    nodes[..2].iter().for_each(Server::kill);
    // One node is no quorum, neither before nor after the loss.
    let is_unavailable = || rival.try_lock(&key, TTL).unwrap_err().is_unavailable();
    assert!(is_unavailable());
    is_lost(&guard.watch(), &told);
    let took = killed.elapsed();
    assert!(took < BRIEF + BUSY, "{took:?}");
    assert!(guard.check().unwrap_err().is_lost());
    nowhere(&nodes[2..], &key);
    assert!(is_unavailable());
    nowhere(&nodes[2..], &key);
    assert!(guard.release().unwrap_err().is_lost());
}

#[test]
fn hung_majority_endangers_the_lock_and_an_end_of_the_hang_makes_it_safe() {
    let nodes = servers(3);
    let locker = connect(&nodes);
    let key = unique_key("endangered");
    let (sender, reports) = channel();
    let options = renewed(3 * BRIEF).on_endangered(BRIEF, move |lock| {
        _ = sender.send((lock.is_endangered(), lock.remaining()));
    });
    let guard = locker.acquire(&key, &options).unwrap();
    everywhere(&nodes, &key);
    for node in &nodes[1..] {
        node.stop().unwrap();
    }
    let (is_endangered, left) = reports.recv_timeout(LIMIT).unwrap();
    assert!(is_endangered && left <= BRIEF, "{left:?}");
    for node in &nodes[1..] {
        node.resume().unwrap();
    }
    // On a busy machine the lock may be lost before a renewal succeeds.
    if let Ok((is_endangered, left)) = reports.recv_timeout(2 * BRIEF) {
        assert!(!is_endangered && left > BRIEF, "{left:?}");
        guard.release().unwrap();
    } else {
        assert!(!guard.is_held(), "held, and not told safe");
    }
}

#[test]
fn writer_and_readers_are_renewed_beside_a_hung_node_and_told_of_loss() {
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
    wait_until_it_grants(&exclusive, &nodes[0]);
    let readers_there = |node| ask::<usize>(node, &["ZCARD", &wire_part(&key, "readers")]);
    eventually(LIMIT, "both are on every node", || {
        nodes.iter().all(|node| readers_there(node) == 2)
    });
    // The first lock is released, the second is lost.
    let [lost, released] = readers;
    released.release().unwrap();
    eventually(LIMIT, "the lock is lost", || {
        let forgetful = nodes[1..].iter();
        forgetful.for_each(|node| ask(node, &["FLUSHALL"]));
        lost.watch().wait_ended(BRIEF / 2) == WatchOutcome::Lost
    });
    eventually(LIMIT, "the event is reported", || {
        told.load(Ordering::SeqCst) > 0
    });
    assert!(lost.release().unwrap_err().is_lost());
    // A write lock too.
    let writer = locker.acquire_write(&key, &options).unwrap();
    eventually(LIMIT, "the lock is lost", || {
        let forgetful = nodes[1..].iter();
        forgetful.for_each(|node| ask(node, &["FLUSHALL"]));
        writer.watch().wait_ended(BRIEF / 2) == WatchOutcome::Lost
    });
    eventually(LIMIT, "the event is reported", || {
        told.load(Ordering::SeqCst) > 1
    });
    drop(writer);
    assert!(exclusive.nodes().shutdown(LIMIT));
    assert_eq!(told.load(Ordering::SeqCst), 2, "once each");
}

/// Returns one of a read-write lock's keys.
fn wire_part(key: &str, ending: &str) -> String {
    format!("{{{}}}:{ending}", wire(key))
}

#[test]
fn flushed_nodes_or_a_foreign_value_lose_the_lock_before_the_lease_ends() {
    let nodes = servers(3);
    let locker = connect(&nodes);
    for strangers in [true, false] {
        let key = unique_key("flushed");
        let (guard, told) = keep(&locker, &nodes, &key);
        // Repeated, because a renewal between the two nodes restores the key on the first.
        eventually(LIMIT, "the lock is lost", || {
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
fn shortened_ttl_is_repaired_by_the_next_renewal() {
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
        eventually(LIMIT, "the lock is renewed", || pttl(node, &key) > whole);
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
    // A foreign value stays, and the lock is held all the same.
    ask::<()>(&nodes[0], &["SET", &wire(&key), STRANGER]);
    assert_eq!(guard.watch().wait_ended(BRIEF), WatchOutcome::TimedOut);
    assert_eq!(token(&nodes[0], &key).as_deref(), Some(STRANGER));
    guard.release().unwrap();
}

// A holder that is stopped.

/// Returns the clock that all processes of a machine share, in ns.
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
    // The process is stopped somewhere in this loop.
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
fn holder_stopped_beyond_its_ttl_is_lost_at_its_first_check() {
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
    eventually(LIMIT, "the lock is held", || told.exists());
    assert!(locker.try_lock(&key, TTL).unwrap().is_none());
    kill(program.pid(), Signal::SIGSTOP).unwrap();
    // The next holder acquires the lock when the first lease has ended.
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
    assert!(0 < last_good && last_good < granted, "two holders");
    ours.check().unwrap();
    ours.release().unwrap();
}

// Messages.

/// Options under which only a message explains progress.
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
        eventually(LIMIT, "no subscription is left", || {
            subscribers(node, &key) == 0
        });
    }
}

#[test]
fn release_wakes_waiters_after_the_subscribed_node_died() {
    let start = || Server::options().append_always().start().unwrap();
    let nodes = [(); 3].map(|()| start());
    let key = unique_key("deaf");
    let holder = connect(&nodes);
    let waiter = RedisLocker::connect(sluggish(&nodes)).unwrap();
    let held = holder.lock(&key, TTL).unwrap();
    everywhere(&nodes, &key);
    thread::scope(|scope| {
        let waits = scope.spawn(|| waiter.lock(&key, TTL));
        eventually(LIMIT, "the waiter is subscribed", || {
            subscribers(&nodes[0], &key) == 1
        });
        nodes[0].kill();
        // The listener may try a hung node for `connect_timeout` before it tries the node that is
        // back.
        eventually(3 * LIMIT, "elsewhere", || subscribers(&nodes[1], &key) == 1);
        nodes[1].stop().unwrap();
        nodes[0].restart().unwrap();
        eventually(3 * LIMIT, "and back", || subscribers(&nodes[0], &key) == 1);
        wait_until_it_grants(&holder, &nodes[0]);
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
