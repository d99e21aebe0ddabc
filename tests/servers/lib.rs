//! Temporary `redis-server` processes for the examples, tests and benches. None outlives the
//! program that started it.
#![expect(
    clippy::disallowed_methods,
    reason = "polls a foreign process; this package stands outside the library and shares nothing with it"
)]

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{env, thread};

use crate::temp_dir::TempDir;

pub mod temp_dir;

/// Longer than any start (about 20 ms), so that only a server that never replies exceeds it.
const START_LIMIT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(2);

/// Environment variable with the program to start instead of `redis-server`, such as
/// `valkey-server`: a name on the PATH, or a path.
const PROGRAM: &str = "REDGUARD_SERVER";

/// Starts the server, and a watchdog beside it.
///
/// `exec` keeps the pid, so the server is our own child, which we can wait for. The watchdog, a
/// forked copy of the shell, holds the read end of a pipe from us. The pipe ends when our program
/// is gone for any reason: the watchdog then kills the server and removes its directory ($1). A
/// line in the pipe means that we reaped the server ourselves. In both cases the watchdog removes
/// the files of libfaketime, which a killed process leaves behind. So our death leaves no server
/// behind at any moment, which `PR_SET_PDEATHSIG` (bound to a thread, Linux only) cannot guarantee.
/// HUP is ignored, because the kernel sends it to a process group that our death orphans with a
/// stopped server in it.
const WATCHED: &str = r#"
dir=$1; shift
trap '' HUP INT TERM
exec 3<&0 </dev/null
{
    read -r _ <&3 || { kill -9 $$; rm -rf "$dir"; }
    [ ! -e /dev/shm/faketime_shm_$$ ] || rm -f /dev/shm/faketime_shm_$$ /dev/shm/sem.faketime_sem_$$
} >/dev/null 2>&1 &
exec env "$@" 3<&-
"#;

/// Returns a command that runs the program and the arguments that are added to it, with a watchdog
/// beside it that removes `dir`. Write a line to its input when you have reaped the program; take
/// the input before you wait, because a wait would close it.
pub fn watched(dir: &Path) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", WATCHED, "sh"]).arg(dir);
    // Ctrl-C at the terminal is for our program, which may still need the other to clean up.
    command.stdin(Stdio::piped()).process_group(0);
    command
}

/// Returns whether the server's program exists.
pub fn available() -> bool {
    let program = program();
    if program.contains('/') {
        return Path::new(&program).is_file();
    }
    env::var_os("PATH")
        .is_some_and(|path| env::split_paths(&path).any(|dir| dir.join(&program).is_file()))
}

fn program() -> String {
    env::var(PROGRAM).unwrap_or_else(|_| "redis-server".to_owned())
}

/// One `redis-server` on a free loopback port, without persistence by default. A drop kills it.
///
/// In a `static`, which is never dropped, it ends with the program all the same.
#[derive(Debug)]
pub struct Server {
    port: u16,
    options: Options,
    // Declared before `root`, so that the process ends before its files are removed.
    process: Mutex<Option<Process>>,
    root: TempDir,
}

/// Options of a server.
#[derive(Clone, Debug, Default)]
pub struct Options {
    variables: Vec<String>,
    args: Vec<String>,
    /// Configuration lines of a sentinel.
    sentinel: Option<String>,
}

impl Options {
    /// Keeps the data over a `restart`, in an append-only file that is synced every second.
    pub fn append_only(self) -> Options {
        self.arg("--appendonly", "yes")
    }

    /// Keeps the data in an append-only file that is synced before each reply.
    pub fn append_always(self) -> Options {
        self.append_only().arg("--appendfsync", "always")
    }

    /// Adds an argument, such as `--requirepass`. A relative `--unixsocket` is created in
    /// [`Server::dir`].
    pub fn arg(self, name: &str, value: &str) -> Options {
        self.args(&[name, value])
    }

