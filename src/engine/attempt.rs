//! Makes one attempt: asks the nodes for a fresh token, and undoes it unless it is granted in time.
//!
//! - Each attempt, and each repeat after a split vote, has a fresh token and lease (S3).
//! - Only [`Attempt::activate`] makes a lease on the nodes held. It checks the validity, as the
//!   last step before the lease is returned (S2).
//! - An attempt that fails, is too slow or is cancelled is undone on every node that may have
//!   granted it. No caller waits for the undo (S4). `undo.rs` says when it is published.
//! - An attempt never waits for the lock: `acquire_wait.rs` has the waits between attempts.
//!
//! Tests: `src/tests/engine/` (`validity.rs`: S2; `leftovers.rs`: S3, S4; `split.rs`: repeats;
//! `outage.rs`: breaker).

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::attempt_result::{AttemptFailure, Attempted, VoteOutcome};
use crate::engine::breaker::Probe;
use crate::engine::core::Engine;
use crate::engine::params;
use crate::engine::params::AcquireParams;
use crate::engine::repeats::Repeats;
use crate::error::error::Error;
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
use crate::transport::round::RoundPlan;

/// A pending lease under a fresh token, and the limits of its grant.
///
/// A repeat after a split vote is an `Attempt` of its own; callers count it with the first one.
pub(super) struct Attempt {
    pub(super) lease: Arc<Lease>,
    /// When the wait for votes ends: after `node_timeout`, or at `useful_until`.
    pub(super) budget: Deadline,
    /// The last moment at which a grant leaves `min_validity`; `None` for no limit.
    pub(super) useful_until: Option<Instant>,
    /// Before the first request is sent; the validity counts from here (S2).
    pub(super) start: Instant,
    /// How often a connection had come up or an overdue reply had arrived before the attempt.
    connect_count: u64,
    /// The offset of the wall clock at `start`, in µs.
    wall_offset: i64,
    /// The validity that must be left when the lease becomes held.
    min_validity: Duration,
}

impl Attempt {
    /// Makes a lease that a quorum granted held, if enough validity is left (S2).
    ///
    /// `now` is read after the last reply. Returns whether the lease is held.
    pub(super) fn activate(&self, ttl: Ttl, now: Instant) -> bool {
        validity::valid_until(self.start, ttl.duration(), self.min_validity, now)
            .is_some_and(|end| self.lease.activate(end, self.wall_offset))
    }
}

/// The marker that an attempt leaves on nodes that refuse it.
#[derive(Clone, Copy)]
pub(crate) enum WaitMarker<'a> {
    None,
    /// A reader marker: the next writer that releases starts a reader turn.
    Reader,
    /// A gate entry, which keeps new readers out.
    Writer(&'a Arc<Lease>),
}

/// The parameters of one attempt.
#[derive(Clone, Copy)]
pub(crate) struct AttemptContext<'a> {
    pub(crate) params: &'a AcquireParams,
    /// The kind of lease; for a semaphore, with the permit to ask for.
    pub(crate) kind: LeaseKind,
    pub(crate) inbox: &'a Arc<Inbox>,
    pub(crate) marker: WaitMarker<'a>,
    /// The node to ask before the others. They are asked only if it does not refuse.
    pub(crate) preferred_node: Option<usize>,
    /// Whether a refusal is to report the owner label: the caller's error tells it.
    pub(crate) wants_owner: bool,
    /// The breaker's probe, if this attempt is it.
    pub(crate) probe: Option<&'a Probe<'a>>,
}

impl<'a> AttemptContext<'a> {
    /// Returns the parameters of an attempt that asks all nodes and leaves no marker.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn new(params: &'a AcquireParams, inbox: &'a Arc<Inbox>) -> AttemptContext<'a> {
        AttemptContext {
            params,
            kind: params.kind,
            inbox,
            marker: WaitMarker::None,
            preferred_node: None,
            wants_owner: false,
            probe: None,
        }
    }

    /// Returns whether the lease needs a fencing token. Read leases never have one.
    fn needs_fencing_token(&self) -> bool {
        self.params.fenced && self.params.kind != LeaseKind::Read
    }
}

