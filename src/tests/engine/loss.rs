//! Renewal and loss over fake nodes: when a lease is kept, when it ends, and which holders are
//! notified.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use crate::api::guard::LockGuard;
use crate::api::local_locker::LocalLocker;
use crate::api::locker::Locker;
use crate::api::nodes::Nodes;
use crate::api::options::LockOptions;
use crate::api::redis_locker::RedisLocker;
use crate::api::rw_locker::{RedisRwLocker, RwLocker};
use crate::api::watch::{LockWatch, WatchOutcome};
use crate::background::renewal::queue::RenewalResults;
use crate::background::renewal::service::RenewalService;
use crate::config::on_drop::OnDrop;
use crate::engine::core::Engine;
use crate::engine::params::{AcquireParams, Acquired, WaitLimit};
use crate::error::error::Error;
use crate::error::loss_reason::LossReason;
use crate::local::guard::LocalGuard;
use crate::protocol::kind::LockKind;
use crate::protocol::lease::{Lease, LeaseState};
use crate::protocol::request::Op;
use crate::tests::engine::setup;
use crate::tests::engine::setup::{exclusive_params, healthy};
use crate::tests::fake_node::node::{FakeNode, Fault, connected_locker, eventually, on_log_line};
use crate::time::clock;
use crate::transport::cancel::CancelToken;

/// Renewed about every 400 ms. A thread that is delayed by twice that time does not lose the lease.
const TTL: Duration = Duration::from_millis(1_200);
/// The TTL of locks that expire in the test and are not renewed.
const BRIEF: Duration = Duration::from_millis(400);
/// Renewed after about three seconds, so that the lease outlasts a delayed renewal.
const LONGER: Duration = Duration::from_secs(9);
const LONG: Duration = Duration::from_secs(300);
/// The limit of waits that only a hang exceeds.
const LIMIT: Duration = Duration::from_secs(20);

/// Returns a locker that accepts a short validity, so that a slow machine still acquires locks with
/// a short TTL.
fn with_short_validity(fakes: &[Arc<FakeNode>]) -> RedisLocker {
    connected_locker(fakes, |config| config.min_validity(0.0)).expect("a quorum is up")
}

fn renewed(ttl: Duration) -> LockOptions {
    LockOptions::new(ttl).auto_renew(true)
}

/// Returns options whose callback counts the notifications of a loss.
fn counted(options: LockOptions) -> (LockOptions, Arc<AtomicUsize>) {
    setup::counted(options, |lost| assert_eq!(lost.key(), "x"))
}

/// Returns the parameters of a renewed lock, for an acquire that returns its lease without a guard.
fn renewed_params(name: &str, ttl: Duration) -> AcquireParams {
    let mut params = exclusive_params(name, ttl);
    params.lease_options.auto_renew = true;
    params
}

const FOR_EVER: WaitLimit = WaitLimit {
    deadline: None,
    max_attempts: None,
    tells_holder: true,
};

fn renewals(fake: &FakeNode) -> usize {
    fake.count(Op::Extend)
}

fn renewing(nodes: &Nodes) -> usize {
    nodes.engine().renewal.count()
}

/// Counts the losses, and panics at each.
struct PanickingHandler(Arc<AtomicUsize>);

impl RenewalResults for PanickingHandler {
    fn handle_loss(&self, _: &Arc<Lease>, _: &str) {
        self.0.fetch_add(1, Ordering::SeqCst);
        panic!("as the test wants it");
    }

    fn handle_extension(&self, _: &Lease) {}
}

/// Waits to show that an event does not happen.
fn wait_for_absence() {
    thread::park_timeout(TTL / 2);
}

/// Waits until the renewals of all locks with the TTL `LONGER` are due.
fn until_all_are_due() {
    let overdue = clock::now() + LONGER * 3 / 8;
    eventually("they are due", || clock::now() > overdue);
}

