//! Records the locks that threads hold, and checks them after every step. A holder *believes* in a
//! lock while the lease is held by its own clocks.
//!
//! | checked | when |
//! |---|---|
//! | of two holders that exclude each other, at most one believes in its lock (S7, S10) | after each event of the network, and when a guard is returned |
//! | a semaphore has no more holders than permits, and all holders name the same number of permits | likewise: each permit has one holder |
//! | fencing tokens increase in the order in which guards are returned (S12), except where a lock was deleted while its grant was on the way | when a guard is returned |
//! | a lock is local only if no quorum could be reached (S9) | when a guard is returned |
//! | a lock in doubt, as after a suspend, is not said to be held before the nodes have confirmed it (S11) | `doubt.rs`: at the results of `is_held` and `check` |
//! | a lost or endangered lock is told in time, once, and never wrongly (S11, L5) | `reports.rs`: in the callbacks, and after each event of the network |
//! | a lock that its holder believes in is stored on a quorum; a released one is not (S1, S5) | `stored.rs`: at results, and after some events |
//! | values of others are neither overwritten nor deleted (S3) | `stored.rs`: when a guard is returned, and at the end |
//! | the holder of a deleted lock is told by a notice (S11) | `notices.rs`: after each event of the network |
//! | nothing fails while nothing is broken, or while one key alone is in trouble (L2) | at each result, in calm histories; `isolation.rs` |
//! | acquires and releases take a bounded number of round trips; waits end in time (L1, L4) | `waits.rs`: at each result |
//! | what waits for a node does not grow while it is away (L3) | `isolation.rs`: between the steps of a thread |
//! | no lease is held again after its end (S7), no wait outlasts a shutdown, no gate entry its writer (S10) | `ends.rs` |
//! | a lock that is released before its minimum time is kept until then; of several locks one is acquired, and nothing of the others | `choices.rs` |
//! | nothing is left on the servers, no thread, no connection (S4) | `final_state.rs`: at the end |

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use crate::error::error::Error;
use crate::error::loss_reason::LossReason;
use crate::error::node_failure::NodeFailure;
use crate::error::operation::Operation;
use crate::protocol::kind::LeaseKind;
use crate::protocol::lease::Lease;
use crate::protocol::mode::Mode;
use crate::tests::simulation::checker::coverage::Coverage;
use crate::tests::simulation::checker::hold::{Hold, HoldId, HoldState};
use crate::tests::simulation::checker::isolation::NoticedOutage;
use crate::tests::simulation::network::network::Network;
use crate::tests::simulation::plan::plan::Promises;
use crate::tests::simulation::runtime::signal;
use crate::tests::simulation::runtime::simulation::Simulation;
use crate::tests::simulation::world;

/// The number of events of the network between two checks that need not follow each of them.
const EVENTS_PER_CHECK: u32 = 8;

/// The checks of a history.
pub(crate) struct Checker {
    pub(super) simulation: Simulation,
    pub(super) network: Arc<Network>,
    pub(super) promises: Promises,
    /// The steps are told in words.
    records: bool,
    pub(super) state: Mutex<CheckerState>,
}

/// The knowledge of the checker.
#[derive(Default)]
pub(super) struct CheckerState {
    pub(super) holds: Vec<Hold>,
    /// The greatest fencing token of each lock.
    greatest_fence: BTreeMap<String, u64>,
    /// When each lock last became free; `None` if that is not known.
    pub(super) free_since: BTreeMap<String, Option<Instant>>,
    pub(super) coverage: Coverage,
    /// The processes that were paused or suspended, and so found every node late; since when they
    /// run again, by their own clocks, or `None`.
    paused: BTreeMap<usize, Option<Instant>>,
    /// The nodes that are away, by process and node.
    pub(super) outages: BTreeMap<(usize, usize), NoticedOutage>,
    events: u32,
    /// When the first shutdown of a process's nodes began.
    pub(super) shut_down: BTreeMap<usize, Instant>,
}

impl CheckerState {
    /// Returns since when a process has run without a pause, from `begun` on, by its own clock;
    /// `None` while it is paused.
    pub(super) fn awake_since(&self, process: usize, begun: Instant) -> Option<Instant> {
        match self.paused.get(&process) {
            Some(resumed) => resumed.map(|resumed| resumed.max(begun)),
            None => Some(begun),
        }
    }

    pub(super) fn was_paused(&self, process: usize) -> bool {
        self.paused.contains_key(&process)
    }