/// The facts about the replies to an attempt from which the breaker learns.
#[derive(Clone, Copy)]
struct VoteReplies {
    wait_end: WaitEnd,
    /// The number of nodes that replied anything, including an error.
    count: usize,
    /// Whether this attempt, or an attempt that it repeats, was a split vote.
    was_split: bool,
}

impl Engine {
    /// Returns an attempt under a fresh token (S3) that starts now.
    ///
    /// # Errors
    /// - `System`: the operating system has no random bytes.
    pub(super) fn new_attempt(
        &self,
        params: &AcquireParams,
        kind: LeaseKind,
    ) -> Result<Attempt, Error> {
        let (start, wall_offset) = clock::read_both();
        let since = clock::unix_millis(start, wall_offset);
        let token = Token::fresh_at(params.owner_label.as_ref(), since)?;
        let lease = Arc::new(Lease::new(params.keys.clone(), token, kind));
        Ok(self.attempt_for_lease(params, &lease, start, wall_offset))
    }

    /// Returns the attempt of an existing lease whose request was sent at `start`.
    ///
    /// `wall_offset` is the offset of the wall clock at that time.
    pub(super) fn attempt_for_lease(
        &self,
        params: &AcquireParams,
        lease: &Arc<Lease>,
        start: Instant,
        wall_offset: i64,
    ) -> Attempt {
        let min_validity = params.ttl.min_validity(self.settings.min_validity);
        let validity = validity::validity(params.ttl.duration());
        let useful_until = deadline::deadline(start, validity - min_validity);
        Attempt {
            lease: Arc::clone(lease),
            budget: self
                .node_budget(start)
                .min_with(DeadlineCause::Validity, useful_until),
            useful_until,
            start,
            connect_count: self.nodes.connect_count(),
            wall_offset,
            min_validity,
        }
    }

