//! Plays hundreds of thousands of histories of simulated clients, nodes, networks and clocks, and
//! checks each of them. A history follows entirely from its seed.
//!
//! In a *history* a few clients acquire one lock, exclusive or read-write, on one, three or five
//! nodes. They fence, wait, renew, extend, downgrade, release, hand off, cancel, or let the lease
//! expire. Meanwhile messages are slow or lost, and connections break. Nodes hang, crash and lose
//! their data; clients are paused or die; clocks drift and are set.
//!
//! The faults reach the limits that the library documents, and do not exceed them: clocks that
//! disagree by `ttl / 100 + 2 ms`, and nodes without data that do not vote for the longest TTL.
//! The decisions are made by shipped code: `Tally` and `vote_of`, `Lease`, `choose_token`,
//! `valid_until`, `skip_reply`, `RetryPolicy`. The nodes serve from `NodeStore`, which
//! `store_conformance` compares with real servers. The simulator has its own versions of `worker`
//! and `engine`.
//!
//! | checked | when |
//! |---|---|
//! | two clients hold the lock only if both read, by their own clocks (S7, S10) | on acquire |
//! | fencing tokens increase (S12) | on acquire |
//! | a release reported as successful was made on a quorum | when its replies arrive |
//! | an idle connection leaves no unused token on its node (S4) | when a batch is complete |
//! | no client waits forever, and every lock is free in the end | at the end |
//!
//! `SIMULATED=1000000 cargo test --release --lib simulation` plays 1,000,000 histories.
//! `SEED=17` plays and prints a single one.
#![expect(
    clippy::print_stdout,
    reason = "in a test a panic is the report, and a history is to be read"
)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crate::tests::simulation::checker::{Coverage, Violation};
use crate::tests::simulation::config::PlantedBug;
use crate::tests::simulation::simulator::Simulator;

/// The number of histories when `SIMULATED` is not set.
const DEFAULT_HISTORIES: u64 = 2_000;

fn env_number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().expect("a number"))
}

/// Plays one history.
fn run_history(seed: u64, bug: Option<PlantedBug>) -> (Coverage, Option<Violation>) {
    let mut simulator = Simulator::new(seed, bug, false);
    simulator.run();
    (simulator.coverage, simulator.violation)
}

/// Plays one history and records it line by line.
fn recorded_history(seed: u64, bug: Option<PlantedBug>) -> (Option<Violation>, Vec<String>) {
    let mut simulator = Simulator::new(seed, bug, true);
    simulator.run();
    (simulator.violation.take(), simulator.into_history())
}

/// Plays the histories of the seeds from 0 up to `count`, on all cores. Returns what they covered,
/// and the lowest seed with a violation.
fn run_histories(count: u64, bug: Option<PlantedBug>) -> (Coverage, Option<(u64, Violation)>) {
    let (next, end) = (AtomicU64::new(0), AtomicU64::new(count));
    let work = || {
        let (mut coverage, mut first) = (Coverage::default(), None);
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end.load(Ordering::Relaxed) {
                return (coverage, first);
            }
            let (count, violation) = run_history(seed, bug);
            coverage.add(&count);
            if let Some(violation) = violation {
                end.fetch_min(seed, Ordering::Relaxed);
                first.get_or_insert((seed, violation));
            }
        }
    };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let (mut coverage, mut first) = (Coverage::default(), None::<(u64, Violation)>);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            let (count, violation) = thread.join().expect("no panic");
            coverage.add(&count);
            let seeds = first.take().into_iter().chain(violation);
            first = seeds.min_by_key(|(seed, _)| *seed);
        }
    });
    (coverage, first)
}

fn print_history(seed: u64, bug: Option<PlantedBug>) -> Option<Violation> {
    let (violation, history) = recorded_history(seed, bug);
    println!("seed {seed}:");
    history.iter().for_each(|line| println!("{line}"));
    violation
}

#[test]
fn every_history_keeps_the_rules() {
    if let Some(seed) = env_number("SEED") {
        assert_eq!(print_history(seed, None), None, "SEED={seed}");
        return;
    }
    let count = env_number("SIMULATED").unwrap_or(DEFAULT_HISTORIES);
    let (coverage, violation) = run_histories(count, None);
    println!("{count} histories: {coverage:#?}");
    if let Some((seed, _)) = violation {
        let violation = print_history(seed, None);
        panic!("SEED={seed}: {violation:?}");
    }
    // The histories must contain enough of each event, or the checks above prove nothing.
    for (what, times, per_thousand) in [
        ("leases held", coverage.holds, 2_000),
        ("fenced leases", coverage.fenced, 500),
        ("rounds to raise the fence", coverage.raises, 100),
        ("extensions by a quorum", coverage.extended, 500),
        ("keys restored", coverage.restored, 10),
        ("nodes asked again in a split vote", coverage.repeats, 50),
        ("handoffs in a process", coverage.swaps, 50),
        (
            "requests queued for a quick reconnect",
            coverage.reconnect_waits,
            50,
        ),
        ("releases pending after a disconnect", coverage.pending, 50),
        ("downgrades", coverage.downgrades, 50),
        ("lost leases", coverage.losses, 50),
        ("releases by a quorum", coverage.released, 300),
        ("cancelled acquires", coverage.cancels, 30),
    ] {
        assert!(times * 1_000 >= count * per_thousand, "{what}: {times}");
    }
}

#[test]
fn seed_gives_the_same_history_twice() {
    for seed in 0..50 {
        assert_eq!(
            recorded_history(seed, None),
            recorded_history(seed, None),
            "seed {seed}"
        );
    }
}

/// Shows that each check sees the violation that a planted bug causes.
#[test]
fn planted_bugs_are_found() {
    let overlap = |violation: &Violation| matches!(violation, Violation::Overlap { .. });
    let order = |violation: &Violation| matches!(violation, Violation::Order { .. });
    let leftover = |violation: &Violation| matches!(violation, Violation::Leftover { .. });
    type Check<'a> = &'a dyn Fn(&Violation) -> bool;
    let unconfirmed =
        |violation: &Violation| matches!(violation, Violation::UnconfirmedRelease { .. });
    let table: [(PlantedBug, Check<'_>); 16] = [
        (PlantedBug::Drift, &overlap),
        (PlantedBug::ClockStep, &overlap),
        (PlantedBug::QuorumOfReachable, &overlap),
        (PlantedBug::ElapsedNotCounted, &overlap),
        (PlantedBug::NoSecondFenceRound, &order),
        (PlantedBug::MajorityLosesData, &overlap),
        (PlantedBug::OneNodeLosesData, &overlap),
        (PlantedBug::FenceCountersLost, &order),
        (PlantedBug::NoUndo, &leftover),
        (PlantedBug::FormerTokenKept, &leftover),
        (PlantedBug::NoKill, &leftover),
        (PlantedBug::UnansweredExtensionIgnored, &leftover),
        (PlantedBug::OneToken, &overlap),
        (PlantedBug::GrantsOfFormerToken, &overlap),
        (PlantedBug::ReleaseWithoutToken, &overlap),
        (PlantedBug::AbsentAfterRestartIsRelease, &unconfirmed),
    ];
    for (bug, is_expected) in table {
        let mut seeds = 0..50_000;
        let first = seeds.find(|seed| {
            run_history(*seed, Some(bug))
                .1
                .is_some_and(|violation| is_expected(&violation))
        });
        println!("{bug:?}: violation with seed {first:?}");
        assert!(first.is_some(), "{bug:?} is never violation");
    }
}
