//! A copy of the batch as a process, seen from the first one.

use crate::Run;
use std::env;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};

/// Process of a copy; killed on drop. It also ends with its standard input, if this program is
/// killed.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn start(run: &Run) -> io::Result<Process> {
        let micros = |time: std::time::Duration| format!("{}us", time.as_micros());
        let child = Command::new(env::current_exe()?)
            .args(["--copy", "--night", &run.report.night])
            .args(["--threads", &run.cli.threads.to_string()])
            .args(["--ttl", &micros(run.cli.ttl())])
            .args(["--work", &micros(run.cli.work()), "--out"])
            .args([&run.out, Path::new("--"), &run.cli.dir])
            .env("REDIS_URLS", run.urls.join(","))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C reaches only the first process, which lets the copies finish their current
            // files.
            .process_group(0)
            .spawn()?;
        Ok(Process(child))
    }

    pub(crate) fn take_output(&mut self) -> Output {
        Output(self.0.stdout.take(), self.0.stderr.take())
    }

    /// Ends the copy's standard input, which stops it after its current files.
    pub(crate) fn ask_to_stop(&mut self) {
        drop(self.0.stdin.take());
    }

    pub(crate) fn kill(&mut self) -> io::Result<()> {
        self.0.kill()
    }

    pub(crate) fn wait(&mut self) -> io::Result<ExitStatus> {
        self.0.wait()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail for a process that has ended, which is the usual case.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// The pipes of a copy.
pub(crate) struct Output(Option<ChildStdout>, Option<ChildStderr>);

impl Output {
    /// Returns all of standard output and standard error. Blocks until the copy has ended.
    pub(crate) fn read(self) -> (String, String) {
        // Standard output is a few lines, which fit into its pipe while standard error is read.
        let complained = read_all(self.1);
        (read_all(self.0), complained)
    }
}

fn read_all(pipe: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        _ = pipe.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
