//! How an attempt settles a split vote (rule L1): callers that ask for a free lock at the same moment are granted it by some nodes
//! each, so that none has a quorum.
//!
//! The lowest node that takes part decides. The caller that has its grant keeps all grants and asks the other nodes again, until
//! they are given back. All other callers give back what they were granted, pause, and ask that node alone: they leave nothing on
//! the nodes that the first caller waits for.

use std::time::{Duration, Instant};

use crate::engine::attempt::Bid;
use crate::engine::core::Engine;
use crate::engine::params::Wish;
use crate::engine::repeats::{Repeats, is_recent};
use crate::error::{Cause, Error};
use crate::protocol::quorum::{Split, Tally, Verdict};
use crate::random;
use crate::time::deadline::{Budget, Limit};
use crate::time::{clock, deadline};
use crate::transport::inbox::{Ended, Inbox};
use crate::transport::round::{Outcome, Round};

/// How often in a row a caller that leads asks again without a new grant: it outlasts all callers that give way.
const MAX_IDLE: u32 = 4;
/// What a caller asks again at the most that cannot be sure to lead: two that lead by different nodes do not wait for each other.
const MAX_DOUBTFUL: usize = 4;

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
            let end = deadline::earlier(repeats.end, deadline::deadline(clock::now(), pause));
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
    use crate::engine::repeats::is_recent;
    use crate::protocol::kind::Claim;

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