#[test]
fn lock_is_renewed_until_its_release() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let (options, notified) = counted(renewed(TTL));
    let guard = locker.acquire("x", &options).expect("free");
    let rival = healthy(&fakes);
    eventually("it is held three times its TTL", || {
        assert!(guard.is_held());
        assert!(rival.try_lock("x", TTL).expect("no error").is_none());
        renewals(&fakes[0]) >= 10
    });
    guard.release().expect("ours");
    assert_eq!(renewing(locker.nodes()), 0);
    // Each node has served the requests that were in flight.
    let after: Vec<usize> = fakes.iter().map(|fake| renewals(fake)).collect();
    wait_for_absence();
    wait_for_absence();
    let later: Vec<usize> = fakes.iter().map(|fake| renewals(fake)).collect();
    assert!(after.iter().zip(&later).all(|(a, b)| b - a <= 1));
    assert!(fakes.iter().all(|fake| fake.token("x").is_none()));
    assert_eq!(notified.load(Ordering::SeqCst), 0, "released, not lost");
}

#[test]
fn readers_and_writers_are_renewed_too() {
    let fakes = FakeNode::fakes(3);
    let locker = RedisRwLocker::new(healthy(&fakes).nodes());
    let writer = locker.acquire_write("x", &renewed(TTL)).expect("free");
    eventually("the writer is renewed", || renewals(&fakes[0]) >= 3);
    assert!(writer.is_held());
    let reader = writer.downgrade().expect("ours");
    let before = renewals(&fakes[0]);
    eventually("and goes on as a reader", || {
        renewals(&fakes[0]) >= before + 3
    });
    assert!(reader.is_held());
    let other = locker
        .acquire_read("x", &renewed(TTL))
        .expect("a second reader");
    drop(reader);
    let before = renewals(&fakes[0]);
    eventually("each has its own", || renewals(&fakes[0]) >= before + 3);
    other.release().expect("ours");
    assert_eq!(renewing(locker.nodes()), 0);
}

#[test]
fn lock_with_stopped_renewal_is_held_until_its_expiry() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let guard = locker.acquire("x", &renewed(TTL)).expect("free");
    eventually("it is renewed", || renewals(&fakes[0]) >= 2);
    guard.stop_renewal();
    guard.stop_renewal();
    assert_eq!(renewing(locker.nodes()), 0);
    assert_eq!(guard.watch().wait_ended(LIMIT), WatchOutcome::Lost);
    assert!(guard.extend(TTL).expect_err("lost").is_lost());
    guard.stop_renewal();
    assert!(locker.lock("x", TTL).is_ok());
}

#[test]
fn max_renewal_ends_the_renewal_and_the_lease_expires() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let start = clock::now();
    let (options, notified) = counted(renewed(TTL).max_renewal(2 * TTL));
    let guard = locker.acquire("x", &options).expect("free");
    assert_eq!(guard.watch().wait_ended(LIMIT), WatchOutcome::Lost);
    assert!(clock::now() - start > 2 * TTL, "not before its time");
    eventually("it was renewed before", || renewals(&fakes[0]) >= 2);
    eventually("the loss is notified", || {
        notified.load(Ordering::SeqCst) == 1
    });
    // Without a renewal the lease ends with its first TTL.
    let options = renewed(TTL).max_renewal(Duration::ZERO);
    let guard = locker.acquire("y", &options).expect("free");
    assert_eq!(guard.watch().wait_ended(LIMIT), WatchOutcome::Lost);
}

#[test]
fn failing_minority_does_not_stop_the_renewal_and_gets_the_key_restored() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let (options, notified) = counted(renewed(TTL));
    let guard = locker.acquire("x", &options).expect("free");
    for fault in [Fault::Down, Fault::Fails(Op::Extend)] {
        fakes[0].set_fault(fault);
        fakes[0].wipe();
        let before = renewals(&fakes[1]);
        eventually("renewed by the others", || {
            renewals(&fakes[1]) >= before + 3
        });
        assert!(guard.is_held());
        // A renewal that was in flight when the fault began may still be served once.
        eventually("nothing is put back there", || {
            fakes[0].token("x").is_none()
        });
        fakes[0].set_fault(Fault::None);
        eventually("the key is back", || fakes[0].token("x").is_some());
    }
    guard.release().expect("ours");
    assert_eq!(notified.load(Ordering::SeqCst), 0);
}

