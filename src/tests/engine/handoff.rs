//! Handoffs over fake nodes: the result on each side, and what remains on the nodes.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::api::guard::LockGuard;
use crate::api::locker::Locker;
use crate::api::options::LockOptions;
use crate::api::redis_locker::RedisLocker;
use crate::config::builder::Config;
use crate::config::on_drop::OnDrop;
use crate::error::error::Error;
use crate::local::handoff::{FormerRelease, Handoff, MAX_STREAK};
use crate::protocol::kind::{LeaseKind, LockKind};
use crate::protocol::lease::Lease;
use crate::protocol::quorum::{Tally, VoteRule};
use crate::protocol::reply::Reply;
use crate::protocol::request::Op;
use crate::protocol::server_info::ServerInfo;
use crate::protocol::token::Token;
use crate::tests::engine::setup::{all_free, exclusive_key, exclusive_params, healthy};
use crate::tests::fake_node::node::{FakeNode, Fault, connected_locker, eventually, on_log_line};
use crate::time::clock;
use crate::transport::cancel::CancelToken;
use crate::transport::inbox::Inbox;
use crate::transport::job::ReplySink;

const TTL: Duration = Duration::from_secs(300);

/// Waits until `count` threads queue for the lock.
fn queued(locker: &RedisLocker, count: usize) {
    let table = &locker.nodes().engine().lock_table;
    eventually("they queue", || table.waiting(&exclusive_key("x")) == count);
}

/// Acquires a lock on all nodes.
fn held(locker: &RedisLocker, fakes: &[Arc<FakeNode>], options: &LockOptions) -> LockGuard {
    let guard = locker.acquire("x", options).expect("free");
    eventually("all have it", || {
        fakes.iter().all(|fake| fake.token("x").is_some())
    });
    guard
}

/// Holds the lock while another thread waits with `options`, and releases it in a third thread.
/// Runs the test's action in between. Returns the result of the release and that of the waiting
/// thread.
fn release_with_waiter(
    locker: &RedisLocker,
    fakes: &[Arc<FakeNode>],
    options: &LockOptions,
    before: impl FnOnce(),
    between: impl FnOnce(),
) -> (Result<(), Error>, Result<LockGuard, Error>) {
    let guard = held(locker, fakes, &LockOptions::new(TTL));
    thread::scope(|scope| {
        let next = scope.spawn(|| locker.acquire("x", options));
        queued(locker, 1);
        before();
        let release = scope.spawn(|| guard.release());
        between();
        (
            release.join().expect("no panic"),
            next.join().expect("no panic"),
        )
    })
}

fn count(fakes: &[Arc<FakeNode>], op: Op) -> usize {
    fakes.iter().map(|fake| fake.count(op)).sum()
}

#[test]
fn waiter_acquires_with_the_release() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let (released, next) =
        release_with_waiter(&locker, &fakes, &LockOptions::new(TTL), || (), || ());
    assert_eq!(released, Ok(()));
    let next = next.expect("handed on");
    assert!(next.is_held() && next.remaining() > TTL / 2);
    eventually("all have swapped", || count(&fakes, Op::Swap) == 3);
    assert_eq!(count(&fakes, Op::Acquire), 3, "the first one's");
    assert!(fakes.iter().all(|fake| fake.published() == 0));
    next.extend(TTL).expect("ours");
    assert_eq!(next.release(), Ok(()));
    all_free(&fakes, "x");
    eventually("the loss is notified", || {
        fakes.iter().all(|fake| fake.published() == 1)
    });
}

#[test]
fn handoffs_keep_the_order_and_are_limited_in_a_row() {
    const THREADS: usize = 40;
    let fakes = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    let first = held(&locker, &fakes, &LockOptions::new(TTL));
    let order = parking_lot::Mutex::new(Vec::new());
    thread::scope(|scope| {
        for number in 0..THREADS {
            let (locker, order) = (&locker, &order);
            scope.spawn(move || {
                let guard = locker.lock("x", TTL).expect("handed on");
                order.lock().push(number);
                guard.release().expect("ours");
            });
            queued(locker, number + 1);
        }
        first.release().expect("ours");
    });
    assert_eq!(*order.lock(), (0..THREADS).collect::<Vec<_>>());
    all_free(&fakes, "x");
    let served = fakes[0].ops();
    let mut rows = served.split(|op| *op == Op::Acquire);
    let swaps = |row: &[Op]| row.iter().filter(|op| **op == Op::Swap).count();
    assert!(
        rows.all(|row| swaps(row) <= MAX_STREAK as usize),
        "{served:?}"
    );
    assert!(served.contains(&Op::Swap));
    // Each cycle starts with an acquire and ends with a published release.
    let acquires = fakes[0].count(Op::Acquire);
    assert_eq!(fakes[0].published(), acquires);
    assert_eq!(acquires + fakes[0].count(Op::Swap), THREADS + 1);
}

