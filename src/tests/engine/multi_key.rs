//! Locks of several keys over fake nodes: each node grants all keys or none. Everything else is as
//! with one key.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::api::guard::LockGuard;
use crate::api::locker::Locker;
use crate::api::options::LockOptions;
use crate::api::redis_locker::RedisLocker;
use crate::api::watch::WatchOutcome;
use crate::config::builder::Config;
use crate::error::error::Error;
use crate::protocol::kind::LockKind;
use crate::protocol::mode::Mode;
use crate::protocol::request::Op;
use crate::protocol::retry::RetryPolicy;
use crate::tests::engine::setup::healthy;
use crate::tests::fake_node::node::{
    FakeNode, Fault, assert_no_timeout_elapsed, attempts, connected_locker, eventually,
};
use crate::time::clock;

const TTL: Duration = Duration::from_secs(300);
const BOTH: [&str; 2] = ["b", "a"];

fn options() -> LockOptions {
    LockOptions::new(TTL)
}

/// Returns the tokens of `a`, `b` and `c` on a node.
fn tokens(fake: &FakeNode) -> [Option<String>; 3] {
    ["a", "b", "c"].map(|name| fake.token(name))
}

fn both_everywhere(
    locker: &RedisLocker,
    fakes: &[Arc<FakeNode>],
    options: &LockOptions,
) -> LockGuard {
    let guard = locker.acquire_all(&BOTH, options).expect("free");
    eventually("they are on every node", || {
        fakes.iter().all(|fake| fake.token("a").is_some())
    });
    for [a, b, c] in fakes.iter().map(|fake| tokens(fake)) {
        assert!(a.is_some() && a == b && c.is_none());
    }
    guard
}

fn nothing_anywhere(fakes: &[Arc<FakeNode>]) {
    eventually("nothing is left", || {
        fakes.iter().all(|fake| tokens(fake) == [None, None, None])
    });
}

#[test]
fn lease_of_several_keys_uses_one_token_and_one_request() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let guard = both_everywhere(&locker, &fakes, &options());
    assert!(guard.key() == "a" && guard.keys().eq(["a", "b"]));
    assert_eq!(guard.mode(), Mode::Quorum);
    guard.extend(2 * TTL).expect("ours");
    guard.release().expect("ours");
    nothing_anywhere(&fakes);
    let served = |op| fakes.iter().map(move |fake| fake.count(op));
    assert!(served(Op::Acquire).eq([1, 1, 1]) && served(Op::Release).eq([1, 1, 1]));
    // A request that the quorum did not need may be dropped, because the lock is released by then.
    assert!(served(Op::Extend).all(|count| count <= 1));
    assert!(served(Op::Extend).sum::<usize>() >= 2);
}

#[test]
fn overlapping_key_sets_and_single_locks_exclude_each_other() {
    let fakes = FakeNode::fakes(3);
    let [ours, other] = [healthy(&fakes), healthy(&fakes)];
    let guard = both_everywhere(&ours, &fakes, &options());
    for locker in [&ours, &other] {
        for names in [&["a"][..], &["b"], &["a", "b"], &["c", "b"]] {
            let tried = locker.try_acquire_all(names, &options());
            assert!(tried.expect("a quorum replied").is_none(), "{names:?}");
        }
        let second = locker.try_acquire_all(&["c", "d"], &options());
        second
            .expect("a quorum replied")
            .expect("free")
            .release()
            .expect("ours");
    }
    drop(guard);
    let single = other.lock("b", TTL).expect("free");
    assert!(
        ours.try_acquire_all(&BOTH, &options())
            .expect("a quorum replied")
            .is_none()
    );
    drop(single);
    nothing_anywhere(&fakes);
}

