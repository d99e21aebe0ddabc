//! Undone attempts over fake nodes: which of them are published, and by which node (L4). Retry
//! delays are so long that only a message explains progress, unless a test says otherwise.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::api::locker::Locker;
use crate::api::options::LockOptions;
use crate::api::redis_locker::RedisLocker;
use crate::api::semaphore::{RedisSemaphore, Semaphore};
use crate::config::builder::Config;
use crate::error::error::Error;
use crate::protocol::request::Op;
use crate::protocol::retry::RetryPolicy;
use crate::tests::engine::setup::{
    attempts, delay_acquires, delay_grants, exclusive_key, serve_delayed, set_faults,
    slowly_retrying,
};
use crate::tests::fake_node::node;
use crate::tests::fake_node::node::{
    FakeNode, Fault, assert_no_timeout_elapsed, connected_locker, eventually,
};
use crate::time::clock;
use crate::transport::cancel::CancelToken;

const TTL: Duration = Duration::from_secs(300);

/// So short that the refusal of a holder with this TTL begins no split vote.
const HELD: Duration = Duration::from_secs(100);

fn published(fakes: &[Arc<FakeNode>]) -> [usize; 3] {
    [0, 1, 2].map(|node: usize| fakes[node].published())
}

/// Lets the others hold a lock on all nodes but the first, which grants each attempt.
fn held_by_others(names: &[&str]) -> Vec<Arc<FakeNode>> {
    let fakes = FakeNode::fakes(3);
    for fake in &fakes[1..] {
        names.iter().for_each(|name| fake.seize(name, HELD));
    }
    fakes
}

/// Waits until the first node has undone all attempts. Returns whether it was asked in that many: a
/// request is not sent to a node after the two others have refused.
fn undone(fakes: &[Arc<FakeNode>], attempts: usize) -> bool {
    eventually("the attempts are undone", || {
        fakes[0].count(Op::Release) == fakes[0].count(Op::Acquire)
    });
    fakes[0].count(Op::Acquire) == attempts
}

/// Plays a case until it says that the first node was asked in each attempt.
fn until_asked(case: impl Fn() -> bool) {
    assert!((0..50).any(|_| case()), "never asked");
}

fn is_refused(locker: &RedisLocker) {
    let guard = locker.try_lock("x", TTL);
    assert_eq!(guard.map(|guard| guard.is_some()), Ok(false));
}

/// Returns when only a message ends the wait for a lock that all nodes refuse.
fn waits_with_a_place(fakes: &[Arc<FakeNode>]) {
    eventually("the only check has found the lock held", || {
        fakes[0].count(Op::TakePlace) >= 2
    });
}

/// Wakes the waiter, which the first node refuses. Returns the token of its attempt.
fn wake(fakes: &[Arc<FakeNode>]) -> String {
    let asked = fakes[0].count(Op::Acquire);
    fakes[0].publish(&exclusive_key("x").channel());
    eventually("the waiter is refused", || {
        fakes[0].count(Op::Acquire) > asked
    });
    fakes[0].acquire_tokens().pop().expect("it has asked")
}

/// Returns whether the attempt with this token has asked the first node alone. A waiter that is
/// woken does so only for one refresh interval after it has asked all nodes.
fn was_alone(fakes: &[Arc<FakeNode>], token: &String) -> bool {
    let mut others = fakes[1..].iter();
    !others.any(|fake| fake.acquire_tokens().contains(token))
}

#[test]
fn waiter_refused_by_an_attempt_alone_is_woken_by_its_undo() {
    until_asked(|| {
        let fakes = FakeNode::fakes(3);
        let [rival, waiter] = [slowly_retrying(&fakes), slowly_retrying(&fakes)];
        fakes.iter().for_each(|fake| fake.seize("x", HELD));
        let began = clock::now();
        let token = thread::scope(|scope| {
            let waits = scope.spawn(|| waiter.lock("x", TTL));
            waits_with_a_place(&fakes);
            // The rival is granted by the first node, refused by the third, and waits for the
            // second.
            fakes[0].free("x");
            let late = delay_acquires(&fakes[1..2]);
            let attempt = scope.spawn(|| is_refused(&rival));
            late[0].arrived();
            eventually("the first grants", || fakes[0].token("x").is_some());
            wake(&fakes);
            let token = wake(&fakes);
            fakes[2].free("x");
            serve_delayed(&fakes, &late);
            attempt.join().expect("no panic");
            drop(waits.join().expect("no panic").expect("woken"));
            token
        });
        assert_no_timeout_elapsed(began);
        was_alone(&fakes, &token)
    });
}

