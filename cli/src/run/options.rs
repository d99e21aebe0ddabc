//! Options of `run`.

use std::ffi::OsString;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::duration;
use crate::failure::{Failure, Result};

/// The longest default of `--grace`.
const MAX_GRACE: Duration = Duration::from_secs(5);

#[derive(Args, Clone, Debug)]
pub(crate) struct RunOptions {
    /// Name of the lock; several are acquired as one lock
    #[arg(long, short, required = true, value_name = "NAME")]
    pub(crate) key: Vec<String>,
    /// Longest wait, for a held lock and for nodes [default: no limit]
    #[arg(long, short, value_name = "TIME", value_parser = duration::parse)]
    pub(crate) wait: Option<Duration>,
    /// Do not wait: the same as --wait 0
    #[arg(long, conflicts_with = "wait")]
    pub(crate) no_wait: bool,
    /// Share it with others of --shared; excludes --exclusive
    #[arg(long, short, conflicts_with_all = ["exclusive", "permits", "fenced", "at_least"])]
    pub(crate) shared: bool,
    /// Hold it alone; excludes --shared
    #[arg(long, short = 'x', conflicts_with_all = ["permits", "at_least"])]
    pub(crate) exclusive: bool,
    /// Hold one of N permits of the semaphore KEY
    #[arg(long, short = 'n', value_name = "N", conflicts_with_all = ["fenced", "at_least"])]
    pub(crate) permits: Option<u32>,
    /// Draw a fencing token
    #[arg(long)]
    pub(crate) fenced: bool,
    /// Keep it for at least this long, against late clocks of other hosts
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    pub(crate) at_least: Option<Duration>,
    /// How long the lock outlives redguard or its network [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    pub(crate) ttl: Option<Duration>,
    /// Owner label for operators [default: HOST/PID]
    #[arg(long, value_name = "LABEL")]
    pub(crate) owner: Option<String>,
    /// Nodes that have just started do not vote for this long
    #[arg(long, value_name = "MAX_TTL", value_parser = duration::parse)]
    pub(crate) quarantine: Option<Duration>,
    /// Status if the lock is held [default: 75]
    #[arg(long, short = 'E', value_name = "N")]
    pub(crate) conflict_exit_code: Option<u8>,
    /// If the lock is lost: `kill` the command, or `warn` [default: kill]
    #[arg(long, value_enum, value_name = "HOW", default_value_t = OnLost::Kill)]
    #[arg(hide_possible_values = true, hide_default_value = true)]
    pub(crate) on_lost: OnLost,
    /// Time from TERM to the end of the lock [default: 5s, at most TTL/3]
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    pub(crate) grace: Option<Duration>,
    /// Own process group for the command [default: without terminal]
    #[arg(long, short)]
    pub(crate) group: bool,
    /// No process group of its own [default: with terminal]
    #[arg(long, conflicts_with_all = ["group", "wait_for_group"])]
    pub(crate) no_group: bool,
    /// Hold the lock until all of the group has ended; implies --group
    #[arg(long)]
    pub(crate) wait_for_group: bool,
    /// Kill the command if redguard is killed (Linux)
    #[arg(long)]
    pub(crate) die_with_parent: bool,
    /// The command and its arguments, after `--`
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnLost {
    /// End the command: TERM, and KILL at the end of the lock
    Kill,
    /// Only warn; other holders may run beside the command
    Warn,
}

impl RunOptions {
    /// Checks what the parser cannot.
    pub(crate) fn validate(&self) -> Result<()> {
        let kinds_of_one_key = self.shared || self.exclusive || self.permits.is_some();
        if self.key.len() > 1 && kinds_of_one_key {
            let line = "several --key are one lock only without --shared, --exclusive and -n";
            return Err(Failure::usage(line));
        }
        if self.die_with_parent && !cfg!(target_os = "linux") {
            return Err(Failure::usage("--die-with-parent is for Linux"));
        }
        Ok(())
    }

    /// Returns the longest wait; `None` without a limit.
    pub(crate) fn wait_limit(&self) -> Option<Duration> {
        if self.no_wait {
            Some(Duration::ZERO)
        } else {
            self.wait
        }
    }

    /// Returns the time between TERM and the end of a lock with this TTL.
    pub(crate) fn grace_of(&self, ttl: Duration) -> Duration {
        self.grace.unwrap_or((ttl / 3).min(MAX_GRACE))
    }

    /// Returns whether the command has a process group of its own.
    pub(crate) fn has_own_group(&self, has_terminal: bool) -> bool {
        self.group || self.wait_for_group || (!self.no_group && !has_terminal)
    }

    /// Returns the names as one text, for messages and the environment.
    pub(crate) fn name(&self) -> String {
        self.key.join(",")
    }
}
