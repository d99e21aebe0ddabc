//! Early warning over fake nodes (L5): endangered locks are told before they are lost, once per
//! danger, and told safe when a renewal succeeds again.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use crate::api::local_locker::LocalLocker;
use crate::api::locker::Locker;
use crate::api::options::LockOptions;
use crate::api::rw_locker::{RedisRwLocker, RwLocker};
use crate::api::semaphore::{RedisSemaphore, Semaphore};
use crate::api::watch::{LockWatch, WatchOutcome};
use crate::error::error::Error;
use crate::protocol::request::Op;
use crate::tests::engine::setup::healthy;
use crate::tests::fake_node::node::{FakeNode, Fault};
use crate::time::clock;

/// Renewed about every 800 ms; the lease then has 1.6 s left.
const TTL: Duration = Duration::from_millis(2_400);
const MARGIN: Duration = Duration::from_millis(800);
/// Longer than any test.
const LONG: Duration = Duration::from_secs(300);
/// The limit of waits that only a hang exceeds.
const LIMIT: Duration = Duration::from_secs(20);

/// Returns options whose callback sends whether the lock is endangered.
fn reporting(options: LockOptions) -> (LockOptions, Receiver<bool>) {
    let (sender, reports) = channel();
    let options = options.on_endangered(MARGIN, move |lock| {
        assert_eq!(lock.key(), "x");
        assert!(
            lock.remaining() <= MARGIN || !lock.is_endangered(),
            "{lock:?}"
        );
        _ = sender.send(lock.is_endangered());
    });
    (options, reports)
}

fn renewed() -> LockOptions {
    LockOptions::new(TTL).auto_renew(true)
}

fn fail_renewals(fakes: &[Arc<FakeNode>]) {
    fakes[..2]
        .iter()
        .for_each(|fake| fake.set_fault(Fault::Fails(Op::Extend)));
}

fn heal(fakes: &[Arc<FakeNode>]) {
    fakes.iter().for_each(|fake| fake.set_fault(Fault::None));
}

#[test]
fn renewed_lock_is_endangered_once_per_danger_and_safe_after_each() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let (options, reports) = reporting(renewed());
    let guard = locker.acquire("x", &options).unwrap();
    let (watch, late_watch) = (guard.watch(), guard.watch());
    assert!(!guard.is_endangered() && !watch.is_endangered());
    for _ in 0..2 {
        fail_renewals(&fakes);
        assert_eq!(watch.wait_ended(LIMIT), WatchOutcome::Endangered);
        assert!(guard.is_endangered() && guard.is_held(), "{guard:?}");
        heal(&fakes);
        assert_eq!(watch.wait_ended(LIMIT), WatchOutcome::Safe);
        assert!(!guard.is_endangered());
        let told = [reports.recv_timeout(LIMIT), reports.recv_timeout(LIMIT)];
        assert_eq!(told, [Ok(true), Ok(false)]);
    }
    let none = late_watch.wait_ended(Duration::ZERO);
    assert_eq!(none, WatchOutcome::TimedOut, "that danger is over");
    guard.release().unwrap();
    assert_eq!(watch.wait_ended(LIMIT), WatchOutcome::Released);
    assert!(reports.recv_timeout(TTL).is_err(), "told more than once");
}

#[test]
fn lock_whose_renewals_fail_is_endangered_before_it_is_lost() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let (options, reports) = reporting(renewed());
    let (sender, losses) = channel();
    let options = options.on_lost(move |_| _ = sender.send(()));
    let guard = locker.acquire("x", &options).unwrap();
    let watch = guard.watch();
    fakes[..2]
        .iter()
        .for_each(|fake| fake.set_fault(Fault::Down));
    assert_eq!(watch.wait_ended(LIMIT), WatchOutcome::Endangered);
    assert_eq!(reports.recv_timeout(LIMIT), Ok(true));
    assert!(losses.try_recv().is_err(), "told of the loss at once");
    assert_eq!(watch.wait_ended(LIMIT), WatchOutcome::Lost);
    losses.recv_timeout(LIMIT).unwrap();
    assert!(guard.is_endangered(), "a lost lock, too");
    assert!(reports.try_recv().is_err(), "a lost lock is not safe");
}

