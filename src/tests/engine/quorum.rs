//! The protocol over fake nodes: interleavings are forced by rendezvous, never by sleeping.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::api::locker::{Locker, RedisLocker};
use crate::api::options::LockOptions;
use crate::config::builder::Config;
use crate::config::on_drop::OnDrop;
use crate::error::{Error, LossReason, NodeFailure};
use crate::protocol::key::Key;
use crate::protocol::kind::LockKind;
use crate::protocol::request::Op;
use crate::protocol::retry::RetryPolicy;
use crate::tests::fake_node::node::{FakeNode, Fault, connected_locker, eventually, on_log_line};
use crate::time::clock;

const TTL: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(200);

fn healthy(fakes: &[Arc<FakeNode>]) -> RedisLocker {
    connected_locker(fakes, |config| config).expect("a quorum is up")
}

/// Once for the first round that finds a node hung: after it the node is suspect.
fn impatient(config: Config) -> Config {
    config.node_timeout(SHORT)
}

/// So many attempts, one soon after the other.
fn attempts(config: Config, most: u32) -> Config {
    config.retry(RetryPolicy {
        max_attempts: Some(most),
        initial_delay: Duration::from_millis(1),
        max_delay: Duration::from_millis(1),
        ..RetryPolicy::default()
    })
}

fn holders(fakes: &[Arc<FakeNode>], key: &str) -> usize {
    fakes
        .iter()
        .filter(|fake| fake.token(key).is_some())
        .count()
}

fn all_free(fakes: &[Arc<FakeNode>], key: &str) {
    eventually("all nodes are free", || holders(fakes, key) == 0);
}

// S1: a quorum of the configured nodes, whatever is reachable.

#[test]
fn two_halves_that_see_different_nodes_do_not_both_win() {
    let fakes = FakeNode::fakes(5);
    let (left, right) = (&fakes[..2], &fakes[3..]);
    right.iter().for_each(|fake| fake.set_fault(Fault::Down));
    let abc = healthy(&fakes);
    right.iter().for_each(|fake| fake.set_fault(Fault::None));
    left.iter().for_each(|fake| fake.set_fault(Fault::Down));
    let cde = healthy(&fakes);

    // Both have three nodes. If each took its majority among those, C's would not matter.
    left.iter().for_each(|fake| fake.set_fault(Fault::None));
    right.iter().for_each(|fake| fake.set_fault(Fault::Down));
    let held = abc.lock("x", TTL).expect("A, B and C are up");
    left.iter().for_each(|fake| fake.set_fault(Fault::Down));
    right.iter().for_each(|fake| fake.set_fault(Fault::None));
    eventually("D and E are asked", || {
        let other = cde.try_lock("x", TTL);
        assert!(!matches!(other, Ok(Some(_))), "two holders");
        right.iter().all(|fake| fake.count(Op::Acquire) > 0)
    });
    drop(held);
}

#[test]
fn too_few_nodes_at_connect_name_each_cause() {
    let fakes = FakeNode::fakes(3);
    fakes[0].set_fault(Fault::Down);
    fakes[2].set_fault(Fault::Down);
    let Err(Error::InsufficientQuorum {
        needed,
        reachable,
        total,
        causes,
        ..
    }) = connected_locker(&fakes, |config| {
        config.node_timeout(SHORT).connect_timeout(SHORT)
    })
    else {
        panic!("connected without a quorum")
    };
    assert_eq!((needed, reachable, total), (2, 1, 3));
    assert_eq!(causes[0].failure, NodeFailure::Unreachable("down".into()));
    assert!(causes.iter().any(|cause| cause.node == "fake-2"));
}

#[test]
fn a_node_that_starts_within_the_time_out_is_in_time() {
    let fakes = FakeNode::fakes(1);
    fakes[0].set_fault(Fault::Down);
    thread::scope(|scope| {
        let connecting = scope.spawn(|| healthy(&fakes).lock("x", TTL).map(drop));
        eventually("it was tried", || fakes[0].refused() > 1);
        fakes[0].set_fault(Fault::None);
        connecting.join().expect("no panic").expect("it is up");
    });
}