#[test]
fn failed_renewal_is_repeated_before_the_lease_ends() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let (options, notified) = counted(renewed(3 * TTL));
    let guard = locker.acquire("x", &options).expect("free");
    for fake in &fakes {
        fake.set_fault(Fault::FailsAfterApplying(Op::Extend));
    }
    // The node extends the lease, but its reply fails.
    eventually("tried again and again", || renewals(&fakes[0]) >= 5);
    assert!(guard.is_held(), "an error is no loss");
    let seen = guard.remaining();
    for fake in &fakes {
        fake.set_fault(Fault::None);
    }
    eventually("extended again", || guard.remaining() > seen);
    guard.release().expect("ours");
    assert_eq!(notified.load(Ordering::SeqCst), 0);
}

#[test]
fn errors_until_the_lease_ends_are_a_loss_which_is_told_once() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let (options, notified) = counted(renewed(TTL));
    let guard = locker.acquire("x", &options).expect("free");
    for fake in &fakes[..2] {
        fake.set_fault(Fault::Fails(Op::Extend));
    }
    assert_eq!(guard.watch().wait_ended(LIMIT), WatchOutcome::Lost);
    eventually("the loss is notified", || {
        notified.load(Ordering::SeqCst) == 1
    });
    for fake in &fakes {
        fake.set_fault(Fault::None);
    }
    let before = renewals(&fakes[2]);
    wait_for_absence();
    wait_for_absence();
    // One renewal may have been in flight.
    assert!(renewals(&fakes[2]) <= before + 1, "never renewed again");
    assert_eq!(renewing(locker.nodes()), 0);
    assert!(!guard.is_held() && guard.remaining().is_zero());
    assert!(guard.release().expect_err("lost").is_lost());
    assert_eq!(notified.load(Ordering::SeqCst), 1);
    eventually("the survivors' keys are released", || {
        fakes.iter().all(|fake| fake.token("x").is_none())
    });
}

#[test]
fn lease_refused_by_a_quorum_is_lost_at_the_next_renewal() {
    for strangers in [true, false] {
        let fakes = FakeNode::fakes(3);
        let locker = healthy(&fakes);
        let (options, notified) = counted(renewed(5 * TTL));
        let guard = locker.acquire("x", &options).expect("free");
        let expiry = clock::now() + guard.remaining();
        eventually("all have it", || {
            fakes.iter().all(|fake| fake.token("x").is_some())
        });
        for fake in &fakes[1..] {
            fake.wipe();
            if strangers {
                fake.seize("x", LONG);
            }
        }
        assert_eq!(guard.watch().wait_ended(LIMIT), WatchOutcome::Lost);
        assert!(clock::now() < expiry, "long before its lease ends");
        eventually("the loss is notified", || {
            notified.load(Ordering::SeqCst) == 1
        });
        eventually("released where it was ours", || {
            fakes[0].token("x").is_none()
        });
        assert_eq!(fakes[1].token("x").is_some(), strangers, "left alone");
        assert!(guard.check().expect_err("lost").is_lost());
    }
}

#[test]
fn expiry_is_notified_without_renewal_or_check() {
    let fakes = FakeNode::fakes(3);
    let locker = with_short_validity(&fakes);
    let (options, notified) = counted(LockOptions::new(BRIEF));
    let guard = locker.acquire("x", &options).expect("free");
    eventually("the loss is notified", || {
        notified.load(Ordering::SeqCst) == 1
    });
    // A late subscriber is notified immediately, and so is each further one.
    for _ in 0..2 {
        assert_eq!(guard.watch().wait_ended(Duration::ZERO), WatchOutcome::Lost);
        assert_eq!(guard.watch().loss_reason(), Some(LossReason::Expired));
    }
    assert!(matches!(guard.release(), Err(Error::LockLost { .. })));
    assert_eq!(notified.load(Ordering::SeqCst), 1);
}

