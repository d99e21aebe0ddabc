//! Renewal and loss over fake nodes: what keeps a lease, what ends it, and who is told.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use crate::api::locker::{LocalLocker, Locker, RedisLocker};
use crate::api::nodes::Nodes;
use crate::api::options::LockOptions;
use crate::api::rw_locker::{RedisRwLocker, RwLocker};
use crate::api::watch::WatchOutcome;
use crate::background::renewal::service::RenewalService;
use crate::config::on_drop::OnDrop;
use crate::engine::core::Engine;
use crate::engine::params::{AcquireParams, Acquired, LeaseOptions, WaitLimit};
use crate::error::{Error, LossReason};
use crate::local::guard::LocalGuard;
use crate::protocol::key::Key;
use crate::protocol::kind::{LeaseKind, LockKind};
use crate::protocol::lease::{Lease, LeaseState};
use crate::protocol::request::Op;
use crate::protocol::ttl::Ttl;
use crate::tests::fake_node::node::{FakeNode, Fault, connected_locker, eventually, on_log_line};
use crate::time::clock;
use crate::transport::cancel::CancelToken;

/// Renewed every 400 ms or so: a thread that is held up for twice as long loses nothing yet.
const TTL: Duration = Duration::from_millis(1_200);
/// For locks whose end is waited for, and which nobody renews.
const BRIEF: Duration = Duration::from_millis(400);
/// Renewed after three seconds or so: it is held for long while that is held up.
const LONGER: Duration = Duration::from_secs(9);
const LONG: Duration = Duration::from_secs(300);
/// Wide: only a hang takes this long.
const LIMIT: Duration = Duration::from_secs(20);

fn healthy(fakes: &[Arc<FakeNode>]) -> RedisLocker {
    connected_locker(fakes, |config| config).expect("a quorum is up")
}

/// Lets a lock that is to end soon be taken however slowly.
fn lax(fakes: &[Arc<FakeNode>]) -> RedisLocker {
    connected_locker(fakes, |config| config.min_validity(0.0)).expect("a quorum is up")
}

fn renewed(ttl: Duration) -> LockOptions {
    LockOptions::new(ttl).auto_renew(true)
}

/// Options that count how often the loss was told.
fn counted(options: LockOptions) -> (LockOptions, Arc<AtomicUsize>) {
    let told = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&told);
    let options = options.on_lost(move |lost| {
        assert_eq!(lost.key(), "x");
        count.fetch_add(1, Ordering::SeqCst);
    });
    (options, told)
}

/// For who wants the lease itself, and no guard around it.
fn wish(name: &str, ttl: Duration) -> AcquireParams {
    AcquireParams {
        keys: Key::parse("redguard:", name, LockKind::Exclusive)
            .expect("good")
            .into(),
        kind: LeaseKind::Exclusive,
        ttl: Ttl::parse(ttl, 0.5).expect("good"),
        fenced: false,
        cancel: None,
        lease_options: LeaseOptions {
            auto_renew: true,
            ..LeaseOptions::default()
        },
    }
}

const FOR_EVER: WaitLimit = WaitLimit {
    deadline: None,
    max_attempts: None,
};

fn renewals(fake: &FakeNode) -> usize {
    fake.count(Op::Extend)
}

fn renewing(nodes: &Nodes) -> usize {
    nodes.engine().renewal.count()
}

/// Time for what must not happen.
fn a_while() {
    thread::park_timeout(TTL / 2);
}

/// All that were taken by now, with `LONGER` as their TTL.
fn until_all_are_due() {
    let overdue = clock::now() + LONGER * 3 / 8;
    eventually("they are due", || clock::now() > overdue);
}

#[test]
fn a_lock_is_renewed_until_it_is_released() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let (options, told) = counted(renewed(TTL));
    let guard = locker.acquire("x", &options).expect("free");
    let rival = healthy(&fakes);
    eventually("it is held three times its TTL", || {
        assert!(guard.is_held());
        assert!(rival.try_lock("x", TTL).expect("no error").is_none());
        renewals(&fakes[0]) >= 10
    });
    guard.release().expect("ours");
    assert_eq!(renewing(locker.nodes()), 0);
    // Each node has served what was on its way.
    let after: Vec<usize> = fakes.iter().map(|fake| renewals(fake)).collect();
    a_while();
    a_while();
    let later: Vec<usize> = fakes.iter().map(|fake| renewals(fake)).collect();
    assert!(after.iter().zip(&later).all(|(a, b)| b - a <= 1));
    assert!(fakes.iter().all(|fake| fake.token("x").is_none()));
    assert_eq!(told.load(Ordering::SeqCst), 0, "released, not lost");
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
    let other = locker.acquire_read("x", &renewed(TTL)).expect("beside it");
    drop(reader);
    let before = renewals(&fakes[0]);
    eventually("each has its own", || renewals(&fakes[0]) >= before + 3);
    other.release().expect("ours");
    assert_eq!(renewing(locker.nodes()), 0);
}