#[test]
fn a_server_behind_two_addresses_is_refused() {
    let fake = FakeNode::new("twin");
    let twice = [fake.clone(), fake, FakeNode::new("other")];
    let error = connected_locker(&twice, |config| config).expect_err("a node counted twice");
    assert!(error.to_string().contains("same server"), "{error}");
}

#[test]
fn a_twin_that_comes_up_later_never_votes() {
    let (twin, other) = (FakeNode::new("twin"), FakeNode::new("other"));
    let late = FakeNode::new("twin");
    late.set_fault(Fault::Down);
    let locker = healthy(&[twin.clone(), other.clone(), late.clone()]);
    late.set_fault(Fault::None);
    eventually("it is connected to", || late.connects().len() > 1);
    other.set_fault(Fault::Down);
    for _ in 0..3 {
        let tried = locker.try_lock("x", TTL);
        assert!(!matches!(tried, Ok(Some(_))), "one server voted twice");
    }
    assert_eq!(late.count(Op::Acquire), 0);
}

// S2: validity.

#[test]
fn what_was_granted_too_late_is_not_handed_out() {
    let fakes = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    let late = fakes[0].is_late(Op::Acquire);
    let ttl = Duration::from_millis(100);
    thread::scope(|scope| {
        let tried = scope.spawn(|| locker.try_lock("x", ttl));
        late.arrived();
        let started = clock::now();
        eventually("half the TTL has passed", || {
            clock::now().duration_since(started) > ttl
        });
        late.go();
        let error = tried.join().expect("no panic").expect_err("too late");
        assert!(
            matches!(error, Error::ValidityExhausted { attempts: 1, .. }),
            "{error}"
        );
    });
    all_free(&fakes, "x");
    eventually("it was undone", || fakes[0].count(Op::Release) == 1);
}

#[test]
fn a_caller_that_is_held_up_after_the_verdict_gets_no_guard() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let ttl = Duration::from_millis(100);
    // The verdict is logged between the last answer and the guard: there we are "not scheduled" for a while.
    on_log_line(move |line| {
        let came = clock::now();
        if line.contains("Granted") {
            eventually("most of the TTL has passed", || {
                clock::now().duration_since(came) > ttl * 7 / 10
            });
        }
    });
    let error = locker.try_lock("late", ttl).expect_err("too late");
    assert!(matches!(error, Error::ValidityExhausted { .. }), "{error}");
    all_free(&fakes, "late");
}

#[test]
fn three_slow_attempts_in_a_row_end_an_acquire() {
    let fakes = FakeNode::fakes(1);
    let locker = connected_locker(&fakes, |config| {
        config.retry(RetryPolicy {
            initial_delay: Duration::from_millis(1),
            ..RetryPolicy::default()
        })
    })
    .expect("it is up");
    let late = fakes[0].is_late(Op::Acquire);
    thread::scope(|scope| {
        let tried = scope.spawn(|| locker.lock("x", Duration::from_millis(60)));
        let error = tried.join().expect("no panic").expect_err("too slow");
        assert!(
            matches!(error, Error::ValidityExhausted { attempts: 3, .. }),
            "{error}"
        );
    });
    // The takes that were not sent yet are dropped, since nobody wants them any more.
    for _ in 0..3 {
        late.go();
    }
    all_free(&fakes, "x");
    assert!(fakes[0].count(Op::Acquire) < 3);
}

#[test]
fn the_time_that_taking_took_is_not_validity() {
    let fakes = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    let late = fakes[0].is_late(Op::Acquire);
    let ttl = Duration::from_secs(2);
    let elapsed = Duration::from_millis(50);
    thread::scope(|scope| {
        let tried = scope.spawn(|| locker.lock("x", ttl));
        late.arrived();
        let started = clock::now();
        eventually("time has passed", || {
            clock::now().duration_since(started) >= elapsed
        });
        late.go();
        let guard = tried.join().expect("no panic").expect("in time");
        let drift = ttl / 100 + Duration::from_millis(2);
        assert!(
            guard.remaining() <= ttl - elapsed - drift,
            "{:?}",
            guard.remaining()
        );
        fakes[0].set_fault(Fault::None);
    });
}

// S3: own token.

