//! What one attempt at a lock is: asked of all nodes at once, and won, or undone wherever it may have been granted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::attempt_result::{AttemptFailure, AttemptResult, Contention, max_hold_left};
use crate::engine::breaker::Probe;
use crate::engine::core::Engine;
use crate::engine::params;
use crate::engine::params::AcquireParams;
use crate::engine::repeats::Repeats;
use crate::error::Error;
use crate::protocol::kind::LeaseKind;
use crate::protocol::lease::Lease;
use crate::protocol::quorum::{Verdict, majority};
use crate::protocol::request::{Op, Request};
use crate::protocol::token::Token;
use crate::protocol::ttl::Ttl;
use crate::protocol::validity;
use crate::time::deadline::{Deadline, DeadlineCause};
use crate::time::{clock, deadline};
use crate::transport::inbox::{Inbox, WaitEnd};

/// A lease that is about to be asked for, under a token of its own, and until when a grant would be of use.
pub(crate) struct Attempt {
    pub(crate) lease: Arc<Lease>,
    pub(crate) budget: Deadline,
    /// Until when a grant would be of use.
    pub(crate) useful_until: Option<Instant>,
    pub(crate) start: Instant,
    wall_offset: i64,
    min_validity: Duration,
}

impl Attempt {
    /// A quorum has granted it: `true` if enough validity is left, and then it is held (rule S2).
    pub(crate) fn activate(&self, ttl: Ttl) -> bool {
        validity::valid_until(self.start, ttl.duration(), self.min_validity, clock::now())
            .is_some_and(|end| self.lease.activate(end, self.wall_offset))
    }
}

/// What an attempt leaves on nodes that refuse it, to say that somebody waits.
#[derive(Clone, Copy)]
pub(crate) enum WaitMarker<'a> {
    None,
    /// A reader's mark: the next writer that releases gives readers a turn.
    Reader,
    /// A writer's place at the gate.
    Writer(&'a Arc<Lease>),
}

/// What is asked of which nodes.
#[derive(Clone, Copy)]
struct Ask<'a> {
    trace: WaitMarker<'a>,
    /// As in [`attempt`](Engine::attempt).
    first: Option<usize>,
}

impl Engine {
    /// Draws a token, and starts the clock.
    pub(crate) fn new_attempt(
        &self,
        wish: &AcquireParams,
        claim: LeaseKind,
    ) -> Result<Attempt, Error> {
        let token = Token::fresh(self.settings.owner_label.as_deref())?;
        let lease = Arc::new(Lease::new(wish.keys.clone(), token, claim));
        Ok(self.attempt_for_lease(wish, &lease, clock::now(), clock::wall_offset()))
    }