/// The state of a node when a release with a handoff reaches it.
#[derive(Clone, Copy, Debug)]
enum NodeCase {
    Ours,
    Absent,
    Foreign,
    Down,
    /// The swap fails, as on a node that is out of memory or has a foreign value in the fence
    /// counter.
    Errs,
}

impl NodeCase {
    fn apply(self, fake: &FakeNode) {
        match self {
            NodeCase::Ours => {}
            NodeCase::Absent => fake.wipe(),
            NodeCase::Foreign => fake.seize("x", TTL),
            NodeCase::Down => fake.set_fault(Fault::Down),
            NodeCase::Errs => fake.set_fault(Fault::Fails(Op::Swap)),
        }
    }
}

#[test]
fn release_with_a_handoff_returns_as_without_a_waiter() {
    let states = [
        NodeCase::Ours,
        NodeCase::Absent,
        NodeCase::Foreign,
        NodeCase::Down,
        NodeCase::Errs,
    ];
    let all = states.map(|a| states.map(|b| states.map(|c| [a, b, c])));
    for nodes in all.as_flattened().as_flattened() {
        let released = |waits: bool| {
            let fakes = FakeNode::fakes(3);
            let locker = healthy(&fakes);
            let apply = |(fake, case): (&Arc<FakeNode>, &NodeCase)| case.apply(fake);
            let spoil = || fakes.iter().zip(nodes).for_each(apply);
            if !waits {
                let guard = held(&locker, &fakes, &LockOptions::new(TTL));
                spoil();
                return guard.release();
            }
            let token = CancelToken::new();
            let options = LockOptions::new(TTL).cancel_on(&token);
            let cancel = || {
                eventually("it was asked", || {
                    let asked = |(fake, node): (&Arc<FakeNode>, &NodeCase)| {
                        // A node that is reached after the verdict receives a release instead of
                        // the swap.
                        let served = fake.count(Op::Swap) + fake.count(Op::Release);
                        matches!(node, NodeCase::Down) || served > 0
                    };
                    fakes.iter().zip(nodes).all(asked)
                });
                token.cancel();
            };
            let (released, next) = release_with_waiter(&locker, &fakes, &options, spoil, cancel);
            drop(next);
            released
        };
        let (plain, handed) = (released(false), released(true));
        let kind = |end: &Result<(), Error>| match end {
            Ok(()) => "released",
            Err(error) if error.is_lost() => "lost",
            Err(error) if error.is_unavailable() => "unknown",
            Err(_) => "else",
        };
        assert_eq!(
            kind(&plain),
            kind(&handed),
            "{nodes:?}: {plain:?}, {handed:?}"
        );
    }
}

/// The acquirer has a quorum and releases the former token on the last node, before the release
/// that follows the refused swap there. That one then misses the token.
#[test]
fn release_overtaken_by_that_of_the_acquirer_is_no_loss() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let engine = locker.nodes().engine();
    let guard = held(&locker, &fakes, &LockOptions::new(TTL));
    thread::scope(|scope| {
        let next = scope.spawn(|| locker.lock("x", TTL));
        queued(&locker, 1);
        fakes[0].wipe();
        let late = fakes[2].delay(Op::Swap);
        let release = scope.spawn(|| guard.release());
        late.arrived();
        let next = next.join().expect("no panic").expect("two nodes swapped");
        eventually("its release is queued", || engine.waiting(2) > 0);
        fakes[2].set_fault(Fault::Fails(Op::Swap));
        late.go();
        assert_eq!(release.join().expect("no panic"), Ok(()));
        next.release().expect("ours");
    });
    all_free(&fakes, "x");
}

#[test]
fn handoff_with_panicking_loggers_succeeds() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let guard = held(&locker, &fakes, &LockOptions::new(TTL));
    thread::scope(|scope| {
        let next = scope.spawn(|| {
            on_log_line(|_| panic!("as the test wants it"));
            locker.lock("x", TTL).map(LockGuard::release)
        });
        queued(&locker, 1);
        on_log_line(|_| panic!("as the test wants it"));
        assert_eq!(guard.release(), Ok(()));
        on_log_line(|_| {});
        assert_eq!(next.join().expect("no panic"), Ok(Ok(())));
    });
    all_free(&fakes, "x");
}

