//! The parts of a plan.

use std::time::Duration;

use crate::tests::simulation::network::fault::TimedChange;
use crate::tests::simulation::network::link::Delays;
use crate::tests::simulation::plan::locks::{
    DISPUTED_SEMAPHORE, FORCED_LOCK, FOREIGN_LOCK, STOLEN_LOCK, STRANGERS_LOCK, TROUBLED_LOCK,
};

/// All that a history does. Its interleaving is drawn from the seed while it runs.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) delays: Delays,
    pub(crate) servers: Vec<ClockPlan>,
    pub(crate) processes: Vec<ProcessPlan>,
    pub(crate) faults: Vec<(Duration, Fault)>,
    /// When all faults end.
    pub(crate) calm_at: Duration,
    /// The longest TTL.
    pub(crate) max_ttl: Duration,
    /// The promises beyond safety.
    pub(crate) promises: Promises,
}

/// The promises that a history can check, given its faults.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Promises {
    /// Nothing fails: no fault, and clocks and delays within all limits.
    pub(crate) is_calm: bool,
    /// No token is left behind until its TTL ends.
    pub(crate) leaves_nothing: bool,
    /// A release wakes a waiter at once.
    pub(crate) wakes: bool,
    /// No server loses its data.
    pub(crate) keeps_data: bool,
    /// A worker that reconnects ends its former connection, so that nothing of it runs later.
    pub(crate) kills_connections: bool,
}

/// The clock of a server or process.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ClockPlan {
    /// How far it is ahead, in µs.
    pub(crate) offset: i64,
    /// The excess of its rate over that of true time, in millionths.
    pub(crate) rate: i64,
}

/// One process, with its own `Nodes`.
#[derive(Clone, Debug)]
pub(crate) struct ProcessPlan {
    pub(crate) clock: ClockPlan,
    pub(crate) starts_at: Duration,
    pub(crate) settings: SettingsPlan,
    pub(crate) threads: Vec<Vec<Step>>,
    /// Ends by `shutdown` with this grace; otherwise by dropping the last handle.
    pub(crate) shutdown: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct SettingsPlan {
    pub(crate) node_timeout: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) pool_size: usize,
    pub(crate) min_validity: f64,
    pub(crate) initial_delay: Duration,
    pub(crate) max_delay: Duration,
    pub(crate) max_attempts: Option<u32>,
    pub(crate) max_outage: Duration,
    pub(crate) background_drop: bool,
    pub(crate) breaker_threshold: u32,
    pub(crate) breaker_open_for: Duration,
    pub(crate) degraded: bool,
    pub(crate) quarantine: bool,
}

/// A step of a thread.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Acquire(AcquirePlan),
    /// Adopts a lock that another thread has detached, if there is one.
    Adopt {
        ttl: Duration,
        renewed: bool,
        hold: Duration,
    },
    Holder(usize),
    /// Acquires and releases the thread's own lock again and again, and fails to acquire another.
    Churn {
        times: u32,
        pause: Duration,
    },
    ForceRelease,
    Health,
    Sleep(Duration),
    /// Shuts the process's nodes down, in the midst of all else.
    ShutDown(Duration),
}

/// The locks that an acquire asks for. Numbers name locks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Exclusive(usize),
    All(Vec<usize>),
    /// The first of them that is free, in this order.
    Any(Vec<usize>),
    Read(usize),
    Write(usize),
    Permit {
        lock: usize,
        total: u32,
    },
    /// The first of these locks of its process alone that is free, in this order.
    OfProcess(Vec<usize>),
}

impl Target {
    /// Returns the number of the first lock.
    pub(crate) fn lock(&self) -> usize {
        match self {
            Target::Exclusive(lock) | Target::Read(lock) | Target::Write(lock) => *lock,
            Target::Permit { lock, .. } => *lock,
            Target::All(locks) | Target::Any(locks) | Target::OfProcess(locks) => {
                locks.iter().copied().min().unwrap_or_default()
            }
        }
    }

