//! How often a split attempt is repeated.

use std::time::{Duration, Instant};

use crate::engine::attempt_result::{AttemptFailure, AttemptResult};
use crate::error::NodeFailure;
use crate::protocol::kind::LeaseKind;
use crate::protocol::quorum::NodeSet;
use crate::random;
use crate::time::{clock, deadline};

/// The most rounds that one attempt spends on a split vote.
const MAX_REPEATS: u32 = 8;

/// How often an attempt gives way.
const MAX_GIVEN_WAY: u32 = 1;

/// What an attempt has spent on a split vote.
#[derive(Debug, Default)]
pub(crate) struct Repeats {
    spent: u32,
    /// When its time is over; from the first split vote on.
    pub(crate) end: Option<Instant>,
    /// The next pause, at first as long as a round took.
    pause: Duration,
    /// The node that is asked alone next.
    alone: Option<usize>,
    /// How often the attempt has given way.
    given_way: u32,
    /// The nodes that refused when they were asked alone, after a pause: their holder does not give way.
    pub(crate) settled: NodeSet,
}

impl Repeats {
    /// The vote was split for the first time, in a round that took so long.
    pub(crate) fn begin(&mut self, took: Duration, max_split: Duration) {
        if self.end.is_none() {
            self.end = deadline::deadline(clock::now(), max_split);
            self.pause = took;
        }
    }

    fn is_over(&self) -> bool {
        self.spent >= MAX_REPEATS || self.end.is_some_and(|end| end <= clock::now())
    }

    /// Counts a round trip, if there is one left.
    pub(crate) fn spend(&mut self) -> bool {
        let may = !self.is_over();
        self.spent += u32::from(may);
        may
    }

    /// Whether the attempt is repeated after it gave way, and which node is asked alone then.
    pub(crate) fn next_after(
        &mut self,
        (vote, elsewhere): &(AttemptResult, Vec<u16>),
    ) -> Option<Option<usize>> {
        let Err(AttemptFailure::Contended(met)) = vote else {
            return None;
        };
        if !elsewhere.is_empty() || self.end.is_none() {
            return None;
        }
        self.alone = match (met.split_vote, met.single_node) {
            (Some(split), _) if self.given_way < MAX_GIVEN_WAY => {
                self.given_way += 1;
                Some(split.first)
            }
            (None, true) => {
                let node = self.alone.map(NodeSet::single).unwrap_or_default();
                self.settled = self.settled.and(node);
                None
            }
            _ => return None,
        };
        self.spend().then_some(self.alone)
    }

    /// The vote was split, and is won: the nodes that refused are left to be asked once more.
    pub(crate) fn was_split(&self) -> bool {
        self.end.is_some()
    }

    /// The vote as that of the whole attempt: all nodes were asked in it, though one alone at the end.
    pub(crate) fn end(&self, mut vote: (AttemptResult, Vec<u16>)) -> (AttemptResult, Vec<u16>) {
        if let (Err(AttemptFailure::Contended(met)), Some(_)) = (&mut vote.0, self.end) {
            met.single_node = false;
        }
        vote
    }

    /// Until when the caller pauses before it asks a node alone: as long as the others may need for a round, more or less, and
    /// longer each time.
    pub(crate) fn pause(&mut self) -> Option<Instant> {
        let now = clock::now();
        if self.alone.is_none() {
            return Some(now);
        }
        let pause = self.pause.mul_f64(0.5 + random::unit());
        self.pause *= 2;
        deadline::earlier(self.end, deadline::deadline(now, pause))
    }
}

/// Whether a refusal may be of a caller that asked at the same moment for `ttl`: then the other's lease has as much left. A lease
/// that began before may have less. One for a longer time looks young; that costs time and is no error.
pub(crate) fn is_recent(
    cause: &NodeFailure,
    claim: LeaseKind,
    ttl: Duration,
    max_split: Duration,
) -> bool {
    // A grant is as old as a round and the repeats after it.
    let is_young = |left: Duration| left.is_zero() || left.saturating_add(2 * max_split) >= ttl;
    match (cause, claim) {
        // What is told is the end of another permit than the one that was asked for.
        (NodeFailure::Held { .. }, LeaseKind::Permit { .. }) => true,
        (NodeFailure::Held { remaining }, _) => remaining.is_none_or(is_young),
        // Those without an end have their turn.
        (NodeFailure::HeldByReaders { remaining }, _) => remaining.is_some_and(is_young),
        _ => false,
    }
}