#[test]
fn extension_postpones_the_notification() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let (options, notified) = counted(LockOptions::new(TTL));
    let guard = locker.acquire("x", &options).expect("free");
    guard.extend(LONG).expect("ours");
    thread::park_timeout(TTL);
    wait_for_absence();
    assert_eq!(notified.load(Ordering::SeqCst), 0);
    assert_eq!(
        guard.watch().wait_ended(Duration::ZERO),
        WatchOutcome::TimedOut
    );
    // A reply reports the loss long before the expiry.
    for fake in &fakes {
        fake.wipe();
    }
    assert!(guard.extend(LONG).expect_err("gone").is_lost());
    eventually("the loss is notified", || {
        notified.load(Ordering::SeqCst) == 1
    });
}

#[test]
fn watch_reports_a_release_and_a_drop() {
    let fakes = FakeNode::fakes(3);
    let locker = connected_locker(&fakes, |config| config.on_drop(OnDrop::Background)).expect("up");
    let local = LocalLocker::new();
    let lockers: [&dyn Locker; 2] = [&locker, &local];
    for locker in lockers {
        for by_drop in [true, false] {
            let guard = locker.lock("x", LONG).expect("free");
            let watch = guard.watch();
            assert!(watch.is_held() && watch.remaining() > LONG / 2);
            assert_eq!(watch.wait_ended(Duration::ZERO), WatchOutcome::TimedOut);
            let (begun, waits) = mpsc::channel();
            let monitor = watch.clone();
            thread::scope(|scope| {
                let monitor = scope.spawn(move || {
                    begun.send(()).expect("the test waits");
                    monitor.wait_ended(Duration::MAX)
                });
                waits.recv().expect("it has begun");
                match by_drop {
                    true => drop(guard),
                    false => guard.release().expect("ours"),
                }
                assert_eq!(monitor.join().expect("no panic"), WatchOutcome::Released);
            });
            assert_eq!(watch.wait_ended(LIMIT), WatchOutcome::Released);
            assert!(!watch.is_held() && watch.remaining().is_zero());
        }
    }
}

#[test]
fn a_release_beside_a_renewal_leaves_nothing_and_tells_nothing() {
    for _ in 0..5 {
        let fakes = FakeNode::fakes(3);
        let locker = healthy(&fakes);
        let (options, notified) = counted(renewed(TTL));
        let guard = locker.acquire("x", &options).expect("free");
        let watch = guard.watch();
        let late: Vec<_> = fakes.iter().map(|f| f.delay(Op::Extend)).collect();
        late.iter().for_each(|late| late.arrived());
        thread::scope(|scope| {
            let released = scope.spawn(|| guard.release());
            // The renewal is on every node when the release begins.
            assert_eq!(watch.wait_ended(LIMIT), WatchOutcome::Released);
            late.iter().for_each(|late| late.go());
            released.join().expect("no panic").expect("ours");
        });
        eventually("no key is left", || {
            fakes.iter().all(|fake| fake.token("x").is_none())
        });
        assert_eq!(renewing(locker.nodes()), 0);
        assert_eq!(notified.load(Ordering::SeqCst), 0);
    }
}

fn on_nodes(engine: &Engine, params: &AcquireParams) -> (Arc<Lease>, LocalGuard) {
    match engine.acquire(params, FOR_EVER).expect("free") {
        Acquired::Quorum(lease, pass) => (lease, pass),
        Acquired::Local(_) => panic!("a quorum is up"),
    }
}

#[test]
fn panic_in_a_loss_handler_ends_no_other_renewal() {
    let fakes = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    let engine = locker.nodes().engine();
    let mut plain = ["x", "y"].map(|name| renewed_params(name, LONGER));
    plain
        .iter_mut()
        .for_each(|params| params.lease_options.auto_renew = false);
    let [(lost, _slot), (kept, _other)] = plain.each_ref().map(|params| on_nodes(engine, params));
    let panics = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&panics);
    let renewal = RenewalService::new(&engine.nodes, LIMIT, Arc::new(PanickingHandler(count)));
    fakes[0].seize("x", LONG);
    for (lease, params) in [&lost, &kept].into_iter().zip(&plain) {
        renewal.register(lease, params.ttl, None).expect("a thread");
    }
    let served = || fakes[0].extensions(&kept.token().text());
    eventually("the loss is notified", || {
        panics.load(Ordering::SeqCst) == 1
    });
    let before = served();
    eventually("the other is renewed", || served() > before);
    assert!(matches!(
        kept.expire_if_due(clock::now()),
        LeaseState::Held(_)
    ));
    assert_eq!((renewal.count(), panics.load(Ordering::SeqCst)), (1, 1));
    renewal.stop();
    assert!(renewal.join_until(clock::now() + LIMIT));
}

