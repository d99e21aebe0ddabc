//! Tokens and releases over fake nodes: no attempt and no guard leaves a token on a node (S3, S4).

use std::thread;
use std::time::Duration;

use crate::api::locker::Locker;
use crate::config::on_drop::OnDrop;
use crate::error::error::Error;
use crate::error::loss_reason::LossReason;
use crate::error::node_failure::NodeFailure;
use crate::error::operation::Operation;
use crate::protocol::request::Op;
use crate::tests::engine::setup::{
    SHORT, TTL, all_free, attempts, delay_acquires, healthy, holders, impatient, set_faults,
};
use crate::tests::fake_node::node::{FakeNode, Fault, connected_locker, eventually, on_log_line};
use crate::time::clock;

#[test]
fn each_attempt_has_a_fresh_token() {
    let fakes = FakeNode::fakes(1);
    let locker = connected_locker(&fakes, |config| attempts(config, 3)).expect("it is up");
    fakes[0].set_fault(Fault::FailsAfterApplying(Op::Acquire));
    locker.lock("x", TTL).expect_err("it errs");
    let mut tokens = fakes[0].acquire_tokens();
    assert_eq!(tokens.len(), 3);
    tokens.sort();
    tokens.dedup();
    assert_eq!(tokens.len(), 3);
}

#[test]
fn lock_of_another_owner_is_left_alone() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let guard = locker.lock("x", TTL).expect("free");
    fakes.iter().for_each(|fake| fake.wipe());
    fakes.iter().for_each(|fake| fake.seize("x", TTL));
    let lost = Error::LockLost {
        key: "x".into(),
        reason: LossReason::NotOurs,
    };
    assert_eq!(guard.extend(TTL), Err(lost.clone()));
    assert!(!guard.is_held());
    assert_eq!(guard.watch().loss_reason(), Some(LossReason::NotOurs));
    assert_eq!(guard.check(), Err(lost));
    assert!(matches!(guard.release(), Err(Error::LockLost { .. })));
    assert!(
        fakes
            .iter()
            .all(|fake| fake.token("x").as_deref() == Some("stranger"))
    );
}

#[test]
fn late_grant_of_a_refused_round_is_undone() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let late = delay_acquires(&fakes);
    fakes[0].seize("x", TTL);
    fakes[1].seize("x", TTL);
    thread::scope(|scope| {
        let tried = scope.spawn(|| locker.try_lock("x", TTL));
        late.iter().for_each(|node| node.arrived());
        late[0].go();
        late[1].go();
        let tried = tried.join().expect("no panic").expect("the nodes replied");
        assert!(tried.is_none());
    });
    fakes.iter().for_each(|fake| fake.set_fault(Fault::None));
    late[2].go();
    eventually("granted and undone", || fakes[2].count(Op::Release) == 1);
    assert_eq!(fakes[2].acquire_tokens().len(), 1);
    assert_eq!(fakes[2].token("x"), None);
    assert_eq!(fakes[0].count(Op::Release), 0, "refused: nothing to undo");
}

#[test]
fn grant_reported_as_an_error_is_undone() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    fakes
        .iter()
        .for_each(|fake| fake.set_fault(Fault::FailsAfterApplying(Op::Acquire)));
    let error = locker.try_lock("x", TTL).expect_err("no quorum replied");
    assert!(error.is_unavailable(), "{error}");
    all_free(&fakes, "x");
}

#[test]
fn grant_without_a_reply_is_undone_after_the_reconnect() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    fakes
        .iter()
        .for_each(|fake| fake.set_fault(Fault::DisconnectsAfter(Op::Acquire)));
    let error = locker.try_lock("x", TTL).expect_err("no node replies");
    assert!(error.is_unavailable(), "{error}");
    // Two disconnects decide the round. The acquire of the third node may have been dropped unsent.
    let again = || fakes.iter().filter(|fake| fake.connects().len() == 2);
    eventually("the broken ones are connected to again", || {
        again().count() >= 2
    });
    all_free(&fakes, "x");
    // The new session names the former one, so that the former is killed before any request.
    for fake in again() {
        let former = fake.connects()[1].clone().expect("a former session");
        assert_eq!(former.client_id, 1);
    }
}