#[test]
fn handoff_is_undone_when_acquirer_is_cancelled_after_the_swap() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let late: Vec<_> = fakes.iter().map(|fake| fake.delay(Op::Swap)).collect();
    let token = CancelToken::new();
    let guard = held(&locker, &fakes, &LockOptions::new(TTL));
    thread::scope(|scope| {
        let options = LockOptions::new(TTL).cancel_on(&token);
        let (locker, fakes) = (&locker, &fakes);
        let next = scope.spawn(move || locker.acquire("x", &options).map(drop));
        queued(locker, 1);
        let release = scope.spawn(|| guard.release());
        late.iter().for_each(|late| late.arrived());
        token.cancel();
        // The cancelled thread does not wait for the nodes.
        assert_eq!(next.join().expect("no panic"), Err(Error::Cancelled));
        assert!(fakes.iter().all(|fake| fake.count(Op::Swap) == 0));
        fakes.iter().for_each(|fake| fake.set_fault(Fault::None));
        late.iter().for_each(|late| late.go());
        assert_eq!(release.join().expect("no panic"), Ok(()));
    });
    all_free(&fakes, "x");
    locker
        .lock("x", TTL)
        .expect("free")
        .release()
        .expect("ours");
}

#[test]
fn release_succeeds_when_acquirer_is_cancelled_before_the_swap() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let guard = held(&locker, &fakes, &LockOptions::new(TTL));
    // The workers wait for replies to another request.
    let engine = locker.nodes().engine();
    let busy: Vec<_> = fakes
        .iter()
        .map(|fake| fake.delay(Op::WakeListener))
        .collect();
    let key = exclusive_key("y");
    let other = Token::fresh(None).expect("a token");
    let other = Arc::new(Lease::new(key, other, LeaseKind::Exclusive));
    (0..3).for_each(|node| engine.nodes.wake_listener(&other, node));
    busy.iter().for_each(|busy| busy.arrived());
    let token = CancelToken::new();
    thread::scope(|scope| {
        let options = LockOptions::new(TTL).cancel_on(&token);
        let locker = &locker;
        let next = scope.spawn(move || locker.acquire("x", &options).map(drop));
        queued(locker, 1);
        let release = scope.spawn(|| guard.release());
        queued(locker, 0);
        token.cancel();
        assert_eq!(next.join().expect("no panic"), Err(Error::Cancelled));
        fakes.iter().for_each(|fake| fake.set_fault(Fault::None));
        busy.iter().for_each(|busy| busy.go());
        assert_eq!(release.join().expect("no panic"), Ok(()));
    });
    all_free(&fakes, "x");
    assert_eq!(count(&fakes, Op::Swap), 0, "the swap was cancelled");
    // By the release in place of the swap, or by the acquirer's of the same token.
    eventually("the release is published", || {
        fakes.iter().all(|fake| fake.published() >= 1)
    });
}

#[test]
fn shutdown_during_a_handoff_leaves_no_token() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let guard = held(&locker, &fakes, &LockOptions::new(TTL));
    let late: Vec<_> = fakes.iter().map(|fake| fake.delay(Op::Swap)).collect();
    thread::scope(|scope| {
        let next = scope.spawn(|| locker.lock("x", TTL).map(drop));
        queued(&locker, 1);
        let release = scope.spawn(|| guard.release());
        late.iter().for_each(|late| late.arrived());
        let shutdown = scope.spawn(|| locker.nodes().shutdown(TTL));
        let gate = &locker.nodes().engine().lock_table;
        eventually("it is closed", || gate.is_closed());
        fakes.iter().for_each(|fake| fake.set_fault(Fault::None));
        late.iter().for_each(|late| late.go());
        assert_eq!(release.join().expect("no panic"), Ok(()));
        assert_eq!(next.join().expect("no panic"), Err(Error::Closed));
        assert!(shutdown.join().expect("no panic"));
    });
    assert!(fakes.iter().all(|fake| fake.token("x").is_none()));
}

#[test]
fn node_that_is_down_gets_no_swap_and_a_pending_release() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let goes_down = || {
        fakes[2].set_fault(Fault::Down);
        eventually("it is seen", || locker.nodes().engine().nodes_up() == 2);
    };
    let (released, next) =
        release_with_waiter(&locker, &fakes, &LockOptions::new(TTL), goes_down, || ());
    assert_eq!(released, Ok(()));
    let next = next.expect("by a quorum");
    assert!(fakes[2].token("x").is_some(), "the former one's");
    fakes[2].set_fault(Fault::None);
    eventually("it is paid", || fakes[2].token("x").is_none());
    assert!(next.is_held());
    next.release().expect("ours");
    all_free(&fakes, "x");
}

