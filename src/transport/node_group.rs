//! All configured nodes: send, restore, release; health and stats.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::NodeFailure;
use crate::local::lock_table::LockTable;
use crate::protocol::breaker::Connectivity;
use crate::protocol::encode;
use crate::protocol::key::Key;
use crate::protocol::lease::Lease;
use crate::protocol::quorum::{NodeSet, Tally, Vote, VoteRule, majority};
use crate::protocol::reply::vote_rule;
use crate::protocol::request::{Op, Request};
use crate::telemetry::health::{NodeHealth, NodeState};
use crate::telemetry::stats::{LockCounters, NodeStats, Stats};
use crate::time::clock;
use crate::transport::connection::NodeConnection;
use crate::transport::inbox::{Inbox, WaitEnd};
use crate::transport::job::{Job, ReplySink};
use crate::transport::load::{ActiveCallers, CallerGuard, RttEstimate};
use crate::transport::messages::Submitted;
use crate::transport::registry::Waiters;
use crate::transport::round::{DirectReplies, Round, RoundOutcome, give};
use crate::transport::worker_pool::WorkerPool;

/// The configured nodes as one: what the rooms above ask is asked of all of them.
#[derive(Debug)]
pub(crate) struct NodeGroup {
    crew: WorkerPool,
    names: Vec<String>,
    pool: usize,
    pub(crate) pace: RttEstimate,
    company: ActiveCallers,
    meter: LockCounters,
}

impl NodeGroup {
    pub(crate) fn new(
        crew: WorkerPool,
        names: Vec<String>,
        pool: usize,
        meter: LockCounters,
    ) -> NodeGroup {
        NodeGroup {
            crew,
            names,
            pool,
            pace: RttEstimate::default(),
            company: ActiveCallers::default(),
            meter,
        }
    }

    pub(crate) fn total(&self) -> usize {
        self.names.len()
    }

    /// Counts what happens to locks on these nodes.
    pub(crate) fn counters(&self) -> &LockCounters {
        &self.meter
    }

    pub(crate) fn stats(&self) -> Stats {
        let nodes = self.nodes().map(|(node, lanes)| {
            let mut stats = NodeStats::of(node);
            lanes
                .iter()
                .for_each(|lane| lane.counters().add_to(&mut stats));
            stats
        });
        self.meter.stats(nodes.collect())
    }