#[test]
fn every_attempt_has_a_fresh_token() {
    let fakes = FakeNode::fakes(1);
    let locker = connected_locker(&fakes, |config| attempts(config, 3)).expect("it is up");
    fakes[0].set_fault(Fault::FailsAfterApplying(Op::Acquire));
    locker.lock("x", TTL).expect_err("it errs");
    let mut tokens = fakes[0].takes();
    assert_eq!(tokens.len(), 3);
    tokens.sort();
    tokens.dedup();
    assert_eq!(tokens.len(), 3);
}

#[test]
fn a_strangers_lock_is_left_alone() {
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

// S4: no leftovers.

#[test]
fn a_late_grant_of_a_lost_round_is_undone() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let late: Vec<_> = fakes.iter().map(|fake| fake.is_late(Op::Acquire)).collect();
    fakes[0].seize("x", TTL);
    fakes[1].seize("x", TTL);
    thread::scope(|scope| {
        let tried = scope.spawn(|| locker.try_lock("x", TTL));
        late.iter().for_each(|node| node.arrived());
        late[0].go();
        late[1].go();
        let tried = tried.join().expect("no panic").expect("they answered");
        assert!(tried.is_none());
    });
    fakes.iter().for_each(|fake| fake.set_fault(Fault::None));
    late[2].go();
    eventually("granted and undone", || fakes[2].count(Op::Release) == 1);
    assert_eq!(fakes[2].takes().len(), 1);
    assert_eq!(fakes[2].token("x"), None);
    assert_eq!(fakes[0].count(Op::Release), 0, "refused: nothing to undo");
}

#[test]
fn an_error_reply_may_have_granted_and_is_undone() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    fakes
        .iter()
        .for_each(|fake| fake.set_fault(Fault::FailsAfterApplying(Op::Acquire)));
    let error = locker.try_lock("x", TTL).expect_err("no quorum answered");
    assert!(error.is_unavailable(), "{error}");
    all_free(&fakes, "x");
}

#[test]
fn a_grant_whose_answer_was_cut_off_is_undone_after_the_reconnect() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    fakes
        .iter()
        .for_each(|fake| fake.set_fault(Fault::DisconnectsAfter(Op::Acquire)));
    let error = locker.try_lock("x", TTL).expect_err("no answer");
    assert!(error.is_unavailable(), "{error}");
    // Two breaks decide the round; the third node's take may have been dropped unsent.
    let again = || fakes.iter().filter(|fake| fake.connects().len() == 2);
    eventually("the broken ones are connected to again", || {
        again().count() >= 2
    });
    all_free(&fakes, "x");
    // The former session is named, so that it is killed before anything else happens in the new one.
    for fake in again() {
        let former = fake.connects()[1].clone().expect("a former session");
        assert_eq!(former.client_id, 1);
    }
}

#[test]
fn a_late_grant_of_a_won_round_belongs_to_the_guard() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let late = fakes[1].is_late(Op::Acquire);
    let guard = locker.lock("x", TTL).expect("two of three");
    late.arrived();
    late.go();
    eventually("the third grants", || holders(&fakes, "x") == 3);
    fakes[1].set_fault(Fault::None);
    guard.release().expect("a quorum deleted it");
    all_free(&fakes, "x");
}

#[test]
fn a_release_that_a_node_answers_with_an_error_stays_owed() {
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
fn an_undo_of_what_may_still_run_does_not_expire() {
    let fakes = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    let ttl = Duration::from_millis(50);
    fakes[0].set_fault(Fault::GoesDownAfter(Op::Acquire));
    locker.try_lock("x", ttl).expect_err("no answer");
    // A hung server runs what is in its socket when it goes on, long after the TTL.
    let ended = clock::now() + 3 * ttl;
    eventually("the TTL has passed", || clock::now() > ended);
    fakes[0].set_fault(Fault::None);
    eventually("it was undone", || fakes[0].count(Op::Release) == 1);
}

#[test]
fn addresses_that_change_places_are_found_again() {
    let (a, b) = (FakeNode::new("a"), FakeNode::new("b"));
    let third = FakeNode::new("c");
    let nodes = [a.clone(), b.clone(), third];
    let locker = healthy(&nodes);
    a.set_fault(Fault::Down);
    b.set_fault(Fault::Down);
    let up = |count: usize| {
        eventually("the lanes see it", || {
            locker.nodes().engine().nodes_up() == count
        });
    };
    up(1);
    a.set_run_id("b");
    b.set_run_id("a");
    a.set_fault(Fault::None);
    b.set_fault(Fault::None);
    up(3);
}

#[test]
fn a_panic_in_a_lane_does_not_kill_it() {
    let fakes = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    fakes[0].set_fault(Fault::Panics(Op::Acquire));
    let error = locker.try_lock("x", TTL).expect_err("the lane panicked");
    assert!(error.to_string().contains("panic"), "{error}");
    let patient = LockOptions::new(TTL).wait_for(Duration::from_secs(10));
    locker
        .acquire("x", &patient)
        .expect("the lane lives")
        .release()
        .expect("ours");
}

// S5: extend never kills, never revives, never shortens.

#[test]
fn an_extension_puts_the_key_back_where_it_was_lost() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let guard = locker.lock("x", TTL).expect("free");
    eventually("all three", || holders(&fakes, "x") == 3);
    fakes[0].wipe();
    // The extension may be decided before that node has answered; then the next one finds it.
    eventually("it is back", || {
        guard.extend(TTL).expect("two of three");
        fakes[0].token("x") == fakes[1].token("x")
    });
    drop(guard);
    all_free(&fakes, "x");
}

