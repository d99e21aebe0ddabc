//! A client's lane to a node, as `worker` serves it: one batch on the wire, releases that are owed, and a new connection where
//! one broke, which kills the former before anything else.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::error::NodeFailure;
use crate::protocol::quorum::NodeSet;
use crate::protocol::reply::Reply;
use crate::protocol::request::{Op, Request};
use crate::protocol::send_check;
use crate::protocol::server_info::ServerInfo;
use crate::tests::simulation::config::{Care, PlantedBug, Probability};
use crate::tests::simulation::node::Sent;
use crate::tests::simulation::rounds::Post;
use crate::tests::simulation::simulator::{SimEvent, Simulator};

/// The pauses between failed connects: from the first, doubling, to the last. In µs, and shorter than the real ones, so that
/// more happens.
const FIRST_PAUSE: u64 = 10_000;
const LAST_PAUSE: u64 = 200_000;
/// Fewer than in `desk`, so that more happens in between.
const MAX_BEHIND: usize = 2;

/// One connection to one node, and what is to be sent there.
#[derive(Debug)]
pub(crate) struct Lane {
    state: State,
    /// The number of the connection.
    pub(crate) life: u32,
    /// The number of the batch on the wire.
    batch: u32,
    wire: Vec<Job>,
    queue: VecDeque<Job>,
    owed: VecDeque<Job>,
    failures: u32,
    /// The run of the node that the connection leads to, or the last one did, and when that was met first.
    run: u32,
    run_since: u64,
    /// Whether the connection broke and one connect is waited for: what is queued stays so until that fails.
    waits: bool,
    /// Until then the node does not vote on new leases.
    quarantined_until: Option<Instant>,
    /// Until then everything between the two is lost.
    pub(crate) cut_off_until: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connecting,
    Up,
}

/// A request, and the round that its answer is for.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) request: Request,
    pub(crate) round: Option<u32>,
    /// It is a release that was on the wire before.
    was_sent: bool,
}

impl Job {
    pub(crate) fn new(request: &Request, round: Option<u32>) -> Job {
        Job {
            request: request.clone(),
            round,
            was_sent: false,
        }
    }
}

impl Lane {
    pub(crate) fn new() -> Lane {
        Lane {
            state: State::Up,
            life: 0,
            batch: 0,
            wire: Vec::new(),
            queue: VecDeque::new(),
            owed: VecDeque::new(),
            failures: 0,
            run: 0,
            run_since: 0,
            waits: false,
            quarantined_until: None,
            cut_off_until: 0,
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.state == State::Up
    }

    fn may_send(&self) -> bool {
        self.is_up() && self.wire.is_empty()
    }

    /// The next job that may travel with those on the wire: never two of one token.
    fn next_of_batch(&mut self) -> Option<Job> {
        let job = self.queue.front()?;
        match self
            .wire
            .iter()
            .any(|other| other.request.shares_token(&job.request))
        {
            true => None,
            false => self.queue.pop_front(),
        }
    }

    /// The pending releases that travel behind a batch.
    fn take_pending(&mut self) -> Vec<Job> {
        let count = self.owed.len().min(MAX_BEHIND);
        self.owed.drain(..count).collect()
    }

    fn quarantine(&self, now: Instant) -> Duration {
        let until = self.quarantined_until;
        until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }

    /// Up, with nothing to do.
    pub(crate) fn is_idle(&self) -> bool {
        self.is_up() && self.wire.is_empty() && self.queue.is_empty() && self.owed.is_empty()
    }
}

impl Simulator {
    /// Hands a job to a lane; `false` if the node is suspect. Then nothing is queued but what is owed.
    pub(crate) fn submit(&mut self, client: usize, node: usize, job: Job, owed: bool) -> bool {
        let lane = &mut self.clients[client].lanes[node];
        let up = lane.is_up() || lane.waits;
        self.counts.waits += u64::from(up && !lane.is_up());
        if up && job.request.op.grants() {
            let leases = job.request.written_leases();
            leases.for_each(|lease| lease.record_contacted(NodeSet::single(node)));
        }
        if up || owed {
            lane.queue.push_back(job);
            match self.knobs.hop.strike(&mut self.rng) {
                true => {
                    let at = self.now + self.travel();
                    self.tell(at, client, SimEvent::Pump { node });
                }
                false => self.pump(client, node),
            }
        }
        up
    }

    /// Puts a request into the lanes of some nodes. Nobody waits.
    pub(crate) fn tell_nodes(&mut self, client: usize, request: &Request, nodes: NodeSet) {
        for node in (0..self.nodes.len()).filter(|node| nodes.contains(*node)) {
            let owed = request.op == Op::Release && request.lease.contacted().contains(node);
            self.submit(client, node, Job::new(request, None), owed);
        }
    }

