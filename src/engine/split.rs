//! How an attempt settles a split vote (rule L1): callers that ask for a free lock at the same moment are granted it by some nodes
//! each, so that none has a quorum.
//!
//! The lowest node that takes part decides. The caller that has its grant keeps all grants and asks the other nodes again, until
//! they are given back. All other callers give back what they were granted, pause, and ask that node alone: they leave nothing on
//! the nodes that the first caller waits for.

use std::time::{Duration, Instant};

use crate::engine::acquire::Wish;
use crate::engine::attempt::{Attempted, Bid, Miss};
use crate::engine::core::Engine;
use crate::error::{Cause, Error};
use crate::protocol::lease::Claim;
use crate::protocol::quorum::{NodeSet, Split, Tally, Verdict};
use crate::random;
use crate::time::clock;
use crate::time::clock::{Budget, Limit};
use crate::transport::inbox::{Ended, Inbox};
use crate::transport::round::{Outcome, Round};

/// The most rounds that one attempt spends on a split vote.
const MAX_REPEATS: u32 = 8;
/// How often an attempt gives way.
const MAX_GIVEN_WAY: u32 = 1;
/// How often in a row a caller that leads asks again without a new grant: it outlasts all callers that give way.
const MAX_IDLE: u32 = 4;
/// What a caller asks again at the most that cannot be sure to lead: two that lead by different nodes do not wait for each other.
const MAX_DOUBTFUL: usize = 4;

/// What an attempt has spent on a split vote.
#[derive(Debug, Default)]
pub(crate) struct Repeats {
    spent: u32,
    /// When its time is over; from the first split vote on.
    end: Option<Instant>,
    /// The next pause, at first as long as a round took.
    pause: Duration,
    /// The node that is asked alone next.
    alone: Option<usize>,
    /// How often the attempt has given way.
    given_way: u32,
    /// The nodes that refused when they were asked alone, after a pause: their holder does not give way.
    settled: NodeSet,
}

impl Repeats {
    /// The vote was split for the first time, in a round that took so long.
    fn begin(&mut self, took: Duration, max_split: Duration) {
        if self.end.is_none() {
            self.end = clock::deadline(clock::now(), max_split);
            self.pause = took;
        }
    }

    fn is_over(&self) -> bool {
        self.spent >= MAX_REPEATS || self.end.is_some_and(|end| end <= clock::now())
    }

    /// Counts a round trip, if there is one left.
    fn spend(&mut self) -> bool {
        let may = !self.is_over();
        self.spent += u32::from(may);
        may
    }

