//! Runs histories of the shipped code and checks each of them. A history follows entirely from its
//! seed.
//!
//! In a *history* a few processes with their own `Nodes` and threads use locks of all kinds on one,
//! three or five servers, through the public interface. Packets are late, connections end in every
//! way, servers hang, crash, restart, lose their data and reply errors; processes are paused,
//! suspended and killed; clocks drift. Everything above the seams `time`, `sync`, `random` and
//! `transport::node` is the code that ships. It finds what the model in `tests/model/` cannot:
//! faults of the code itself, in interleavings of its threads.
//!
//! | theme | faults | promises beyond safety |
//! |---|---|---|
//! | calm | none, or for one lock alone | nothing else fails or is slow, nothing is left behind, waiters are woken at once |
//! | faults | yes, TTLs outlast them | nothing is left behind, every wait ends |
//! | expiry | yes, TTLs end | every wait ends |
//!
//! `tests/simulate 1000000` runs 1,000,000 histories, from seed `FROM` on. With `SEED=17` the test
//! runs and tells a single one.
#![expect(
    clippy::print_stdout,
    reason = "in a test a panic is the report, and a history is to be read"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crate::tests::simulation::checker::coverage::Coverage;
use crate::tests::simulation::plan::plan::Plan;
use crate::tests::simulation::program::history;
use crate::tests::simulation::program::history::Shown;
use crate::tests::simulation::runtime::trace::TraceLevel;
use crate::tests::simulation::shrink;

/// The number of histories when `SIMULATED` is not set.
const DEFAULT_HISTORIES: u64 = 1_000;

fn env_number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().expect("a number"))
}

fn run_seed(seed: u64, trace: TraceLevel) -> Shown {
    history::run(&Arc::new(Plan::draw(seed)), trace)
}

/// Runs the histories of `count` seeds from `from` on, on all cores. Returns what they covered, and
/// the lowest seed with a violation.
fn run_seeds(from: u64, count: u64) -> (Coverage, Option<u64>) {
    let (next, end) = (AtomicU64::new(from), AtomicU64::new(from + count));
    let work = || {
        let (mut coverage, mut first) = (Coverage::default(), None);
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end.load(Ordering::Relaxed) {
                return (coverage, first);
            }
            let shown = run_seed(seed, TraceLevel::Off);
            coverage.add(&shown.coverage);
            if shown.violation.is_some() {
                end.fetch_min(seed, Ordering::Relaxed);
                first.get_or_insert(seed);
            }
        }
    };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let (mut coverage, mut first) = (Coverage::default(), None::<u64>);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            let (count, violation) = thread.join().expect("no panic");
            coverage.add(&count);
            first = first.into_iter().chain(violation).min();
        }
    });
    (coverage, first)
}

/// Tells a plan and its history. Returns the violation.
fn tell(plan: &Plan) -> Option<String> {
    let shown = history::run(&Arc::new(plan.clone()), TraceLevel::Notes);
    println!("seed {}:\n{plan}", plan.seed);
    shown.lines.iter().for_each(|line| println!("{line}"));
    println!("{} steps, {:#?}", shown.steps, shown.coverage);
    shown.violation
}

#[test]
fn every_history_keeps_the_rules() {
    if let Some(seed) = env_number("SEED") {
        assert_eq!(tell(&Plan::draw(seed)), None, "SEED={seed}");
        return;
    }
    let count = env_number("SIMULATED").unwrap_or(DEFAULT_HISTORIES);
    let (coverage, seed) = run_seeds(env_number("FROM").unwrap_or_default(), count);
    println!("{count} histories: {coverage:#?}");
    if let Some(seed) = seed {
        let plan = Plan::draw(seed);
        let violation = run_seed(seed, TraceLevel::Off).violation;
        let violation = violation.unwrap_or_default();
        println!("SEED={seed}: {violation}");
        // For tests/planted/run.
        assert!(env_number("BRIEF").is_none(), "SEED={seed}: {violation}");
        let small = tell(&shrink::shrink(&plan, &violation));
        panic!("SEED={seed}: {violation}\nThe smaller plan above: {small:?}");
    }
    check_coverage(&coverage, count);
}

/// Checks that the histories contain enough of each event, or they prove nothing.
fn check_coverage(coverage: &Coverage, count: u64) {
    for (event, per_thousand) in [
        ("exclusive locks", 1_000),
        ("read locks", 400),
        ("write locks", 300),
        ("permits", 400),
        ("locks of several choices", 300),
        ("kept locks", 180),
        ("notices told", 10),
        ("fencing tokens", 500),
        ("extensions", 300),
        ("downgrades", 40),
        ("detached locks", 80),
        ("adopted locks", 5),
        ("local locks", 5),
        ("losses told", 15),
        ("losses of locks that are not ours", 1),
        ("dangers told", 20),
        ("ends of dangers told", 1),
        ("watches of endangered locks", 4),
        ("disputed permits", 1),
        ("locks during an outage", 300),
        ("releases by a quorum", 1_000),
        ("cancelled acquires", 60),
        ("acquires at an open breaker", 2),
        ("unavailable acquires", 30),
        ("locks of one process", 220),
        ("suspends", 60),
        ("checks in doubt", 70),
    ] {
        let (times, least) = (coverage.of(event), count * per_thousand / 1_000);
        // Few histories contain too few rare events to tell, or by chance fewer than usual.
        assert!(least < 10 || 2 * times >= least, "{event}: {times}");
    }
    // L1: an attempt settles a split vote in nearly all contests.
    let contests = coverage.of("contests");
    let winners = coverage.of("contest winners");
    assert!(
        winners + 1 + contests / 100 >= contests,
        "{winners} of {contests}"
    );
}

#[test]
fn seed_gives_the_same_history_twice() {
    for seed in 0..40 {
        let (one, two) = (
            run_seed(seed, TraceLevel::Notes),
            run_seed(seed, TraceLevel::Notes),
        );
        assert_eq!(one.lines, two.lines, "seed {seed}");
        assert_eq!(one.fingerprint, two.fingerprint, "seed {seed}");
        // To tell a history does not change it.
        let untold = run_seed(seed, TraceLevel::Off);
        assert_eq!(one.fingerprint, untold.fingerprint, "seed {seed}");
    }
}
