//! Idle connections that were closed, over fake nodes: which requests wait for the reconnect, and
//! which do not.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::api::locker::Locker;
use crate::error::error::Error;
use crate::error::node_failure::NodeFailure;
use crate::protocol::request::Op;
use crate::tests::engine::setup::{healthy, impatient};
use crate::tests::fake_node::node::{FakeNode, Fault, connected_locker, eventually};
use crate::time::clock;

const TTL: Duration = Duration::from_secs(60);

fn close_all(fakes: &[Arc<FakeNode>]) {
    fakes.iter().for_each(|fake| fake.close_connections());
}

/// Waits until each node served as many releases as acquires, so that no request is in flight.
fn settle(fakes: &[Arc<FakeNode>]) {
    eventually("all is released", || {
        let settled = |fake: &Arc<FakeNode>| fake.count(Op::Acquire) == fake.count(Op::Release);
        fakes.iter().all(settled)
    });
}

#[test]
fn round_on_connections_that_were_closed_is_granted_by_all_nodes() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    for round in 1..=20 {
        close_all(&fakes);
        let guard = locker.try_lock("x", TTL).expect("nothing was sent before");
        let guard = guard.expect("it is free");
        eventually("all have granted", || {
            fakes
                .iter()
                .all(|fake| fake.acquire_tokens().len() == round)
        });
        close_all(&fakes);
        guard.release().expect("nor of the release");
        settle(&fakes);
    }
}

#[test]
fn rounds_of_many_callers_on_connections_that_were_closed_are_granted() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    for _ in 0..10 {
        close_all(&fakes);
        thread::scope(|scope| {
            for caller in 0..8 {
                let locker = &locker;
                scope.spawn(move || {
                    let guard = locker.try_lock(&caller.to_string(), TTL);
                    drop(guard.expect("nothing was sent before").expect("it is free"));
                });
            }
        });
    }
}

#[test]
fn round_on_connections_that_cannot_be_replaced_fails_with_the_cause_of_the_connect() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    fakes.iter().for_each(|fake| fake.set_fault(Fault::Down));
    close_all(&fakes);
    let began = clock::now();
    for _ in 0..20 {
        let error = locker.try_lock("x", TTL).expect_err("all are down");
        let Error::InsufficientQuorum { causes, .. } = error else {
            panic!("{error}")
        };
        let down = NodeFailure::Unreachable("down".into());
        assert!(
            causes.iter().any(|cause| cause.failure == down),
            "{causes:?}"
        );
    }
    // No request waits for its timeout of 5 s.
    assert!(clock::now().duration_since(began) < Duration::from_secs(50));
    assert!(fakes.iter().all(|fake| fake.acquire_tokens().is_empty()));
}

#[test]
fn request_waits_for_one_reconnect_only() {
    let fakes = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    fakes[0].set_fault(Fault::Closes);
    let (began, before) = (clock::now(), fakes[0].connects().len());
    for _ in 0..3 {
        let error = locker.try_lock("x", TTL).expect_err("nothing is served");
        assert!(error.is_unavailable(), "{error}");
    }
    // The acquire waits neither for the timeout of 5 s nor reconnects in a busy loop.
    let took = clock::now().duration_since(began);
    let connects = fakes[0].connects().len() - before;
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert!(connects < 100, "{connects}");
    fakes[0].set_fault(Fault::None);
    drop(locker.lock("x", TTL).expect("it serves again"));
}

#[test]
fn release_that_breaks_each_connection_is_not_tried_without_a_pause() {
    let fakes = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    let guard = locker.lock("x", TTL).expect("it is up");
    fakes[0].set_fault(Fault::Breaks(Op::Release));
    let before = fakes[0].connects().len();
    guard.release().expect_err("no node replies");
    thread::park_timeout(Duration::from_millis(500));
    let connects = fakes[0].connects().len() - before;
    assert!(connects < 100, "{connects}");
    fakes[0].set_fault(Fault::None);
    eventually("the release is made", || fakes[0].token("x").is_none());
}

#[test]
fn closed_idle_connection_is_replaced_without_a_request() {
    let fakes = FakeNode::fakes(1);
    let _locker = healthy(&fakes);
    close_all(&fakes);
    eventually("it is connected again", || fakes[0].connects().len() == 2);
}

#[test]
fn denied_kill_of_the_former_connection_stops_no_reconnect() {
    let fakes = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    let denied = NodeFailure::AccessDenied("NOPERM".into());
    fakes[0].set_kill_failure(Some(denied));
    for _ in 0..3 {
        close_all(&fakes);
        drop(locker.lock("x", TTL).expect("it is connected again"));
        settle(&fakes);
    }
    assert!(fakes[0].connects().len() > 1);
}

#[test]
fn requests_during_a_slow_connect_time_out_and_are_not_sent_later() {
    let fakes = FakeNode::fakes(1);
    let short = Duration::from_millis(100);
    let locker = connected_locker(&fakes, |config| config.node_timeout(short)).expect("it is up");
    let key = "x";
    let guard = locker.lock(key, TTL).expect("it is up");
    let connect = fakes[0].delay_connect();
    close_all(&fakes);
    connect.arrived();
    let began = clock::now();
    let unavailable = |error: Error| assert!(error.is_unavailable(), "{error}");
    unavailable(locker.force_release(key).expect_err("nothing is sent"));
    unavailable(locker.try_lock("y", TTL).expect_err("nothing is sent"));
    unavailable(guard.release().expect_err("nothing is sent"));
    // After the deadline no request waits for a reconnect.
    for _ in 0..1000 {
        unavailable(locker.try_lock("y", TTL).expect_err("it is suspect"));
    }
    assert!(clock::now().duration_since(began) < 100 * short);
    connect.go();
    fakes[0].set_fault(Fault::None);
    eventually("the release is made", || fakes[0].token(key).is_none());
    drop(locker.lock("y", TTL).expect("it is up"));
    assert_eq!(fakes[0].count(Op::ForceRelease), 0);
    assert_eq!(fakes[0].acquire_tokens().len(), 2);
}

/// The reply of a run that has ended arrives after that of its successor.
#[test]
fn connect_that_one_to_a_restarted_server_overtakes_is_no_second_server() {
    let fakes = FakeNode::fakes(1);
    let locker = connected_locker(&fakes, |config| impatient(config).pool_size(2)).expect("up");
    let served = || {
        let names = (0..8).map(|number| number.to_string());
        names
            .filter(|name| matches!(locker.try_lock(name, TTL), Ok(Some(_))))
            .count()
    };
    let connects = || fakes[0].connects().len();
    let late = fakes[0].delay_connect();
    close_all(&fakes);
    (0..2).for_each(|_| late.arrived()); // both have the reply of the first run
    fakes[0].set_fault(Fault::None);
    late.go();
    eventually("one is connected", || connects() == 3 && served() > 0);
    fakes[0].set_run_id("restarted");
    close_all(&fakes);
    eventually("it is connected again", || connects() == 4 && served() > 0);
    late.go();
    eventually("both serve", || served() == 8);
    // Of two servers none would be trusted before many more connects.
    assert!(connects() <= 7, "{}", connects());
}