#[test]
fn drop_with_a_panicking_logger_releases_and_does_not_panic() {
    let fakes = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    let failures = || locker.nodes().drop_failures();
    let drop_it = |guard: LockGuard| {
        on_log_line(|_| panic!("as the test wants it"));
        drop(guard);
        on_log_line(|_| {});
    };
    drop_it(locker.lock("x", LONG).expect("free"));
    assert_eq!(failures(), 0);
    eventually("it is free", || fakes[0].token("x").is_none());
    // A release that fails is counted once.
    let guard = locker.lock("x", LONG).expect("free");
    fakes[0].wipe();
    drop_it(guard);
    assert_eq!(failures(), 1);
    // The loss is logged last: nothing else is left to do when the logger panics.
    let guard = locker.lock("x", BRIEF).expect("free");
    let end = clock::now() + BRIEF;
    eventually("it has expired", || clock::now() > end);
    drop_it(guard);
    assert_eq!(failures(), 2);
}

#[test]
fn renewal_and_extension_exclude_each_other() {
    let fakes = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    let engine = locker.nodes().engine();
    let (lease, _pass) = on_nodes(engine, &renewed_params("x", LONGER));
    // A due renewal waits for an extension in progress, but its thread does not block.
    let turn = lease.lock_extension();
    let second = locker.acquire("y", &renewed(TTL)).expect("free");
    until_all_are_due();
    let before = renewals(&fakes[0]);
    eventually("others are renewed", || renewals(&fakes[0]) >= before + 3);
    let served = || fakes[0].extensions(&lease.token().text());
    assert_eq!(served(), 0);
    drop(second);
    let late = fakes[0].delay(Op::Extend);
    drop(turn);
    // An extension waits for a renewal in progress.
    late.arrived();
    assert!(
        lease.try_begin_extension().is_none(),
        "a renewal is on its way"
    );
    fakes[0].set_fault(Fault::None);
    late.go();
    eventually("now it is", || served() > 0);
    engine.stop_renewal(&lease);
}

#[test]
fn renewal_reply_after_the_expiry_does_not_revive_the_lease() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let (options, notified) = counted(renewed(TTL));
    let guard = locker.acquire("x", &options).expect("free");
    eventually("all have it", || {
        fakes.iter().all(|fake| fake.token("x").is_some())
    });
    let late = [&fakes[0], &fakes[1]].map(|fake| fake.delay(Op::Extend));
    late.iter().for_each(|late| late.arrived());
    assert_eq!(guard.watch().wait_ended(LIMIT), WatchOutcome::Lost);
    // The clocks of these nodes are so slow that they still store the token and confirm the
    // extension.
    let token = fakes[0].acquire_tokens().remove(0);
    for fake in &fakes[..2] {
        fake.modify("x", LockKind::Exclusive, |stored| {
            stored.owner = Some((token.clone(), clock::now() + LONG));
        });
    }
    fakes.iter().for_each(|fake| fake.set_fault(Fault::None));
    late.iter().for_each(|late| late.go());
    eventually("they have extended it", || {
        fakes[..2].iter().all(|fake| fake.extensions(&token) == 1)
    });
    eventually("it is released all the same", || {
        assert!(!guard.is_held(), "revived");
        fakes.iter().all(|fake| fake.token("x").is_none())
    });
    eventually("the loss is notified", || {
        notified.load(Ordering::SeqCst) == 1
    });
    let end = clock::now() + TTL / 2;
    eventually("a while has passed", || {
        assert!(!guard.is_held(), "revived");
        clock::now() > end
    });
    assert_eq!(guard.watch().wait_ended(Duration::ZERO), WatchOutcome::Lost);
    assert!(!guard.is_held() && guard.remaining().is_zero());
    assert_eq!(renewing(locker.nodes()), 0);
    assert!(matches!(guard.release(), Err(Error::LockLost { .. })));
    assert_eq!(notified.load(Ordering::SeqCst), 1, "once");
}

