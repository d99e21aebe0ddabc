//! Outages over fake nodes: when the breaker opens and closes, and locks in degraded mode.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;

use crate::api::guard::LockGuard;
use crate::api::locker::Locker;
use crate::api::options::LockOptions;
use crate::api::redis_locker::RedisLocker;
use crate::api::rw_locker::{RedisRwLocker, RwLocker};
use crate::api::watch::WatchOutcome;
use crate::config::builder::Config;
use crate::engine::attempt::AttemptContext;
use crate::engine::attempt_result::{AttemptFailure, Contention};
use crate::engine::backend::Outage;
use crate::error::error::Error;
use crate::error::failed_node::FailedNode;
use crate::error::node_failure::NodeFailure;
use crate::local::request::AccessMode;
use crate::protocol::breaker::MIN_OUTAGE;
use crate::protocol::mode::Mode;
use crate::protocol::quorum::{Tally, VoteRule};
use crate::protocol::request::Op;
use crate::protocol::retry::RetryPolicy;
use crate::protocol::server_info::{Role, ServerInfo};
use crate::telemetry::health::{BreakerState, NodeState};
use crate::tests::engine::setup::{
    delay_acquires, exclusive_key, exclusive_params, serve_delayed, set_faults,
};
use crate::tests::fake_node::node::{
    FakeNode, Fault, Rendezvous, connected_locker, eventually, on_log_line,
};
use crate::time::clock;
use crate::transport::cancel::CancelToken;
use crate::transport::inbox::Inbox;

const TTL: Duration = Duration::from_secs(60);
/// The limit of waits that only a hang exceeds.
const LIMIT: Duration = Duration::from_secs(20);
const LONG: Duration = Duration::from_secs(600);

/// Configures a breaker that opens after three rounds and sends no probe within the test.
fn config(config: Config) -> Config {
    config.circuit_breaker(3, LONG).retry(RetryPolicy {
        initial_delay: Duration::from_millis(1),
        max_delay: Duration::from_millis(20),
        ..RetryPolicy::default()
    })
}

fn plain(fakes: &[Arc<FakeNode>]) -> RedisLocker {
    connected_locker(fakes, config).expect("a quorum is up")
}

fn degraded(fakes: &[Arc<FakeNode>]) -> RedisLocker {
    connected_locker(fakes, |c| config(c).allow_degraded(true)).expect("a quorum is up")
}

fn breaker(locker: &RedisLocker) -> BreakerState {
    locker.nodes().health().breaker
}

fn is_open(locker: &RedisLocker) -> bool {
    matches!(breaker(locker), BreakerState::Open { .. })
}

/// Takes a majority of the nodes down, and tries until the breaker is open.
fn break_down(fakes: &[Arc<FakeNode>], locker: &RedisLocker) {
    set_faults(&fakes[1..], &Fault::Down);
    eventually("the breaker opens", || {
        let _ = locker.try_lock("opens it", TTL);
        is_open(locker)
    });
    let nodes = &locker.nodes().engine().nodes;
    eventually("connects have failed", || nodes.no_quorum_reachable());
}

fn all_up(locker: &RedisLocker) {
    let nodes = || locker.nodes().health().nodes;
    eventually("all are up", || {
        nodes().iter().all(|node| node.state == NodeState::Up)
    });
}

fn comes_back(fakes: &[Arc<FakeNode>], locker: &RedisLocker) {
    set_faults(fakes, &Fault::None);
    locker.nodes().wait_ready(LIMIT).expect("they are back");
}

fn options() -> LockOptions {
    LockOptions::new(TTL).wait_for(LIMIT)
}

fn is_local(accepted: Result<Option<LockGuard>, Error>) -> bool {
    let guard = accepted.expect("no error").expect("free");
    guard.mode() == Mode::Local
}

#[test]
fn open_breaker_asks_no_node_until_the_nodes_are_back() {
    let fakes = FakeNode::fakes(3);
    let locker = plain(&fakes);
    let error = {
        set_faults(&fakes[1..], &Fault::Down);
        locker.try_lock("x", TTL).expect_err("two are down")
    };
    assert!(matches!(error, Error::InsufficientQuorum { .. }), "{error}");
    break_down(&fakes, &locker);
    let asked = fakes[0].count(Op::Acquire);
    for _ in 0..10 {
        let error = locker.try_lock("x", TTL).expect_err("it is open");
        let Error::CircuitOpen {
            retry_in,
            ref causes,
        } = error
        else {
            panic!("{error}")
        };
        let silent: Vec<&str> = causes.iter().map(|cause| cause.node.as_str()).collect();
        assert_eq!(silent, ["fake-1", "fake-2"], "{error}");
        assert!(retry_in <= LONG && retry_in > LONG / 2, "{retry_in:?}");
        assert!(error.is_unavailable() && !error.is_contended());
    }
    assert_eq!(fakes[0].count(Op::Acquire), asked, "no node is asked");
    comes_back(&fakes, &locker);
    drop(locker.lock("x", TTL).expect("the probe"));
    assert_eq!(breaker(&locker), BreakerState::Closed);
}

