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
    /// Name of the lock; several are one lock
    #[arg(long, short, required = true, value_name = "NAME")]
    pub(crate) key: Vec<String>,
    /// Longest wait, for nodes, too [default: no limit]
    #[arg(long, short, value_name = "TIME", value_parser = duration::parse)]
    pub(crate) wait: Option<Duration>,
    /// Do not wait: the same as --wait 0
    #[arg(long, conflicts_with = "wait")]
    pub(crate) no_wait: bool,
    /// Take the read lock of NAME
    ///
    /// It is shared with others of --shared and excludes --exclusive.
    #[arg(long, short, conflicts_with_all = ["exclusive", "permits", "fenced", "at_least"])]
    pub(crate) shared: bool,
    /// Take the write lock of NAME
    ///
    /// It excludes --shared and --exclusive.
    #[arg(long, short = 'x', conflicts_with_all = ["permits", "at_least"])]
    pub(crate) exclusive: bool,
    /// Take one of the N permits of the semaphore NAME
    #[arg(long, short = 'n', value_name = "N", conflicts_with_all = ["fenced", "at_least"])]
    pub(crate) permits: Option<u32>,
    /// Draw a fencing token
    ///
    /// It grows from holder to holder, for the store that the command writes to.
    #[arg(long)]
    pub(crate) fenced: bool,
    /// Keep it at least so long after the acquire
    ///
    /// So that a host with a late clock does not run a short job again.
    /// Without --ttl the TTL is at least that time.
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    pub(crate) at_least: Option<Duration>,
    /// How long it outlives redguard [default: 30s]
    ///
    /// It also outlives the network of redguard for so long, and is renewed after a third of it.
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    pub(crate) ttl: Option<Duration>,
    /// Owner label for operators [default: HOST/PID]
    #[arg(long, value_name = "LABEL")]
    pub(crate) owner: Option<String>,
    /// Nodes do not vote for so long after their start
    ///
    /// For nodes that forget locks when they restart. All clients need the same.
    #[arg(long, value_name = "MAX_TTL", value_parser = duration::parse)]
    pub(crate) quarantine: Option<Duration>,
    /// Status if the lock is held [default: 75]
    #[arg(long, short = 'E', value_name = "N")]
    pub(crate) conflict_exit_code: Option<u8>,
    /// `kill` the command, or `warn` [default: kill]
    ///
    /// If the lock is lost.
    #[arg(long, value_enum, value_name = "HOW", default_value_t = OnLost::Kill)]
    #[arg(hide_possible_values = true, hide_default_value = true)]
    pub(crate) on_lost: OnLost,
    /// From TERM to KILL at a loss [default: 5s, TTL/3]
    ///
    /// The default is the shorter of the two.
    /// TERM is sent so long before the lock ends, while renewals fail.
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    pub(crate) grace: Option<Duration>,
    /// Own process group [default: without terminal]
    ///
    /// For the command, and signals go to all of it.
    #[arg(long, short)]
    pub(crate) group: bool,
    /// No own process group [default: with terminal]
    #[arg(long, conflicts_with_all = ["group", "wait_for_group"])]
    pub(crate) no_group: bool,
    /// Hold the lock until the whole group has ended
    ///
    /// Implies --group.
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
