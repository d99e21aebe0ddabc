//! `redguard`, the tool: runs a command under a distributed lock on Redis, as flock(1) does with a
//! file, and shows operators the holders of locks.
//!
//! Start reading at `run::locked`: it acquires the lock, handles signals and loss, and returns the
//! exit status.
#![deny(unsafe_code)]

mod args;
mod break_lock;
mod config;
mod doctor;
mod duration;
mod failure;
mod help;
mod library;
mod locks;
mod manual;
mod nodes;
mod notes;
mod output;
mod run;
mod secrets;
mod status;
mod sys;
mod watch;

use std::process::ExitCode;

use crate::args::{Cli, Command};
use crate::config::Settings;
use crate::failure::{Failure, Kind, Result};
use crate::notes::Notes;
use crate::output::Output;
use crate::run::signals::{self, Signals};
use crate::watch::stop::StopSignals;

fn main() -> ExitCode {
    let args = args::of_process();
    if args.get(1).is_some_and(|arg| arg == run::witness::ARGUMENT) {
        // It ends with the pipe from the tool, however that ends.
        let _ = run::witness::observe();
        return ExitCode::SUCCESS;
    }
    let parsed = args::parse(&args);
    let json = args::wants_json(&args);
    // Before any thread starts, because threads inherit the mask.
    let masked = Masked::of(&parsed);
    let level = match &parsed {
        Ok(Ok(cli)) => notes::level(cli.common.quiet, cli.common.verbose),
        _ => notes::level(0, 0),
    };
    let Ok(notes) = Notes::start(json, level) else {
        return ExitCode::from(Failure::new(Kind::System, "no thread").status());
    };
    let quiet = matches!(&parsed, Ok(Ok(cli)) if cli.common.quiet > 0);
    let conflict = conflict_status(&parsed);
    let ended = perform(parsed, masked, Output { json }, &notes);
    // `process::exit` would run no destructors and leave the lock to its TTL.
    ExitCode::from(ended.unwrap_or_else(|failure| {
        let status = match failure.kind {
            Kind::Held => conflict.unwrap_or_else(|| failure.status()),
            _ => failure.status(),
        };
        if failure.kind != Kind::Held || !quiet {
            notes.fail(&failure, status);
        }
        notes.finish();
        if failure.kind == Kind::Signal(libc::SIGINT) {
            signals::end_by_interrupt();
        }
        status
    }))
}

type Parsed = Result<std::result::Result<Cli, clap::Error>>;

/// The signals that a command receives by a thread of its own.
enum Masked {
    All(Result<Signals>),
    Stop(Result<StopSignals>),
    None,
}

impl Masked {
    fn of(parsed: &Parsed) -> Masked {
        match parsed {
            Ok(Ok(Cli { command, .. })) => match command {
                Command::Run(_) => Masked::All(Signals::block()),
                Command::Watch { .. } => Masked::Stop(StopSignals::block()),
                _ => Masked::None,
            },
            _ => Masked::None,
        }
    }
}

/// Returns the status of `-E`.
fn conflict_status(parsed: &Parsed) -> Option<u8> {
    match parsed {
        Ok(Ok(Cli {
            command: Command::Run(options),
            ..
        })) => options.conflict_exit_code,
        _ => None,
    }
}

/// Performs the command of the arguments. Returns the exit status.
fn perform(parsed: Parsed, masked: Masked, output: Output, notes: &Notes) -> Result<u8> {
    let Cli { common, command } = match parsed? {
        Ok(cli) => cli,
        Err(help) => {
            let text = match output::has_colours() {
                true => help.render().ansi().to_string(),
                false => help.render().to_string(),
            };
            return Ok(output.write(&text).map(|()| 0)?);
        }
    };
    let settings = || Settings::load(&common);
    let ended = match command {
        Command::Run(options) => {
            let Masked::All(signals) = masked else {
                return Err(Failure::new(Kind::System, "signals are not blocked"));
            };
            run::locked::run(*options, settings()?, signals?, notes)
        }
        Command::Status { key } => status::status(&key, &settings()?, output, notes),
        Command::List { selection } => status::list(&selection, &settings()?, output, notes),
        Command::Watch {
            selection,
            interval,
        } => {
            let Masked::Stop(stop) = masked else {
                return Err(Failure::new(Kind::System, "signals are not blocked"));
            };
            watch::session::watch(&selection, interval, &settings()?, stop?.listen()?)
        }
        Command::Break(options) => break_lock::break_lock(&options, &settings()?, output, notes),
        Command::Doctor { pings } => doctor::visit::doctor(&settings()?, pings, output),
        Command::Completions { shell } => manual::completions(shell, output),
        Command::Man { command, dir } => manual::man(command.as_deref(), dir.as_deref(), output),
    };
    notes.finish();
    ended
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    #[test]
    fn json_is_wanted_only_before_the_command() {
        let args = |args: &[&str]| args.iter().map(OsString::from).collect::<Vec<_>>();
        assert!(args::wants_json(&args(&["redguard", "list", "--json"])));
        assert!(!args::wants_json(&args(&[
            "redguard", "run", "--", "--json"
        ])));
    }
}
