//! Notices over fake nodes: which holders check their lock at once, and which messages harm nobody.
//! All TTLs outlast the test, so only a notice makes a holder ask.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::api::locker::Locker;
use crate::api::options::LockOptions;
use crate::api::redis_locker::RedisLocker;
use crate::api::rw_locker::{RedisRwLocker, RwLocker};
use crate::api::semaphore::{RedisSemaphore, Semaphore};
use crate::api::watch::WatchOutcome;
use crate::config::builder::Config;
use crate::error::loss_reason::LossReason;
use crate::protocol::key::notice_channel;
use crate::protocol::kind::LeaseKind;
use crate::protocol::lease::{Lease, NEVER_EXPIRES_AFTER};
use crate::protocol::request::Op;
use crate::protocol::token::Token;
use crate::tests::engine::setup;
use crate::tests::engine::setup::{exclusive_key, healthy, slowly_retrying};
use crate::tests::fake_node::node::{FakeNode, Fault, connected_locker, eventually};
use crate::time::clock;

const LONG: Duration = Duration::from_secs(300);

/// Returns options whose callback counts the losses.
fn counted(options: LockOptions) -> (LockOptions, Arc<AtomicUsize>) {
    setup::counted(options, |lost| {
        assert_eq!(lost.reason(), LossReason::NotOurs);
    })
}

fn is_told(losses: &AtomicUsize) {
    eventually("the loss is told", || losses.load(Ordering::SeqCst) == 1);
}

/// Waits until the listener of `processes` processes receives notices.
fn listening(fakes: &[Arc<FakeNode>], processes: usize) {
    let channel = notice_channel("redguard:");
    eventually("notices are received", || {
        fakes[0].subscribers(&channel) == processes
    });
}

fn publish_notice(locker: &RedisLocker, name: &str) {
    let engine = locker.nodes().engine();
    engine.nodes.notify_holders(&exclusive_key(name).into());
}

#[test]
fn forced_release_is_told_to_its_holder_at_once() {
    for is_renewed in [true, false] {
        let fakes = FakeNode::fakes(3);
        let (holder, operator) = (healthy(&fakes), healthy(&fakes));
        let (options, losses) = counted(LockOptions::new(LONG).auto_renew(is_renewed));
        let guard = holder.acquire("x", &options).expect("free");
        listening(&fakes, 1);
        assert!(operator.force_release("x").expect("a quorum"));
        is_told(&losses);
        assert!(!guard.is_held());
        eventually("no entry is left", || {
            holder.nodes().engine().renewal.count() == 0
        });
    }
}

/// While a quorum has the token, a holder that checks would restore it.
#[test]
fn notice_of_a_forced_release_follows_the_replies_of_all_nodes() {
    let fakes = FakeNode::fakes(3);
    let patient = |config: Config| config.node_timeout(LONG / 10).connect_timeout(LONG / 10);
    let operator = connected_locker(&fakes, patient).expect("up");
    let notices = || {
        fakes
            .iter()
            .map(|fake| fake.count(Op::Notify))
            .sum::<usize>()
    };
    let late = fakes[2].delay(Op::ForceRelease);
    thread::scope(|scope| {
        let released = scope.spawn(|| operator.force_release("x").expect("a quorum"));
        late.arrived();
        eventually("a quorum has replied", || {
            fakes[..2]
                .iter()
                .all(|fake| fake.count(Op::ForceRelease) == 1)
        });
        assert_eq!(notices(), 0);
        late.go();
        assert!(!released.join().expect("no panic"));
    });
    eventually("all nodes publish it", || notices() == 3);
    for fake in &fakes {
        let ops = fake.ops();
        let at = |op| ops.iter().position(|served| *served == op);
        assert!(at(Op::ForceRelease) < at(Op::Notify), "{ops:?}");
    }
}

#[test]
fn process_with_a_listener_checks_locks_without_callbacks_too() {
    let fakes = FakeNode::fakes(3);
    let (holder, operator) = (healthy(&fakes), healthy(&fakes));
    let (options, losses) = counted(LockOptions::new(LONG));
    let other = holder.acquire("y", &options).expect("free");
    let guard = holder.lock("x", LONG).expect("free");
    listening(&fakes, 1);
    let watch = guard.watch();
    thread::scope(|scope| {
        let waits = scope.spawn(|| watch.wait_ended(LONG));
        assert!(operator.force_release("x").expect("a quorum"));
        let outcome = waits.join().expect("no panic");
        assert_eq!(outcome, WatchOutcome::Lost);
    });
    assert!(!guard.is_held() && other.is_held());
    assert_eq!(losses.load(Ordering::SeqCst), 0);
}

