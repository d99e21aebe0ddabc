//! Adoptions over fake nodes that meet other adoptions or slow nodes, forced by rendezvous.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::api::lock_token::LockToken;
use crate::api::locker::Locker;
use crate::api::redis_locker::RedisLocker;
use crate::error::error::Error;
use crate::protocol::request::Op;
use crate::tests::fake_node::node;
use crate::tests::fake_node::node::{FakeNode, Fault};

const TTL: Duration = Duration::from_secs(30);

/// Returns a detached lock that all nodes store, and the locker that adopts it.
fn detached_lock(fakes: &[Arc<FakeNode>]) -> (RedisLocker, LockToken) {
    let parent = node::connected_locker(fakes, |c| c).expect("a quorum is up");
    let guard = parent.lock("x", TTL).expect("free");
    node::eventually("all nodes have it", || {
        fakes.iter().all(|f| f.token("x").is_some())
    });
    (
        node::connected_locker(fakes, |c| c).expect("a quorum is up"),
        guard.into_token().expect("held"),
    )
}

#[test]
fn adoption_without_a_quorum_releases_its_swapped_tokens() {
    let fakes = FakeNode::fakes(3);
    let (child, token) = detached_lock(&fakes);
    for fake in &fakes[1..] {
        fake.set_fault(Fault::Fails(Op::Adopt));
    }
    let error = child.adopt(&token, TTL).unwrap_err();
    assert!(error.is_unavailable(), "{error}");
    node::eventually("what was swapped is released", || {
        fakes[0].token("x").is_none()
    });
    for fake in &fakes[1..] {
        assert_eq!(
            fake.token("x").as_deref(),
            Some(token.secret()),
            "not swapped"
        );
    }
}

#[test]
fn node_that_replies_late_to_an_adoption_is_released_too() {
    let fakes = FakeNode::fakes(3);
    let (child, token) = detached_lock(&fakes);
    // Another process has adopted it on two nodes.
    for fake in &fakes[1..] {
        fake.seize("x", TTL);
    }
    let late = fakes[0].delay(Op::Adopt);
    let decides = fakes[1].delay(Op::Adopt);
    thread::scope(|scope| {
        let adopts = scope.spawn(|| child.adopt(&token, TTL));
        late.arrived();
        decides.arrived();
        decides.go();
        assert!(matches!(
            adopts.join().unwrap().unwrap_err(),
            Error::LockLost { .. }
        ));
        late.go();
    });
    fakes[0].set_fault(Fault::None);
    node::eventually("the late one is undone", || fakes[0].token("x").is_none());
    assert!(fakes[1].token("x").is_some(), "the other one keeps it");
}

#[test]
fn two_of_four_are_no_quorum() {
    let fakes = FakeNode::fakes(4);
    let (child, token) = detached_lock(&fakes);
    for fake in &fakes[..2] {
        fake.seize("x", TTL);
    }
    assert!(matches!(
        child.adopt(&token, TTL).unwrap_err(),
        Error::LockLost { .. }
    ));
    // A node that is not reached before the verdict is not asked later, and keeps its token.
    let undone = |t: Option<String>| t.is_none_or(|t| t == token.secret());
    node::eventually("they are undone", || {
        fakes[2..].iter().all(|fake| undone(fake.token("x")))
    });
}