#[test]
fn lock_whose_renewal_is_stopped_is_held_to_its_end() {
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
fn max_hold_ends_the_renewal_and_the_lease_ends_then() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let start = clock::now();
    let (options, told) = counted(renewed(TTL).max_renewal(2 * TTL));
    let guard = locker.acquire("x", &options).expect("free");
    assert_eq!(guard.watch().wait_ended(LIMIT), WatchOutcome::Lost);
    assert!(clock::now() - start > 2 * TTL, "not before its time");
    eventually("it was renewed before", || renewals(&fakes[0]) >= 2);
    eventually("it is told", || told.load(Ordering::SeqCst) == 1);
    // None at all: it ends with its first TTL.
    let options = renewed(TTL).max_renewal(Duration::ZERO);
    let guard = locker.acquire("y", &options).expect("free");
    assert_eq!(guard.watch().wait_ended(LIMIT), WatchOutcome::Lost);
}

#[test]
fn a_minority_that_is_down_or_errs_does_not_matter_and_gets_the_key_back() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let (options, told) = counted(renewed(TTL));
    let guard = locker.acquire("x", &options).expect("free");
    for fault in [Fault::Down, Fault::Fails(Op::Extend)] {
        fakes[0].set_fault(fault);
        fakes[0].wipe();
        let before = renewals(&fakes[1]);
        eventually("renewed by the others", || {
            renewals(&fakes[1]) >= before + 3
        });
        assert!(guard.is_held());
        // But for the renewal that was on its way there when it was told to fault: that may be served, once.
        eventually("nothing is put back there", || {
            fakes[0].token("x").is_none()
        });
        fakes[0].set_fault(Fault::None);
        eventually("the key is back", || fakes[0].token("x").is_some());
    }
    guard.release().expect("ours");
    assert_eq!(told.load(Ordering::SeqCst), 0);
}

#[test]
fn a_renewal_that_fails_is_tried_again_before_the_lease_ends() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let (options, told) = counted(renewed(3 * TTL));
    let guard = locker.acquire("x", &options).expect("free");
    for fake in &fakes {
        fake.set_fault(Fault::FailsAfterApplying(Op::Extend));
    }
    // Extended, but nobody knows.
    eventually("tried again and again", || renewals(&fakes[0]) >= 5);
    assert!(guard.is_held(), "an error is no loss");
    let seen = guard.remaining();
    for fake in &fakes {
        fake.set_fault(Fault::None);
    }
    eventually("extended again", || guard.remaining() > seen);
    guard.release().expect("ours");
    assert_eq!(told.load(Ordering::SeqCst), 0);
}

#[test]
fn errors_until_the_lease_ends_are_a_loss_which_is_told_once() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let (options, told) = counted(renewed(TTL));
    let guard = locker.acquire("x", &options).expect("free");
    for fake in &fakes[..2] {
        fake.set_fault(Fault::Fails(Op::Extend));
    }
    assert_eq!(guard.watch().wait_ended(LIMIT), WatchOutcome::Lost);
    eventually("it is told", || told.load(Ordering::SeqCst) == 1);
    for fake in &fakes {
        fake.set_fault(Fault::None);
    }
    let before = renewals(&fakes[2]);
    a_while();
    a_while();
    // But for one that was on its way there.
    assert!(renewals(&fakes[2]) <= before + 1, "never renewed again");
    assert_eq!(renewing(locker.nodes()), 0);
    assert!(!guard.is_held() && guard.remaining().is_zero());
    assert!(guard.release().expect_err("lost").is_lost());
    assert_eq!(told.load(Ordering::SeqCst), 1);
    eventually("the survivors' keys are released", || {
        fakes.iter().all(|fake| fake.token("x").is_none())
    });
}

