//! Trouble that stays where it is: of one key (L2), and of a node that is away (L3).

use std::time::{Duration, Instant};

use crate::api::nodes::Nodes;
use crate::api::redis_locker::RedisLocker;
use crate::telemetry::health::{BreakerState, NodeState};
use crate::tests::simulation::checker::checker::{Checker, CheckerState};
use crate::tests::simulation::checker::waits::MAX_STALLS;
use crate::tests::simulation::network::server::{Server, lock_name};
use crate::tests::simulation::plan::locks::own_lock;
use crate::tests::simulation::runtime::signal;
use crate::tests::simulation::world;

/// After how long all that was in flight when a process noticed an outage has ended: two times the
/// longest `node_timeout` of a history with faults.
const MAX_NOTICE: Duration = Duration::from_millis(600);
/// The longest time from the end of all faults to the next connect, and its longest duration: a
/// reconnect delay, and four times the longest `node_timeout`.
const MAX_RECONNECT: Duration = Duration::from_millis(3_500);

/// A node that is away, as a process has noticed.
#[derive(Clone, Copy)]
pub(super) struct NoticedOutage {
    since: Instant,
    /// The largest number of messages and releases that may wait, once all in flight has ended.
    limit: Option<u64>,
}

impl Checker {
    /// Checks that the queue for a node does not grow while the node is away (L3): it keeps the
    /// requests of the moment at which the outage is noticed, and each lock that is held then may
    /// add its release. For a process with one connection to each node, and this number of threads.
    pub(crate) fn check_waiting(&self, process: usize, nodes: &Nodes, threads: usize) {
        let away: Vec<bool> = self.network.with(|state, _| {
            let servers = state.servers.iter();
            servers.map(Server::is_away).collect()
        });
        if !away.contains(&true) {
            return self.with(|state| state.outages.retain(|(of, _), _| *of != process));
        }
        for (node, health) in nodes.health().nodes.iter().enumerate() {
            let is_noticed = away[node] && health.state == NodeState::Suspect;
            let waiting = nodes.engine().waiting(node);
            let limit = self.with(|state| {
                let holds = state.holds.iter();
                let held = holds.filter(|hold| hold.process == process && hold.is_open());
                // Each thread may be about to send.
                let more = held.count() as u64 + threads as u64;
                state.waiting_limit((process, node), is_noticed, waiting + more)
            });
            if limit.is_some_and(|limit| waiting > limit) {
                self.report(format!(
                    "backlog of process {process}: {waiting} wait for node {node}, {limit:?} may"
                ));
            }
        }
    }

    /// Checks that a process with one connection to each node is served by all of them within one
    /// round trip, once all faults have ended (L3). `holder` waits for the reply of every node that
    /// is connected.
    pub(crate) fn check_back(&self, process: usize, nodes: &Nodes) {
        let (locker, name) = (RedisLocker::new(nodes), lock_name(own_lock(process, 0)));
        // A half-open connection is noticed by its next use.
        let _ = locker.holder(&name);
        world::sleep(MAX_RECONNECT);
        for (node, health) in nodes.health().nodes.iter().enumerate() {
            if health.state == NodeState::Suspect {
                self.report(format!("node {node} is not back for process {process}"));
            }
        }
        let asked = signal::true_time();
        if let Err(error) = locker.holder(&name) {
            self.report(format!("nodes serve process {process} no more: {error}"));
        }
        let took = signal::true_time().saturating_duration_since(asked);
        let round_trip = self.network.with(|state, _| state.round_trip());
        if took > round_trip + MAX_STALLS {
            self.report(format!("nodes serve process {process} after {took:?}"));
        }
    }

    /// Checks that a calm history has neither opened a breaker nor ended a connection, whatever
    /// errors the requests of one key had (L2).
    pub(crate) fn check_undisturbed(&self, process: usize, nodes: &Nodes, pool_size: usize) {
        if !self.promises.is_calm {
            return;
        }
        let breaker = nodes.health().breaker;
        if breaker != BreakerState::Closed {
            self.report(format!(
                "breaker of process {process} is {breaker:?} in a calm history"
            ));
        }
        let connects = self.network.with(|state, _| state.connects(process));
        if connects.iter().any(|connects| *connects > pool_size) {
            self.report(format!(
                "connections of process {process} were replaced: {connects:?}"
            ));
        }
    }
}

impl CheckerState {
    /// Returns how much may wait for a node: no more than `most` of the moment at which all that
    /// was in flight has ended; `None` before.
    fn waiting_limit(&mut self, of: (usize, usize), is_noticed: bool, most: u64) -> Option<u64> {
        // Requests in flight end by the clock of their process.
        let now = world::clock_of(of.0);
        if !is_noticed {
            self.outages.remove(&of);
            return None;
        }
        let new = NoticedOutage {
            since: now,
            limit: None,
        };
        let outage = self.outages.entry(of).or_insert(new);
        if now < outage.since + MAX_NOTICE {
            return None;
        }
        Some(*outage.limit.get_or_insert(most))
    }
}
