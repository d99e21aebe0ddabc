//! A command that logs each signal that it gets to a file, and goes on.
//!
//! It is the test [`program`] of this binary, so that it is built with the tests, whatever the
//! arguments of cargo are. env(1) blocks the signals before the binary starts, since threads
//! inherit the mask.

use std::env;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process;
use std::thread;
use std::time::Duration;

use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use tempfile::TempDir;

use crate::support::eventually;

/// The variable with the path of the log.
const LOG: &str = "REDGUARD_SIGNAL_LOG";

/// How often the command looks for signals, and for its end.
const POLL: Duration = Duration::from_millis(2);

pub(crate) struct SignalLog {
    dir: TempDir,
}

impl SignalLog {
    pub(crate) fn new() -> SignalLog {
        let dir = tempfile::tempdir().unwrap();
        let log = SignalLog { dir };
        let script = format!(
            "exec env --block-signal {LOG}='{}' '{}' --ignored --exact {} --nocapture >/dev/null\n",
            log.path().display(),
            env::current_exe().unwrap().display(),
            "support::signal_log::program",
        );
        fs::write(log.script(), script).unwrap();
        log
    }

    /// Returns the program and its argument. A shell reads the script, because the system refuses
    /// to execute a file while another thread's new process has it open.
    pub(crate) fn command(&self) -> [String; 2] {
        ["sh".to_owned(), self.script().display().to_string()]
    }

    fn script(&self) -> PathBuf {
        self.dir.path().join("script")
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    pub(crate) fn text(&self) -> String {
        fs::read_to_string(self.path()).unwrap_or_default()
    }

    /// Blocks until the command runs.
    #[track_caller]
    pub(crate) fn ready(&self) {
        eventually("the command runs", || self.text().contains('\n'));
    }

    /// Returns the process of the command, once it runs.
    pub(crate) fn pid(&self) -> i32 {
        let text = self.text();
        let pid = text
            .lines()
            .next()
            .and_then(|line| line.strip_prefix("pid "));
        pid.unwrap().parse().unwrap()
    }

    /// Returns how often the command got a signal.
    pub(crate) fn count(&self, number: i32) -> usize {
        let is_it = |line: &&str| line.parse() == Ok(number);
        self.text().lines().filter(is_it).count()
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
        fs::rename(draft, end_of(&self.path())).unwrap();
    }
}

/// Returns the file that tells the command to end, with its status.
fn end_of(log: &Path) -> PathBuf {
    log.with_extension("end")
}

/// The command: writes its process, and then the number of each signal in a line.
#[test]
#[ignore = "a command for other tests"]
fn program() {
    let Some(path) = env::var_os(LOG).map(PathBuf::from) else {
        return;
    };
    let signals = SignalFd::with_flags(&SigSet::all(), SfdFlags::SFD_NONBLOCK).unwrap();
    let mut log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .unwrap();
    writeln!(log, "pid {}", process::id()).unwrap();
    loop {
        while let Some(signal) = signals.read_signal().unwrap() {
            writeln!(log, "{}", signal.ssi_signo).unwrap();
        }
        if let Ok(text) = fs::read_to_string(end_of(&path)) {
            process::exit(text.parse().unwrap());
        }
        // The test has failed, and its directory is gone.
        if !path.exists() {
            return;
        }
        thread::sleep(POLL);
    }
}
