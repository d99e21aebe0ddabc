//! Makes a plan smaller while it still fails in the same way.
//!
//! A smaller plan has another interleaving, so each candidate runs with a few seeds.

use std::sync::Arc;

use crate::tests::simulation::plan::plan::{Act, Plan, Step};
use crate::tests::simulation::program::history;
use crate::tests::simulation::runtime::trace::TraceLevel;

/// The seeds with which a candidate runs, beside its own.
const MORE_SEEDS: u64 = 6;
/// The largest number of histories that shrinking runs.
const MAX_RUNS: u32 = 3_000;

struct Shrinking {
    /// The first word of the violation.
    kind: String,
    runs: u32,
}

/// Returns a smaller plan that fails in the same way, or the plan itself.
pub(crate) fn shrink(plan: &Plan, violation: &str) -> Plan {
    let mut shrinking = Shrinking {
        kind: kind_of(violation),
        runs: 0,
    };
    let mut smallest = plan.clone();
    while let Some(smaller) = shrinking.step(&smallest) {
        smallest = smaller;
    }
    smallest
}

fn kind_of(violation: &str) -> String {
    let end = violation.find(|c: char| !c.is_alphabetic());
    violation[..end.unwrap_or(violation.len())].to_owned()
}

impl Shrinking {
    /// Returns the first smaller plan that fails.
    fn step(&mut self, plan: &Plan) -> Option<Plan> {
        candidates(plan).into_iter().find_map(|candidate| {
            (0..=MORE_SEEDS).find_map(|more| {
                self.runs += 1;
                let mut candidate = candidate.clone();
                candidate.seed = candidate.seed.wrapping_add(more << 40);
                let fails = self.runs <= MAX_RUNS && self.fails(&candidate);
                fails.then_some(candidate)
            })
        })
    }

    fn fails(&self, plan: &Plan) -> bool {
        let shown = history::run(&Arc::new(plan.clone()), TraceLevel::Off);
        shown
            .violation
            .is_some_and(|violation| kind_of(&violation) == self.kind)
    }
}

/// Returns the plan without one of its parts each, large parts first. Threads and processes keep
/// their numbers.
fn candidates(plan: &Plan) -> Vec<Plan> {
    let mut found = Vec::new();
    let mut without = |change: &dyn Fn(&mut Plan)| {
        let mut candidate = plan.clone();
        change(&mut candidate);
        if candidate.size() < plan.size() {
            found.push(candidate);
        }
    };
    for process in 0..plan.processes.len() {
        without(&|plan| plan.processes[process].threads.clear());
    }
    for process in 0..plan.processes.len() {
        for thread in 0..plan.processes[process].threads.len() {
            without(&|plan| plan.processes[process].threads[thread].clear());
        }
    }
    for fault in 0..plan.faults.len() {
        without(&|plan| _ = plan.faults.remove(fault));
    }
    for (process, thread, step, acts) in steps(plan) {
        without(&|plan| _ = plan.processes[process].threads[thread].remove(step));
        for act in 0..acts {
            without(&|plan| {
                let step = &mut plan.processes[process].threads[thread][step];
                acts_of(step).map(|acts| acts.remove(act));
            });
        }
    }
    found
}

/// Returns the process, the thread, the index and the number of acts of each step.
fn steps(plan: &Plan) -> Vec<(usize, usize, usize, usize)> {
    let mut found = Vec::new();
    for (process, threads) in plan.processes.iter().enumerate() {
        for (thread, steps) in threads.threads.iter().enumerate() {
            for (index, step) in steps.iter().enumerate() {
                let acts = match step {
                    Step::Acquire(acquire) => acquire.during.len(),
                    _ => 0,
                };
                found.push((process, thread, index, acts));
            }
        }
    }
    found
}

fn acts_of(step: &mut Step) -> Option<&mut Vec<Act>> {
    match step {
        Step::Acquire(acquire) => Some(&mut acquire.during),
        _ => None,
    }
}
