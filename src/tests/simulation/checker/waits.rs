//! How long calls may take (L1, L4).

use std::time::{Duration, Instant};

use crate::protocol::kind::LeaseKind;
use crate::tests::simulation::checker::checker::{Checker, CheckerState};
use crate::tests::simulation::checker::hold::{Hold, HoldId};
use crate::tests::simulation::runtime::signal;

/// How long a waiter may take for a lock that was released, if messages wake it.
pub(super) const MAX_WAKE_UP: Duration = Duration::from_millis(1_000);
/// The largest number of round trips of a call for a lock that nobody else wants: the first script
/// call, its repetition with the script, and as much again for the fence.
pub(super) const MAX_ROUND_TRIPS: u32 = 6;
/// How long the threads of a process may be kept from running in the meantime.
pub(super) const MAX_STALLS: Duration = Duration::from_millis(100);

/// How long callers may take to settle a split vote (L1).
const MAX_SPLIT: Duration = Duration::from_millis(50);

/// A call whose duration is bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TimedCall {
    /// A call for a lock that no other thread wants.
    Alone,
    /// An attempt of several callers, which settle a split vote.
    Contest,
    /// A wait with this limit.
    Limited(Duration),
    /// A wait with this limit for the first of some locks, with their number. Each of them is asked
    /// for once.
    LimitedForAny(Duration, u32),
}

impl Checker {
    /// Checks that a call which began at `asked` has ended in time.
    pub(crate) fn check_duration(&self, process: usize, call: TimedCall, asked: Instant) {
        if !self.promises.is_calm {
            return;
        }
        let took = signal::true_time().saturating_duration_since(asked);
        let round_trips = self.network.with(|state, _| state.round_trip()) * MAX_ROUND_TRIPS;
        let limit = match call {
            TimedCall::Alone => round_trips,
            TimedCall::Contest => MAX_SPLIT + round_trips,
            TimedCall::Limited(limit) => limit + round_trips,
            TimedCall::LimitedForAny(limit, locks) => {
                let first_round = locks * (MAX_SPLIT + round_trips);
                // Later, one attempt at most outlasts the limit.
                limit
                    + if limit < first_round {
                        first_round
                    } else {
                        round_trips
                    }
            }
        };
        if took > limit + MAX_STALLS {
            self.report(format!(
                "slow: process {process} took {took:?} for {call:?}"
            ));
        }
    }

    /// Checks that a waiter did not sleep on while the lock was free (L4).
    pub(super) fn check_wake_up(&self, hold: &Hold, asked: Instant) {
        let kind = hold.lease.kind();
        if hold.may_fail() || !matches!(kind, LeaseKind::Exclusive | LeaseKind::Permit { .. }) {
            return;
        }
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
}

impl CheckerState {
    /// Records since when the lock of a hold is free; `None` if that is not known.
    pub(super) fn set_free(&mut self, hold: HoldId, since: Option<Instant>) {
        let is_permit = matches!(self.holds[hold].lease.kind(), LeaseKind::Permit { .. });
        for lock in self.holds[hold].locks() {
            let free = self.free_since.entry(lock).or_default();
            // A semaphore is free since its first permit is.
            *free = match (is_permit, *free, since) {
                (true, Some(earlier), Some(_)) => Some(earlier),
                _ => since,
            };
        }
    }

    /// Records that a semaphore is not free any more, if its last permit is the new hold.
    pub(super) fn count_permits(&mut self, hold: HoldId) {
        let LeaseKind::Permit { total, .. } = self.holds[hold].lease.kind() else {
            return;
        };
        let own = &self.holds[hold];
        let others = self.holds.iter();
        let held = others.filter(|other| other.believes() && other.conflicts_by_key(own));
        if held.count() >= usize::from(total) {
            self.set_free(hold, None);
        }
    }
}
