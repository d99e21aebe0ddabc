//! Decides whether, when and on which nodes a split vote is repeated. Never exceeds `MAX_REPEATS`
//! rounds or `max_split`.
//!
//! [`split`](super::split) describes the algorithm.
//!
//! Tests: below; `src/tests/engine/split.rs`.

use std::time::{Duration, Instant};

use crate::engine::attempt_result::{AttemptFailure, Attempted};
use crate::error::node_failure::NodeFailure;
use crate::protocol::kind::LeaseKind;
use crate::protocol::node_set::NodeSet;
use crate::random;
use crate::time::{clock, deadline};

/// The largest number of further rounds that one attempt spends on split votes (L1).
const MAX_REPEATS: u32 = 8;

/// How often one attempt gives way before it ends as contended. Once is not enough: while the
/// lowest node is silent, no leader is certain, and all callers may give way at the same moment.
const MAX_GIVEN_WAY: u32 = 3;

/// The rounds and the time that an attempt has spent on split votes.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    /// The further rounds.
    spent: u32,
    /// When the time for split votes ends; set by the first split vote.
    end: Option<Instant>,
    /// The mean of the next random pause.
    pause: Duration,
    /// The node that the next round asks alone.
    first_node: Option<usize>,
    /// How often the attempt has given way.
    given_way: u32,
    /// The nodes that refused when asked alone after a pause: their holder does not give way.
    settled: NodeSet,
    /// The nodes that had not voted when the latest split vote was found.
    silent: NodeSet,
}

impl Repeats {
    /// Starts the time for split votes, with `round_trip` as the mean of the first pause.
    ///
    /// Without effect after the first split vote.
    pub(super) fn begin(&mut self, round_trip: Duration, max_split: Duration) {
        if self.end.is_none() {
            self.end = deadline::deadline(clock::now(), max_split);
            self.pause = round_trip;
        }
    }

    /// Returns when the time for split votes ends; `None` before the first split vote.
    pub(super) fn end(&self) -> Option<Instant> {
        self.end
    }

    /// Returns the nodes whose refusal is final.
    pub(super) fn settled(&self) -> NodeSet {
        self.settled
    }

    /// Records the nodes that have not voted when a split vote is found.
    pub(super) fn record_silent(&mut self, nodes: NodeSet) {
        self.silent = nodes;
    }

    /// Returns the nodes that had not voted when the latest split vote was found; none before the
    /// first one.
    pub(super) fn silent(&self) -> NodeSet {
        self.silent
    }

    /// Returns whether a vote of this attempt was split.
    pub(super) fn was_split(&self) -> bool {
        self.end.is_some()
    }

    /// Counts a further round. Returns `false` if none is left.
    pub(super) fn spend(&mut self) -> bool {
        let is_over = self.spent >= MAX_REPEATS || self.end.is_some_and(|end| end <= clock::now());
        self.spent += u32::from(!is_over);
        !is_over
    }

    /// Returns the preferred node of the next round, or `None` if the attempt ends with this one.
    ///
    /// `Some(None)` stands for a round that asks all nodes at once.
    pub(super) fn next_after(&mut self, attempted: &Attempted<'_>) -> Option<Option<usize>> {
        let Err(AttemptFailure::Contended(contention)) = &attempted.result else {
            return None;
        };
        // A semaphore tries another permit instead.
        if !attempted.free_permits.is_empty() || !self.was_split() {
            return None;
        }
        self.first_node = match (contention.split_vote, contention.single_node) {
            (Some(split), _) if self.given_way < MAX_GIVEN_WAY => {
                self.given_way += 1;
                Some(split.first)
            }
            (None, true) => {
                let node = self.first_node.map(NodeSet::single).unwrap_or_default();
                self.settled = self.settled.union(node);
                None
            }
            _ => return None,
        };
        self.spend().then_some(self.first_node)
    }

    /// Returns when the pause before the next round ends.
    ///
    /// A caller that gave way pauses for half to one and a half round trips, because the leader
    /// needs about one. Each further pause has twice the mean.
    pub(super) fn pause_end(&mut self) -> Option<Instant> {
        let now = clock::now();
        if self.first_node.is_none() {
            return Some(now);
        }
        let pause = self.pause.mul_f64(0.5 + random::unit());
        self.pause *= 2;
        deadline::earlier(self.end, deadline::deadline(now, pause))
    }

    /// Turns the last round into the result of the whole attempt, which has asked all nodes.
    pub(super) fn conclude<'a>(&self, mut attempted: Attempted<'a>) -> Attempted<'a> {
        if let (Err(AttemptFailure::Contended(contention)), true) =
            (&mut attempted.result, self.was_split())
        {
            contention.single_node = false;
        }
        attempted
    }
}