#[test]
fn an_extension_without_a_quorum_puts_nothing_back() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let guard = locker.lock("x", TTL).expect("free");
    eventually("all three", || holders(&fakes, "x") == 3);
    fakes[0].wipe();
    fakes[1].wipe();
    assert!(matches!(guard.extend(TTL), Err(Error::LockLost { .. })));
    // Lost, so its token is released on the third too, and nothing has come back.
    all_free(&fakes, "x");
    assert!(fakes.iter().all(|fake| fake.count(Op::Restore) == 0));
    assert!(matches!(guard.check(), Err(Error::LockLost { .. })));
}

#[test]
fn a_failed_extension_leaves_the_lock_held() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let guard = locker.lock("x", TTL).expect("free");
    eventually("all three", || holders(&fakes, "x") == 3);
    let before = guard.remaining();
    fakes[0].set_fault(Fault::FailsAfterApplying(Op::Extend));
    fakes[1].set_fault(Fault::FailsAfterApplying(Op::Extend));
    let error = guard.extend(2 * TTL).expect_err("one of three");
    assert!(error.is_unavailable(), "{error}");
    assert!(guard.is_held() && guard.remaining() <= before);
    assert_eq!(
        holders(&fakes, "x"),
        3,
        "a failed extension deletes nothing"
    );
    fakes.iter().for_each(|fake| fake.set_fault(Fault::None));
    guard.extend(2 * TTL).expect("it works again");
    assert!(guard.remaining() > TTL);
    guard.extend(TTL / 10).expect("shorter than what is left");
    assert!(guard.remaining() > TTL, "never shortens");
}

#[test]
fn an_extension_that_has_not_been_sent_is_dropped_when_the_lease_is_over() {
    let fakes = FakeNode::fakes(1);
    let locker = connected_locker(&fakes, impatient).expect("it is up");
    let guard = locker.lock("x", TTL).expect("free");
    // The lane is busy with another key's release, so the extension of "x" waits in its queue.
    let other = locker.lock("other", TTL).expect("free");
    let late = fakes[0].is_late(Op::Release);
    thread::scope(|scope| {
        let releasing = scope.spawn(|| other.release());
        late.arrived();
        let error = guard.extend(TTL).expect_err("no answer");
        assert!(error.is_unavailable(), "{error}");
        assert!(releasing.join().expect("no panic").is_err());
        drop(guard);
        fakes[0].set_fault(Fault::None);
        late.go();
    });
    all_free(&fakes, "x");
    assert_eq!(fakes[0].count(Op::Extend), 0);
}

#[test]
fn an_extension_that_found_no_quorum_puts_nothing_back_either() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let guard = locker.lock("x", TTL).expect("free");
    eventually("all three", || holders(&fakes, "x") == 3);
    fakes[0].wipe();
    fakes[1].set_fault(Fault::FailsAfterApplying(Op::Extend));
    fakes[2].set_fault(Fault::FailsAfterApplying(Op::Extend));
    let error = guard.extend(TTL).expect_err("none says it is ours");
    assert!(error.is_unavailable() && guard.is_held(), "{error}");
    // What the extension queued is served when a later request of that lane is.
    let other = locker.lock("other", TTL).expect("free");
    eventually("the lane came by", || fakes[0].token("other").is_some());
    drop(other);
    assert_eq!(fakes[0].token("x"), None);
}

