//! The command line: commands and options. `help` has the longer texts.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::duration;
use crate::failure::{Failure, Result};
use crate::help;
use crate::locks::LockKind;
use crate::run::options::RunOptions;

/// Runs a command under a distributed lock on Redis, and shows the holders of locks
#[derive(Debug, Parser)]
#[command(
    name = "redguard",
    version,
    max_term_width = 100,
    disable_help_flag = true,
    disable_help_subcommand = true,
    after_help = help::TOP
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Nodes and output (all commands)")]
pub(crate) struct Common {
    /// All nodes, or @FILE
    ///
    /// Otherwise REDGUARD_NODES_FILE, REDIS_URLS, or `nodes` in a configuration file.
    #[arg(long, short = 'r', global = true, value_name = "URL,…|@FILE")]
    pub(crate) redis: Option<String>,
    /// Configuration file
    ///
    /// Instead of ~/.config/redguard.toml and /etc/redguard.toml.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Prefix of the locks' keys [default: redguard:]
    #[arg(long, global = true, value_name = "TEXT")]
    pub(crate) prefix: Option<String>,
    /// Limit for a reply [default: 200ms]
    ///
    /// A connect has five times as long.
    #[arg(long, global = true, value_name = "TIME", value_parser = duration::parse)]
    pub(crate) timeout: Option<Duration>,
    /// Authorities (PEM) of the nodes' certificates
    ///
    /// With it, or --cert, an address without a scheme is over TLS.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// Certificate (PEM) to present to the nodes
    #[arg(long, global = true, value_name = "FILE", requires = "key_file")]
    pub(crate) cert: Option<PathBuf>,
    /// Private key (PEM) of --cert
    #[arg(long, global = true, value_name = "FILE", requires = "cert")]
    pub(crate) key_file: Option<PathBuf>,
    /// Write JSON lines, also for errors
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// -q nothing if the lock is held, -qq no warnings
    #[arg(long, short, global = true, action = clap::ArgAction::Count, conflicts_with = "verbose")]
    pub(crate) quiet: u8,
    /// -v connects and outages, -vv each attempt
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Print help
    #[arg(long, short, global = true, action = clap::ArgAction::HelpShort)]
    help: Option<bool>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs a command while holding a lock, as flock(1) does with a file
    #[command(after_help = help::RUN, after_long_help = help::RUN_PAGE)]
    Run(Box<RunOptions>),
    /// Shows the holders of a lock; ends with 1 if it is free
    #[command(after_help = help::STATUS)]
    Status {
        /// Name of the lock, without the prefix
        key: String,
    },
    /// Lists the held locks and their holders
    #[command(after_help = help::LIST)]
    List {
        #[command(flatten)]
        selection: Selection,
    },
    /// Shows the holders of locks live
    #[command(after_help = help::WATCH)]
    Watch {
        #[command(flatten)]
        selection: Selection,
        /// Time between two updates; longer where the servers have many keys
        #[arg(long, short, value_name = "TIME", default_value = "1s", value_parser = duration::parse)]
        interval: Duration,
    },
    /// Removes a lock from its holders
    #[command(after_help = help::BREAK)]
    Break(BreakOptions),
    /// Checks each node, and says what to change
    #[command(after_help = help::DOCTOR)]
    Doctor {
        /// Pings per node, for its latency
        #[arg(long, value_name = "N", default_value_t = 200)]
        pings: u32,
    },
    /// Prints a completion script
    #[command(after_help = help::COMPLETIONS)]
    Completions {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Prints a manual page, or writes all of them to a directory
    #[command(after_help = help::MAN)]
    Man {
        /// The command whose page is printed [default: that of redguard itself]
        command: Option<String>,
        /// Directory for redguard.1, redguard-run.1, …
        #[arg(long, value_name = "DIR", conflicts_with = "command")]
        dir: Option<PathBuf>,
    },
}

/// The rows of `list` and `watch`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Selection {
    /// Pattern of names as in Redis: * ? [abc] [^a] [a-z], and \ before a literal character
    #[arg(default_value = "*")]
    pub(crate) pattern: String,
    /// Order of the rows
    #[arg(long, value_enum, value_name = "BY", default_value_t = SortBy::Name)]
    pub(crate) sort: SortBy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SortBy {
    Name,
    Holder,
    End,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct BreakOptions {
    /// Name of the lock, without the prefix
    pub(crate) key: String,
    /// Only from holders with this owner label
    #[arg(long, value_name = "LABEL")]
    pub(crate) if_owner: Option<String>,
    /// Only locks of this kind [default: all that KEY names]
    #[arg(long, value_enum, value_name = "KIND")]
    pub(crate) kind: Option<LockKind>,
    /// Only this permit of a semaphore
    #[arg(long, value_name = "N")]
    pub(crate) permit: Option<u16>,
    /// Do not ask for confirmation
    #[arg(long, short)]
    pub(crate) yes: bool,
}

/// The help of `run` without blank lines, so that it fits on a screen of 24 lines.
const DENSE: &str = "{about}\n{usage-heading} {usage}\n{options}{after-help}";

/// Returns the definition of the command line. The help of a command leaves out the options of all
/// commands, which `redguard --help` has, so that it fits on a screen.
fn definition() -> clap::Command {
    let mut command = Cli::command();
    command.build();
    command.mut_subcommands(|sub| {
        let text = sub.get_after_help().map(ToString::to_string);
        let text = text.unwrap_or_default() + "\nNodes and output: see `redguard --help`.";
        let sub = match sub.get_name() {
            "run" => sub.help_template(DENSE),
            _ => sub.after_help(text),
        };
        sub.mut_args(|arg| {
            let is_common = arg.is_global_set();
            arg.hide(is_common)
        })
    })
}

/// Parses the arguments into a command, or into help to print.
pub(crate) fn parse(args: &[OsString]) -> Result<std::result::Result<Cli, clap::Error>> {
    let matches = definition().try_get_matches_from(args);
    match matches.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => Ok(Ok(cli)),
        Err(error) if !error.use_stderr() => Ok(Err(error)),
        Err(error) => Err(Failure::usage(usage_error(&error, args))),
    }
}

/// Returns whether the arguments contain `--json`, also if they are otherwise wrong.
pub(crate) fn wants_json(args: &[OsString]) -> bool {
    let mut own = args.iter().take_while(|arg| *arg != "--");
    own.any(|arg| arg == "--json")
}

/// Returns a usage error as one line, with a proposal where the intention can be guessed.
fn usage_error(error: &clap::Error, args: &[OsString]) -> String {
    use ErrorKind::{
        DisplayHelpOnMissingArgumentOrSubcommand, InvalidSubcommand, MissingSubcommand,
        UnknownArgument,
    };
    let is_run = args.get(1).is_some_and(|arg| arg == "run");
    let has_dashes = args.iter().any(|arg| arg == "--");
    match error.kind() {
        DisplayHelpOnMissingArgumentOrSubcommand | MissingSubcommand if !is_run => {
            "run, status, list, watch, break or doctor? (see --help)".to_owned()
        }
        UnknownArgument if is_run && !has_dashes && !is_option(&offender(error)) => {
            format!("did you mean `-- {}`?", rest_of(args, &offender(error)))
        }
        InvalidSubcommand | UnknownArgument if has_dashes && !is_run => {
            format!(
                "{}; did you mean `redguard run … -- …`?",
                in_one_line(error)
            )
        }
        _ => match error.get(ContextKind::SuggestedArg) {
            Some(ContextValue::String(arg)) => {
                format!("{}; did you mean `{arg}`?", in_one_line(error))
            }
            _ => format!("{} (see --help)", in_one_line(error)),
        },
    }
}

/// Returns the argument that `clap` did not expect.
fn offender(error: &clap::Error) -> String {
    match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(arg)) => arg.clone(),
        _ => String::new(),
    }
}

