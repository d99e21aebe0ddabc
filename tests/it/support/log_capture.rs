//! The log of this process: all levels, all targets, the newest lines.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

pub(crate) use log::Level;
use log::{LevelFilter, Log, Metadata, Record};

/// The number of lines that are kept. Stress tests log without end, and no test reads further back.
const KEPT: usize = 200_000;

static LOG: CapturedLog = CapturedLog {
    lines: Mutex::new(VecDeque::new()),
};

/// Returns the log. Call it before the lines of interest are written: the first call starts the
/// capture.
pub(crate) fn captured_log() -> &'static CapturedLog {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&LOG).expect("no other logger in the tests");
        log::set_max_level(LevelFilter::Trace);
    });
    &LOG
}

/// The lines since the first call of [`captured_log`].
///
/// Tests run in parallel in one process, so search for a text with the test's own unique key.
#[derive(Debug)]
pub(crate) struct CapturedLog {
    lines: Mutex<VecDeque<(Level, String)>>,
}

impl CapturedLog {
    /// Returns the lines of exactly this level that contain `text`, oldest first.
    pub(crate) fn lines(&self, level: Level, text: &str) -> Vec<String> {
        self.held()
            .iter()
            .filter(|(at, line)| *at == level && line.contains(text))
            .map(|(_, line)| line.clone())
            .collect()
    }

    /// Returns whether a line of any level contains `text`, for texts that must never be logged.
    pub(crate) fn mentions(&self, text: &str) -> bool {
        self.held().iter().any(|(_, line)| line.contains(text))
    }

    fn held(&self) -> MutexGuard<'_, VecDeque<(Level, String)>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log for CapturedLog {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        // Formatted before locking, because an argument's `Display` may log too.
        let line = record.args().to_string();
        let mut lines = self.held();
        if lines.len() == KEPT {
            lines.pop_front();
        }
        lines.push_back((record.level(), line));
    }

    fn flush(&self) {}
}
