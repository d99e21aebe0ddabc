//! Wake-ups over fake nodes. All delays are so long that only a message explains progress.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::api::guard::LockGuard;
use crate::api::locker::Locker;
use crate::api::options::LockOptions;
use crate::api::redis_locker::RedisLocker;
use crate::engine::attempt::AttemptContext;
use crate::engine::attempt_result::AttemptFailure;
use crate::error::error::Error;
use crate::protocol::kind::LockKind;
use crate::protocol::node_set::NodeSet;
use crate::protocol::request::Op;
use crate::tests::engine::setup;
use crate::tests::engine::setup::{exclusive_key, exclusive_params, slowly_retrying};
use crate::tests::fake_node::node::{
    FakeNode, Fault, assert_no_timeout_elapsed, attempts, connected_locker, eventually,
};
use crate::time::clock;
use crate::transport::cancel::CancelToken;
use crate::transport::inbox::Inbox;

const TTL: Duration = Duration::from_secs(300);

/// Acquires a lock on all nodes.
fn held_everywhere(locker: &RedisLocker, fakes: &[Arc<FakeNode>]) -> LockGuard {
    let held = locker.lock("x", TTL).expect("free");
    eventually("it is on every node", || {
        fakes.iter().all(|fake| fake.token("x").is_some())
    });
    held
}

fn listened(locker: &RedisLocker) -> usize {
    locker.nodes().engine().listener.count()
}

/// Waits until a waiter is subscribed and has tried once more since.
fn listens(fakes: &[Arc<FakeNode>], name: &str, acquires: usize) {
    eventually("a waiter is subscribed", || fakes[0].subscribed(name) > 0);
    // An acquire need not be sent to a node after two others have refused.
    eventually("and has tried again", || {
        let served = fakes.iter().map(|fake| fake.count(Op::Acquire));
        served.max() >= Some(acquires)
    });
}

#[test]
fn release_wakes_a_waiter_that_listens_on_a_node_without_the_key() {
    let fakes = FakeNode::fakes(3);
    let (holder, waiter) = (slowly_retrying(&fakes), slowly_retrying(&fakes));
    fakes[0].seize("x", TTL);
    let held = holder.lock("x", TTL).expect("two nodes are a quorum");
    fakes[0].wipe();
    let began = clock::now();
    thread::scope(|scope| {
        let waits = scope.spawn(|| waiter.lock("x", TTL));
        eventually("the waiter is subscribed", || fakes[0].subscribed("x") > 0);
        eventually("it has tried again, and undone that", || {
            attempts(&fakes) >= 3 && fakes[0].token("x").is_none()
        });
        held.release().expect("two nodes are a quorum");
        let guard = waits.join().expect("no panic").expect("free");
        drop(guard);
    });
    assert_no_timeout_elapsed(began);
}

#[test]
fn release_wakes_a_waiter_of_another_process() {
    let fakes = FakeNode::fakes(3);
    let [holder, waiter] = [slowly_retrying(&fakes), slowly_retrying(&fakes)];
    let held = held_everywhere(&holder, &fakes);
    thread::scope(|scope| {
        let waits = scope.spawn(|| waiter.lock("x", TTL));
        listens(&fakes, "x", 3);
        assert_eq!(fakes[0].subscribed("x"), 1);
        let began = clock::now();
        drop(held);
        let guard = waits.join().expect("no panic").expect("woken");
        assert_no_timeout_elapsed(began);
        guard.release().expect("ours");
    });
    eventually("nothing stays subscribed", || {
        listened(&waiter) == 0 && fakes[0].subscribed("x") == 0
    });
}

#[test]
fn release_before_the_subscription_is_not_missed() {
    for _ in 0..50 {
        let fakes = FakeNode::fakes(1);
        let [holder, waiter] = [slowly_retrying(&fakes), slowly_retrying(&fakes)];
        let held = holder.lock("x", TTL).expect("free");
        thread::scope(|scope| {
            let waits = scope.spawn(|| waiter.lock("x", TTL));
            eventually("refused", || fakes[0].count(Op::Acquire) >= 2);
            let began = clock::now();
            drop(held);
            waits.join().expect("no panic").map(drop).expect("woken");
            assert_no_timeout_elapsed(began);
        });
    }
}