    /// The same for a lease that there is, which is asked for from `start` on; the wall clock's `lead` is from then.
    pub(crate) fn attempt_for_lease(
        &self,
        wish: &AcquireParams,
        lease: &Arc<Lease>,
        start: Instant,
        lead: i64,
    ) -> Attempt {
        let least = wish.ttl.min_validity(self.settings.min_validity);
        let validity = validity::validity(wish.ttl.duration());
        let in_time = deadline::deadline(start, validity - least);
        Attempt {
            lease: Arc::clone(lease),
            budget: self
                .node_budget(start)
                .min_with(DeadlineCause::Validity, in_time),
            useful_until: in_time,
            start,
            wall_offset: lead,
            min_validity: least,
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
        wish: &AcquireParams,
        inbox: &Arc<Inbox>,
        trace: WaitMarker<'_>,
        first: Option<usize>,
        probe: Option<&Probe<'_>>,
    ) -> Result<AttemptResult, Error> {
        self.nodes.counters().attempted(wish.keys.first());
        match wish.kind {
            LeaseKind::Permit { total: of, .. } => {
                self.attempt_any_permit(wish, of, inbox, first, probe)
            }
            claim => self
                .attempt_kind(wish, claim, inbox, trace, first, probe)
                .map(|(ended, _)| ended),
        }
    }

    /// The same, for a permit a certain one. Answers also which others may be had in its place.
    pub(crate) fn attempt_kind(
        &self,
        wish: &AcquireParams,
        claim: LeaseKind,
        inbox: &Arc<Inbox>,
        trace: WaitMarker<'_>,
        first: Option<usize>,
        probe: Option<&Probe<'_>>,
    ) -> Result<(AttemptResult, Vec<u16>), Error> {
        let mut repeats = Repeats::default();
        let mut ask = Ask { trace, first };
        let mut vote = self.vote(wish, claim, inbox, ask, probe, &mut repeats)?;
        while let Some(next) = repeats.next_after(&vote) {
            self.pause_until(repeats.pause(), inbox)?;
            ask.first = next;
            let again = self.vote(wish, claim, inbox, ask, probe, &mut repeats)?;
            if matches!(again, (Err(AttemptFailure::Unavailable(_)), _)) {
                break; // there was no time for all to answer: what they said before stands
            }
            vote = again;
        }
        Ok(repeats.end(vote))
    }

    /// Asks the nodes for one token, until the vote is won or lost, or others lead in a split one. Then it is undone.
    fn vote(
        &self,
        wish: &AcquireParams,
        claim: LeaseKind,
        inbox: &Arc<Inbox>,
        Ask { trace, first }: Ask<'_>,
        probe: Option<&Probe<'_>>,
        repeats: &mut Repeats,
    ) -> Result<(AttemptResult, Vec<u16>), Error> {
        let bid = self.new_attempt(wish, claim)?;
        let Attempt { lease, budget, .. } = &bid;
        let risen = self.nodes.connect_epoch();
        let mut request = Request::new(Op::Acquire, lease, wish.ttl.millis());
        if !matches!(trace, WaitMarker::None) {
            request.refresh_interval = self.refresh_interval;
        }
        if let WaitMarker::Writer(place) = trace {
            request.gate_entry = Some(Arc::clone(place));
        }
        if wish.fenced && wish.kind != LeaseKind::Read {
            request.min_fence = Some(0);
        }
        let asked = match first {
            None => Ok(self.nodes.send_to_all(&request, inbox)),
            Some(first) => self.nodes.send_preferred_first(&request, inbox, first),
        };
        let (mut outcome, split, by_one) = match asked {
            Ok(round) => {
                let (outcome, split) = self.settle_split(round, &bid, wish, inbox, repeats);
                (outcome, split, false)
            }
            Err(outcome) => (*outcome, None, true),
        };
        let refused = outcome.refused();
        let other_permits = outcome.tally.permit_count_mismatch();
        let elsewhere = self.candidate_permits(claim, &outcome, by_one);
        if outcome.verdict == Verdict::Granted && request.min_fence.is_some() {
            outcome = self.assign_fencing_token(lease, outcome, inbox, *budget);
        }
        let (won, ended) = (outcome.verdict == Verdict::Granted, outcome.wait_end);
        let replied = outcome.tally.replied();
        let only_one = by_one && ended != WaitEnd::Cancelled;
        let miss = match outcome.verdict {
            Verdict::Granted if bid.activate(wish.ttl) => {
                self.circuit.record_quorum();
                if repeats.was_split() {
                    // The other callers have given way there by now, or are about to.
                    self.nodes.restore(lease, wish.ttl.millis(), refused);
                }
                return Ok((Ok(bid.lease), Vec::new()));
            }
            Verdict::Granted => AttemptFailure::TooSlow {
                won,
                max_hold_left: max_hold_left(&outcome.tally),
            },
            Verdict::Refused => AttemptFailure::Contended(Contention::of(outcome, only_one, split)),
            Verdict::Unavailable if only_one => {
                AttemptFailure::Contended(Contention::of(outcome, true, None))
            }
            Verdict::Unavailable
                if ended == WaitEnd::TimedOut && budget.limit() == DeadlineCause::Validity =>
            {
                AttemptFailure::TooSlow {
                    won,
                    max_hold_left: max_hold_left(&outcome.tally),
                }
            }
            Verdict::Unavailable => AttemptFailure::Unavailable(outcome.tally),
        };
        match &miss {
            // Who is cancelled or has no time has not waited to see whether there is a quorum.
            AttemptFailure::Unavailable(_)
                if ended == WaitEnd::Cancelled || repeats.was_split() => {}
            AttemptFailure::Unavailable(tally) if tally.is_outage() => {
                self.circuit.record_failure(bid.start, probe, risen, tally);
            }
            // One node is no quorum, and of an even number neither are those that decide a tie. An error is a reply.
            _ if replied >= majority(self.nodes.total()) => self.circuit.record_quorum(),
            _ => {}
        }
        lease.abandon();
        // Nodes that refused have nothing of it. All others may have, also those that answered with an error (S4).
        self.nodes.release_unawaited(lease, refused);
        match other_permits {
            Some(other) => Err(params::permit_count_error(&wish.keys, claim, other)),
            None => Ok((Err(miss), elsewhere)),
        }
    }
}
