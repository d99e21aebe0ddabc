//! All configured nodes as one: opens rounds, sends requests that no caller waits for, and reports
//! which nodes are connected.
//!
//! It knows no state of a lock: the engine chooses the requests and interprets the verdicts. The
//! number of nodes is that of the configuration, whichever of them are connected (S1).
//!
//! Tests: `src/tests/engine/quorum.rs`; `tests/it/nodes/observability.rs` (health).

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::node_failure::NodeFailure;
use crate::protocol::breaker::Connectivity;
use crate::protocol::key::Key;
use crate::protocol::key_set::KeySet;
use crate::protocol::kind::LeaseKind;
use crate::protocol::lease::Lease;
use crate::protocol::node_set::NodeSet;
use crate::protocol::quorum::{Tally, Vote, VoteRule, majority};
use crate::protocol::reply::vote_rule;
use crate::protocol::request::{Op, Request};
use crate::protocol::token::Token;
use crate::telemetry::health::{NodeHealth, NodeState};
use crate::telemetry::stats::{LockCounters, NodeStats, Stats};
use crate::time::clock;
use crate::transport::connection::NodeConnection;
use crate::transport::dispatch::{KeyConnections, SendMode, connection_index};
use crate::transport::inbox::Inbox;
use crate::transport::job::{Job, ReplySink};
use crate::transport::load::{ActiveCallers, RttEstimate};
use crate::transport::round::{Round, RoundOutcome, RoundPlan};
use crate::transport::waiters::Waiters;
use crate::transport::worker_pool;
use crate::transport::worker_pool::WorkerPool;

/// All configured nodes, with their connections and workers.
#[derive(Debug)]
pub(crate) struct NodeGroup {
    workers: WorkerPool,
    names: Vec<String>,
    /// The number of connections to each node.
    pool_size: usize,
    rtt: RttEstimate,
    active_callers: ActiveCallers,
    counters: LockCounters,
}

impl NodeGroup {
    pub(crate) fn new(
        workers: WorkerPool,
        names: Vec<String>,
        pool_size: usize,
        counters: LockCounters,
    ) -> NodeGroup {
        let group = NodeGroup {
            workers,
            names,
            pool_size,
            rtt: RttEstimate::default(),
            active_callers: ActiveCallers::default(),
            counters,
        };
        if let Some(round_trip) = group.connect_round_trip() {
            group.rtt.record_quorum(round_trip);
        }
        group
    }

    /// Returns the time in which a quorum has replied to the connects; `None` if fewer have.
    fn connect_round_trip(&self) -> Option<Duration> {
        let connections = self.workers.connections().chunks(self.pool_size);
        let each = connections.filter_map(|node| node.first()?.report().connecting);
        let mut each: Vec<Duration> = each.collect();
        each.sort_unstable();
        each.get(majority(self.total()) - 1).copied()
    }

    pub(crate) fn total(&self) -> usize {
        self.names.len()
    }

    /// Returns the counters of the locks on these nodes.
    pub(crate) fn counters(&self) -> &LockCounters {
        &self.counters
    }

    pub(crate) fn stats(&self) -> Stats {
        let nodes = self.nodes().map(|(node, connections)| {
            let mut stats = NodeStats::of(node);
            for connection in connections {
                connection.counters().add_to(&mut stats);
            }
            stats
        });
        self.counters.stats(nodes.collect())
    }