#[test]
fn lock_without_renewal_is_endangered_the_margin_before_its_end_and_safe_after_extend() {
    let fakes = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    let (options, reports) = reporting(LockOptions::new(TTL));
    let guard = locker.acquire("x", &options).unwrap();
    assert_eq!(guard.watch().wait_ended(LIMIT), WatchOutcome::Endangered);
    assert_eq!(reports.recv_timeout(LIMIT), Ok(true));
    guard.extend(10 * TTL).unwrap();
    assert_eq!(reports.recv_timeout(LIMIT), Ok(false));
    // A margin beyond the validity warns at once, and an extension is told long before the old end.
    let (sender, early) = channel();
    let at_once = LockOptions::new(LONG).on_endangered(LONG, move |lock| {
        _ = sender.send(lock.is_endangered());
    });
    let brief = locker.acquire("y", &at_once).unwrap();
    assert!(brief.is_endangered());
    assert_eq!(early.recv_timeout(LIMIT), Ok(true));
    let watch = brief.watch();
    assert_eq!(watch.wait_ended(LIMIT), WatchOutcome::Endangered);
    thread::scope(|scope| {
        let (start, waiting) = (clock::now(), scope.spawn(|| watch.wait_ended(LIMIT)));
        brief.extend(3 * LONG).unwrap();
        assert_eq!(waiting.join().unwrap(), WatchOutcome::Safe);
        assert!(clock::now() - start < LIMIT / 2, "woken by its limit");
    });
    assert_eq!(early.recv_timeout(LIMIT), Ok(false));
}

#[test]
fn locks_of_all_kinds_are_endangered_while_their_renewals_fail() {
    let fakes = FakeNode::fakes(3);
    let nodes = healthy(&fakes).nodes().clone();
    let rw = RedisRwLocker::new(&nodes);
    let semaphore = RedisSemaphore::new(&nodes, "x", 2).unwrap();
    let (options, reports) = reporting(renewed());
    let is_told = |watch: LockWatch| {
        fail_renewals(&fakes);
        assert_eq!(watch.wait_ended(LIMIT), WatchOutcome::Endangered);
        assert_eq!(reports.recv_timeout(LIMIT), Ok(true));
        heal(&fakes);
    };
    let writer = rw.acquire_write("x", &options).unwrap();
    is_told(writer.watch());
    drop(writer);
    let reader = rw.acquire_read("x", &options).unwrap();
    while reports.try_recv().is_ok() {} // the writer may have been renewed before its release
    is_told(reader.watch());
    drop(reader);
    let permit = semaphore.acquire(&options).unwrap();
    while reports.try_recv().is_ok() {}
    is_told(permit.watch());
}

#[test]
fn margin_over_half_of_a_renewed_ttl_is_invalid() {
    let fakes = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    let margin = TTL / 2 + Duration::from_millis(1);
    for renews in [true, false] {
        let options = LockOptions::new(TTL).auto_renew(renews);
        let options = options.on_endangered(margin, |_| ());
        for result in [
            locker.acquire("x", &options).map(drop),
            LocalLocker::new().acquire("x", &options).map(drop),
        ] {
            match result {
                Err(Error::InvalidConfig(text)) if renews => {
                    assert!(text.contains("1.201s") && text.contains("2.4s"), "{text}");
                }
                result => assert_eq!((renews, result), (false, Ok(()))),
            }
        }
    }
}

#[test]
fn local_lock_is_never_endangered() {
    let (options, reports) = reporting(renewed());
    let guard = LocalLocker::new().acquire("x", &options).unwrap();
    assert!(!guard.is_endangered() && !guard.watch().is_endangered());
    assert_eq!(
        guard.watch().wait_ended(Duration::ZERO),
        WatchOutcome::TimedOut
    );
    drop(guard);
    assert!(reports.try_recv().is_err());
}
