//! The waiting list over fake nodes. All retry delays are so long that only messages and checks
//! explain progress.

use std::sync::{Arc, mpsc};
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use crate::api::guard::LockGuard;
use crate::api::locker::Locker;
use crate::api::options::LockOptions;
use crate::api::redis_locker::RedisLocker;
use crate::config::builder::Config;
use crate::error::error::Error;
use crate::protocol::request::Op;
use crate::protocol::retry::RetryPolicy;
use crate::tests::engine::setup::{exclusive_key, slowly_retrying};
use crate::tests::fake_node::node::{
    FakeNode, Fault, assert_no_timeout_elapsed, connected_locker, eventually,
};
use crate::time::clock;
use crate::transport::cancel::CancelToken;

const TTL: Duration = Duration::from_secs(300);

fn placed(fakes: &[Arc<FakeNode>], count: usize) {
    eventually("the waiters have places", || {
        fakes[0].places("x").len() == count
    });
}

/// Returns whether the first process of the list listens. A check may have removed it for a while.
fn first_listens(fakes: &[Arc<FakeNode>]) -> bool {
    let places = fakes[0].places("x");
    places.first().is_some_and(|its| fakes[0].listens("x", its))
}

/// Waits until the node has served this many requests for places, so that no check is due: only a
/// message wakes a waiter from then on.
fn has_served(fakes: &[Arc<FakeNode>], requests: usize) {
    eventually("the waiters have checked", || {
        fakes[0].count(Op::TakePlace) >= requests
    });
}

/// Lets `free` make the lock of a waiter free, and checks that the waiter acquires it.
fn wakes(waiter: ScopedJoinHandle<'_, Result<LockGuard, Error>>, free: impl FnOnce()) {
    let began = clock::now();
    free();
    let guard = waiter.join().expect("no panic").expect("woken");
    assert_no_timeout_elapsed(began);
    drop(guard);
}

/// Lets `act` run while a process waits with a place, releases the lock, and checks that the
/// process acquires it.
fn released_after(act: impl FnOnce(&[Arc<FakeNode>])) {
    let fakes = FakeNode::fakes(3);
    let [holder, waiter] = [slowly_retrying(&fakes), slowly_retrying(&fakes)];
    let held = holder.lock("x", TTL).expect("free");
    thread::scope(|scope| {
        let waits = scope.spawn(|| waiter.lock("x", TTL));
        placed(&fakes, 1);
        has_served(&fakes, 2); // the place, and the check of the first process
        act(&fakes);
        wakes(waits, || held.release().expect("ours"));
    });
    // The last release is sent to this node last, and waits for a quorum only.
    placed(&fakes, 0);
}

#[test]
fn release_takes_the_woken_process_from_the_list() {
    released_after(|_| {});
}

#[test]
fn first_process_that_does_not_act_delays_the_next_by_a_check() {
    // Two processes that are paused: their connections receive, and nothing happens.
    released_after(|fakes| {
        for paused in ["paused-1", "paused-2"] {
            fakes[0].add_paused("x", paused);
        }
    });
}

#[test]
fn list_that_is_lost_keeps_no_waiter_asleep() {
    released_after(|fakes| fakes[0].clear_places("x"));
}

/// In tests one process of a list is near, the others do not listen to the lock's channel.
#[test]
fn processes_far_behind_listen_to_no_release_until_they_are_near() {
    let fakes = FakeNode::fakes(3);
    let processes: [RedisLocker; 5] = [(); 5].map(|()| slowly_retrying(&fakes));
    let mut held = processes[0].lock("x", TTL).expect("free");
    thread::scope(|scope| {
        let (has, had) = mpsc::channel();
        for (before, locker) in processes[1..].iter().enumerate() {
            let has = has.clone();
            scope.spawn(move || {
                let sent = has.send(locker.lock("x", TTL).expect("woken"));
                assert!(sent.is_ok());
            });
            placed(&fakes, before + 1);
        }
        eventually("all listen", || fakes[0].subscribed("x") == 4);
        has_served(&fakes, 5); // four places, and the check of the first process
        for waiters in [3, 2, 1, 0] {
            let began = clock::now();
            held.release().expect("ours");
            held = had.recv().expect("woken");
            assert_no_timeout_elapsed(began);
            has_served(&fakes, 8); // all others heard of the first release
            // The process behind the woken one may check, and lose its place for a while.
            eventually("the others have places", || {
                fakes[0].places("x").len() == waiters
            });
            // The former waiters of this process listen on for a while, and one is near.
            let former = 4 - waiters;
            eventually("the others do not listen", || {
                fakes[0].subscribed("x") <= former + waiters.min(1)
            });
            eventually("the first of the list listens", || {
                waiters == 0 || first_listens(&fakes)
            });
        }
    });
}