    /// Whether the attempt is repeated after it gave way, and which node is asked alone then.
    pub(crate) fn next_after(
        &mut self,
        (vote, elsewhere): &(Attempted, Vec<u16>),
    ) -> Option<Option<usize>> {
        let Err(Miss::Contended(met)) = vote else {
            return None;
        };
        if !elsewhere.is_empty() || self.end.is_none() {
            return None;
        }
        self.alone = match (met.split, met.by_one) {
            (Some(split), _) if self.given_way < MAX_GIVEN_WAY => {
                self.given_way += 1;
                Some(split.first)
            }
            (None, true) => {
                let node = self.alone.map(NodeSet::of).unwrap_or_default();
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
    pub(crate) fn end(&self, mut vote: (Attempted, Vec<u16>)) -> (Attempted, Vec<u16>) {
        if let (Err(Miss::Contended(met)), Some(_)) = (&mut vote.0, self.end) {
            met.by_one = false;
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
        clock::earlier(self.end, clock::deadline(now, pause))
    }
}

/// Whether a refusal may be of a caller that asked at the same moment for `ttl`: then the other's lease has as much left. A lease
/// that began before may have less. One for a longer time looks young; that costs time and is no error.
fn is_recent(cause: &Cause, claim: Claim, ttl: Duration, max_split: Duration) -> bool {
    // A grant is as old as a round and the repeats after it.
    let is_young = |left: Duration| left.is_zero() || left.saturating_add(2 * max_split) >= ttl;
    match (cause, claim) {
        // What is told is the end of another permit than the one that was asked for.
        (Cause::Held { .. }, Claim::Permit { .. }) => true,
        (Cause::Held { remaining }, _) => remaining.is_none_or(is_young),
        // Those without an end have their turn.
        (Cause::Readers { remaining }, _) => remaining.is_some_and(is_young),
        _ => false,
    }
}

impl Engine {
    /// Waits for the nodes' verdict on a token. In a split vote that we lead, asks the contested nodes again. Returns how the
    /// round ended, and if that is a split vote which one.
    pub(crate) fn settle_split(
        &self,
        mut round: Round<'_>,
        bid: &Bid,
        wish: &Wish,
        inbox: &Inbox,
        repeats: &mut Repeats,
    ) -> (Outcome, Option<Split>) {
        let claim = bid.lease.claim();
        let (ttl, max_split) = (wish.ttl.duration(), self.settings.max_split);
        let is_recent = |cause: &Cause| is_recent(cause, claim, ttl, max_split);
        let mut ended = round.decide(bid.budget.and(Limit::Node, repeats.end));
        if ended == Ended::TimedOut {
            round.close();
        }
        let took = clock::now().saturating_duration_since(bid.start);
        let took = took.max(self.nodes.usual_round()).min(max_split);
        let is_refused = |round: &Round<'_>| round.tally().verdict() == Some(Verdict::Refused);
        if is_refused(&round) && ended == Ended::Answered {
            let lacks = |tally: &Tally| tally.lacks_first(is_recent);
            round.collect_while(lacks, clock::now() + took);
        }
        let mut pause = Duration::ZERO;
        let (mut asked, mut idle, mut granted) = (0, 0, 0);
        loop {
            let split = match is_refused(&round) {
                true => round.tally().split(is_recent, repeats.settled),
                false => None,
            };
            let Some(split) = split else {
                return (round.end(ended), None);
            };
            repeats.begin(took, max_split);
            let is_given_up = split.is_doubtful && asked > random::below(MAX_DOUBTFUL);
            if !split.leads || is_given_up || ended == Ended::Cancelled || !repeats.spend() {
                return (round.end(ended), Some(split));
            }
            idle = match round.tally().granted().len() > granted {
                true => 0,
                false => idle + 1,
            };
            if idle > MAX_IDLE {
                return (round.end(ended), None);
            }
            granted = round.tally().granted().len();
            asked += 1;
            let end = clock::earlier(repeats.end, clock::deadline(clock::now(), pause));
            if self.pause_until(end, inbox).is_err() {
                return (round.end(Ended::Cancelled), Some(split));
            }
            pause = (2 * pause).max(took / 2);
            round.ask_again(split.contested);
            let budget = Budget::new(Limit::Node, repeats.end);
            ended = round.decide(budget.and(Limit::Validity, bid.useful_until));
        }
    }

    /// Pauses within an attempt.
    pub(crate) fn pause_until(&self, end: Option<Instant>, inbox: &Inbox) -> Result<(), Error> {
        while inbox.sleep(end) && self.go_on(inbox).is_ok() {}
        self.go_on(inbox)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_is_recent_unless_its_holder_has_had_the_lock_for_longer() {
        let (ttl, max_split) = (Duration::from_secs(30), Duration::from_millis(50));
        let left = |millis| Some(Duration::from_millis(millis));
        let held = |remaining| Cause::Held { remaining };
        let readers = |remaining| Cause::Readers { remaining };
        let permit = Claim::Permit { slot: 0, of: 1 };
        for (cause, claim, expected) in [
            (held(left(30_000)), Claim::Exclusive, true),
            (held(left(29_900)), Claim::Exclusive, true),
            (held(left(29_899)), Claim::Exclusive, false),
            (held(left(60_000)), Claim::Exclusive, true),
            (held(left(0)), Claim::Exclusive, true),
            (held(None), Claim::Exclusive, true),
            (held(left(1)), permit, true),
            (readers(left(29_990)), Claim::Write, true),
            (readers(left(1)), Claim::Write, false),
            (readers(None), Claim::Write, false),
            (Cause::WriterWaiting { remaining: None }, Claim::Read, false),
            (Cause::WrongType, Claim::Exclusive, false),
            (
                Cause::Quarantined { remaining: ttl },
                Claim::Exclusive,
                false,
            ),
        ] {
            let recent = is_recent(&cause, claim, ttl, max_split);
            assert_eq!(recent, expected, "{cause:?} {claim:?}");
        }
    }
}
