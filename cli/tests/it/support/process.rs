//! The tool as a process.

use std::fs;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::{eventually, eventually_or};

pub(crate) const TOOL: &str = env!("CARGO_BIN_EXE_redguard");

/// Starts a program with the default dispositions, whatever the runner of the tests ignores, as
/// nohup(1) makes it do with SIGHUP.
pub(crate) const WITH_DEFAULTS: [&str; 2] = ["env", "--default-signal"];

/// The time limit of a node. A busy machine is not to seem an outage.
pub(crate) const TIMEOUT: &str = "5s";

/// A TTL that does not end during a test: a lock that is gone was released.
pub(crate) const LONG_TTL: &str = "1h";

/// Prepares the tool with a command and its options, on these nodes. It has a session of its own,
/// and so no terminal.
pub(crate) fn tool(nodes: &str, command: &str, args: &[&str]) -> Command {
    let mut tool = bare(&[command, "--timeout", TIMEOUT, "--redis", nodes]);
    tool.args(args);
    tool
}

/// Returns the arguments of the tool that run `command` under the lock `k`.
pub(crate) fn run_args<'a>(addr: &'a str, command: &[&'a str]) -> Vec<&'a str> {
    let tool = [
        "run",
        "--timeout",
        TIMEOUT,
        "--redis",
        addr,
        "--key",
        "k",
        "--",
    ];
    [&tool[..], command].concat()
}

/// Prepares the tool with these arguments alone.
pub(crate) fn bare(args: &[&str]) -> Command {
    let mut tool = detached(TOOL);
    tool.args(args);
    tool
}

/// Prepares a program in a session of its own.
pub(crate) fn detached(program: &str) -> Command {
    let mut command = Command::new("setsid");
    command.args(WITH_DEFAULTS).arg(program);
    clean(&mut command);
    command
}

/// Removes what of the environment the tool reads.
pub(crate) fn clean(command: &mut Command) {
    for name in [
        "REDIS_URLS",
        "REDGUARD_NODES_FILE",
        "XDG_CONFIG_HOME",
        "NO_COLOR",
    ] {
        command.env_remove(name);
    }
    command.env("HOME", "/nonexistent");
}

/// A process with its output. It is killed on drop.
pub(crate) struct Running {
    child: Child,
    out: Output,
    err: Output,
}

/// How a process ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// The status as a shell shows it.
    pub(crate) status: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Running {
        command.stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let out = Output::read(child.stdout.take().unwrap());
        let err = Output::read(child.stderr.take().unwrap());
        Running { child, out, err }
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Sends a signal by its number, to the process.
    pub(crate) fn signal(&self, number: i32) {
        signal(self.pid(), number);
    }

    /// Blocks until standard error has these words.
    #[track_caller]
    pub(crate) fn await_err(&self, words: &str) {
        let found = || self.err.text().contains(words);
        eventually_or(|| format!("{words:?} in {:?}", self.err.text()), found);
    }

    /// Blocks until standard output has these words.
    #[track_caller]
    pub(crate) fn await_out(&self, words: &str) {
        let found = || self.out.text().contains(words);
        eventually_or(|| format!("{words:?} in {:?}", self.out.text()), found);
    }

    #[track_caller]
    pub(crate) fn end(mut self) -> Ended {
        eventually("the process ends", || self.has_ended());
        let status = self.child.wait().unwrap();
        Ended {
            status: status
                .code()
                .unwrap_or_else(|| 128 + status.signal().unwrap()),
            out: self.out.end(),
            err: self.err.end(),
        }
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The output of a process, read by a thread.
struct Output {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Output {
    fn read(mut source: impl Read + Send + 'static) -> Output {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let read = Arc::clone(&bytes);
        let reader = thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(length @ 1..) = source.read(&mut chunk) {
                read.lock().unwrap().extend(&chunk[..length]);
            }
        });
        Output {
            bytes,
            reader: Some(reader),
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap()).into_owned()
    }

    /// Returns all of the output. Blocks until every process that has it open has closed it.
    fn end(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        self.text()
    }
}

impl Ended {
    /// Asserts the status, and that standard error has no line without these words.
    #[track_caller]
    pub(crate) fn assert(&self, status: i32, words: &[&str]) {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.err.lines().count(), words.len(), "{self:?}");
        for (line, words) in self.err.lines().zip(words) {
            assert!(line.contains(words), "{words}: {self:?}");
        }
    }

    /// Returns the last line of standard error as JSON.
    pub(crate) fn report(&self) -> Value {
        serde_json::from_str(self.err.lines().last().unwrap()).unwrap()
    }
}

pub(crate) fn run(command: Command) -> Ended {
    Running::start(command).end()
}

/// Sends a signal; a negative `pid` is a process group.
pub(crate) fn signal(pid: i32, number: i32) {
    let signal = Signal::try_from(number).unwrap();
    // The process may have ended.
    let _ = nix::sys::signal::kill(Pid::from_raw(pid), signal);
}

/// Returns whether a process has signals that none of its threads has received.
pub(crate) fn has_pending_signals(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let mut lines = status.lines();
    let pending = lines.find_map(|line| line.strip_prefix("ShdPnd:")).unwrap();
    pending.trim().bytes().any(|digit| digit != b'0')
}

/// Returns the state of a process as ps(1) shows it; `None` once it is gone.
pub(crate) fn state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.chars().next()
}

/// Returns whether a process runs: a zombie does not.
pub(crate) fn is_alive(pid: i32) -> bool {
    state(pid).is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// Blocks until a process has this state.
#[track_caller]
pub(crate) fn await_state(pid: i32, wanted: char) {
    eventually(&format!("state {wanted}"), || state(pid) == Some(wanted));
}