/// Returns a locker with this `max_outage`.
fn with_max_outage(fakes: &[Arc<FakeNode>], max_outage: Duration) -> RedisLocker {
    let adjust = |c: Config| {
        let policy = RetryPolicy {
            initial_delay: Duration::from_millis(1),
            max_delay: Duration::from_millis(5),
            max_outage,
            ..RetryPolicy::default()
        };
        config(c).retry(policy)
    };
    connected_locker(fakes, adjust).expect("a quorum is up")
}

fn been_quiet() {
    let quiet = clock::now() + 2 * MIN_OUTAGE;
    eventually("it has been quiet", || clock::now() > quiet);
}

/// Returns the nodes that an error about a missing quorum names.
fn without_quorum(error: Error) -> Vec<String> {
    let Error::InsufficientQuorum { causes, .. } = error else {
        panic!("{error}")
    };
    causes.iter().map(|cause| cause.node.clone()).collect()
}

#[test]
fn waiter_at_an_open_breaker_acquires_when_nodes_are_back() {
    let fakes = FakeNode::fakes(3);
    let locker = with_max_outage(&fakes, Duration::MAX);
    break_down(&fakes, &locker);
    let asked = fakes[0].count(Op::Acquire);
    let circuit = &locker.nodes().engine().circuit;
    thread::scope(|scope| {
        let wait = |key: &'static str| {
            let locker = &locker;
            scope.spawn(move || locker.lock(key, TTL))
        };
        let waits = ["a", "b", "c"].map(wait);
        eventually("they sleep", || circuit.waiting() == 3);
        let error = locker.try_lock("x", TTL).expect_err("it does not wait");
        assert!(matches!(error, Error::CircuitOpen { .. }), "{error}");
        assert_eq!(fakes[0].count(Op::Acquire), asked, "no node is asked");
        // No timer ends this wait, only connections that come up.
        set_faults(&fakes, &Fault::None);
        for waits in waits {
            drop(waits.join().expect("no panic").expect("free"));
        }
    });
    assert_eq!(breaker(&locker), BreakerState::Closed);
    assert_eq!(circuit.waiting(), 0);
}

#[test]
fn waiter_at_an_open_breaker_ends_by_each_limit_cancellation_or_shutdown() {
    let fakes = FakeNode::fakes(3);
    let locker = with_max_outage(&fakes, Duration::from_millis(50));
    break_down(&fakes, &locker);
    let words = "connected to 1 of 3 nodes, 2 are needed"; // none of them was asked to grant it
    for error in [
        locker.lock("x", TTL).expect_err("it lasts"),
        locker
            .acquire_any(&["x", "y"], &LockOptions::new(TTL))
            .expect_err("it lasts"),
    ] {
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(without_quorum(error), ["fake-1", "fake-2"]);
    }

    let fakes = FakeNode::fakes(3);
    let locker = with_max_outage(&fakes, Duration::MAX);
    break_down(&fakes, &locker);
    let brief = LockOptions::new(TTL).wait_for(Duration::from_millis(50));
    for error in [
        locker.acquire("x", &brief).expect_err("it lasts"),
        locker
            .acquire_any(&["x", "y"], &brief)
            .expect_err("it lasts"),
    ] {
        assert_eq!(without_quorum(error), ["fake-1", "fake-2"]);
    }
    let at_once = LockOptions::new(TTL).wait_for(Duration::ZERO);
    let error = locker
        .acquire_any(&["x", "y"], &at_once)
        .expect_err("it lasts");
    assert!(matches!(error, Error::CircuitOpen { .. }), "{error}");
    let circuit = &locker.nodes().engine().circuit;
    let token = CancelToken::new();
    let cancelled = LockOptions::new(TTL).cancel_on(&token);
    thread::scope(|scope| {
        let one = scope.spawn(|| locker.acquire("x", &cancelled).err());
        let other = scope.spawn(|| locker.lock("y", TTL).err());
        eventually("they sleep", || circuit.waiting() == 2);
        token.cancel();
        assert_eq!(one.join().expect("no panic"), Some(Error::Cancelled));
        _ = locker.nodes().shutdown(Duration::ZERO);
        assert_eq!(other.join().expect("no panic"), Some(Error::Closed));
    });
    assert_eq!(circuit.waiting(), 0);
}

#[test]
fn queued_waiters_at_an_open_breaker_share_max_outage() {
    let fakes = FakeNode::fakes(3);
    let max_outage = Duration::from_millis(500);
    let locker = with_max_outage(&fakes, max_outage);
    break_down(&fakes, &locker);
    let began = clock::now();
    thread::scope(|scope| {
        let waits = [(); 40].map(|()| scope.spawn(|| locker.lock("x", TTL).err()));
        for waits in waits {
            without_quorum(waits.join().expect("no panic").expect("it lasts"));
        }
    });
    assert!(clock::now() - began < 20 * max_outage);
}

