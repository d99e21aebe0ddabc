//! Counters of the chaos processes, one line per event, so that a killed process has reported too.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::fs;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use nix::unistd::{Pid, getppid};
use redguard::{Error, NodeFailure};

const SHORT: usize = 120;

/// The file of counter lines, with the stop file and the rest file beside it.
#[derive(Debug)]
pub(crate) struct Tally {
    lines: PathBuf,
    stop: PathBuf,
    rest: PathBuf,
    parent: Pid,
}

impl Tally {
    pub(crate) fn beside(journal: &Path) -> Tally {
        Tally {
            lines: journal.with_extension("tally"),
            stop: journal.with_extension("stop"),
            rest: journal.with_extension("rest"),
            parent: getppid(),
        }
    }

    pub(crate) fn add(&self, times: u64, what: &str) {
        let file = File::options().create(true).append(true).open(&self.lines);
        let line = format!("{times} {what}\n");
        file.unwrap().write_all(line.as_bytes()).unwrap();
    }

    /// Counts an error by its variant and the kinds of its node causes.
    pub(crate) fn add_error(&self, during: &str, error: &Error) {
        let mut what = word(error);
        if let Error::InsufficientQuorum { causes, .. } = error {
            let kinds = causes.iter().map(|node| match &node.failure {
                NodeFailure::ServerError(text) => first_word(text),
                cause => word(cause),
            });
            let kinds: BTreeSet<String> = kinds.collect();
            what = format!("{what} {kinds:?}");
        }
        self.add(1, &format!("{during}: {what}"));
    }

    pub(crate) fn counts(&self) -> BTreeMap<String, u64> {
        let text = fs::read_to_string(&self.lines).unwrap_or_default();
        let mut counts = BTreeMap::new();
        for line in text.lines() {
            let (times, what) = line.split_once(' ').unwrap();
            *counts.entry(what.to_owned()).or_default() += times.parse::<u64>().unwrap();
        }
        counts
    }

    /// Returns the sum of all counters whose name begins with `beginning`.
    pub(crate) fn of(&self, beginning: &str) -> u64 {
        let counts = self.counts();
        let of = counts
            .iter()
            .filter(|(what, _)| what.starts_with(beginning));
        of.map(|(_, times)| times).sum()
    }

    pub(crate) fn stop(&self) {
        File::create(&self.stop).unwrap();
    }

    /// Asks the process with this id to rest; 0 means no process.
    pub(crate) fn rest(&self, pid: Pid) {
        fs::write(&self.rest, pid.to_string()).unwrap();
    }

    pub(crate) fn is_resting(&self) -> bool {
        fs::read_to_string(&self.rest).is_ok_and(|pid| pid == Pid::this().to_string())
    }

    /// Returns whether to stop; also true if the parent process is gone.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.exists() || getppid() != self.parent
    }
}

/// Returns the name of a variant.
fn word(value: &impl Debug) -> String {
    let mut word = format!("{value:?}");
    word.truncate(word.find(|c: char| !c.is_alphanumeric()).unwrap_or(SHORT));
    word
}

/// Returns the code at the start of a server's error.
fn first_word(text: &str) -> String {
    text.split_whitespace()
        .next()
        .unwrap_or_default()
        .to_owned()
}