#[test]
fn a_quorum_that_says_not_yours_is_a_loss_at_the_next_renewal() {
    for strangers in [true, false] {
        let fakes = FakeNode::fakes(3);
        let locker = healthy(&fakes);
        let (options, told) = counted(renewed(5 * TTL));
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
        eventually("it is told", || told.load(Ordering::SeqCst) == 1);
        eventually("released where it was ours", || {
            fakes[0].token("x").is_none()
        });
        assert_eq!(fakes[1].token("x").is_some(), strangers, "left alone");
        assert!(guard.check().expect_err("lost").is_lost());
    }
}

#[test]
fn a_loss_is_told_by_the_clock_where_nobody_looks_and_nothing_renews() {
    let fakes = FakeNode::fakes(3);
    let locker = lax(&fakes);
    let (options, told) = counted(LockOptions::new(BRIEF));
    let guard = locker.acquire("x", &options).expect("free");
    eventually("it is told", || told.load(Ordering::SeqCst) == 1);
    // At once to who asks late, and to everybody who does.
    for _ in 0..2 {
        assert_eq!(guard.watch().wait_ended(Duration::ZERO), WatchOutcome::Lost);
        assert_eq!(guard.watch().loss_reason(), Some(LossReason::Expired));
    }
    assert!(matches!(guard.release(), Err(Error::LockLost { .. })));
    assert_eq!(told.load(Ordering::SeqCst), 1);
}

#[test]
fn an_extension_moves_the_telling() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let (options, told) = counted(LockOptions::new(TTL));
    let guard = locker.acquire("x", &options).expect("free");
    guard.extend(LONG).expect("ours");
    thread::park_timeout(TTL);
    a_while();
    assert_eq!(told.load(Ordering::SeqCst), 0);
    assert_eq!(
        guard.watch().wait_ended(Duration::ZERO),
        WatchOutcome::TimedOut
    );
    // By a reply, long before its time.
    for fake in &fakes {
        fake.wipe();
    }
    assert!(guard.extend(LONG).expect_err("gone").is_lost());
    eventually("it is told", || told.load(Ordering::SeqCst) == 1);
}

#[test]
fn a_monitor_is_told_of_a_release_and_of_a_drop() {
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
        let (options, told) = counted(renewed(TTL));
        let guard = locker.acquire("x", &options).expect("free");
        let watch = guard.watch();
        let late: Vec<_> = fakes.iter().map(|f| f.delay(Op::Extend)).collect();
        late.iter().for_each(|late| late.arrived());
        thread::scope(|scope| {
            let released = scope.spawn(|| guard.release());
            // The renewal is on every node when the release has begun.
            assert_eq!(watch.wait_ended(LIMIT), WatchOutcome::Released);
            late.iter().for_each(|late| late.go());
            released.join().expect("no panic").expect("ours");
        });
        eventually("no key is left", || {
            fakes.iter().all(|fake| fake.token("x").is_none())
        });
        assert_eq!(renewing(locker.nodes()), 0);
        assert_eq!(told.load(Ordering::SeqCst), 0);
    }
}

fn on_nodes(engine: &Engine, wish: &AcquireParams) -> (Arc<Lease>, LocalGuard) {
    match engine.acquire(wish, FOR_EVER).expect("free") {
        Acquired::Quorum(lease, pass) => (lease, pass),
        Acquired::Local(_) => panic!("a quorum is up"),
    }
}

#[test]
fn a_panic_while_a_loss_is_told_ends_no_other_renewal() {
    let fakes = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    let engine = locker.nodes().engine();
    let mut plain = ["x", "y"].map(|name| wish(name, LONGER));
    plain
        .iter_mut()
        .for_each(|wish| wish.lease_options.auto_renew = false);
    let [(lost, _slot), (kept, _other)] = plain.each_ref().map(|wish| on_nodes(engine, wish));
    let panics = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&panics);
    let told = move |_: &Arc<Lease>, _: &str| {
        count.fetch_add(1, Ordering::SeqCst);
        panic!("as the test wants it");
    };
    let renewal = RenewalService::new(&engine.nodes, LIMIT, Arc::new(told));
    fakes[0].seize("x", LONG);
    for (lease, wish) in [&lost, &kept].into_iter().zip(&plain) {
        renewal.register(lease, wish.ttl, None).expect("a thread");
    }
    let served = || fakes[0].extensions(kept.token().text());
    eventually("the loss is told", || panics.load(Ordering::SeqCst) == 1);
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
fn drop_with_a_panicking_logger_is_counted_and_does_not_panic() {
    let fakes = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    let guard = locker.lock("x", LONG).expect("free");
    on_log_line(|_| panic!("as the test wants it"));
    drop(guard);
    on_log_line(|_| {});
    assert_eq!(locker.nodes().drop_failures(), 1);
    // What was released is released, whatever the logger does.
    eventually("it is free", || fakes[0].token("x").is_none());
}