/// That they take turns is checked with the lease's latch, in all interleavings.
#[test]
fn two_threads_may_extend_one_guard() {
    let fakes = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    let guard = locker.lock("x", TTL).expect("free");
    let late = fakes[0].is_late(Op::Extend);
    thread::scope(|scope| {
        let first = scope.spawn(|| guard.extend(TTL));
        late.arrived();
        let second = scope.spawn(|| guard.extend(TTL));
        late.go();
        late.arrived();
        late.go();
        first.join().expect("no panic").expect("extended");
        second.join().expect("no panic").expect("extended");
    });
    fakes[0].set_fault(Fault::None);
}

// S6: answers.

#[test]
fn four_nodes_grant_exactly_when_three_are_free() {
    for mask in 0..16_u32 {
        let fakes = FakeNode::fakes(4);
        let taken = |n: usize| mask & (1 << n) != 0;
        let taken_nodes = (0..4).filter(|n| taken(*n));
        taken_nodes.for_each(|n| fakes[n].seize("x", TTL));
        let locker = healthy(&fakes);
        let tried = locker.try_lock("x", TTL).expect("all answered");
        assert_eq!(tried.is_some(), mask.count_ones() <= 1, "mask {mask:04b}");
        drop(tried);
        let left = |n: usize| fakes[n].token("x").is_some() == taken(n);
        eventually("only strangers are left", || (0..4).all(left));
    }
}

#[test]
fn held_and_unreachable_are_told_apart() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    fakes[0].set_fault(Fault::Refuses);
    fakes[1].set_fault(Fault::Refuses);
    let now = LockOptions::new(TTL).wait_for(Duration::ZERO);
    let error = locker.acquire("x", &now).expect_err("held");
    let Error::Contended {
        attempts,
        remaining,
        ..
    } = error
    else {
        panic!("{error}")
    };
    assert_eq!((attempts, remaining), (1, Some(Duration::from_secs(60))));

    fakes[1].set_fault(Fault::FailsAfterApplying(Op::Acquire));
    fakes[2].set_fault(Fault::FailsAfterApplying(Op::Acquire));
    let error = locker.acquire("x", &now).expect_err("unreachable");
    let Error::InsufficientQuorum {
        reachable, causes, ..
    } = error
    else {
        panic!("{error}")
    };
    assert_eq!(reachable, 3, "errors are answers");
    assert!(matches!(causes[0].failure, NodeFailure::Held { .. }));
    assert!(
        matches!(&causes[1].failure, NodeFailure::ServerError(words) if words.starts_with("OOM"))
    );
    assert!(locker.try_lock("x", TTL).is_err(), "not None");
}

#[test]
fn attempts_are_counted_and_the_last_has_no_sleep_after_it() {
    let fakes = FakeNode::fakes(1);
    fakes[0].set_fault(Fault::Refuses);
    let locker = connected_locker(&fakes, |config| attempts(config, 4)).expect("it is up");
    let error = locker.lock("x", TTL).expect_err("refused");
    assert!(
        matches!(error, Error::Contended { attempts: 4, .. }),
        "{error}"
    );
    assert_eq!(fakes[0].count(Op::Acquire), 4);
}

#[test]
fn delay_of_a_limited_attempt_is_not_cut_by_a_holder_that_is_gone() {
    let fakes = FakeNode::fakes(1);
    fakes[0].set_fault(Fault::RefusesLate);
    let delay = Duration::from_millis(40);
    let locker = connected_locker(&fakes, |config| {
        config.retry(RetryPolicy {
            max_attempts: Some(3),
            initial_delay: delay,
            max_delay: delay,
            jitter: 0.0,
            ..RetryPolicy::default()
        })
    });
    let locker = locker.expect("it is up");
    let start = clock::now();
    let error = locker.lock("x", TTL).expect_err("refused");
    assert!(error.is_contended(), "{error}");
    assert!(clock::now() - start >= 2 * delay);
    assert_eq!(fakes[0].count(Op::Acquire), 3);
}

