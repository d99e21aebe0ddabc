//! Ends for good: leases (S7), waits after a shutdown, gate entries (S10).

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::protocol::lease::LeaseState;
use crate::tests::simulation::checker::checker::Checker;
use crate::tests::simulation::checker::hold::{Hold, short};
use crate::tests::simulation::network::server::lock_name;
use crate::tests::simulation::plan::locks::TROUBLED_LOCK;
use crate::tests::simulation::runtime::signal;

/// How long an acquire may take to end after a shutdown: a round in progress, whose longest
/// `node_timeout` in a history with faults is 300 ms, and its undo.
const MAX_CLOSING: Duration = Duration::from_millis(1_000);

impl Hold {
    /// Returns whether the lease is held again after it was lost or released.
    fn is_held_again(&self) -> bool {
        // No expiry has passed at the start, so only an end that the lease has recorded counts.
        let is_held = matches!(self.lease.peek(signal::start()), LeaseState::Held(_));
        let had_ended = self.has_ended.get();
        self.has_ended.set(had_ended || !is_held);
        is_held && had_ended
    }
}

impl Checker {
    /// Checks that no lease is held again after its end (S7).
    pub(super) fn check_revived(&self) {
        let revived = self.with(|state| state.holds.iter().position(Hold::is_held_again));
        if let Some(revived) = revived {
            self.report_hold("revived", revived);
        }
    }

    /// Records that a process begins to shut its nodes down.
    pub(crate) fn shutting_down(&self, process: usize) {
        let now = signal::true_time();
        self.with(|state| _ = state.shut_down.entry(process).or_insert(now));
    }

    /// Checks that a shutdown has ended an acquire at once. `asked` is when the acquire began.
    pub(crate) fn check_closed(&self, process: usize, asked: Instant) {
        let since = self.with(|state| {
            let since = state.shut_down.get(&process).copied();
            since.filter(|_| !state.was_paused(process))
        });
        let now = signal::true_time();
        let late = since.map(|since| now.saturating_duration_since(since.max(asked)));
        if let Some(late) = late.filter(|late| *late > MAX_CLOSING) {
            self.report(format!(
                "closed: an acquire of process {process} ended {late:?} late"
            ));
        }
    }

    /// Checks that waiting writers have released their gate entries, and left none to its TTL. A
    /// shutdown may.
    ///
    /// Allowed: an entry ends by time on a minority of servers, while the writer waits. Servers
    /// that do not store the holder's token grant each attempt, and so do not prolong the entry.
    /// With the next holder these are other servers, so an entry counts only where it was not
    /// raised again.
    pub(crate) fn check_gate_entries(&self) {
        let has_shutdown = self.with(|state| !state.shut_down.is_empty());
        if !self.promises.is_calm || has_shutdown {
            return;
        }
        let left = self.network.with(|state, now| {
            let mut lapsed: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
            for server in &mut state.servers {
                let shown = server.clock.at(now);
                let locks = server.store.locks(shown);
                let locks = locks.filter(|(key, _)| key.name() != &*lock_name(TROUBLED_LOCK));
                for token in locks.flat_map(|(_, lock)| &lock.lapsed_gate_entries) {
                    let servers = lapsed.entry(token.clone()).or_default();
                    servers.insert(server.number);
                }
            }
            let mut lapsed = lapsed.into_iter();
            lapsed.find(|(_, servers)| servers.len() > state.servers.len() / 2)
        });
        if let Some((token, servers)) = left {
            let token = short(&token);
            self.report(format!(
                "gate entry {token} was left to its TTL on servers {servers:?}"
            ));
        }
    }
}