#[test]
fn late_grant_of_a_granted_round_belongs_to_the_guard() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let late = fakes[1].delay(Op::Acquire);
    let guard = locker.lock("x", TTL).expect("two of three");
    late.arrived();
    late.go();
    eventually("the third grants", || holders(&fakes, "x") == 3);
    fakes[1].set_fault(Fault::None);
    guard.release().expect("a quorum deleted it");
    all_free(&fakes, "x");
}

#[test]
fn release_with_an_error_reply_stays_pending() {
    let fakes = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    let guard = locker.lock("x", TTL).expect("free");
    fakes[0].set_fault(Fault::Fails(Op::Release));
    let error = guard.release().expect_err("it cannot delete now");
    assert!(error.to_string().contains("MISCONF"), "{error}");
    fakes[0].set_fault(Fault::None);
    all_free(&fakes, "x");
}

#[test]
fn release_that_fails_on_three_of_five_nodes_names_the_cause_of_each() {
    let fakes = FakeNode::fakes(5);
    let locker = connected_locker(&fakes, impatient).expect("all are up");
    let guard = locker.lock("x", TTL).expect("free");
    eventually("all have it", || holders(&fakes, "x") == 5);
    let hung = fakes[4].delay(Op::Release);
    fakes[0].set_fault(Fault::Fails(Op::Release));
    fakes[2].set_fault(Fault::Down);
    eventually("it is noticed", || locker.nodes().engine().nodes_up() == 4);
    let error = guard.release().expect_err("two of five");
    let Error::InsufficientQuorum {
        operation,
        needed,
        total,
        causes,
        ..
    } = error
    else {
        panic!("{error}")
    };
    assert_eq!((operation, needed, total), (Operation::Release, 3, 5));
    let [refused, down, silent] = &causes[..] else {
        panic!("{causes:?}")
    };
    let named = [refused, down, silent].map(|cause| &*cause.node);
    assert_eq!(named, ["fake-0", "fake-2", "fake-4"]);
    assert!(
        matches!(&refused.failure, NodeFailure::ServerError(words) if words.starts_with("MISCONF")),
        "{refused:?}"
    );
    assert_eq!(down.failure, NodeFailure::Unreachable("down".into()));
    assert_eq!(silent.failure, NodeFailure::TimedOut);
    for deleted in [1, 3] {
        assert_eq!(fakes[deleted].token("x"), None, "node {deleted}");
    }
    // The releases stay pending.
    set_faults(&fakes, &Fault::None);
    hung.go();
    all_free(&fakes, "x");
}

#[test]
fn undo_of_an_unanswered_acquire_does_not_expire() {
    let fakes = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    let ttl = Duration::from_millis(50);
    fakes[0].set_fault(Fault::GoesDownAfter(Op::Acquire));
    locker.try_lock("x", ttl).expect_err("no node replies");
    // A resumed server runs the requests in its socket long after the TTL.
    let ended = clock::now() + 3 * ttl;
    eventually("the TTL has passed", || clock::now() > ended);
    fakes[0].set_fault(Fault::None);
    eventually("it was undone", || fakes[0].count(Op::Release) == 1);
}

