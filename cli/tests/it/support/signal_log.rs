//! The command that logs its signals (`examples/signal_log.rs`).

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::support::eventually;
use crate::support::process::TOOL;

pub(crate) struct SignalLog {
    dir: TempDir,
}

impl SignalLog {
    pub(crate) fn new() -> SignalLog {
        SignalLog {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    /// Returns the program and its argument.
    pub(crate) fn command(&self) -> [String; 2] {
        let examples = Path::new(TOOL).parent().unwrap().join("examples");
        let program = examples.join("signal_log");
        assert!(program.exists(), "{} is not built", program.display());
        [
            program.display().to_string(),
            self.path().display().to_string(),
        ]
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    pub(crate) fn text(&self) -> String {
        fs::read_to_string(self.path()).unwrap_or_default()
    }

    /// Blocks until the command runs.
    pub(crate) fn ready(&self) {
        eventually("the command runs", || self.text().contains('\n'));
    }

    /// Returns how often the command got a signal.
    pub(crate) fn count(&self, number: i32) -> usize {
        let start = format!("{number} ");
        self.text()
            .lines()
            .filter(|line| line.starts_with(&start))
            .count()
    }

    /// Blocks until the command got a signal.
    #[track_caller]
    pub(crate) fn await_signal(&self, number: i32) {
        eventually(&format!("signal {number}"), || self.count(number) > 0);
    }

    /// Lets the command end with this status.
    pub(crate) fn end(&self, status: u8) {
        let text = status.to_string();
        // Written elsewhere first, so that it is never seen empty.
        let draft = self.dir.path().join("draft");
        fs::write(&draft, text).unwrap();
        fs::rename(draft, self.path().with_extension("end")).unwrap();
    }
}