#[test]
fn listener_ends_with_the_last_callback() {
    let fakes = FakeNode::fakes(1);
    let holder = healthy(&fakes);
    let (options, _) = counted(LockOptions::new(LONG));
    let guards = ["x", "y"].map(|name| holder.acquire(name, &options).expect("free"));
    listening(&fakes, 1);
    drop(guards);
    listening(&fakes, 0);
    // It starts again with the next one.
    let _guard = holder.acquire("x", &options).expect("free");
    listening(&fakes, 1);
}

#[test]
fn notice_is_about_all_kinds_of_locks_of_its_name() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let (options, losses) = counted(LockOptions::new(LONG));
    let rw = RedisRwLocker::new(locker.nodes());
    let semaphore = RedisSemaphore::new(locker.nodes(), "x", 2).expect("a good name");
    let writer = rw.acquire_write("x", &options).expect("free");
    let permit = semaphore.acquire(&options).expect("free");
    let several = locker.acquire_all(&["w", "x"], &options).expect("free");
    let other = rw.acquire_read("z", &options).expect("free");
    listening(&fakes, 1);
    fakes.iter().for_each(|fake| fake.wipe());
    publish_notice(&locker, "x");
    eventually("three losses are told", || {
        losses.load(Ordering::SeqCst) == 3
    });
    assert!(!writer.is_held() && !permit.is_held() && !several.is_held());
    assert!(other.is_held(), "of another name");
}

#[test]
fn notice_does_not_change_a_lock_that_is_ours() {
    let fakes = FakeNode::fakes(3);
    let holder = healthy(&fakes);
    let (options, losses) = counted(LockOptions::new(LONG));
    let guard = holder.acquire("x", &options).expect("free");
    listening(&fakes, 1);
    let before = guard.remaining();
    for text in [
        "check redguard:x",
        "check x",
        "check redguard:",
        "check redguard:x:gate",
        "check redguard:other",
        "x",
        "",
    ] {
        fakes[0].publish_text(&notice_channel("redguard:"), text);
    }
    eventually("the lock is checked", || fakes[0].count(Op::Extend) == 1);
    eventually("the check ends", || {
        holder.nodes().engine().renewal.count() == 0
    });
    assert!(guard.is_held() && guard.remaining() <= before);
    assert_eq!(holder.nodes().stats().renewals, 0);
    guard.release().expect("ours");
    assert_eq!(losses.load(Ordering::SeqCst), 0);
}

#[test]
fn notice_during_a_renewal_checks_once_more() {
    let fakes = FakeNode::fakes(1);
    let (holder, operator) = (healthy(&fakes), healthy(&fakes));
    let (options, losses) = counted(LockOptions::new(LONG).auto_renew(true));
    let _guard = holder.acquire("x", &options).expect("free");
    listening(&fakes, 1);
    let engine = holder.nodes().engine();
    let late = fakes[0].delay(Op::Extend);
    publish_notice(&operator, "x");
    late.arrived();
    // The node serves the check, and the release after it.
    let leases = engine.lock_table.leases(&exclusive_key("x"));
    engine.renewal.check(&leases[0]).expect("a thread");
    fakes[0].set_fault(Fault::None);
    late.go();
    eventually("it is checked again", || fakes[0].count(Op::Extend) == 2);
    assert_eq!(losses.load(Ordering::SeqCst), 0);
}

#[test]
fn notice_during_an_extension_of_the_guard_is_checked_after_it() {
    let fakes = FakeNode::fakes(1);
    let patient = |config: Config| config.node_timeout(LONG / 10).connect_timeout(LONG / 10);
    let holder = connected_locker(&fakes, patient).expect("up");
    let guard = holder.lock("x", LONG).expect("free");
    let engine = holder.nodes().engine();
    let leases = engine.lock_table.leases(&exclusive_key("x"));
    let extension = leases[0].try_begin_extension().expect("none is in flight");
    engine.renewal.check(&leases[0]).expect("a thread");
    eventually("the check meets the extension", || {
        !engine.renewal.is_busy()
    });
    assert_eq!(engine.renewal.count(), 1, "it is still to be checked");
    drop(extension);
    assert!(guard.is_held());
}

#[test]
fn lock_that_no_node_has_is_not_checked() {
    let fakes = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    let local = Lease::new(exclusive_key("x"), Token::local(None), LeaseKind::Exclusive);
    let local = Arc::new(local);
    let end = clock::now() + NEVER_EXPIRES_AFTER;
    assert!(local.activate(end, clock::wall_offset()));
    let engine = locker.nodes().engine();
    engine.renewal.check(&local).expect("a thread");
    assert_eq!(engine.renewal.count(), 0);
}

