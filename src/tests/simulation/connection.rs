//! A client's connection to a node, as `transport::worker` serves it. One batch is in flight at a
//! time. Releases stay pending across disconnects. A reconnect kills the former connection first.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::error::NodeFailure;
use crate::protocol::quorum::NodeSet;
use crate::protocol::reply::Reply;
use crate::protocol::request::{Op, Request};
use crate::protocol::send_check;
use crate::protocol::server_info::ServerInfo;
use crate::tests::simulation::config::{PlantedBug, Probability, RestartPolicy};
use crate::tests::simulation::node::NodeMessage;
use crate::tests::simulation::rounds::RoutedReply;
use crate::tests::simulation::simulator::{SimEvent, Simulator};

/// The shortest and the longest pause between failed connects, in µs. Both are shorter than the
/// real ones, so that more happens in a history.
const MIN_CONNECT_PAUSE: u64 = 10_000;
const MAX_CONNECT_PAUSE: u64 = 200_000;
/// Fewer than in `transport::pipeline`, so that more requests travel between pending releases.
const MAX_PENDING_PER_BATCH: usize = 2;

/// A connection to one node, and the jobs to be sent there.
#[derive(Debug)]
pub(crate) struct SimConnection {
    state: State,
    /// The number of the connection; each connect increases it.
    pub(crate) generation: u32,
    /// The number of the batch in flight.
    batch: u32,
    in_flight: Vec<Job>,
    queue: VecDeque<Job>,
    pending: VecDeque<Job>,
    failures: u32,
    /// The run of the node at the last connect. `run_since` is the time of the first connect to
    /// this run.
    run: u32,
    run_since: u64,
    /// Whether the connection broke and the first reconnect is not decided. Until it fails, queued
    /// jobs wait for it.
    is_reconnecting: bool,
    /// The time until which the node does not vote on new leases.
    quarantined_until: Option<Instant>,
    /// The time until which all messages between client and node are lost.
    pub(crate) cut_off_until: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connecting,
    Up,
}

/// A request, and the round that waits for its reply.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) request: Request,
    pub(crate) round: Option<u32>,
    /// Whether this is a release that was sent before.
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

impl SimConnection {
    pub(crate) fn new() -> SimConnection {
        SimConnection {
            state: State::Up,
            generation: 0,
            batch: 0,
            in_flight: Vec::new(),
            queue: VecDeque::new(),
            pending: VecDeque::new(),
            failures: 0,
            run: 0,
            run_since: 0,
            is_reconnecting: false,
            quarantined_until: None,
            cut_off_until: 0,
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.state == State::Up
    }

    fn may_send(&self) -> bool {
        self.is_up() && self.in_flight.is_empty()
    }

    /// Returns the next job that may join the batch in flight, which never has two requests of one
    /// token.
    fn next_of_batch(&mut self) -> Option<Job> {
        let job = self.queue.front()?;
        match self
            .in_flight
            .iter()
            .any(|other| other.request.shares_token(&job.request))
        {
            true => None,
            false => self.queue.pop_front(),
        }
    }

    /// Returns the pending releases that follow the batch.
    fn next_pending(&mut self) -> Vec<Job> {
        let count = self.pending.len().min(MAX_PENDING_PER_BATCH);
        self.pending.drain(..count).collect()
    }

    fn quarantine(&self, now: Instant) -> Duration {
        let until = self.quarantined_until;
        until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }

    /// Returns whether the connection is up and has no job.
    pub(crate) fn is_idle(&self) -> bool {
        self.is_up()
            && self.in_flight.is_empty()
            && self.queue.is_empty()
            && self.pending.is_empty()
    }
}

impl Simulator {
    /// Queues a job. Returns `false` if the node is suspect; then only a pending release is queued.
    pub(crate) fn submit(
        &mut self,
        client: usize,
        node: usize,
        job: Job,
        is_pending_release: bool,
    ) -> bool {
        let connection = &mut self.clients[client].connections[node];
        let up = connection.is_up() || connection.is_reconnecting;
        self.coverage.reconnect_waits += u64::from(up && !connection.is_up());
        if up && job.request.op.grants() {
            let leases = job.request.written_leases();
            leases.for_each(|lease| lease.record_contacted(NodeSet::single(node)));
        }
        if up || is_pending_release {
            connection.queue.push_back(job);
            match self.config.queue_delay.occurs(&mut self.rng) {
                true => {
                    let at = self.now + self.message_delay();
                    self.schedule_client_event(at, client, SimEvent::SendQueued { node });
                }
                false => self.send_queued(client, node),
            }
        }
        up
    }

    /// Queues a request for some nodes. No round waits for the replies.
    pub(crate) fn send_to_nodes(&mut self, client: usize, request: &Request, nodes: NodeSet) {
        for node in (0..self.nodes.len()).filter(|node| nodes.contains(*node)) {
            let is_pending_release =
                request.op == Op::Release && request.lease.contacted().contains(node);
            self.submit(client, node, Job::new(request, None), is_pending_release);
        }
    }

