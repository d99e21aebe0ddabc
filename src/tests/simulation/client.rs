//! A client: a program that takes the lock a few times. Here is how it gets it, as `engine` does: attempts, and the pauses
//! between them.

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
use crate::tests::simulation::connection::Lane;
use crate::tests::simulation::hold::{ConfirmedRenewal, Hold};
use crate::tests::simulation::rounds::Round;
use crate::tests::simulation::simulator::{SimEvent, Simulator};

/// So many attempts in a row that were too slow end an acquire.
const MOST_SLOW: u32 = 3;

/// A client, what it does at present, and its lanes.
pub(crate) struct Client {
    pub(crate) clock: Clock,
    pub(crate) lanes: Vec<Lane>,
    pub(crate) dead: bool,
    pub(crate) paused_until: u64,
    pub(crate) doing: ClientState,
    pub(crate) acquire: Option<Acquire>,
    /// How many acquires have begun.
    acquires: u32,
    tokens: u64,
    /// The round that it waits for, the extension that is on its way, and the one that was confirmed last.
    pub(crate) round: Option<Round>,
    pub(crate) extension: Option<Round>,
    pub(crate) late: Option<ConfirmedRenewal>,
    pub(crate) rounds: u32,
    pub(crate) hold: Option<Hold>,
    /// The alarms that count: those with other numbers are of something that is over.
    pub(crate) ticket: u32,
    pub(crate) renewal_ticket: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientState {
    Nothing,
    /// Waits for the end of an attempt's round.
    Asks,
    /// Waits before the next attempt.
    Pauses,
    Holds,
    Releases,
    Downgrades,
}

/// An acquire, from its first attempt to its last.
pub(crate) struct Acquire {
    pub(crate) kind: LeaseKind,
    pub(crate) ttl: Ttl,
    fenced: bool,
    attempts: u32,
    most: u32,
    retries: u32,
    slow: u32,
    /// What the attempt before was granted, where that is planted to count.
    granted: NodeSet,
    /// A writer's place at the gate.
    place: Option<Arc<Lease>>,
    pub(crate) attempt: Option<Attempt>,
}

pub(crate) struct Attempt {
    lease: Arc<Lease>,
    start: Instant,
    pub(crate) end: Instant,
    /// The nodes that certainly have nothing of it.
    refused: NodeSet,
    granted: NodeSet,
    /// Whether nodes that had refused were asked again.
    is_split: bool,
    /// When the nodes are free again, if they said so.
    free: Option<Duration>,
    /// Of one that was handed the lock: the lease before, and the nodes that have swapped its token.
    former: Option<(Arc<Lease>, NodeSet)>,
}

impl Client {
    pub(crate) fn new(clock: Clock, nodes: usize) -> Client {
        Client {
            clock,
            lanes: (0..nodes).map(|_| Lane::new()).collect(),
            dead: false,
            paused_until: 0,
            doing: ClientState::Nothing,
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

    /// Whether it has not finished with a token.
    pub(crate) fn answers_for(&self, token: &str) -> bool {
        let acquire = self.acquire.as_ref();
        let attempt = acquire.and_then(|acquire| acquire.attempt.as_ref());
        let leases = [
            attempt.map(|attempt| &attempt.lease),
            attempt.and_then(|attempt| Some(&attempt.former.as_ref()?.0)),
            acquire.and_then(|acquire| acquire.place.as_ref()),
            self.hold.as_ref().map(|hold| &hold.lease),
        ];
        leases
            .into_iter()
            .flatten()
            .any(|lease| lease.token().text() == token)
    }
}

impl Simulator {
    /// What a client does from now on, and the time of its next alarm.
    pub(crate) fn does(&mut self, client: usize, doing: ClientState, alarm: Option<Instant>) {
        let it = &mut self.clients[client];
        it.doing = doing;
        it.ticket += 1;
        let (ticket, clock) = (it.ticket, it.clock);
        if let Some(alarm) = alarm {
            let at = clock.when(alarm).max(self.now);
            self.tell(at, client, SimEvent::Wake { ticket });
        }
    }

    pub(crate) fn wake(&mut self, client: usize, ticket: u32) {
        if self.clients[client].ticket != ticket {
            return;
        }
        match self.clients[client].doing {
            ClientState::Nothing => self.begin(client),
            ClientState::Pauses => self.attempt(client),
            ClientState::Asks => {
                if !self.ask_the_others(client) {
                    self.count(client, true);
                }
            }
            ClientState::Releases | ClientState::Downgrades => self.count(client, true),
            ClientState::Holds => self.act(client),
        }
    }

    /// Begins an acquire.
    fn begin(&mut self, client: usize) {
        if self.calm || self.clients[client].acquires == self.knobs.acquires {
            return;
        }
        let kind = match self.knobs.family {
            LockKind::Exclusive => LeaseKind::Exclusive,
            // No knob turns to semaphores yet.
            LockKind::ReadWrite | LockKind::Semaphore => {
                one_of(&mut self.rng, &[LeaseKind::Read, LeaseKind::Write])
            }
        };
        let acquire = Acquire {
            kind,
            ttl: one_of(&mut self.rng, &self.knobs.ttls),
            fenced: self.rng.bool(),
            attempts: 0,
            most: one_of(&mut self.rng, &[1, 4, 12]),
            retries: 0,
            slow: 0,
            granted: NodeSet::default(),
            place: None,
            attempt: None,
        };
        let it = &mut self.clients[client];
        it.acquires += 1;
        it.acquire = Some(acquire);
        self.may_be_cancelled(client);
        self.attempt(client);
    }

    fn may_be_cancelled(&mut self, client: usize) {
        if self.knobs.cancelled.strike(&mut self.rng) {
            let acquire = self.clients[client].acquires;
            let at = self.now + self.rng.u64(..self.knobs.longest() / 2);
            self.tell(at, client, SimEvent::Cancel { acquire });
        }
    }

    /// The next thread of the same process is handed the lock by the one that releases it. `false` if nobody waits.
    pub(crate) fn hand_on(&mut self, client: usize, former: &Arc<Lease>, start: Instant) -> bool {
        let waits = self.clients[client].acquires < self.knobs.acquires && self.rng.bool();
        if former.kind() != LeaseKind::Exclusive || self.calm || !waits {
            return false;
        }
        let lease = self.lease(client, LeaseKind::Exclusive);
        let ttl = one_of(&mut self.rng, &self.knobs.ttls);
        let least = ttl.min_validity(self.knobs.min_validity);
        let end = start
            + self
                .knobs
                .node_timeout
                .min(validity::validity(ttl.duration()) - least);
        let fenced = self.rng.bool();
        let mut request = Request::new(Op::Swap, &lease, ttl.millis());
        request.former_lease = Some(Arc::clone(former));
        request.min_fence = fenced.then_some(0);
        let most = one_of(&mut self.rng, &[1, 4, 12]);
        let it = &mut self.clients[client];
        it.acquires += 1;
        it.acquire = Some(Acquire {
            kind: LeaseKind::Exclusive,
            ttl,
            fenced,
            attempts: 0,
            most,
            retries: 0,
            slow: 0,
            granted: NodeSet::default(),
            place: None,
            attempt: Some(Attempt {
                lease,
                start,
                end,
                refused: NodeSet::default(),
                granted: NodeSet::default(),
                is_split: false,
                free: None,
                former: Some((Arc::clone(former), NodeSet::default())),
            }),
        });
        self.counts.swaps += 1;
        let round = self.ask(client, request, (start, start), None);
        self.clients[client].round = Some(round);
        self.may_be_cancelled(client);
        self.does(client, ClientState::Asks, Some(end));
        self.count(client, false);
        true
    }

    /// Where the token before was not swapped it may be there yet.
    fn give_back(&mut self, client: usize, attempt: &Attempt) {
        if let Some((former, swapped)) = &attempt.former
            && !self.knobs.is(PlantedBug::FormerForgotten)
        {
            self.release_behind(client, former, *swapped);
        }
    }

    fn lease(&mut self, client: usize, kind: LeaseKind) -> Arc<Lease> {
        let it = &mut self.clients[client];
        if !self.knobs.is(PlantedBug::OneToken) || it.tokens == 0 || kind == LeaseKind::GateEntry {
            it.tokens += 1;
        }
        let number = match self.knobs.is(PlantedBug::OneToken) && kind != LeaseKind::GateEntry {
            true => 1,
            false => it.tokens,
        };
        let id = ((client as u64) << 32) | number;
        let token = Token::fixed(format!("{client}.{number}"), id);
        Arc::new(Lease::new(self.key.clone(), token, kind))
    }

    /// One attempt with a fresh token.
    fn attempt(&mut self, client: usize) {
        let start = self.clock(client);
        let Some(mut acquire) = self.clients[client].acquire.take() else {
            return;
        };
        acquire.attempts += 1;
        let former = std::mem::take(&mut acquire.granted);
        let lease = self.lease(client, acquire.kind);
        let least = acquire.ttl.min_validity(self.knobs.min_validity);
        let validity = validity::validity(acquire.ttl.duration());
        let end = start + self.knobs.node_timeout.min(validity - least);
        let mut request = Request::new(Op::Acquire, &lease, acquire.ttl.millis());
        match (acquire.kind, &acquire.place) {
            (LeaseKind::Read, _) if acquire.attempts < acquire.most => {
                request.refresh_interval = self.knobs.refresh;
            }
            (LeaseKind::Write, Some(place)) => {
                request.refresh_interval = self.knobs.refresh;
                request.gate_entry = Some(Arc::clone(place));
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
            free: None,
            former: None,
        });
        self.clients[client].acquire = Some(acquire);
        let first = match self.knobs.one_first.strike(&mut self.rng) {
            true => Some(self.rng.usize(..self.nodes.len())),
            false => None,
        };
        self.counts.attempts += 1;
        let mut round = self.ask(client, request, (start, start), first);
        let granted = (0..self.nodes.len()).filter(|node| former.contains(*node));
        granted.for_each(|node| round.tally.vote(node, Vote::Granted));
        let alarm = match round.first {
            // As four usual rounds.
            Some(_) => end.min(start + Duration::from_micros(8 * self.knobs.delay)),
            None => end,
        };
        self.clients[client].round = Some(round);
        self.does(client, ClientState::Asks, Some(alarm));
        self.count(client, false);
    }

    pub(crate) fn count_take(&mut self, client: usize, round: Round, verdict: Verdict) {
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
        attempt.free = match by_one {
            true => round.tally.max_hold_left(),
            false => round.tally.free_in(),
        };
        if verdict != Verdict::Granted || round.request.min_fence.is_none() {
            let verdict = if by_one { Verdict::Refused } else { verdict };
            return self.finish(client, verdict);
        }
        let (lease, start, end) = (Arc::clone(&attempt.lease), attempt.start, attempt.end);
        let numbers = round.numbers.iter().map(|(_, number)| *number).collect();
        let mut raise = Request::new(Op::RaiseFence, &lease, 0);
        match choose_token(numbers, majority(self.nodes.len())) {
            Some(FencingOutcome::Agreed(token)) => {
                raise.min_fence = Some(token);
                let mut behind = NodeSet::default();
                let lower = round.numbers.iter().filter(|(_, number)| *number < token);
                lower.for_each(|(node, _)| behind.insert(*node));
                self.tell_nodes(client, &raise, behind);
                lease.set_fencing_token(token);
            }
            Some(FencingOutcome::Raise(token)) => {
                raise.min_fence = Some(token);
                lease.set_fencing_token(token);
                self.counts.raises += 1;
                if !self.knobs.is(PlantedBug::NoSecondFenceRound) {
                    let round = self.ask(client, raise, (start, start), None);
                    self.clients[client].round = Some(round);
                    self.does(client, ClientState::Asks, Some(end));
                    return self.count(client, false);
                }
            }
            None => {}
        }
        self.finish(client, Verdict::Granted);
    }

    /// The end of an attempt: a guard, or an undo.
    pub(crate) fn finish(&mut self, client: usize, verdict: Verdict) {
        let now = self.clock(client);
        let Some(acquire) = self.clients[client].acquire.as_mut() else {
            return;
        };
        let (Some(attempt), ttl) = (acquire.attempt.take(), acquire.ttl) else {
            return;
        };
        let mut slow = false;
        if verdict == Verdict::Granted {
            let least = ttl.min_validity(self.knobs.min_validity);
            let start = match self.knobs.is(PlantedBug::ElapsedNotCounted) {
                true => now,
                false => attempt.start,
            };
            match validity::valid_until(start, ttl.duration(), least, now) {
                Some(end) if attempt.lease.activate(end, 0) => {
                    let kind = acquire.kind;
                    self.give_back(client, &attempt);
                    self.give_up_acquire(client);
                    if attempt.is_split {
                        self.put_back(client, &attempt.lease, ttl.millis(), attempt.refused);
                    }
                    return self.hand_out(client, attempt.lease, kind, ttl);
                }
                _ => slow = true,
            }
        }
        self.undo(client, &attempt);
        let Some(acquire) = self.clients[client].acquire.as_mut() else {
            return;
        };
        if self.knobs.is(PlantedBug::GrantsOfFormerToken) {
            acquire.granted = attempt.granted;
        }
        acquire.slow = if slow { acquire.slow + 1 } else { 0 };
        if self.calm || acquire.attempts >= acquire.most || acquire.slow == MOST_SLOW {
            self.give_up_acquire(client);
            return self.rest(client);
        }
        let wants_place = verdict == Verdict::Refused && acquire.kind == LeaseKind::Write;
        if verdict == Verdict::Unavailable {
            let place = acquire.place.take();
            self.leave(client, place);
        } else if wants_place && acquire.place.is_none() {
            let place = self.lease(client, LeaseKind::GateEntry);
            let acquire = self.clients[client].acquire.as_mut();
            acquire
                .into_iter()
                .for_each(|acquire| acquire.place = Some(Arc::clone(&place)));
        }
        self.pause(client, attempt.free);
    }

    fn pause(&mut self, client: usize, free: Option<Duration>) {
        let now = self.clock(client);
        let (draw, later) = (self.rng.f64(), self.rng.u64(..=1_000));
        let Some(acquire) = self.clients[client].acquire.as_mut() else {
            return;
        };
        acquire.retries += 1;
        let mut pause = self.knobs.retry.delay(acquire.retries, draw);
        if acquire.kind != LeaseKind::Exclusive {
            pause = pause.min(self.knobs.refresh / 2);
        }
        if let Some(free) = free {
            // The engine waits for a millisecond more, since servers count in whole ones.
            pause = pause.min(free + Duration::from_micros(later));
        }
        self.does(client, ClientState::Pauses, Some(now + pause));
    }

    /// What an attempt may have been granted is released, everywhere but where it was refused.
    fn undo(&mut self, client: usize, attempt: &Attempt) {
        attempt.lease.abandon();
        if !self.knobs.is(PlantedBug::NoUndo) {
            self.release_behind(client, &attempt.lease, attempt.refused);
        }
        self.give_back(client, attempt);
    }

    pub(crate) fn release_behind(&mut self, client: usize, lease: &Arc<Lease>, except: NodeSet) {
        let request = Request::new(Op::Release, lease, 0);
        self.tell_nodes(client, &request, lease.contacted().difference(except));
    }

    /// The end of an acquire, however it ends: a writer's place at the gate is left.
    fn give_up_acquire(&mut self, client: usize) {
        let acquire = self.clients[client].acquire.take();
        self.leave(client, acquire.and_then(|acquire| acquire.place));
    }

    fn leave(&mut self, client: usize, place: Option<Arc<Lease>>) {
        if let Some(place) = place {
            self.release_behind(client, &place, NodeSet::default());
        }
    }

    /// Somebody cancels an acquire, if it goes on.
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
        self.counts.cancels += 1;
        self.give_up_acquire(client);
        self.rest(client);
    }

    /// Nothing for a while, often for none.
    pub(crate) fn rest(&mut self, client: usize) {
        let rest = match self.rng.bool() {
            true => 0,
            false => self.rng.u64(..self.knobs.longest() / 4),
        };
        let alarm = self.clock(client) + Duration::from_micros(rest);
        self.does(client, ClientState::Nothing, Some(alarm));
    }
}