fn is_option(arg: &str) -> bool {
    arg.is_empty() || arg.starts_with('-')
}

/// Returns the arguments from this one on.
fn rest_of(args: &[OsString], first: &str) -> String {
    let rest = args.iter().skip_while(|arg| *arg != first);
    let rest: Vec<_> = rest.map(|arg| arg.to_string_lossy()).collect();
    rest.join(" ")
}

/// Returns the message of a usage error without the usage lines.
fn in_one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let message = text.split("\n\n").next().unwrap_or(&text);
    let message = message.strip_prefix("error: ").unwrap_or(message);
    let words: Vec<&str> = message.split_whitespace().collect();
    words.join(" ")
}

/// Returns the arguments of this process, with the name of the program whatever it was called.
pub(crate) fn of_process() -> Vec<OsString> {
    let program = OsStr::new("redguard").to_owned();
    std::iter::once(program)
        .chain(std::env::args_os().skip(1))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(args: &[&str]) -> String {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        parse(&args).unwrap_err().line
    }

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn usage_error_proposes_what_was_meant() {
        for (args, words) in [
            (
                &["redguard", "run", "--key", "k", "make", "all"][..],
                "did you mean `-- make all`?",
            ),
            (
                &["redguard", "--key", "k", "--", "make"],
                "did you mean `redguard run … -- …`?",
            ),
            (&["redguard"], "run, status, list"),
            (&["redguard", "run", "--", "true"], "--key"),
            (&["redguard", "run", "--kez", "k", "--", "true"], "--key"),
            (&["redguard", "status", "k", "--cert", "c"], "--key-file"),
        ] {
            let line = error(args);
            assert!(line.contains(words) && line.lines().count() == 1, "{line}");
        }
    }

    /// A small screen has 80 columns and 24 lines.
    #[test]
    fn help_of_each_command_fits_on_a_screen() {
        for sub in definition().get_subcommands() {
            let mut sub = sub.clone().term_width(80);
            let lines = sub.render_help().to_string().lines().count();
            assert!(lines <= 23, "{}: {lines} lines", sub.get_name());
        }
    }
}