#[test]
fn error_replies_do_not_open_the_breaker() {
    let loading = Fault::Loads(Op::Acquire);
    let errs = Fault::Fails(Op::Acquire);
    // The faults of two of the three nodes.
    for (faults, is_outage) in [
        ([&errs, &errs], false),
        ([&Fault::DeniesOp(Op::Acquire), &errs], false),
        ([&Fault::Down, &errs], false),
        ([&Fault::Down, &loading], true),
        ([&loading, &loading], true),
    ] {
        let fakes = FakeNode::fakes(3);
        let adjust = |c: Config| config(c).circuit_breaker(1, LONG).allow_degraded(true);
        let locker = connected_locker(&fakes, adjust).expect("a quorum is up");
        been_quiet();
        for (fake, faults) in fakes[1..].iter().zip(faults) {
            fake.set_fault(faults.clone());
        }
        let circuit = &locker.nodes().engine().circuit;
        for _ in 0..20 {
            // The lock is not local even if the breaker opens, because a loading node is connected.
            locker.try_lock("x", TTL).expect_err("no quorum");
        }
        assert_eq!(circuit.is_open(), is_outage, "{faults:?}");
        assert_eq!(circuit.is_calm(), !is_outage, "{faults:?}");
    }
}

#[test]
fn broken_connections_that_reconnect_never_lead_to_local_locks() {
    let fakes = FakeNode::fakes(3);
    let adjust = |c: Config| config(c).circuit_breaker(1, LONG).allow_degraded(true);
    let locker = connected_locker(&fakes, adjust).expect("a quorum is up");
    been_quiet();
    set_faults(&fakes[1..], &Fault::Breaks(Op::Acquire));
    for _ in 0..50 {
        let tried = locker.try_lock("x", TTL);
        assert!(tried.is_err_and(|error| error.is_unavailable()));
    }
    let circuit = &locker.nodes().engine().circuit;
    assert!(!circuit.is_calm(), "it was an outage");
    set_faults(&fakes[1..], &Fault::Down);
    let guard = locker.lock("x", TTL).expect("connects fail as well");
    assert_eq!(guard.mode(), Mode::Local);
}

#[test]
fn wait_for_a_held_lock_survives_broken_connections_during_other_acquires() {
    let fakes = FakeNode::fakes(3);
    let max_outage = Duration::from_secs(2);
    let locker = with_max_outage(&fakes, max_outage);
    fakes.iter().for_each(|fake| fake.seize("x", LONG));
    let token = CancelToken::new();
    let options = LockOptions::new(TTL).cancel_on(&token);
    thread::scope(|scope| {
        let began = clock::now();
        let waits = scope.spawn(|| locker.acquire("x", &options).err());
        eventually("it has waited for long", || {
            clock::now() > began + max_outage
        });
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let _ = locker.try_lock("other", TTL);
                }
            });
            for _ in 0..50 {
                let connects = || fakes[1].connects().len() + fakes[2].connects().len();
                let before = connects();
                set_faults(&fakes[1..], &Fault::DisconnectsAfter(Op::Acquire));
                eventually("they are connected again", || connects() >= before + 2);
            }
            is_over.store(true, Ordering::Relaxed);
        });
        token.cancel();
        let error = waits.join().expect("no panic");
        assert_eq!(error, Some(Error::Cancelled), "it waited on");
    });
}

#[test]
fn acquire_with_error_replies_ends_by_max_outage_during_other_acquires() {
    let fakes = FakeNode::fakes(3);
    let locker = with_max_outage(&fakes, Duration::from_millis(200));
    set_faults(&fakes, &Fault::ErrsOn("x"));
    let (began, is_over) = (clock::now(), AtomicBool::new(false));
    thread::scope(|scope| {
        let waits = scope.spawn(|| {
            let error = locker.acquire("x", &options()).expect_err("errors");
            is_over.store(true, Ordering::Relaxed);
            error
        });
        while !is_over.load(Ordering::Relaxed) {
            drop(locker.try_lock("other", TTL).expect("no error"));
        }
        let error = waits.join().expect("no panic");
        assert!(error.to_string().contains("OOM"), "{error}");
        without_quorum(error);
    });
    assert!(clock::now() - began < LIMIT, "its own limit ended it");
    assert!(locker.nodes().engine().circuit.is_calm());
}

#[test]
fn denied_acquire_fails_immediately() {
    let fakes = FakeNode::fakes(3);
    let locker = with_max_outage(&fakes, Duration::MAX);
    set_faults(&fakes[1..], &Fault::DeniesOp(Op::Acquire));
    let began = clock::now();
    let error = locker.acquire("x", &options()).expect_err("denied");
    assert_eq!(without_quorum(error), ["fake-1", "fake-2"]);
    assert!(clock::now() - began < LIMIT, "its own limit ended it");
}

#[test]
fn outage_of_an_acquire_counts_its_own_rounds_only() {
    let start = clock::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let contended = |by_one| {
        AttemptFailure::Contended(Contention {
            held_by: AccessMode::Exclusive,
            free_in: None,
            split_vote: None,
            single_node: by_one,
            max_hold_left: None,
            blocking_keys: Vec::new(),
            owner_label: None,
        })
    };
    let slow = |won| AttemptFailure::TooSlow {
        won,
        max_hold_left: None,
    };
    let unavailable = || AttemptFailure::Unavailable(Tally::new(3, VoteRule::Acquire));
    for (rounds, began) in [
        (vec![], None),
        (vec![unavailable()], Some(0)),
        (vec![unavailable(), unavailable()], Some(0)),
        (
            vec![contended(false), unavailable(), unavailable()],
            Some(1),
        ),
        (vec![unavailable(), contended(false)], None),
        (
            vec![unavailable(), contended(false), unavailable()],
            Some(2),
        ),
        (vec![unavailable(), contended(true), unavailable()], Some(0)),
        (vec![unavailable(), slow(true)], None),
        (vec![unavailable(), slow(false)], Some(0)),
        (vec![slow(false), contended(true)], None),
    ] {
        let mut outage = Outage::default();
        for (second, miss) in rounds.iter().enumerate() {
            outage.note(miss, at(second as u64));
        }
        let ten = Duration::from_secs(10);
        assert_eq!(outage.end(ten), began.map(|began| at(began + 10)));
        assert_eq!(outage.end(Duration::MAX), None);
    }
}