#[test]
fn process_comes_near_when_the_one_before_it_stops_waiting() {
    let fakes = FakeNode::fakes(1);
    let [holder, leaves, near, far] = [(); 4].map(|()| slowly_retrying(&fakes));
    let held = holder.lock("x", TTL).expect("free");
    let token = CancelToken::new();
    let options = LockOptions::new(TTL).cancel_on(&token);
    thread::scope(|scope| {
        let first = scope.spawn(|| near.lock("x", TTL));
        has_served(&fakes, 2);
        let second = scope.spawn(|| leaves.acquire("x", &options).map(drop));
        placed(&fakes, 2);
        let third = scope.spawn(|| far.lock("x", TTL));
        placed(&fakes, 3);
        // Before the release: after it the second process may check, and lose its place for a
        // while.
        let last = fakes[0].places("x")[2].clone();
        held.release().expect("ours");
        let held = first.join().expect("no panic").expect("woken");
        has_served(&fakes, 6);
        eventually("the last does not listen", || !fakes[0].listens("x", &last));
        token.cancel();
        assert_eq!(second.join().expect("no panic"), Err(Error::Cancelled));
        eventually("it listens again", || fakes[0].listens("x", &last));
        wakes(third, || held.release().expect("ours"));
    });
}

#[test]
fn wake_up_of_a_process_that_stops_waiting_goes_to_the_next() {
    let fakes = FakeNode::fakes(1);
    let [holder, leaves, next] = [(); 3].map(|()| slowly_retrying(&fakes));
    let _held = holder.lock("x", TTL).expect("free");
    let token = CancelToken::new();
    let options = LockOptions::new(TTL).cancel_on(&token);
    thread::scope(|scope| {
        let first = scope.spawn(|| leaves.acquire("x", &options).map(drop));
        placed(&fakes, 1);
        let second = scope.spawn(|| next.lock("x", TTL));
        placed(&fakes, 2);
        // A release has taken the first process from the list. Its message is on the way.
        fakes[0].remove_first_place("x");
        fakes[0].free("x");
        wakes(second, || token.cancel());
        assert_eq!(first.join().expect("no panic"), Err(Error::Cancelled));
    });
}

#[test]
fn release_of_a_lock_that_was_waited_for_wakes_a_process_that_does_not_listen() {
    let fakes = FakeNode::fakes(1);
    let [holder, near, far] = [(); 3].map(|()| slowly_retrying(&fakes));
    let held = holder.lock("x", TTL).expect("free");
    thread::scope(|scope| {
        let [first, second] = [&near, &far].map(|locker| {
            let waits = scope.spawn(|| locker.lock("x", TTL));
            has_served(&fakes, 2 + usize::from(std::ptr::eq(locker, &far)));
            waits
        });
        held.release().expect("ours");
        let held = first.join().expect("no panic").expect("woken");
        has_served(&fakes, 4);
        eventually("the second is near", || first_listens(&fakes));
        // As if it were not told so: no process listens to the lock's channel.
        fakes[0].unsubscribe_all("x");
        wakes(second, || held.release().expect("ours"));
    });
}

#[test]
fn process_far_behind_that_is_woken_and_refused_waits_for_the_next_release() {
    let fakes = FakeNode::fakes(1);
    let [holder, near, middle, far] = [(); 4].map(|()| slowly_retrying(&fakes));
    let held = holder.lock("x", TTL).expect("free");
    let stop = CancelToken::new();
    let options = LockOptions::new(TTL).cancel_on(&stop);
    thread::scope(|scope| {
        let first = scope.spawn(|| near.lock("x", TTL));
        has_served(&fakes, 2);
        scope.spawn(|| middle.acquire("x", &options).map(drop));
        placed(&fakes, 2);
        let last = scope.spawn(|| far.acquire("x", &options));
        placed(&fakes, 3);
        held.release().expect("ours");
        let held = first.join().expect("no panic").expect("woken");
        has_served(&fakes, 6);
        placed(&fakes, 2); // a check may have found the lock free before the woken one had it
        let its = fakes[0].places("x")[1].clone();
        eventually("it does not listen", || !fakes[0].listens("x", &its));
        let before = fakes[0].count(Op::TakePlace);
        fakes[0].remove_first_place("x");
        fakes[0].seize("x", TTL); // this client is quicker than the woken process
        assert!(held.release().is_err());
        eventually("it has a place again", || {
            fakes[0].count(Op::TakePlace) > before && fakes[0].places("x").contains(&its)
        });
        stop.cancel();
        assert!(last.join().expect("no panic").is_err());
    });
}

