//! A lock that a thread holds, as the checker sees it.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Instant;

use crate::protocol::kind::{LeaseKind, LockKind};
use crate::protocol::lease::{Lease, LeaseState};
use crate::protocol::mode::Mode;
use crate::tests::simulation::checker::reports::Reports;
use crate::tests::simulation::network::server::lock_name;
use crate::tests::simulation::plan::locks::{
    FORCED_LOCK, PROCESS_LOCKS, STOLEN_LOCK, TROUBLED_LOCK,
};
use crate::tests::simulation::world;

/// The number of a hold in its history.
pub(crate) type HoldId = usize;

/// One guard, from the moment it is returned.
#[derive(Clone)]
pub(crate) struct Hold {
    pub(super) process: usize,
    pub(super) thread: usize,
    pub(super) lease: Arc<Lease>,
    pub(super) is_local: bool,
    /// The holder has begun to downgrade its write lock.
    pub(super) is_downgraded: bool,
    pub(super) state: HoldState,
    /// The reports of its callbacks; `None` without callbacks.
    pub(super) reports: Option<Arc<Reports>>,
    /// Since when its thread waits with a watch, by the clock of the process.
    pub(super) watched_since: Option<Instant>,
    /// When the checker saw the lock taken away while its process listened for notices, by the
    /// clock of the process.
    pub(super) noticed_since: Option<Instant>,
    /// When the checker first saw the loss, by the clock of the process.
    pub(super) lost_since: Cell<Option<Instant>>,
    /// The checker saw the lease lost or released.
    pub(super) has_ended: Cell<bool>,
    /// For each server whether it has stored the lock since the extension in progress began; `None`
    /// without one.
    pub(super) stored_since: Option<Vec<bool>>,
}

/// The use of a guard by its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HoldState {
    /// The guard is held.
    Held,
    /// The lock waits for another process to adopt it, until this moment by the clock of the
    /// process that detached it.
    Detached(Instant),
    /// Another thread adopts the lock, or has adopted it. Nodes that it did not reach keep the
    /// former token until its TTL ends.
    Adopted,
    /// The guard has ended, or its end has begun, before the minimum time of the lock. By the clock
    /// of the process nobody else holds it until `until`, and until `released` if a quorum has
    /// released it.
    Kept { until: Instant, released: Instant },
    /// The guard has ended, or its end has begun.
    Ended,
}

impl Hold {
    pub(super) fn new(process: usize, thread: usize, lease: &Arc<Lease>, mode: Mode) -> Hold {
        Hold {
            process,
            thread,
            lease: Arc::clone(lease),
            is_local: mode == Mode::Local,
            is_downgraded: false,
            state: HoldState::Held,
            reports: None,
            watched_since: None,
            noticed_since: None,
            lost_since: Cell::new(None),
            has_ended: Cell::new(false),
            stored_since: None,
        }
    }

    /// Returns whether the holder believes in the lock: its lease is held by its own clocks. It does
    /// nothing during a suspend, and is in doubt afterwards by its wall clock.
    pub(super) fn believes(&self) -> bool {
        let now = || world::clock_of(self.process);
        match self.state {
            HoldState::Held => {
                let is_held = matches!(self.lease.peek(now()), LeaseState::Held(_));
                is_held && !self.is_in_doubt() && !world::is_suspended(self.process)
            }
            HoldState::Detached(until) | HoldState::Kept { until, .. } => now() < until,
            HoldState::Adopted | HoldState::Ended => false,
        }
    }

    /// Returns the kind and name of each lock of the hold, with the process of a local one.
    pub(super) fn locks(&self) -> impl Iterator<Item = String> {
        let kind = self.lease.kind().lock_kind();
        let of = match self.is_local {
            true => format!("process {} ", self.process),
            false => String::new(),
        };
        let keys = self.lease.keys().as_slice().iter();
        keys.map(move |key| format!("{of}{kind:?} {}", key.name()))
    }

    /// Returns whether the token may be stored without an end: the holder or another one uses it.
    pub(super) fn is_open(&self) -> bool {
        !matches!(self.state, HoldState::Kept { .. } | HoldState::Ended)
    }

    /// Returns the access of the holder. The lease of a local lock does not tell of a downgrade.
    fn kind(&self) -> LeaseKind {
        match self.is_downgraded {
            true => LeaseKind::Read,
            false => self.lease.kind(),
        }
    }

    /// Returns whether both must not be held at the same time.
    pub(super) fn excludes(&self, other: &Hold) -> bool {
        let is_detached = |hold: &Hold| matches!(hold.state, HoldState::Detached(_));
        let in_reach = match self.is_local || other.is_local {
            false => true,
            // A local lock excludes the threads of its process. A detached lock is no thread's.
            true => self.process == other.process && !is_detached(self) && !is_detached(other),
        };
        let (one, two) = (self.kind(), other.kind());
        let is_shared = match (one, two) {
            (LeaseKind::Read, LeaseKind::Read) => true,
            // Each permit is a lock of its own, as long as all agree on their number.
            (
                LeaseKind::Permit { index: a, total: m },
                LeaseKind::Permit { index: b, total: n },
            ) => (a != b && m == n) || self.is_local,
            _ => one.lock_kind() != two.lock_kind(),
        };
        in_reach && !is_shared && self.conflicts_by_key(other)
    }

    /// Returns whether both have a key in common. A lock that others may delete or overwrite
    /// conflicts with none.
    pub(super) fn conflicts_by_key(&self, other: &Hold) -> bool {
        let theirs = other.lease.keys().as_slice();
        let mut ours = self.lease.keys().as_slice().iter();
        ours.any(|key| theirs.contains(key)) && !self.is_taken_away()
    }

    /// Returns whether others may delete or overwrite the lock.
    pub(super) fn is_taken_away(&self) -> bool {
        self.is_of(FORCED_LOCK) || self.is_of(STOLEN_LOCK)
    }

    /// Returns whether calls for the lock may fail although nothing else does.
    pub(super) fn may_fail(&self) -> bool {
        self.is_taken_away() || self.is_of(TROUBLED_LOCK)
    }

    /// Returns whether the lock never concerns another process.
    pub(super) fn is_of_process(&self) -> bool {
        PROCESS_LOCKS.iter().any(|lock| self.is_of(*lock))
    }

    pub(super) fn is_of(&self, lock: usize) -> bool {
        self.lease.key().name() == &*lock_name(lock)
    }

    pub(super) fn describe(&self) -> String {
        let lock = match self.lease.kind().lock_kind() {
            LockKind::Exclusive => "lock",
            LockKind::ReadWrite => "read-write lock",
            LockKind::Semaphore => "semaphore",
        };
        format!(
            "process {} thread {} has {:?} of {lock} {} {}",
            self.process,
            self.thread,
            self.lease.kind(),
            self.lease.keys(),
            short(&self.lease.token().text()),
        )
    }
}

/// Returns the part of a token that a history shows.
pub(crate) fn short(token: &str) -> &str {
    &token[..token.len().min(11)]
}