/// Acquires the lock of `key`, and cancels the acquire when all delayed nodes have its request.
fn cancel_in_flight(locker: &RedisLocker, key: &str, late: &[Rendezvous]) {
    let token = CancelToken::new();
    let cancelled = options().cancel_on(&token);
    thread::scope(|scope| {
        let waits = scope.spawn(|| locker.acquire(key, &cancelled).err());
        late.iter().for_each(Rendezvous::arrived);
        token.cancel();
        assert_eq!(waits.join().expect("no panic"), Some(Error::Cancelled));
    });
}

#[test]
fn open_breaker_admits_one_probe_and_others_wait_for_its_verdict() {
    let fakes = FakeNode::fakes(3);
    let locker = plain(&fakes);
    break_down(&fakes, &locker);
    let late = delay_acquires(&fakes);
    all_up(&locker);
    let asked = || fakes[0].acquire_tokens().len();
    let before = asked();
    thread::scope(|scope| {
        let probe = scope.spawn(|| locker.lock("probe", TTL).expect("free"));
        late.iter().for_each(|late| late.arrived());
        assert_eq!(breaker(&locker), BreakerState::HalfOpen);
        let others = ["a", "b", "c"].map(|key| {
            let locker = locker.clone();
            scope.spawn(move || locker.try_lock(key, TTL))
        });
        let circuit = &locker.nodes().engine().circuit;
        eventually("they wait", || circuit.waiting() == 3);
        assert_eq!(asked(), before, "none of them is served");
        serve_delayed(&fakes, &late);
        drop(probe.join().expect("no panic"));
        for other in others {
            let other = other.join().expect("no panic").expect("no error");
            assert!(other.is_some(), "a try asks as well");
        }
    });
    assert_eq!(breaker(&locker), BreakerState::Closed);
}

#[test]
fn failed_probe_reopens_the_breaker_and_an_undecided_one_does_not_count() {
    let fakes = FakeNode::fakes(3);
    let locker = plain(&fakes);
    break_down(&fakes, &locker);
    set_faults(&fakes[1..], &Fault::Loads(Op::Acquire));
    all_up(&locker);
    // The first attempt finds that the nodes are loading. Connections that are already up do not
    // end an open breaker.
    let error = locker.try_lock("x", TTL).expect_err("no quorum");
    assert!(matches!(error, Error::InsufficientQuorum { .. }), "{error}");
    let error = locker.try_lock("x", TTL).expect_err("open again");
    let Error::CircuitOpen { causes, .. } = &error else {
        panic!("{error}")
    };
    // The nodes are connected, so the cause is their last error reply.
    let loading = |cause: &FailedNode| matches!(&cause.failure, NodeFailure::ServerError(_));
    assert!(causes.len() == 2 && causes.iter().all(loading), "{error}");

    let fakes = FakeNode::fakes(3);
    let locker = plain(&fakes);
    break_down(&fakes, &locker);
    let late = delay_acquires(&fakes);
    all_up(&locker);
    cancel_in_flight(&locker, "x", &late);
    assert_eq!(breaker(&locker), BreakerState::HalfOpen);
    serve_delayed(&fakes, &late);
    drop(
        locker
            .acquire("y", &options())
            .expect("the next one probes"),
    );
}

#[test]
fn contention_cancellation_and_extensions_do_not_open_the_breaker() {
    let fakes = FakeNode::fakes(3);
    let locker = connected_locker(&fakes, |c| config(c).circuit_breaker(1, LONG)).expect("up");
    let held = locker.lock("held", TTL).expect("free");
    fakes.iter().for_each(|fake| fake.seize("x", LONG));
    been_quiet();
    for _ in 0..20 {
        assert!(locker.try_lock("x", TTL).expect("no error").is_none());
    }
    set_faults(&fakes[1..], &Fault::Fails(Op::Extend));
    for _ in 0..20 {
        assert!(held.extend(TTL).expect_err("errors").is_unavailable());
    }
    // Cancelled during a round that already cannot reach a quorum and would open the breaker.
    let late = delay_acquires(&fakes);
    cancel_in_flight(&locker, "y", &late);
    assert_eq!(breaker(&locker), BreakerState::Closed);
    let circuit = &locker.nodes().engine().circuit;
    assert!(circuit.is_calm(), "it does not count either");
    serve_delayed(&fakes, &late);
}

#[test]
fn half_of_an_even_number_of_nodes_is_no_quorum() {
    let fakes = FakeNode::fakes(4);
    let locker = plain(&fakes);
    set_faults(&fakes[2..], &Fault::Down);
    fakes[..2].iter().for_each(|fake| fake.seize("x", LONG));
    eventually("the breaker opens", || {
        let _ = locker.try_lock("y", TTL);
        // Refusals by two of four nodes are contention, whatever the others reply.
        let contended = locker.try_lock("x", TTL);
        assert!(is_open(&locker) || contended.is_ok_and(|guard| guard.is_none()));
        is_open(&locker)
    });
}

