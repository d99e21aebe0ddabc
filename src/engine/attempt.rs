//! What one attempt at a lock is: asked of all nodes at once, and won, or undone wherever it may have been granted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::attempt_result::{Attempted, Contention, Miss, held_for};
use crate::engine::breaker::Probe;
use crate::engine::core::Engine;
use crate::engine::params;
use crate::engine::params::Wish;
use crate::engine::repeats::Repeats;
use crate::error::Error;
use crate::protocol::kind::Claim;
use crate::protocol::lease::Lease;
use crate::protocol::quorum::{Verdict, quorum};
use crate::protocol::request::{Request, Verb};
use crate::protocol::token::Token;
use crate::protocol::ttl::Ttl;
use crate::protocol::validity;
use crate::time::deadline::{Budget, Limit};
use crate::time::{clock, deadline};
use crate::transport::inbox::{Ended, Inbox};

/// A lease that is about to be asked for, under a token of its own, and until when a grant would be of use.
pub(crate) struct Bid {
    pub(crate) lease: Arc<Lease>,
    pub(crate) budget: Budget,
    /// Until when a grant would be of use.
    pub(crate) useful_until: Option<Instant>,
    pub(crate) start: Instant,
    lead: i64,
    least: Duration,
}

impl Bid {
    /// A quorum has granted it: `true` if enough validity is left, and then it is held (rule S2).
    pub(crate) fn take_hold(&self, ttl: Ttl) -> bool {
        validity::valid_until(self.start, ttl.duration(), self.least, clock::now())
            .is_some_and(|end| self.lease.hold(end, self.lead))
    }
}

/// What an attempt leaves on nodes that refuse it, to say that somebody waits.
#[derive(Clone, Copy)]
pub(crate) enum Trace<'a> {
    None,
    /// A reader's mark: the next writer that releases gives readers a turn.
    Mark,
    /// A writer's place at the gate.
    Place(&'a Arc<Lease>),
}

/// What is asked of which nodes.
#[derive(Clone, Copy)]
struct Ask<'a> {
    trace: Trace<'a>,
    /// As in [`attempt`](Engine::attempt).
    first: Option<usize>,
}

impl Engine {
    /// Draws a token, and starts the clock.
    pub(crate) fn bid(&self, wish: &Wish, claim: Claim) -> Result<Bid, Error> {
        let token = Token::fresh(self.settings.owner.as_deref())?;
        let lease = Arc::new(Lease::new(wish.keys.clone(), token, claim));
        Ok(self.bid_for(wish, &lease, clock::now(), clock::lead()))
    }

    /// The same for a lease that there is, which is asked for from `start` on; the wall clock's `lead` is from then.
    pub(crate) fn bid_for(
        &self,
        wish: &Wish,
        lease: &Arc<Lease>,
        start: Instant,
        lead: i64,
    ) -> Bid {
        let least = wish.ttl.least_validity(self.settings.min_validity);
        let validity = validity::validity(wish.ttl.duration());
        let in_time = deadline::deadline(start, validity - least);
        Bid {
            lease: Arc::clone(lease),
            budget: self.node_budget(start).and(Limit::Validity, in_time),
            useful_until: in_time,
            start,
            lead,
            least,
        }
    }

    /// One attempt: won and valid, or undone on every node that may have granted it. A split vote is repeated within it, with a
    /// fresh token each time that it gave way (rule L1).
    ///
    /// If `first` is given that node is asked before all others, and they only if it does not refuse: who loses there leaves
    /// nothing to undo.
    ///
    /// Blocks for `node_timeout` and the repeats at most, and no longer than a grant would be of use.
    pub(crate) fn attempt(
        &self,
        wish: &Wish,
        inbox: &Arc<Inbox>,
        trace: Trace<'_>,
        first: Option<usize>,
        probe: Option<&Probe<'_>>,
    ) -> Result<Attempted, Error> {
        self.nodes.meter().attempted(wish.keys.first());
        match wish.claim {
            Claim::Permit { of, .. } => self.attempt_permits(wish, of, inbox, first, probe),
            claim => self
                .attempt_as(wish, claim, inbox, trace, first, probe)
                .map(|(ended, _)| ended),
        }
    }

