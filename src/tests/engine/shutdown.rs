//! Shutdown over fake nodes: waits, pending acquires and held locks.

use std::thread;
use std::time::Duration;

use crate::api::locker::Locker;
use crate::config::builder::Config;
use crate::error::error::Error;
use crate::error::loss_reason::LossReason;
use crate::protocol::request::Op;
use crate::tests::engine::setup::{TTL, healthy, holders};
use crate::tests::fake_node::node::{FakeNode, Fault, connected_locker, eventually};
use crate::time::clock;

#[test]
fn shutdown_ends_waits_and_keeps_held_locks() {
    let fakes = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    let guard = locker.lock("x", TTL).expect("free");
    let closed = |tried: Result<_, Error>| assert_eq!(tried.err(), Some(Error::Closed));
    thread::scope(|scope| {
        let waiting = scope.spawn(|| locker.lock("x", TTL).map(drop));
        fakes[0].set_fault(Fault::Refuses);
        let asking = scope.spawn(|| locker.lock("y", TTL).map(drop));
        eventually("it asks", || fakes[0].count(Op::Acquire) > 1);
        assert!(!locker.nodes().shutdown(Duration::from_millis(20)));
        closed(waiting.join().expect("no panic"));
        closed(asking.join().expect("no panic"));
    });
    closed(locker.try_lock("z", TTL).map(drop));
    assert!(fakes[0].token("x").is_some(), "left to its TTL");
    assert!(!guard.is_held());
    assert_eq!(guard.watch().loss_reason(), Some(LossReason::ShutDown));
    assert!(matches!(guard.release(), Err(Error::LockLost { .. })));
    _ = locker.nodes().shutdown(Duration::ZERO);
}

#[test]
fn shutdown_undoes_a_pending_acquire() {
    let fakes = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    let late = fakes[0].delay(Op::Acquire);
    let nodes = locker.nodes().clone();
    thread::scope(|scope| {
        let asking = scope.spawn(|| locker.lock("x", TTL).map(drop));
        late.arrived();
        let ending = scope.spawn(move || nodes.shutdown(Duration::ZERO));
        eventually("it is closed", || {
            locker.nodes().engine().lock_table.is_closed()
        });
        late.go();
        assert_eq!(asking.join().expect("no panic"), Err(Error::Closed));
        assert!(ending.join().expect("no panic"));
    });
    assert_eq!(holders(&fakes, "x"), 0, "a key without a holder is left");
}

#[test]
fn shutdown_waits_for_guards() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let guard = locker.lock("x", TTL).expect("free");
    let nodes = locker.nodes().clone();
    thread::scope(|scope| {
        let ending = scope.spawn(move || nodes.shutdown(Duration::from_secs(20)));
        eventually("it is closed", || {
            matches!(locker.try_lock("y", TTL), Err(Error::Closed))
        });
        guard.release().expect("ours");
        assert!(ending.join().expect("no panic"));
    });
}

#[test]
fn shutdown_does_not_wait_for_a_connect_that_hangs() {
    let fakes = FakeNode::fakes(3);
    let hanging = fakes[2].delay_connect();
    let patient = |config: Config| {
        let limit = Duration::from_secs(30);
        config.node_timeout(limit).connect_timeout(limit)
    };
    let locker = connected_locker(&fakes, patient).expect("a quorum is up");
    hanging.arrived();
    locker
        .lock("x", TTL)
        .expect("free")
        .release()
        .expect("ours");
    let start = clock::now();
    assert!(locker.nodes().shutdown(Duration::ZERO));
    drop(locker);
    assert!(clock::now() - start < Duration::from_secs(15));
    assert_eq!(holders(&fakes, "x"), 0);
    hanging.go();
}

#[test]
fn request_of_an_operator_that_meets_a_shutdown_without_a_quorum_is_closed() {
    for op in [Op::Inspect, Op::ForceRelease] {
        let fakes = FakeNode::fakes(3);
        let locker = healthy(&fakes);
        fakes[..2]
            .iter()
            .for_each(|fake| fake.set_fault(Fault::Down));
        eventually("it is seen", || locker.nodes().engine().nodes_up() == 1);
        let ask = || match op {
            Op::Inspect => locker.holder("x").map(drop),
            _ => locker.force_release("x").map(drop),
        };
        let unavailable = ask().expect_err("no quorum");
        assert!(unavailable.is_unavailable(), "{unavailable:?}");
        let late = fakes[2].delay(op);
        thread::scope(|scope| {
            let asking = scope.spawn(ask);
            late.arrived();
            let ending = scope.spawn(|| locker.nodes().shutdown(Duration::ZERO));
            let lock_table = &locker.nodes().engine().lock_table;
            eventually("it is closed", || lock_table.is_closed());
            late.go();
            assert_eq!(asking.join().expect("no panic"), Err(Error::Closed));
            assert!(ending.join().expect("no panic"));
        });
    }
}

#[test]
fn guard_outlives_its_locker() {
    let fakes = FakeNode::fakes(3);
    let guard = healthy(&fakes).lock("x", TTL).expect("free");
    assert!(guard.is_held());
    drop(guard);
    assert_eq!(holders(&fakes, "x"), 0, "the last handle drains the queues");
}

// The name is parsed here.
