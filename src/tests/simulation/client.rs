//! A client that acquires the lock a few times, with the attempts and pauses of `engine`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::protocol::fencing::{FencingOutcome, choose_token};
use crate::protocol::kind::{LeaseKind, LockKind};
use crate::protocol::lease::Lease;
use crate::protocol::quorum::{NodeSet, Verdict, Vote, majority};
use crate::protocol::request::{Op, Request};
use crate::protocol::token::Token;
use crate::protocol::ttl::Ttl;
use crate::protocol::validity;
use crate::tests::simulation::clock::Clock;
use crate::tests::simulation::config::{PlantedBug, one_of};
use crate::tests::simulation::connection::SimConnection;
use crate::tests::simulation::hold::{ConfirmedRenewal, Hold};
use crate::tests::simulation::rounds::Round;
use crate::tests::simulation::simulator::{SimEvent, Simulator};

/// The number of consecutive attempts too slow for their validity that ends an acquire.
const MAX_SLOW_ATTEMPTS: u32 = 3;

/// A client, its present state, and its node connections.
pub(crate) struct Client {
    pub(crate) clock: Clock,
    pub(crate) connections: Vec<SimConnection>,
    pub(crate) dead: bool,
    pub(crate) paused_until: u64,
    pub(crate) state: ClientState,
    pub(crate) acquire: Option<Acquire>,
    /// The number of acquires begun so far.
    acquires: u32,
    tokens: u64,
    /// The round that the client waits for. `extension` is the extension in progress, `late` the
    /// last one that a quorum confirmed.
    pub(crate) round: Option<Round>,
    pub(crate) extension: Option<Round>,
    pub(crate) late: Option<ConfirmedRenewal>,
    pub(crate) rounds: u32,
    pub(crate) hold: Option<Hold>,
    /// The number of the current alarm. An alarm with another number is obsolete.
    pub(crate) ticket: u32,
    pub(crate) renewal_ticket: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientState {
    Idle,
    /// Waits for the end of an attempt's round.
    InRound,
    /// Waits for the next attempt.
    Pausing,
    Holding,
    Releasing,
    Downgrading,
}

/// An acquire, from its first attempt to its last.
pub(crate) struct Acquire {
    pub(crate) kind: LeaseKind,
    pub(crate) ttl: Ttl,
    fenced: bool,
    attempts: u32,
    max_attempts: u32,
    retries: u32,
    slow_attempts: u32,
    /// The grants of the attempt before, which count if `PlantedBug::GrantsOfFormerToken` is
    /// planted.
    former_grants: NodeSet,
    /// A writer's gate entry.
    gate_entry: Option<Arc<Lease>>,
    pub(crate) attempt: Option<Attempt>,
}

pub(crate) struct Attempt {
    lease: Arc<Lease>,
    start: Instant,
    pub(crate) end: Instant,
    /// The nodes that refused, and therefore have no token of this attempt.
    refused: NodeSet,
    granted: NodeSet,
    /// Whether refusing nodes were asked again because of a split vote.
    is_split: bool,
    /// The time until the nodes are free, if they reported it.
    free_in: Option<Duration>,
    /// After a handoff: the lease before, and the nodes that swapped its token.
    former: Option<(Arc<Lease>, NodeSet)>,
}

impl Client {
    pub(crate) fn new(clock: Clock, nodes: usize) -> Client {
        Client {
            clock,
            connections: (0..nodes).map(|_| SimConnection::new()).collect(),
            dead: false,
            paused_until: 0,
            state: ClientState::Idle,
            acquire: None,
            acquires: 0,
            tokens: 0,
            round: None,
            extension: None,
            late: None,
            rounds: 0,
            hold: None,
            ticket: 0,
            renewal_ticket: 0,
        }
    }