#[test]
fn a_renewal_and_an_extension_take_turns() {
    let fakes = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    let engine = locker.nodes().engine();
    let (lease, _pass) = on_nodes(engine, &wish("x", LONGER));
    // A renewal that is due waits for an extension, though its thread does not.
    let turn = lease.lock_extension();
    let beside = locker.acquire("y", &renewed(TTL)).expect("free");
    until_all_are_due();
    let before = renewals(&fakes[0]);
    eventually("others are renewed", || renewals(&fakes[0]) >= before + 3);
    let served = || fakes[0].extensions(lease.token().text());
    assert_eq!(served(), 0);
    drop(beside);
    let late = fakes[0].delay(Op::Extend);
    drop(turn);
    // The other way round.
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
fn a_renewal_that_is_answered_after_the_lease_has_ended_revives_nothing() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let (options, told) = counted(renewed(TTL));
    let guard = locker.acquire("x", &options).expect("free");
    eventually("all have it", || {
        fakes.iter().all(|fake| fake.token("x").is_some())
    });
    let late = [&fakes[0], &fakes[1]].map(|fake| fake.delay(Op::Extend));
    late.iter().for_each(|late| late.arrived());
    assert_eq!(guard.watch().wait_ended(LIMIT), WatchOutcome::Lost);
    // Their clocks are so slow that they have it still: they extend it, and say so.
    let token = fakes[0].acquire_tokens().remove(0);
    for fake in &fakes[..2] {
        fake.modify("x", LockKind::Exclusive, |slot| {
            slot.owner = Some((token.clone(), clock::now() + LONG));
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
    eventually("it is told", || told.load(Ordering::SeqCst) == 1);
    let end = clock::now() + TTL / 2;
    eventually("a while has passed", || {
        assert!(!guard.is_held(), "revived");
        clock::now() > end
    });
    assert_eq!(guard.watch().wait_ended(Duration::ZERO), WatchOutcome::Lost);
    assert!(!guard.is_held() && guard.remaining().is_zero());
    assert_eq!(renewing(locker.nodes()), 0);
    assert!(matches!(guard.release(), Err(Error::LockLost { .. })));
    assert_eq!(told.load(Ordering::SeqCst), 1, "once");
}

#[test]
fn cancelled_acquire_is_not_renewed_and_a_held_lock_still_is() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    // During the round that would have granted it.
    let token = CancelToken::new();
    let (options, told) = counted(renewed(TTL).cancel_on(&token));
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
    // While a renewal is on every node.
    let token = CancelToken::new();
    let (options, beside) = counted(renewed(TTL).cancel_on(&token));
    let guard = locker.acquire("x", &options).expect("free");
    let late: Vec<_> = fakes.iter().map(|f| f.delay(Op::Extend)).collect();
    late.iter().for_each(|late| late.arrived());
    token.cancel();
    fakes.iter().for_each(|fake| fake.set_fault(Fault::None));
    late.iter().for_each(|late| late.go());
    eventually("it goes on", || renewals(&fakes[0]) >= 4);
    assert!(guard.is_held());
    guard.release().expect("ours");
    let told = [told, beside].map(|told| told.load(Ordering::SeqCst));
    assert_eq!(told, [0, 0], "nothing was lost");
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
        .map(|n| on_nodes(engine, &wish(&format!("k{n}"), LONGER)))
        .collect();
    let late = fakes[0].delay(Op::Extend);
    until_all_are_due();
    // A lease has one extension at a time.
    let open = || {
        let open = held.iter().filter(|(lease, _)| {
            let turn = lease.try_begin_extension();
            turn.is_none()
        });
        open.count()
    };
    eventually("as many as may be", || open() >= 256);
    a_while();
    assert_eq!(open(), 256);
    // The others come when there is room for them.
    fakes[0].set_fault(Fault::None);
    late.go(); // only the first of a batch has been taken
    eventually("all are renewed", || {
        let served = |lease: &Arc<Lease>| fakes[0].extensions(lease.token().text()) > 0;
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
fn many_are_renewed_together_and_none_is_lost() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let told = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&told);
    let options = renewed(4 * TTL).on_lost(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
    });
    let guards: Vec<_> = (0..1000)
        .map(|n| locker.acquire(&format!("k{n}"), &options).expect("free"))
        .collect();
    assert_eq!(renewing(locker.nodes()), 1000);
    eventually("each is renewed twice", || {
        a_while();
        renewals(&fakes[0]) >= 2000
    });
    assert!(guards.iter().all(|guard| guard.is_held()));
    drop(guards);
    assert_eq!(renewing(locker.nodes()), 0);
    assert_eq!(told.load(Ordering::SeqCst), 0);
}

#[test]
fn a_callback_may_be_slow_panic_or_drop_the_last_handle() {
    let fakes = FakeNode::fakes(3);
    let locker = lax(&fakes);
    let (go, wait) = mpsc::channel::<()>();
    let (begun, begins) = mpsc::channel::<()>();
    let owned = parking_lot::Mutex::new((begun, wait));
    let slow = LockOptions::new(BRIEF).on_lost(move |_| {
        let owned = owned.lock();
        let _ = owned.0.send(());
        let _ = owned.1.recv();
    });
    let _slow = locker.acquire("slow", &slow).expect("free");
    let beside = locker.acquire("beside", &renewed(TTL)).expect("free");
    begins.recv_timeout(LIMIT).expect("it is told");
    let before = renewals(&fakes[0]);
    eventually("others are renewed", || renewals(&fakes[0]) >= before + 3);
    beside.check().expect("ours");
    let panics = LockOptions::new(BRIEF).on_lost(|_| panic!("as the test wants it"));
    let panics = locker.acquire("panics", &panics).expect("free");
    let (options, told) = counted(LockOptions::new(BRIEF));
    let last = locker.acquire("x", &options).expect("free");
    assert_eq!(last.watch().wait_ended(LIMIT), WatchOutcome::Lost);
    a_while();
    assert_eq!(told.load(Ordering::SeqCst), 0, "behind the slow one");
    drop(go);
    eventually("after all others", || told.load(Ordering::SeqCst) == 1);
    drop((last, panics, beside, _slow));

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
fn a_shutdown_tells_who_is_still_alive() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let (options, told) = counted(renewed(LONG));
    let guard = locker.acquire("x", &options).expect("free");
    let watch = guard.watch();
    eventually("all have it", || {
        fakes.iter().all(|fake| fake.token("x").is_some())
    });
    assert!(!locker.nodes().shutdown(Duration::ZERO));
    assert_eq!(watch.wait_ended(Duration::ZERO), WatchOutcome::Lost);
    assert_eq!(told.load(Ordering::SeqCst), 1);
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
    assert_eq!(renewals(&fakes[0]), 0, "nobody was asked");
    clock::suspend(Duration::from_secs(60));
    assert!(!guard.is_held() && guard.remaining().is_zero());
    assert!(!watch.is_held() && watch.remaining().is_zero());
    // In doubt is not lost.
    assert_eq!(watch.wait_ended(Duration::ZERO), WatchOutcome::TimedOut);
    guard.check().expect("the nodes have it still");
    assert!(guard.is_held() && guard.remaining() > LONG / 2);
    guard.check().expect("ours");
    eventually("they were asked", || {
        fakes.iter().all(|fake| renewals(fake) == 1)
    });

    // Too few answer: not known.
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

    // The nodes' time went on, and somebody else has it.
    clock::suspend(Duration::from_secs(600));
    for fake in &fakes {
        fake.modify("x", LockKind::Exclusive, |slot| slot.owner = None);
        fake.seize("x", LONG);
    }
    assert!(guard.check().expect_err("theirs").is_lost());
    assert_eq!(watch.wait_ended(Duration::ZERO), WatchOutcome::Lost);

    // A local lock does not end.
    let local = LocalLocker::new().lock("x", LONG).expect("free");
    clock::suspend(Duration::from_secs(600));
    assert!(local.is_held() && local.check().is_ok() && local.watch().is_held());
}