    /// Sends the queued jobs, if no batch is in flight.
    pub(crate) fn send_queued(&mut self, client: usize, node: usize) {
        let now = self.clock(client);
        if !self.clients[client].connections[node].may_send() {
            return;
        }
        while let Some(job) = self.clients[client].connections[node].next_of_batch() {
            let quarantine = self.clients[client].connections[node].quarantine(now);
            let unsent = send_check::skip_reply(&job.request, node, quarantine, now);
            if let Some(release) = unsent
                .as_ref()
                .and_then(|reply| send_check::replacement_release(&job.request, reply))
            {
                // No round waits for this release, because the simulator does not model how the
                // releasing thread learns of it.
                let job = Job::new(&release, None);
                match send_check::skip_reply(&release, node, quarantine, now) {
                    Some(reply) => self.post_reply(client, node, &job, reply),
                    None => self.clients[client].connections[node].in_flight.push(job),
                }
                continue;
            }
            if let Some(reply) = unsent {
                self.post_reply(client, node, &job, reply);
                continue;
            }
            send_check::record_sent(&job.request, node, now);
            self.clients[client].connections[node].in_flight.push(job);
        }
        for job in self.clients[client].connections[node].next_pending() {
            match job.request.lease.may_exist(node, now) {
                true => self.clients[client].connections[node].in_flight.push(job),
                false => self.post_reply(client, node, &job, Reply::Absent),
            }
        }
        self.send_batch(client, node);
    }

    /// Sends the batch in flight over the network, and draws its faults.
    fn send_batch(&mut self, client: usize, node: usize) {
        let connection = &mut self.clients[client].connections[node];
        if connection.in_flight.is_empty() {
            return;
        }
        connection.batch += 1;
        let (generation, batch, count) = (
            connection.generation,
            connection.batch,
            connection.in_flight.len(),
        );
        let without_token = self.config.is(PlantedBug::ReleaseWithoutToken);
        let requests = connection.in_flight.iter().map(|job| {
            let mut request = job.request.clone();
            if without_token && job.was_sent {
                request.op = Op::ForceRelease;
            }
            request
        });
        let requests = requests.collect();
        let cut_off = connection.cut_off_until > self.now;
        let clock = self.clients[client].clock;
        let overdue = clock.when(clock.at(self.now) + self.config.node_timeout);
        self.schedule_client_event(
            overdue,
            client,
            SimEvent::TimedOut {
                node,
                generation,
                batch,
            },
        );
        let faults_over = self.faults_over;
        let mut occurs =
            |probability: Probability| !faults_over && probability.occurs(&mut self.rng);
        let lost = cut_off || occurs(self.config.lost);
        let disconnect = occurs(self.config.disconnect);
        let (mut served, mut replied) = (count, count);
        let mut at = self.now + self.message_delay();
        if lost || disconnect {
            served = self.rng.usize(..=count);
            replied = self.rng.usize(..=served);
            if self.config.late.occurs(&mut self.rng) {
                at += self.rng.u64(..self.config.max_ttl());
            }
        }
        if disconnect {
            // The client may notice the disconnect before or after the batch arrives.
            let noticed = self.now + self.message_delay() + self.message_delay();
            self.schedule_client_event(
                noticed,
                client,
                SimEvent::Disconnected { node, generation },
            );
        }
        if served > 0 || !lost {
            let message = NodeMessage::Batch {
                client,
                generation,
                batch,
                requests,
                served,
                replied,
                replies_lost: lost,
            };
            self.schedule_node_message(at, node, message);
        }
    }

    pub(crate) fn handle_replies(
        &mut self,
        client: usize,
        node: usize,
        (generation, batch): (u32, u32),
        replies: Vec<Reply>,
    ) {
        let now = self.clock(client);
        let connection = &mut self.clients[client].connections[node];
        if (connection.generation, connection.batch) != (generation, batch)
            || connection.in_flight.is_empty()
        {
            return;
        }
        let is_complete = replies.len() == connection.in_flight.len();
        let replied: Vec<Job> = connection.in_flight.drain(..replies.len()).collect();
        for (job, reply) in replied.iter().zip(replies) {
            send_check::record_sent(&job.request, node, now);
            send_check::record_reply(&job.request, node, &reply);
            self.post_reply(client, node, job, reply);
        }
        if is_complete {
            self.send_queued(client, node);
            self.to_check = Some((client, node));
        }
    }

    pub(crate) fn handle_disconnect(&mut self, client: usize, node: usize, generation: u32) {
        let connection = &self.clients[client].connections[node];
        if connection.generation == generation && connection.state != State::Connecting {
            self.close_connection(client, node, true);
        }
    }

    pub(crate) fn handle_timeout(&mut self, client: usize, node: usize, batch: (u32, u32)) {
        let connection = &self.clients[client].connections[node];
        if (connection.generation, connection.batch) == batch && !connection.in_flight.is_empty() {
            self.close_connection(client, node, false);
        }
    }