    /// Returns whether the client still uses a token.
    pub(crate) fn uses_token(&self, token: &str) -> bool {
        let acquire = self.acquire.as_ref();
        let attempt = acquire.and_then(|acquire| acquire.attempt.as_ref());
        let leases = [
            attempt.map(|attempt| &attempt.lease),
            attempt.and_then(|attempt| Some(&attempt.former.as_ref()?.0)),
            acquire.and_then(|acquire| acquire.gate_entry.as_ref()),
            self.hold.as_ref().map(|hold| &hold.lease),
        ];
        leases
            .into_iter()
            .flatten()
            .any(|lease| lease.token().text() == token)
    }
}

impl Simulator {
    /// Sets the client's state and the time of its next alarm.
    pub(crate) fn set_state(&mut self, client: usize, state: ClientState, alarm: Option<Instant>) {
        let it = &mut self.clients[client];
        it.state = state;
        it.ticket += 1;
        let (ticket, clock) = (it.ticket, it.clock);
        if let Some(alarm) = alarm {
            let at = clock.when(alarm).max(self.now);
            self.schedule_client_event(at, client, SimEvent::Wake { ticket });
        }
    }

    pub(crate) fn wake(&mut self, client: usize, ticket: u32) {
        if self.clients[client].ticket != ticket {
            return;
        }
        match self.clients[client].state {
            ClientState::Idle => self.begin_acquire(client),
            ClientState::Pausing => self.begin_attempt(client),
            ClientState::InRound => {
                if !self.ask_other_nodes(client) {
                    self.evaluate_round(client, true);
                }
            }
            ClientState::Releasing | ClientState::Downgrading => self.evaluate_round(client, true),
            ClientState::Holding => self.begin_next_step(client),
        }
    }

    /// Begins an acquire.
    fn begin_acquire(&mut self, client: usize) {
        if self.faults_over || self.clients[client].acquires == self.config.acquires {
            return;
        }
        let kind = match self.config.lock_kind {
            LockKind::Exclusive => LeaseKind::Exclusive,
            // The simulator has no histories of semaphores yet.
            LockKind::ReadWrite | LockKind::Semaphore => {
                one_of(&mut self.rng, &[LeaseKind::Read, LeaseKind::Write])
            }
        };
        let acquire = Acquire {
            kind,
            ttl: one_of(&mut self.rng, &self.config.ttls),
            fenced: self.rng.bool(),
            attempts: 0,
            max_attempts: one_of(&mut self.rng, &[1, 4, 12]),
            retries: 0,
            slow_attempts: 0,
            former_grants: NodeSet::default(),
            gate_entry: None,
            attempt: None,
        };
        let it = &mut self.clients[client];
        it.acquires += 1;
        it.acquire = Some(acquire);
        self.maybe_schedule_cancel(client);
        self.begin_attempt(client);
    }

    fn maybe_schedule_cancel(&mut self, client: usize) {
        if self.config.cancelled.occurs(&mut self.rng) {
            let acquire = self.clients[client].acquires;
            let at = self.now + self.rng.u64(..self.config.max_ttl() / 2);
            self.schedule_client_event(at, client, SimEvent::Cancel { acquire });
        }
    }

    /// Hands the lock off to the next thread of the same process. Returns `false` if no thread
    /// waits.
    pub(crate) fn hand_off(&mut self, client: usize, former: &Arc<Lease>, start: Instant) -> bool {
        let next_waits = self.clients[client].acquires < self.config.acquires && self.rng.bool();
        if former.kind() != LeaseKind::Exclusive || self.faults_over || !next_waits {
            return false;
        }
        let lease = self.new_lease(client, LeaseKind::Exclusive);
        let ttl = one_of(&mut self.rng, &self.config.ttls);
        let min_validity = ttl.min_validity(self.config.min_validity);
        let end = start
            + self
                .config
                .node_timeout
                .min(validity::validity(ttl.duration()) - min_validity);
        let fenced = self.rng.bool();
        let mut request = Request::new(Op::Swap, &lease, ttl.millis());
        request.former_lease = Some(Arc::clone(former));
        request.min_fence = fenced.then_some(0);
        let max_attempts = one_of(&mut self.rng, &[1, 4, 12]);
        let it = &mut self.clients[client];
        it.acquires += 1;
        it.acquire = Some(Acquire {
            kind: LeaseKind::Exclusive,
            ttl,
            fenced,
            attempts: 0,
            max_attempts,
            retries: 0,
            slow_attempts: 0,
            former_grants: NodeSet::default(),
            gate_entry: None,
            attempt: Some(Attempt {
                lease,
                start,
                end,
                refused: NodeSet::default(),
                granted: NodeSet::default(),
                is_split: false,
                free_in: None,
                former: Some((Arc::clone(former), NodeSet::default())),
            }),
        });
        self.coverage.swaps += 1;
        let round = self.begin_round(client, request, (start, start), None);
        self.clients[client].round = Some(round);
        self.maybe_schedule_cancel(client);
        self.set_state(client, ClientState::InRound, Some(end));
        self.evaluate_round(client, false);
        true
    }