#[test]
fn minority_with_one_key_of_another_owner_stores_none_of_ours() {
    let fakes = FakeNode::fakes(3);
    fakes[0].seize("b", TTL);
    let locker = healthy(&fakes);
    let guard = locker
        .acquire_all(&BOTH, &options())
        .expect("a quorum is free");
    guard.extend(TTL).expect("a quorum has it");
    guard.release().expect("a quorum had it");
    let other = Some("stranger".to_owned());
    eventually("only the other owner is left", || {
        tokens(&fakes[0]) == [None, other.clone(), None]
    });
    // If a quorum refuses, the grants of the other nodes are undone.
    fakes[1].seize("a", TTL);
    let error = locker.acquire_all(&BOTH, &options().wait_for(Duration::ZERO));
    let error = error.expect_err("held");
    assert!(error.is_contended(), "{error}");
    eventually("it is undone", || tokens(&fakes[2]) == [None, None, None]);
}

#[test]
fn lease_of_several_keys_is_lost_with_one_key() {
    for look in ["extend", "release", "renew"] {
        let fakes = FakeNode::fakes(3);
        let locker = healthy(&fakes);
        let notified = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&notified);
        let mut wanted = options().on_lost(move |lost| {
            assert!(lost.keys().eq(["a", "b"]));
            count.fetch_add(1, Ordering::SeqCst);
        });
        if look == "renew" {
            wanted = LockOptions::new(Duration::from_millis(1500)).auto_renew(true);
        }
        let guard = both_everywhere(&locker, &fakes, &wanted);
        let watch = guard.watch();
        fakes[..2].iter().for_each(|fake| {
            fake.modify("b", LockKind::Exclusive, |stored| stored.owner = None);
            fake.seize("b", TTL);
        });
        match look {
            "extend" => {
                assert!(matches!(guard.extend(TTL), Err(Error::LockLost { .. })));
                assert_eq!(watch.wait_ended(TTL), WatchOutcome::Lost);
                eventually("the loss is notified", || {
                    notified.load(Ordering::SeqCst) == 1
                });
            }
            "renew" => assert_eq!(watch.wait_ended(TTL), WatchOutcome::Lost),
            _ => {}
        }
        assert!(matches!(guard.release(), Err(Error::LockLost { .. })));
        // Our tokens are deleted, and no others.
        eventually("ours is deleted", || {
            fakes.iter().all(|fake| fake.token("a").is_none())
        });
        let strangers = fakes[..2].iter().all(|fake| fake.token("b").is_some());
        assert!(strangers, "{look}");
    }
}

#[test]
fn lost_keys_are_restored_all_or_none() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let guard = both_everywhere(&locker, &fakes, &options());
    let token = fakes[0].token("a");
    let forget = |name| {
        fakes[2].modify(name, LockKind::Exclusive, |stored| stored.owner = None);
    };
    for lost in [&["a"][..], &["b"], &["a", "b"]] {
        lost.iter().for_each(|name| forget(name));
        guard.extend(TTL).expect("a quorum has it");
        eventually("it is put back", || {
            tokens(&fakes[2]) == [token.clone(), token.clone(), None]
        });
    }
    // If another owner acquired the key in between, nothing is deleted.
    forget("a");
    forget("b");
    fakes[2].seize("b", TTL);
    let served = fakes[2].count(Op::Extend);
    guard.extend(TTL).expect("a quorum has it");
    eventually("it was asked", || fakes[2].count(Op::Extend) > served);
    guard.release().expect("a quorum had it");
    eventually("nothing of ours is there", || {
        fakes[2].count(Op::Release) > 0 && fakes[2].token("a").is_none()
    });
    assert_eq!(fakes[2].token("b").as_deref(), Some("stranger"));
}

#[test]
fn fencing_token_of_several_keys_orders_with_those_of_each_key() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let fenced = options().fencing(true);
    let number = |names: &[&str]| {
        let guard = locker.acquire_all(names, &fenced).expect("free");
        let number = guard.fencing_token().expect("it is fenced");
        guard.release().expect("ours");
        number
    };
    let ahead = 1 << 50;
    fakes.iter().for_each(|fake| {
        fake.modify("b", LockKind::Exclusive, |stored| {
            stored.fence = Some(ahead)
        })
    });
    let (a, b) = (number(&["a"]), number(&["b"]));
    assert!(a < ahead && b > ahead);
    let both = number(&BOTH);
    assert!(both > b, "{both}");
    let (a, b) = (number(&["a"]), number(&["b"]));
    assert!(a > both && b > both, "{a} {b} {both}");
    // If fence counters differ, a second round raises all of them.
    for (fake, by) in fakes.iter().zip([3, 6, 9]) {
        fake.modify("a", LockKind::Exclusive, |stored| {
            stored.fence = Some((1 << 51) + by)
        });
    }
    let both = number(&BOTH);
    for name in BOTH {
        let as_high =
            |fake: &&Arc<FakeNode>| fake.stored_lock(name, LockKind::Exclusive).fence >= Some(both);
        assert!(fakes.iter().filter(as_high).count() >= 2, "{name}");
        assert!(number(&[name]) > both);
    }
}

