//! Locks from the command line: a command runs under one, as under flock(1) but on any number of machines; and operators see
//! who holds which, and take one away.
//!
//! `cargo run --example exclusive -- run --key K [--ttl 30s] [--wait 10s | --no-wait] -- COMMAND ARG…`, and `status KEY`,
//! `list [PATTERN]`, `watch [PATTERN]`, `break KEY`. All of them take `--redis URL,URL,…` and `--json`.
//!
//! What it promises is in `--help`, that is in `cli`. Who wants to see how a lock is used starts reading at `run`, the rest of
//! which is what a command needs around a lock: what to do when it is lost, signals, and exit statuses.

#[path = "exclusive/breaking.rs"]
pub(crate) mod breaking;
#[path = "exclusive/changes.rs"]
mod changes;
#[path = "exclusive/cli.rs"]
pub(crate) mod cli;
#[path = "exclusive/lock.rs"]
mod lock;
#[path = "exclusive/look.rs"]
pub(crate) mod look;
#[path = "exclusive/refusal.rs"]
mod refusal;
#[path = "exclusive/run.rs"]
mod run;
#[path = "exclusive/scan.rs"]
mod scan;
#[path = "exclusive/screen.rs"]
mod screen;
#[path = "exclusive/signals.rs"]
mod signals;
#[path = "exclusive/table.rs"]
mod table;
#[path = "exclusive/voice.rs"]
pub(crate) mod voice;
#[path = "exclusive/watch.rs"]
pub(crate) mod watch;

use self::cli::{Cli, Command};
use self::refusal::{Kind, Refusal};
use self::signals::Signals;
use self::voice::Voice;
use self::watch::Stop;
use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    // A status that is returned, not `process::exit`, which would leave the lock to its TTL: it runs no destructors.
    ExitCode::from(perform(&args, &mut io::stdout(), &mut io::stderr()))
}

/// Does what the arguments say, and answers the exit status.
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
            look::status(&locker, key, voice)
        }
        Command::List { pattern } => {
            let mut survey = look::Survey::new(common, pattern)?;
            look::list(&mut survey, voice)
        }
        Command::Watch { pattern, interval } => {
            if interval.is_zero() {
                let line = "an interval of 0s would leave the nodes no pause";
                return Err(Refusal::new(Kind::Usage, line));
            }
            // Before there are threads, which inherit it.
            let signals = Signals::block()?;
            let stop = Arc::new(Stop::default());
            let heard = Arc::clone(&stop);
            let mut survey = look::Survey::new(common, pattern)?;
            signals.listen(move |_| heard.say())?;
            watch::watch(&mut survey, **interval, &stop, voice)
        }
        Command::Break { key, yes } => {
            let ask = breaking::terminal();
            if !yes && ask.is_none() {
                let line =
                    "break asks for confirmation, and there is no terminal to ask at: use --yes";
                return Err(Refusal::new(Kind::Usage, line));
            }
            let locker = common.connect()?;
            breaking::break_lock(&locker, key, ask.filter(|_| !yes), voice)
        }
    }
}

/// With no guard alive there is nothing to wait for.
const NO_GRACE: Duration = Duration::ZERO;
