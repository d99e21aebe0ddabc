//! Histories by the hundred thousand: the pure rooms in a world of fake nodes, networks and clocks, where everything follows
//! from a seed, and each history is checked.
//!
//! A *history* is a few clients that take one lock, exclusive or read-write, on one, three or five nodes: fenced or not, waiting
//! or not, renewed, extended, downgraded, released, handed on in its process, cancelled or let run out. Meanwhile messages are slow, lost, or cut off
//! with their connection and late; nodes hang, crash, and lose their data; clients are paused or die; clocks drift and are set.
//! The faults are those that the library promises to bear, up to the last: clocks that disagree by `ttl / 100 + 2 ms`, nodes
//! without data that stand back for the longest TTL. What decides is the library's own code: `Tally` and `vote`, `Lease`, `fence`,
//! `valid_until`, `unsent`, `RetryPolicy`; what the nodes do is the model that is compared with real servers. Lanes and clients
//! are simulated, as `worker` and `engine` are.
//!
//! | checked | when |
//! |---|---|
//! | no two hold it at the same true time by their own latches and clocks, but readers with readers (S7, S10) | as each guard is handed out |
//! | fencing tokens increase (S12) | the same |
//! | a release that is told as made was made on a quorum | as its answers come |
//! | a lane with nothing to do has left nothing of an attempt or a lock that is over (S4) | as each answer comes |
//! | nobody waits for ever; all is free in the end | at the end |
//!
//! `SIMULATED=1000000 cargo test --release --lib simulation` runs so many histories, `SEED=17` one of them and tells it.
#![expect(
    clippy::print_stdout,
    reason = "in a test a panic is the report, and a history is to be read"
)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crate::tests::simulation::checker::{Coverage, Violation};
use crate::tests::simulation::config::PlantedBug;
use crate::tests::simulation::simulator::Simulator;

/// How many histories there are when nobody says how many.
const FEW: u64 = 2_000;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().expect("a number"))
}

/// One history.
fn history(seed: u64, bug: Option<PlantedBug>) -> (Coverage, Option<Violation>) {
    let mut world = Simulator::new(seed, bug, false);
    world.run();
    (world.counts, world.found)
}

/// The same, told line by line.
fn told(seed: u64, bug: Option<PlantedBug>) -> (Option<Violation>, Vec<String>) {
    let mut world = Simulator::new(seed, bug, true);
    world.run();
    (world.found.take(), world.into_history())
}

/// As many histories as there are seeds from 0, on all cores. Answers what happened in them, and the lowest seed of those
/// that something was found in.
fn histories(count: u64, bug: Option<PlantedBug>) -> (Coverage, Option<(u64, Violation)>) {
    let (next, end) = (AtomicU64::new(0), AtomicU64::new(count));
    let work = || {
        let (mut counts, mut first) = (Coverage::default(), None);
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end.load(Ordering::Relaxed) {
                return (counts, first);
            }
            let (count, found) = history(seed, bug);
            counts.add(&count);
            if let Some(found) = found {
                end.fetch_min(seed, Ordering::Relaxed);
                first.get_or_insert((seed, found));
            }
        }
    };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let (mut counts, mut first) = (Coverage::default(), None::<(u64, Violation)>);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            let (count, found) = thread.join().expect("no panic");
            counts.add(&count);
            let seeds = first.take().into_iter().chain(found);
            first = seeds.min_by_key(|(seed, _)| *seed);
        }
    });
    (counts, first)
}

fn tell(seed: u64, bug: Option<PlantedBug>) -> Option<Violation> {
    let (found, history) = told(seed, bug);
    println!("seed {seed}:");
    history.iter().for_each(|line| println!("{line}"));
    found
}

#[test]
fn every_history_keeps_the_promises() {
    if let Some(seed) = number("SEED") {
        assert_eq!(tell(seed, None), None, "SEED={seed}");
        return;
    }
    let count = number("SIMULATED").unwrap_or(FEW);
    let (counts, found) = histories(count, None);
    println!("{count} histories: {counts:#?}");
    if let Some((seed, _)) = found {
        let found = tell(seed, None);
        panic!("SEED={seed}: {found:?}");
    }
    // They are about something.
    for (what, times, per_thousand) in [
        ("holds", counts.holds, 2_000),
        ("fenced holds", counts.fenced, 500),
        ("second rounds", counts.raises, 100),
        ("extensions by a quorum", counts.extended, 500),
        ("keys put back", counts.put_backs, 10),
        ("nodes asked again in a split vote", counts.repeats, 50),
        ("hand-overs in a process", counts.swaps, 50),
        ("requests that wait for one reconnect", counts.waits, 50),
        ("releases that outlast a connection", counts.pending, 50),
        ("downgrades", counts.downgrades, 50),
        ("losses", counts.losses, 50),
        ("releases by a quorum", counts.released, 300),
        ("cancelled acquires", counts.cancels, 30),
    ] {
        assert!(times * 1_000 >= count * per_thousand, "{what}: {times}");
    }
}

#[test]
fn a_seed_is_one_history() {
    for seed in 0..50 {
        assert_eq!(told(seed, None), told(seed, None), "seed {seed}");
    }
}

/// What must be found where something is planted, so that the checks are known to see it.
#[test]
fn planted_bugs_are_found() {
    let overlap = |found: &Violation| matches!(found, Violation::Overlap { .. });
    let order = |found: &Violation| matches!(found, Violation::Order { .. });
    let leftover = |found: &Violation| matches!(found, Violation::Leftover { .. });
    type Kind<'a> = &'a dyn Fn(&Violation) -> bool;
    let told = |found: &Violation| matches!(found, Violation::Told { .. });
    let table: [(PlantedBug, Kind<'_>); 16] = [
        (PlantedBug::Drift, &overlap),
        (PlantedBug::Step, &overlap),
        (PlantedBug::QuorumOfReachable, &overlap),
        (PlantedBug::ElapsedNotCounted, &overlap),
        (PlantedBug::NoSecondFenceRound, &order),
        (PlantedBug::MajorityForgets, &overlap),
        (PlantedBug::OneForgets, &overlap),
        (PlantedBug::FenceForgotten, &order),
        (PlantedBug::NoUndo, &leftover),
        (PlantedBug::FormerForgotten, &leftover),
        (PlantedBug::NoKill, &leftover),
        (PlantedBug::LateExtensionForgotten, &leftover),
        (PlantedBug::OneToken, &overlap),
        (PlantedBug::GrantsOfFormerToken, &overlap),
        (PlantedBug::ReleaseByName, &overlap),
        (PlantedBug::RestartIsOurDoing, &told),
    ];
    for (bug, is_it) in table {
        let mut seeds = 0..50_000;
        let first = seeds.find(|seed| {
            history(*seed, Some(bug))
                .1
                .is_some_and(|found| is_it(&found))
        });
        println!("{bug:?}: found with seed {first:?}");
        assert!(first.is_some(), "{bug:?} is never found");
    }
}