    /// Returns whether another guard of the same lock was returned after this one.
    fn is_followed(&self, hold: HoldId) -> bool {
        let own = &self.holds[hold];
        let mut later = self.holds[hold + 1..].iter();
        later.any(|other| other.conflicts_by_key(own))
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

    /// Checks all that holds at each moment.
    pub(crate) fn check_event(&self) {
        self.check_overlaps();
        self.check_revived();
        self.check_reports();
        self.check_notices();
        self.see_extensions();
        let is_due = self.with(|state| {
            state.events += 1;
            state.events.is_multiple_of(EVENTS_PER_CHECK)
        });
        if is_due {
            self.check_stored(|_| true);
        }
    }

    /// Checks that no two holders that exclude each other believe in their locks.
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
        if mode == Mode::Local && !hold.is_of_process() {
            self.check_local(&hold);
        }
        if let Some(asked) = asked.filter(|_| self.promises.wakes) {
            self.check_wake_up(&hold, asked);
        }
        let id = self.with(|state| {
            state.coverage.count(match (mode, lease.kind()) {
                _ if hold.is_of_process() => "locks of one process",
                (Mode::Local, _) => "local locks",
                (_, LeaseKind::Exclusive) => "exclusive locks",
                (_, LeaseKind::Read) => "read locks",
                (_, LeaseKind::Write) => "write locks",
                (_, LeaseKind::Permit { .. }) => "permits",
                (_, LeaseKind::GateEntry) => "gate entries",
            });
            state.holds.push(hold);
            let id = state.holds.len() - 1;
            state.count_permits(id);
            id
        });
        self.check_overlaps();
        self.check_stored(|hold| hold == id);
        self.check_strangers_lock(id);
        id
    }

    /// Checks that a lock is held in one process alone only if no quorum could be reached (S9): an
    /// error reply proves the opposite.
    fn check_local(&self, hold: &Hold) {
        if self.with(|state| state.was_paused(hold.process)) {
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
                let greatest = state.greatest_fence.entry(lock).or_default();
                let former = *greatest;
                *greatest = former.max(token);
                former
            });
            // The reply to a grant may arrive after the lock was deleted and granted to another
            // caller, whose token is greater then, as it has to be.
            let may_be_late = hold.is_taken_away() && former != token;
            if former >= token && !may_be_late {
                self.report(format!(
                    "fencing token {token} after {former}: {}",
                    hold.describe()
                ));
            }
        }
    }

    /// Records that the end of a guard begins.
    pub(crate) fn end(&self, hold: HoldId) {
        let now = signal::true_time();
        self.with(|state| {
            let rest = state.holds[hold].end();
            if !rest.is_zero() {
                state.coverage.count("kept locks");
            }
            state.set_free(hold, Some(now + rest));
        });
    }

    /// Records that a release has ended.
    pub(crate) fn released(&self, hold: HoldId, result: &Result<(), Error>) {
        let now = signal::true_time();
        let (text, may_fail, was_kept) = self.with(|state| {
            let text = state.holds[hold].describe();
            let may_fail = state.holds[hold].may_fail();
            let was_kept = matches!(state.holds[hold].state, HoldState::Kept { .. });
            let rest = state.holds[hold].release_ended(result);
            // The next thread may have the lock by a handoff, and may have detached it.
            if !state.is_followed(hold) {
                state.set_free(hold, Some(now + rest));
            }
            state.coverage.count(match result {
                Ok(()) => "releases by a quorum",
                Err(Error::LockLost { .. }) => "releases of lost locks",
                Err(_) => "releases without a quorum",
            });
            (text, may_fail, was_kept)
        });
        self.note(|| format!("released, {result:?}: {text}"));
        if result.is_ok() && !was_kept {
            self.check_released(hold);
        }
        if !may_fail {
            self.expect_calm("release", result.as_ref().err());
        }
    }

    /// Records a detached lock. Nobody else holds it until its lease ends or it is adopted.
    pub(crate) fn detached(&self, hold: HoldId, expiry: Option<Instant>) {
        self.with(|state| {
            state.coverage.count("detached locks");
            state.set_free(hold, None);
            let held = &mut state.holds[hold];
            held.state = expiry.map_or(HoldState::Ended, HoldState::Detached);
            if held.is_in_doubt() {
                held.suspended();
            }
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
        self.with(|state| state.paused.insert(process, None));
    }

    /// Records that a process runs again.
    pub(crate) fn process_resumed(&self, process: usize) {
        let now = world::clock_of(process);
        self.with(|state| state.paused.insert(process, Some(now)));
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
    pub(crate) fn may_fail(&self, hold: HoldId) -> bool {
        self.with(|state| state.holds[hold].may_fail())
    }

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
}

/// Returns whether a release began at the end of a shutdown, when another thread of its process had
/// ended workers: the lock is left to its TTL. Nodes that never granted it may have replied.
fn met_stopped_workers(error: &Error) -> bool {
    let stopped = NodeFailure::Unreachable("the worker has stopped".to_owned());
    matches!(error, Error::InsufficientQuorum { operation: Operation::Release, causes, .. }
        if causes.iter().any(|cause| cause.failure == stopped))
}