    /// The same, for a permit a certain one. Answers also which others may be had in its place.
    pub(crate) fn attempt_as(
        &self,
        wish: &Wish,
        claim: Claim,
        inbox: &Arc<Inbox>,
        trace: Trace<'_>,
        first: Option<usize>,
        probe: Option<&Probe<'_>>,
    ) -> Result<(Attempted, Vec<u16>), Error> {
        let mut repeats = Repeats::default();
        let mut ask = Ask { trace, first };
        let mut vote = self.vote(wish, claim, inbox, ask, probe, &mut repeats)?;
        while let Some(next) = repeats.next_after(&vote) {
            self.pause_until(repeats.pause(), inbox)?;
            ask.first = next;
            let again = self.vote(wish, claim, inbox, ask, probe, &mut repeats)?;
            if matches!(again, (Err(Miss::Unavailable(_)), _)) {
                break; // there was no time for all to answer: what they said before stands
            }
            vote = again;
        }
        Ok(repeats.end(vote))
    }

    /// Asks the nodes for one token, until the vote is won or lost, or others lead in a split one. Then it is undone.
    fn vote(
        &self,
        wish: &Wish,
        claim: Claim,
        inbox: &Arc<Inbox>,
        Ask { trace, first }: Ask<'_>,
        probe: Option<&Probe<'_>>,
        repeats: &mut Repeats,
    ) -> Result<(Attempted, Vec<u16>), Error> {
        let bid = self.bid(wish, claim)?;
        let Bid { lease, budget, .. } = &bid;
        let risen = self.nodes.risen();
        let mut request = Request::new(Verb::Take, lease, wish.ttl.millis());
        if !matches!(trace, Trace::None) {
            request.refresh = self.refresh;
        }
        if let Trace::Place(place) = trace {
            request.place = Some(Arc::clone(place));
        }
        if wish.fenced && wish.claim != Claim::Read {
            request.fence = Some(0);
        }
        let asked = match first {
            None => Ok(self.nodes.ask(&request, inbox)),
            Some(first) => self.nodes.ask_one_first(&request, inbox, first),
        };
        let (mut outcome, split, by_one) = match asked {
            Ok(round) => {
                let (outcome, split) = self.settle_split(round, &bid, wish, inbox, repeats);
                (outcome, split, false)
            }
            Err(outcome) => (*outcome, None, true),
        };
        let refused = outcome.refused();
        let other_permits = outcome.tally.other_permits();
        let elsewhere = self.likeliest(claim, &outcome, by_one);
        if outcome.verdict == Verdict::Won && request.fence.is_some() {
            outcome = self.number(lease, outcome, inbox, *budget);
        }
        let (won, ended) = (outcome.verdict == Verdict::Won, outcome.ended);
        let replied = outcome.tally.replied();
        let only_one = by_one && ended != Ended::Cancelled;
        let miss = match outcome.verdict {
            Verdict::Won if bid.take_hold(wish.ttl) => {
                self.circuit.succeed();
                if repeats.was_split() {
                    // The other callers have given way there by now, or are about to.
                    self.nodes.put_back(lease, wish.ttl.millis(), refused);
                }
                return Ok((Ok(bid.lease), Vec::new()));
            }
            Verdict::Won => Miss::Slow {
                won,
                held_for: held_for(&outcome.tally),
            },
            Verdict::Refused => Miss::Contended(Contention::of(outcome, only_one, split)),
            Verdict::Unavailable if only_one => {
                Miss::Contended(Contention::of(outcome, true, None))
            }
            Verdict::Unavailable
                if ended == Ended::TimedOut && budget.limit() == Limit::Validity =>
            {
                Miss::Slow {
                    won,
                    held_for: held_for(&outcome.tally),
                }
            }
            Verdict::Unavailable => Miss::Unavailable(outcome.tally),
        };
        match &miss {
            // Who is cancelled or has no time has not waited to see whether there is a quorum.
            Miss::Unavailable(_) if ended == Ended::Cancelled || repeats.was_split() => {}
            Miss::Unavailable(tally) if tally.is_outage() => {
                self.circuit.fail(bid.start, probe, risen, tally);
            }
            // One node is no quorum, and of an even number neither are those that decide a tie. An error is a reply.
            _ if replied >= quorum(self.nodes.total()) => self.circuit.succeed(),
            _ => {}
        }
        lease.abandon();
        // Nodes that refused have nothing of it. All others may have, also those that answered with an error (S4).
        self.nodes.release_behind(lease, refused);
        match other_permits {
            Some(other) => Err(params::other_permits(&wish.keys, claim, other)),
            None => Ok((Err(miss), elsewhere)),
        }
    }
}