#[test]
fn round_that_opens_the_breaker_goes_local_despite_max_outage() {
    let fakes = FakeNode::fakes(3);
    let patient = |c: Config| {
        let policy = RetryPolicy {
            max_outage: Duration::MAX,
            ..RetryPolicy::default()
        };
        c.allow_degraded(true)
            .circuit_breaker(1, LONG)
            .retry(policy)
    };
    let locker = connected_locker(&fakes, patient).expect("a quorum is up");
    been_quiet();
    set_faults(&fakes[1..], &Fault::Down);
    // Locks become local as soon as fresh connects have failed as well.
    let guard = locker.lock("x", TTL).expect("held here");
    assert_eq!(guard.mode(), Mode::Local);
}

/// The nodes refused an acquire because of a long lease of another owner, and went down. The waiter
/// does not acquire locally.
#[test]
fn refused_acquire_bears_an_outage_for_max_outage() {
    let soon = Duration::from_millis(300);
    let few = RetryPolicy {
        max_attempts: Some(20),
        ..RetryPolicy::default()
    };
    let brief = RetryPolicy {
        max_outage: soon,
        ..RetryPolicy::default()
    };
    for policy in [few, brief] {
        let policy = RetryPolicy {
            initial_delay: Duration::from_millis(1),
            max_delay: Duration::from_millis(20),
            ..policy
        };
        let fakes = FakeNode::fakes(3);
        let adjust = |c: Config| config(c).allow_degraded(true).retry(policy);
        let locker = connected_locker(&fakes, adjust).expect("a quorum is up");
        fakes[0].seize("x", LIMIT);
        set_faults(&fakes[1..], &Fault::Down);
        let error = locker.lock("x", TTL).expect_err("held for long");
        assert!(error.is_unavailable(), "{error}");
        break_down(&fakes, &locker);
        assert!(is_local(locker.try_lock("free", TTL)), "it was not refused");
    }
}

#[test]
fn access_denied_ends_an_outage_and_is_logged_once() {
    let fakes = FakeNode::fakes(3);
    let locker = degraded(&fakes);
    break_down(&fakes, &locker);
    assert!(is_local(locker.try_lock("x", TTL)));
    let lines = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&lines);
    on_log_line(move |line| seen.lock().push(line.to_owned()));
    set_faults(&fakes[1..], &Fault::DeniesOp(Op::Acquire));
    locker.nodes().wait_ready(LIMIT).expect("connected");
    for _ in 0..5 {
        let error = locker.try_lock("x", TTL).expect_err("denied");
        assert!(matches!(error, Error::InsufficientQuorum { .. }), "{error}");
    }
    assert_eq!(breaker(&locker), BreakerState::Closed);
    let logged = lines.lock();
    let ends = logged.iter().filter(|line| line.contains("circuit closed"));
    assert_eq!(ends.count(), 1, "{logged:?}");
}

#[test]
fn probe_with_a_panicking_logger_returns_its_guard() {
    let fakes = FakeNode::fakes(3);
    let locker = plain(&fakes);
    break_down(&fakes, &locker);
    comes_back(&fakes, &locker);
    on_log_line(|_| panic!("as the test wants it"));
    let guard = locker.acquire("x", &options()).expect("the probe");
    on_log_line(|_| {});
    assert_eq!(breaker(&locker), BreakerState::Closed);
    guard.release().expect("ours");
}

#[test]
fn connection_that_came_up_between_two_checks_is_not_missed() {
    let fakes = FakeNode::fakes(3);
    let locker = plain(&fakes);
    break_down(&fakes, &locker);
    comes_back(&fakes, &locker);
    drop(locker.acquire("x", &options()).expect("the probe"));
    all_up(&locker);
    set_faults(&fakes[1..], &Fault::Loads(Op::Acquire));
    eventually("it opens while all are up", || {
        let _ = locker.try_lock("opens it", TTL);
        is_open(&locker)
    });
    let error = locker.try_lock("x", TTL).expect_err("no news");
    assert!(matches!(error, Error::CircuitOpen { .. }), "{error}");
    // No waiter sends a request while the nodes are down.
    let before: Vec<usize> = fakes.iter().map(|fake| fake.refused()).collect();
    set_faults(&fakes[1..], &Fault::Down);
    eventually("they go down", || {
        (1..3).all(|node| fakes[node].refused() > before[node])
    });
    set_faults(&fakes[1..], &Fault::None);
    all_up(&locker);
    drop(locker.lock("x", TTL).expect("the probe"));
}

#[test]
fn local_lock_obeys_max_ttl() {
    let fakes = with(&[(); 3].map(|()| up_for(LONG)));
    let locker = connected_locker(&fakes, |c| {
        config(c).allow_degraded(true).restart_quarantine(TTL)
    });
    let locker = locker.expect("a quorum is up");
    break_down(&fakes, &locker);
    let guard = locker.lock("x", TTL).expect("held here");
    assert_eq!(guard.mode(), Mode::Local);
    guard.extend(TTL).expect("as long as it may be");
    let error = guard.extend(2 * TTL).expect_err("too long");
    assert!(matches!(error, Error::InvalidTtl { .. }), "{error}");
}

