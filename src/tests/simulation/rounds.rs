//! A client's rounds, as `transport::round` makes them: one request to all nodes, and the count of
//! their votes.

use std::time::Instant;

use crate::error::NodeFailure;
use crate::protocol::quorum::{NodeSet, Tally, Verdict, Vote, majority};
use crate::protocol::reply::{Reply, vote_of, vote_rule};
use crate::protocol::request::{Op, Request};
use crate::tests::simulation::client::ClientState;
use crate::tests::simulation::config::PlantedBug;
use crate::tests::simulation::connection::Job;
use crate::tests::simulation::simulator::Simulator;

/// How often one round asks refusing nodes again.
const MAX_REPEATS: u32 = 3;

/// One request to all nodes, and their replies.
pub(crate) struct Round {
    pub(crate) number: u32,
    pub(crate) request: Request,
    pub(crate) tally: Tally,
    pub(crate) absent: NodeSet,
    pub(crate) fences: Vec<(usize, u64)>,
    pub(crate) start: Instant,
    /// For an extension: the end of the lease if the extension is confirmed.
    pub(crate) until: Instant,
    /// The node that was asked before all others, until it replies.
    pub(crate) first: Option<usize>,
    /// How often refusing nodes were asked again.
    pub(crate) repeats: u32,
    /// The nodes among them that have not replied.
    pub(crate) unsettled: NodeSet,
}

/// A reply together with the round that it belongs to.
#[derive(Debug)]
pub(crate) struct RoutedReply {
    pub(crate) client: usize,
    pub(crate) round: u32,
    pub(crate) node: usize,
    pub(crate) reply: Reply,
}

impl Simulator {
    /// Opens a round and asks all nodes, or only `first`.
    pub(crate) fn begin_round(
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
            fences: Vec::new(),
            start,
            until,
            first,
            repeats: 0,
            unsettled: NodeSet::default(),
        };
        let asked = self.send_round(client, &mut round, |node| first.is_none_or(|it| it == node));
        if first.is_some() && asked.len() == 0 {
            self.send_round(client, &mut round, |node| first != Some(node));
            round.first = None;
        }
        round
    }

    fn send_round(
        &mut self,
        client: usize,
        round: &mut Round,
        to: impl Fn(usize) -> bool,
    ) -> NodeSet {
        let request = &round.request;
        let mut asked = NodeSet::default();
        for node in (0..self.nodes.len()).filter(|node| to(*node)) {
            let is_pending_release =
                request.op == Op::Release && request.lease.contacted().contains(node);
            let job = Job::new(request, Some(round.number));
            match self.submit(client, node, job, is_pending_release) {
                true => asked.insert(node),
                false => {
                    let cause = NodeFailure::Unreachable(String::new());
                    round.tally.vote(node, Vote::Fault(cause));
                }
            }
        }
        asked
    }

    /// Asks the refusing nodes of a split vote again for the same lease, as the leading attempt
    /// does. Returns `None` if they were asked. Leading is drawn at random, because safety does not
    /// depend on it.
    pub(crate) fn repeat_if_split(&mut self, client: usize, mut round: Round) -> Option<Round> {
        let is_held = |cause: &NodeFailure| {
            matches!(
                cause,
                NodeFailure::Held { .. } | NodeFailure::HeldByReaders { .. }
            )
        };
        let split = round.tally.split(is_held, NodeSet::default());
        let may_repeat = round.request.op == Op::Acquire && round.first.is_none();
        let Some(split) = split.filter(|_| may_repeat && round.repeats < MAX_REPEATS) else {
            return Some(round);
        };
        if !self.rng.bool() {
            return Some(round);
        }
        round.repeats += 1;
        round.tally.reopen(split.contested);
        self.send_round(client, &mut round, |node| split.contested.contains(node));
        self.clients[client].round = Some(round);
        self.coverage.repeats += 1;
        self.evaluate_round(client, false);
        None
    }

    /// Asks the other nodes, because the first node granted or is slow. Returns `false` if they
    /// were asked before.
    pub(crate) fn ask_other_nodes(&mut self, client: usize) -> bool {
        let Some(mut round) = self.clients[client].round.take() else {
            return false;
        };
        let first = round.first.take();
        if first.is_some() {
            self.send_round(client, &mut round, |node| first != Some(node));
        }
        self.clients[client].round = Some(round);
        if first.is_some() {
            let acquire = self.clients[client].acquire.as_ref();
            let end = acquire.and_then(|acquire| Some(acquire.attempt.as_ref()?.end));
            self.set_state(client, ClientState::InRound, end);
            self.evaluate_round(client, false);
        }
        first.is_some()
    }

    /// Counts a reply for its round, if the round is still open.
    pub(crate) fn deliver(&mut self, post: RoutedReply) {
        let RoutedReply {
            client,
            round: number,
            node,
            reply,
        } = post;
        let it = &mut self.clients[client];
        let is_open = |round: &&mut Round| round.number == number;
        let rounds = [it.round.as_mut(), it.extension.as_mut()];
        let Some(round) = rounds.into_iter().flatten().find(is_open) else {
            return self.deliver_late(client, number, node, &reply);
        };
        match reply {
            Reply::Absent => round.absent.insert(node),
            Reply::Fenced(fence) | Reply::SwappedAbsent(Some(fence)) => {
                round.fences.push((node, fence))
            }
            _ => {}
        }
        round.tally.vote(node, vote_of(reply));
        let is_first = round.first == Some(node);
        let refused = round.tally.refused().contains(node);
        if round.request.op == Op::Extend {
            self.evaluate_extension(client, false);
        } else if is_first && refused {
            self.evaluate_round(client, true);
        } else if !is_first || !self.ask_other_nodes(client) {
            self.evaluate_round(client, false);
        }
    }

    /// Returns the round's verdict by its tally, or by the planted bug that counts a quorum of the
    /// reachable nodes only.
    pub(crate) fn verdict(&self, client: usize, round: &Round) -> Option<Verdict> {
        if self.config.is(PlantedBug::QuorumOfReachable) {
            let connections = &self.clients[client].connections;
            let reachable = connections
                .iter()
                .filter(|connection| connection.is_up())
                .count();
            if reachable > 0 && round.tally.granted().len() >= majority(reachable) {
                return Some(Verdict::Granted);
            }
        }
        round.tally.verdict()
    }

    /// Continues the client if its round is decided or `over`.
    pub(crate) fn evaluate_round(&mut self, client: usize, over: bool) {
        let Some(mut round) = self.clients[client].round.take() else {
            return;
        };
        let verdict = match self.verdict(client, &round) {
            Some(Verdict::Refused) if !over => match self.repeat_if_split(client, round) {
                Some(it) => {
                    round = it;
                    Verdict::Refused
                }
                None => return,
            },
            Some(verdict) => verdict,
            None if over => {
                round.unsettled = round.tally.count_former_refusals();
                round.tally.close_with_timeouts()
            }
            None => {
                self.clients[client].round = Some(round);
                return;
            }
        };
        match round.request.op {
            Op::Acquire | Op::Swap => self.finish_acquire_round(client, round, verdict),
            Op::RaiseFence => self.finish_attempt(client, verdict),
            Op::Downgrade => self.finish_downgrade(client, verdict),
            _ => self.finish_release(client, &round, verdict),
        }
    }
}
