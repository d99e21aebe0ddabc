//! Minimum times (`min_hold`), and acquires of the first of several locks (`acquire_any`).

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::error::error::Error;
use crate::protocol::kind::{LeaseKind, LockKind};
use crate::protocol::validity;
use crate::tests::simulation::checker::checker::{Checker, CheckerState};
use crate::tests::simulation::checker::hold::{Hold, HoldId, HoldState, short};
use crate::tests::simulation::checker::waits::{MAX_ROUND_TRIPS, MAX_STALLS, MAX_WAKE_UP};
use crate::tests::simulation::network::server::lock_name;
use crate::tests::simulation::runtime::signal;
use crate::tests::simulation::world;

impl Hold {
    /// Records that the end of the guard begins. Returns for how long its lock is kept.
    ///
    /// Until the release has succeeded, the lock is safe no longer than its lease, because a server
    /// may free the key before the release arrives.
    pub(super) fn end(&mut self) -> Duration {
        let now = world::clock_of(self.process);
        let kept = self.lease.kept_until(now).zip(self.lease.expiry(now));
        let Some((end, expiry)) = kept else {
            self.state = HoldState::Ended;
            return Duration::ZERO;
        };
        let rest = end.saturating_duration_since(now);
        let released = now + rest.saturating_sub(validity::drift(rest));
        let expiry = if self.is_in_doubt() { now } else { expiry };
        self.state = HoldState::Kept {
            until: released.min(expiry),
            released,
        };
        rest
    }

    /// Records the result of the release. Returns for how long the lock is still kept.
    pub(super) fn release_ended(&mut self, result: &Result<(), Error>) -> Duration {
        let HoldState::Kept { released, .. } = self.state else {
            return Duration::ZERO;
        };
        self.state = match result {
            Ok(()) => HoldState::Kept {
                until: released,
                released,
            },
            Err(Error::LockLost { .. }) => HoldState::Ended,
            Err(_) => self.state,
        };
        let now = world::clock_of(self.process);
        let kept_until = self.lease.kept_until(now);
        kept_until.map_or(Duration::ZERO, |end| end.saturating_duration_since(now))
    }
}

impl CheckerState {
    /// Returns since when an exclusive lock is free, if it is and was held before.
    fn free_since(&self, lock: usize) -> Option<Instant> {
        let mut holds = self.holds.iter();
        let is_exclusive = |hold: &Hold| hold.lease.kind() == LeaseKind::Exclusive;
        let is_held = holds.any(|hold| {
            let name = lock_name(lock);
            let mut keys = hold.lease.keys().as_slice().iter();
            is_exclusive(hold) && hold.believes() && keys.any(|key| key.name() == &*name)
        });
        let name = format!("{:?} {}", LockKind::Exclusive, lock_name(lock));
        let since = self.free_since.get(&name).copied().flatten();
        since.filter(|_| !is_held)
    }
}

impl Checker {
    /// Checks that an acquire of the first of `locks` that is free has acquired one of them, and
    /// did not sleep on while one of the others was free. `asked` is when the thread asked, if it
    /// waits without a limit.
    pub(crate) fn check_choice(&self, hold: HoldId, locks: &[usize], asked: Option<Instant>) {
        let (is_wrong, free_since) = self.with(|state| {
            state.coverage.count("locks of several choices");
            let is_single = state.holds[hold].lease.keys().single().is_some();
            let mut choices = locks.iter();
            let is_choice = choices.any(|lock| state.holds[hold].is_of(*lock));
            let free = locks.iter().filter_map(|lock| state.free_since(*lock));
            (!is_single || !is_choice, free.min())
        });
        if is_wrong {
            self.report_hold("another lock than a choice is acquired", hold);
        }
        let Some(asked) = asked.filter(|_| self.promises.wakes) else {
            return;
        };
        let since = free_since.map(|free| free.max(asked));
        let slept = since.map(|since| signal::true_time().saturating_duration_since(since));
        if slept.is_some_and(|slept| slept > MAX_WAKE_UP) {
            self.report_hold("woken late, while another choice was free", hold);
        }
    }

    /// Checks that an acquire of the first of `locks` that is free has left nothing of the others.
    /// For a process with one thread: all that the acquire has undone is gone after the longest
    /// duration of a call.
    pub(crate) fn check_other_choices(&self, hold: HoldId, locks: &[usize], acquired: Instant) {
        let round_trip = self.network.with(|state, _| state.round_trip());
        let undone_at = acquired + round_trip * MAX_ROUND_TRIPS + MAX_STALLS;
        if !self.promises.is_calm || signal::true_time() < undone_at {
            return;
        }
        // Locks that the process has detached, and others that it keeps.
        let (label, guarded) = self.with(|state| {
            let guarded = state.holds.iter().map(|hold| hold.lease.token().text());
            let guarded: BTreeSet<String> = guarded.collect();
            (format!("p{}:", state.holds[hold].process), guarded)
        });
        let is_left = |token: &String| token.starts_with(&label) && !guarded.contains(token);
        let left = self.network.with(|state, now| {
            let mut servers = state.servers.iter_mut();
            servers.find_map(|server| {
                let shown = server.clock.at(now);
                locks.iter().find_map(|lock| {
                    let key = world::exclusive_key(*lock);
                    let owner = &server.store.stored_lock(&key, shown).owner;
                    let token = owner.as_ref().map(|(token, _)| token);
                    token.filter(|token| is_left(token)).cloned()
                })
            })
        });
        if let Some(left) = left {
            self.report_hold(&format!("choice {} is left", short(&left)), hold);
        }
    }
}