#[test]
fn cancelled_acquire_is_not_renewed_and_a_held_lock_still_is() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    // Cancelled during the round that would have granted the lock.
    let token = CancelToken::new();
    let (options, notified) = counted(renewed(TTL).cancel_on(&token));
    let late = [&fakes[1], &fakes[2]].map(|fake| fake.delay(Op::Acquire));
    thread::scope(|scope| {
        let waits = scope.spawn(|| locker.acquire("x", &options).err());
        late.iter().for_each(|late| late.arrived());
        token.cancel();
        assert_eq!(waits.join().expect("no panic"), Some(Error::Cancelled));
    });
    fakes.iter().for_each(|fake| fake.set_fault(Fault::None));
    late.iter().for_each(|late| late.go());
    assert_eq!(renewing(locker.nodes()), 0);
    eventually("what was granted late is undone", || {
        fakes.iter().all(|fake| fake.count(Op::Release) == 1)
    });
    // Cancelled while a renewal is on every node.
    let token = CancelToken::new();
    let (options, second) = counted(renewed(TTL).cancel_on(&token));
    let guard = locker.acquire("x", &options).expect("free");
    let late: Vec<_> = fakes.iter().map(|f| f.delay(Op::Extend)).collect();
    late.iter().for_each(|late| late.arrived());
    token.cancel();
    fakes.iter().for_each(|fake| fake.set_fault(Fault::None));
    late.iter().for_each(|late| late.go());
    eventually("it goes on", || renewals(&fakes[0]) >= 4);
    assert!(guard.is_held());
    guard.release().expect("ours");
    let notified = [notified, second].map(|notified| notified.load(Ordering::SeqCst));
    assert_eq!(notified, [0, 0], "nothing was lost");
}

#[test]
fn at_most_max_in_flight_renewals_are_in_flight() {
    const MANY: usize = 300;
    let fakes = FakeNode::fakes(1);
    let locker = connected_locker(&fakes, |config| {
        config.node_timeout(LIMIT).connect_timeout(LIMIT)
    });
    let locker = locker.expect("up");
    let engine = locker.nodes().engine();
    let held: Vec<_> = (0..MANY)
        .map(|n| on_nodes(engine, &renewed_params(&format!("k{n}"), LONGER)))
        .collect();
    let late = fakes[0].delay(Op::Extend);
    until_all_are_due();
    // A lease has at most one extension in progress.
    let open = || {
        let open = held.iter().filter(|(lease, _)| {
            let turn = lease.try_begin_extension();
            turn.is_none()
        });
        open.count()
    };
    eventually("as many as may be", || open() >= 256);
    wait_for_absence();
    assert_eq!(open(), 256);
    // The other renewals follow as soon as the limit permits.
    fakes[0].set_fault(Fault::None);
    late.go(); // only the first of a batch has been accepted
    eventually("all are renewed", || {
        let served = |lease: &Arc<Lease>| fakes[0].extensions(&lease.token().text()) > 0;
        held.iter().all(|(lease, _)| served(lease))
    });
    for (lease, pass) in &held {
        assert!(matches!(
            lease.expire_if_due(clock::now()),
            LeaseState::Held(_)
        ));
        engine
            .release(lease, pass, OnDrop::Background)
            .expect("ours");
    }
}

#[test]
fn many_leases_are_renewed_together_and_none_is_lost() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let notified = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&notified);
    let options = renewed(4 * TTL).on_lost(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
    });
    let guards: Vec<_> = (0..1000)
        .map(|n| locker.acquire(&format!("k{n}"), &options).expect("free"))
        .collect();
    assert_eq!(renewing(locker.nodes()), 1000);
    eventually("each is renewed twice", || {
        wait_for_absence();
        renewals(&fakes[0]) >= 2000
    });
    assert!(guards.iter().all(|guard| guard.is_held()));
    drop(guards);
    assert_eq!(renewing(locker.nodes()), 0);
    assert_eq!(notified.load(Ordering::SeqCst), 0);
}

