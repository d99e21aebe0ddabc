//! Starts the built examples as child processes and collects their status and output.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::SystemTime;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::eventually;
use crate::support::fixtures::LIMIT;

/// Status and output of a program that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// The exit status; `None` if a signal killed the program.
    pub(crate) status: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ended {
    /// Asserts the exit status and the number of lines on standard error.
    #[track_caller]
    pub(crate) fn assert(&self, status: i32, error_lines: usize) {
        let found = (self.status, self.err.lines().count());
        assert_eq!(found, (Some(status), error_lines), "{self:#?}");
    }

    /// Asserts that standard output contains a text.
    #[track_caller]
    pub(crate) fn assert_out(&self, text: &str) {
        assert!(self.out.contains(text), "no {text:?} in {self:#?}");
    }
}

/// The path of an example that was built together with this test program.
///
/// # Panics
/// If the example is missing or older than its sources: `cargo test --test it` does not build it.
pub(crate) fn example(name: &str) -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let profile = program.parent().and_then(Path::parent).unwrap();
    let path = profile.join("examples").join(name);
    let hint = "run `cargo build --all-features --examples`";
    let built =
        modified(&path).unwrap_or_else(|error| panic!("{}: {error}: {hint}", path.display()));
    // Cargo lists the sources of a program beside it: "program: source source …".
    let sources = fs::read_to_string(path.with_extension("d")).unwrap();
    for source in sources.split_whitespace().skip(1) {
        let is_older = modified(Path::new(source)).is_ok_and(|changed| changed > built);
        assert!(
            !is_older,
            "{} is older than {source}: {hint}",
            path.display()
        );
    }
    path
}

fn modified(path: &Path) -> io::Result<SystemTime> {
    fs::metadata(path)?.modified()
}

/// A started program; killed when it is dropped.
pub(crate) struct Running {
    child: Child,
    dir: tempfile::TempDir,
}

impl Running {
    /// Starts the command with its output in files, which never fill up as pipes do.
    pub(crate) fn start(command: &mut Command) -> Running {
        let dir = tempfile::tempdir().unwrap();
        let file = |name| File::create(dir.path().join(name)).unwrap();
        let command = command.stdin(Stdio::null()).stdout(file("out"));
        let child = command.stderr(file("err")).spawn().unwrap();
        Running { child, dir }
    }

    /// Standard output until now.
    pub(crate) fn out(&self) -> String {
        self.read("out")
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(name)).unwrap()
    }

    pub(crate) fn terminate(&self) {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, Signal::SIGTERM).unwrap();
    }

    /// Blocks until the program has ended.
    pub(crate) fn end(mut self) -> Ended {
        let mut status = None;
        eventually(2 * LIMIT, "the program ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        Ended {
            status: status.unwrap().code(),
            out: self.read("out"),
            err: self.read("err"),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail for a program that has ended, which is the usual case.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