#[test]
fn an_outage_ends_an_acquire_with_its_own_error() {
    let fakes = FakeNode::fakes(3);
    let locker = connected_locker(&fakes, |config| {
        config.retry(RetryPolicy {
            max_outage: Duration::from_millis(30),
            initial_delay: Duration::from_millis(1),
            ..RetryPolicy::default()
        })
    })
    .expect("all are up");
    fakes.iter().for_each(|fake| fake.set_fault(Fault::Down));
    let error = locker.lock("x", TTL).expect_err("all are down");
    assert!(matches!(error, Error::InsufficientQuorum { .. }), "{error}");
    fakes.iter().for_each(|fake| fake.set_fault(Fault::None));
    let patient = LockOptions::new(TTL).wait_for(Duration::from_secs(10));
    eventually("the lanes are back", || {
        locker.acquire("x", &patient).is_ok()
    });
}

// Hung nodes.

#[test]
fn a_hung_minority_is_not_waited_for() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let hung = fakes[2].is_late(Op::Acquire);
    // With a time-out of 5 s a wait for the hung node would show in the time of the rounds.
    let started = clock::now();
    let guard = locker.lock("x", TTL).expect("two of three");
    // While the lock is held its lane does not drop the take unsent.
    hung.arrived();
    guard.release().expect("ours");
    for _ in 0..3 {
        locker
            .lock("x", TTL)
            .expect("two of three")
            .release()
            .expect("ours");
    }
    assert!(clock::now().duration_since(started) < Duration::from_secs(4));
    fakes[2].set_fault(Fault::None);
}

#[test]
fn an_overdue_lane_is_suspect_before_anybody_queues() {
    let fakes = FakeNode::fakes(1);
    let locker = connected_locker(&fakes, impatient).expect("it is up");
    let hung = fakes[0].is_late(Op::Acquire);
    // One that is over before it could be sent is not sent.
    eventually("it hangs", || {
        locker.try_lock("x", TTL).expect_err("it hangs");
        hung.has_arrived()
    });
    // If they queued, each would wait for its time-out.
    let started = clock::now();
    for _ in 0..20 {
        locker.try_lock("y", TTL).expect_err("it still hangs");
    }
    assert!(clock::now().duration_since(started) < 10 * SHORT);
    let error = locker.try_lock("y", TTL).expect_err("it still hangs");
    let Error::InsufficientQuorum { causes, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(causes[0].failure, NodeFailure::TimedOut);
    fakes[0].set_fault(Fault::None);
    hung.go();
    eventually("the first is undone", || fakes[0].count(Op::Release) == 1);
    assert_eq!(fakes[0].takes().len(), 1, "the second was never queued");
    all_free(&fakes, "x");
}

#[test]
fn a_lane_whose_ping_is_overdue_is_suspect_too() {
    let fakes = FakeNode::fakes(1);
    let locker = connected_locker(&fakes, impatient).expect("it is up");
    let hung = fakes[0].is_late_with_a_ping();
    hung.arrived();
    eventually("it is suspect", || locker.nodes().engine().nodes_up() == 0);
    let error = locker.try_lock("x", TTL).expect_err("it hangs");
    let Error::InsufficientQuorum { causes, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(causes[0].failure, NodeFailure::TimedOut);
    fakes[0].set_fault(Fault::None);
    hung.go();
    eventually("it is up again", || locker.nodes().engine().nodes_up() == 1);
    assert!(fakes[0].takes().is_empty(), "none was ever queued");
    drop(locker.lock("x", TTL).expect("it answers"));
}

#[test]
fn an_idle_lane_notices_that_its_node_is_gone() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    fakes[1].set_fault(Fault::Down);
    let up = |count: usize| {
        eventually("lanes see it by themselves", || {
            locker.nodes().engine().nodes_up() == count
        });
    };
    up(2);
    fakes[1].set_fault(Fault::None);
    up(3);
}

#[test]
fn a_node_that_is_down_collects_no_releases() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let ttl = Duration::from_millis(200);
    let taken = |n: usize| locker.lock(&n.to_string(), ttl).expect("two of three");
    let guards: Vec<_> = (0..50).map(taken).collect();
    eventually("all are on all", || fakes[1].takes().len() >= 50);
    fakes[1].set_fault(Fault::Down);
    // On a busy machine an attempt may have been too slow, and undone.
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

// S8: one holder among the threads that share the nodes.

#[test]
fn a_busy_slot_does_not_touch_the_network() {
    let fakes = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    let guard = locker.lock("x", TTL).expect("free");
    assert!(locker.try_lock("x", TTL).expect("no error").is_none());
    assert_eq!(fakes[0].count(Op::Acquire), 1);
    drop(guard);
    assert!(locker.try_lock("x", TTL).expect("no error").is_some());
}

#[test]
fn a_hung_holder_does_not_block_its_process_beyond_its_lease() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let hung = locker.lock("x", Duration::from_millis(150)).expect("free");
    let next = locker.lock("x", TTL).expect("the lease has ended");
    assert!(next.is_held() && !hung.is_held());
    // The end of the one that was passed over does not free the slot of the other.
    assert!(matches!(hung.release(), Err(Error::LockLost { .. })));
    assert!(locker.try_lock("x", TTL).expect("no error").is_none());
    assert!(next.is_held());
}

