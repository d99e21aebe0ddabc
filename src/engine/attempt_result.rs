//! The result of one attempt, and how votes are classified as failures.

use std::sync::Arc;
use std::time::Duration;

use crate::engine::undo::Undo;
use crate::local::request::AccessMode;
use crate::protocol::lease::{Lease, NEVER_EXPIRES_AFTER};
use crate::protocol::quorum::{Split, Tally, Verdict};
use crate::time::deadline::DeadlineCause;
use crate::transport::inbox::WaitEnd;
use crate::transport::round::RoundOutcome;

/// An attempt: a held lease, or a failure.
pub(super) type AttemptResult = Result<Arc<Lease>, AttemptFailure>;

/// The result of an attempt, its undo, and the other permits that the nodes reported free.
pub(crate) struct Attempted<'a> {
    pub(crate) result: AttemptResult,
    /// The permits that a quorum may grant instead.
    pub(super) free_permits: Vec<u16>,
    /// The undo of a failed attempt that is not sent yet.
    pub(super) undo: Option<Undo<'a>>,
}

impl Attempted<'_> {
    pub(super) fn held(lease: Arc<Lease>) -> Attempted<'static> {
        Attempted {
            result: Ok(lease),
            free_permits: Vec::new(),
            undo: None,
        }
    }

    /// Undoes the failed attempt of a call that goes on.
    pub(super) fn undo_unpublished(&mut self) {
        self.undo
            .take()
            .into_iter()
            .for_each(Undo::send_unpublished);
    }
}

/// How the votes on one token ended.
pub(super) struct VoteOutcome {
    pub(super) round: RoundOutcome,
    /// The split vote that other callers lead, if the vote ended that way (L1).
    pub(super) split: Option<Split>,
    /// Only the preferred node was asked.
    pub(super) single_node: bool,
}

/// Why an attempt failed.
pub(crate) enum AttemptFailure {
    /// Other callers hold the lock.
    Contended(Contention),
    /// Too few nodes replied.
    Unavailable(Tally),
    /// A quorum granted too late, or did not reply while a grant would have been valid (S2).
    TooSlow {
        /// A quorum granted.
        won: bool,
        /// The result of [`AttemptFailure::max_hold_left`].
        max_hold_left: Option<Duration>,
    },
}

impl AttemptFailure {
    /// Classifies a vote that did not give a valid lease.
    ///
    /// `limit` is the limit that the wait for the votes had.
    pub(super) fn classify(vote: VoteOutcome, limit: DeadlineCause) -> AttemptFailure {
        let VoteOutcome { round, split, .. } = vote;
        // A cancelled caller did not wait for the reply of the preferred node.
        let single_node = vote.single_node && round.wait_end != WaitEnd::Cancelled;
        let is_too_late = round.wait_end == WaitEnd::TimedOut && limit == DeadlineCause::Validity;
        match round.verdict {
            Verdict::Refused => {
                AttemptFailure::Contended(Contention::new(round, single_node, split))
            }
            Verdict::Unavailable if single_node => {
                AttemptFailure::Contended(Contention::new(round, true, None))
            }
            Verdict::Unavailable if !is_too_late => AttemptFailure::Unavailable(round.tally),
            Verdict::Granted | Verdict::Unavailable => AttemptFailure::TooSlow {
                won: round.verdict == Verdict::Granted,
                max_hold_left: max_hold_left(&round.tally),
            },
        }
    }

    /// Returns for how long another caller may hold the lock, by the nodes that refused.
    ///
    /// `None` if no node refused; `NEVER_EXPIRES_AFTER` if a refusal did not give a time.
    pub(crate) fn max_hold_left(&self) -> Option<Duration> {
        match self {
            AttemptFailure::Contended(contention) => {
                Some(contention.max_hold_left.unwrap_or(NEVER_EXPIRES_AFTER))
            }
            AttemptFailure::Unavailable(tally) => max_hold_left(tally),
            AttemptFailure::TooSlow { max_hold_left, .. } => *max_hold_left,
        }
    }

    /// Returns whether the preferred node alone was asked, and refused.
    pub(super) fn is_of_one_node(&self) -> bool {
        self.contention()
            .is_some_and(|contention| contention.single_node)
    }

    /// Returns how the lock is held, if the attempt was contended.
    pub(super) fn contention(&self) -> Option<&Contention> {
        match self {
            AttemptFailure::Contended(contention) => Some(contention),
            _ => None,
        }
    }

    /// Returns whether the nodes that deny access leave no quorum.
    pub(super) fn is_denied(&self) -> bool {
        matches!(self, AttemptFailure::Unavailable(tally) if tally.is_denied())
    }

    pub(super) fn is_unavailable(&self) -> bool {
        matches!(self, AttemptFailure::Unavailable(_))
    }