#[test]
fn undo_of_the_last_attempt_alone_is_published_where_it_was_granted() {
    until_asked(|| {
        let fakes = held_by_others(&["x"]);
        let locker = connected_locker(&fakes, |config| attempts(config, 3)).expect("all are up");
        let error = locker.lock("x", TTL).expect_err("held");
        assert!(error.is_contended());
        if !undone(&fakes, 3) {
            return false;
        }
        assert_eq!(published(&fakes), [1, 0, 0]);
        is_refused(&locker);
        undone(&fakes, 4) && {
            assert_eq!(published(&fakes), [2, 0, 0]);
            true
        }
    });
}

#[test]
fn undo_of_a_waiter_that_tries_again_is_not_published() {
    until_asked(|| {
        let fakes = held_by_others(&["x"]);
        let waiter = slowly_retrying(&fakes);
        thread::scope(|scope| {
            let waits = scope.spawn(|| waiter.lock("x", TTL));
            // The first attempt, and that of the confirmed subscription.
            eventually("it waits", || node::attempts(&fakes) == 2);
            let was_asked = undone(&fakes, 2);
            assert_eq!(published(&fakes), [0, 0, 0]);
            fakes.iter().for_each(|fake| fake.free("x"));
            fakes[0].publish(&exclusive_key("x").channel());
            drop(waits.join().expect("no panic").expect("woken"));
            was_asked
        })
    });
}

#[test]
fn late_reply_to_a_refused_attempt_is_published_only_if_it_grants() {
    for grants in [false, true] {
        let fakes = FakeNode::fakes(3);
        let locker = slowly_retrying(&fakes);
        fakes.iter().for_each(|fake| fake.seize("x", HELD));
        let late = delay_acquires(&fakes[2..]);
        eventually("the third node is asked, too", || {
            is_refused(&locker);
            late[0].has_arrived()
        });
        if grants {
            fakes[2].free("x");
        }
        serve_delayed(&fakes, &late);
        eventually("the undo is past", || {
            fakes[2].token("x").is_none_or(|token| token == "stranger") && {
                is_refused(&locker);
                fakes[2].count(Op::Acquire) >= 2
            }
        });
        assert_eq!(published(&fakes)[..2], [0, 0]);
        match grants {
            true => eventually("it is published", || fakes[2].published() >= 1),
            false => assert_eq!(fakes[2].published(), 0),
        }
    }
}

/// A quorum has refused others as the holder of a lock does, and they may listen to the third node.
#[test]
fn undo_of_a_late_quorum_at_the_end_of_a_call_is_published_by_all_nodes() {
    let fakes = FakeNode::fakes(3);
    let impatient = |config: Config| config.node_timeout(Duration::from_millis(200));
    let locker = connected_locker(&fakes, impatient).expect("all are up");
    fakes[0].seize("x", HELD);
    let late = delay_acquires(&fakes[1..]);
    let error = locker.try_lock("x", TTL).expect_err("no quorum");
    assert!(error.is_unavailable(), "{error}");
    serve_delayed(&fakes, &late);
    eventually("each node publishes", || published(&fakes) == [1, 1, 1]);
    assert_eq!(fakes[0].token("x").as_deref(), Some("stranger"));
}

#[test]
fn acquire_of_several_choices_publishes_the_undos_of_its_last_round_alone() {
    until_asked(|| {
        let fakes = held_by_others(&["a", "b"]);
        let locker = connected_locker(&fakes, |config| attempts(config, 2)).expect("all are up");
        let error = locker.acquire_any(&["a", "b"], &LockOptions::new(TTL));
        assert!(error.expect_err("held").is_contended());
        undone(&fakes, 4) && {
            assert_eq!(published(&fakes), [2, 0, 0]);
            true
        }
    });
}

/// Grants that come too late do not end the call, so a message would wake it without a delay.
#[test]
fn slow_attempts_for_several_choices_are_published_in_the_last_round_alone() {
    let fakes = FakeNode::fakes(3);
    let locker = connected_locker(&fakes, |config| attempts(config, 2)).expect("all are up");
    let ttl = Duration::from_millis(100);
    delay_grants(ttl);
    let error = locker.acquire_any(&["a", "b"], &LockOptions::new(ttl));
    let error = error.expect_err("too slow");
    assert!(matches!(error, Error::ValidityExhausted { .. }), "{error}");
    eventually("all attempts are undone", || {
        let is_undone = |fake: &Arc<FakeNode>| fake.count(Op::Release) == 4;
        fakes.iter().all(is_undone)
    });
    let published = published(&fakes);
    assert!(published.iter().all(|count| *count <= 2), "{published:?}");
}

