//! All configured nodes: send, restore, release; health and stats.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::Cause;
use crate::local::lock_table::Gate;
use crate::protocol::breaker::LanesUp;
use crate::protocol::encode;
use crate::protocol::key::Key;
use crate::protocol::lease::Lease;
use crate::protocol::quorum::{NodeSet, Question, Tally, Vote, quorum};
use crate::protocol::reply::question;
use crate::protocol::request::{Request, Verb};
use crate::telemetry::health::{NodeHealth, NodeState};
use crate::telemetry::stats::{Meter, NodeStats, Stats};
use crate::time::clock;
use crate::transport::connection::Lane;
use crate::transport::inbox::{Ended, Inbox};
use crate::transport::job::{Addressee, Job};
use crate::transport::load::{Caller, Company, Pace};
use crate::transport::messages::Start;
use crate::transport::registry::Waiters;
use crate::transport::round::{Outcome, Own, Round, give};
use crate::transport::worker_pool::Crew;

/// The configured nodes as one: what the rooms above ask is asked of all of them.
#[derive(Debug)]
pub(crate) struct Nodes {
    crew: Crew,
    names: Vec<String>,
    pool: usize,
    pub(crate) pace: Pace,
    company: Company,
    meter: Meter,
}

impl Nodes {
    pub(crate) fn new(crew: Crew, names: Vec<String>, pool: usize, meter: Meter) -> Nodes {
        Nodes {
            crew,
            names,
            pool,
            pace: Pace::default(),
            company: Company::default(),
            meter,
        }
    }

    pub(crate) fn total(&self) -> usize {
        self.names.len()
    }

    /// Counts what happens to locks on these nodes.
    pub(crate) fn meter(&self) -> &Meter {
        &self.meter
    }

    pub(crate) fn stats(&self) -> Stats {
        let nodes = self.each().map(|(node, lanes)| {
            let mut stats = NodeStats::of(node);
            lanes
                .iter()
                .for_each(|lane| lane.traffic().add_to(&mut stats));
            stats
        });
        self.meter.stats(nodes.collect())
    }