#[test]
fn two_hundred_waiters_acquire_in_turn_by_messages_alone() {
    let fakes = FakeNode::fakes(3);
    let processes: Vec<_> = (0..4).map(|_| slowly_retrying(&fakes)).collect();
    let inside = AtomicUsize::new(0);
    let began = clock::now();
    thread::scope(|scope| {
        for locker in &processes {
            for _ in 0..50 {
                scope.spawn(|| {
                    let guard = locker.lock("x", TTL).expect("woken");
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                    inside.fetch_sub(1, Ordering::SeqCst);
                    drop(guard);
                });
            }
        }
    });
    assert_no_timeout_elapsed(began);
}

#[test]
fn undo_of_an_attempt_that_a_quorum_may_have_granted_wakes_a_waiter() {
    let fakes = FakeNode::fakes(3);
    let [cancelled, waiter] = [slowly_retrying(&fakes), slowly_retrying(&fakes)];
    // The fence counters of two nodes differ, so a second round raises the lower one.
    fakes[2].set_fault(Fault::Down);
    fakes[1].modify("x", LockKind::Exclusive, |stored| stored.fence = Some(1));
    let delayed = fakes[1].delay(Op::RaiseFence);
    let token = CancelToken::new();
    let options = LockOptions::new(TTL).fencing(true).cancel_on(&token);
    let began = clock::now();
    thread::scope(|scope| {
        let attempt = scope.spawn(|| cancelled.acquire("x", &options).err());
        delayed.arrived();
        let waits = scope.spawn(|| waiter.lock("x", TTL));
        listens(&fakes, "x", 3);
        eventually("its only check has found the lock held", || {
            fakes[0].count(Op::TakePlace) >= 2
        });
        token.cancel();
        let cancelled = attempt.join().expect("no panic");
        assert_eq!(cancelled, Some(Error::Cancelled));
        delayed.go();
        drop(waits.join().expect("no panic").expect("woken"));
    });
    assert_no_timeout_elapsed(began);
}

#[test]
fn woken_waiter_asks_the_node_that_woke_it_first() {
    let fakes = FakeNode::fakes(3);
    let locker = slowly_retrying(&fakes);
    let engine = locker.nodes().engine();
    let params = exclusive_params("x", TTL);
    let inbox = Arc::new(Inbox::new());
    let attempt = |first| {
        let context = AttemptContext {
            preferred_node: first,
            ..AttemptContext::new(&params, &inbox)
        };
        engine.attempt(&context).expect("randomness").result
    };
    let acquires = || [0, 1, 2].map(|node: usize| fakes[node].count(Op::Acquire));
    let free = |fake: &FakeNode| fake.token("x").is_none();
    let mut before = acquires();
    fakes[1].seize("x", TTL);
    // On a slow machine the first node may seem slow, so the others are asked before its reply.
    let lost = loop {
        match attempt(Some(1)) {
            Err(lost) => break lost,
            Ok(won) => {
                engine.nodes.release_unawaited(&won, NodeSet::default());
                eventually("free", || free(&fakes[0]) && free(&fakes[2]));
            }
        }
        before = acquires();
    };
    assert!(matches!(lost, AttemptFailure::Contended(met) if met.single_node));
    assert_eq!(acquires(), [before[0], before[1] + 1, before[2]]);
    // A node that fails or hangs does not refuse, so the others are asked as well.
    fakes[1].set_fault(Fault::Fails(Op::Acquire));
    let won = attempt(Some(1)).ok().expect("by the others");
    engine.nodes.release_unawaited(&won, NodeSet::default());
    eventually("free", || free(&fakes[0]) && free(&fakes[2]));
    let late = fakes[1].delay(Op::Acquire);
    attempt(Some(1)).ok().expect("without the hung one");
    late.go();
}

/// The node that woke the waiter still refuses; the others are free. One node cannot say that a
/// lock is held, so the last attempt asks all of them.
#[test]
fn last_attempt_asks_all_nodes_although_one_woke_it() {
    let fakes = FakeNode::fakes(3);
    let holder = slowly_retrying(&fakes);
    let twice = |config| setup::slow_retries_at_most(config, 2);
    let waiter = connected_locker(&fakes, twice).expect("a quorum is up");
    let held = held_everywhere(&holder, &fakes);
    thread::scope(|scope| {
        let waits = scope.spawn(|| waiter.lock("x", TTL));
        eventually("the waiter is subscribed", || fakes[0].subscribed("x") > 0);
        fakes[0].seize("x", TTL);
        let late = fakes[0].delay(Op::Release);
        let releases = scope.spawn(|| held.release());
        late.arrived();
        eventually("the others are free", || {
            fakes[1].token("x").is_none() && fakes[2].token("x").is_none()
        });
        late.go();
        let released = releases.join().expect("no panic");
        released.expect("two nodes are a quorum");
        let acquired = waits.join().expect("no panic");
        drop(acquired.expect("granted by the others"));
    });
    assert_eq!(fakes[0].count(Op::Acquire), 1 + 2);
}

