//! Why a lock alone does not protect a store, and how a fencing token does.
//!
//! `cargo run --release --example fencing [-- --redis URL,URL,…]`
//!
//! The first holder stops itself between the acquire and its write, as a long pause of the machine
//! would. Its lease expires, and a second holder acquires the lock and writes. Then the first
//! holder continues and writes too, because a stopped process learns of no loss. Without fencing
//! the stale write overwrites the newer one. With fencing each write carries the token of its lock;
//! the store keeps the greatest token and refuses writes with a lower one.
//!
//! Fencing needs a store that compares tokens. Without one, `check()` right before the write makes
//! the gap small but does not close it.
#![expect(clippy::print_stdout, reason = "an example is there to be read")]

use lexopt::{Arg, Parser};
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use redguard::{Config, LockOptions, Locker, Nodes, RedisLocker};
use redguard_examples::{args, exit_status};
use redguard_servers::Server;
use redguard_servers::temp_dir::TempDir;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::time::Duration;
use std::{env, error, fs, io};

const NAME: &str = "account-7";
/// Short, so that the pause need not be long.
const TTL: Duration = Duration::from_secs(1);

type Outcome<T> = Result<T, Box<dyn error::Error + Send + Sync>>;

const HELP: &str = "
Shows a stale write to a store with fencing tokens, and to one without

Usage: fencing [--redis URL,URL,…]

  --redis URL,URL,…  Addresses of the nodes; without it, three temporary ones (redis-server is on the PATH)
  -h, --help         Shows this help

Exit status: 0 if the stale write was refused with fencing and applied without, 1 if not, 64 for bad
usage, 69 without a quorum of the nodes, 77 if they deny access, else 70.
";

#[derive(Default)]
struct Cli {
    redis: Vec<String>,
    /// Run as the first holder, with the store in this file.
    store: Option<PathBuf>,
    /// Acquire without fencing tokens.
    plain: bool,
}

impl Cli {
    fn read(parser: &mut Parser) -> Result<Option<Cli>, lexopt::Error> {
        let mut cli = Cli::default();
        while let Some(arg) = parser.next()? {
            match arg {
                Arg::Long("redis") => cli.redis = args::addresses(parser)?,
                Arg::Long("store") => cli.store = Some(parser.value()?.into()),
                Arg::Long("plain") => cli.plain = true,
                Arg::Long("help") | Arg::Short('h') => return Ok(None),
                other => return Err(other.unexpected()),
            }
        }
        Ok(Some(cli))
    }
}

/// File with one value and the greatest token of all writes.
struct Store<'a>(&'a Path);

impl Store<'_> {
    fn read(&self) -> io::Result<(u64, String)> {
        let text = fs::read_to_string(self.0)?;
        let (token, value) = text.split_once('\t').unwrap_or(("0", ""));
        Ok((token.parse().unwrap_or(0), value.to_owned()))
    }

    /// Returns `false` if the store has seen a greater token. A write without a token is never
    /// refused.
    ///
    /// A real store compares and writes in one step, as `UPDATE … SET token = 7 WHERE token <= 7`
    /// does.
    fn write(&self, token: Option<u64>, value: &str) -> io::Result<bool> {
        let (seen, _) = self.read()?;
        if token.is_some_and(|token| token < seen) {
            return Ok(false);
        }
        fs::write(self.0, format!("{}\t{value}", token.unwrap_or(seen)))?;
        Ok(true)
    }
}

fn main() -> ExitCode {
    let cli = args::parse("fencing", HELP, Cli::read);
    let ended = match &cli.store {
        Some(path) => paused(&cli, path).map(|()| true),
        None => compare(&cli),
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => exit_status::fail("fencing", &*error),
    }
}

/// Runs both scenarios; returns whether only the one without fencing applied the stale write.
fn compare(cli: &Cli) -> Outcome<bool> {
    let mut nodes = Vec::new();
    let mut urls = cli.redis.clone();
    if urls.is_empty() {
        nodes = (0..3).map(|_| Server::start()).collect::<io::Result<_>>()?;
        urls = nodes.iter().map(Server::url).collect();
    }
    println!("with fencing");
    let fenced = run_scenario(&urls, false)?;
    println!("without fencing");
    let plain = run_scenario(&urls, true)?;
    drop(nodes);
    Ok(fenced == "second" && plain == "first")
}

/// Pauses the first holder past its lease and lets the second write; returns the final value of the
/// store.
fn run_scenario(urls: &[String], plain: bool) -> Outcome<String> {
    let dir = TempDir::create("fencing-")?;
    let path = dir.path().join("store");
    fs::write(&path, "0\tnothing")?;

    let mut first = Holder::start(urls, &path, plain)?;
    first.wait_until_stopped()?;
    println!("    first    holds the lock and is paused");

    let nodes = Nodes::connect(Config::new(urls))?;
    let guard = RedisLocker::new(&nodes).acquire(NAME, &options(plain))?; // after the lease of the first has expired
    Store(&path).write(guard.fencing_token(), "second")?;
    println!(
        "    second   acquires the lock and writes with token {:?}",
        guard.fencing_token()
    );
    guard.release()?;
    _ = nodes.shutdown(Duration::ZERO);

    first.resume()?;
    let (_, value) = Store(&path).read()?;
    println!("    store    contains the write of the {value} holder");
    Ok(value)
}

fn options(plain: bool) -> LockOptions {
    let options = LockOptions::new(TTL);
    match plain {
        true => options,
        false => options.fencing(true),
    }
}

/// Runs the first holder in its own process.
fn paused(cli: &Cli, path: &Path) -> Outcome<()> {
    let nodes = Nodes::connect(Config::new(&cli.redis))?;
    let guard = RedisLocker::new(&nodes).acquire(NAME, &options(cli.plain))?;
    let token = guard.fencing_token();
    guard.check()?; // the lock is held here
    raise(Signal::SIGSTOP)?; // the lock expires while this process is stopped
    match Store(path).write(token, "first")? {
        true => println!("    first    continues and writes with token {token:?}"),
        false => println!("    first    continues; its write with token {token:?} is refused"),
    }
    if let Err(lost) = guard.release() {
        println!("    first    release fails: {lost}");
    }
    Ok(())
}

/// Process of the first holder; killed on drop.
struct Holder(Child);

impl Holder {
    fn start(urls: &[String], store: &Path, plain: bool) -> io::Result<Holder> {
        let mut command = Command::new(env::current_exe()?);
        command
            .args(["--redis", &urls.join(",")])
            .arg("--store")
            .arg(store);
        if plain {
            command.arg("--plain");
        }
        command.spawn().map(Holder)
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id().cast_signed())
    }

    fn wait_until_stopped(&self) -> Outcome<()> {
        match waitpid(self.pid(), Some(WaitPidFlag::WUNTRACED))? {
            WaitStatus::Stopped(..) => Ok(()),
            other => Err(format!("the first holder did not stop: {other:?}").into()),
        }
    }

    fn resume(&mut self) -> Outcome<()> {
        kill(self.pid(), Signal::SIGCONT)?;
        match self.0.wait()?.success() {
            true => Ok(()),
            false => Err("the first holder failed".into()),
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // Both fail for a process that has ended, which is the usual case.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}
