//! The trace of a history: a number that tells histories apart, and lines for the reader.

use std::time::Duration;

/// How much of a history is written down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TraceLevel {
    #[default]
    Off,
    /// The notes of the program and of the nodes, and what becomes of processes.
    Notes,
    /// Each wait and each end of a wait, too.
    Waits,
}

#[derive(Debug, Default)]
pub(super) struct Trace {
    level: TraceLevel,
    pub(super) lines: Vec<String>,
    /// Follows from which fiber ran when.
    pub(super) fingerprint: u64,
}

impl Trace {
    pub(super) fn new(level: TraceLevel) -> Trace {
        Trace {
            level,
            ..Trace::default()
        }
    }

    /// Counts a switch to a fiber.
    pub(super) fn switch(&mut self, now: u64, steps: u64, fiber: usize) {
        let event = now ^ steps.rotate_left(24) ^ (fiber as u64).rotate_left(48);
        self.fingerprint =
            (self.fingerprint.rotate_left(5) ^ event).wrapping_mul(0x517C_C1B7_2722_0A95);
    }

    pub(super) fn has(&self, level: TraceLevel) -> bool {
        self.level >= level
    }

    /// Adds a line, if lines are kept.
    pub(super) fn note(&mut self, now: u64, place: &str, text: impl FnOnce() -> String) {
        if self.has(TraceLevel::Notes) {
            let time = Duration::from_nanos(now).as_secs_f64() * 1000.0;
            self.lines
                .push(format!("{time:12.4} ms  {place:24} {}", text()));
        }
    }
}
