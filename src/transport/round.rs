//! Many nodes, once: one request into every node's lane, and one wait for what they answer.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::debug;

use crate::error::Cause;
use crate::local::lock_table::Gate;
use crate::protocol::breaker::LanesUp;
use crate::protocol::key::Key;
use crate::protocol::lease::{FOR_EVER, Lease};
use crate::protocol::permits::Free;
use crate::protocol::quorum::{NodeSet, Question, Tally, Verdict, Vote, quorum};
use crate::protocol::request;
use crate::protocol::request::{Answer, Holder, Request, Verb};
use crate::telemetry::stats::{Meter, NodeStats, Stats};
use crate::time::clock;
use crate::time::clock::Budget;
use crate::transport::connection::{Lane, Start};
use crate::transport::inbox::{Ended, Inbox};
use crate::transport::job::{Addressee, Job};
use crate::transport::load::{Caller, Company, Pace};
use crate::transport::registry::Waiters;
use crate::transport::worker_pool::Crew;

/// The configured nodes as one: what the rooms above ask is asked of all of them.
#[derive(Debug)]
pub(crate) struct Nodes {
    crew: Crew,
    names: Vec<String>,
    pool: usize,
    pace: Pace,
    company: Company,
    meter: Meter,
}

/// One request on its way to the nodes.
#[derive(Debug)]
#[must_use = "the answers are in its outcome"]
pub(crate) struct Round<'a> {
    request: &'a Request,
    inbox: &'a Arc<Inbox>,
    number: u32,
    tally: Tally,
    numbers: Vec<(usize, u64)>,
    heard: Vec<(usize, u64)>,
    in_the_way: Vec<usize>,
    free: Vec<Free>,
    /// Empty but while they are counted; kept for its memory.
    answers: Vec<(usize, Answer)>,
    nodes: &'a Nodes,
    caller: Caller<'a>,
    own: Own<'a>,
}

/// The nodes that a caller has asked himself, and looks for the answers of. What has not come when this is dropped, their lanes'
/// threads look for.
#[derive(Debug)]
struct Own<'a> {
    nodes: &'a Nodes,
    key: &'a Key,
    open: NodeSet,
    /// Those of them whose lanes' threads do not look unless they are woken.
    unseen: NodeSet,
}

impl Own<'_> {
    fn note(&mut self, node: usize, wake: bool) {
        self.open.insert(node);
        if wake {
            self.unseen.insert(node);
        }
    }

    /// Takes in what has come; or, if that `is_over`, lets the lanes' threads wait for it.
    fn look(&mut self, is_over: bool) {
        for (node, lane) in self.nodes.lanes(self.key) {
            if self.open.contains(node) && (is_over || !lane.look()) {
                lane.wake();
                self.open = self.open.without(NodeSet::of(node));
            }
        }
    }
}

impl Drop for Own<'_> {
    fn drop(&mut self) {
        for (node, lane) in self.nodes.lanes(self.key) {
            if self.open.contains(node) && self.unseen.contains(node) {
                lane.wake_if_open();
            }
        }
    }
}

impl Round<'_> {
    /// Leaves what is to come to the lanes' threads, since others wait for it.
    pub(crate) fn leave(mut self) {
        self.own.look(true);
    }

    /// What is known so far.
    pub(crate) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Waits until the nodes have decided or the budget's time is over: nobody ever waits for a lane.
    pub(crate) fn outcome(mut self, budget: Budget) -> Outcome {
        let ended = self.decide(budget);
        self.end(ended)
    }

    /// The same for a round that may go on after it.
    pub(crate) fn decide(&mut self, budget: Budget) -> Ended {
        let start = clock::now();
        let soon = self.nodes.pace.soon(start);
        let mut ended = Ended::Answered;
        while self.tally.verdict().is_none() && ended == Ended::Answered {
            ended = self.collect(self.tally.at_least(), soon, budget.end());
        }
        self.nodes
            .pace
            .note(clock::now().saturating_duration_since(start));
        ended
    }

    /// Waits until `end` for as long as the votes that have come lack something.
    pub(crate) fn collect_while(&mut self, lacks: impl Fn(&Tally) -> bool, end: Instant) {
        let soon = self.nodes.pace.soon(clock::now());
        let mut ended = Ended::Answered;
        while lacks(&self.tally) && ended == Ended::Answered {
            ended = self.collect(1, soon, Some(end));
        }
    }

    /// Asks nodes that refused once more, for the same lease.
    pub(crate) fn ask_again(&mut self, contested: NodeSet) {
        self.tally.reopen(contested);
        self.free.clear();
        let nodes = self.nodes;
        nodes.submit(self, |node| contested.contains(node));
    }

    /// Counts what has not come as no answer: the nodes had their time.
    pub(crate) fn close(&mut self) {
        self.tally.close();
    }

    /// Waits for all nodes that were asked, whatever they say, until the budget's time is over.
    pub(crate) fn of_all(mut self, budget: Budget) -> Outcome {
        let mut ended = Ended::Answered;
        while self.tally.open() > 0 && ended == Ended::Answered {
            ended = self.collect(self.tally.open(), None, budget.end());
        }
        self.end(ended)
    }

    /// Waits for `wanted` answers and counts them.
    fn collect(&mut self, wanted: usize, soon: Option<Instant>, end: Option<Instant>) -> Ended {
        self.look(
            wanted,
            soon.map(|soon| end.map_or(soon, |end| soon.min(end))),
        );
        let ended = self.inbox.collect(wanted, soon, end, &mut self.answers);
        for (node, answer) in self.answers.drain(..) {
            match answer {
                Answer::Numbered(number) | Answer::Anew(Some(number)) => {
                    self.numbers.push((node, number))
                }
                Answer::Heard(count) => self.heard.push((node, count)),
                Answer::Held(Holder::Of(key), _) if !self.in_the_way.contains(&key) => {
                    self.in_the_way.push(key);
                }
                Answer::NotThisOne(ref free, _) => self.free.push(free.clone()),
                _ => {}
            }
            self.tally.vote(node, vote(answer));
        }
        ended
    }

    /// Looks for the answers of the nodes that the caller has asked himself, until `wanted` are there, or `end` (`None`: it is
    /// over). What has not come by then the lanes' threads wait for.
    fn look(&mut self, wanted: usize, end: Option<Instant>) {
        while self.own.open.len() > 0 && self.inbox.lacks(wanted) {
            std::thread::yield_now(); // a server on this machine may want the processor to answer
            self.own.look(end.is_none_or(|end| end <= clock::now()));
        }
    }

    /// Ends the round with what is known so far.
    pub(crate) fn end(mut self, ended: Ended) -> Outcome {
        self.inbox.close_round();
        let unsettled = self.tally.restore();
        let verdict = self.tally.verdict();
        let verdict = verdict.unwrap_or_else(|| self.tally.close());
        debug!(
            "{}: {}: {verdict:?}, {} granted, {} refused",
            self.request.lease.keys(),
            self.request.verb,
            self.tally.granted().len(),
            self.tally.refused().len(),
        );
        Outcome {
            verdict,
            tally: self.tally,
            numbers: self.numbers,
            heard: self.heard,
            in_the_way: self.in_the_way,
            free: self.free,
            unsettled,
            ended,
        }
    }
}

