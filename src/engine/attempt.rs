//! What one attempt at a lock is: asked of all nodes at once, and won, or undone wherever it may have been granted.

use std::sync::Arc;
use std::time::Duration;

use crate::engine::circuit::Probe;
use crate::engine::{self, Engine, Wish};
use crate::error::Error;
use crate::fence::{self, Fence};
use crate::inbox::{Ended, Inbox};
use crate::key::Token;
use crate::lease::{Claim, FOR_EVER, Lease};
use crate::local::Access;
use crate::quorum::{NodeSet, Tally, Verdict, quorum};
use crate::round::Outcome;
use crate::script::{Request, Verb};
use crate::time::{self, Budget, Limit};

/// How an attempt ended that was not won.
pub(super) enum Miss {
    Contended(Contention),
    Unavailable(Tally),
    /// Granted too late, or no verdict within the time in which a grant would have been of use.
    Slow,
}

/// What an attempt has come to.
pub(super) type Attempted = Result<Arc<Lease>, Miss>;

impl Miss {
    /// How long somebody may hold the lock who refused it on a node, be it the only one that answered; for ever where that is
    /// not known.
    pub(super) fn held_for(&self) -> Option<Duration> {
        match self {
            Miss::Contended(met) => Some(met.held_for.unwrap_or(FOR_EVER)),
            Miss::Unavailable(tally) if tally.refused().len() > 0 => {
                Some(tally.held_for().unwrap_or(FOR_EVER))
            }
            Miss::Unavailable(_) | Miss::Slow => None,
        }
    }
}

/// Held by others.
#[derive(Clone, Debug)]
pub(super) struct Contention {
    /// How most of the nodes that refused say that it is held.
    pub(super) by: Access,
    /// Free again after so long, if that is known.
    pub(super) free: Option<Duration>,
    /// Some nodes had granted it: others want it at the same time, and they may all lose.
    pub(super) split: bool,
    /// Only one node was asked, and it refused.
    pub(super) by_one: bool,
    /// How long those may hold it at the longest who refused, if that is known.
    pub(super) held_for: Option<Duration>,
    /// Which of the lock's keys are held, where it has several.
    pub(super) in_the_way: Vec<usize>,
}

/// What an attempt leaves on nodes that refuse it, to say that somebody waits.
pub(super) enum Trace<'a> {
    None,
    /// A reader's mark: the next writer that releases gives readers a turn.
    Mark,
    /// A writer's place at the gate.
    Place(&'a Arc<Lease>),
}

impl Engine {
    /// One attempt with a fresh token: won and valid, or undone on every node that may have granted it.
    ///
    /// If `first` is given that node is asked before all others, and they only if it does not refuse: who loses there leaves
    /// nothing to undo.
    ///
    /// Blocks for `node_timeout` at most, and no longer than a grant would be of use.
    pub(super) fn attempt(
        &self,
        wish: &Wish,
        inbox: &Arc<Inbox>,
        trace: Trace<'_>,
        first: Option<usize>,
        probe: Option<&Probe<'_>>,
    ) -> Result<Attempted, Error> {
        match wish.claim {
            Claim::Permit { of, .. } => self.attempt_permits(wish, of, inbox, first, probe),
            claim => self
                .attempt_as(wish, claim, inbox, trace, first, probe)
                .map(|(ended, _)| ended),
        }
    }

