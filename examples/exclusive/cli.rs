//! The command line, and the help that goes with it.

use super::refusal::{Kind, Refusal};
use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};
use redguard::{Config, RedisLocker};
use std::env;
use std::ffi::OsString;

/// Runs a command under a lock on a quorum of Redis nodes, and shows operators who holds which lock
///
///   exclusive run --key backup --no-wait -- pg_dump shop    as flock(1), but on any number of machines
///   exclusive status backup                                 who holds this one?
///   exclusive list 'shop:*'                                 who holds which?
///   exclusive watch                                         the same as a live table
///   exclusive break backup                                  takes it away from a holder that is dead
///
/// The nodes come from --redis or REDIS_URLS: all of them, and the same ones for everybody who uses the
/// locks. A lock is held by whoever has it on a quorum of them, which is more than half; a minority that is
/// down is named and changes nothing. Only exclusive locks are seen, not read-write locks, and not those that
/// programs hold in degraded mode.
///
/// What is told of a lock is a look, not a lock: it is out of date when it is printed. Who wants a lock runs
/// `run`, and does not look first.
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
    /// The nodes, all of them and the same ones for everybody [default: REDIS_URLS from the environment]
    ///
    /// Each is a server: host, host:port, redis://user:password@host:port/db, unix:///path, or rediss://…
    /// where this is built with --features tls. A Sentinel's master and a Cluster, which a program names by
    /// Endpoint::sentinel and Endpoint::cluster, cannot be named here.
    #[arg(
        long,
        global = true,
        value_name = "URL,URL,…",
        value_delimiter = ',',
        verbatim_doc_comment
    )]
    redis: Vec<String>,
    /// What stands before a lock's name to make its key on the nodes
    #[arg(long, global = true, value_name = "TEXT", default_value = "redguard:")]
    pub(crate) prefix: String,
    /// The label that `run` stores with its lock, for operators to see [default: HOST/PID]
    #[arg(long, global = true, value_name = "LABEL")]
    owner: Option<String>,
    /// How long a node has to answer; to be connected to, five times as long
    #[arg(long, global = true, value_name = "TIME", default_value = "200ms")]
    pub(crate) timeout: humantime::Duration,
    /// Speak in JSON, one object per line, errors included
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(Run),
    /// Tells who holds a lock, on how many nodes, and when that ends
    ///
    /// Since when it is held nobody knows: nodes keep only when it ends (see watch). A holder without a label
    /// took its lock without --owner or Config::owner. One that has less than a quorum of nodes is about to
    /// have it, or gives it back, or has lost the rest: it is told, and does not count as held.
    ///
    ///   exclusive status backup
    ///   exclusive status backup --json | jq .remaining_ms
    #[command(verbatim_doc_comment, after_help = STATUS_STATUSES)]
    Status {
        /// The lock's name, without the prefix
        key: String,
    },
    /// Lists the locks that are held, and by whom
    ///
    /// Names are found with SCAN on every node, which reads through all keys of its database but never blocks
    /// it as KEYS does; the nodes' user needs the right +scan. Who holds each is asked as by status. A node that
    /// is down is named on standard error; so many must be listed that no lock which is held can be missed.
    /// Locks that are taken or released meanwhile may be missing. With an empty --prefix every string key
    /// looks like a lock.
    ///
    ///   exclusive list
    ///   exclusive list 'shop:*'              those whose names begin with shop:
    ///   exclusive list --json | jq -r 'select(.owner == null) | .key'
    #[command(verbatim_doc_comment, after_help = LIST_STATUSES)]
    List {
        /// Which names, as Redis matches them: * ? [abc] [^a] [a-z], and \ before what is meant literally
        #[arg(default_value = "*")]
        pattern: String,
    },
    /// Shows who holds which lock, live, until Ctrl-C
    ///
    /// On a terminal a table is redrawn in place, also over ssh. Elsewhere, with --json, and where TERM is dumb
    /// it writes a line for each change. It looks as list does, once per --interval: a node that goes down, or an outage of
    /// a quorum, is shown and outlasted.
    ///
    /// It cannot know since when a lock is held, only for how long it has itself seen it in the same hands:
    /// "seen for". A lock that is taken and released between two looks is not seen, and two holders in a row
    /// with the same label, or without any, look like one.
    ///
    ///   exclusive watch --interval 5s
    ///   exclusive watch 'shop:*' --json >>locks.jsonl
    #[command(verbatim_doc_comment, after_help = WATCH_STATUSES)]
    Watch {
        /// Which names, as for list
        #[arg(default_value = "*")]
        pattern: String,
        /// The time between two looks
        #[arg(long, value_name = "TIME", default_value = "1s")]
        interval: humantime::Duration,
    },
    /// Takes a lock away from whoever holds it
    ///
    /// For operators who know that the holder is dead, and cannot wait until its lock ends by itself. It
    /// cannot know whether that is so: a holder that lives goes on, beside the next one, until it looks at its
    /// lock or tries to renew it. A node that is down keeps its part of the lock until that ends.
    ///
    /// On a terminal it says who holds the lock and asks, unless told --yes; if the lock is in other hands by
    /// the time of the answer, as far as labels tell, nothing is done. Without a terminal it needs --yes.
    ///
    ///   exclusive break backup
    ///   exclusive break backup --yes --json
    #[command(verbatim_doc_comment, after_help = BREAK_STATUSES)]
    Break {
        /// The lock's name, without the prefix
        key: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

/// Runs a command while holding a lock, as flock(1) does with a file
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
///
///   exclusive run --key backup --no-wait -- pg_dump shop
///   exclusive run --key deploy --wait 10m --owner "$USER" -- ./deploy.sh
#[derive(Args, Debug)]
#[command(verbatim_doc_comment, after_help = RUN_STATUSES)]
pub(crate) struct Run {
    /// The lock's name; those who use the same name exclude each other
    #[arg(long)]
    pub(crate) key: String,
    /// How long the lock stays held when exclusive is killed, or cut off from the nodes
    #[arg(long, value_name = "TIME", default_value = "30s")]
    pub(crate) ttl: humantime::Duration,
    /// Wait no longer than this for the lock [default: as long as it takes]
    #[arg(long, value_name = "TIME")]
    pub(crate) wait: Option<humantime::Duration>,
    /// Do not wait if the lock is held: the same as --wait 0s
    #[arg(long, conflicts_with = "wait")]
    pub(crate) no_wait: bool,
    /// What happens to the command when the lock is lost while it runs
    #[arg(long, value_enum, value_name = "HOW", default_value = "kill")]
    pub(crate) on_lost: OnLost,
    /// The command and its arguments, after `--`
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum OnLost {
    /// It is ended: SIGTERM, and SIGKILL 5 s later
    Kill,
    /// It goes on, and others may run beside it
    Warn,
}

const OUTPUT: &str = "\
Exit status: each command's help has its own; for all of them
  64   bad usage
  69   no quorum of the nodes could be reached, or no nodes were given
  71   the operating system refused something
  77   the nodes deny access: credentials, rights or certificates
  141  nobody reads the output any more
An end by one of these writes one line on standard error that begins with `exclusive: `.

With --json, on standard output:
  a lock     key, held (by a quorum), owner (null without a label), remaining_ms (null if free or endless),
             nodes (that its holder has), needed (for a quorum), total
  watch      the same with event (held, partial, passed, freed) and time; if passed or freed, seen_ms (for how
             long it was seen in the hands it left); if passed, from (whose they were); or event (node_down,
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
  75     the lock is held by another
  77     the nodes deny access: credentials, rights or certificates
  126    the command could not be executed
  127    the command was not found
  128+n  signal n ended the command, or the wait for the lock
Where the command did not run, one line on standard error that begins with `exclusive: ` says why.";

const STATUS_STATUSES: &str = "\
Exit status:
  0   it is held
  1   it is not
  64  bad usage
  69  no quorum of the nodes could be reached, or no nodes were given
  77  the nodes deny access: credentials, rights or certificates";

const LIST_STATUSES: &str = "\
Exit status:
  0   it could be found out, also that there are none
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
  0   there was a lock, or a part of one, and it is taken away
  1   there was none
  2   not confirmed, or in other hands by then: nothing was done
  64  bad usage, also without --yes where there is no terminal to ask at
  69  no quorum of the nodes could be reached, or no nodes were given
  77  the nodes deny access: credentials, rights or certificates";

/// What the arguments ask for: a command, or help.
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

/// Whether they ask for JSON, also if they are wrong otherwise.
pub(crate) fn wants_json(args: &[OsString]) -> bool {
    let mut own = args.iter().take_while(|arg| *arg != "--");
    own.any(|arg| arg == "--json")
}

impl Common {
    /// The nodes' addresses.
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

    /// Blocks for five times the timeout at most.
    pub(crate) fn connect(&self) -> Result<RedisLocker, Refusal> {
        let config = Config::new(self.addresses()?)
            .key_prefix(&self.prefix)
            .owner_label(self.owner.clone().unwrap_or_else(here))
            .node_timeout(*self.timeout)
            .connect_timeout(self.timeout.saturating_mul(5));
        Ok(RedisLocker::connect(config)?)
    }
}

/// `HOST/PID`, as far as a label can be that.
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

/// The message of a usage error without the lines about usage that follow it.
fn in_one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let message = text.split("\n\n").next().unwrap_or(&text);
    let message = message.strip_prefix("error: ").unwrap_or(message);
    let words: Vec<&str> = message.split_whitespace().collect();
    format!("{} (see --help)", words.join(" "))
}