#[test]
fn refusal_of_a_single_node_causes_no_further_attempt() {
    let fakes = FakeNode::fakes(1);
    let holder = slowly_retrying(&fakes);
    let hasty = |config: Config| {
        config.retry(RetryPolicy {
            initial_delay: Duration::from_millis(1),
            max_delay: TTL,
            ..RetryPolicy::default()
        })
    };
    let waiter = connected_locker(&fakes, hasty).expect("a quorum is up");
    let held = holder.lock("x", TTL).expect("free");
    let _held = holder.lock("y", TTL).expect("free");
    let stop = CancelToken::new();
    let options = LockOptions::new(TTL).cancel_on(&stop);
    thread::scope(|scope| {
        let waits = scope.spawn(|| waiter.acquire("x", &options));
        has_served(&fakes, 2);
        let before = fakes[0].count(Op::Acquire);
        fakes[0].seize("x", TTL); // this client is quicker than the woken process
        fakes[0].publish(&exclusive_key("x").channel());
        eventually("it has asked", || fakes[0].count(Op::Acquire) > before);
        // Longer than the retry delay.
        let limited = LockOptions::new(TTL).wait_for(Duration::from_millis(100));
        assert!(holder.acquire("y", &limited).is_err());
        let after = fakes[0].count(Op::Acquire);
        stop.cancel();
        assert!(waits.join().expect("no panic").is_err());
        assert!(held.release().is_err());
        assert_eq!(after, before + 1);
    });
}

#[test]
fn message_of_an_earlier_version_wakes_a_process_with_a_place() {
    let fakes = FakeNode::fakes(3);
    let waiter = slowly_retrying(&fakes);
    fakes.iter().for_each(|fake| fake.seize("x", TTL));
    thread::scope(|scope| {
        let waits = scope.spawn(|| waiter.lock("x", TTL));
        has_served(&fakes, 2);
        fakes.iter().for_each(|fake| fake.free("x"));
        wakes(waits, || fakes[0].publish(&exclusive_key("x").channel()));
    });
    eventually("the place is given up", || fakes[0].places("x").is_empty());
}

#[test]
fn process_that_stops_waiting_gives_up_its_place() {
    let fakes = FakeNode::fakes(3);
    let [holder, waiter] = [slowly_retrying(&fakes), slowly_retrying(&fakes)];
    let held = holder.lock("x", TTL).expect("free");
    let token = CancelToken::new();
    let options = LockOptions::new(TTL).cancel_on(&token);
    thread::scope(|scope| {
        let waits = scope.spawn(|| waiter.acquire("x", &options).map(drop));
        placed(&fakes, 1);
        token.cancel();
        assert_eq!(waits.join().expect("no panic"), Err(Error::Cancelled));
    });
    placed(&fakes, 0);
    drop(held);
}

#[test]
fn refused_place_leaves_each_release_to_all_waiters() {
    let fakes = FakeNode::fakes(3);
    let [holder, waiter]: [RedisLocker; 2] = [slowly_retrying(&fakes), slowly_retrying(&fakes)];
    let held = holder.lock("x", TTL).expect("free");
    fakes[0].set_fault(Fault::Fails(Op::TakePlace));
    thread::scope(|scope| {
        let waits = scope.spawn(|| waiter.lock("x", TTL));
        eventually("the waiter is subscribed", || fakes[0].subscribed("x") > 0);
        wakes(waits, || held.release().expect("ours"));
    });
    assert!(fakes[0].places("x").is_empty());
}

#[test]
fn two_processes_that_want_the_lock_again_wake_each_other_until_both_have_ended() {
    let fakes = FakeNode::fakes(3);
    let processes: [RedisLocker; 2] = [slowly_retrying(&fakes), slowly_retrying(&fakes)];
    let began = clock::now();
    thread::scope(|scope| {
        for locker in &processes {
            scope.spawn(|| {
                for _ in 0..30 {
                    locker.lock("x", TTL).map(drop).expect("woken");
                }
            });
        }
    });
    assert_no_timeout_elapsed(began);
    eventually("no place is left", || fakes[0].places("x").is_empty());
}
