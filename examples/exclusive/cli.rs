//! Command line and help.

use super::exit_error::{Kind, Refusal};
use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};
use redguard::{Config, RedisLocker};
use std::env;
use std::ffi::OsString;

/// Runs a command under a lock on a quorum of Redis nodes, and shows operators the holders of locks
///
///   exclusive run --key backup --no-wait -- pg_dump shop    as flock(1), but on any number of machines
///   exclusive status backup                                 shows the holder of one lock
///   exclusive list 'shop:*'                                 lists held locks
///   exclusive watch                                         shows them as a live table
///   exclusive break backup                                  removes the lock of a dead holder
///
/// --redis or REDIS_URLS names all nodes. All programs that use the locks need the same list. A lock is
/// held if more than half of the nodes granted it to one holder. A minority of nodes that are down is
/// reported and changes nothing. Read-write locks and locks held in degraded mode are not shown.
///
/// The state of a lock is out of date when it is printed. To acquire a lock, use `run`; do not check it
/// with `status` first.
#[derive(Debug, Parser)]
#[command(name = "exclusive", verbatim_doc_comment, after_long_help = OUTPUT)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Options of all commands")]
pub(crate) struct Common {
    /// Addresses of all nodes, the same for all programs [default: REDIS_URLS from the environment]
    ///
    /// Each address names a server: host, host:port, redis://user:password@host:port/db, unix:///path, or
    /// rediss://… in a build with --features tls. Sentinels and clusters are not supported here.
    #[arg(
        long,
        global = true,
        value_name = "URL,URL,…",
        value_delimiter = ',',
        verbatim_doc_comment
    )]
    redis: Vec<String>,
    /// Prefix of the keys of locks on the nodes
    #[arg(long, global = true, value_name = "TEXT", default_value = "redguard:")]
    pub(crate) prefix: String,
    /// Owner label that `run` stores with its lock, for operators [default: HOST/PID]
    #[arg(long, global = true, value_name = "LABEL")]
    owner: Option<String>,
    /// Time limit for replies of a node; five times as long for its connect
    #[arg(long, global = true, value_name = "TIME", default_value = "200ms")]
    pub(crate) timeout: humantime::Duration,
    /// Write JSON, one object per line, also for errors
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(Run),
    /// Shows the holder of a lock, its nodes and its remaining time
    ///
    /// Nodes store only the end of a lease, so its start is unknown (see watch). A holder without a label
    /// did not set --owner or Config::owner_label. An owner on less than a quorum of nodes is acquiring or
    /// releasing the lock, or has lost it: it is shown, but the lock does not count as held.
    ///
    ///   exclusive status backup
    ///   exclusive status backup --json | jq .remaining_ms
    #[command(verbatim_doc_comment, after_help = STATUS_STATUSES)]
    Status {
        /// The lock's name, without the prefix
        key: String,
    },
    /// Lists the held locks and their holders
    ///
    /// SCAN on every node finds the names. It reads all keys of the database but does not block the server
    /// as KEYS does; the user needs the right +scan. The holder of each lock is read as by status. Nodes that
    /// are down are reported on standard error; enough nodes must be up that no held lock can be missed.
    /// Locks that are acquired or released meanwhile may be missing. With an empty --prefix every string key
    /// counts as a lock.
    ///
    ///   exclusive list
    ///   exclusive list 'shop:*'              names that begin with shop:
    ///   exclusive list --json | jq -r 'select(.owner == null) | .key'
    #[command(verbatim_doc_comment, after_help = LIST_STATUSES)]
    List {
        /// Pattern of names, as in Redis: * ? [abc] [^a] [a-z], and \ before a literal character
        #[arg(default_value = "*")]
        pattern: String,
    },
    /// Shows the holders of locks live, until Ctrl-C
    ///
    /// On a terminal it redraws a table in place. Elsewhere, with --json, and if TERM is dumb, it writes one
    /// line per change. It lists the locks once per --interval and continues during outages of nodes.
    ///
    /// "Seen for" is how long watch itself has seen the same owner, because nodes do not store the start of
    /// a lease. A lock that is acquired and released within one interval is not seen. Two successive
    /// holders with the same label, or without labels, count as one.
    ///
    ///   exclusive watch --interval 5s
    ///   exclusive watch 'shop:*' --json >>locks.jsonl
    #[command(verbatim_doc_comment, after_help = WATCH_STATUSES)]
    Watch {
        /// Pattern of names, as for list
        #[arg(default_value = "*")]
        pattern: String,
        /// Time between two lists
        #[arg(long, value_name = "TIME", default_value = "1s")]
        interval: humantime::Duration,
    },
    /// Removes a lock from its holder
    ///
    /// For locks whose holder is certainly dead and whose TTL is too long to wait for. break cannot check
    /// that: a living holder continues beside the next one until it checks or renews its lock. A node that
    /// is down keeps its grant until that expires.
    ///
    /// On a terminal it shows the holder and asks for confirmation, unless --yes is given. If the owner label
    /// has changed by the time of the answer, it does nothing. Without a terminal --yes is required.
    ///
    ///   exclusive break backup
    ///   exclusive break backup --yes --json
    #[command(verbatim_doc_comment, after_help = BREAK_STATUSES)]
    Break {
        /// The lock's name, without the prefix
        key: String,
        /// Do not ask for confirmation
        #[arg(long, short)]
        yes: bool,
    },
}

