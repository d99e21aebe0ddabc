//! Runs a command under a lock, as flock(1) does, but on any number of machines.
//!
//! `cargo run --example exclusive -- --key K [--ttl 30s] [--wait 10s | --no-wait] [--on-lost kill|warn] [--redis URL,…]
//! -- COMMAND ARG…`
//!
//! Start reading at `run`. `--help` says what it promises; the rest of this file is what a command needs around a lock:
//! what to do when it is lost, signals, and exit statuses.

use clap::Parser;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use redguard::{CancelToken, Config, Error, LockOptions, Locker, Nodes, RedisLocker};
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::sync::OnceLock;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;
use std::{env, io, thread};

// As in sysexits.h, and for the last two as in the shell.
const USAGE: u8 = 64;
const UNAVAILABLE: u8 = 69;
const HELD: u8 = 75;
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Runs a command while holding a lock on a quorum of Redis nodes, as flock(1) does with a file
///
/// It waits until the lock is free, or for as long as --wait says. While the command runs, the lock is
/// renewed; when the command has ended, it is released. When the lock is lost while the command runs,
/// because no quorum could be reached for a TTL or somebody deleted it, a line on standard error says
/// so, and the command is ended: SIGTERM, and SIGKILL 5 s later (see --on-lost). Only the command
/// itself gets the signals: one that starts others, as a shell does, has to pass them on.
///
/// Ctrl-C at the terminal reaches the command itself, and SIGTERM is passed on to it; exclusive lives
/// until the command has ended. If exclusive itself is killed (SIGKILL, a power cut), nobody renews or
/// releases the lock: it stays held until its TTL is over, and a command that lives on is not protected
/// after that.
#[derive(Parser)]
#[command(name = "exclusive", verbatim_doc_comment, after_help = STATUSES)]
struct Cli {
    /// The lock's name; those who use the same name exclude each other
    #[arg(long)]
    key: String,
    /// How long the lock stays held when exclusive is killed, or cut off from the nodes
    #[arg(long, value_name = "TIME", default_value = "30s")]
    ttl: humantime::Duration,
    /// Wait no longer than this for the lock [default: as long as it takes]
    #[arg(long, value_name = "TIME")]
    wait: Option<humantime::Duration>,
    /// Do not wait if the lock is held: the same as --wait 0s
    #[arg(long, conflicts_with = "wait")]
    no_wait: bool,
    /// What happens to the command when the lock is lost while it runs
    #[arg(long, value_enum, value_name = "HOW", default_value = "kill")]
    on_lost: OnLost,
    /// The nodes, all of them and the same ones for everybody [default: REDIS_URLS from the environment]
    #[arg(long, value_name = "URL,URL,…", value_delimiter = ',')]
    redis: Vec<String>,
    /// The command and its arguments, after `--`
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum OnLost {
    /// It is ended: SIGTERM, and SIGKILL 5 s later
    Kill,
    /// It goes on, and others may run beside it
    Warn,
}

/// How long the command has after SIGTERM when the lock is lost.
const LAST_WORDS: Duration = Duration::from_secs(5);

const STATUSES: &str = "\
Exit status: the command's own, or
  64     bad usage
  69     no quorum of the nodes could be reached, or no nodes were given
  75     the lock is held by another
  126    the command could not be executed
  127    the command was not found
  128+n  signal n ended the command, or the wait for the lock
Where the command did not run, one line on standard error that begins with `exclusive: ` says why.";

/// An end without the command: the status and the line that explains it.
struct Refusal(u8, String);

fn main() -> ExitCode {
    // A status that is returned, not `process::exit`, which would leave the lock to its TTL: it runs no destructors.
    let status = run().unwrap_or_else(|Refusal(status, line)| {
        eprintln!("exclusive: {line}");
        status
    });
    ExitCode::from(status)
}

fn run() -> Result<u8, Refusal> {
    let mut cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => return Err(Refusal(USAGE, in_one_line(&error))),
        Err(help) => {
            _ = help.print();
            return Ok(0);
        }
    };
    if let (true, Ok(urls)) = (cli.redis.is_empty(), env::var("REDIS_URLS")) {
        cli.redis = urls.split(',').map(str::to_owned).collect();
    }
    cli.redis.retain(|url| !url.trim().is_empty());
    if cli.redis.is_empty() {
        let line = "no nodes were given: use --redis or REDIS_URLS";
        return Err(Refusal(UNAVAILABLE, line.to_owned()));
    }
    // Before there are threads, which inherit it.
    let signals = Signals::block()?;
    let nodes = Nodes::connect(Config::new(&cli.redis))?;
    let ended = run_locked(&cli, &nodes, &signals);
    // Sends what is still queued: the release for the slowest node, or what undoes an attempt that was not won.
    nodes.shutdown(Duration::ZERO);
    ended
}

