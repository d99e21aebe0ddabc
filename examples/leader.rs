//! Leader election: of all processes that stand, one leads, and another takes over when it dies.
//!
//! `cargo run --example leader -- --redis URL,URL,… --journal FILE`, in several terminals: kill the
//! leader.
//!
//! The leader appends a line to the journal with each step of its work: its process id, its term
//! and a number. The function `lead` is the recipe of the guide
//! (`redguard::guide::leader_election`).
#![expect(clippy::print_stdout, reason = "an example is there to be read")]

use lexopt::{Arg, Parser};
use redguard::{Config, Error, LockOptions, Locker, Nodes, RedisLocker};
use redguard_examples::{args, exit_status};
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::{self, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// How long nobody leads after a leader has died. Short, because this is a show; 10 s is usual.
const TTL: Duration = Duration::from_secs(2);
/// The longest step of the leader's work.
const STEP: Duration = Duration::from_millis(500);

/// Stands for election and leads, again and again, until `stop` is set. `step` does one piece of
/// the leader's work. It gets the term, a number above that of every leader before.
fn lead(locker: &dyn Locker, stop: &AtomicBool, step: &dyn Fn(u64)) -> Result<(), Error> {
    let options = LockOptions::new(TTL)
        .auto_renew(true)
        .fencing(true)
        .on_endangered(STEP, |_| {}) // the margin of `is_endangered`
        .wait_for(Duration::from_secs(1)); // then look at `stop`
    while !stop.load(Ordering::Relaxed) {
        // Stand.
        let guard = match locker.try_acquire("leader", &options) {
            Ok(Some(guard)) => guard,
            Ok(None) => continue,                             // another leads
            Err(error) if error.is_unavailable() => continue, // no quorum elects anybody
            Err(error) => return Err(error),
        };
        let term = guard.fencing_token().unwrap_or_default();
        // Lead, while the time left is longer than a step.
        while !stop.load(Ordering::Relaxed) && !guard.is_endangered() {
            step(term);
        }
        // Step down. The next leader begins at once; where the lock is lost, it may have begun.
        if let Err(error) = guard.release() {
            log::warn!("leader of term {term}: {error}");
        }
    }
    Ok(())
}

const HELP: &str = "
Stands for election, and writes lines to a journal while it leads

Usage: leader --redis URL,URL,… --journal FILE

  --redis URL,URL,…  Addresses of the nodes
  --journal FILE     File that the leader appends to
  -h, --help         Shows this help

Ends at the end of standard input, or at Ctrl-C.
";

#[derive(Default)]
struct Cli {
    redis: Vec<String>,
    journal: PathBuf,
}

impl Cli {
    fn read(parser: &mut Parser) -> Result<Option<Cli>, lexopt::Error> {
        let mut cli = Cli::default();
        while let Some(arg) = parser.next()? {
            match arg {
                Arg::Long("redis") => cli.redis = args::addresses(parser)?,
                Arg::Long("journal") => cli.journal = parser.value()?.into(),
                Arg::Long("help") | Arg::Short('h') => return Ok(None),
                other => return Err(other.unexpected()),
            }
        }
        Ok(Some(cli))
    }
}

fn main() -> ExitCode {
    match run(&args::parse("leader", HELP, Cli::read)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit_status::fail("leader", &*error),
    }
}

fn run(cli: &Cli) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let journal = File::options()
        .append(true)
        .create(true)
        .open(&cli.journal)?;
    let nodes = Nodes::connect(Config::new(&cli.redis))?;
    let stop = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&stop);
    ctrlc::set_handler(move || asked.store(true, Ordering::Relaxed))?;
    stop_with_input(&stop);
    println!("{} stands", process::id());
    lead(&RedisLocker::new(&nodes), &stop, &|term| {
        work(&journal, term)
    })?;
    _ = nodes.shutdown(TTL);
    Ok(())
}

/// A step of the work: a line in the journal, in one write.
#[expect(clippy::disallowed_methods, reason = "the sleep stands for work")]
fn work(mut journal: &File, term: u64) {
    let line = format!("{} {term}\n", process::id());
    if let Err(error) = journal.write_all(line.as_bytes()) {
        eprintln!("leader: {error}");
    }
    thread::sleep(STEP / 10);
}

#[expect(
    clippy::disallowed_methods,
    reason = "this thread cannot be joined: its read cannot be interrupted"
)]
fn stop_with_input(stop: &Arc<AtomicBool>) {
    let stop = Arc::clone(stop);
    thread::spawn(move || {
        _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        stop.store(true, Ordering::Relaxed);
    });
}
