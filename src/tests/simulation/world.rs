//! A history as the simulated parts use it: true time, processes, and the end at a violation.

use std::time::{Duration, Instant};

use crate::protocol::key::Key;
use crate::protocol::kind::LockKind;
use crate::sync::threads::JoinHandle;
use crate::tests::simulation::network::server::lock_name;
use crate::tests::simulation::runtime::signal;
use crate::tests::simulation::runtime::simulation::{Process, Simulation};
use crate::tests::simulation::runtime::thread;

/// The key prefix of all processes.
pub(crate) const KEY_PREFIX: &str = "simulated:";

/// The processes of a history. The runtime's first process, which has an exact clock, runs the
/// history itself.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) simulation: Simulation,
    pub(crate) processes: Vec<Process>,
}

impl World {
    pub(crate) fn new(simulation: Simulation, drifts: impl Iterator<Item = i64>) -> World {
        let process = |(number, drift)| {
            let process = simulation.process(&format!("p{number}"));
            process.set_drift(drift);
            process
        };
        World {
            simulation,
            processes: drifts.enumerate().map(process).collect(),
        }
    }

    /// Starts a thread of a process.
    pub(crate) fn spawn(
        &self,
        process: usize,
        name: &str,
        body: impl FnOnce() + Send + 'static,
    ) -> JoinHandle<()> {
        self.processes[process].spawn(name, body)
    }
}

/// Returns the key of an exclusive lock, with the prefix of all processes.
pub(crate) fn exclusive_key(lock: usize) -> Key {
    Key::parse(KEY_PREFIX, &lock_name(lock), LockKind::Exclusive).expect("a good key")
}

/// Returns the steady clock of a process.
pub(crate) fn clock_of(process: usize) -> Instant {
    signal::clock_of(process + 1)
}

/// Returns how far the wall clock of a process is ahead of its steady clock, in µs.
pub(crate) fn wall_offset_of(process: usize) -> i64 {
    signal::wall_offset_of(process + 1)
}

/// Returns whether the machine of a process is suspended.
pub(crate) fn is_suspended(process: usize) -> bool {
    signal::is_suspended(process + 1)
}

/// Blocks the caller for `time` by the clock of its process.
pub(crate) fn sleep(time: Duration) {
    thread::sleep(time);
}

/// Adds a line to the history, if it `records`. The line may read anything.
pub(crate) fn note(simulation: Simulation, records: bool, line: impl FnOnce() -> String) {
    if records {
        let line = signal::uninterrupted(line);
        simulation.note(|| line);
    }
}
