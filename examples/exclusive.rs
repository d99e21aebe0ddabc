//! Command-line tool for locks: runs a command under a lock, as flock(1) does but on any number of
//! machines, and shows, watches and breaks locks.
//!
//! `cargo run --example exclusive -- run --key K [--ttl 30s] [--wait 10s | --no-wait] -- COMMAND ARG…`, and
//! `status KEY`, `list [PATTERN]`, `watch [PATTERN]`, `break KEY`. All commands accept `--redis URL,URL,…` and `--json`.
//!
//! `--help` (in `cli`) describes the behaviour. Start reading at `run`: it acquires the lock, handles its
//! loss and signals, and returns the exit status.

#[path = "exclusive/alt_screen.rs"]
mod alt_screen;
#[path = "exclusive/cli.rs"]
pub(crate) mod cli;
#[path = "exclusive/diff.rs"]
mod diff;
#[path = "exclusive/exit_error.rs"]
mod exit_error;
#[path = "exclusive/force_release.rs"]
pub(crate) mod force_release;
#[path = "exclusive/lock_row.rs"]
mod lock_row;
#[path = "exclusive/output.rs"]
pub(crate) mod output;
#[path = "exclusive/run.rs"]
mod run;
#[path = "exclusive/scan.rs"]
mod scan;
#[path = "exclusive/signals.rs"]
mod signals;
#[path = "exclusive/status.rs"]
pub(crate) mod status;
#[path = "exclusive/table.rs"]
mod table;
#[path = "exclusive/watch.rs"]
pub(crate) mod watch;

use self::cli::{Cli, Command};
use self::exit_error::{Kind, Refusal};
use self::output::Voice;
use self::signals::Signals;
use self::watch::Stop;
use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    // `process::exit` would run no destructors and leave the lock to its TTL.
    ExitCode::from(perform(&args, &mut io::stdout(), &mut io::stderr()))
}

/// Runs the command of the arguments; returns the exit status.
pub(crate) fn perform(args: &[OsString], out: &mut dyn Write, err: &mut dyn Write) -> u8 {
    let mut voice = Voice::new(cli::wants_json(args), out, err);
    let ended = cli::parse(args).and_then(|parsed| match parsed {
        Ok(cli) => dispatch(&cli, &mut voice),
        Err(help) => Ok(voice.help(&help).map(|()| 0)?),
    });
    match ended {
        Ok(status) => status,
        Err(refusal) => {
            voice.refuse(&refusal);
            refusal.status()
        }
    }
}

fn dispatch(cli: &Cli, voice: &mut Voice<'_>) -> Result<u8, Refusal> {
    let common = &cli.common;
    match &cli.command {
        Command::Run(run) => run::run(run, common, voice),
        Command::Status { key } => {
            let locker = common.connect()?;
            status::status(&locker, key, voice)
        }
        Command::List { pattern } => {
            let mut survey = status::Survey::new(common, pattern)?;
            status::list(&mut survey, voice)
        }
        Command::Watch { pattern, interval } => {
            if interval.is_zero() {
                let line = "--interval must be above 0s";
                return Err(Refusal::new(Kind::Usage, line));
            }
            // Before any thread starts, because threads inherit the block.
            let signals = Signals::block()?;
            let stop = Arc::new(Stop::default());
            let heard = Arc::clone(&stop);
            let mut survey = status::Survey::new(common, pattern)?;
            signals.listen(move |_| heard.say())?;
            watch::watch(&mut survey, **interval, &stop, voice)
        }
        Command::Break { key, yes } => {
            let ask = force_release::terminal();
            if !yes && ask.is_none() {
                let line = "break needs a terminal for its confirmation, or --yes";
                return Err(Refusal::new(Kind::Usage, line));
            }
            let locker = common.connect()?;
            force_release::break_lock(&locker, key, ask.filter(|_| !yes), voice)
        }
    }
}

/// Grace of a shutdown without live guards.
const NO_GRACE: Duration = Duration::ZERO;