#[test]
fn a_loss_seen_early_lets_the_next_thread_in() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let guard = locker.lock("x", TTL).expect("free");
    thread::scope(|scope| {
        let waiting = scope.spawn(|| locker.lock("x", TTL));
        let key = Key::parse("redguard:", "x", LockKind::Exclusive).expect("a good name");
        eventually("it queues", || {
            locker.nodes().engine().lock_table.waiting(&key) == 1
        });
        let lost = clock::now();
        fakes.iter().for_each(|fake| fake.wipe());
        assert!(matches!(guard.extend(TTL), Err(Error::LockLost { .. })));
        let next = waiting.join().expect("no panic").expect("it is free");
        // Without being told it would have slept until the end of the first lease.
        assert!(clock::now().duration_since(lost) < TTL / 2);
        assert!(next.is_held());
    });
}

#[test]
fn time_in_the_queue_uses_up_attempts() {
    let fakes = FakeNode::fakes(1);
    let locker = connected_locker(&fakes, |config| {
        config.retry(RetryPolicy {
            max_attempts: Some(3),
            initial_delay: Duration::from_millis(10),
            max_delay: Duration::from_millis(10),
            ..RetryPolicy::default()
        })
    })
    .expect("it is up");
    let guard = locker.lock("x", TTL).expect("free");
    let error = locker.lock("x", TTL).expect_err("the slot is busy");
    let Error::Contended {
        attempts,
        remaining,
        waited,
    } = error
    else {
        panic!("{error}")
    };
    assert!(attempts >= 2 && waited >= Duration::from_millis(20));
    assert!(remaining.is_some_and(|left| left <= TTL));
    assert_eq!(fakes[0].count(Op::Acquire), 1);
    drop(guard);
}

// S13: drop.

#[test]
fn a_drop_among_hung_nodes_is_bounded_and_counted() {
    let fakes = FakeNode::fakes(3);
    let locker = connected_locker(&fakes, impatient).expect("all are up");
    let guard = locker.lock("x", TTL).expect("free");
    let hung: Vec<_> = fakes.iter().map(|fake| fake.is_late(Op::Release)).collect();
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
fn hand_off_returns_when_the_release_is_queued() {
    let fakes = FakeNode::fakes(1);
    let locker =
        connected_locker(&fakes, |config| config.on_drop(OnDrop::Background)).expect("it is up");
    let guard = locker.lock("x", TTL).expect("free");
    let late = fakes[0].is_late(Op::Release);
    drop(guard);
    late.arrived();
    assert!(fakes[0].token("x").is_some(), "not released yet");
    fakes[0].set_fault(Fault::None);
    late.go();
    locker
        .lock("x", TTL)
        .expect("the take is behind the release")
        .release()
        .expect("ours");
}

#[test]
fn a_release_whose_answer_was_lost_counts_when_the_key_is_gone() {
    let fakes = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    let guard = locker.lock("x", TTL).expect("free");
    fakes[0].set_fault(Fault::DisconnectsAfter(Op::Release));
    guard.release().expect("it was our release that deleted it");
    assert_eq!(fakes[0].count(Op::Release), 2);
}

#[test]
fn a_guard_is_released_once() {
    let fakes = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    let guard = locker.lock("x", TTL).expect("free");
    guard.release().expect("ours");
    assert_eq!(fakes[0].count(Op::Release), 1);
    assert_eq!(locker.nodes().drop_failures(), 0, "its drop did nothing");
}

#[test]
fn a_release_that_finds_nothing_is_a_loss() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let guard = locker.lock("x", TTL).expect("free");
    eventually("all three", || holders(&fakes, "x") == 3);
    fakes[0].wipe();
    fakes[2].wipe();
    assert!(matches!(guard.release(), Err(Error::LockLost { .. })));
}

