//! Wake-ups over fake nodes: delays are so long here that only a message explains progress.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::api::guard::LockGuard;
use crate::api::locker::{Locker, RedisLocker};
use crate::api::options::LockOptions;
use crate::engine::attempt::AttemptContext;
use crate::engine::attempt_result::AttemptFailure;
use crate::engine::params::{AcquireParams, LeaseOptions};
use crate::error::Error;
use crate::protocol::key::Key;
use crate::protocol::kind::{LeaseKind, LockKind};
use crate::protocol::quorum::NodeSet;
use crate::protocol::request::Op;
use crate::protocol::retry::RetryPolicy;
use crate::protocol::ttl::Ttl;
use crate::tests::fake_node::node::{
    FakeNode, Fault, assert_no_timeout_elapsed, connected_locker, eventually,
};
use crate::time::clock;
use crate::transport::cancel::CancelToken;
use crate::transport::inbox::Inbox;

const TTL: Duration = Duration::from_secs(300);

fn sluggish(fakes: &[Arc<FakeNode>]) -> RedisLocker {
    let policy = RetryPolicy {
        initial_delay: TTL,
        max_delay: TTL,
        jitter: 0.0,
        ..RetryPolicy::default()
    };
    connected_locker(fakes, |config| config.retry(policy)).expect("a quorum is up")
}

/// A lock on all nodes: where it is not, its release is not heard.
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

/// Waits until somebody listens who has tried once more since.
fn listens(fakes: &[Arc<FakeNode>], name: &str, takes: usize) {
    eventually("somebody listens", || fakes[0].subscribed(name) > 0);
    // A take need not be sent to a node once two others have refused.
    eventually("and has tried again", || {
        let served = fakes.iter().map(|fake| fake.count(Op::Acquire));
        served.max() >= Some(takes)
    });
}

#[test]
fn a_release_wakes_a_waiter_of_another_process() {
    let fakes = FakeNode::fakes(3);
    let [holder, waiter] = [sluggish(&fakes), sluggish(&fakes)];
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
fn a_release_before_the_subscription_stands_is_not_missed() {
    for _ in 0..50 {
        let fakes = FakeNode::fakes(1);
        let [holder, waiter] = [sluggish(&fakes), sluggish(&fakes)];
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
fn two_hundred_waiters_get_it_one_after_the_other_by_messages_alone() {
    let fakes = FakeNode::fakes(3);
    let processes: Vec<_> = (0..4).map(|_| sluggish(&fakes)).collect();
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
fn woken_waiter_asks_the_node_that_woke_it_first() {
    let fakes = FakeNode::fakes(3);
    let locker = sluggish(&fakes);
    let engine = locker.nodes().engine();
    let wish = AcquireParams {
        keys: Key::parse("redguard:", "x", LockKind::Exclusive)
            .expect("good")
            .into(),
        kind: LeaseKind::Exclusive,
        ttl: Ttl::parse(TTL, 0.5).expect("good"),
        fenced: false,
        cancel: None,
        lease_options: LeaseOptions::default(),
    };
    let inbox = Arc::new(Inbox::new());
    let attempt = |first| {
        let context = AttemptContext {
            preferred_node: first,
            ..AttemptContext::new(&wish, &inbox)
        };
        engine.attempt(&context).expect("randomness").result
    };
    let takes = || [0, 1, 2].map(|node: usize| fakes[node].count(Op::Acquire));
    let free = |fake: &FakeNode| fake.token("x").is_none();
    let mut before = takes();
    fakes[1].seize("x", TTL);
    // A node that takes its time is not waited for: on a busy machine that is what it looks like.
    let lost = loop {
        match attempt(Some(1)) {
            Err(lost) => break lost,
            Ok(won) => {
                engine.nodes.release_unawaited(&won, NodeSet::default());
                eventually("free", || free(&fakes[0]) && free(&fakes[2]));
            }
        }
        before = takes();
    };
    assert!(matches!(lost, AttemptFailure::Contended(met) if met.single_node));
    assert_eq!(takes(), [before[0], before[1] + 1, before[2]]);
    // One that errs or hangs says nothing, so the others are asked as well.
    fakes[1].set_fault(Fault::Fails(Op::Acquire));
    let won = attempt(Some(1)).ok().expect("by the others");
    engine.nodes.release_unawaited(&won, NodeSet::default());
    eventually("free", || free(&fakes[0]) && free(&fakes[2]));
    let late = fakes[1].delay(Op::Acquire);
    attempt(Some(1)).ok().expect("without the hung one");
    late.go();
}

#[test]
fn a_listener_that_loses_its_node_goes_to_the_next_and_all_try_again() {
    let fakes = FakeNode::fakes(3);
    let [holder, waiter] = [sluggish(&fakes), sluggish(&fakes)];
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

/// Ends a flow of messages when it is dropped.
struct Flow<'a>(&'a AtomicBool);

impl Drop for Flow<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn a_listener_that_a_node_refuses_goes_to_the_next_and_back_under_a_flow_of_messages() {
    let fakes = FakeNode::fakes(3);
    let [holder, waiter] = [sluggish(&fakes), sluggish(&fakes)];
    let held = held_everywhere(&holder, &fakes);
    fakes[0].set_fault(Fault::DeniesSubscribers);
    let stop = AtomicBool::new(false);
    let key = Key::parse("redguard:", "x", LockKind::Exclusive).expect("good");
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
    let [holder, waiter] = [sluggish(&fakes), sluggish(&fakes)];
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
    let [holder, waiter] = [sluggish(&fakes), sluggish(&fakes)];
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

#[test]
fn an_undo_and_a_refusal_publish_nothing() {
    let fakes = FakeNode::fakes(3);
    let locker = sluggish(&fakes);
    // It is granted on the first one, and undone.
    for fake in &fakes[1..] {
        fake.seize("x", TTL);
    }
    // What is decided by the others before it is sent is not sent at all.
    eventually("granted five times", || {
        assert!(locker.try_lock("x", TTL).expect("no error").is_none());
        fakes[0].count(Op::Acquire) >= 5
    });
    eventually("all are undone", || {
        fakes[0].token("x").is_none() && fakes[0].count(Op::Release) >= 5
    });
    assert_eq!(fakes[0].published(), 0);
    eventually("a release is, where it was granted", || {
        drop(locker.lock("y", TTL).expect("free"));
        fakes[0].published() > 0
    });
}

#[test]
fn others_that_heard_of_a_release_are_let_pass() {
    let fakes = FakeNode::fakes(1);
    let [holder, waiter] = [sluggish(&fakes), sluggish(&fakes)];
    let key = Key::parse("redguard:", "x", LockKind::Exclusive).expect("good");
    let lets_pass = |locker: &RedisLocker| {
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
        assert_eq!(lets_pass(&holder), None);
        let woken = clock::now();
        held.release().expect("ours");
        assert!(lets_pass(&holder).is_some());
        // Who holds it for longer than an ear stays behind does not know any more whose ear it was.
        let ended = waits.join().expect("no panic");
        assert_no_timeout_elapsed(woken);
        if ended - woken < Duration::from_millis(250) {
            assert_eq!(lets_pass(&waiter), None, "only its own ear was there");
        }
    });
    // It waits no longer than that, also where the others do not come, and forgets it when nobody hears any more.
    eventually("nobody listens", || fakes[0].subscribed("x") == 0);
    holder
        .lock("x", TTL)
        .expect("free")
        .release()
        .expect("ours");
    assert_eq!(lets_pass(&holder), None);
}
