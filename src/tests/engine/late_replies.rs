//! Late events over fake nodes: replies after the verdict, a callback after the loss, and a free
//! lock without a message.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::api::guard::LockGuard;
use crate::api::locker::Locker;
use crate::api::options::LockOptions;
use crate::api::redis_locker::RedisLocker;
use crate::config::on_drop::OnDrop;
use crate::protocol::kind::{LeaseKind, LockKind};
use crate::protocol::lease::Lease;
use crate::protocol::lost_lock::OnLostCallback;
use crate::protocol::request::Op;
use crate::protocol::token::Token;
use crate::tests::engine::setup::{
    exclusive_key, exclusive_params, healthy, set_faults, slow_retries,
};
use crate::tests::fake_node::node::{FakeNode, Fault, connected_locker, eventually};
use crate::time::clock;

const TTL: Duration = Duration::from_secs(60);

/// Delays the reply of the last node, which has lost the key, until the others have decided.
fn answers_last(fakes: &[Arc<FakeNode>], extended: impl FnOnce()) {
    fakes[2].modify("x", LockKind::Exclusive, |stored| stored.owner = None);
    let late = fakes[2].delay(Op::Extend);
    extended();
    late.arrived();
    assert_eq!(fakes[2].token("x"), None);
    late.go();
    eventually("the key is back", || fakes[2].token("x").is_some());
}

fn everywhere(fakes: &[Arc<FakeNode>]) {
    eventually("all have granted", || {
        fakes.iter().all(|fake| fake.token("x").is_some())
    });
}

/// Acquires the lock on all nodes, with a renewal after two seconds.
fn renewed(locker: &RedisLocker, fakes: &[Arc<FakeNode>]) -> LockGuard {
    let options = LockOptions::new(Duration::from_secs(6)).auto_renew(true);
    let guard = locker.acquire("x", &options).expect("free");
    everywhere(fakes);
    guard
}

#[test]
fn late_reply_to_an_extension_restores_the_key() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let guard = locker.lock("x", TTL).expect("free");
    everywhere(&fakes);
    answers_last(&fakes, || guard.extend(TTL).expect("by a quorum"));
    guard.release().expect("ours");
}

#[test]
fn late_reply_to_a_renewal_restores_the_key() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let guard = renewed(&locker, &fakes);
    let left = guard.remaining();
    answers_last(&fakes, || {
        eventually("it runs down", || {
            guard.remaining() + Duration::from_secs(1) < left
        });
        eventually("renewed by a quorum", || {
            guard.remaining() + Duration::from_millis(500) > left
        });
    });
    assert!(guard.is_held());
}

#[test]
fn second_late_reply_to_a_renewal_restores_the_key() {
    let fakes = FakeNode::fakes(5);
    let locker = healthy(&fakes);
    let guard = renewed(&locker, &fakes);
    fakes[4].wipe();
    let late = [3, 4].map(|node: usize| fakes[node].delay(Op::Extend));
    late.iter().for_each(|late| late.arrived());
    let renewed_at = clock::now();
    eventually("renewed by a quorum", || {
        guard.remaining() + (clock::now() - renewed_at) > Duration::from_secs(5)
    });
    let replies = || locker.nodes().stats().nodes[3].done;
    let before = replies();
    late[0].go();
    eventually("the first late reply", || replies() > before);
    assert_eq!(fakes[4].token("x"), None);
    late[1].go();
    eventually("the key is back", || fakes[4].token("x").is_some());
}

#[test]
fn early_reply_to_a_renewal_restores_the_key_after_the_verdict() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let _guard = renewed(&locker, &fakes);
    fakes[2].wipe();
    // The node decides the first renewal, and leaves the next ones undecided.
    let decides = fakes[1].delay(Op::Extend);
    decides.arrived();
    eventually("the key is reported as lost", || {
        fakes[2].count(Op::Extend) == 1
    });
    assert_eq!(fakes[2].token("x"), None);
    decides.go();
    eventually("the key is back", || fakes[2].token("x").is_some());
}

#[test]
fn unconfirmed_renewal_restores_nothing() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let guard = renewed(&locker, &fakes);
    set_faults(&fakes[..2], &Fault::FailsAfterApplying(Op::Extend));
    fakes[2].wipe();
    eventually("the renewal is repeated", || {
        fakes[2].count(Op::Extend) >= 4
    });
    // A restore after the first renewals would precede the last one on the node's connection.
    assert_eq!(fakes[2].count(Op::Restore), 0);
    set_faults(&fakes, &Fault::None);
    eventually("the key is back", || fakes[2].token("x").is_some());
    guard.release().expect("ours");
}

#[test]
fn loss_before_the_callback_is_registered_is_notified() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let engine = locker.nodes().engine();
    let notified = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&notified);
    let tell = OnLostCallback(Arc::new(move |_: &_| {
        count.fetch_add(1, Ordering::SeqCst);
    }));
    let mut params = exclusive_params("x", TTL);
    params.lease_options.on_lost = Some(tell);
    for (n, is_over) in [true, false].into_iter().enumerate() {
        let token = Token::fresh(None).expect("random bytes");
        let lease = Lease::new(exclusive_key("x"), token, LeaseKind::Exclusive);
        let lease = Arc::new(lease);
        let now = clock::now();
        assert!(lease.activate(if is_over { now } else { now + TTL }, clock::wall_offset()));
        assert!(is_over || lease.mark_not_ours());
        engine
            .apply_lease_options(&lease, &params)
            .expect("a thread");
        eventually("the loss is notified", || {
            notified.load(Ordering::SeqCst) == n + 1
        });
    }
}

#[test]
fn split_vote_whose_first_node_granted_is_won_without_a_message() {
    let fakes = FakeNode::fakes(3);
    let adjust = |config| slow_retries(config).on_drop(OnDrop::Background);
    let locker = connected_locker(&fakes, adjust).expect("a quorum is up");
    fakes[1..].iter().for_each(|fake| fake.seize("x", 5 * TTL));
    let start = clock::now();
    thread::scope(|scope| {
        let refusing = [fakes[1].delay(Op::Acquire), fakes[2].delay(Op::Acquire)];
        let patient = LockOptions::new(TTL).wait_for(TTL);
        let waits = scope.spawn({
            let locker = &locker;
            move || locker.acquire("x", &patient)
        });
        // The nodes of a split vote are asked again until the attempt releases its grants.
        for n in 1..=3 {
            refusing.iter().for_each(|late| late.arrived());
            for fake in fakes[1..].iter().filter(|_| n == 3) {
                fake.modify("x", LockKind::Exclusive, |stored| stored.owner = None);
            }
            refusing.iter().for_each(|late| late.go());
        }
        drop(waits.join().expect("no panic").expect("it is free"));
    });
    assert_eq!(fakes[0].count(Op::Acquire), 1, "its grant is kept");
    assert!(clock::now() - start < TTL, "by a delay of the policy");
}