    /// Adds an argument with several values, such as `--replicaof`. As one value with spaces, Redis
    /// 6.2 would quote them.
    pub fn args(mut self, words: &[&str]) -> Options {
        self.args
            .extend(words.iter().map(|word| (*word).to_owned()));
        self
    }

    /// Adds a variable to the server's environment.
    pub fn env(mut self, name: &str, value: &str) -> Options {
        self.variables.push(format!("{name}={value}"));
        self
    }

    /// Makes the server a sentinel with these lines in its configuration.
    pub fn sentinel(mut self, lines: &str) -> Options {
        self.sentinel = Some(lines.to_owned());
        self
    }

    /// Starts the server. Blocks until it replies.
    pub fn start(self) -> io::Result<Server> {
        if !available() {
            let text = format!(
                "{} is NOT on the PATH: install it with `tests/run`, `apt-get install redis-server`, \
                 `dnf install redis` or `brew install redis`",
                program()
            );
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        }
        let root = TempDir::create("redis-")?;
        let mut server = Server {
            port: 0,
            options: self,
            process: Mutex::new(None),
            root,
        };
        fs::create_dir(server.dir())?;
        // Another process may bind the port between our check and the server's bind.
        for _ in 0..5 {
            server.port = free_port()?;
            match server.launch() {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                result => return result.map(|()| server),
            }
        }
        Err(io::ErrorKind::AddrInUse.into())
    }
}

impl Server {
    /// Starts a server with the default options. Blocks until it replies.
    pub fn start() -> io::Result<Server> {
        Options::default().start()
    }

    /// Returns the default options.
    pub fn options() -> Options {
        Options::default()
    }