#[test]
fn handoff_without_a_quorum_releases_both_tokens_and_the_next_asks_again() {
    for (fault, is_reported) in [
        (Fault::Fails(Op::Swap), true),
        (Fault::FailsAfterApplying(Op::Swap), false),
    ] {
        let fakes = FakeNode::fakes(3);
        let locker = healthy(&fakes);
        let faults = || {
            fakes[1..]
                .iter()
                .for_each(|fake| fake.set_fault(fault.clone()))
        };
        let (released, next) =
            release_with_waiter(&locker, &fakes, &LockOptions::new(TTL), faults, || ());
        // A node that was not swapped receives a release of the former token. The reply to the new
        // holder's swap does not decide the former holder's release.
        match released {
            Ok(()) => assert!(is_reported),
            Err(error) => assert!(error.is_unavailable() && !is_reported, "{error}"),
        }
        let next = next.expect("by an attempt of its own");
        assert_eq!(fakes[0].count(Op::Swap), 1);
        next.check().expect("held");
        next.release().expect("ours");
        all_free(&fakes, "x");
    }
}

#[test]
fn late_swap_is_undone() {
    let fakes = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    let ttl = Duration::from_millis(100);
    let late = fakes[0].delay(Op::Swap);
    let held_up = || {
        late.arrived();
        let came = clock::now();
        eventually("the time is over", || {
            clock::now().duration_since(came) > ttl
        });
        fakes[0].set_fault(Fault::Fails(Op::Acquire));
        late.go();
    };
    let options = LockOptions::new(ttl);
    let (released, next) = release_with_waiter(
        &locker,
        &fakes,
        &options,
        || (),
        || {
            held_up();
            eventually("it asks by itself", || fakes[0].count(Op::Release) >= 2);
            fakes[0].set_fault(Fault::None);
        },
    );
    assert_eq!(released, Ok(()));
    drop(next);
    all_free(&fakes, "x");
}

#[test]
fn value_of_another_owner_is_left_alone_and_the_loss_is_reported() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let options = LockOptions::new(TTL).wait_for(Duration::from_millis(300));
    let seize = || fakes[1..].iter().for_each(|fake| fake.seize("x", TTL));
    let (released, next) = release_with_waiter(&locker, &fakes, &options, seize, || ());
    let error = released.expect_err("another owner holds the lock");
    assert!(error.is_lost(), "{error}");
    let error = next.expect_err("it is another's");
    assert!(error.is_contended(), "{error}");
    eventually("our part is free", || fakes[0].token("x").is_none());
    for fake in &fakes[1..] {
        assert_eq!(fake.token("x").as_deref(), Some("stranger"));
    }
}

#[test]
fn drop_with_a_handoff_does_not_wait_for_replies() {
    let fakes = FakeNode::fakes(3);
    let hand_off = |config: Config| config.on_drop(OnDrop::Background);
    let locker = connected_locker(&fakes, hand_off).expect("a quorum is up");
    let guard = held(&locker, &fakes, &LockOptions::new(TTL));
    let late: Vec<_> = fakes.iter().map(|fake| fake.delay(Op::Swap)).collect();
    thread::scope(|scope| {
        let next = scope.spawn(|| locker.lock("x", TTL));
        queued(&locker, 1);
        drop(guard); // no node replies yet
        late.iter().for_each(|late| late.arrived());
        fakes.iter().for_each(|fake| fake.set_fault(Fault::None));
        late.iter().for_each(|late| late.go());
        drop(next.join().expect("no panic").expect("handed on"));
    });
    all_free(&fakes, "x");
}

#[test]
fn fencing_tokens_increase_across_handoffs_even_if_counters_differ() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let options = LockOptions::new(TTL).fencing(true);
    let mut last = held(&locker, &fakes, &options);
    for ahead in 0..6 {
        fakes[ahead % 3].modify("x", LockKind::Exclusive, |stored| {
            stored.fence = stored.fence.map(|fence| fence + 100);
        });
        let number = last.fencing_token();
        last = thread::scope(|scope| {
            let next = scope.spawn(|| locker.acquire("x", &options));
            queued(&locker, 1);
            last.release().expect("ours");
            next.join().expect("no panic").expect("handed on")
        });
        assert!(last.fencing_token() > number);
    }
    assert!(count(&fakes, Op::Swap) >= 2 * 3);
}