impl Outcome {
    /// The nodes that certainly have nothing of the lease.
    pub(crate) fn refused(&self) -> NodeSet {
        self.tally.refused().without(self.unsettled)
    }
}

/// How a round ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) verdict: Verdict,
    pub(crate) tally: Tally,
    /// What the fences of the nodes gave that granted a take.
    pub(crate) numbers: Vec<(usize, u64)>,
    /// How many heard of a release, on nodes where somebody did.
    pub(crate) heard: Vec<(usize, u64)>,
    /// Which of the lock's keys others hold, where it has several: of each node that refused the one that it is longest for.
    pub(crate) in_the_way: Vec<usize>,
    /// Which permits of a semaphore are free, on each node that refused one.
    pub(crate) free: Vec<Free>,
    /// The nodes that refused, were asked once more and have not answered.
    pub(crate) unsettled: NodeSet,
    /// What ended it.
    pub(crate) ended: Ended,
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
    fn submit(&self, round: &mut Round<'_>, to: impl Fn(usize) -> bool) -> NodeSet {
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
        request::with_wire(request, |bytes| {
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
        request::with_wire(request, |bytes| {
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
    fn lanes(&self, key: &Key) -> impl Iterator<Item = (usize, &Lane)> {
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

/// Gives a job to a node's lane, sent by this very thread if it is given as `bytes` on the wire.
///
/// A suspect node is asked for nothing and left nothing but the releases of leases that it was asked for before: what waits for
/// it does not grow with an outage (rule L3).
fn give(
    node: usize,
    lane: &Lane,
    job: Job,
    bytes: Option<&[u8]>,
    now: Instant,
) -> Result<Start, Cause> {
    let request = &job.request;
    // Before it is there. A lease that is given up before that need not be released: then the request is not sent.
    if request.verb.grants() && lane.is_up(now) {
        let node = NodeSet::of(node);
        request.leases().for_each(|lease| lease.note_asked(node));
    }
    let owed = request.verb == Verb::Release && request.lease.asked().contains(node);
    match bytes {
        Some(bytes) => lane.start_job(job, bytes, owed, now),
        None => lane.submit(job, owed, now).map(|()| Start::Queued),
    }
}

/// What a verb asks, as the tally counts it.
pub(crate) fn question(verb: Verb) -> Question {
    match verb {
        Verb::Take | Verb::Swap | Verb::PutBack => Question::Take,
        _ => Question::Mine,
    }
}

/// An answer as a vote. A value of another type, for example, is a clear refusal: it will not go away by asking again.
pub(crate) fn vote(answer: Answer) -> Vote {
    match answer {
        Answer::Yes | Answer::Numbered(_) | Answer::Heard(_) | Answer::Seen(_) => Vote::Granted,
        Answer::Anew(_) => Vote::Granted,
        Answer::Held(by, remaining) => Vote::Refused(match by {
            Holder::One | Holder::Unknown | Holder::Of(_) => Cause::Held { remaining },
            Holder::Readers => Cause::Readers { remaining },
            // Who comes in during the turn may stay for longer.
            Holder::Turn => Cause::Readers { remaining: None },
            Holder::Gate => Cause::WriterWaiting { remaining },
        }),
        Answer::NotThisOne(_, next) => Vote::Refused(Cause::Held {
            remaining: Some(next).filter(|next| *next < FOR_EVER),
        }),
        Answer::OtherPermits(permits) => Vote::Refused(Cause::OtherPermits {
            permits: u32::from(permits),
        }),
        Answer::Absent | Answer::Foreign => Vote::Refused(Cause::NotOurs),
        Answer::Fault(cause @ Cause::Quarantined { .. }) => Vote::Refused(cause),
        Answer::Fault(cause) if cause.is_lasting() => Vote::Refused(cause),
        Answer::Fault(cause) => Vote::Fault(cause),
    }
}