#[test]
fn shutdown_does_not_wait_for_a_lost_lock() {
    let fakes = FakeNode::fakes(3);
    let locker = plain(&fakes);
    let brief = Duration::from_secs(2);
    let [one, other] = ["one", "other"].map(|key| locker.lock(key, brief).expect("free"));
    let watch = one.watch();
    assert_eq!(watch.wait_ended(LIMIT), WatchOutcome::Lost);
    // The other lock is lost in the meantime.
    assert!(locker.nodes().shutdown(LIMIT), "no lock is held");
    assert!(matches!(other.release(), Err(Error::LockLost { .. })));
    drop(one);
}

#[test]
fn first_node_is_a_voting_one_if_any() {
    let [young, old] = [Duration::from_secs(1), LONG].map(up_for);
    let fakes = with(&[young.clone(), old, young]);
    let locker = connected_locker(&fakes, |c| config(c).restart_quarantine(TTL)).expect("up");
    assert_eq!(locker.nodes().engine().nodes.first_voting_node(), Some(1));
    set_faults(&fakes[1..2], &Fault::Down);
    eventually("one in quarantine is better than none", || {
        let _ = locker.try_lock("x", TTL);
        locker.nodes().engine().nodes.first_voting_node() == Some(0)
    });
}

#[test]
fn degraded_lock_is_local_and_blocks_the_next_holder_after_the_outage() {
    let fakes = FakeNode::fakes(3);
    let locker = degraded(&fakes);
    break_down(&fakes, &locker);
    let local = locker.lock("x", TTL).expect("held here");
    assert_eq!(local.mode(), Mode::Local);
    assert_eq!(local.remaining(), Duration::MAX);
    assert!(locker.try_lock("x", TTL).expect("no error").is_none());
    assert!(is_local(locker.try_lock("y", TTL)));
    let fenced = LockOptions::new(TTL).fencing(true);
    let error = locker.try_acquire("z", &fenced).expect_err("never local");
    assert!(matches!(error, Error::CircuitOpen { .. }), "{error}");
    let rw = RedisRwLocker::new(locker.nodes());
    let readers = [(); 2].map(|()| rw.read("x", TTL).expect("together"));
    assert!(readers.iter().all(|guard| guard.mode() == Mode::Local));
    assert!(rw.try_write("x", TTL).expect("no error").is_none());
    drop(readers);
    let reader = rw.write("x", TTL).expect("alone").downgrade();
    reader.expect("local, too").release().expect("it was held");

    comes_back(&fakes, &locker);
    // The nodes are asked again, except for the lock that is held locally.
    let other = locker.lock("other", TTL).expect("on the nodes");
    assert_eq!(other.mode(), Mode::Quorum);
    assert!(locker.try_lock("x", TTL).expect("no error").is_none());
    thread::scope(|scope| {
        let next = scope.spawn(|| locker.lock("x", TTL).expect("its turn"));
        let waiting = || {
            let table = &locker.nodes().engine().lock_table;
            table.waiting(&exclusive_key("x"))
        };
        eventually("it waits for the local holder", || waiting() == 1);
        assert!(fakes.iter().all(|fake| fake.token("x").is_none()));
        local.release().expect("it was held all the time");
        assert_eq!(next.join().expect("no panic").mode(), Mode::Quorum);
    });
}

#[test]
fn refused_acquire_stays_off_local_locks_until_the_holders_lease_can_have_ended() {
    stays_off_local_locks(|locker, options| locker.acquire("x", options));
}

#[test]
fn refused_acquire_any_stays_off_local_locks_until_the_holders_lease_can_have_ended() {
    stays_off_local_locks(|locker, options| locker.acquire_any(&["x"], options));
}

fn stays_off_local_locks(acquire: fn(&RedisLocker, &LockOptions) -> Result<LockGuard, Error>) {
    let fakes = FakeNode::fakes(3);
    let locker = degraded(&fakes);
    for (left, becomes_local) in [(Duration::from_millis(400), true), (LONG, false)] {
        set_faults(&fakes, &Fault::None);
        all_up(&locker);
        let guard = locker.lock("probe", TTL).expect("on the nodes");
        eventually("all have granted it", || {
            fakes.iter().all(|fake| fake.token("probe").is_some())
        });
        drop(guard);
        let before: Vec<usize> = fakes.iter().map(|fake| fake.count(Op::Acquire)).collect();
        let held = clock::now();
        fakes.iter().for_each(|fake| fake.seize("x", left));
        thread::scope(|scope| {
            let waits = scope.spawn(|| {
                let wait = if becomes_local {
                    LIMIT
                } else {
                    Duration::from_secs(1)
                };
                acquire(&locker, &LockOptions::new(TTL).wait_for(wait))
            });
            let asked = |node: usize| fakes[node].count(Op::Acquire) > before[node] + 1;
            eventually("it is refused, and asks again", || asked(1) && asked(2));
            break_down(&fakes, &locker);
            match waits.join().expect("no panic") {
                Ok(guard) => {
                    assert!(becomes_local && guard.mode() == Mode::Local);
                    assert!(clock::now() - held >= left, "too early");
                }
                Err(error) => {
                    let has_waited = matches!(error, Error::InsufficientQuorum { .. });
                    assert!(!becomes_local && has_waited, "{error}");
                }
            }
        });
    }
}

