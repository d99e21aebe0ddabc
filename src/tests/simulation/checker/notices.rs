//! Notices: the holder of a lock that is deleted is told at once, not at its next renewal (S11).
//!
//! Checked in calm histories, of holders with a callback whose process listens for notices while
//! the lock is deleted. The loss itself is told in time by the checks of `reports.rs`.

use std::time::Instant;

use crate::error::error::Error;
use crate::protocol::key::{Channel, notice_channel};
use crate::protocol::lease::{Lease, LeaseState};
use crate::tests::simulation::checker::checker::{Checker, CheckerState};
use crate::tests::simulation::checker::hold::{Hold, HoldId, HoldState};
use crate::tests::simulation::checker::waits::{MAX_ROUND_TRIPS, MAX_STALLS};
use crate::tests::simulation::network::network::NetworkState;
use crate::tests::simulation::plan::locks::FORCED_LOCK;
use crate::tests::simulation::world;

impl NetworkState {
    /// Returns whether a process receives the messages of a channel.
    fn listens(&self, process: usize, channel: &Channel) -> bool {
        let mut servers = self.servers.iter();
        servers.any(|server| {
            let receivers = server.receivers(channel).into_iter();
            let mut processes = receivers.map(|connection| self.process_of(connection));
            processes.any(|receiver| receiver == process)
        })
    }
}

impl Hold {
    /// Returns whether its thread holds the forced lock, and asks to be told of its loss.
    fn awaits_notice(&self) -> bool {
        let is_told = self.reports.as_ref().is_some_and(|reports| reports.asks());
        let now = world::clock_of(self.process);
        let is_held = matches!(self.lease.peek(now), LeaseState::Held(_));
        self.is_of(FORCED_LOCK) && self.state == HoldState::Held && is_held && is_told
    }
}

impl CheckerState {
    /// Counts the loss of a lock of whose end its holder had a notice.
    pub(super) fn count_notice(&mut self, lease: &Lease) {
        let mut holds = self.holds.iter();
        let is_noticed =
            |hold: &Hold| hold.noticed_since.is_some() && std::ptr::eq(&*hold.lease, lease);
        if holds.any(is_noticed) {
            self.coverage.count("notices told");
        }
    }
}

impl Checker {
    /// Returns the holds of the forced lock that a notice is to reach.
    pub(crate) fn notice_receivers(&self) -> Vec<HoldId> {
        if !self.promises.is_calm {
            return Vec::new();
        }
        let awaiting = self.with(|state| {
            let holds = state.holds.iter().enumerate();
            let awaiting = holds.filter(|(_, hold)| hold.awaits_notice());
            let awaiting = awaiting.map(|(id, hold)| (id, hold.process));
            awaiting.collect::<Vec<_>>()
        });
        let channel = notice_channel(world::KEY_PREFIX);
        self.network.with(|state, _| {
            let awaiting = awaiting.into_iter();
            let listening = awaiting.filter(|(_, process)| state.listens(*process, &channel));
            listening.map(|(id, _)| id).collect()
        })
    }

    /// Records that `force_release` of a process has ended. `receivers` listened when it began.
    ///
    /// A process that has shut down meanwhile may have sent no notice.
    pub(crate) fn forced(
        &self,
        process: usize,
        receivers: &[HoldId],
        result: &Result<bool, Error>,
    ) {
        self.expect_calm("force_release", result.as_ref().err());
        if *result != Ok(true) {
            return;
        }
        self.with(|state| {
            if state.shut_down.contains_key(&process) {
                return;
            }
            for hold in receivers {
                let hold = &mut state.holds[*hold];
                let now = world::clock_of(hold.process);
                hold.noticed_since.get_or_insert(now);
            }
        });
    }

    /// Checks that no holder believes for long in a lock of whose end it had a notice.
    pub(super) fn check_notices(&self) {
        if !self.promises.is_calm {
            return;
        }
        let limit = self.network.with(|state, _| state.round_trip()) * MAX_ROUND_TRIPS + MAX_STALLS;
        let late = self.with(|state| {
            let is_late = |since: Instant, now: Instant| now > since + limit;
            state.holds.iter().position(|hold| {
                let now = world::clock_of(hold.process);
                let is_due = hold.noticed_since.is_some_and(|since| is_late(since, now));
                is_due && hold.awaits_notice()
            })
        });
        if let Some(late) = late {
            self.report_hold("notice has not ended the hold", late);
        }
    }
}