/// Returns whether a refusal may come from a caller that asked for `ttl` at the same moment.
///
/// The lease of such a caller has nearly all of its TTL left. A holder with a longer TTL looks like
/// one, too; that costs up to `MAX_REPEATS` rounds and `max_split`, and nothing else.
pub(super) fn is_recent(
    cause: &NodeFailure,
    kind: LeaseKind,
    ttl: Duration,
    max_split: Duration,
) -> bool {
    // A grant is as old as its first round, mostly shorter than `max_split`, and its repeats, at
    // most `max_split`. Nothing is left of a lease that was released after the refusal, as by a
    // caller that gives way: the node may then grant a repeat.
    let is_young = |left: Duration| left.is_zero() || left.saturating_add(2 * max_split) >= ttl;
    match (cause, kind) {
        // The remaining time belongs to another permit.
        (NodeFailure::Held { .. }, LeaseKind::Permit { .. }) => true,
        (NodeFailure::Held { remaining }, _) => remaining.is_none_or(is_young),
        // A reader turn gives no remaining time.
        (NodeFailure::HeldByReaders { remaining }, _) => remaining.is_some_and(is_young),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::attempt_result::Contention;
    use crate::local::request::AccessMode;
    use crate::protocol::quorum::Split;

    #[test]
    fn refusal_is_recent_unless_its_lease_is_older_than_a_split_vote() {
        let (ttl, max_split) = (Duration::from_secs(30), Duration::from_millis(50));
        let left = |millis| Some(Duration::from_millis(millis));
        let held = |remaining| NodeFailure::Held { remaining };
        let readers = |remaining| NodeFailure::HeldByReaders { remaining };
        let permit = LeaseKind::Permit { index: 0, total: 1 };
        for (cause, kind, expected) in [
            (held(left(30_000)), LeaseKind::Exclusive, true),
            (held(left(29_900)), LeaseKind::Exclusive, true),
            (held(left(29_899)), LeaseKind::Exclusive, false),
            (held(left(60_000)), LeaseKind::Exclusive, true),
            (held(left(0)), LeaseKind::Exclusive, true),
            (held(None), LeaseKind::Exclusive, true),
            (held(left(1)), permit, true),
            (readers(left(29_990)), LeaseKind::Write, true),
            (readers(left(1)), LeaseKind::Write, false),
            (readers(None), LeaseKind::Write, false),
            (
                NodeFailure::WriterWaiting { remaining: None },
                LeaseKind::Read,
                false,
            ),
            (NodeFailure::WrongType, LeaseKind::Exclusive, false),
            (
                NodeFailure::Quarantined { remaining: ttl },
                LeaseKind::Exclusive,
                false,
            ),
        ] {
            let recent = is_recent(&cause, kind, ttl, max_split);
            assert_eq!(recent, expected, "{cause:?} {kind:?}");
        }
    }

    fn contended(split_vote: Option<Split>, single_node: bool) -> Attempted<'static> {
        Attempted {
            result: Err(AttemptFailure::Contended(Contention {
                held_by: AccessMode::Exclusive,
                free_in: None,
                split_vote,
                single_node,
                max_hold_left: None,
                blocking_keys: Vec::new(),
                owner_label: None,
            })),
            free_permits: Vec::new(),
            undo: None,
        }
    }

    #[test]
    fn attempt_gives_way_at_most_max_given_way_times_and_settles_the_first_node() {
        let split = Split {
            contested: NodeSet::single(0),
            first: 1,
            leads: false,
            is_doubtful: false,
        };
        let mut repeats = Repeats::default();
        let vote = contended(Some(split), false);
        assert_eq!(repeats.next_after(&vote), None, "no vote was split yet");
        repeats.begin(Duration::from_millis(1), Duration::from_secs(60));
        assert_eq!(repeats.next_after(&vote), Some(Some(1)));
        let refused_alone = contended(None, true);
        assert_eq!(repeats.next_after(&refused_alone), Some(None));
        assert_eq!(repeats.settled(), NodeSet::single(1));
        for _ in 1..MAX_GIVEN_WAY {
            assert_eq!(repeats.next_after(&vote), Some(Some(1)));
        }
        assert_eq!(repeats.next_after(&vote), None, "gave way too often");
    }

    #[test]
    fn attempt_spends_at_most_max_repeats() {
        let mut repeats = Repeats::default();
        repeats.begin(Duration::from_millis(1), Duration::from_secs(60));
        let spent = (0..2 * MAX_REPEATS).filter(|_| repeats.spend()).count();
        assert_eq!(spent, MAX_REPEATS as usize);
        let mut repeats = Repeats::default();
        repeats.begin(Duration::from_millis(1), Duration::ZERO);
        assert!(!repeats.spend(), "the time is over");
    }
}