#[test]
fn lease_reported_by_one_node_keeps_the_acquire_off_local_locks() {
    let fakes = FakeNode::fakes(3);
    let locker = degraded(&fakes);
    all_up(&locker);
    let left = Duration::from_millis(400);
    let held = clock::now();
    fakes[0].seize("x", left);
    set_faults(&fakes[1..], &Fault::Down);
    let guard = locker
        .acquire("x", &options())
        .expect("held here in the end");
    assert_eq!(guard.mode(), Mode::Local);
    assert!(clock::now() - held >= left, "too early");
}

#[test]
fn lease_reported_to_a_slow_attempt_keeps_the_acquire_off_local_locks() {
    let fakes = FakeNode::fakes(3);
    let locker = plain(&fakes);
    fakes[0].seize("x", LONG);
    let late = delay_acquires(&fakes[1..]);
    let params = exclusive_params("x", Duration::from_secs(3));
    let inbox = Arc::new(Inbox::new());
    let engine = locker.nodes().engine();
    let attempt = engine.attempt(&AttemptContext::new(&params, &inbox));
    let miss = attempt.expect("randomness").result.expect_err("too slow");
    assert!(matches!(miss, AttemptFailure::TooSlow { .. }));
    assert!(
        miss.max_hold_left() > Some(LONG / 2),
        "{:?}",
        miss.max_hold_left()
    );
    serve_delayed(&fakes, &late);
}

#[test]
fn waiter_for_a_probes_verdict_can_be_cancelled() {
    let fakes = FakeNode::fakes(3);
    let locker = plain(&fakes);
    break_down(&fakes, &locker);
    let late = delay_acquires(&fakes);
    all_up(&locker);
    let token = CancelToken::new();
    thread::scope(|scope| {
        let probe = scope.spawn(|| locker.lock("probe", TTL).expect("free"));
        late.iter().for_each(|late| late.arrived());
        let cancelled = options().cancel_on(&token);
        let waits = scope.spawn({
            let locker = &locker;
            move || locker.acquire("x", &cancelled).err()
        });
        let circuit = &locker.nodes().engine().circuit;
        eventually("it waits", || circuit.waiting() == 1);
        token.cancel();
        assert_eq!(waits.join().expect("no panic"), Some(Error::Cancelled));
        serve_delayed(&fakes, &late);
        drop(probe.join().expect("no panic"));
    });
}

#[test]
fn wrong_credentials_never_lead_to_local_locks() {
    let fakes = FakeNode::fakes(3);
    let locker = degraded(&fakes);
    set_faults(&fakes[..2], &Fault::DeniesAccess);
    let end = clock::now() + 4 * MIN_OUTAGE;
    while clock::now() < end {
        let error = locker.try_lock("x", TTL).expect_err("denied");
        assert!(matches!(error, Error::InsufficientQuorum { .. }), "{error}");
    }
    // One node is down and another denies access. With access there would be a quorum.
    set_faults(&fakes[..1], &Fault::Down);
    for _ in 0..20 {
        let error = locker.try_lock("x", TTL).expect_err("no quorum");
        assert!(matches!(error, Error::InsufficientQuorum { .. }), "{error}");
    }
    // At a connect, denied access is an error.
    let connects = || {
        let quick = Duration::from_secs(1);
        let config = |c| config(c).node_timeout(quick).connect_timeout(quick);
        crate::tests::fake_node::node::connected_locker(&fakes, |c| config(c).allow_degraded(true))
    };
    let Error::InsufficientQuorum { causes, .. } = connects().expect_err("denied") else {
        panic!("another error")
    };
    assert!(
        matches!(causes[1].failure, NodeFailure::AccessDenied(_)),
        "{causes:?}"
    );
    set_faults(&fakes[..2], &Fault::Down);
    connects().expect("that is an outage");
}

#[test]
fn process_that_starts_without_nodes_recovers() {
    let fakes = FakeNode::fakes(3);
    set_faults(&fakes, &Fault::Down);
    let quick = Duration::from_secs(1);
    let config = |c| config(c).node_timeout(quick).connect_timeout(quick);
    let error = connected_locker(&fakes, config).expect_err("not allowed");
    assert!(matches!(error, Error::InsufficientQuorum { .. }), "{error}");
    // A probe that exceeds its time on a slow machine is repeated.
    let soon = Duration::from_millis(100);
    let degraded = |c| config(c).allow_degraded(true).circuit_breaker(3, soon);
    let locker = connected_locker(&fakes, degraded).expect("degraded");
    assert!(is_local(locker.try_lock("x", TTL)));
    let error = locker.nodes().wait_ready(Duration::ZERO).expect_err("down");
    assert!(
        matches!(error, Error::InsufficientQuorum { reachable: 0, .. }),
        "{error}"
    );
    comes_back(&fakes, &locker);
    eventually("on the nodes", || {
        let guard = locker.acquire("x", &options()).expect("free");
        guard.mode() == Mode::Quorum
    });
}

