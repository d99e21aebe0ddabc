//! Quorum and connections over fake nodes: which nodes vote, which are suspect, and the result of
//! an acquire (S1).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::api::locker::Locker;
use crate::api::options::LockOptions;
use crate::config::builder::Config;
use crate::error::error::Error;
use crate::error::node_failure::NodeFailure;
use crate::error::operation::Operation;
use crate::protocol::request::Op;
use crate::protocol::retry::RetryPolicy;
use crate::tests::engine::setup::{
    SHORT, TTL, all_free, healthy, impatient, set_faults, slow_retries_at_most,
};
use crate::tests::fake_node::node::{
    FakeNode, Fault, assert_no_timeout_elapsed, connected_locker, eventually, on_log_line,
};
use crate::time::clock;

/// Counts the lines of this thread for which `is_counted` returns true.
fn count_lines(is_counted: impl Fn(&str) -> bool + 'static) -> Arc<AtomicUsize> {
    let counted = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&counted);
    on_log_line(move |line| _ = count.fetch_add(usize::from(is_counted(line)), Ordering::SeqCst));
    counted
}

#[test]
fn clients_that_reach_different_nodes_do_not_both_acquire() {
    let fakes = FakeNode::fakes(5);
    let (left, right) = (&fakes[..2], &fakes[3..]);
    right.iter().for_each(|fake| fake.set_fault(Fault::Down));
    let abc = healthy(&fakes);
    right.iter().for_each(|fake| fake.set_fault(Fault::None));
    left.iter().for_each(|fake| fake.set_fault(Fault::Down));
    let cde = healthy(&fakes);

    // Both lockers have three nodes. If each counted a majority of those, the votes of C would not
    // matter.
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
fn connect_with_too_few_nodes_names_each_failure() {
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
fn node_that_starts_within_the_connect_timeout_is_used() {
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
fn server_behind_two_addresses_is_refused() {
    let fake = FakeNode::new("twin");
    let twice = [fake.clone(), fake, FakeNode::new("other")];
    let error = connected_locker(&twice, |config| config).expect_err("a node counted twice");
    assert!(error.to_string().contains("same server"), "{error}");
}

#[test]
fn duplicate_server_that_comes_up_later_never_votes() {
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

#[test]
fn servers_that_swap_addresses_are_used_again() {
    let (a, b) = (FakeNode::new("a"), FakeNode::new("b"));
    let third = FakeNode::new("c");
    let nodes = [a.clone(), b.clone(), third];
    let locker = healthy(&nodes);
    a.set_fault(Fault::Down);
    b.set_fault(Fault::Down);
    let up = |count: usize| {
        eventually("the connections detect it", || {
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
fn worker_survives_a_panic_in_its_session() {
    let fakes = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    fakes[0].set_fault(Fault::Panics(Op::Acquire));
    let error = locker.try_lock("x", TTL).expect_err("the worker panicked");
    assert!(error.to_string().contains("panic"), "{error}");
    let patient = LockOptions::new(TTL).wait_for(Duration::from_secs(10));
    locker
        .acquire("x", &patient)
        .expect("the worker lives")
        .release()
        .expect("ours");
}

#[test]
fn four_nodes_grant_exactly_when_three_are_free() {
    for mask in 0..16_u32 {
        let fakes = FakeNode::fakes(4);
        let accepted = |n: usize| mask & (1 << n) != 0;
        let taken_nodes = (0..4).filter(|n| accepted(*n));
        taken_nodes.for_each(|n| fakes[n].seize("x", TTL));
        let locker = healthy(&fakes);
        let tried = locker.try_lock("x", TTL).expect("all nodes replied");
        assert_eq!(tried.is_some(), mask.count_ones() <= 1, "mask {mask:04b}");
        drop(tried);
        let left = |n: usize| fakes[n].token("x").is_some() == accepted(n);
        eventually("only other owners are left", || (0..4).all(left));
    }
}

#[test]
fn refusals_and_outages_return_different_errors() {
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
    assert_eq!(reachable, 3, "errors are replies");
    assert!(matches!(causes[0].failure, NodeFailure::Held { .. }));
    assert!(
        matches!(&causes[1].failure, NodeFailure::ServerError(words) if words.starts_with("OOM"))
    );
    assert!(locker.try_lock("x", TTL).is_err(), "not None");
}

#[test]
fn last_attempt_is_counted_and_followed_by_no_delay() {
    let between = Duration::from_millis(300);
    let twice = |config: Config| {
        config.retry(RetryPolicy {
            max_attempts: Some(2),
            initial_delay: between,
            max_delay: between,
            jitter: 0.0,
            ..RetryPolicy::default()
        })
    };
    let (fakes, others) = (FakeNode::fakes(1), FakeNode::fakes(1));
    set_faults(&fakes, &Fault::Refuses);
    set_faults(&others, &Fault::Refuses);
    let once = connected_locker(&fakes, |config| slow_retries_at_most(config, 1));
    let twice = connected_locker(&others, twice);
    for (locker, node, max, least) in [
        (once, &fakes[0], 1, Duration::ZERO),
        (twice, &others[0], 2, between),
    ] {
        let delays = count_lines(|line| line.contains("next after"));
        let began = clock::now();
        let error = locker.expect("it is up").lock("x", TTL);
        // A delay after the only attempt takes 300 s.
        assert_no_timeout_elapsed(began);
        assert!(clock::now() - began >= least);
        assert!(
            matches!(error, Err(Error::Contended { attempts, .. }) if attempts == max),
            "{error:?}"
        );
        assert_eq!(node.count(Op::Acquire), max as usize);
        assert_eq!(delays.load(Ordering::SeqCst), max as usize - 1);
    }
}

#[test]
fn outage_of_all_nodes_ends_after_the_attempts_with_a_cause_of_each_node() {
    let fakes = FakeNode::fakes(3);
    let locker = connected_locker(&fakes, |config| {
        config.retry(RetryPolicy {
            max_attempts: Some(4),
            max_outage: Duration::from_secs(300),
            initial_delay: Duration::from_millis(1),
            max_delay: Duration::from_millis(1),
            ..RetryPolicy::default()
        })
    });
    let locker = locker.expect("all are up");
    set_faults(&fakes, &Fault::Down);
    eventually("it is noticed", || locker.nodes().engine().nodes_up() == 0);
    let rounds = count_lines(|line| line.starts_with("\"x\": acquire: "));
    let error = locker.lock("x", TTL).expect_err("all are down");
    let Error::InsufficientQuorum {
        operation,
        needed,
        reachable,
        total,
        causes,
    } = error
    else {
        panic!("{error}")
    };
    assert_eq!(operation, Operation::Acquire);
    assert_eq!((needed, reachable, total), (2, 0, 3));
    let named: Vec<&str> = causes.iter().map(|cause| &*cause.node).collect();
    assert_eq!(named, ["fake-0", "fake-1", "fake-2"]);
    let down = NodeFailure::Unreachable("down".into());
    assert!(
        causes.iter().all(|cause| cause.failure == down),
        "{causes:?}"
    );
    assert_eq!(rounds.load(Ordering::SeqCst), 4);
}

#[test]
fn delay_of_a_limited_attempt_is_not_shortened_by_a_former_holder() {
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
    let locker = locker.expect("connected");
    let start = clock::now();
    let error = locker.lock("x", TTL).expect_err("refused");
    assert!(error.is_contended(), "{error}");
    assert!(clock::now() - start >= 2 * delay);
    assert_eq!(fakes[0].count(Op::Acquire), 3);
}

#[test]
fn acquire_during_an_outage_ends_with_its_own_error() {
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
    eventually("the connections are back", || {
        locker.acquire("x", &patient).is_ok()
    });
}

// Hung nodes.

#[test]
fn hung_minority_does_not_delay_an_acquire() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let hung = fakes[2].delay(Op::Acquire);
    // With a timeout of 5 s, a wait for the hung node would show in the time of the rounds.
    let started = clock::now();
    let guard = locker.lock("x", TTL).expect("two of three");
    // While the lock is held, the connection does not drop the acquire unsent.
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
fn overdue_connection_is_suspect_before_a_request_queues() {
    let fakes = FakeNode::fakes(1);
    let locker = connected_locker(&fakes, impatient).expect("it is up");
    let hung = fakes[0].delay(Op::Acquire);
    // A request that has expired before it could be sent is not sent.
    eventually("it hangs", || {
        locker.try_lock("x", TTL).expect_err("it hangs");
        hung.has_arrived()
    });
    // If the requests queued, each would wait for its timeout.
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
    assert_eq!(
        fakes[0].acquire_tokens().len(),
        1,
        "the second was never queued"
    );
    all_free(&fakes, "x");
}

#[test]
fn connection_with_an_overdue_ping_is_suspect() {
    let fakes = FakeNode::fakes(1);
    let locker = connected_locker(&fakes, impatient).expect("it is up");
    let hung = fakes[0].delay_ping();
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
    assert!(fakes[0].acquire_tokens().is_empty(), "none was ever queued");
    drop(locker.lock("x", TTL).expect("the node replies"));
}

#[test]
fn idle_connection_notices_that_its_node_is_gone() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    fakes[1].set_fault(Fault::Down);
    let up = |count: usize| {
        eventually("the connections detect it", || {
            locker.nodes().engine().nodes_up() == count
        });
    };
    up(2);
    fakes[1].set_fault(Fault::None);
    up(3);
}

#[test]
fn locally_held_key_causes_no_request() {
    let fakes = FakeNode::fakes(1);
    let locker = healthy(&fakes);
    let guard = locker.lock("x", TTL).expect("free");
    assert!(locker.try_lock("x", TTL).expect("no error").is_none());
    assert_eq!(fakes[0].count(Op::Acquire), 1);
    drop(guard);
    assert!(locker.try_lock("x", TTL).expect("no error").is_some());
}

#[test]
fn acquire_of_a_free_lock_locks_the_lock_table_twice_and_its_release_too() {
    let fakes = FakeNode::fakes(3);
    let locker = healthy(&fakes);
    let table = &locker.nodes().engine().lock_table;
    let began = table.state.lock_count();
    let guard = locker.lock("x", TTL).expect("free");
    let held = table.state.lock_count();
    guard.release().expect("ours");
    let ended = table.state.lock_count();
    // For the entry, and for the lease in it.
    let per_acquire = held - began;
    // To look for a waiter to hand off to, and to end the hold.
    let per_release = ended - held;
    assert_eq!((per_acquire, per_release), (2, 2));
}

#[test]
fn invalid_input_is_refused_before_any_request() {
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