#[test]
fn node_that_is_down_collects_no_releases() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let ttl = Duration::from_millis(200);
    let accepted = |n: usize| locker.lock(&n.to_string(), ttl).expect("two of three");
    let guards: Vec<_> = (0..50).map(accepted).collect();
    eventually("all are on all", || fakes[1].acquire_tokens().len() >= 50);
    fakes[1].set_fault(Fault::Down);
    // On a slow machine an attempt may have been too slow and undone.
    let before = fakes[1].count(Op::Release);
    drop(guards);
    let ended = clock::now() + 3 * ttl;
    eventually("the TTLs have passed", || clock::now() > ended);
    fakes[1].set_fault(Fault::None);
    eventually("it is back", || locker.nodes().engine().nodes_up() == 3);
    assert_eq!(
        fakes[1].count(Op::Release),
        before,
        "a release whose key cannot exist was kept"
    );
}

#[test]
fn drop_with_hung_nodes_is_bounded_and_counted() {
    let fakes = FakeNode::fakes(3);
    let locker = connected_locker(&fakes, impatient).expect("all are up");
    let guard = locker.lock("x", TTL).expect("free");
    let hung: Vec<_> = fakes.iter().map(|fake| fake.delay(Op::Release)).collect();
    let started = clock::now();
    drop(guard);
    assert!(clock::now().duration_since(started) < 20 * SHORT);
    assert_eq!(locker.nodes().drop_failures(), 1);
    for (fake, hung) in fakes.iter().zip(&hung) {
        fake.set_fault(Fault::None);
        hung.go();
    }
    all_free(&fakes, "x");
}

#[test]
fn background_drop_returns_when_the_release_is_queued() {
    let fakes = FakeNode::fakes(1);
    let locker =
        connected_locker(&fakes, |config| config.on_drop(OnDrop::Background)).expect("it is up");
    let guard = locker.lock("x", TTL).expect("free");
    let late = fakes[0].delay(Op::Release);
    drop(guard);
    late.arrived();
    assert!(fakes[0].token("x").is_some(), "not released yet");
    fakes[0].set_fault(Fault::None);
    late.go();
    locker
        .lock("x", TTL)
        .expect("the acquire follows the release")
        .release()
        .expect("ours");
}

#[test]
fn release_without_a_reply_succeeds_if_the_key_is_gone() {
    let fakes = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    let guard = locker.lock("x", TTL).expect("free");
    fakes[0].set_fault(Fault::DisconnectsAfter(Op::Release));
    guard.release().expect("it was our release that deleted it");
    assert_eq!(fakes[0].count(Op::Release), 2);
}

#[test]
fn guard_is_released_once() {
    let fakes = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    let guard = locker.lock("x", TTL).expect("free");
    guard.release().expect("ours");
    assert_eq!(fakes[0].count(Op::Release), 1);
    assert_eq!(locker.nodes().drop_failures(), 0, "its drop did nothing");
}

#[test]
fn release_of_a_missing_key_is_a_loss() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let guard = locker.lock("x", TTL).expect("free");
    eventually("all three", || holders(&fakes, "x") == 3);
    fakes[0].wipe();
    fakes[2].wipe();
    assert!(matches!(guard.release(), Err(Error::LockLost { .. })));
}

/// The lines of a reply and of a round are logged while a token may be on a node without an undo.
#[test]
fn attempt_with_a_panicking_logger_leaves_no_token() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    fakes[1..].iter().for_each(|fake| fake.seize("x", TTL));
    on_log_line(|_| panic!("as the test wants it"));
    let tried = locker.try_lock("x", TTL).expect("the nodes replied");
    assert!(tried.is_none());
    fakes[0].set_fault(Fault::DeniesOp(Op::Acquire));
    drop(locker.lock("y", TTL).expect("free"));
    on_log_line(|_| {});
    eventually("it is undone", || fakes[0].token("x").is_none());
    all_free(&fakes, "y");
}

#[test]
fn panic_releases_the_guard() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    thread::scope(|scope| {
        let panicked = scope.spawn(|| {
            let _guard = locker.lock("x", TTL).expect("free");
            panic!("as the test wants it")
        });
        panicked.join().expect_err("it panics");
    });
    all_free(&fakes, "x");
    assert_eq!(locker.nodes().drop_failures(), 0);
}

// Shutdown.
