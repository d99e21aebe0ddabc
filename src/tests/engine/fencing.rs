//! Fencing over fake nodes: one round if fence counters agree, two if they differ, and no lock
//! without a fencing token.

use std::sync::Arc;
use std::time::Duration;

use crate::api::locker::Locker;
use crate::api::options::LockOptions;
use crate::api::redis_locker::RedisLocker;
use crate::api::rw_locker::{RedisRwLocker, RwLocker};
use crate::error::error::Error;
use crate::protocol::kind::LockKind;
use crate::protocol::request::Op;
use crate::tests::engine::setup::healthy;
use crate::tests::fake_node::node::{FakeNode, Fault, eventually};

fn fenced() -> LockOptions {
    LockOptions::new(Duration::from_secs(30)).fencing(true)
}

fn count(fake: &FakeNode) -> Option<u64> {
    fake.stored_lock("x", LockKind::Exclusive).fence
}

fn raises(fakes: &[Arc<FakeNode>]) -> usize {
    fakes.iter().map(|fake| fake.count(Op::RaiseFence)).sum()
}

/// Acquires and releases a lock, and returns its fencing token after all nodes served the requests.
fn token(locker: &RedisLocker, fakes: &[Arc<FakeNode>]) -> u64 {
    let up = |fake: &&Arc<FakeNode>| fake.stored_lock("x", LockKind::Exclusive).owner.is_some();
    let guard = locker.acquire("x", &fenced()).expect("free");
    eventually("all nodes have granted", || {
        fakes.iter().all(|fake| up(&fake))
    });
    let token = guard.fencing_token().expect("it is fenced");
    guard.release().expect("ours");
    // Otherwise another process could ask a node before the release and be refused there.
    eventually("all nodes are free", || !fakes.iter().any(|fake| up(&fake)));
    token
}

#[test]
fn fencing_tokens_increase_and_need_one_round_if_nodes_agree() {
    let fakes = FakeNode::fakes(3);
    let [locker, other] = [healthy(&fakes), healthy(&fakes)];
    // The clocks of the nodes differ, so the first acquire needs two rounds.
    let mut last = 0;
    eventually("they agree", || {
        last = token(&locker, &fakes);
        let counts: Vec<_> = fakes.iter().map(|fake| count(fake)).collect();
        counts.windows(2).all(|pair| pair[0] == pair[1])
    });
    let before = raises(&fakes);
    for locker in [&other, &locker, &other] {
        let token = token(locker, &fakes);
        assert!(token > last, "{token} after {last}");
        last = token;
    }
    assert_eq!(raises(&fakes), before);
    let plain = locker.lock("x", Duration::from_secs(30)).expect("free");
    assert_eq!(plain.fencing_token(), None);
}

#[test]
fn fence_counters_of_a_quorum_reach_the_token_before_the_guard() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let mut last = token(&locker, &fakes);
    // Then both remaining nodes must have a fence counter as high.
    fakes[2].set_fault(Fault::Down);
    for round in 0..12 {
        // A refused attempt of another process may have raised the fence counter of one node.
        fakes[round % 2].modify("x", LockKind::Exclusive, |stored| {
            stored.fence = stored.fence.map(|fence| fence + 1_000);
        });
        let guard = locker.acquire("x", &fenced()).expect("free");
        let token = guard.fencing_token().expect("it is fenced");
        let as_high = fakes.iter().filter(|fake| count(fake) >= Some(token));
        assert!(as_high.count() >= 2, "not on a quorum");
        assert!(token > last, "{token} after {last}");
        last = token;
    }
    assert!(raises(&fakes) > 0);
}

#[test]
fn successive_losses_of_data_do_not_decrease_the_fencing_token() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let mut last = 0;
    for round in 0..12 {
        let token = token(&locker, &fakes);
        assert!(token > last, "{token} after {last}");
        last = token;
        fakes[round % 3].wipe();
    }
}

#[test]
fn lock_without_a_confirmed_fencing_token_is_not_acquired() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let last = token(&locker, &fakes);
    fakes[0].modify("x", LockKind::Exclusive, |stored| {
        stored.fence = stored.fence.map(|fence| fence + 1_000);
    });
    // The two remaining nodes differ.
    fakes[2].set_fault(Fault::Down);
    fakes[..2]
        .iter()
        .for_each(|fake| fake.set_fault(Fault::Fails(Op::RaiseFence)));
    let error = locker
        .try_acquire("x", &fenced())
        .expect_err("no quorum for the raise");
    assert!(matches!(error, Error::InsufficientQuorum { .. }), "{error}");
    eventually("the grants are undone", || {
        fakes[..2].iter().all(|fake| fake.token("x").is_none())
    });
    fakes.iter().for_each(|fake| fake.set_fault(Fault::None));
    let guard = locker.acquire("x", &fenced()).expect("free");
    assert!(guard.fencing_token() > Some(last));
}

#[test]
fn writers_have_tokens_and_readers_have_none() {
    let fakes = FakeNode::fakes(3);
    let locker = RedisRwLocker::new(healthy(&fakes).nodes());
    let mut last = 0;
    for _ in 0..4 {
        let writer = locker.acquire_write("x", &fenced()).expect("free");
        let token = writer.fencing_token().expect("it is fenced");
        assert!(token > last, "{token} after {last}");
        last = token;
        writer.downgrade().expect("ours").release().expect("ours");
        drop(locker.acquire_read("x", &fenced()).expect("free"));
    }
    drop(locker.write("x", Duration::from_secs(30)).expect("free"));
}