#[test]
fn acquire_of_several_keys_receives_no_handoff() {
    let fakes = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    let guard = held(&locker, &fakes, &LockOptions::new(TTL));
    thread::scope(|scope| {
        let next = scope.spawn(|| locker.acquire_all(&["x", "y"], &LockOptions::new(TTL)));
        queued(&locker, 1);
        guard.release().expect("ours");
        let both = next.join().expect("no panic").expect("free");
        let next = scope.spawn(|| locker.lock("x", TTL));
        queued(&locker, 1);
        both.release().expect("ours");
        drop(next.join().expect("no panic").expect("free"));
    });
    assert_eq!(fakes[0].count(Op::Swap), 0);
    assert!(!locker.nodes().engine().circuit.is_open());
}

#[test]
fn open_breaker_allows_no_handoff() {
    let fakes = FakeNode::fakes(1);
    let locker = connected_locker(&fakes, |config| config.allow_degraded(true)).expect("it is up");
    let engine = locker.nodes().engine();
    let open = || engine.start_degraded(clock::now(), &Tally::new(1, VoteRule::Acquire));
    let (released, next) =
        release_with_waiter(&locker, &fakes, &LockOptions::new(TTL), open, || ());
    assert_eq!(released, Ok(()));
    drop(next.expect("here or there"));
    assert_eq!(fakes[0].count(Op::Swap), 0);
}

#[test]
fn handoffs_do_not_count_for_the_breaker() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let circuit = &locker.nodes().engine().circuit;
    let fails = || circuit.record_failure(clock::now(), None, 0, &Tally::new(3, VoteRule::Acquire));
    let (released, next) =
        release_with_waiter(&locker, &fakes, &LockOptions::new(TTL), fails, || ());
    assert_eq!(released, Ok(()));
    let next = next.expect("handed on");
    next.extend(TTL).expect("ours");
    next.release().expect("ours");
    assert_eq!(count(&fakes, Op::Acquire), 3, "the first one's");
    assert!(!circuit.is_calm());
    drop(locker.lock("x", TTL).expect("free"));
    assert!(circuit.is_calm());
}

#[test]
fn quarantined_node_gets_a_release_instead_of_a_swap() {
    let fakes = FakeNode::fakes(1);
    let up_for = |uptime| {
        fakes[0].set_server_info(ServerInfo {
            uptime,
            ..ServerInfo::default()
        });
    };
    up_for(2 * TTL);
    let quarantined = |config: Config| config.restart_quarantine(TTL);
    let locker = connected_locker(&fakes, quarantined).expect("it is up");
    let restarts = || {
        fakes[0].set_fault(Fault::Down);
        eventually("it is seen", || locker.nodes().engine().nodes_up() == 0);
        up_for(Duration::ZERO);
        fakes[0].set_fault(Fault::None);
        eventually("it is back", || locker.nodes().engine().nodes_up() == 1);
    };
    let options = LockOptions::new(TTL).wait_for(Duration::from_millis(200));
    let (released, next) = release_with_waiter(&locker, &fakes, &options, restarts, || ());
    assert_eq!(released, Ok(()));
    assert!(next.is_err(), "it grants nothing yet");
    assert_eq!(fakes[0].count(Op::Swap), 0);
    all_free(&fakes, "x");
}

#[test]
fn validity_of_a_handoff_counts_from_before_the_swap() {
    let fakes = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    let engine = locker.nodes().engine();
    let params = exclusive_params("x", TTL);
    let _busy = locker.lock("x", TTL).expect("free");
    for (ago, is_in_time) in [(TTL / 4, true), (TTL * 3 / 4, false)] {
        let inbox = Arc::new(Inbox::new());
        let offer = engine.handoff_offer(&params, None).expect("a token");
        let offer = offer.expect("the lock is held");
        let former = Token::fresh(None).expect("a token");
        let former = Arc::new(Lease::new(exclusive_key("x"), former, LeaseKind::Exclusive));
        let start = clock::now().checked_sub(ago).expect("not that long ago");
        let handoff = Handoff {
            former: FormerRelease {
                start,
                ..FormerRelease::of(&former)
            },
            round: inbox.open_round(1),
        };
        inbox.deliver(handoff.round, 0, Reply::Done);
        let accepted = engine.accept_handoff(&params, &offer, &handoff, &inbox);
        assert_eq!(accepted.is_ok(), is_in_time, "{ago:?} ago");
    }
}

#[test]
fn handoffs_among_many_threads_all_succeed() {
    for nodes in [1, 3] {
        let fakes = FakeNode::fakes(nodes);
        let locker = healthy(&fakes);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        locker
                            .lock("x", TTL)
                            .expect("free")
                            .release()
                            .expect("ours");
                    }
                });
            }
        });
        all_free(&fakes, "x");
        assert!(fakes[0].count(Op::Swap) > 0);
    }
}