    /// Releases the former token on the nodes that have not swapped it, because they may still
    /// store it.
    fn release_former(&mut self, client: usize, attempt: &Attempt) {
        if let Some((former, swapped)) = &attempt.former
            && !self.config.is(PlantedBug::FormerTokenKept)
        {
            self.release_lease(client, former, *swapped);
        }
    }

    fn new_lease(&mut self, client: usize, kind: LeaseKind) -> Arc<Lease> {
        let it = &mut self.clients[client];
        if !self.config.is(PlantedBug::OneToken) || it.tokens == 0 || kind == LeaseKind::GateEntry {
            it.tokens += 1;
        }
        let number = match self.config.is(PlantedBug::OneToken) && kind != LeaseKind::GateEntry {
            true => 1,
            false => it.tokens,
        };
        let id = ((client as u64) << 32) | number;
        let token = Token::fixed(format!("{client}.{number}"), id);
        Arc::new(Lease::new(self.key.clone(), token, kind))
    }

    /// Begins an attempt with a new token.
    fn begin_attempt(&mut self, client: usize) {
        let start = self.clock(client);
        let Some(mut acquire) = self.clients[client].acquire.take() else {
            return;
        };
        acquire.attempts += 1;
        let former = std::mem::take(&mut acquire.former_grants);
        let lease = self.new_lease(client, acquire.kind);
        let min_validity = acquire.ttl.min_validity(self.config.min_validity);
        let validity = validity::validity(acquire.ttl.duration());
        let end = start + self.config.node_timeout.min(validity - min_validity);
        let mut request = Request::new(Op::Acquire, &lease, acquire.ttl.millis());
        match (acquire.kind, &acquire.gate_entry) {
            (LeaseKind::Read, _) if acquire.attempts < acquire.max_attempts => {
                request.refresh_interval = self.config.refresh;
            }
            (LeaseKind::Write, Some(gate_entry)) => {
                request.refresh_interval = self.config.refresh;
                request.gate_entry = Some(Arc::clone(gate_entry));
            }
            _ => {}
        }
        if acquire.fenced && acquire.kind != LeaseKind::Read {
            request.min_fence = Some(0);
        }
        acquire.attempt = Some(Attempt {
            lease,
            start,
            end,
            refused: NodeSet::default(),
            granted: NodeSet::default(),
            is_split: false,
            free_in: None,
            former: None,
        });
        self.clients[client].acquire = Some(acquire);
        let first = match self.config.one_node_first.occurs(&mut self.rng) {
            true => Some(self.rng.usize(..self.nodes.len())),
            false => None,
        };
        self.coverage.attempts += 1;
        let mut round = self.begin_round(client, request, (start, start), first);
        let granted = (0..self.nodes.len()).filter(|node| former.contains(*node));
        granted.for_each(|node| round.tally.vote(node, Vote::Granted));
        let alarm = match round.first {
            // Four round trips at the maximum usual delay.
            Some(_) => end.min(start + Duration::from_micros(8 * self.config.delay)),
            None => end,
        };
        self.clients[client].round = Some(round);
        self.set_state(client, ClientState::InRound, Some(alarm));
        self.evaluate_round(client, false);
    }

