//! Which fiber runs next, and after how many steps another one is chosen.
//!
//! - *Random walk*: a random runnable fiber, for a random number of steps.
//! - *PCT* (Burckhardt, Kothari, Musuvathi and Nagarakatte, *A Randomized Scheduler with
//!   Probabilistic Guarantees of Finding Bugs*, ASPLOS 2010): fibers have random priorities, and
//!   the first runnable one of them runs. At `depth` − 1 random steps the running fiber becomes the
//!   last one. A bug that needs `depth` orderings among n fibers and k steps is found with a
//!   probability of at least 1/(n·k^(depth−1)) per history.

use crate::tests::simulation::runtime::random::Random;

/// How the scheduler chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StrategyKind {
    /// Chooses another fiber after `mean` steps on average.
    RandomWalk { mean: u64 },
    /// Preempts a fiber `depth` − 1 times within `steps` steps.
    Pct { depth: u64, steps: u64 },
}

impl StrategyKind {
    /// Draws a strategy. Each kind finds bugs that the others find late.
    pub(crate) fn draw(random: &mut Random) -> StrategyKind {
        match random.below(4) {
            // Histories differ in length, and many bugs lie in their beginning.
            0 => StrategyKind::Pct {
                depth: 2 + random.below(4),
                steps: 1 << (8 + random.below(7)),
            },
            _ => StrategyKind::RandomWalk {
                mean: 1 << (1 + random.below(9)),
            },
        }
    }
}

/// The state of a strategy during one history.
#[derive(Debug)]
pub(super) struct Strategy {
    kind: StrategyKind,
    random: Random,
    /// Steps until the next choice; `u64::MAX` if none comes.
    left: u64,
    /// Steps between the later choices of PCT, the last one first.
    changes: Vec<u64>,
    /// The priority that the next preempted fiber gets.
    next_low: u64,
}

/// Priorities of new fibers are above this, those of preempted fibers below.
const MAX_LOW: u64 = 1 << 16;

impl Strategy {
    pub(super) fn new(kind: StrategyKind, random: Random) -> Strategy {
        let mut strategy = Strategy {
            kind,
            random,
            left: u64::MAX,
            changes: Vec::new(),
            next_low: MAX_LOW,
        };
        if let StrategyKind::Pct { depth, steps } = kind {
            let random = &mut strategy.random;
            let mut at: Vec<u64> = (1..depth).map(|_| 1 + random.below(steps)).collect();
            at.sort_unstable();
            let mut before = 0;
            for at in at {
                strategy.changes.push((at - before).max(1));
                before = at;
            }
            strategy.changes.reverse();
        }
        strategy.plan_next();
        strategy
    }

    fn plan_next(&mut self) {
        self.left = match self.kind {
            StrategyKind::RandomWalk { mean } => 1 + self.random.below(2 * mean),
            StrategyKind::Pct { .. } => self.changes.pop().unwrap_or(u64::MAX),
        };
    }

    /// Counts a step. Returns whether another fiber may be chosen, and lowers the priority of the
    /// running one where the strategy says so.
    pub(super) fn step(&mut self, priority: &mut u64) -> bool {
        self.left -= 1;
        let chooses = self.left == 0;
        if chooses {
            if matches!(self.kind, StrategyKind::Pct { .. }) {
                self.next_low -= 1;
                *priority = self.next_low;
            }
            self.plan_next();
        }
        chooses
    }

    /// Draws the priority of a new fiber.
    pub(super) fn new_priority(&mut self) -> u64 {
        MAX_LOW + (self.random.next() >> 17)
    }

    /// Returns whether a fiber that becomes runnable runs at once because of its priority.
    pub(super) fn preempts(&self, woken: u64, running: u64) -> bool {
        matches!(self.kind, StrategyKind::Pct { .. }) && woken > running
    }

    /// Chooses one of the runnable fibers, given by their priorities. At least one is runnable.
    pub(super) fn choose(&mut self, priorities: impl ExactSizeIterator<Item = u64>) -> usize {
        match self.kind {
            StrategyKind::RandomWalk { .. } => self.random.below(priorities.len() as u64) as usize,
            StrategyKind::Pct { .. } => {
                let best = priorities.enumerate().max_by_key(|(_, priority)| *priority);
                best.map_or(0, |(index, _)| index)
            }
        }
    }

    /// Returns whether time passes although fibers are runnable, as on a machine that is loaded.
    pub(super) fn stalls(&mut self) -> bool {
        self.random.chance(1, 16)
    }

    /// Chooses the waiter that a notification wakes.
    pub(super) fn choose_waiter(&mut self, count: usize) -> usize {
        self.random.below(count as u64) as usize
    }
}
