//! Records what threads hold, and checks it after every step.
//!
//! | checked | when |
//! |---|---|
//! | two threads hold what excludes only if one of them knows better by its own clock (S7, S10) | after each event of the network, and when a guard is returned |
//! | permits are within their number | likewise: each permit has one holder |
//! | fencing tokens increase in the order in which guards are returned (S12) | when a guard is returned |
//! | a lock is local only if no quorum could be reached (S9) | when a guard is returned |
//! | a loss is told once, and never of a lock that is held or released (S11) | in the callback |
//! | nothing fails while nothing is broken | at each result, in calm histories |

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::{Error, LossReason, NodeFailure};
use crate::protocol::kind::LeaseKind;
use crate::protocol::lease::{Lease, LeaseState};
use crate::protocol::mode::Mode;
use crate::tests::simulation::checker::coverage::Coverage;
use crate::tests::simulation::checker::hold::{Hold, HoldId, HoldState};
use crate::tests::simulation::network::network::Network;
use crate::tests::simulation::plan::plan::Promises;
use crate::tests::simulation::runtime::signal;
use crate::tests::simulation::runtime::simulation::Simulation;
use crate::tests::simulation::world;

/// How long a waiter may take for a lock that was released, if messages wake it.
const MAX_WAKE_UP: Duration = Duration::from_millis(1_000);

/// The checks of a history.
pub(crate) struct Checker {
    pub(super) simulation: Simulation,
    pub(super) network: Arc<Network>,
    pub(super) promises: Promises,
    /// The steps are told in words.
    records: bool,
    pub(super) state: Mutex<CheckerState>,
}

/// What the checker knows.
#[derive(Default)]
pub(super) struct CheckerState {
    pub(super) holds: Vec<Hold>,
    /// The last fencing token of each lock.
    last_fence: BTreeMap<String, u64>,
    /// When each lock last became free; `None` if that is not known.
    free_since: BTreeMap<String, Option<Instant>>,
    pub(super) coverage: Coverage,
    /// The processes that were paused, and so found every node late.
    paused: Vec<usize>,
}

impl CheckerState {
    /// Records since when the lock of a hold is free; `None` if that is not known.
    fn set_free(&mut self, hold: HoldId, since: Option<Instant>) {
        for lock in self.holds[hold].locks() {
            self.free_since.insert(lock, since);
        }
    }

    /// Returns whether another guard of the same lock was returned after this one.
    fn is_followed(&self, hold: HoldId) -> bool {
        let own = &self.holds[hold];
        let mut later = self.holds[hold + 1..].iter();
        later.any(|other| other.shares_key(own))
    }
}

impl Checker {
    pub(crate) fn new(
        simulation: Simulation,
        network: &Arc<Network>,
        promises: Promises,
        records: bool,
    ) -> Checker {
        Checker {
            simulation,
            network: Arc::clone(network),
            promises,
            records,
            state: Mutex::default(),
        }
    }

    pub(super) fn with<T>(&self, body: impl FnOnce(&mut CheckerState) -> T) -> T {
        signal::uninterrupted(|| body(&mut self.state.lock()))
    }

    pub(crate) fn count(&self, event: &'static str) {
        self.with(|state| state.coverage.count(event));
    }

    /// Adds a line to the recorded history.
    pub(crate) fn note(&self, line: impl FnOnce() -> String) {
        world::note(self.simulation, self.records, line);
    }

    pub(crate) fn report(&self, text: String) {
        self.simulation.fail(text);
    }

    pub(crate) fn coverage(&self) -> Coverage {
        self.with(|state| state.coverage.clone())
    }

    /// Checks that no two threads hold what excludes.
    pub(crate) fn check_overlaps(&self) {
        let overlap = self.with(|state| {
            let believed: Vec<&Hold> = state.holds.iter().filter(|hold| hold.believes()).collect();
            let mut pairs = believed
                .iter()
                .enumerate()
                .flat_map(|(n, one)| believed[n + 1..].iter().map(move |other| (one, other)));
            let (one, other) = pairs.find(|(one, other)| one.excludes(other))?;
            Some(format!("{} while {}", one.describe(), other.describe()))
        });
        if let Some(overlap) = overlap {
            self.report(format!("overlap: {overlap}"));
        }
    }