    /// Returns the noun phrase of the failure, for the log.
    pub(super) fn name(&self) -> &'static str {
        match self {
            AttemptFailure::Contended(_) => "held by another",
            AttemptFailure::Unavailable(_) => "no quorum",
            AttemptFailure::TooSlow { .. } => "too slow",
        }
    }
}

fn max_hold_left(tally: &Tally) -> Option<Duration> {
    (tally.refused().len() > 0).then(|| tally.max_hold_left().unwrap_or(NEVER_EXPIRES_AFTER))
}

/// The state of the holder, by the replies of the refusing nodes.
#[derive(Clone, Debug)]
pub(crate) struct Contention {
    /// How the lock is held, by most of the nodes that refused.
    pub(crate) held_by: AccessMode,
    /// When a quorum may grant again, if the nodes gave their TTLs.
    pub(crate) free_in: Option<Duration>,
    /// Some nodes granted: other callers asked at the same time, and perhaps none has a quorum.
    pub(crate) split_vote: Option<Split>,
    /// Only the preferred node was asked, and it refused.
    pub(crate) single_node: bool,
    /// The longest remaining TTL that a node gave, if known.
    pub(crate) max_hold_left: Option<Duration>,
    /// The positions of the keys that are held, in a lock of several keys.
    pub(crate) blocking_keys: Vec<usize>,
    /// The owner label that most of the refusing nodes reported, if any.
    pub(crate) owner_label: Option<Box<str>>,
}

impl Contention {
    fn new(round: RoundOutcome, single_node: bool, split_vote: Option<Split>) -> Contention {
        let blocking_keys = round.blocking_keys().to_vec();
        let owner_label = round.owner_label().map(Box::from);
        let tally = round.tally;
        Contention {
            held_by: match tally.held_by_readers() {
                true => AccessMode::Shared,
                false => AccessMode::Exclusive,
            },
            free_in: match single_node {
                true => tally.max_hold_left(),
                false => tally.free_in(),
            },
            split_vote,
            single_node,
            max_hold_left: tally.max_hold_left(),
            blocking_keys,
            owner_label,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::node_failure::NodeFailure;
    use crate::protocol::quorum::{Vote, VoteRule};
    use crate::protocol::reply::{Blocker, Reply};

    const LEFT: Duration = Duration::from_secs(7);

    /// One node votes first, the others do not reply.
    fn vote(verdict: Verdict, wait_end: WaitEnd, single_node: bool) -> VoteOutcome {
        let mut tally = Tally::new(3, VoteRule::Acquire);
        let remaining = Some(LEFT);
        tally.vote(0, Vote::Refused(NodeFailure::Held { remaining }));
        let blocked = [Reply::Held(Blocker::OwnerOfKey(1), None, None)];
        let round = RoundOutcome::with_replies(verdict, tally, wait_end, &blocked);
        VoteOutcome {
            round,
            split: None,
            single_node,
        }
    }

    #[test]
    fn vote_is_classified_by_verdict_wait_end_and_limit() {
        use DeadlineCause::{NodeTimeout, Validity};
        use Verdict::{Granted, Refused, Unavailable};
        use WaitEnd::{Cancelled, Complete, TimedOut};
        let (contended, single, no_quorum) = ("contended", "single node", "unavailable");
        let (late, slow) = ("granted late", "slow");
        for (verdict, wait_end, single_node, limit, expected) in [
            (Granted, Complete, false, NodeTimeout, late),
            (Granted, Complete, false, Validity, late),
            (Granted, Complete, true, Validity, late),
            (Refused, Complete, false, NodeTimeout, contended),
            (Refused, TimedOut, false, Validity, contended),
            (Refused, Complete, true, NodeTimeout, single),
            (Refused, Cancelled, true, NodeTimeout, contended),
            (Unavailable, Complete, true, NodeTimeout, single),
            (Unavailable, TimedOut, true, Validity, single),
            (Unavailable, Cancelled, true, Validity, no_quorum),
            (Unavailable, TimedOut, false, Validity, slow),
            (Unavailable, TimedOut, false, NodeTimeout, no_quorum),
            (Unavailable, Complete, false, Validity, no_quorum),
            (Unavailable, Cancelled, false, Validity, no_quorum),
        ] {
            let failure = AttemptFailure::classify(vote(verdict, wait_end, single_node), limit);
            let name = match &failure {
                AttemptFailure::Contended(contention) if contention.single_node => single,
                AttemptFailure::Contended(_) => contended,
                AttemptFailure::Unavailable(_) => no_quorum,
                AttemptFailure::TooSlow { won: true, .. } => late,
                AttemptFailure::TooSlow { won: false, .. } => slow,
            };
            assert_eq!(
                name, expected,
                "{verdict:?} {wait_end:?} {single_node} {limit:?}"
            );
            assert_eq!(failure.max_hold_left(), Some(LEFT));
            let blocking = failure.contention().map(|met| met.blocking_keys.clone());
            assert!(blocking.is_none_or(|keys| keys == [1]));
        }
    }
}