#[test]
fn renewal_that_finds_the_token_of_another_holder_tells_it_once() {
    let fakes = FakeNode::fakes(3);
    let (holder, successor) = (healthy(&fakes), healthy(&fakes));
    let (options, losses) = counted(LockOptions::new(LONG));
    let guard = holder.acquire("x", &options).expect("free");
    listening(&fakes, 1);
    fakes[..2].iter().for_each(|fake| fake.wipe());
    // Renewed several times in the test.
    let renewed = LockOptions::new(Duration::from_millis(1_200)).auto_renew(true);
    let next = successor.acquire("x", &renewed).expect("two nodes lost it");
    is_told(&losses);
    assert!(!guard.is_held() && next.is_held());
    let before = fakes[0].count(Op::Extend);
    eventually("it is renewed", || fakes[0].count(Op::Extend) > before + 2);
    // The former holder finds a token that is not its own, too.
    assert!((1..=2).contains(&fakes[0].count(Op::Notify)));
}

/// The notice of a check reaches this process, too, and causes another check.
#[test]
fn checks_of_a_lease_that_find_another_token_publish_one_notice() {
    let fakes = FakeNode::fakes(3);
    let (holder, operator) = (healthy(&fakes), healthy(&fakes));
    let (options, losses) = counted(LockOptions::new(LONG));
    let guard = holder.acquire("x", &options).expect("free");
    eventually("it is on all nodes", || {
        fakes.iter().all(|fake| fake.token("x").is_some())
    });
    listening(&fakes, 1);
    fakes[2].wipe();
    fakes[2].seize("x", LONG);
    publish_notice(&operator, "x");
    let is_checked_twice = || fakes[0].count(Op::Extend) >= 2 && fakes[2].count(Op::Extend) >= 2;
    eventually("both notices cause a check", is_checked_twice);
    for _ in 0..20 {
        drop(holder.lock("y", LONG).expect("free"));
    }
    // That of the operator, and one of the holder.
    assert_eq!(fakes[0].count(Op::Notify), 2);
    assert!(guard.is_held() && losses.load(Ordering::SeqCst) == 0);
}

#[test]
fn forced_release_wakes_a_waiter_that_listens_on_a_node_without_the_key() {
    let fakes = FakeNode::fakes(3);
    let (holder, waiter) = (slowly_retrying(&fakes), slowly_retrying(&fakes));
    fakes[0].seize("x", LONG);
    let held = holder.lock("x", LONG).expect("two nodes are a quorum");
    fakes[0].wipe();
    thread::scope(|scope| {
        let waits = scope.spawn(|| waiter.lock("x", LONG));
        eventually("the waiter is subscribed", || fakes[0].subscribed("x") > 0);
        eventually("it has tried again, and undone that", || {
            fakes[2].count(Op::Acquire) >= 3 && fakes[0].token("x").is_none()
        });
        assert!(holder.force_release("x").expect("a quorum"));
        drop(waits.join().expect("no panic").expect("woken"));
    });
    drop(held);
}

#[test]
fn holder_without_the_right_to_subscribe_keeps_its_lock() {
    let fakes = FakeNode::fakes(1);
    fakes[0].set_fault(Fault::DeniesSubscribers);
    let holder = connected_locker(&fakes, |config| config).expect("up");
    let (options, losses) = counted(LockOptions::new(LONG));
    let guard = holder.acquire("x", &options).expect("free");
    let operator = connected_locker(&fakes, |config| config).expect("up");
    assert!(operator.force_release("x").expect("a quorum"));
    assert!(
        guard.check().is_ok(),
        "not told, as before the next renewal"
    );
    assert!(guard.release().is_err());
    assert_eq!(losses.load(Ordering::SeqCst), 0);
}

#[test]
fn lock_with_the_name_of_the_notice_channel_ends_no_notices() {
    let fakes = FakeNode::fakes(3);
    let (holder, operator) = (healthy(&fakes), healthy(&fakes));
    let (options, losses) = counted(LockOptions::new(LONG));
    let _guard = holder.acquire("x", &options).expect("free");
    listening(&fakes, 1);
    let name = "listener:notices";
    let held = operator.lock(name, LONG).expect("free");
    let brief = LockOptions::new(LONG).wait_for(Duration::from_millis(50));
    let waited = holder.acquire(name, &brief);
    assert!(waited.is_err_and(|error| error.is_contended()));
    eventually("no channel has a waiter", || {
        holder.nodes().engine().listener.count() == 0
    });
    drop(held);
    assert!(operator.force_release("x").expect("a quorum"));
    is_told(&losses);
}