/// Missing rights end the call, whatever its limit is.
#[test]
fn undo_of_a_denied_attempt_for_several_choices_is_published() {
    until_asked(|| {
        let fakes = FakeNode::fakes(3);
        let locker = connected_locker(&fakes, |config| attempts(config, 2)).expect("all are up");
        set_faults(&fakes[1..], &Fault::DeniesOp(Op::Acquire));
        let error = locker.acquire_any(&["a", "b"], &LockOptions::new(TTL));
        assert!(error.expect_err("denied").is_denied());
        undone(&fakes, 1) && {
            assert_eq!(published(&fakes), [1, 0, 0]);
            true
        }
    });
}

#[test]
fn undo_of_a_permit_is_published_where_it_was_granted() {
    until_asked(|| {
        let fakes = FakeNode::fakes(3);
        let lockers = [slowly_retrying(&fakes), slowly_retrying(&fakes)];
        let semaphore = |locker: &RedisLocker| RedisSemaphore::new(locker.nodes(), "x", 1);
        let [holder, rival] = lockers
            .each_ref()
            .map(|each| semaphore(each).expect("a good name"));
        let held = holder.acquire(&LockOptions::new(TTL)).expect("free");
        eventually("it is on every node", || {
            fakes.iter().all(|fake| fake.count(Op::Acquire) == 1)
        });
        fakes[0].wipe();
        let refused = rival.try_acquire(&LockOptions::new(TTL));
        assert_eq!(refused.map(|permit| permit.is_some()), Ok(false));
        let was_asked = fakes[0].count(Op::Acquire) == 2;
        if was_asked {
            eventually("it is published", || published(&fakes) == [1, 0, 0]);
        }
        drop(held);
        was_asked
    });
}

#[test]
fn undo_of_a_cancelled_attempt_is_published_where_it_was_granted() {
    let fakes = FakeNode::fakes(5);
    let locker = slowly_retrying(&fakes);
    // Too few nodes are left for a quorum, and the round goes on for the cause of each.
    set_faults(&fakes[1..4], &Fault::Fails(Op::Acquire));
    let late = delay_acquires(&fakes[4..]);
    let token = CancelToken::new();
    let options = LockOptions::new(TTL).cancel_on(&token);
    thread::scope(|scope| {
        let attempt = scope.spawn(|| locker.acquire("x", &options).err());
        late[0].arrived();
        eventually("the first grants", || fakes[0].token("x").is_some());
        token.cancel();
        assert_eq!(attempt.join().expect("no panic"), Some(Error::Cancelled));
    });
    serve_delayed(&fakes, &late);
    eventually("it is published", || {
        fakes[0].published() == 1 && fakes[4].published() == 1
    });
}

/// The token may be that of a process which was killed in an attempt.
#[test]
fn waiter_with_a_place_refused_by_one_node_alone_asks_all_after_its_retry_delay() {
    let quick = |config: Config| {
        config.retry(RetryPolicy {
            initial_delay: Duration::from_millis(200),
            max_delay: TTL,
            jitter: 0.0,
            ..RetryPolicy::default()
        })
    };
    until_asked(|| {
        let fakes = FakeNode::fakes(3);
        let waiter = connected_locker(&fakes, quick).expect("all are up");
        fakes.iter().for_each(|fake| fake.seize("x", HELD));
        let began = clock::now();
        let token = thread::scope(|scope| {
            let waits = scope.spawn(|| waiter.lock("x", TTL));
            waits_with_a_place(&fakes);
            wake(&fakes);
            let token = wake(&fakes);
            fakes[1..].iter().for_each(|fake| fake.free("x"));
            eventually("it acquires", || {
                if !was_alone(&fakes, &token) {
                    fakes[0].publish(&exclusive_key("x").channel());
                }
                waits.is_finished()
            });
            drop(waits.join().expect("no panic").expect("two are free"));
            token
        });
        assert_no_timeout_elapsed(began);
        was_alone(&fakes, &token)
    });
}