#[test]
fn pairs_of_many_threads_leave_no_renewal_registered() {
    const THREADS: usize = 16;
    const PAIRS: usize = 2_000;
    let fakes = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    let end = clock::now() + Duration::from_millis(700);
    thread::scope(|scope| {
        for n in 0..THREADS {
            let locker = &locker;
            scope.spawn(move || {
                // Two threads share a key.
                let key = (n / 2).to_string();
                for _ in 0..PAIRS {
                    let guard = locker.acquire(&key, &renewed(LONG)).expect("free soon");
                    guard.release().expect("ours");
                    if clock::now() > end {
                        break;
                    }
                }
            });
        }
    });
    assert_eq!(renewing(locker.nodes()), 0);
}

#[test]
fn lock_is_not_held_while_its_loss_is_reported() {
    let fakes = FakeNode::fakes(3);
    let locker = with_short_validity(&fakes);
    let (sender, watches) = mpsc::channel::<LockWatch>();
    let watches = parking_lot::Mutex::new(watches);
    let (options, notified) = setup::counted(LockOptions::new(BRIEF), move |lost| {
        let watch = watches.lock().recv_timeout(LIMIT).expect("a watch");
        assert!(!watch.is_held() && watch.remaining().is_zero());
        assert_eq!(watch.loss_reason(), Some(lost.reason()));
    });
    let guard = locker.acquire("x", &options).expect("free");
    sender.send(guard.watch()).expect("the callback waits");
    // A panic of the callback is caught, so that it would count nothing.
    eventually("it is reported", || notified.load(Ordering::SeqCst) == 1);
}

#[test]
fn callback_may_block_panic_or_drop_the_last_handle() {
    let fakes = FakeNode::fakes(3);
    let locker = with_short_validity(&fakes);
    let (go, wait) = mpsc::channel::<()>();
    let (begun, begins) = mpsc::channel::<()>();
    let owned = parking_lot::Mutex::new((begun, wait));
    let slow = LockOptions::new(BRIEF).on_lost(move |_| {
        let owned = owned.lock();
        let _ = owned.0.send(());
        let _ = owned.1.recv();
    });
    let _slow = locker.acquire("slow", &slow).expect("free");
    let second = locker.acquire("second", &renewed(TTL)).expect("free");
    begins.recv_timeout(LIMIT).expect("the loss is notified");
    let before = renewals(&fakes[0]);
    eventually("others are renewed", || renewals(&fakes[0]) >= before + 3);
    second.check().expect("ours");
    let panics = LockOptions::new(BRIEF).on_lost(|_| panic!("as the test wants it"));
    let panics = locker.acquire("panics", &panics).expect("free");
    let (options, notified) = counted(LockOptions::new(BRIEF));
    let last = locker.acquire("x", &options).expect("free");
    assert_eq!(last.watch().wait_ended(LIMIT), WatchOutcome::Lost);
    wait_for_absence();
    assert_eq!(notified.load(Ordering::SeqCst), 0, "behind the slow one");
    drop(go);
    eventually("after all others", || notified.load(Ordering::SeqCst) == 1);
    drop((last, panics, second, _slow));

    let (gone, wait) = mpsc::channel::<()>();
    let (ended, seen) = mpsc::channel();
    let owned = parking_lot::Mutex::new((wait, Some(locker.clone())));
    let drops = LockOptions::new(BRIEF).on_lost(move |_| {
        let mut owned = owned.lock();
        let _ = owned.0.recv();
        owned.1 = None;
        let _ = ended.send(());
    });
    let guard = locker.acquire("y", &drops).expect("free");
    assert_eq!(guard.watch().wait_ended(LIMIT), WatchOutcome::Lost);
    drop((guard, locker));
    drop(gone);
    seen.recv_timeout(LIMIT).expect("no dead-lock");
}

