//! The state of one simulated process.

use crate::tests::simulation::runtime::process_clock::ProcessClock;
use crate::tests::simulation::runtime::random::Random;

/// Whether the fibers of a process run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    Runs,
    /// Stopped as by SIGSTOP: its clocks go on.
    Paused,
    /// Stopped as by a suspend of the machine: its steady clock stands still.
    Suspended,
    /// Stopped for ever. Its fibers run out after the history.
    Killed,
}

pub(super) struct ProcessState {
    pub(super) name: String,
    pub(super) condition: Condition,
    pub(super) clock: ProcessClock,
    /// The random numbers of the code that runs in it.
    pub(super) random: Random,
    pub(super) live_fibers: usize,
}

const SECOND: u64 = 1_000_000_000;
/// The wall clock at the beginning of a history: 2026-01-01.
const WALL_START: u64 = 1_767_225_600 * SECOND;

impl ProcessState {
    /// Creates the process `index` of a history. Steady clocks of two processes differ, so that an
    /// instant of one is of no use in the other.
    pub(super) fn new(name: &str, index: usize, seed: u64, now: u64) -> ProcessState {
        let index = index as u64;
        let steady = now + index * 1_000 * SECOND;
        ProcessState {
            name: name.to_owned(),
            condition: Condition::Runs,
            clock: ProcessClock::new(now, steady, WALL_START + now),
            random: Random::new(seed, 1_000 + index),
            live_fibers: 0,
        }
    }
}