    /// How many lanes are up.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn up(&self) -> usize {
        let up = |lane: &&Lane| lane.suspect(clock::now()).is_none();
        self.crew.lanes().iter().filter(up).count()
    }

    /// Whether a quorum of nodes is connected: then a round may have a quorum.
    pub(crate) fn quorum_up(&self) -> bool {
        let now = clock::now();
        let up = |lanes: &&[Lane]| lanes.iter().all(|lane| lane.is_up(now));
        let nodes = self.crew.lanes().chunks(self.pool);
        nodes.filter(up).count() >= quorum(self.total())
    }

    /// Which lanes are connected, as the breaker wants to know it.
    pub(crate) fn lanes_up(&self) -> LanesUp {
        // The number first: what comes up after that is news.
        let risen = self.crew.census().risen();
        LanesUp {
            risen,
            quorum: self.quorum_up(),
        }
    }

    /// How often a lane has come up.
    pub(crate) fn risen(&self) -> u64 {
        self.crew.census().risen()
    }

    /// Waits until a quorum of nodes is connected, until `end`, or until the gate before them is closed. `false` if no quorum
    /// is connected.
    pub(crate) fn wait_up(&self, end: Option<Instant>, gate: &Gate) -> bool {
        let census = self.crew.census();
        census.wait_until(end, || self.quorum_up() || gate.is_closed()) && self.quorum_up()
    }

    /// Returns whether fresh connects have failed to so many nodes that no quorum is left (rule S9).
    pub(crate) fn no_quorum_reachable(&self) -> bool {
        self.crew.census().reached() < quorum(self.total())
    }

    /// The callers that wait for nodes to come up.
    pub(crate) fn waiters(&self) -> &Arc<Waiters> {
        self.crew.census().waiters()
    }

    /// Lets those look who wait for nodes.
    pub(crate) fn announce(&self) {
        self.crew.census().announce();
    }

    /// Which nodes are connected, and why the others are not; `last` names those that are, but did not reply when they were
    /// asked last.
    pub(crate) fn roll_call(&self, last: &[(usize, Cause)]) -> Tally {
        let (now, mut tally) = (clock::now(), Tally::new(self.total(), Question::Take));
        for (node, (_, lanes)) in self.each().enumerate() {
            let cause = lanes.iter().find_map(|lane| lane.suspect(now));
            let silent = || last.iter().find(|(silent, _)| *silent == node);
            let cause = cause.or_else(|| silent().map(|(_, cause)| cause.clone()));
            tally.vote(node, cause.map_or(Vote::Granted, Vote::Fault));
        }
        tally
    }

    /// Each node with its lanes.
    pub(crate) fn each(&self) -> impl Iterator<Item = (&str, &[Lane])> {
        let lanes = self.crew.lanes().chunks(self.pool);
        self.names.iter().map(String::as_str).zip(lanes)
    }

    /// How long a round takes at present, in which a quorum answers.
    pub(crate) fn usual_round(&self) -> Duration {
        self.pace.usual().max(Pace::YIELD)
    }

    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    pub(crate) fn name(&self, node: usize) -> &str {
        &self.names[node]
    }

    /// Asks all nodes. Does not block: [`Round::outcome`] waits for what they say.
    pub(crate) fn ask<'a>(&'a self, request: &'a Request, inbox: &'a Arc<Inbox>) -> Round<'a> {
        self.ask_for(request, inbox, Arc::clone(inbox) as _)
    }

    /// The same for an addressee who hears every answer, passes it on to the inbox, and has something else to do with it.
    pub(crate) fn ask_for<'a>(
        &'a self,
        request: &'a Request,
        inbox: &'a Arc<Inbox>,
        addressee: Arc<dyn Addressee>,
    ) -> Round<'a> {
        let mut round = self.open(request, inbox);
        self.put(&mut round, request, &addressee, |_| true);
        round
    }

    /// Asks all nodes for something else than `request`, in whose place it is, and whose question the answers are to. They go to
    /// an addressee as in [`ask_for`](Nodes::ask_for).
    pub(crate) fn ask_instead<'a>(
        &'a self,
        request: &'a Request,
        instead: &Request,
        inbox: &'a Arc<Inbox>,
        addressee: Arc<dyn Addressee>,
    ) -> Round<'a> {
        let mut round = self.join(request, inbox, inbox.open_round(self.total()));
        self.put(&mut round, instead, &addressee, |_| true);
        round
    }

    /// Asks one node, and the others only if that one does not refuse, or takes its time. `Err` if it refused, or the
    /// caller was cancelled.
    pub(crate) fn ask_one_first<'a>(
        &'a self,
        request: &'a Request,
        inbox: &'a Arc<Inbox>,
        first: usize,
    ) -> Result<Round<'a>, Box<Outcome>> {
        let mut round = self.open(request, inbox);
        let given = self.submit(&mut round, |node| node == first);
        if given.contains(first) {
            let start = clock::now();
            let end = start + 4 * self.usual_round();
            let ended = round.collect(1, self.pace.soon(start), Some(end));
            if round.tally.refused().contains(first) || ended == Ended::Cancelled {
                return Err(Box::new(round.end(ended)));
            }
        }
        self.submit(&mut round, |node| node != first);
        Ok(round)
    }

    fn open<'a>(&'a self, request: &'a Request, inbox: &'a Arc<Inbox>) -> Round<'a> {
        let number = inbox.open_round(self.total());
        let mut round = self.join(request, inbox, number);
        round.caller = self.company.join(clock::now());
        round
    }

    /// A round of the inbox that was opened before, of one who hands something on or is handed it.
    pub(crate) fn join<'a>(
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
            caller: Caller::ASIDE,
            own: Own {
                nodes: self,
                key: request.lease.key(),
                open: NodeSet::default(),
                unseen: NodeSet::default(),
            },
        }
    }

    /// Answers which nodes were asked.
    pub(crate) fn submit(&self, round: &mut Round<'_>, to: impl Fn(usize) -> bool) -> NodeSet {
        let addressee: Arc<dyn Addressee> = Arc::clone(round.inbox) as _;
        self.put(round, round.request, &addressee, to)
    }

    /// Asks all nodes for many requests at once, each in a round of `addressee`, who counts the answers himself. Does not
    /// block. The faults of suspect nodes are counted at once, without asking them.
    pub(crate) fn ask_for_many(
        &self,
        requests: &[(Request, u32)],
        addressee: &Arc<dyn Addressee>,
    ) -> Vec<Tally> {
        let now = clock::now();
        let tallies = requests.iter().map(|(request, _)| self.tally(request));
        let mut tallies: Vec<Tally> = tallies.collect();
        for (number, lane) in self.crew.lanes().iter().enumerate() {
            let (node, connection) = (number / self.pool, number % self.pool);
            let mut jobs = Vec::new();
            let mut asked = Vec::new();
            for (index, (request, round)) in requests.iter().enumerate() {
                if self.choice(request.lease.key()) == connection {
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
        Tally::new(self.total(), question(request.verb))
    }

    /// Asks some nodes, and answers which. A suspect node's fault is counted at once.
    fn put(
        &self,
        round: &mut Round<'_>,
        request: &Request,
        addressee: &Arc<dyn Addressee>,
        to: impl Fn(usize) -> bool,
    ) -> NodeSet {
        let now = clock::now();
        let in_person = self.asks_in_person(&round.caller, now);
        encode::with_wire(request, |bytes| {
            let mut given = NodeSet::default();
            let mut request = request.clone();
            if !in_person {
                request.wire = Some(Arc::from(bytes));
            }
            for (node, lane) in self.lanes(request.lease.key()) {
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
                        if let Start::Begun { wake } = started {
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
    fn asks_in_person(&self, caller: &Caller<'_>, now: Instant) -> bool {
        caller.is_alone() && self.pace.soon(now).is_some()
    }

    /// Wakes our listener on a node. Nobody waits.
    pub(crate) fn knock(&self, private: &Arc<Lease>, node: usize) {
        self.tell(&Request::new(Verb::Knock, private, 0), NodeSet::of(node));
    }

    /// The first node that is connected, of those that vote if there are any: one in quarantine refuses everybody.
    pub(crate) fn first_up(&self) -> Option<usize> {
        self.first_up_of(|_| true)
    }

    /// The same of those nodes that suit.
    pub(crate) fn first_up_of(&self, suits: impl Fn(usize) -> bool) -> Option<usize> {
        let now = clock::now();
        let lanes = || self.crew.lanes().iter().enumerate();
        let is_up = |(number, lane): &(usize, &Lane)| lane.is_up(now) && suits(number / self.pool);
        let votes = |(_, lane): &(usize, &Lane)| lane.quarantine(now).is_zero();
        let lane = lanes().filter(is_up).find(votes);
        let lane = lane.or_else(|| lanes().find(is_up));
        lane.map(|(number, _)| number / self.pool)
    }

    /// Whether no node is known to be in quarantine.
    pub(crate) fn all_vote(&self) -> bool {
        let now = clock::now();
        let lanes = self.crew.lanes();
        lanes.iter().all(|lane| lane.quarantine(now).is_zero())
    }

    /// Releases a lease's token on all nodes that may hold it, `except` those that certainly do not. Nobody waits.
    pub(crate) fn release_behind(&self, lease: &Arc<Lease>, except: NodeSet) {
        let undo = Request::new(Verb::Release, lease, 0);
        self.tell(&undo, lease.asked().without(except));
    }

    /// Puts a lease's key back on `nodes` that have lost it. Nobody waits.
    pub(crate) fn put_back(&self, lease: &Arc<Lease>, ttl: u64, nodes: NodeSet) {
        self.tell(&Request::new(Verb::PutBack, lease, ttl), nodes);
    }

    /// Puts a request into the lanes of `nodes`. Nobody waits.
    pub(crate) fn tell(&self, request: &Request, nodes: NodeSet) {
        self.tell_for(request, nodes, None);
    }

    /// The same for an addressee who is not waited for either.
    pub(crate) fn tell_for(
        &self,
        request: &Request,
        nodes: NodeSet,
        addressee: Option<&Arc<dyn Addressee>>,
    ) {
        let now = clock::now();
        let in_person = self.asks_in_person(&self.company.join(now), now);
        encode::with_wire(request, |bytes| {
            for (node, lane) in self.lanes(request.lease.key()) {
                if !nodes.contains(node) {
                    continue;
                }
                let job = Job {
                    request: request.clone(),
                    reply: addressee.map(|addressee| (Arc::clone(addressee), 0)),
                };
                let given = give(node, lane, job, in_person.then_some(bytes), now);
                if let Ok(Start::Begun { wake: true }) = given {
                    lane.wake();
                }
            }
        });
    }

    /// The lanes that a key uses: of each node's connections always the same one. A lock of several keys uses those of its first.
    pub(crate) fn lanes(&self, key: &Key) -> impl Iterator<Item = (usize, &Lane)> {
        let lanes = self.crew.lanes().iter().skip(self.choice(key));
        lanes.step_by(self.pool).enumerate()
    }

    fn choice(&self, key: &Key) -> usize {
        match self.pool {
            1 => 0,
            pool => {
                let hasher = BuildHasherDefault::<DefaultHasher>::default();
                (hasher.hash_one(key) % pool as u64) as usize
            }
        }
    }

    /// Ends all lanes when they have served what is queued; `false` if some did not until `end`.
    pub(crate) fn disband(&self, end: Instant) -> bool {
        self.crew.disband(end)
    }
}

impl NodeHealth {
    /// Of several connections the worst one is told.
    pub(crate) fn of(node: &str, lanes: &[Lane]) -> Option<NodeHealth> {
        let now = clock::now();
        let each = lanes
            .iter()
            .map(|lane| NodeHealth::of_lane(node, lane, now));
        each.min_by_key(|health| health.state == NodeState::Up)
    }

    fn of_lane(node: &str, lane: &Lane, now: Instant) -> NodeHealth {
        let report = lane.report();
        let remaining = lane.quarantine(now);
        let (state, cause) = match lane.suspect(now) {
            Some(cause) => (NodeState::Suspect, Some(cause)),
            None if remaining.is_zero() => (NodeState::Up, None),
            None => (
                NodeState::Quarantined,
                Some(Cause::Quarantined { remaining }),
            ),
        };
        let about = report.about.unwrap_or_default();
        NodeHealth {
            node: node.to_owned(),
            state,
            since: lane.overdue(now).unwrap_or(report.since),
            cause,
            role: about.role,
            eviction_policy: about.policy,
            clock_offset: about.clock.map(|clock| clock.offset),
            clock_uncertainty: about.clock.map(|clock| clock.uncertainty),
        }
    }
}