#[test]
fn listener_that_loses_its_node_subscribes_at_the_next_and_wakes_all() {
    let fakes = FakeNode::fakes(3);
    let [holder, waiter] = [slowly_retrying(&fakes), slowly_retrying(&fakes)];
    let held = held_everywhere(&holder, &fakes);
    thread::scope(|scope| {
        let waits = scope.spawn(|| waiter.lock("x", TTL));
        listens(&fakes, "x", 3);
        fakes[0].set_fault(Fault::Down);
        eventually("another is listened to", || fakes[1].subscribed("x") > 0);
        let began = clock::now();
        drop(held);
        waits.join().expect("no panic").map(drop).expect("woken");
        assert_no_timeout_elapsed(began);
    });
}

/// Ends a flow of messages when dropped.
struct Flow<'a>(&'a AtomicBool);

impl Drop for Flow<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn refused_listener_subscribes_at_the_next_node_and_returns_under_load() {
    let fakes = FakeNode::fakes(3);
    let [holder, waiter] = [slowly_retrying(&fakes), slowly_retrying(&fakes)];
    let held = held_everywhere(&holder, &fakes);
    fakes[0].set_fault(Fault::DeniesSubscribers);
    let stop = AtomicBool::new(false);
    let key = exclusive_key("x");
    thread::scope(|scope| {
        let flow = Flow(&stop);
        let waits = scope.spawn(|| waiter.lock("x", TTL));
        eventually("another is listened to", || fakes[1].subscribed("x") > 0);
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                fakes[1].publish(&key.channel());
                thread::park_timeout(Duration::from_millis(5));
            }
        });
        fakes[0].set_fault(Fault::None);
        eventually("the first one is again", || {
            fakes[0].subscribed("x") > 0 && fakes[1].subscribed("x") == 0
        });
        drop(flow);
        let began = clock::now();
        drop(held);
        waits.join().expect("no panic").map(drop).expect("woken");
        assert_no_timeout_elapsed(began);
    });
}

#[test]
fn waiter_that_is_cancelled_or_gives_up_unsubscribes() {
    let fakes = FakeNode::fakes(3);
    let [holder, waiter] = [slowly_retrying(&fakes), slowly_retrying(&fakes)];
    let held = holder.lock("x", TTL).expect("free");
    let token = CancelToken::new();
    thread::scope(|scope| {
        let options = LockOptions::new(TTL).cancel_on(&token);
        let waits = scope.spawn(move || waiter_of(&waiter, &options));
        listens(&fakes, "x", 3);
        let began = clock::now();
        token.cancel();
        let ended = waits.join().expect("no panic");
        assert_no_timeout_elapsed(began);
        assert_eq!(ended, Some(Error::Cancelled));
    });
    eventually("nothing stays subscribed", || fakes[0].subscribed("x") == 0);
    held.release().expect("ours");
}

fn waiter_of(locker: &RedisLocker, options: &LockOptions) -> Option<Error> {
    locker.acquire("x", options).err()
}

#[test]
fn waiting_threads_of_a_process_send_one_request() {
    let fakes = FakeNode::fakes(1);
    let [holder, waiter] = [slowly_retrying(&fakes), slowly_retrying(&fakes)];
    let held = holder.lock("x", TTL).expect("free");
    let mut began = None;
    thread::scope(|scope| {
        for _ in 0..30 {
            scope.spawn(|| drop(waiter.lock("x", TTL).expect("woken")));
        }
        listens(&fakes, "x", 3);
        thread::park_timeout(Duration::from_millis(100));
        let seen = (fakes[0].count(Op::Acquire), fakes[0].subscribed("x"));
        began = Some(clock::now());
        drop(held);
        assert_eq!(seen, (3, 1), "one of thirty asks");
    });
    assert_no_timeout_elapsed(began.expect("it was released"));
}