#[test]
fn shutdown_notifies_the_loss_of_held_leases() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let (options, notified) = counted(renewed(LONG));
    let guard = locker.acquire("x", &options).expect("free");
    let watch = guard.watch();
    eventually("all have it", || {
        fakes.iter().all(|fake| fake.token("x").is_some())
    });
    assert!(!locker.nodes().shutdown(Duration::ZERO));
    assert_eq!(watch.wait_ended(Duration::ZERO), WatchOutcome::Lost);
    assert_eq!(notified.load(Ordering::SeqCst), 1);
    assert!(guard.release().is_err());
    assert!(fakes.iter().all(|fake| fake.token("x").is_some()));
}

#[test]
fn after_a_suspend_only_the_nodes_know() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let guard = locker.lock("x", LONG).expect("free");
    let watch = guard.watch();
    guard.check().expect("ours");
    assert_eq!(renewals(&fakes[0]), 0, "no node was asked");
    clock::suspend(Duration::from_secs(60));
    assert!(!guard.is_held() && guard.remaining().is_zero());
    assert!(!watch.is_held() && watch.remaining().is_zero());
    // An unknown result is not a loss.
    assert_eq!(watch.wait_ended(Duration::ZERO), WatchOutcome::TimedOut);
    guard.check().expect("the nodes have it still");
    assert!(guard.is_held() && guard.remaining() > LONG / 2);
    guard.check().expect("ours");
    eventually("they were asked", || {
        fakes.iter().all(|fake| renewals(fake) == 1)
    });

    // Too few nodes reply, so the state is unknown.
    clock::suspend(Duration::from_secs(60));
    for fake in &fakes[..2] {
        fake.set_fault(Fault::Fails(Op::Extend));
    }
    let unknown = guard.check().expect_err("not known");
    assert!(unknown.is_unavailable(), "{unknown:?}");
    assert!(!guard.is_held());
    for fake in &fakes[..2] {
        fake.set_fault(Fault::None);
    }
    eventually("an extension helps too", || {
        guard.extend(2 * LONG).is_ok() && guard.is_held()
    });

    // The clocks of the nodes continued, and another owner has acquired the lock.
    clock::suspend(Duration::from_secs(600));
    for fake in &fakes {
        fake.modify("x", LockKind::Exclusive, |stored| stored.owner = None);
        fake.seize("x", LONG);
    }
    assert!(guard.check().expect_err("theirs").is_lost());
    assert_eq!(watch.wait_ended(Duration::ZERO), WatchOutcome::Lost);

    // The lease of a local lock does not expire.
    let local = LocalLocker::new().lock("x", LONG).expect("free");
    clock::suspend(Duration::from_secs(600));
    assert!(local.is_held() && local.check().is_ok() && local.watch().is_held());
}

#[test]
fn replies_from_before_a_suspend_confirm_nothing() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let guard = locker.lock("x", LONG).expect("free");
    // The computer is suspended once, between the replies of the nodes and the result.
    let suspend_once = || {
        let mut is_due = true;
        on_log_line(move |line| {
            if is_due && line.contains("Granted") {
                is_due = false;
                clock::suspend(Duration::from_secs(600));
            }
        });
    };
    let asked = || fakes.iter().map(|fake| renewals(fake)).min();
    for (calls, extends) in [true, false, true].into_iter().enumerate() {
        suspend_once();
        match extends {
            // Shorter than the lease, so that it confirms the lease for no longer.
            true => guard.extend(LONG / 2).expect("the nodes have it still"),
            false => {
                clock::suspend(Duration::from_secs(600));
                guard.check().expect("the nodes have it still");
                assert!(guard.is_held(), "confirmed after the suspend");
            }
        }
        eventually("all were asked twice", || asked() == Some(2 * (calls + 1)));
    }

    // The clocks of the nodes continued.
    let mut fakes_left = fakes.clone();
    on_log_line(move |line| {
        if line.contains("Granted") {
            clock::suspend(Duration::from_secs(600));
            fakes_left.drain(..).for_each(|fake| fake.free("x"));
        }
    });
    assert!(guard.extend(LONG).expect_err("ended").is_lost());
    on_log_line(|_| {});
}
