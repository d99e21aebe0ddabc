//! How far the processes of a history are.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::tests::simulation::runtime::signal::Signal;
use crate::time::clock;

/// The state of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProcessPhase {
    Running,
    /// Its threads have ended; it keeps its nodes.
    Done,
    /// Its nodes are shut down.
    Ended,
    Killed,
}

/// The states of all processes, and whether they are to end.
#[derive(Debug)]
pub(crate) struct Progress {
    state: Mutex<ProgressState>,
    /// Raised for the history, when a process has changed.
    changed: Signal,
    /// Raised for each process, when all are to end.
    ending: Vec<Signal>,
}

#[derive(Debug)]
struct ProgressState {
    processes: Vec<ProcessPhase>,
    /// The step in which each thread is, by process and thread.
    steps: Vec<Vec<String>>,
    /// Processes with shut down nodes, or none.
    unsettled: Vec<bool>,
    is_ending: bool,
}

impl Progress {
    pub(crate) fn new(threads: &[usize]) -> Progress {
        Progress {
            state: Mutex::new(ProgressState {
                processes: vec![ProcessPhase::Running; threads.len()],
                steps: threads
                    .iter()
                    .map(|count| vec![String::new(); *count])
                    .collect(),
                unsettled: vec![false; threads.len()],
                is_ending: false,
            }),
            changed: Signal::default(),
            ending: threads.iter().map(|_| Signal::default()).collect(),
        }
    }

    pub(crate) fn set(&self, process: usize, to: ProcessPhase) {
        let mut state = self.state.lock();
        if state.processes[process] != ProcessPhase::Killed {
            state.processes[process] = to;
        }
        drop(state); // unlock before waking
        self.changed.raise();
    }

    pub(crate) fn set_step(&self, process: usize, thread: usize, step: impl Into<String>) {
        self.state.lock().steps[process][thread] = step.into();
    }

    /// Records that a process releases nothing any more.
    pub(crate) fn set_unsettled(&self, process: usize) {
        self.state.lock().unsettled[process] = true;
    }

    /// Returns whether the process has shut its nodes down.
    pub(crate) fn is_unsettled(&self, process: usize) -> bool {
        self.state.lock().unsettled[process]
    }

    pub(crate) fn unsettled(&self) -> Vec<bool> {
        let state = self.state.lock();
        let killed = state.processes.iter().zip(&state.unsettled);
        killed
            .map(|(process, unsettled)| *unsettled || *process == ProcessPhase::Killed)
            .collect()
    }

    pub(crate) fn killed(&self) -> Vec<bool> {
        let state = self.state.lock();
        let processes = state.processes.iter();
        processes
            .map(|process| *process == ProcessPhase::Killed)
            .collect()
    }

    /// Lets all processes end.
    pub(crate) fn end(&self) {
        self.state.lock().is_ending = true;
        self.ending.iter().for_each(Signal::raise);
    }

    /// Blocks until the processes are to end.
    pub(crate) fn wait_for_end(&self, process: usize) {
        while !self.state.lock().is_ending {
            self.ending[process].wait_until(None);
        }
    }

    /// Blocks until every process that was not killed is in one of these states, at most for
    /// `limit`. Returns the steps of those that are not.
    pub(crate) fn wait_all(&self, states: &[ProcessPhase], limit: Duration) -> Vec<String> {
        let end: Instant = clock::now() + limit;
        loop {
            let stuck = self.not_in(states);
            if stuck.is_empty() || clock::now() >= end {
                return stuck;
            }
            self.changed.wait_until(Some(end));
        }
    }

    /// Returns the steps of the processes that are in none of these states.
    fn not_in(&self, states: &[ProcessPhase]) -> Vec<String> {
        let state = self.state.lock();
        let processes = state.processes.iter().enumerate();
        let others =
            processes.filter(|(_, is)| **is != ProcessPhase::Killed && !states.contains(is));
        let describe = |(process, _): (usize, _)| {
            let steps = state.steps[process].join("; ");
            format!("process {process}: {steps}")
        };
        others.map(describe).collect()
    }
}