    /// Returns the number of connections that are up.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn up(&self) -> usize {
        let is_up = |c: &&NodeConnection| c.unavailable(clock::now()).is_none();
        self.workers.connections().iter().filter(is_up).count()
    }

    /// Returns whether a quorum of nodes is connected, so that a round may reach a quorum.
    pub(crate) fn quorum_up(&self) -> bool {
        let now = clock::now();
        let is_up = |node: &&[NodeConnection]| node.iter().all(|c| c.is_up(now));
        let nodes = self.workers.connections().chunks(self.pool_size);
        nodes.filter(is_up).count() >= majority(self.total())
    }

    /// Returns which nodes are connected, as the breaker needs it.
    pub(crate) fn connectivity(&self) -> Connectivity {
        // The count is read first, so that a connect after it is seen as a change.
        let connect_count = self.connect_count();
        Connectivity {
            connect_count,
            quorum_up: self.quorum_up(),
        }
    }

    /// Returns how often a connection has come up or an overdue reply has arrived.
    pub(crate) fn connect_count(&self) -> u64 {
        self.workers.registry().connect_count()
    }

    /// Blocks until a quorum of nodes is connected, until `end`, or until `is_closed` holds and
    /// [`announce`](NodeGroup::announce) is called. Returns whether a quorum is connected.
    pub(crate) fn wait_for_quorum(
        &self,
        end: Option<Instant>,
        is_closed: impl Fn() -> bool,
    ) -> bool {
        let registry = self.workers.registry();
        registry.wait_until(end, || self.quorum_up() || is_closed()) && self.quorum_up()
    }

    /// Returns whether failed connects leave fewer reachable nodes than a quorum (S9).
    pub(crate) fn no_quorum_reachable(&self) -> bool {
        self.workers.registry().reached() < majority(self.total())
    }

    /// Returns the callers that wait for nodes to come up.
    pub(crate) fn waiters(&self) -> &Arc<Waiters> {
        self.workers.registry().waiters()
    }

    /// Wakes the callers that wait for nodes, so that they check their condition again.
    pub(crate) fn announce(&self) {
        self.workers.registry().notify_waiters();
    }

    /// Returns a tally of the connected nodes, with the cause of each node that is not connected.
    /// `silent` names connected nodes that did not reply to the last request.
    pub(crate) fn connection_tally(&self, silent: &[(usize, NodeFailure)]) -> Tally {
        let now = clock::now();
        let mut tally = Tally::new(self.total(), VoteRule::Acquire);
        for (node, (_, connections)) in self.nodes().enumerate() {
            let cause = connections.iter().find_map(|c| c.unavailable(now));
            let cause = cause.or_else(|| {
                let (_, cause) = silent.iter().find(|(silent, _)| *silent == node)?;
                Some(cause.clone())
            });
            tally.vote(node, cause.map_or(Vote::Granted, Vote::Fault));
        }
        tally
    }

    /// Returns the name of each node with its connections.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = (&str, &[NodeConnection])> {
        let connections = self.workers.connections().chunks(self.pool_size);
        self.names.iter().map(String::as_str).zip(connections)
    }

    /// Returns the duration of a typical round, in which a quorum replies.
    pub(crate) fn rtt_estimate(&self) -> Duration {
        self.rtt.typical_round()
    }

    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    pub(crate) fn name(&self, node: usize) -> &str {
        &self.names[node]
    }

    /// Asks the nodes in the order of `plan`. Blocks for the preferred node only, if there is one.
    ///
    /// # Errors
    /// The outcome of the round, if the preferred node refused or the caller was cancelled.
    pub(crate) fn send<'a>(
        &'a self,
        request: &'a Request,
        inbox: &'a Arc<Inbox>,
        plan: RoundPlan,
    ) -> Result<Round<'a>, Box<RoundOutcome>> {
        let mut round = self.open_round(request, inbox);
        let mut nodes = self.all();
        if let RoundPlan::PreferredFirst(node) = plan {
            if let Some(wait_end) = round.ask_preferred(node) {
                return Err(Box::new(round.finish(wait_end)));
            }
            nodes = nodes.difference(NodeSet::single(node));
        }
        round.submit_with_sink(request, nodes, Arc::clone(inbox) as _);
        Ok(round)
    }

    /// Asks all nodes at once. Does not block: [`Round::wait`] waits for the replies.
    pub(crate) fn send_to_all<'a>(
        &'a self,
        request: &'a Request,
        inbox: &'a Arc<Inbox>,
    ) -> Round<'a> {
        self.send_with_sink(request, inbox, Arc::clone(inbox) as _)
    }

    /// Asks all nodes at once. Replies go to `sink`, which delivers them to the inbox, too.
    pub(crate) fn send_with_sink<'a>(
        &'a self,
        request: &'a Request,
        inbox: &'a Arc<Inbox>,
        sink: Arc<dyn ReplySink>,
    ) -> Round<'a> {
        let mut round = self.open_round(request, inbox);
        round.submit_with_sink(request, self.all(), sink);
        round
    }

    /// Returns the set of all nodes.
    pub(crate) fn all(&self) -> NodeSet {
        NodeSet::all(self.total())
    }

    fn open_round<'a>(&'a self, request: &'a Request, inbox: &'a Arc<Inbox>) -> Round<'a> {
        let round = self.resume_round(request, inbox, inbox.open_round(self.total()));
        round.counted_in(&self.active_callers)
    }

    /// Returns the round of a handoff that was opened in the inbox before, as `id`.
    pub(crate) fn resume_round<'a>(
        &'a self,
        request: &'a Request,
        inbox: &'a Arc<Inbox>,
        id: u32,
    ) -> Round<'a> {
        let connections = self.connections_for(request.lease.key());
        Round::new(request, inbox, id, connections, &self.rtt)
    }

    /// Sends many requests to all nodes through the queues, each in a round of `sink`, which counts
    /// the replies itself. Returns a tally per request, with the failures of suspect nodes, which
    /// are not asked. Does not block.
    pub(crate) fn send_many(
        &self,
        requests: &[(Arc<Request>, u32)],
        sink: &Arc<dyn ReplySink>,
    ) -> Vec<Tally> {
        let now = clock::now();
        let tally = |request: &Request| Tally::new(self.total(), vote_rule(request.op));
        let mut tallies: Vec<Tally> = requests.iter().map(|(r, _)| tally(r)).collect();
        for (number, connection) in self.workers.connections().iter().enumerate() {
            let (node, index) = (number / self.pool_size, number % self.pool_size);
            let mut jobs = Vec::new();
            let mut sent = Vec::new();
            for (position, (request, round)) in requests.iter().enumerate() {
                if connection_index(request.lease.key(), self.pool_size) == index {
                    sent.push(position);
                    jobs.push(Job {
                        request: Arc::clone(request),
                        reply: Some((Arc::clone(sink), *round)),
                    });
                }
            }
            if jobs.is_empty() {
                continue;
            }
            if let Err(cause) = connection.submit_all(jobs, now) {
                for position in sent {
                    tallies[position].vote(node, Vote::Fault(cause.clone()));
                }
            }
        }
        tallies
    }

    /// Wakes the release listener of this process on a node, by a message to its private channel.
    /// Does not block.
    pub(crate) fn wake_listener(&self, wake_channel: &Arc<Lease>, node: usize) {
        let publish = Request::new(Op::WakeListener, wake_channel, 0);
        self.send_unawaited(&publish, NodeSet::single(node));
    }

    /// Tells the holders of these keys to check them, by a notice on all nodes. Does not block.
    pub(crate) fn notify_holders(&self, keys: &KeySet) {
        for key in keys.as_slice() {
            // Only names the key; it is never held.
            let named = Lease::new(key.clone(), Token::empty(), LeaseKind::Exclusive);
            let notice = Request::new(Op::Notify, &Arc::new(named), 0);
            self.send_unawaited(&notice, self.all());
        }
    }

    /// Returns the first connected node that votes, else the first connected node: a quarantined
    /// one refuses every acquire.
    pub(crate) fn first_voting_node(&self) -> Option<usize> {
        self.first_up_of(|_| true)
    }

    /// Returns the first voting node for which `is_eligible` returns `true`.
    pub(crate) fn first_up_of(&self, is_eligible: impl Fn(usize) -> bool) -> Option<usize> {
        let now = clock::now();
        let connections = || self.workers.connections().iter().enumerate();
        let is_up = |(number, connection): &(usize, &NodeConnection)| {
            connection.is_up(now) && is_eligible(number / self.pool_size)
        };
        let votes =
            |(_, connection): &(usize, &NodeConnection)| connection.quarantine(now).is_zero();
        let found = connections().filter(is_up).find(votes);
        let found = found.or_else(|| connections().find(is_up));
        found.map(|(number, _)| number / self.pool_size)
    }

    /// Returns whether no node is known to be in quarantine.
    pub(crate) fn none_quarantined(&self) -> bool {
        let now = clock::now();
        let mut connections = self.workers.connections().iter();
        connections.all(|c| c.quarantine(now).is_zero())
    }

    /// Releases a lease's token on all nodes that may hold it. The nodes in `except` certainly do
    /// not. Does not block.
    pub(crate) fn release_unawaited(&self, lease: &Arc<Lease>, except: NodeSet) {
        let release = Request::new(Op::Release, lease, 0);
        self.send_unawaited(&release, lease.contacted().difference(except));
    }

    /// Restores a lease's key on `nodes` that have lost it. Does not block. `ttl` is in ms.
    pub(crate) fn restore(&self, lease: &Arc<Lease>, ttl: u64, nodes: NodeSet) {
        self.send_unawaited(&Request::new(Op::Restore, lease, ttl), nodes);
    }

    /// Sends a request to `nodes` and drops the replies. Does not block.
    pub(crate) fn send_unawaited(&self, request: &Request, nodes: NodeSet) {
        self.send_unawaited_with_sink(request, nodes, None);
    }

    /// Sends a request to `nodes`, with the replies to `sink` in its round 0. Does not block.
    pub(crate) fn send_unawaited_with_sink(
        &self,
        request: &Request,
        nodes: NodeSet,
        sink: Option<&Arc<dyn ReplySink>>,
    ) {
        if nodes.len() == 0 {
            return; // as after most extensions: no node lacks the key
        }
        let now = clock::now();
        let caller = self.active_callers.uncounted(now);
        let reply = sink.map(|sink| (Arc::clone(sink), 0));
        let mode = SendMode {
            reply: reply.as_ref(),
            is_direct: caller.uses_direct_send(&self.rtt, now),
            now,
        };
        let connections = self.connections_for(request.lease.key());
        let sent = connections.dispatch(request, nodes, mode);
        if sent.unattended.len() > 0 {
            // No caller polls for these replies.
            let unattended = |(node, _): &(usize, _)| sent.unattended.contains(*node);
            let connections = connections.iter().filter(unattended);
            connections.for_each(|(_, connection)| connection.wake_worker());
        }
    }

    /// Returns the connections that serve a key.
    fn connections_for(&self, key: &Key) -> KeyConnections<'_> {
        KeyConnections::new(self.workers.connections(), self.pool_size, key)
    }

    /// Ends all workers when they have served their queues, and blocks until then, at most until
    /// `end`. Returns the threads of the workers that still run, each with its node.
    pub(crate) fn shutdown(&self, end: Instant) -> Vec<String> {
        let describe = |index: usize| {
            let (node, number) = (index / self.pool_size, index % self.pool_size);
            let thread = worker_pool::thread_name(node, number);
            format!("{thread} ({})", self.name(node))
        };
        let left = self.workers.shutdown(end).into_iter();
        left.map(describe).collect()
    }
}