    /// Makes one attempt: returns a held lease, or a failure with the undo, which its drop sends.
    ///
    /// A split vote that other callers lead is repeated, with a fresh token each time (L1). Blocks
    /// for at most `node_timeout`, or until a grant would come too late, and for `max_split` of
    /// repeats.
    ///
    /// # Errors
    /// - `Cancelled`, `Closed`: the caller was cancelled, or the `Nodes` shut down, in a pause.
    /// - `InvalidConfig`: a quorum knows another number of permits.
    /// - `System`: the operating system has no random bytes.
    pub(crate) fn attempt(&self, context: &AttemptContext<'_>) -> Result<Attempted<'_>, Error> {
        let mut context = *context;
        let mut repeats = Repeats::default();
        let mut former: Option<Attempted<'_>> = None;
        loop {
            let attempt = self.new_attempt(context.params, context.kind)?;
            let vote = self.send_attempt(&context, &attempt, &mut repeats);
            let mut attempted = self.conclude(&context, attempt, vote, repeats.was_split())?;
            if let (
                Some(former),
                Err(AttemptFailure::Unavailable(_) | AttemptFailure::TooSlow { won: false, .. }),
            ) = (former.take(), &attempted.result)
            {
                // `max_split` ended before all nodes replied, so the former result counts.
                let undo = attempted.undo;
                return Ok(repeats.conclude(Attempted { undo, ..former }));
            }
            let Some(preferred_node) = repeats.next_after(&attempted) else {
                return Ok(repeats.conclude(attempted));
            };
            self.check_cancelled(context.inbox)?; // before the undo of a call that goes on
            attempted.undo_unpublished();
            former = Some(attempted);
            self.pause_until(repeats.pause_end(), context.inbox)?;
            context.preferred_node = preferred_node;
        }
    }

    /// Asks the nodes for the attempt's token and collects the votes.
    fn send_attempt(
        &self,
        context: &AttemptContext<'_>,
        attempt: &Attempt,
        repeats: &mut Repeats,
    ) -> VoteOutcome {
        let ttl = context.params.ttl.millis();
        let mut request = Request::new(Op::Acquire, &attempt.lease, ttl);
        match context.marker {
            WaitMarker::None => {}
            WaitMarker::Reader => request.refresh_interval = self.refresh_interval,
            WaitMarker::Writer(entry) => {
                request.refresh_interval = self.refresh_interval;
                request.gate_entry = Some(Arc::clone(entry));
            }
        }
        request.wants_owner = context.wants_owner;
        if context.needs_fencing_token() {
            request.min_fence = Some(0);
        }
        let plan = context
            .preferred_node
            .map_or(RoundPlan::All, RoundPlan::PreferredFirst);
        match self.nodes.send(&request, context.inbox, plan) {
            Ok(round) => {
                let (round, split) = self.settle_split(round, context, attempt, repeats);
                VoteOutcome {
                    round,
                    split,
                    single_node: false,
                }
            }
            // Only the preferred node was asked, and it did not grant.
            Err(round) => VoteOutcome {
                round: *round,
                split: None,
                single_node: true,
            },
        }
    }

    /// Returns the held lease of a granted vote, or the failure of the vote with the undo.
    fn conclude(
        &self,
        context: &AttemptContext<'_>,
        attempt: Attempt,
        mut vote: VoteOutcome,
        was_split: bool,
    ) -> Result<Attempted<'_>, Error> {
        let params = context.params;
        // Read before the round below replaces these votes by its own.
        let refused = vote.round.refused();
        let permit_count = vote.round.tally.permit_count_mismatch();
        let free_permits = self.candidate_permits(context.kind, &vote);
        if vote.round.verdict == Verdict::Granted && context.needs_fencing_token() {
            let (lease, budget) = (&attempt.lease, attempt.budget);
            vote.round = self.assign_fencing_token(lease, vote.round, context.inbox, budget);
        }
        let now = clock::now();
        if vote.round.verdict == Verdict::Granted && attempt.activate(params.ttl, now) {
            self.circuit.record_quorum(now);
            if was_split {
                // Adds the nodes that refused: the other callers release their tokens there.
                let ttl = params.ttl.millis();
                self.nodes.restore(&attempt.lease, ttl, refused);
            }
            return Ok(Attempted::held(attempt.lease));
        }
        let replies = VoteReplies {
            wait_end: vote.round.wait_end,
            count: vote.round.tally.replied(),
            was_split,
        };
        let failure = AttemptFailure::classify(vote, attempt.budget.limit());
        // Before all else, so that no panic leaves a token.
        let undo = self.undo(&attempt.lease, refused);
        self.record_breaker(&failure, &attempt, context.probe, replies);
        match permit_count {
            Some(in_use) => Err(params::permit_count_error(
                &params.keys,
                context.kind,
                in_use,
            )),
            None => Ok(Attempted {
                result: Err(failure),
                free_permits,
                undo: Some(undo),
            }),
        }
    }

    /// Tells the breaker whether the failed attempt reached a quorum.
    fn record_breaker(
        &self,
        failure: &AttemptFailure,
        attempt: &Attempt,
        probe: Option<&Probe<'_>>,
        replies: VoteReplies,
    ) {
        // Cancellation or `max_split` ended the wait early, so missing replies prove no outage.
        let is_cut_short = replies.wait_end == WaitEnd::Cancelled || replies.was_split;
        match failure {
            AttemptFailure::Unavailable(_) if is_cut_short => {}
            AttemptFailure::Unavailable(tally) if tally.is_outage() => {
                let connects = attempt.connect_count;
                self.circuit
                    .record_failure(attempt.start, probe, connects, tally);
            }
            // Half of an even number of nodes decides a tie, but is no quorum.
            _ if replies.count >= majority(self.nodes.total()) => {
                self.circuit.record_quorum(clock::now());
            }
            _ => {}
        }
    }
}
