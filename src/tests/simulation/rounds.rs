//! A client's rounds, as `round` makes them: a request into all lanes, and the count of what the nodes say.

use std::time::Instant;

use crate::error::NodeFailure;
use crate::protocol::quorum::{NodeSet, Tally, Verdict, Vote, majority};
use crate::protocol::reply::{Reply, vote_of, vote_rule};
use crate::protocol::request::{Op, Request};
use crate::tests::simulation::client::ClientState;
use crate::tests::simulation::config::PlantedBug;
use crate::tests::simulation::connection::Job;
use crate::tests::simulation::simulator::Simulator;

/// How often nodes that refused are asked again.
const MAX_REPEATS: u32 = 3;

/// One request to all nodes, and what they say.
pub(crate) struct Round {
    pub(crate) number: u32,
    pub(crate) request: Request,
    pub(crate) tally: Tally,
    pub(crate) absent: NodeSet,
    pub(crate) numbers: Vec<(usize, u64)>,
    pub(crate) start: Instant,
    /// With an extension, until when the lease is held then.
    pub(crate) until: Instant,
    /// The node that was asked before all others, until it has answered.
    pub(crate) first: Option<usize>,
    /// How often nodes that refused were asked again.
    pub(crate) repeats: u32,
    /// Of those the nodes that have not answered.
    pub(crate) unsettled: NodeSet,
}

/// An answer for a round.
#[derive(Debug)]
pub(crate) struct Post {
    pub(crate) client: usize,
    pub(crate) round: u32,
    pub(crate) node: usize,
    pub(crate) answer: Reply,
}

impl Simulator {
    /// Opens a round and asks all nodes, or only the `first`.
    pub(crate) fn ask(
        &mut self,
        client: usize,
        request: Request,
        (start, until): (Instant, Instant),
        first: Option<usize>,
    ) -> Round {
        self.clients[client].rounds += 1;
        let mut round = Round {
            number: self.clients[client].rounds,
            tally: Tally::new(self.nodes.len(), vote_rule(request.op)),
            request,
            absent: NodeSet::default(),
            numbers: Vec::new(),
            start,
            until,
            first,
            repeats: 0,
            unsettled: NodeSet::default(),
        };
        let given = self.put_round(client, &mut round, |node| first.is_none_or(|it| it == node));
        if first.is_some() && given.len() == 0 {
            self.put_round(client, &mut round, |node| first != Some(node));
            round.first = None;
        }
        round
    }

    fn put_round(
        &mut self,
        client: usize,
        round: &mut Round,
        to: impl Fn(usize) -> bool,
    ) -> NodeSet {
        let request = &round.request;
        let mut given = NodeSet::default();
        for node in (0..self.nodes.len()).filter(|node| to(*node)) {
            let owed = request.op == Op::Release && request.lease.contacted().contains(node);
            let job = Job::new(request, Some(round.number));
            match self.submit(client, node, job, owed) {
                true => given.insert(node),
                false => {
                    let cause = NodeFailure::Unreachable(String::new());
                    round.tally.vote(node, Vote::Fault(cause));
                }
            }
        }
        given
    }

    /// Asks nodes that refused a take once more, for the same lease, as an attempt does that leads in a split vote. Whether it
    /// leads is no matter of safety: it is drawn. `None` if they were asked.
    pub(crate) fn unless_asked_again(&mut self, client: usize, mut round: Round) -> Option<Round> {
        let is_held = |cause: &NodeFailure| {
            matches!(
                cause,
                NodeFailure::Held { .. } | NodeFailure::HeldByReaders { .. }
            )
        };
        let split = round.tally.split(is_held, NodeSet::default());
        let goes_on = round.request.op == Op::Acquire && round.first.is_none();
        let Some(split) = split.filter(|_| goes_on && round.repeats < MAX_REPEATS) else {
            return Some(round);
        };
        if !self.rng.bool() {
            return Some(round);
        }
        round.repeats += 1;
        round.tally.reopen(split.contested);
        self.put_round(client, &mut round, |node| split.contested.contains(node));
        self.clients[client].round = Some(round);
        self.counts.repeats += 1;
        self.count(client, false);
        None
    }

    /// The node that was asked first takes its time, or granted it: then the others are asked. `false` if they have been.
    pub(crate) fn ask_the_others(&mut self, client: usize) -> bool {
        let Some(mut round) = self.clients[client].round.take() else {
            return false;
        };
        let first = round.first.take();
        if first.is_some() {
            self.put_round(client, &mut round, |node| first != Some(node));
        }
        self.clients[client].round = Some(round);
        if first.is_some() {
            let acquire = self.clients[client].acquire.as_ref();
            let end = acquire.and_then(|acquire| Some(acquire.attempt.as_ref()?.end));
            self.does(client, ClientState::Asks, end);
            self.count(client, false);
        }
        first.is_some()
    }

    /// An answer comes to a round, if that is still open.
    pub(crate) fn deliver(&mut self, post: Post) {
        let Post {
            client,
            round: number,
            node,
            answer,
        } = post;
        let it = &mut self.clients[client];
        let is_open = |round: &&mut Round| round.number == number;
        let rounds = [it.round.as_mut(), it.extension.as_mut()];
        let Some(round) = rounds.into_iter().flatten().find(is_open) else {
            return self.deliver_late(client, number, node, &answer);
        };
        match answer {
            Reply::Absent => round.absent.insert(node),
            Reply::Fenced(number) | Reply::SwappedAbsent(Some(number)) => {
                round.numbers.push((node, number))
            }
            _ => {}
        }
        round.tally.vote(node, vote_of(answer));
        let is_first = round.first == Some(node);
        let refused = round.tally.refused().contains(node);
        if round.request.op == Op::Extend {
            self.count_extension(client, false);
        } else if is_first && refused {
            self.count(client, true);
        } else if !is_first || !self.ask_the_others(client) {
            self.count(client, false);
        }
    }

    /// The verdict of a round, as its tally says, or as somebody might have thought who counts what is reachable.
    pub(crate) fn verdict(&self, client: usize, round: &Round) -> Option<Verdict> {
        if self.knobs.is(PlantedBug::QuorumOfReachable) {
            let lanes = &self.clients[client].lanes;
            let reachable = lanes.iter().filter(|lane| lane.is_up()).count();
            if reachable > 0 && round.tally.granted().len() >= majority(reachable) {
                return Some(Verdict::Granted);
            }
        }
        round.tally.verdict()
    }

    /// Goes on when the round that a client waits for is decided, or is `over`.
    pub(crate) fn count(&mut self, client: usize, over: bool) {
        let Some(mut round) = self.clients[client].round.take() else {
            return;
        };
        let verdict = match self.verdict(client, &round) {
            Some(Verdict::Refused) if !over => match self.unless_asked_again(client, round) {
                Some(it) => {
                    round = it;
                    Verdict::Refused
                }
                None => return,
            },
            Some(verdict) => verdict,
            None if over => {
                round.unsettled = round.tally.restore();
                round.tally.close_with_timeouts()
            }
            None => {
                self.clients[client].round = Some(round);
                return;
            }
        };
        match round.request.op {
            Op::Acquire | Op::Swap => self.count_take(client, round, verdict),
            Op::RaiseFence => self.finish(client, verdict),
            Op::Downgrade => self.finish_downgrade(client, verdict),
            _ => self.finish_release(client, &round, verdict),
        }
    }
}