    /// Records a guard that an acquire has returned. `asked` is when the thread asked, if it waits
    /// without a limit.
    pub(crate) fn acquired(
        &self,
        process: usize,
        thread: usize,
        (lease, mode): (&Arc<Lease>, Mode),
        asked: Option<Instant>,
    ) -> HoldId {
        let hold = Hold::new(process, thread, lease, mode);
        self.note(|| hold.describe());
        self.check_fence(&hold);
        if mode == Mode::Local {
            self.check_local(&hold);
        }
        let is_checked = self.promises.wakes && lease.kind() == LeaseKind::Exclusive;
        if let Some(asked) = asked.filter(|_| is_checked) {
            self.check_wake_up(&hold, asked);
        }
        let id = self.with(|state| {
            state.coverage.count(match (mode, lease.kind()) {
                (Mode::Local, _) => "local locks",
                (_, LeaseKind::Exclusive) => "exclusive locks",
                (_, LeaseKind::Read) => "read locks",
                (_, LeaseKind::Write) => "write locks",
                (_, LeaseKind::Permit { .. }) => "permits",
                (_, LeaseKind::GateEntry) => "gate entries",
            });
            state.holds.push(hold);
            state.holds.len() - 1
        });
        self.check_overlaps();
        id
    }

    /// Checks that a lock is held in one process alone only if no quorum could be reached (S9): an
    /// error reply proves the opposite.
    fn check_local(&self, hold: &Hold) {
        if self.with(|state| state.paused.contains(&hold.process)) {
            return;
        }
        let (steady, total, has_late_packets) = self.network.with(|state, _| {
            let steady = state.servers.iter().filter(|server| !server.had_outage);
            (
                steady.count(),
                state.servers.len(),
                state.has_late_packets(),
            )
        });
        if steady > total / 2 && !has_late_packets {
            self.report(format!(
                "local lock with a quorum in reach: {}",
                hold.describe()
            ));
        }
    }

    /// Checks the order of fencing tokens. A guard that is returned after its lease has ended does
    /// not count.
    fn check_fence(&self, hold: &Hold) {
        let Some(token) = hold.lease.fencing_token().filter(|_| hold.believes()) else {
            return;
        };
        for lock in hold.locks() {
            let former = self.with(|state| {
                state.coverage.count("fencing tokens");
                state.last_fence.insert(lock, token)
            });
            if former.is_some_and(|former| former >= token) {
                self.report(format!(
                    "fencing token {token} after {former:?}: {}",
                    hold.describe()
                ));
            }
        }
    }

    /// Checks that a waiter did not sleep on while the lock was free (L4).
    fn check_wake_up(&self, hold: &Hold, asked: Instant) {
        let since = self.with(|state| {
            let free = hold.locks();
            let free = free.filter_map(|lock| state.free_since.get(&lock).copied());
            let free: Option<Vec<Instant>> = free.collect();
            free?.into_iter().max().map(|free| free.max(asked))
        });
        let waited = since.map(|since| signal::true_time().saturating_duration_since(since));
        if let Some(waited) = waited.filter(|waited| *waited > MAX_WAKE_UP) {
            self.report(format!("woken {waited:?} late: {}", hold.describe()));
        }
    }

    /// Records that the end of a guard begins.
    pub(crate) fn end(&self, hold: HoldId) {
        let now = signal::true_time();
        self.with(|state| {
            state.holds[hold].state = HoldState::Ended;
            state.set_free(hold, Some(now));
        });
    }

    /// Records that a release has ended.
    pub(crate) fn released(&self, hold: HoldId, result: &Result<(), Error>) {
        let now = signal::true_time();
        let (text, is_forced) = self.with(|state| {
            let text = state.holds[hold].describe();
            let is_forced = state.holds[hold].is_forced();
            // The next thread may have the lock by a handoff, and may have detached it.
            if !state.is_followed(hold) {
                state.set_free(hold, Some(now));
            }
            state.coverage.count(match result {
                Ok(()) => "releases by a quorum",
                Err(Error::LockLost { .. }) => "releases of lost locks",
                Err(_) => "releases without a quorum",
            });
            (text, is_forced)
        });
        self.note(|| format!("released, {result:?}: {text}"));
        if !is_forced {
            self.expect_calm("release", result.as_ref().err());
        }
    }

