//! Locks in doubt: after a suspend only the nodes know whether a lock is held (S11).
//!
//! During a suspend the steady clock of a process stands still, so a lease seems to last longer
//! than it does. The wall clock goes on, and shows it.
//!
//! Whether a lease is in doubt is asked of the lease itself. If it never said so, the checks of the
//! nodes' contents would tell (`stored.rs`).

use std::time::{Duration, Instant};

use crate::protocol::lease::LeaseState;
use crate::tests::simulation::checker::checker::Checker;
use crate::tests::simulation::checker::hold::{Hold, HoldId, HoldState};
use crate::tests::simulation::world;

/// The state of a lease, as the clocks of its process tell it.
#[derive(Clone, Copy)]
pub(crate) struct Known {
    is_held: bool,
    /// The steady clock of its process, if only the nodes know whether it is held.
    in_doubt_at: Option<Instant>,
}

impl Hold {
    /// Returns whether only the nodes know if the lock is held, as after a suspend (S11).
    pub(super) fn is_in_doubt(&self) -> bool {
        let (now, offset) = (
            world::clock_of(self.process),
            world::wall_offset_of(self.process),
        );
        !self.is_local && self.lease.is_in_doubt_at(now, offset)
    }

    /// Records a suspend of the process: from now on its steady clock does not tell how long others
    /// are kept out of a lock without a guard.
    pub(super) fn suspended(&mut self) {
        let now = world::clock_of(self.process);
        match &mut self.state {
            HoldState::Detached(until) => *until = now.min(*until),
            HoldState::Kept { until, released } => {
                (*until, *released) = (now.min(*until), now.min(*released));
            }
            HoldState::Held | HoldState::Adopted | HoldState::Ended => {}
        }
    }
}

impl Checker {
    /// Records that the machine of a process is suspended.
    pub(crate) fn process_suspended(&self, process: usize) {
        self.process_paused(process);
        self.with(|state| {
            state.coverage.count("suspends");
            let own = state.holds.iter_mut();
            let own = own.filter(|hold| hold.process == process);
            own.for_each(Hold::suspended);
        });
    }

    /// Returns what is known of a hold at present.
    pub(crate) fn known(&self, hold: HoldId) -> Known {
        self.with(|state| {
            let hold = &state.holds[hold];
            let now = world::clock_of(hold.process);
            Known {
                is_held: matches!(hold.lease.peek(now), LeaseState::Held(_)),
                in_doubt_at: hold.is_in_doubt().then_some(now),
            }
        })
    }

    /// Checks the result of `check` or `is_held`, which began when `before` was known: a lost lock
    /// is never held again, and one in doubt is held only if the nodes have confirmed it since
    /// (S11). A lock that is lost meanwhile may still be said to be held.
    pub(crate) fn checked(&self, hold: HoldId, before: Known, is_ok: bool) {
        if is_ok && !before.is_held {
            self.report_hold("lost lock is said to be held", hold);
        }
        if let Some(then) = before.in_doubt_at {
            let is_confirmed = self.with(|state| {
                state.coverage.count("checks in doubt");
                // A confirmation of the same microsecond may be the one before.
                let later = then + Duration::from_micros(1);
                state.holds[hold].lease.was_confirmed_since(later)
            });
            if is_ok && !is_confirmed {
                self.report_hold("lock in doubt is said to be held", hold);
            }
        }
        self.check_overlaps();
        if is_ok {
            self.check_stored(|id| id == hold);
        }
    }
}
