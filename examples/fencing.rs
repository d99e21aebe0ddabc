//! Why a lock alone does not protect a store, and how a fencing token does.
//!
//! `cargo run --release --example fencing [-- --redis URL,URL,…]`
//!
//! A holder is paused (it stops itself, as a long pause of the machine would) between taking the lock and writing. Its lease
//! ends, another takes the lock and writes. Then the first goes on and writes, too: it was told nothing while it stood still.
//! Without fencing its stale write wins. With fencing each write carries the token of its lock, the store remembers the
//! greatest that it has seen, and refuses what is below.
//!
//! It takes a store that looks. Where there is none, `check()` right before the write makes the gap small, not nothing.
#![expect(clippy::print_stdout, reason = "an example is there to be read")]

#[path = "common/servers.rs"]
mod servers;

use clap::Parser;
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use redguard::{Config, LockOptions, Locker, Nodes, RedisLocker};
use servers::Server;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::time::Duration;
use std::{env, error, fs, io};

const NAME: &str = "account-7";
/// Short, so that the pause need not be long.
const TTL: Duration = Duration::from_secs(1);

type Outcome<T> = Result<T, Box<dyn error::Error + Send + Sync>>;

/// A holder that is paused past its lease meets a store that checks fencing tokens, and one that does not
///
/// Without --redis it takes redis-server on the PATH for three throw-away nodes. The exit status is 0 if
/// the stale write was refused with fencing, and did its damage without.
#[derive(Parser)]
#[command(name = "fencing", verbatim_doc_comment)]
struct Cli {
    /// The nodes
    #[arg(long, value_name = "URL,URL,…", value_delimiter = ',')]
    redis: Vec<String>,
    /// Be the holder that is paused, for the store in this file
    #[arg(long, hide = true)]
    store: Option<PathBuf>,
    /// Without tokens
    #[arg(long, hide = true)]
    plain: bool,
}

/// A file with one value, and the greatest token that came with a write.
struct Store<'a>(&'a Path);

impl Store<'_> {
    fn read(&self) -> io::Result<(u64, String)> {
        let text = fs::read_to_string(self.0)?;
        let (token, value) = text.split_once('\t').unwrap_or(("0", ""));
        Ok((token.parse().unwrap_or(0), value.to_owned()))
    }

    /// `false` if the write is refused: somebody with a greater token was here. A write without one is not looked at.
    ///
    /// A real store does this in one step, as `UPDATE … SET token = 7 WHERE token <= 7` does.
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
    let cli = Cli::parse();
    let ended = match &cli.store {
        Some(path) => paused(&cli, path).map(|()| true),
        None => compare(&cli),
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("fencing: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Both stories, one after the other.
fn compare(cli: &Cli) -> Outcome<bool> {
    let mut nodes = Vec::new();
    let mut urls = cli.redis.clone();
    if urls.is_empty() {
        nodes = (0..3).map(|_| Server::start()).collect::<io::Result<_>>()?;
        urls = nodes.iter().map(Server::url).collect();
    }
    println!("with fencing");
    let fenced = story(&urls, false)?;
    println!("without");
    let plain = story(&urls, true)?;
    drop(nodes);
    Ok(fenced == "second" && plain == "first")
}

/// One holder is paused past its lease, another writes meanwhile; answers what is in the store when both are done.
fn story(urls: &[String], plain: bool) -> Outcome<String> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("store");
    fs::write(&path, "0\tnothing")?;

    let mut first = Holder::start(urls, &path, plain)?;
    first.wait_until_it_stands_still()?;
    println!("    first    has the lock, and is paused");

    let nodes = Nodes::connect(Config::new(urls))?;
    let guard = RedisLocker::new(&nodes).acquire(NAME, &options(plain))?; // when the lease of the first has ended
    Store(&path).write(guard.fencing_token(), "second")?;
    println!(
        "    second   has the lock after it, and writes with token {:?}",
        guard.fencing_token()
    );
    guard.release()?;
    nodes.shutdown(Duration::ZERO);

    first.go_on()?;
    let (_, value) = Store(&path).read()?;
    println!("    store    holds what the {value} has written");
    Ok(value)
}

fn options(plain: bool) -> LockOptions {
    let options = LockOptions::new(TTL);
    match plain {
        true => options,
        false => options.fenced(),
    }
}

/// What the first holder does, in a process of its own.
fn paused(cli: &Cli, path: &Path) -> Outcome<()> {
    let nodes = Nodes::connect(Config::new(&cli.redis))?;
    let guard = RedisLocker::new(&nodes).acquire(NAME, &options(cli.plain))?;
    let token = guard.fencing_token();
    guard.check()?; // it is ours, now
    raise(Signal::SIGSTOP)?; // … and nobody tells us when it is not any more
    match Store(path).write(token, "first")? {
        true => println!("    first    goes on and writes, with token {token:?}"),
        false => println!("    first    goes on, and its write with token {token:?} is refused"),
    }
    if let Err(lost) = guard.release() {
        println!("    first    learns at its release: {lost}");
    }
    Ok(())
}

/// The process of the first holder; killed if it is dropped before its end.
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

    fn wait_until_it_stands_still(&self) -> Outcome<()> {
        match waitpid(self.pid(), Some(WaitPidFlag::WUNTRACED))? {
            WaitStatus::Stopped(..) => Ok(()),
            other => Err(format!("the first holder did not stop: {other:?}").into()),
        }
    }

    fn go_on(&mut self) -> Outcome<()> {
        kill(self.pid(), Signal::SIGCONT)?;
        match self.0.wait()?.success() {
            true => Ok(()),
            false => Err("the first holder failed".into()),
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // Both fail where it has ended and been waited for.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}