    /// Records a detached lock. Nobody else holds it until its lease ends or it is adopted.
    pub(crate) fn detached(&self, hold: HoldId, expiry: Option<Instant>) {
        self.with(|state| {
            state.coverage.count("detached locks");
            state.set_free(hold, None);
            state.holds[hold].state = expiry.map_or(HoldState::Ended, HoldState::Detached);
        });
    }

    /// Records that a downgrade of a write lock begins.
    pub(crate) fn downgrading(&self, hold: HoldId) {
        self.with(|state| state.holds[hold].is_downgraded = true);
    }

    /// Records that another thread begins to adopt a detached lock.
    pub(crate) fn adopting(&self, hold: HoldId) {
        self.with(|state| state.holds[hold].state = HoldState::Adopted);
    }

    /// Asks for a count of the calls of `on_lost` for a guard.
    pub(crate) fn expect_told(&self, hold: HoldId) {
        self.with(|state| {
            state.holds[hold].told.get_or_insert(0);
        });
    }

    /// Records a call of `on_lost`.
    pub(crate) fn told(&self, lease: &Arc<Lease>) {
        let wrong = self.with(|state| {
            state.coverage.count("losses told");
            let hold = state
                .holds
                .iter_mut()
                .find(|hold| Arc::ptr_eq(&hold.lease, lease))?;
            let told = hold.told.get_or_insert(0);
            *told += 1;
            let (told, now) = (*told, world::clock_of(hold.process));
            let is_held = matches!(lease.peek(now), LeaseState::Held(_));
            let is_wrong = told > 1 || is_held || lease.loss_reason(now).is_none();
            is_wrong.then(|| format!("told {told} times, held: {is_held}: {}", hold.describe()))
        });
        if let Some(wrong) = wrong {
            self.report(format!("loss {wrong}"));
        }
    }

    /// Checks that nothing fails in a calm history. A cancelled or closed acquire is no failure.
    pub(crate) fn expect_calm(&self, what: &str, error: Option<&Error>) {
        let is_expected = error.is_none_or(|error| {
            let is_shut_down = matches!(
                error,
                Error::Cancelled
                    | Error::Closed
                    | Error::LockLost {
                        reason: LossReason::ShutDown,
                        ..
                    }
            );
            error.is_contended() || is_shut_down || met_stopped_workers(error)
        });
        if self.promises.is_calm && !is_expected {
            self.report(format!("{what} failed in a calm history: {error:?}"));
        }
    }

    /// Records that a process is paused.
    pub(crate) fn process_paused(&self, process: usize) {
        self.with(|state| state.paused.push(process));
    }

    /// Forgets what a killed process held.
    pub(crate) fn process_ended(&self, process: usize) {
        self.with(|state| {
            for hold in &mut state.holds {
                if hold.process == process && hold.state == HoldState::Held {
                    hold.state = HoldState::Ended;
                }
            }
        });
    }
}

impl Checker {
    pub(crate) fn is_calm(&self) -> bool {
        self.promises.is_calm
    }

    /// Reports a renewed lock that was lost although nothing failed.
    pub(crate) fn lost_in_calm(&self, hold: HoldId) {
        let text = self.with(|state| {
            let hold = &state.holds[hold];
            let is_shut_down =
                hold.lease.loss_reason(world::clock_of(hold.process)) == Some(LossReason::ShutDown);
            (!is_shut_down).then(|| hold.describe())
        });
        if let Some(text) = text {
            self.report(format!("renewed lock lost in a calm history: {text}"));
        }
    }

    /// Checks the result of `check`, which began at `before` by the clock of the process: a lock
    /// whose validity had ended by then is not held.
    pub(crate) fn checked(&self, hold: HoldId, before: Instant, is_ok: bool) {
        let wrong = self.with(|state| {
            let hold = &state.holds[hold];
            let had_ended = !matches!(hold.lease.peek(before), LeaseState::Held(_));
            (is_ok && had_ended).then(|| hold.describe())
        });
        if let Some(wrong) = wrong {
            self.report(format!("lost lock is said to be held: {wrong}"));
        }
        self.check_overlaps();
    }
}

/// Returns whether a request found that another thread of its process had ended the workers, as a
/// release may that begins at the end of a shutdown.
fn met_stopped_workers(error: &Error) -> bool {
    let stopped = NodeFailure::Unreachable("the worker has stopped".to_owned());
    matches!(error, Error::InsufficientQuorum { causes, .. }
        if causes.iter().all(|cause| cause.failure == stopped))
}
