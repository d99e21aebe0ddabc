//! A copy of this program that works.

use std::env;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::Result;
use crate::lines::lines;

/// Longer than any start or wait for the lock, so that only a process that hangs exceeds it.
const LIMIT: Duration = Duration::from_secs(60);

/// One process with the commands that it runs. A drop kills them all, and they end with this
/// program, too.
pub(crate) struct Process {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Process {
    pub(crate) fn start(work: &[String]) -> Result<Process> {
        let mut child = Command::new(env::current_exe()?)
            .arg("--work")
            .args(work)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0) // with the commands that it runs
            .spawn()?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("a process without pipes".into());
        };
        Ok(Process {
            child,
            input,
            lines: lines(output),
        })
    }

    pub(crate) fn wait_until_ready(&mut self) -> Result<()> {
        match self.line(LIMIT)?.as_str() {
            "ready" => Ok(()),
            other => Err(format!("a process said {other:?} instead of ready").into()),
        }
    }

    pub(crate) fn begin(&mut self, time: Duration) -> Result<()> {
        Ok(writeln!(self.input, "{}", time.as_millis())?)
    }

    /// Blocks until the process has worked for `time`. Returns the wait of each run.
    pub(crate) fn waits(&mut self, time: Duration) -> Result<Vec<Duration>> {
        let line = self.line(time + LIMIT)?;
        let waits = line.split_whitespace();
        waits
            .map(|wait| Ok(Duration::from_micros(wait.parse()?)))
            .collect()
    }

    fn line(&mut self, limit: Duration) -> Result<String> {
        self.lines.recv_timeout(limit).map_err(|error| match error {
            RecvTimeoutError::Timeout => "a process hangs".into(),
            RecvTimeoutError::Disconnected => "a process ended with an error".into(),
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Only the wait reaps the process, so the group still has its id. The kill fails only for a
        // group that has ended.
        let _ = killpg(
            Pid::from_raw(self.child.id().cast_signed()),
            Signal::SIGKILL,
        );
        let _ = self.child.wait();
    }
}