    /// Returns the server's port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the address as `127.0.0.1:PORT`.
    pub fn addr(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Returns the address as a `redis://` URL.
    pub fn url(&self) -> String {
        format!("redis://{}", self.addr())
    }

    /// Returns the server's data and working directory.
    pub fn dir(&self) -> PathBuf {
        self.root.path().join("data")
    }

    /// Returns the running or stopped process; `None` once it was killed.
    pub fn pid(&self) -> Option<u32> {
        self.process().as_ref().map(|process| process.child.id())
    }

    /// Sends SIGSTOP: the kernel still accepts connections, but the server does not reply. Blocks
    /// until the process has stopped.
    pub fn stop(&self) -> io::Result<()> {
        self.process().as_mut().ok_or_else(not_running)?.stop()
    }

    /// Sends SIGCONT: the server continues, first with the requests that arrived meanwhile.
    pub fn resume(&self) -> io::Result<()> {
        self.process().as_mut().ok_or_else(not_running)?.resume()
    }

    /// Sends SIGKILL. Blocks until the process is gone and its port refuses connects. A second call
    /// does nothing.
    pub fn kill(&self) {
        drop(self.process().take());
    }

    /// Kills the server if it runs, and starts it on the same port with its append-only file, or
    /// empty without one.
    pub fn restart(&self) -> io::Result<()> {
        self.kill();
        self.launch()
    }

    /// Restarts the server without its data.
    pub fn restart_empty(&self) -> io::Result<()> {
        self.kill();
        fs::remove_dir_all(self.dir())?;
        fs::create_dir(self.dir())?;
        self.launch()
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the server's log since its latest start.
    pub fn logged(&self) -> String {
        read_lossy(&self.log())
    }

    fn log(&self) -> PathBuf {
        self.root.path().join("redis.log")
    }

    fn launch(&self) -> io::Result<()> {
        let mut slot = self.process();
        let mut process = self.spawn()?;
        let limit = Instant::now() + START_LIMIT;
        while !self.is_ready() {
            if let Some(status) = process.child.try_wait()? {
                return Err(self.not_started(&format!("ended with {status}")));
            }
            if Instant::now() >= limit {
                return Err(self.not_started(&format!("did not answer within {START_LIMIT:?}")));
            }
            thread::sleep(POLL);
        }
        *slot = Some(process);
        Ok(())
    }

    fn spawn(&self) -> io::Result<Process> {
        let log = File::create(self.log())?;
        let mut child = watched(self.root.path())
            .args(&self.options.variables)
            .arg(program())
            .args(self.sentinel_arguments()?)
            .args([
                "--port",
                &self.port.to_string(),
                "--bind",
                "127.0.0.1",
                "--daemonize",
                "no",
            ])
            .args(["--save", "", "--appendonly", "no", "--dir"])
            .arg(self.dir())
            .args(&self.options.args)
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let pipe = child.stdin.take();
        Ok(Process {
            child,
            pipe,
            stopped: false,
            reaped: false,
        })
    }

    /// Writes the configuration of a sentinel, which must be a file that the sentinel can write.
    fn sentinel_arguments(&self) -> io::Result<Vec<String>> {
        let Some(lines) = &self.options.sentinel else {
            return Ok(Vec::new());
        };
        let file = self.dir().join("sentinel.conf");
        fs::write(&file, lines)?;
        Ok(vec![file.display().to_string(), "--sentinel".to_owned()])
    }

    /// The log line shows that this process has bound the port; the reply shows that the data is
    /// loaded.
    fn is_ready(&self) -> bool {
        let line = match self.options.sentinel {
            Some(_) => "Sentinel ID is",
            None => "Ready to accept connections",
        };
        read_lossy(&self.log()).contains(line)
            && ping(self.port)
                .is_ok_and(|reply| reply.starts_with("+PONG") || reply.starts_with("-NOAUTH"))
    }

    fn not_started(&self, what: &str) -> io::Error {
        let log = read_lossy(&self.log());
        let in_use = log.contains("Address already in use");
        let kind = if in_use {
            io::ErrorKind::AddrInUse
        } else {
            io::ErrorKind::Other
        };
        io::Error::new(
            kind,
            format!(
                "{} on port {} {what}; its log:\n{log}",
                program(),
                self.port
            ),
        )
    }
}

/// A child that is not reaped yet, or knows that it is: no signal goes to a pid that another
/// process may have by now.
#[derive(Debug)]
struct Process {
    child: Child,
    pipe: Option<ChildStdin>,
    stopped: bool,
    reaped: bool,
}

impl Process {
    fn stop(&mut self) -> io::Result<()> {
        // A second SIGSTOP changes nothing, so there would be nothing to wait for.
        if self.stopped {
            return Ok(());
        }
        self.signal(Signal::SIGSTOP)?;
        loop {
            match waitpid(self.id(), Some(WaitPidFlag::WUNTRACED)) {
                Ok(WaitStatus::Stopped(..)) => break self.stopped = true,
                Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) => {
                    self.reaped = true;
                    return Err(not_running());
                }
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn resume(&mut self) -> io::Result<()> {
        self.signal(Signal::SIGCONT)?;
        self.stopped = false;
        Ok(())
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        if self.reaped {
            Err(not_running())
        } else {
            Ok(kill(self.id(), signal)?)
        }
    }

    fn id(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.reaped {
            // SIGKILL also ends a stopped process.
            _ = self.child.kill();
            _ = self.child.wait();
        }
        if let Some(mut pipe) = self.pipe.take() {
            _ = pipe.write_all(b"reaped\n");
        }
    }
}

/// Returns a free loopback port that this process has not returned before.
///
/// It is below the client range of Linux and macOS. While a server is down, a client that
/// reconnects repeatedly could otherwise get that very port and connect to itself.
pub fn free_port() -> io::Result<u16> {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    for _ in 0..1000 {
        let port = 10_000 + (RandomState::new().hash_one(()) % 20_000) as u16;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
            && GIVEN
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(port)
        {
            return Ok(port);
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

fn ping(port: u16) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(
        &SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        Duration::from_secs(1),
    )?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(b"PING\r\n")?;
    let mut reply = [0; 64];
    let len = stream.read(&mut reply)?;
    Ok(String::from_utf8_lossy(&reply[..len]).into_owned())
}

fn read_lossy(path: &Path) -> String {
    fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

fn not_running() -> io::Error {
    io::Error::other("redis-server is not running")
}