    /// How many lanes are up.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn up(&self) -> usize {
        let up = |lane: &&NodeConnection| lane.unavailable(clock::now()).is_none();
        self.crew.connections().iter().filter(up).count()
    }

    /// Whether a quorum of nodes is connected: then a round may have a quorum.
    pub(crate) fn quorum_up(&self) -> bool {
        let now = clock::now();
        let up = |lanes: &&[NodeConnection]| lanes.iter().all(|lane| lane.is_up(now));
        let nodes = self.crew.connections().chunks(self.pool);
        nodes.filter(up).count() >= majority(self.total())
    }

    /// Which lanes are connected, as the breaker wants to know it.
    pub(crate) fn connectivity(&self) -> Connectivity {
        // The number first: what comes up after that is news.
        let risen = self.crew.registry().connect_epoch();
        Connectivity {
            epoch: risen,
            quorum_up: self.quorum_up(),
        }
    }

    /// How often a lane has come up.
    pub(crate) fn connect_epoch(&self) -> u64 {
        self.crew.registry().connect_epoch()
    }

    /// Waits until a quorum of nodes is connected, until `end`, or until the gate before them is closed. `false` if no quorum
    /// is connected.
    pub(crate) fn wait_for_quorum(&self, end: Option<Instant>, gate: &LockTable) -> bool {
        let census = self.crew.registry();
        census.wait_until(end, || self.quorum_up() || gate.is_closed()) && self.quorum_up()
    }

    /// Returns whether fresh connects have failed to so many nodes that no quorum is left (rule S9).
    pub(crate) fn no_quorum_reachable(&self) -> bool {
        self.crew.registry().reached() < majority(self.total())
    }

    /// The callers that wait for nodes to come up.
    pub(crate) fn waiters(&self) -> &Arc<Waiters> {
        self.crew.registry().waiters()
    }

    /// Lets those look who wait for nodes.
    pub(crate) fn announce(&self) {
        self.crew.registry().notify_waiters();
    }

    /// Which nodes are connected, and why the others are not; `last` names those that are, but did not reply when they were
    /// asked last.
    pub(crate) fn connection_tally(&self, last: &[(usize, NodeFailure)]) -> Tally {
        let (now, mut tally) = (clock::now(), Tally::new(self.total(), VoteRule::Acquire));
        for (node, (_, lanes)) in self.nodes().enumerate() {
            let cause = lanes.iter().find_map(|lane| lane.unavailable(now));
            let silent = || last.iter().find(|(silent, _)| *silent == node);
            let cause = cause.or_else(|| silent().map(|(_, cause)| cause.clone()));
            tally.vote(node, cause.map_or(Vote::Granted, Vote::Fault));
        }
        tally
    }

    /// Each node with its lanes.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = (&str, &[NodeConnection])> {
        let lanes = self.crew.connections().chunks(self.pool);
        self.names.iter().map(String::as_str).zip(lanes)
    }

    /// How long a round takes at present, in which a quorum answers.
    pub(crate) fn rtt_estimate(&self) -> Duration {
        self.pace.estimate().max(RttEstimate::SPIN_TIME)
    }

    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    pub(crate) fn name(&self, node: usize) -> &str {
        &self.names[node]
    }

    /// Asks all nodes. Does not block: [`Round::wait`] waits for what they say.
    pub(crate) fn send_to_all<'a>(
        &'a self,
        request: &'a Request,
        inbox: &'a Arc<Inbox>,
    ) -> Round<'a> {
        self.send_with_sink(request, inbox, Arc::clone(inbox) as _)
    }

    /// The same for an addressee who hears every answer, passes it on to the inbox, and has something else to do with it.
    pub(crate) fn send_with_sink<'a>(
        &'a self,
        request: &'a Request,
        inbox: &'a Arc<Inbox>,
        addressee: Arc<dyn ReplySink>,
    ) -> Round<'a> {
        let mut round = self.open_round(request, inbox);
        self.dispatch(&mut round, request, &addressee, |_| true);
        round
    }

    /// Asks all nodes for something else than `request`, in whose place it is, and whose question the answers are to. They go to
    /// an addressee as in [`send_with_sink`](Nodes::send_with_sink).
    pub(crate) fn send_substitute<'a>(
        &'a self,
        request: &'a Request,
        instead: &Request,
        inbox: &'a Arc<Inbox>,
        addressee: Arc<dyn ReplySink>,
    ) -> Round<'a> {
        let mut round = self.resume_round(request, inbox, inbox.open_round(self.total()));
        self.dispatch(&mut round, instead, &addressee, |_| true);
        round
    }

    /// Asks one node, and the others only if that one does not refuse, or takes its time. `Err` if it refused, or the
    /// caller was cancelled.
    pub(crate) fn send_preferred_first<'a>(
        &'a self,
        request: &'a Request,
        inbox: &'a Arc<Inbox>,
        first: usize,
    ) -> Result<Round<'a>, Box<RoundOutcome>> {
        let mut round = self.open_round(request, inbox);
        let given = self.submit(&mut round, |node| node == first);
        if given.contains(first) {
            let start = clock::now();
            let end = start + 4 * self.rtt_estimate();
            let ended = round.collect_replies(1, self.pace.spin_deadline(start), Some(end));
            if round.tally.refused().contains(first) || ended == WaitEnd::Cancelled {
                return Err(Box::new(round.finish(ended)));
            }
        }
        self.submit(&mut round, |node| node != first);
        Ok(round)
    }

    fn open_round<'a>(&'a self, request: &'a Request, inbox: &'a Arc<Inbox>) -> Round<'a> {
        let number = inbox.open_round(self.total());
        let mut round = self.resume_round(request, inbox, number);
        round.caller = self.company.join(clock::now());
        round
    }

    /// A round of the inbox that was opened before, of one who hands something on or is handed it.
    pub(crate) fn resume_round<'a>(
        &'a self,
        request: &'a Request,
        inbox: &'a Arc<Inbox>,
        number: u32,
    ) -> Round<'a> {
        Round {
            request,
            inbox,
            number,
            tally: self.tally(request),
            numbers: Vec::new(),
            heard: Vec::new(),
            in_the_way: Vec::new(),
            free: Vec::new(),
            answers: Vec::new(),
            nodes: self,
            caller: CallerGuard::UNCOUNTED,
            own: DirectReplies {
                nodes: self,
                key: request.lease.key(),
                pending: NodeSet::default(),
                unattended: NodeSet::default(),
            },
        }
    }

    /// Answers which nodes were asked.
    pub(crate) fn submit(&self, round: &mut Round<'_>, to: impl Fn(usize) -> bool) -> NodeSet {
        let addressee: Arc<dyn ReplySink> = Arc::clone(round.inbox) as _;
        self.dispatch(round, round.request, &addressee, to)
    }

    /// Asks all nodes for many requests at once, each in a round of `addressee`, who counts the answers himself. Does not
    /// block. The faults of suspect nodes are counted at once, without asking them.
    pub(crate) fn send_many(
        &self,
        requests: &[(Request, u32)],
        addressee: &Arc<dyn ReplySink>,
    ) -> Vec<Tally> {
        let now = clock::now();
        let tallies = requests.iter().map(|(request, _)| self.tally(request));
        let mut tallies: Vec<Tally> = tallies.collect();
        for (number, lane) in self.crew.connections().iter().enumerate() {
            let (node, connection) = (number / self.pool, number % self.pool);
            let mut jobs = Vec::new();
            let mut asked = Vec::new();
            for (index, (request, round)) in requests.iter().enumerate() {
                if self.connection_index(request.lease.key()) == connection {
                    asked.push(index);
                    jobs.push(Job {
                        request: request.clone(),
                        reply: Some((Arc::clone(addressee), *round)),
                    });
                }
            }
            if jobs.is_empty() {
                continue;
            }
            if let Err(cause) = lane.submit_all(jobs, now) {
                for index in asked {
                    tallies[index].vote(node, Vote::Fault(cause.clone()));
                }
            }
        }
        tallies
    }

    fn tally(&self, request: &Request) -> Tally {
        Tally::new(self.total(), vote_rule(request.verb))
    }

    /// Asks some nodes, and answers which. A suspect node's fault is counted at once.
    fn dispatch(
        &self,
        round: &mut Round<'_>,
        request: &Request,
        addressee: &Arc<dyn ReplySink>,
        to: impl Fn(usize) -> bool,
    ) -> NodeSet {
        let now = clock::now();
        let in_person = self.uses_direct_send(&round.caller, now);
        encode::with_encoded(request, |bytes| {
            let mut given = NodeSet::default();
            let mut request = request.clone();
            if !in_person {
                request.encoded = Some(Arc::from(bytes));
            }
            for (node, lane) in self.connections_for(request.lease.key()) {
                if !to(node) {
                    continue;
                }
                let job = Job {
                    request: request.clone(),
                    reply: Some((Arc::clone(addressee), round.number)),
                };
                match give(node, lane, job, in_person.then_some(bytes), now) {
                    Ok(started) => {
                        given.insert(node);
                        if let Submitted::Sent { wake_worker: wake } = started {
                            round.own.note(node, wake);
                        }
                    }
                    Err(cause) => round.tally.vote(node, Vote::Fault(cause)),
                }
            }
            given
        })
    }

    /// Whether a caller speaks to idle nodes himself.
    fn uses_direct_send(&self, caller: &CallerGuard<'_>, now: Instant) -> bool {
        caller.is_only_caller() && self.pace.spin_deadline(now).is_some()
    }

    /// Wakes our listener on a node. Nobody waits.
    pub(crate) fn wake_listener(&self, private: &Arc<Lease>, node: usize) {
        self.send_unawaited(
            &Request::new(Op::WakeListener, private, 0),
            NodeSet::single(node),
        );
    }

    /// The first node that is connected, of those that vote if there are any: one in quarantine refuses everybody.
    pub(crate) fn first_voting_node(&self) -> Option<usize> {
        self.first_up_of(|_| true)
    }

    /// The same of those nodes that suit.
    pub(crate) fn first_up_of(&self, suits: impl Fn(usize) -> bool) -> Option<usize> {
        let now = clock::now();
        let lanes = || self.crew.connections().iter().enumerate();
        let is_up = |(number, lane): &(usize, &NodeConnection)| {
            lane.is_up(now) && suits(number / self.pool)
        };
        let votes = |(_, lane): &(usize, &NodeConnection)| lane.quarantine(now).is_zero();
        let lane = lanes().filter(is_up).find(votes);
        let lane = lane.or_else(|| lanes().find(is_up));
        lane.map(|(number, _)| number / self.pool)
    }

    /// Whether no node is known to be in quarantine.
    pub(crate) fn none_quarantined(&self) -> bool {
        let now = clock::now();
        let lanes = self.crew.connections();
        lanes.iter().all(|lane| lane.quarantine(now).is_zero())
    }

    /// Releases a lease's token on all nodes that may hold it, `except` those that certainly do not. Nobody waits.
    pub(crate) fn release_unawaited(&self, lease: &Arc<Lease>, except: NodeSet) {
        let undo = Request::new(Op::Release, lease, 0);
        self.send_unawaited(&undo, lease.contacted().difference(except));
    }

    /// Puts a lease's key back on `nodes` that have lost it. Nobody waits.
    pub(crate) fn restore(&self, lease: &Arc<Lease>, ttl: u64, nodes: NodeSet) {
        self.send_unawaited(&Request::new(Op::Restore, lease, ttl), nodes);
    }

    /// Puts a request into the lanes of `nodes`. Nobody waits.
    pub(crate) fn send_unawaited(&self, request: &Request, nodes: NodeSet) {
        self.send_unawaited_with_sink(request, nodes, None);
    }

    /// The same for an addressee who is not waited for either.
    pub(crate) fn send_unawaited_with_sink(
        &self,
        request: &Request,
        nodes: NodeSet,
        addressee: Option<&Arc<dyn ReplySink>>,
    ) {
        let now = clock::now();
        let in_person = self.uses_direct_send(&self.company.join(now), now);
        encode::with_encoded(request, |bytes| {
            for (node, lane) in self.connections_for(request.lease.key()) {
                if !nodes.contains(node) {
                    continue;
                }
                let job = Job {
                    request: request.clone(),
                    reply: addressee.map(|addressee| (Arc::clone(addressee), 0)),
                };
                let given = give(node, lane, job, in_person.then_some(bytes), now);
                if let Ok(Submitted::Sent { wake_worker: true }) = given {
                    lane.wake_worker();
                }
            }
        });
    }

    /// The lanes that a key uses: of each node's connections always the same one. A lock of several keys uses those of its first.
    pub(crate) fn connections_for(
        &self,
        key: &Key,
    ) -> impl Iterator<Item = (usize, &NodeConnection)> {
        let lanes = self
            .crew
            .connections()
            .iter()
            .skip(self.connection_index(key));
        lanes.step_by(self.pool).enumerate()
    }

    fn connection_index(&self, key: &Key) -> usize {
        match self.pool {
            1 => 0,
            pool => {
                let hasher = BuildHasherDefault::<DefaultHasher>::default();
                (hasher.hash_one(key) % pool as u64) as usize
            }
        }
    }

    /// Ends all lanes when they have served what is queued; `false` if some did not until `end`.
    pub(crate) fn shutdown(&self, end: Instant) -> bool {
        self.crew.shutdown(end)
    }
}

impl NodeHealth {
    /// Of several connections the worst one is told.
    pub(crate) fn of(node: &str, lanes: &[NodeConnection]) -> Option<NodeHealth> {
        let now = clock::now();
        let each = lanes
            .iter()
            .map(|lane| NodeHealth::of_lane(node, lane, now));
        each.min_by_key(|health| health.state == NodeState::Up)
    }

    fn of_lane(node: &str, lane: &NodeConnection, now: Instant) -> NodeHealth {
        let report = lane.report();
        let remaining = lane.quarantine(now);
        let (state, cause) = match lane.unavailable(now) {
            Some(cause) => (NodeState::Suspect, Some(cause)),
            None if remaining.is_zero() => (NodeState::Up, None),
            None => (
                NodeState::Quarantined,
                Some(NodeFailure::Quarantined { remaining }),
            ),
        };
        let about = report.server_info.unwrap_or_default();
        NodeHealth {
            node: node.to_owned(),
            state,
            since: lane.overdue(now).unwrap_or(report.since),
            cause,
            role: about.role,
            eviction_policy: about.maxmemory_policy,
            clock_offset: about.clock_offset.map(|clock| clock.offset),
            clock_uncertainty: about.clock_offset.map(|clock| clock.uncertainty),
        }
    }
}