    pub(crate) fn finish_acquire_round(&mut self, client: usize, round: Round, verdict: Verdict) {
        let by_one = round.first.is_some();
        let acquire = self.clients[client].acquire.as_mut();
        let Some(attempt) = acquire.and_then(|acquire| acquire.attempt.as_mut()) else {
            return;
        };
        attempt.refused = round.tally.refused().difference(round.unsettled);
        attempt.granted = round.tally.granted();
        attempt.is_split = round.repeats > 0;
        let swapped = attempt.former.as_mut();
        swapped
            .into_iter()
            .for_each(|(_, nodes)| *nodes = round.tally.granted());
        attempt.free_in = match by_one {
            true => round.tally.max_hold_left(),
            false => round.tally.free_in(),
        };
        if verdict != Verdict::Granted || round.request.min_fence.is_none() {
            let verdict = if by_one { Verdict::Refused } else { verdict };
            return self.finish_attempt(client, verdict);
        }
        let (lease, start, end) = (Arc::clone(&attempt.lease), attempt.start, attempt.end);
        let fences = round.fences.iter().map(|(_, fence)| *fence).collect();
        let mut raise = Request::new(Op::RaiseFence, &lease, 0);
        match choose_token(fences, majority(self.nodes.len())) {
            Some(FencingOutcome::Agreed(token)) => {
                raise.min_fence = Some(token);
                let mut behind = NodeSet::default();
                let lower = round.fences.iter().filter(|(_, fence)| *fence < token);
                lower.for_each(|(node, _)| behind.insert(*node));
                self.send_to_nodes(client, &raise, behind);
                lease.set_fencing_token(token);
            }
            Some(FencingOutcome::Raise(token)) => {
                raise.min_fence = Some(token);
                lease.set_fencing_token(token);
                self.coverage.raises += 1;
                if !self.config.is(PlantedBug::NoSecondFenceRound) {
                    let round = self.begin_round(client, raise, (start, start), None);
                    self.clients[client].round = Some(round);
                    self.set_state(client, ClientState::InRound, Some(end));
                    return self.evaluate_round(client, false);
                }
            }
            None => {}
        }
        self.finish_attempt(client, Verdict::Granted);
    }

    /// Ends an attempt, with a held lease or with an undo.
    pub(crate) fn finish_attempt(&mut self, client: usize, verdict: Verdict) {
        let now = self.clock(client);
        let Some(acquire) = self.clients[client].acquire.as_mut() else {
            return;
        };
        let (Some(attempt), ttl) = (acquire.attempt.take(), acquire.ttl) else {
            return;
        };
        let mut slow = false;
        if verdict == Verdict::Granted {
            let min_validity = ttl.min_validity(self.config.min_validity);
            let start = match self.config.is(PlantedBug::ElapsedNotCounted) {
                true => now,
                false => attempt.start,
            };
            match validity::valid_until(start, ttl.duration(), min_validity, now) {
                Some(end) if attempt.lease.activate(end, 0) => {
                    let kind = acquire.kind;
                    self.release_former(client, &attempt);
                    self.end_acquire(client);
                    if attempt.is_split {
                        self.restore(client, &attempt.lease, ttl.millis(), attempt.refused);
                    }
                    return self.begin_hold(client, attempt.lease, kind, ttl);
                }
                _ => slow = true,
            }
        }
        self.undo(client, &attempt);
        let Some(acquire) = self.clients[client].acquire.as_mut() else {
            return;
        };
        if self.config.is(PlantedBug::GrantsOfFormerToken) {
            acquire.former_grants = attempt.granted;
        }
        acquire.slow_attempts = if slow { acquire.slow_attempts + 1 } else { 0 };
        if self.faults_over
            || acquire.attempts >= acquire.max_attempts
            || acquire.slow_attempts == MAX_SLOW_ATTEMPTS
        {
            self.end_acquire(client);
            return self.begin_rest(client);
        }
        let wants_gate_entry = verdict == Verdict::Refused && acquire.kind == LeaseKind::Write;
        if verdict == Verdict::Unavailable {
            let gate_entry = acquire.gate_entry.take();
            self.release_gate_entry(client, gate_entry);
        } else if wants_gate_entry && acquire.gate_entry.is_none() {
            let gate_entry = self.new_lease(client, LeaseKind::GateEntry);
            let acquire = self.clients[client].acquire.as_mut();
            acquire
                .into_iter()
                .for_each(|acquire| acquire.gate_entry = Some(Arc::clone(&gate_entry)));
        }
        self.begin_pause(client, attempt.free_in);
    }

