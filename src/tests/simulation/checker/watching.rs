//! The outcomes of a watch of a lock, and their times (S11, L5).

use std::time::{Duration, Instant};

use crate::api::watch::{LockWatch, WatchOutcome};
use crate::protocol::lease::{Lease, LeaseState};
use crate::tests::simulation::checker::checker::Checker;
use crate::tests::simulation::checker::hold::HoldId;
use crate::tests::simulation::checker::reports::MAX_TELLING;
use crate::tests::simulation::world;
use crate::time::clock;

/// The outcomes that one watch has returned.
struct Watched {
    /// When the wait ends.
    end: Instant,
    /// How long the watch waits.
    limit: Duration,
    /// Since when the process has run without a pause, from the beginning of the watch on.
    awake: Instant,
    /// The last outcome is `Endangered`.
    is_endangered: bool,
}

impl Checker {
    /// Waits with a watch for at most `limit`, and checks each of its outcomes.
    pub(crate) fn watch(&self, hold: HoldId, watch: &LockWatch, limit: Duration) {
        let begun = clock::now();
        let mut watched = Watched {
            end: begun + limit,
            limit,
            awake: begun,
            is_endangered: false,
        };
        self.set_watched(hold, Some(begun));
        loop {
            let outcome = watch.wait_ended(watched.end.saturating_duration_since(clock::now()));
            let wrong = self.with(|state| {
                let hold = &state.holds[hold];
                let now = world::clock_of(hold.process);
                watched.awake = state.awake_since(hold.process, begun).unwrap_or(now);
                let wrong = watched.record(outcome, &hold.lease, now);
                wrong.filter(|_| !hold.is_local)
            });
            if let Some(wrong) = wrong {
                self.report_hold(&format!("watch returns {outcome:?}: {wrong}"), hold);
            }
            self.count(match outcome {
                WatchOutcome::Endangered => "watches of endangered locks",
                WatchOutcome::Safe => "watches of locks that are safe again",
                WatchOutcome::Lost => "watches of lost locks",
                _ => "watches of held locks",
            });
            if !matches!(outcome, WatchOutcome::Endangered | WatchOutcome::Safe) {
                return self.set_watched(hold, None);
            }
        }
    }

    fn set_watched(&self, hold: HoldId, since: Option<Instant>) {
        self.with(|state| state.holds[hold].watched_since = since);
    }
}

impl Watched {
    /// Records an outcome. Returns what is wrong with it.
    fn record(
        &mut self,
        outcome: WatchOutcome,
        lease: &Lease,
        now: Instant,
    ) -> Option<&'static str> {
        let state = lease.peek(now);
        let was_endangered = self.is_endangered;
        self.is_endangered = outcome == WatchOutcome::Endangered;
        let is_late = |since: Instant| now > since.max(self.awake) + MAX_TELLING;
        match outcome {
            WatchOutcome::Endangered if was_endangered => Some("told before"),
            WatchOutcome::Safe if !was_endangered => Some("there was no danger"),
            WatchOutcome::Endangered | WatchOutcome::Safe => None,
            WatchOutcome::Lost => (state != LeaseState::Lost).then_some("it is held"),
            WatchOutcome::TimedOut if now < self.end => Some("it is early"),
            // The pause may have come before the wait took its time.
            WatchOutcome::TimedOut if is_late(self.awake + self.limit) => Some("it is late"),
            WatchOutcome::TimedOut => {
                let LeaseState::Held(expiry) = state else {
                    return None; // it has ended in the meantime
                };
                let start = lease.danger_start(expiry);
                let is_untold = start < expiry && !was_endangered && is_late(start);
                is_untold.then_some("it is endangered")
            }
            _ => Some("nobody has released it"),
        }
    }
}