#[test]
fn a_panic_releases() {
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

#[test]
fn shutdown_turns_away_waits_and_leaves_what_is_in_use() {
    let fakes = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    let guard = locker.lock("x", TTL).expect("free");
    let closed = |tried: Result<_, Error>| assert_eq!(tried.err(), Some(Error::Closed));
    thread::scope(|scope| {
        let waiting = scope.spawn(|| locker.lock("x", TTL).map(drop));
        fakes[0].set_fault(Fault::Refuses);
        let asking = scope.spawn(|| locker.lock("y", TTL).map(drop));
        eventually("it asks", || fakes[0].count(Op::Acquire) > 1);
        assert!(!locker.nodes().shutdown(Duration::from_millis(20)));
        closed(waiting.join().expect("no panic"));
        closed(asking.join().expect("no panic"));
    });
    closed(locker.try_lock("z", TTL).map(drop));
    assert!(fakes[0].token("x").is_some(), "left to its TTL");
    assert!(!guard.is_held());
    assert_eq!(guard.watch().loss_reason(), Some(LossReason::ShutDown));
    assert!(matches!(guard.release(), Err(Error::LockLost { .. })));
    locker.nodes().shutdown(Duration::ZERO);
}

#[test]
fn shutdown_undoes_what_is_being_asked_for() {
    let fakes = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    let late = fakes[0].is_late(Op::Acquire);
    let nodes = locker.nodes().clone();
    thread::scope(|scope| {
        let asking = scope.spawn(|| locker.lock("x", TTL).map(drop));
        late.arrived();
        let ending = scope.spawn(move || nodes.shutdown(Duration::ZERO));
        eventually("it is closed", || {
            locker.nodes().engine().lock_table.is_closed()
        });
        late.go();
        assert_eq!(asking.join().expect("no panic"), Err(Error::Closed));
        assert!(ending.join().expect("no panic"));
    });
    assert_eq!(holders(&fakes, "x"), 0, "a key that nobody holds is left");
}

#[test]
fn shutdown_waits_for_guards() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let guard = locker.lock("x", TTL).expect("free");
    let nodes = locker.nodes().clone();
    thread::scope(|scope| {
        let ending = scope.spawn(move || nodes.shutdown(Duration::from_secs(20)));
        eventually("it is closed", || {
            matches!(locker.try_lock("y", TTL), Err(Error::Closed))
        });
        guard.release().expect("ours");
        assert!(ending.join().expect("no panic"));
    });
}

#[test]
fn a_guard_outlives_its_locker() {
    let fakes = FakeNode::fakes(3);
    let guard = healthy(&fakes).lock("x", TTL).expect("free");
    assert!(guard.is_held());
    drop(guard);
    assert_eq!(holders(&fakes, "x"), 0, "the last handle drains the lanes");
}

// Where a name is parsed.

#[test]
fn input_is_refused_before_anything_is_asked() {
    let fakes = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    for key in ["", "x:writer"] {
        let error = locker.try_lock(key, TTL).expect_err("a bad name");
        assert!(matches!(error, Error::InvalidKey { .. }), "{error}");
    }
    for ttl in [Duration::ZERO, Duration::from_millis(3), Duration::MAX] {
        let error = locker.try_lock("x", ttl).expect_err("a bad TTL");
        assert!(matches!(error, Error::InvalidTtl { .. }), "{error}");
    }
    let guard = locker.lock("x", TTL).expect("free");
    assert!(matches!(
        guard.extend(Duration::ZERO),
        Err(Error::InvalidTtl { .. })
    ));
    assert!(guard.is_held());
    assert_eq!(fakes[0].count(Op::Extend), 0);
}