    /// Sends what is queued, if nothing is on the wire.
    pub(crate) fn pump(&mut self, client: usize, node: usize) {
        let now = self.clock(client);
        if !self.clients[client].lanes[node].may_send() {
            return;
        }
        while let Some(job) = self.clients[client].lanes[node].next_of_batch() {
            let quarantine = self.clients[client].lanes[node].quarantine(now);
            let unsent = send_check::skip_reply(&job.request, node, quarantine, now);
            if let Some(release) = unsent
                .as_ref()
                .and_then(|answer| send_check::replacement_release(&job.request, answer))
            {
                // Its round is over; how the one that releases learns of it is not in here.
                let job = Job::new(&release, None);
                match send_check::skip_reply(&release, node, quarantine, now) {
                    Some(answer) => self.post(client, node, &job, answer),
                    None => self.clients[client].lanes[node].wire.push(job),
                }
                continue;
            }
            if let Some(answer) = unsent {
                self.post(client, node, &job, answer);
                continue;
            }
            send_check::record_sent(&job.request, node, now);
            self.clients[client].lanes[node].wire.push(job);
        }
        for job in self.clients[client].lanes[node].take_pending() {
            match job.request.lease.may_exist(node, now) {
                true => self.clients[client].lanes[node].wire.push(job),
                false => self.post(client, node, &job, Reply::Absent),
            }
        }
        self.send_batch(client, node);
    }

    /// Gives what is on the wire over to the network.
    fn send_batch(&mut self, client: usize, node: usize) {
        let lane = &mut self.clients[client].lanes[node];
        if lane.wire.is_empty() {
            return;
        }
        lane.batch += 1;
        let (life, batch, count) = (lane.life, lane.batch, lane.wire.len());
        let by_name = self.knobs.is(PlantedBug::ReleaseByName);
        let requests = lane.wire.iter().map(|job| {
            let mut request = job.request.clone();
            if by_name && job.was_sent {
                request.op = Op::ForceRelease;
            }
            request
        });
        let requests = requests.collect();
        let cut_off = lane.cut_off_until > self.now;
        let clock = self.clients[client].clock;
        let overdue = clock.when(clock.at(self.now) + self.knobs.node_timeout);
        self.tell(overdue, client, SimEvent::Overdue { node, life, batch });
        let calm = self.calm;
        let mut strikes = |odds: Probability| !calm && odds.strike(&mut self.rng);
        let lost = cut_off || strikes(self.knobs.lost);
        let cut = strikes(self.knobs.cut);
        let (mut served, mut answered) = (count, count);
        let mut at = self.now + self.travel();
        if lost || cut {
            served = self.rng.usize(..=count);
            answered = self.rng.usize(..=served);
            if self.knobs.late.strike(&mut self.rng) {
                at += self.rng.u64(..self.knobs.longest());
            }
        }
        if cut {
            // Seen sooner than what was sent arrives, or later.
            let seen = self.now + self.travel() + self.travel();
            self.tell(seen, client, SimEvent::Broken { node, life });
        }
        if served > 0 || !lost {
            let sent = Sent::Batch {
                client,
                life,
                batch,
                requests,
                served,
                answered,
                unheard: lost,
            };
            self.send(at, node, sent);
        }
    }

    pub(crate) fn hear_answers(
        &mut self,
        client: usize,
        node: usize,
        (life, batch): (u32, u32),
        answers: Vec<Reply>,
    ) {
        let now = self.clock(client);
        let lane = &mut self.clients[client].lanes[node];
        if (lane.life, lane.batch) != (life, batch) || lane.wire.is_empty() {
            return;
        }
        let whole = answers.len() == lane.wire.len();
        let answered: Vec<Job> = lane.wire.drain(..answers.len()).collect();
        for (job, answer) in answered.iter().zip(answers) {
            send_check::record_sent(&job.request, node, now);
            send_check::record_reply(&job.request, node, &answer);
            self.post(client, node, job, answer);
        }
        if whole {
            self.go_on(client, node);
            self.to_check = Some((client, node));
        }
    }

    /// A lane has nothing on the wire any more.
    fn go_on(&mut self, client: usize, node: usize) {
        self.pump(client, node);
    }

    pub(crate) fn hear_broken(&mut self, client: usize, node: usize, life: u32) {
        let lane = &self.clients[client].lanes[node];
        if lane.life == life && lane.state != State::Connecting {
            self.break_off(client, node, true);
        }
    }

    pub(crate) fn hear_overdue(&mut self, client: usize, node: usize, batch: (u32, u32)) {
        let lane = &self.clients[client].lanes[node];
        if (lane.life, lane.batch) == batch && !lane.wire.is_empty() {
            self.break_off(client, node, false);
        }
    }