    /// The same, for a permit a certain one. Answers also which others may be had in its place.
    pub(super) fn attempt_as(
        &self,
        wish: &Wish,
        claim: Claim,
        inbox: &Arc<Inbox>,
        trace: Trace<'_>,
        first: Option<usize>,
        probe: Option<&Probe<'_>>,
    ) -> Result<(Attempted, Vec<u16>), Error> {
        self.nodes.meter().attempted(wish.keys.first());
        let ttl = wish.ttl;
        let token = Token::fresh(self.settings.owner.as_deref())?;
        let lease = Arc::new(Lease::new(wish.keys.clone(), token, claim));
        let least = ttl.least_validity(self.settings.min_validity);
        let validity = time::validity(ttl.duration());
        let (start, lead) = (time::now(), time::lead());
        let budget = self
            .node_budget(start)
            .and(Limit::Validity, time::deadline(start, validity - least));
        let mut request = Request::new(Verb::Take, &lease, ttl.millis());
        if !matches!(trace, Trace::None) {
            request.refresh = self.refresh;
        }
        if let Trace::Place(place) = trace {
            request.place = Some(Arc::clone(place));
        }
        if wish.fenced && wish.claim != Claim::Read {
            request.fence = Some(0);
        }
        let (mut outcome, by_one) = match first {
            None => (self.nodes.ask(&request, inbox).outcome(budget), false),
            Some(first) => match self.nodes.ask_one_first(&request, inbox, first) {
                Ok(round) => (round.outcome(budget), false),
                Err(outcome) => (*outcome, true),
            },
        };
        let refused = outcome.tally.refused();
        let other_permits = outcome.tally.other_permits();
        let elsewhere = self.likeliest(claim, &outcome, by_one);
        if outcome.verdict == Verdict::Won && request.fence.is_some() {
            outcome = self.number(&lease, outcome, inbox, budget);
        }
        let won = outcome.verdict == Verdict::Won;
        let miss = match outcome.verdict {
            Verdict::Won => match time::valid_until(start, ttl.duration(), least, time::now()) {
                Some(end) if lease.hold(end, lead) => {
                    self.circuit.succeed();
                    return Ok((Ok(lease), Vec::new()));
                }
                _ => Miss::Slow,
            },
            _ if by_one && outcome.ended != Ended::Cancelled => Miss::Contended(Contention {
                by: match outcome.tally.held_by_readers() {
                    true => Access::Shared,
                    false => Access::Alone,
                },
                free: outcome.tally.held_for(),
                split: false,
                by_one,
                held_for: outcome.tally.held_for(),
                in_the_way: outcome.in_the_way,
            }),
            Verdict::Refused => Miss::Contended(Contention {
                by: match outcome.tally.held_by_readers() {
                    true => Access::Shared,
                    false => Access::Alone,
                },
                free: outcome.tally.free_in(),
                split: outcome.tally.granted().len() > 0,
                by_one: false,
                held_for: outcome.tally.held_for(),
                in_the_way: outcome.in_the_way,
            }),
            Verdict::Unavailable
                if outcome.ended == Ended::TimedOut && budget.limit() == Limit::Validity =>
            {
                Miss::Slow
            }
            Verdict::Unavailable => Miss::Unavailable(outcome.tally),
        };
        match &miss {
            // One node is no quorum, and who is cancelled or has no time has not waited to see whether there is one.
            Miss::Unavailable(tally) if outcome.ended != Ended::Cancelled && tally.is_outage() => {
                let up = self.nodes.quorum_up();
                self.circuit.fail(start, probe.is_some(), up);
            }
            Miss::Contended(_) if !by_one => self.circuit.succeed(),
            _ if won => self.circuit.succeed(),
            _ => {}
        }
        lease.abandon();
        // Nodes that refused have nothing of it. All others may have, also those that answered with an error (S4).
        self.nodes.release_behind(&lease, refused);
        match other_permits {
            Some(other) => Err(engine::other_permits(&wish.keys, claim, other)),
            None => Ok((Err(miss), elsewhere)),
        }
    }

    /// Gives a lease that a quorum has granted its fencing token (rule S12), in a second round where the nodes' fences differ.
    /// Answers how the attempt has ended by that.
    pub(super) fn number(
        &self,
        lease: &Arc<Lease>,
        granted: Outcome,
        inbox: &Arc<Inbox>,
        budget: Budget,
    ) -> Outcome {
        let numbers = granted.numbers.iter().map(|(_, number)| *number).collect();
        let mut raise = Request::new(Verb::Raise, lease, 0);
        match fence::fence(numbers, quorum(self.nodes.total())) {
            Some(Fence::Agreed(token)) => {
                raise.fence = Some(token);
                let mut behind = NodeSet::default();
                let lower = granted.numbers.iter().filter(|(_, number)| *number < token);
                lower.for_each(|(node, _)| behind.insert(*node));
                self.nodes.tell(&raise, behind); // so that they agree next time
                lease.number(token);
                granted
            }
            Some(Fence::Raise(token)) => {
                raise.fence = Some(token);
                lease.number(token);
                self.nodes.ask(&raise, inbox).outcome(budget)
            }
            None => granted,
        }
    }
}