/// Takes the lock, runs the command, and releases the lock on every way out: that is what guards are for.
fn run_locked(cli: &Cli, nodes: &Nodes, signals: &Signals) -> Result<u8, Refusal> {
    let (events, inbox) = mpsc::channel();
    let stop = CancelToken::new();
    signals.listen(stop.clone(), events.clone())?;
    let lost = events.clone();
    let mut options = LockOptions::new(*cli.ttl)
        .auto_renew()
        .cancel_on(&stop)
        .on_lost(move |_| _ = lost.send(Event::Lost));
    if let Some(limit) = cli.wait {
        options = options.wait_for(*limit);
    } else if cli.no_wait {
        options = options.wait_for(Duration::ZERO);
    }
    let taken = RedisLocker::new(nodes).acquire(&cli.key, &options);
    if let Some(signal) = FIRST.get_or_init(|| None) {
        let line = format!("{signal} while waiting for the lock");
        return Err(Refusal(killed_by(*signal as i32), line));
    }
    let guard = taken.map_err(|error| {
        let Refusal(status, line) = error.into();
        Refusal(status, format!("lock {:?}: {line}", cli.key))
    })?;
    let child = signals.spawn(&cli.command)?;
    let (status, told) = attend(child, cli.on_lost, events, &inbox)?;
    match guard.release() {
        Err(error) if !told => eprintln!("exclusive: when it was to be released: {error}"),
        _ => {}
    }
    Ok(status)
}

enum Event {
    Ended(io::Result<ExitStatus>),
    Signal(Signal),
    /// The lock is.
    Lost,
}

/// Waits until the command has ended; says how, and whether it has told of the lock's loss.
fn attend(
    mut child: Child,
    on_lost: OnLost,
    events: Sender<Event>,
    inbox: &Receiver<Event>,
) -> io::Result<(u8, bool)> {
    let pid = Pid::from_raw(child.id().cast_signed());
    let mut told = false;
    let mut patience = Duration::MAX;
    thread::scope(|scope| {
        scope.spawn(move || events.send(Event::Ended(child.wait())));
        loop {
            match inbox.recv_timeout(patience) {
                Ok(Event::Ended(status)) => return Ok((passed_on(status?), told)),
                // The others are sent to the terminal's whole process group: the command has them already.
                Ok(Event::Signal(Signal::SIGTERM)) => _ = kill(pid, Signal::SIGTERM),
                Ok(Event::Signal(_)) => {}
                Ok(Event::Lost) => {
                    told = true;
                    let what = match on_lost {
                        OnLost::Kill => "is ended",
                        OnLost::Warn => "goes on without it",
                    };
                    eprintln!("exclusive: the lock is lost; the command {what}");
                    if on_lost == OnLost::Kill {
                        _ = kill(pid, Signal::SIGTERM);
                        patience = LAST_WORDS;
                    }
                }
                Err(_) => {
                    _ = kill(pid, Signal::SIGKILL);
                    patience = Duration::MAX;
                }
            }
        }
    })
}

/// What came first: the lock (`None`), or a signal that ends the wait for it. Decided once, by whoever is first.
static FIRST: OnceLock<Option<Signal>> = OnceLock::new();

/// The signals that exclusive must survive for as long as the command runs, so that the lock lives as long.
struct Signals(SigSet);

impl Signals {
    /// Blocks them in this thread and those that it starts: they are waited for instead, which also tells them apart.
    fn block() -> io::Result<Signals> {
        use Signal::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
        let set = SigSet::from_iter([SIGHUP, SIGINT, SIGQUIT, SIGTERM]);
        set.thread_block()?;
        Ok(Signals(set))
    }

    /// Turns them into events; one that comes before the lock ends the wait for it.
    #[expect(
        clippy::disallowed_methods,
        reason = "nobody can wait for this thread, which waits for signals to the end"
    )]
    fn listen(&self, stop: CancelToken, events: Sender<Event>) -> Result<(), Refusal> {
        let unknown = events.clone();
        // For the moment in `spawn` in which they are not blocked.
        ctrlc::set_handler(move || _ = unknown.send(Event::Signal(Signal::SIGTERM)))
            .map_err(io::Error::other)?;
        let set = self.0;
        thread::spawn(move || {
            while let Ok(signal) = set.wait() {
                if FIRST.set(Some(signal)).is_ok() {
                    stop.cancel();
                } else {
                    _ = events.send(Event::Signal(signal));
                }
            }
        });
        Ok(())
    }

    /// Starts the command, which would inherit the block.
    fn spawn(&self, command: &[OsString]) -> Result<Child, Refusal> {
        let [program, args @ ..] = command else {
            return Err(Refusal(USAGE, "no command was given".to_owned()));
        };
        self.0.thread_unblock().map_err(io::Error::from)?;
        let spawned = Command::new(program).args(args).spawn();
        self.0.thread_block().map_err(io::Error::from)?;
        spawned.map_err(|error| {
            let status = match error.kind() {
                io::ErrorKind::NotFound => NOT_FOUND,
                _ => NOT_EXECUTABLE,
            };
            Refusal(status, format!("{}: {error}", program.display()))
        })
    }
}

fn passed_on(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => code as u8,
        (_, signal) => killed_by(signal.unwrap_or(0)),
    }
}

fn killed_by(signal: i32) -> u8 {
    128 + signal as u8
}

/// The message of a usage error without the lines about usage that follow it.
fn in_one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let message = text.split("\n\n").next().unwrap_or(&text);
    let message = message.strip_prefix("error: ").unwrap_or(message);
    let words: Vec<&str> = message.split_whitespace().collect();
    format!("{} (see --help)", words.join(" "))
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        let status = match error {
            Error::Contended { .. } => HELD,
            Error::InvalidKey { .. } | Error::InvalidTtl { .. } | Error::InvalidConfig(_) => USAGE,
            _ => UNAVAILABLE,
        };
        Refusal(status, error.to_string())
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Refusal {
        Refusal(UNAVAILABLE, error.to_string())
    }
}