#[test]
fn shutdown_ends_local_locks_and_waits_for_nodes() {
    let fakes = FakeNode::fakes(3);
    let locker = degraded(&fakes);
    break_down(&fakes, &locker);
    let guard = locker.lock("x", TTL).expect("held here");
    let rw = RedisRwLocker::new(locker.nodes());
    let writer = rw.write("x", TTL).expect("held here");
    let watch = guard.watch();
    let nodes = locker.nodes().clone();
    thread::scope(|scope| {
        let waits = scope.spawn(|| nodes.wait_ready(LIMIT));
        assert!(!locker.nodes().shutdown(Duration::ZERO), "a guard is alive");
        assert_eq!(waits.join().expect("no panic"), Err(Error::Closed));
    });
    assert_eq!(watch.wait_ended(LIMIT), WatchOutcome::Lost);
    assert!(!guard.is_held() && guard.check().is_err());
    for lost in [
        guard.extend(TTL),
        writer.extend(TTL),
        writer.downgrade().map(drop),
        guard.release(),
    ] {
        let is_told = matches!(&lost, Err(error) if error.is_lost());
        assert!(is_told, "{lost:?}");
    }
}

/// Returns nodes that report this server info.
fn with(about: &[ServerInfo]) -> Vec<Arc<FakeNode>> {
    let fakes = FakeNode::fakes(about.len());
    for (fake, about) in fakes.iter().zip(about) {
        fake.set_server_info(about.clone());
    }
    fakes
}

fn up_for(uptime: Duration) -> ServerInfo {
    ServerInfo {
        uptime,
        ..ServerInfo::default()
    }
}

#[test]
fn quarantined_nodes_do_not_vote_and_serve_held_leases() {
    let old = up_for(LONG);
    let fakes = with(&[old.clone(), old.clone(), old]);
    let locker = connected_locker(&fakes, |c| {
        let c = config(c).allow_degraded(true).circuit_breaker(1, LONG);
        c.restart_quarantine(TTL)
    });
    let locker = locker.expect("a quorum is up");
    let held = locker.lock("held", TTL).expect("free");
    let restart = |fake: &Arc<FakeNode>| {
        fake.wipe();
        fake.set_server_info(up_for(Duration::from_secs(1)));
        fake.set_fault(Fault::DisconnectsAfter(Op::WakeListener));
    };
    let error = locker.lock("x", 2 * TTL).expect_err("too long");
    assert!(matches!(error, Error::InvalidTtl { .. }), "{error}");
    let error = held.extend(2 * TTL).expect_err("too long");
    assert!(matches!(error, Error::InvalidTtl { .. }), "{error}");
    // The restart of one node does not matter; its missing key is restored.
    restart(&fakes[0]);
    fakes[0].set_fault(Fault::DisconnectsAfter(Op::Acquire));
    // A request that has expired before it could be sent is not sent.
    let quarantined = |node: usize| {
        let _ = locker.try_lock("x", TTL);
        let health = locker.nodes().health();
        health.nodes[node].state == NodeState::Quarantined
    };
    eventually("it is connected again", || quarantined(0));
    drop(locker.lock("x", TTL).expect("by the others"));
    held.extend(TTL).expect("ours on two");
    eventually("put back", || fakes[0].token("held").is_some());
    // If a second node is in quarantine, a new acquire is contended. That is not an outage.
    restart(&fakes[1]);
    fakes[1].set_fault(Fault::DisconnectsAfter(Op::Acquire));
    eventually("it is connected again", || quarantined(1));
    been_quiet();
    for _ in 0..5 {
        assert!(locker.try_lock("x", TTL).expect("no error").is_none());
    }
    let brief = LockOptions::new(TTL).wait_for(Duration::from_millis(50));
    let error = locker.acquire("x", &brief).expect_err("quarantine");
    let Error::Contended { remaining, .. } = error else {
        panic!("{error}")
    };
    let remaining = remaining.expect("the time to retry");
    assert!(
        remaining > TTL / 2 && remaining < TTL + Duration::from_secs(2),
        "{remaining:?}"
    );
    assert_eq!(breaker(&locker), BreakerState::Closed);
    held.extend(TTL).expect("ours on two");
    held.release().expect("ours");
}

#[test]
fn replica_and_evicting_node_under_strict_checks_do_not_vote() {
    let replica = ServerInfo {
        role: Some(Role::Replica),
        ..ServerInfo::default()
    };
    let evicts = ServerInfo {
        eviction_risk: Some("allkeys-lru".into()),
        ..ServerInfo::default()
    };
    for (about, strict, is_fault) in [
        (replica, false, true),
        (evicts.clone(), false, false),
        (evicts, true, true),
    ] {
        let fakes = with(&[about.clone(), ServerInfo::default(), ServerInfo::default()]);
        let locker = connected_locker(&fakes, |c| config(c).reject_evicting_servers(strict))
            .expect("a quorum");
        drop(locker.lock("x", TTL).expect("by the others"));
        let health = || locker.nodes().health().nodes[0].clone();
        eventually("it is judged", || match health().cause {
            Some(NodeFailure::ServerError(_)) => is_fault && health().state == NodeState::Suspect,
            cause => !is_fault && cause.is_none(),
        });
        assert_eq!(health().role, about.role);
        // A node takes part as soon as its server info permits.
        fakes[0].set_server_info(ServerInfo::default());
        eventually("it votes", || {
            // The undo of the attempt before may be in flight.
            let _ = locker.try_lock("x", TTL);
            fakes[0].count(Op::Acquire) > 0
        });
    }
}