    /// Returns whether calls for the lock may fail although nothing else does.
    pub(crate) fn may_fail(&self) -> bool {
        matches!(
            self.lock(),
            FORCED_LOCK | STOLEN_LOCK | TROUBLED_LOCK | DISPUTED_SEMAPHORE
        )
    }

    /// Returns whether a wait for the lock might never end by itself.
    pub(crate) fn is_never_free(&self) -> bool {
        matches!(self.lock(), FOREIGN_LOCK | STRANGERS_LOCK)
    }
}

/// An acquire and the life of its guard.
#[derive(Clone, Debug)]
pub(crate) struct AcquirePlan {
    pub(crate) target: Target,
    pub(crate) ttl: Duration,
    pub(crate) wait: WaitPlan,
    pub(crate) fenced: bool,
    pub(crate) renewed: bool,
    pub(crate) max_renewal: Option<Duration>,
    /// How long after the acquire a release frees the lock at the earliest.
    pub(crate) min_hold: Option<Duration>,
    pub(crate) told: bool,
    /// The margin of `on_endangered`, if it is used.
    pub(crate) margin: Option<Duration>,
    pub(crate) cancel_after: Option<Duration>,
    pub(crate) during: Vec<Act>,
    pub(crate) end: GuardEnd,
}

impl AcquirePlan {
    /// Returns an acquire without options, which ends with a release.
    pub(super) fn plain(
        target: Target,
        ttl: Duration,
        wait: WaitPlan,
        during: Vec<Act>,
    ) -> AcquirePlan {
        AcquirePlan {
            target,
            ttl,
            wait,
            fenced: false,
            renewed: false,
            max_renewal: None,
            min_hold: None,
            told: false,
            margin: None,
            cancel_after: None,
            during,
            end: GuardEnd::Release,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitPlan {
    Try,
    For(Duration),
    Policy,
}

/// An action of a thread that has a guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    Hold(Duration),
    Check,
    Extend(Duration),
    StopRenewal,
    Downgrade,
    Watch(Duration),
}

/// The end of a guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GuardEnd {
    Release,
    Drop,
    Detach,
    /// The guard is kept until its process ends.
    Keep,
}

/// A fault of the network or of a process.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    Network(TimedChange),
    Pause {
        process: usize,
        lasts: Duration,
    },
    /// The machine of a process is suspended: its steady clock stands still, its wall clock goes
    /// on.
    Suspend {
        process: usize,
        lasts: Duration,
    },
    Kill {
        process: usize,
        is_silent: bool,
    },
    /// The wall clock of a process is set by this many µs.
    StepWall {
        process: usize,
        by: i64,
    },
}

impl Plan {
    /// Returns how long its threads hold locks, if they do so one after the other.
    pub(crate) fn holding_time(&self) -> Duration {
        let threads = self.processes.iter().flat_map(|process| &process.threads);
        let acts = threads.flatten().flat_map(|step| match step {
            Step::Acquire(acquire) => &acquire.during[..],
            _ => &[],
        });
        let times = acts.map(|act| match act {
            Act::Hold(time) | Act::Watch(time) => *time,
            _ => Duration::ZERO,
        });
        times.sum()
    }

    /// Returns whether no fault concerns a process: a wall clock that is set back hides a suspend.
    pub(super) fn has_constant_clocks(&self) -> bool {
        let mut faults = self.faults.iter();
        faults.all(|(_, fault)| matches!(fault, Fault::Network(_)))
    }

    pub(super) fn suspend(&mut self, process: usize, at: Duration, lasts: Duration) {
        self.faults.push((at, Fault::Suspend { process, lasts }));
        self.calm_at = self.calm_at.max(at + lasts);
    }

    /// Returns the number of operations and faults, which shrinking lowers.
    pub(crate) fn size(&self) -> usize {
        let threads = self.processes.iter().flat_map(|process| &process.threads);
        let steps = threads.map(|steps| {
            let acts = steps.iter().map(|step| match step {
                Step::Acquire(acquire) => acquire.during.len() + 1,
                _ => 1,
            });
            acts.sum::<usize>() + 1
        });
        steps.sum::<usize>() + self.faults.len() + self.processes.len()
    }
}
