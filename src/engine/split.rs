//! How an attempt settles a split vote (rule L1): callers that ask for a free lock at the same moment are granted it by some nodes
//! each, so that none has a quorum.
//!
//! The lowest node that takes part decides. The caller that has its grant keeps all grants and asks the other nodes again, until
//! they are given back. All other callers give back what they were granted, pause, and ask that node alone: they leave nothing on
//! the nodes that the first caller waits for.

use std::time::{Duration, Instant};

use crate::engine::attempt::Attempt;
use crate::engine::core::Engine;
use crate::engine::params::AcquireParams;
use crate::engine::repeats::{Repeats, is_recent};
use crate::error::{Error, NodeFailure};
use crate::protocol::quorum::{Split, Tally, Verdict};
use crate::random;
use crate::time::deadline::{Deadline, DeadlineCause};
use crate::time::{clock, deadline};
use crate::transport::inbox::{Inbox, WaitEnd};
use crate::transport::round::{Round, RoundOutcome};

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
        bid: &Attempt,
        wish: &AcquireParams,
        inbox: &Inbox,
        repeats: &mut Repeats,
    ) -> (RoundOutcome, Option<Split>) {
        let claim = bid.lease.claim();
        let (ttl, max_split) = (wish.ttl.duration(), self.settings.max_split);
        let is_recent = |cause: &NodeFailure| is_recent(cause, claim, ttl, max_split);
        let mut ended = round.decide(bid.budget.min_with(DeadlineCause::NodeTimeout, repeats.end));
        if ended == WaitEnd::TimedOut {
            round.close();
        }
        let took = clock::now().saturating_duration_since(bid.start);
        let took = took.max(self.nodes.rtt_estimate()).min(max_split);
        let is_refused = |round: &Round<'_>| round.tally().verdict() == Some(Verdict::Refused);
        if is_refused(&round) && ended == WaitEnd::Complete {
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
                return (round.finish(ended), None);
            };
            repeats.begin(took, max_split);
            let is_given_up = split.is_doubtful && asked > random::below(MAX_DOUBTFUL);
            if !split.leads || is_given_up || ended == WaitEnd::Cancelled || !repeats.spend() {
                return (round.finish(ended), Some(split));
            }
            idle = match round.tally().granted().len() > granted {
                true => 0,
                false => idle + 1,
            };
            if idle > MAX_IDLE {
                return (round.finish(ended), None);
            }
            granted = round.tally().granted().len();
            asked += 1;
            let end = deadline::earlier(repeats.end, deadline::deadline(clock::now(), pause));
            if self.pause_until(end, inbox).is_err() {
                return (round.finish(WaitEnd::Cancelled), Some(split));
            }
            pause = (2 * pause).max(took / 2);
            round.ask_again(split.contested);
            let budget = Deadline::new(DeadlineCause::NodeTimeout, repeats.end);
            ended = round.decide(budget.min_with(DeadlineCause::Validity, bid.useful_until));
        }
    }

    /// Pauses within an attempt.
    pub(crate) fn pause_until(&self, end: Option<Instant>, inbox: &Inbox) -> Result<(), Error> {
        while inbox.sleep(end) && self.check_cancelled(inbox).is_ok() {}
        self.check_cancelled(inbox)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::repeats::is_recent;
    use crate::protocol::kind::LeaseKind;

    #[test]
    fn refusal_is_recent_unless_its_holder_has_had_the_lock_for_longer() {
        let (ttl, max_split) = (Duration::from_secs(30), Duration::from_millis(50));
        let left = |millis| Some(Duration::from_millis(millis));
        let held = |remaining| NodeFailure::Held { remaining };
        let readers = |remaining| NodeFailure::HeldByReaders { remaining };
        let permit = LeaseKind::Permit { index: 0, total: 1 };
        for (cause, claim, expected) in [
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
            let recent = is_recent(&cause, claim, ttl, max_split);
            assert_eq!(recent, expected, "{cause:?} {claim:?}");
        }
    }
}