    /// Closes the connection. Open requests fail, and releases become pending. Queued jobs wait for
    /// the first reconnect if the connection was closed, and fail if the node did not reply.
    fn close_connection(&mut self, client: usize, node: usize, is_reconnecting: bool) {
        let connection = &mut self.clients[client].connections[node];
        connection.is_reconnecting = is_reconnecting && connection.is_up();
        connection.state = State::Connecting;
        let generation = connection.generation;
        let in_flight = std::mem::take(&mut connection.in_flight);
        let fault = || Reply::Failed(NodeFailure::TimedOut);
        for mut job in in_flight {
            match job.request.op {
                Op::Release => {
                    job.was_sent = true;
                    self.coverage.pending += 1;
                    self.clients[client].connections[node]
                        .pending
                        .push_back(job);
                }
                Op::Extend if self.config.is(PlantedBug::UnansweredExtensionIgnored) => {
                    self.post_reply(client, node, &job, fault());
                }
                _ => {
                    send_check::record_unanswered(&job.request, node);
                    self.post_reply(client, node, &job, fault());
                }
            }
        }
        if !self.clients[client].connections[node].is_reconnecting {
            self.fail_queue(client, node);
        }
        self.schedule_client_event(self.now, client, SimEvent::Connect { node, generation });
    }

    /// Fails the queued jobs; releases become pending.
    fn fail_queue(&mut self, client: usize, node: usize) {
        let now = self.clock(client);
        for job in std::mem::take(&mut self.clients[client].connections[node].queue) {
            match job.request.op {
                Op::Release if !job.request.lease.may_exist(node, now) => {
                    self.post_reply(client, node, &job, Reply::Absent);
                }
                Op::Release => self.clients[client].connections[node]
                    .pending
                    .push_back(job),
                _ => self.post_reply(client, node, &job, Reply::Failed(NodeFailure::TimedOut)),
            }
        }
    }

    /// Sends a connect to the node.
    pub(crate) fn connect(&mut self, client: usize, node: usize, generation: u32) {
        let connection = &mut self.clients[client].connections[node];
        if connection.state != State::Connecting || connection.generation != generation {
            return;
        }
        connection.generation += 1;
        let generation = connection.generation;
        let cut_off = connection.cut_off_until > self.now;
        let clock = self.clients[client].clock;
        let end = clock.when(clock.at(self.now) + self.config.node_timeout);
        self.schedule_client_event(end, client, SimEvent::ConnectTimedOut { node, generation });
        if !cut_off {
            let at = self.now + self.message_delay();
            self.schedule_node_message(at, node, NodeMessage::Connect { client, generation });
        }
    }

    /// Schedules another connect after one that took too long.
    pub(crate) fn handle_connect_timeout(&mut self, client: usize, node: usize, generation: u32) {
        let connection = &mut self.clients[client].connections[node];
        if connection.state == State::Connecting && connection.generation == generation {
            let pause = (MIN_CONNECT_PAUSE << connection.failures.min(8)).min(MAX_CONNECT_PAUSE);
            connection.failures += 1;
            let at = self.now + pause / 2 + self.rng.u64(..pause / 2);
            connection.is_reconnecting = false;
            self.fail_queue(client, node);
            self.schedule_client_event(at, client, SimEvent::Connect { node, generation });
        }
    }

    pub(crate) fn handle_connected(
        &mut self,
        client: usize,
        node: usize,
        (generation, run): (u32, u32),
        uptime: Duration,
    ) {
        let now = self.clock(client);
        let info = ServerInfo {
            uptime,
            ..ServerInfo::default()
        };
        let quarantine = match self.config.restart_policy {
            RestartPolicy::Quarantine => {
                info.quarantine_left(Duration::from_micros(self.config.max_ttl()))
            }
            _ => Duration::ZERO,
        };
        let connection = &mut self.clients[client].connections[node];
        if connection.state == State::Connecting && connection.generation == generation {
            connection.quarantined_until = Some(now + quarantine);
            connection.is_reconnecting = false;
            connection.state = State::Up;
            connection.failures = 0;
            if connection.run != run {
                (connection.run, connection.run_since) = (run, self.now);
            }
            for job in &connection.pending {
                job.request.lease.record_killed(node, now);
            }
            self.send_queued(client, node);
        }
    }

    /// Delivers a reply to its round. `Absent` after a resent release means that the first release
    /// deleted the key, unless the node restarted after the lease was confirmed.
    fn post_reply(&mut self, client: usize, node: usize, job: &Job, reply: Reply) {
        if let Some(round) = job.round {
            let since = self.clients[client].connections[node].run_since;
            let confirmed = self.confirmed.get(&job.request.lease.token().id());
            let is_our_release = confirmed.is_some_and(|confirmed| *confirmed >= since)
                || self.config.is(PlantedBug::AbsentAfterRestartIsRelease);
            let reply = match reply {
                Reply::Absent if job.was_sent && is_our_release => Reply::Done,
                reply => reply,
            };
            self.replies.push_back(RoutedReply {
                client,
                round,
                node,
                reply,
            });
        }
    }
}