#[test]
fn waiter_is_woken_by_the_release_of_the_blocking_key() {
    let fakes = FakeNode::fakes(3);
    let slow_retries = |config: Config| {
        config.retry(RetryPolicy {
            initial_delay: TTL,
            max_delay: TTL,
            jitter: 0.0,
            ..RetryPolicy::default()
        })
    };
    let [holder, waiter] = [(); 2].map(|()| connected_locker(&fakes, slow_retries).expect("up"));
    let held = holder.lock("b", TTL).expect("free");
    let began = clock::now();
    thread::scope(|scope| {
        let waits = scope.spawn(|| waiter.acquire_all(&["a", "b", "c"], &options()));
        eventually("it listens", || fakes[0].subscribed("b") == 1);
        assert_eq!([fakes[0].subscribed("a"), fakes[0].subscribed("c")], [0, 0]);
        // The last attempt before that may still be in flight, so only a release after it counts.
        eventually("and has tried again", || attempts(&fakes) >= 3);
        drop(held);
        let all = waits.join().expect("no panic").expect("free");
        // A waiter for one of the keys is woken when all of them are released.
        let single = scope.spawn(|| holder.lock("c", TTL));
        eventually("it listens", || fakes[0].subscribed("c") == 1);
        eventually("and has tried again", || attempts(&fakes) >= 6);
        all.release().expect("ours");
        drop(single.join().expect("no panic").expect("free"));
    });
    assert_no_timeout_elapsed(began);
    nothing_anywhere(&fakes);
}

#[test]
fn undo_of_several_keys_reaches_each_node_that_may_have_granted() {
    let fakes = FakeNode::fakes(3);
    fakes[1].set_fault(Fault::FailsAfterApplying(Op::Acquire));
    fakes[2].set_fault(Fault::FailsAfterApplying(Op::Acquire));
    let locker = healthy(&fakes);
    let error = locker.try_acquire_all(&BOTH, &options());
    assert!(error.expect_err("no quorum").is_unavailable());
    nothing_anywhere(&fakes);
}

#[test]
fn degraded_locks_of_several_keys_exclude_locks_of_each_key() {
    let fakes = FakeNode::fakes(3);
    fakes.iter().for_each(|fake| fake.set_fault(Fault::Down));
    let locker = connected_locker(&fakes, |config| {
        config
            .allow_degraded(true)
            .connect_timeout(Duration::from_millis(200))
            .node_timeout(Duration::from_millis(200))
    });
    let locker = locker.expect("in this process");
    let guard = locker.acquire_all(&BOTH, &options()).expect("free here");
    assert_eq!(guard.mode(), Mode::Local);
    for names in [&["a"][..], &["b", "c"]] {
        assert!(
            locker
                .try_acquire_all(names, &options())
                .expect("known")
                .is_none()
        );
    }
    guard.release().expect("ours");
    assert!(locker.try_lock("b", TTL).expect("known").is_some());
}

#[test]
fn invalid_key_lists_are_refused_before_any_request() {
    let fakes = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    for names in [&[][..], &["a", "a"], &["a", "x:fence"], &["a", ""]] {
        let error = locker.acquire_all(names, &options()).expect_err("bad");
        assert!(matches!(error, Error::InvalidKey { .. }), "{error}");
    }
    assert_eq!(fakes[0].count(Op::Acquire), 0);
    // A lock of one key given as a set is an ordinary lock.
    let guard = locker.acquire_all(&["a"], &options()).expect("free");
    assert!(
        locker
            .try_lock("a", TTL)
            .expect("a quorum replied")
            .is_none()
    );
    drop(guard);
}