/// Further attempts would cost the nodes and the winner's processor more than they gain: a waiter
/// that loses has been refused, and the winner's release wakes it again.
#[test]
fn waiter_that_loses_after_a_release_attempts_once_per_release() {
    let fakes = FakeNode::fakes(1);
    let waiter = slowly_retrying(&fakes);
    fakes[0].seize("x", TTL);
    let channel = exclusive_key("x").channel();
    thread::scope(|scope| {
        let waits = scope.spawn(|| waiter.lock("x", TTL));
        listens(&fakes, "x", 2);
        for release in 1..=2 {
            fakes[0].publish(&channel);
            let attempts = 2 + release;
            eventually("it attempts", || fakes[0].count(Op::Acquire) == attempts);
            thread::park_timeout(Duration::from_millis(100));
            assert_eq!(fakes[0].count(Op::Acquire), attempts);
        }
        fakes[0].wipe();
        fakes[0].publish(&channel);
        drop(waits.join().expect("no panic").expect("free"));
    });
}

/// A waiter may listen on the node that refused the holder (L4). The holder may learn of the
/// refusal before its release is sent, after it, or between.
#[test]
fn release_is_published_on_a_node_that_refused_the_holder() {
    for is_late in [false, true] {
        let fakes = FakeNode::fakes(3);
        let locker = slowly_retrying(&fakes);
        fakes[2].seize("x", TTL);
        let late = is_late.then(|| fakes[2].delay(Op::Acquire));
        let guard = locker.lock("x", TTL).expect("granted by two of three");
        match &late {
            Some(late) => late.arrived(),
            None => eventually("the refusal", || fakes[2].count(Op::Acquire) == 1),
        }
        guard.release().expect("released on two of three");
        if let Some(late) = late {
            fakes[2].set_fault(Fault::None);
            late.go();
        }
        eventually("the release is published", || fakes[2].published() == 1);
        assert!(fakes[2].token("x").is_some(), "another's token stays");
    }
}

/// A waiter may listen on a node that was down when the lock was acquired (L4).
#[test]
fn release_is_published_on_a_node_that_was_down() {
    let fakes = FakeNode::fakes(3);
    fakes[2].set_fault(Fault::Down);
    let locker = slowly_retrying(&fakes);
    let guard = locker.lock("x", TTL).expect("granted by two of three");
    fakes[2].set_fault(Fault::None);
    eventually("node 2 is back", || {
        drop(locker.lock("other", TTL).expect("free"));
        fakes[2].count(Op::Acquire) > 0
    });
    // All nodes are asked, so node 2 has served the releases of the other lock.
    locker.holder("other").expect("a quorum");
    let before = fakes[2].published();
    guard.release().expect("released on two of three");
    eventually("the release is published", || {
        fakes[2].published() == before + 1
    });
}

#[test]
fn release_with_foreign_receivers_yields_to_others() {
    let fakes = FakeNode::fakes(1);
    let [holder, waiter] = [slowly_retrying(&fakes), slowly_retrying(&fakes)];
    let key = exclusive_key("x");
    let yields_to_others = |locker: &RedisLocker| {
        locker
            .nodes()
            .engine()
            .listener
            .yield_deadline(&key.clone().into())
    };
    let held = holder.lock("x", TTL).expect("free");
    thread::scope(|scope| {
        let waits = scope.spawn(|| {
            drop(waiter.lock("x", TTL).expect("woken"));
            clock::now()
        });
        listens(&fakes, "x", 3);
        assert_eq!(yields_to_others(&holder), None);
        let woken = clock::now();
        held.release().expect("ours");
        assert!(yields_to_others(&holder).is_some());
        // The waiter's channel stays subscribed for 500 ms. After that it cannot know that the
        // receiver was its own.
        let ended = waits.join().expect("no panic");
        assert_no_timeout_elapsed(woken);
        if ended - woken < Duration::from_millis(250) {
            assert_eq!(
                yields_to_others(&waiter),
                None,
                "the only receiver was its own"
            );
        }
    });
    // The yielding thread waits no longer than that even if no other process acquires, and stops
    // when the last receiver is gone.
    eventually("no waiter is subscribed", || fakes[0].subscribed("x") == 0);
    holder
        .lock("x", TTL)
        .expect("free")
        .release()
        .expect("ours");
    assert_eq!(yields_to_others(&holder), None);
}