/// Runs a command while holding a lock, as flock(1) does with a file
///
/// It waits until the lock is free, at most for --wait. The lock is renewed while the command runs, and
/// released after its end. The lock is lost if no quorum is reachable for a TTL or if its key is deleted.
/// Then exclusive writes a line to standard error and ends the command: SIGTERM, and SIGKILL 5 s later
/// (see --on-lost). Only the command itself gets the signals: a shell must pass them on to its children.
///
/// Ctrl-C at the terminal reaches the command, and exclusive passes SIGTERM on to it; exclusive ends after
/// the command. If exclusive is killed (SIGKILL, power failure), the lock is neither renewed nor released:
/// it stays held until its TTL ends, and a command that still runs is not protected after that.
///
///   exclusive run --key backup --no-wait -- pg_dump shop
///   exclusive run --key deploy --wait 10m --owner "$USER" -- ./deploy.sh
#[derive(Args, Debug)]
#[command(verbatim_doc_comment, after_help = RUN_STATUSES)]
pub(crate) struct Run {
    /// Name of the lock
    #[arg(long)]
    pub(crate) key: String,
    /// How long the lock stays held after the death of exclusive, or without connection to the nodes
    #[arg(long, value_name = "TIME", default_value = "30s")]
    pub(crate) ttl: humantime::Duration,
    /// Longest wait for the lock [default: unlimited]
    #[arg(long, value_name = "TIME")]
    pub(crate) wait: Option<humantime::Duration>,
    /// Do not wait for a held lock: the same as --wait 0s
    #[arg(long, conflicts_with = "wait")]
    pub(crate) no_wait: bool,
    /// Action if the lock is lost while the command runs
    #[arg(long, value_enum, value_name = "HOW", default_value = "kill")]
    pub(crate) on_lost: OnLost,
    /// The command and its arguments, after `--`
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum OnLost {
    /// End the command: SIGTERM, and SIGKILL 5 s later
    Kill,
    /// Only warn; other holders may run beside the command
    Warn,
}

const OUTPUT: &str = "\
Exit status: each command's help has its own; for all of them
  64   bad usage
  69   no quorum of the nodes could be reached, or no nodes were given
  71   the operating system refused something
  77   the nodes deny access: credentials, rights or certificates
  141  the reader of the output has closed it
Each of these except 141 writes one line on standard error that begins with `exclusive: `.

With --json, on standard output:
  a lock     key, held (by a quorum), owner (null without a label), remaining_ms (null if free or endless),
             nodes (on which its owner holds it), needed (the quorum), total
  watch      the same with event (held, partial, passed, freed) and time; if passed or freed, seen_ms (how
             long the former owner was seen); if passed, from (the former owner); or event (node_down,
             node_up), time, node and cause; or event (unknown, known), time and cause
  break      key, broken, owner, nodes
on standard error:
  an error   error, kind (usage, unavailable, denied, system, held, not_executable, not_found, signal, not_confirmed),
             status
  a warning  warning, and key or node
Fields may be added; these keep their meaning.";

const RUN_STATUSES: &str = "\
Exit status: the command's own, or
  64     bad usage
  69     no quorum of the nodes could be reached, or no nodes were given
  71     the operating system refused something
  75     another holder has the lock
  77     the nodes deny access: credentials, rights or certificates
  126    the command could not be executed
  127    the command was not found
  128+n  signal n ended the command, or the wait for the lock
If the command did not run, one line on standard error that begins with `exclusive: ` has the cause.";

const STATUS_STATUSES: &str = "\
Exit status:
  0   the lock is held
  1   the lock is not held
  64  bad usage
  69  no quorum of the nodes could be reached, or no nodes were given
  77  the nodes deny access: credentials, rights or certificates";

const LIST_STATUSES: &str = "\
Exit status:
  0   the locks were listed, also if there are none
  64  bad usage
  69  too few nodes could be reached, or no nodes were given
  77  the nodes deny access: credentials, rights or certificates";

const WATCH_STATUSES: &str = "\
Exit status:
  0   ended by Ctrl-C, SIGTERM, or the end of the terminal
  64  bad usage
  69  at the start no quorum of the nodes could be reached, or no nodes were given
  77  the nodes deny access: credentials, rights or certificates";

const BREAK_STATUSES: &str = "\
Exit status:
  0   the lock, or its part on some nodes, was removed
  1   there was no lock
  2   not confirmed, or the owner changed meanwhile: nothing was done
  64  bad usage, or neither --yes nor a terminal
  69  no quorum of the nodes could be reached, or no nodes were given
  77  the nodes deny access: credentials, rights or certificates";

/// Parses the arguments into a command, or into help to print.
pub(crate) fn parse(args: &[OsString]) -> Result<Result<Cli, clap::Error>, Refusal> {
    use ErrorKind::{DisplayHelpOnMissingArgumentOrSubcommand, MissingSubcommand};
    let line = match Cli::try_parse_from(args) {
        Ok(cli) => return Ok(Ok(cli)),
        Err(error) if !error.use_stderr() => return Ok(Err(error)),
        Err(error) => match error.kind() {
            DisplayHelpOnMissingArgumentOrSubcommand | MissingSubcommand => {
                "run, status, list, watch or break? (see --help)".to_owned()
            }
            _ => in_one_line(&error),
        },
    };
    Err(Refusal::new(Kind::Usage, line))
}

/// Returns whether the arguments contain `--json`, also if they are otherwise wrong.
pub(crate) fn wants_json(args: &[OsString]) -> bool {
    let mut own = args.iter().take_while(|arg| *arg != "--");
    own.any(|arg| arg == "--json")
}

impl Common {
    /// Returns the addresses of the nodes.
    pub(crate) fn addresses(&self) -> Result<Vec<String>, Refusal> {
        let mut addresses = self.redis.clone();
        if let (true, Ok(urls)) = (addresses.is_empty(), env::var("REDIS_URLS")) {
            addresses = urls.split(',').map(str::to_owned).collect();
        }
        addresses.retain(|address| !address.trim().is_empty());
        if addresses.is_empty() {
            let line = "no nodes were given: use --redis or REDIS_URLS";
            return Err(Refusal::new(Kind::Unavailable, line));
        }
        Ok(addresses)
    }

    /// Connects to the nodes. Blocks for at most five times `--timeout`.
    pub(crate) fn connect(&self) -> Result<RedisLocker, Refusal> {
        let config = Config::new(self.addresses()?)
            .key_prefix(&self.prefix)
            .owner_label(self.owner.clone().unwrap_or_else(here))
            .node_timeout(*self.timeout)
            .connect_timeout(self.timeout.saturating_mul(5));
        Ok(RedisLocker::connect(config)?)
    }
}

/// Returns `HOST/PID`, without characters that a label cannot contain.
fn here() -> String {
    let host = nix::unistd::gethostname().unwrap_or_default();
    let host = host.to_string_lossy();
    let printable = |c: char| {
        if c.is_ascii_graphic() && c != ':' {
            c
        } else {
            '-'
        }
    };
    let host: String = host.chars().map(printable).take(48).collect();
    format!("{host}/{}", std::process::id())
}

/// Returns the message of a usage error without the usage lines.
fn in_one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let message = text.split("\n\n").next().unwrap_or(&text);
    let message = message.strip_prefix("error: ").unwrap_or(message);
    let words: Vec<&str> = message.split_whitespace().collect();
    format!("{} (see --help)", words.join(" "))
}