    fn begin_pause(&mut self, client: usize, free_in: Option<Duration>) {
        let now = self.clock(client);
        let (draw, later) = (self.rng.f64(), self.rng.u64(..=1_000));
        let Some(acquire) = self.clients[client].acquire.as_mut() else {
            return;
        };
        acquire.retries += 1;
        let mut pause = self.config.retry.delay(acquire.retries, draw);
        if acquire.kind != LeaseKind::Exclusive {
            pause = pause.min(self.config.refresh / 2);
        }
        if let Some(free_in) = free_in {
            // The engine waits up to one millisecond longer, because servers report whole
            // milliseconds.
            pause = pause.min(free_in + Duration::from_micros(later));
        }
        self.set_state(client, ClientState::Pausing, Some(now + pause));
    }

    /// Releases what an attempt may have been granted, on all nodes except those that refused.
    fn undo(&mut self, client: usize, attempt: &Attempt) {
        attempt.lease.abandon();
        if !self.config.is(PlantedBug::NoUndo) {
            self.release_lease(client, &attempt.lease, attempt.refused);
        }
        self.release_former(client, attempt);
    }

    pub(crate) fn release_lease(&mut self, client: usize, lease: &Arc<Lease>, except: NodeSet) {
        let request = Request::new(Op::Release, lease, 0);
        self.send_to_nodes(client, &request, lease.contacted().difference(except));
    }

    /// Ends an acquire and releases a writer's gate entry.
    fn end_acquire(&mut self, client: usize) {
        let acquire = self.clients[client].acquire.take();
        self.release_gate_entry(client, acquire.and_then(|acquire| acquire.gate_entry));
    }

    fn release_gate_entry(&mut self, client: usize, gate_entry: Option<Arc<Lease>>) {
        if let Some(gate_entry) = gate_entry {
            self.release_lease(client, &gate_entry, NodeSet::default());
        }
    }

    /// Cancels an acquire, if it is still in progress.
    pub(crate) fn cancel(&mut self, client: usize, number: u32) {
        let it = &mut self.clients[client];
        if it.acquires != number {
            return;
        }
        let Some(acquire) = &mut it.acquire else {
            return;
        };
        let attempt = acquire.attempt.take();
        let round = it.round.take();
        if let Some(mut attempt) = attempt {
            let asks = |round: &Round| matches!(round.request.op, Op::Acquire | Op::Swap);
            if let Some(round) = round.filter(asks) {
                attempt.refused = round.tally.refused();
                let swapped = attempt.former.as_mut();
                swapped
                    .into_iter()
                    .for_each(|(_, nodes)| *nodes = round.tally.granted());
            }
            self.undo(client, &attempt);
        }
        self.coverage.cancels += 1;
        self.end_acquire(client);
        self.begin_rest(client);
    }

    /// Waits before the next acquire, in half of the cases not at all.
    pub(crate) fn begin_rest(&mut self, client: usize) {
        let rest = match self.rng.bool() {
            true => 0,
            false => self.rng.u64(..self.config.max_ttl() / 4),
        };
        let alarm = self.clock(client) + Duration::from_micros(rest);
        self.set_state(client, ClientState::Idle, Some(alarm));
    }
}