impl NodeHealth {
    /// Returns the health of a node, which is the health of its worst connection.
    pub(crate) fn of(node: &str, connections: &[NodeConnection]) -> Option<NodeHealth> {
        let now = clock::now();
        let each = connections
            .iter()
            .map(|connection| NodeHealth::of_connection(node, connection, now));
        each.min_by_key(|health| health.state == NodeState::Up)
    }

    fn of_connection(node: &str, connection: &NodeConnection, now: Instant) -> NodeHealth {
        let report = connection.report();
        let remaining = connection.quarantine(now);
        let (state, cause) = match connection.unavailable(now) {
            Some(cause) => (NodeState::Suspect, Some(cause)),
            None if remaining.is_zero() => (NodeState::Up, None),
            None => (
                NodeState::Quarantined,
                Some(NodeFailure::Quarantined { remaining }),
            ),
        };
        let info = report.server_info.unwrap_or_default();
        NodeHealth {
            node: node.to_owned(),
            state,
            since: connection.overdue(now).unwrap_or(report.since),
            cause,
            role: info.role,
            eviction_policy: info.maxmemory_policy,
            clock_offset: info.clock_offset.map(|clock| clock.offset),
            clock_uncertainty: info.clock_offset.map(|clock| clock.uncertainty),
        }
    }
}
