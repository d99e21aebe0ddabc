//! Tells a plan in words.

use std::fmt;

use crate::tests::simulation::plan::locks::{
    FORCED_LOCK, FOREIGN_LOCK, STOLEN_LOCK, STRANGERS_LOCK, TROUBLED_LOCK,
};
use crate::tests::simulation::plan::plan::{
    AcquirePlan, Act, Fault, GuardEnd, Plan, Step, Target, WaitPlan,
};

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let servers = self.servers.len();
        writeln!(f, "{servers} servers; packets take {:?}", self.delays)?;
        for (number, process) in self.processes.iter().enumerate() {
            if process.threads.iter().all(Vec::is_empty) {
                continue;
            }
            let (at, settings) = (process.starts_at, process.settings);
            writeln!(f, "process {number} starts after {at:?} with {settings:?}")?;
            for (thread, steps) in process.threads.iter().enumerate() {
                for step in steps {
                    writeln!(f, "  thread {thread} {step}")?;
                }
            }
        }
        for (at, fault) in &self.faults {
            writeln!(f, "after {at:?}: {fault}")?;
        }
        writeln!(f, "all faults end after {:?}", self.calm_at)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Acquire(plan) => write!(f, "{plan}"),
            Step::Adopt { ttl, hold, .. } => {
                write!(
                    f,
                    "adopts a detached lock for {ttl:?}, holds it for {hold:?}"
                )
            }
            Step::Holder(lock) => write!(f, "asks for the holder of lock {lock}"),
            Step::Churn { times, pause } => {
                write!(f, "acquires its own lock {times} times, every {pause:?}")
            }
            Step::ForceRelease => write!(f, "deletes the forced lock"),
            Step::Health => write!(f, "asks for health and stats, and waits for a quorum"),
            Step::Sleep(time) => write!(f, "sleeps for {time:?}"),
            Step::ShutDown(grace) => write!(f, "shuts down within {grace:?}"),
        }
    }
}

impl fmt::Display for AcquirePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match self.wait {
            WaitPlan::Try => "tries to acquire".to_owned(),
            WaitPlan::For(limit) => format!("waits for at most {limit:?} to acquire"),
            WaitPlan::Policy => "acquires".to_owned(),
        };
        write!(f, "{verb} {} for {:?}", self.target, self.ttl)?;
        for (word, is_set) in [
            ("fenced", self.fenced),
            ("renewed", self.renewed),
            ("told", self.told),
        ] {
            if is_set {
                write!(f, ", {word}")?;
            }
        }
        if let Some(min_hold) = self.min_hold {
            write!(f, ", kept for at least {min_hold:?}")?;
        }
        if let Some(margin) = self.margin {
            write!(f, ", warned {margin:?} before its end")?;
        }
        if let Some(after) = self.cancel_after {
            write!(f, ", cancelled after {after:?}")?;
        }
        for act in &self.during {
            write!(f, "; {act}")?;
        }
        let end = match self.end {
            GuardEnd::Release => "releases it",
            GuardEnd::Drop => "drops it",
            GuardEnd::Detach => "detaches it",
            GuardEnd::Keep => "keeps it to the end",
        };
        write!(f, "; {end}")
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Exclusive(lock) => write!(f, "lock {lock}"),
            Target::All(locks) => write!(f, "locks {locks:?}"),
            Target::Any(locks) => write!(f, "any of locks {locks:?}"),
            Target::OfProcess(locks) => write!(f, "any of the process's locks {locks:?}"),
            Target::Read(lock) => write!(f, "read lock {lock}"),
            Target::Write(lock) => write!(f, "write lock {lock}"),
            Target::Permit { lock, total } => write!(f, "one of {total} permits of {lock}"),
        }?;
        match self.lock() {
            FOREIGN_LOCK => write!(f, " (with a value of another type)"),
            FORCED_LOCK => write!(f, " (which others delete)"),
            STOLEN_LOCK => write!(f, " (which others overwrite)"),
            STRANGERS_LOCK => write!(f, " (which another client holds)"),
            TROUBLED_LOCK => write!(f, " (in trouble)"),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Act::Hold(time) => write!(f, "holds it for {time:?}"),
            Act::Check => write!(f, "checks it"),
            Act::Extend(ttl) => write!(f, "extends it for {ttl:?}"),
            Act::StopRenewal => write!(f, "stops its renewal"),
            Act::Downgrade => write!(f, "downgrades it"),
            Act::Watch(limit) => write!(f, "watches it for {limit:?}"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Network(change) => write!(f, "{change}"),
            Fault::Pause { process, lasts } => {
                write!(f, "process {process} is paused for {lasts:?}")
            }
            Fault::Suspend { process, lasts } => {
                write!(f, "process {process} is suspended for {lasts:?}")
            }
            Fault::Kill { process, .. } => write!(f, "process {process} is killed"),
            Fault::StepWall { process, by } => {
                write!(f, "the wall clock of process {process} is set by {by} µs")
            }
        }
    }
}