    /// The connection broke: what is open is unknown to its callers, and releases are owed. What is queued `waits` for one connect
    /// where the connection has ended, and is answered where the node does not answer.
    fn break_off(&mut self, client: usize, node: usize, waits: bool) {
        let lane = &mut self.clients[client].lanes[node];
        lane.waits = waits && lane.is_up();
        lane.state = State::Connecting;
        let life = lane.life;
        let wire = std::mem::take(&mut lane.wire);
        let fault = || Reply::Failed(NodeFailure::TimedOut);
        for mut job in wire {
            match job.request.op {
                Op::Release => {
                    job.was_sent = true;
                    self.counts.pending += 1;
                    self.clients[client].lanes[node].owed.push_back(job);
                }
                Op::Extend if self.knobs.is(PlantedBug::LateExtensionForgotten) => {
                    self.post(client, node, &job, fault());
                }
                _ => {
                    send_check::record_unanswered(&job.request, node);
                    self.post(client, node, &job, fault());
                }
            }
        }
        if !self.clients[client].lanes[node].waits {
            self.refuse_queue(client, node);
        }
        self.tell(self.now, client, SimEvent::Dial { node, life });
    }

    /// Answers what is queued; releases are owed.
    fn refuse_queue(&mut self, client: usize, node: usize) {
        let now = self.clock(client);
        for job in std::mem::take(&mut self.clients[client].lanes[node].queue) {
            match job.request.op {
                Op::Release if !job.request.lease.may_exist(node, now) => {
                    self.post(client, node, &job, Reply::Absent);
                }
                Op::Release => self.clients[client].lanes[node].owed.push_back(job),
                _ => self.post(client, node, &job, Reply::Failed(NodeFailure::TimedOut)),
            }
        }
    }

    /// Tries to connect.
    pub(crate) fn dial(&mut self, client: usize, node: usize, life: u32) {
        let lane = &mut self.clients[client].lanes[node];
        if lane.state != State::Connecting || lane.life != life {
            return;
        }
        lane.life += 1;
        let life = lane.life;
        let cut_off = lane.cut_off_until > self.now;
        let clock = self.clients[client].clock;
        let end = clock.when(clock.at(self.now) + self.knobs.node_timeout);
        self.tell(end, client, SimEvent::Unwelcome { node, life });
        if !cut_off {
            let at = self.now + self.travel();
            self.send(at, node, Sent::Hello { client, life });
        }
    }

    /// A connect took too long.
    pub(crate) fn hear_unwelcome(&mut self, client: usize, node: usize, life: u32) {
        let lane = &mut self.clients[client].lanes[node];
        if lane.state == State::Connecting && lane.life == life {
            let pause = (FIRST_PAUSE << lane.failures.min(8)).min(LAST_PAUSE);
            lane.failures += 1;
            let at = self.now + pause / 2 + self.rng.u64(..pause / 2);
            lane.waits = false;
            self.refuse_queue(client, node);
            self.tell(at, client, SimEvent::Dial { node, life });
        }
    }

    pub(crate) fn hear_welcome(
        &mut self,
        client: usize,
        node: usize,
        (life, run): (u32, u32),
        uptime: Duration,
    ) {
        let now = self.clock(client);
        let about = ServerInfo {
            uptime,
            ..ServerInfo::default()
        };
        let quarantine = match self.knobs.care {
            Care::Quarantine => about.quarantine_left(Duration::from_micros(self.knobs.longest())),
            _ => Duration::ZERO,
        };
        let lane = &mut self.clients[client].lanes[node];
        if lane.state == State::Connecting && lane.life == life {
            lane.quarantined_until = Some(now + quarantine);
            lane.waits = false;
            lane.state = State::Up;
            lane.failures = 0;
            if lane.run != run {
                (lane.run, lane.run_since) = (run, self.now);
            }
            for job in &lane.owed {
                job.request.lease.record_killed(node, now);
            }
            self.pump(client, node);
        }
    }

    /// An answer for the round that it belongs to. Absent where a release was sent before: it was that which deleted the key,
    /// unless the node has restarted since the lease was confirmed.
    fn post(&mut self, client: usize, node: usize, job: &Job, answer: Reply) {
        if let Some(round) = job.round {
            let since = self.clients[client].lanes[node].run_since;
            let confirmed = self.confirmed.get(&job.request.lease.token().id());
            let is_ours = confirmed.is_some_and(|confirmed| *confirmed >= since)
                || self.knobs.is(PlantedBug::RestartIsOurDoing);
            let answer = match answer {
                Reply::Absent if job.was_sent && is_ours => Reply::Done,
                answer => answer,
            };
            self.posts.push_back(Post {
                client,
                round,
                node,
                answer,
            });
        }
    }
}
