//! Settles split votes within an attempt (L1).
//!
//! If several callers ask for a free lock at the same moment, each may be granted it by some nodes
//! and none by a quorum. The *first* node then decides. It is the node with the lowest index that
//! granted or may still grant:
//!
//! 1. The caller with the first node's grant *leads*. It keeps its grants and asks the contested
//!    nodes again, until the other callers have released them there.
//! 2. Every other caller *gives way*: it undoes its token, pauses for about a round trip, and
//!    asks the first node alone with a fresh token. It asks the others only if that node grants,
//!    so it leaves nothing on the nodes that the leader waits for.
//! 3. If the first node refuses again, its holder does not give way. The caller then asks all nodes
//!    once, and counts that refusal as final.
//!
//! A node that was silent in one round is not waited for in the next, if the votes of the others
//! are split: two callers may have half of these each, and both would wait for it.
//!
//! Bound: an attempt spends at most `MAX_REPEATS` (8) further rounds and `max_split` (50 ms) on its
//! split votes. `repeats.rs` counts both.

use std::time::{Duration, Instant};

use crate::engine::attempt::{Attempt, AttemptContext};
use crate::engine::core::Engine;
use crate::engine::repeats::{Repeats, is_recent};
use crate::error::error::Error;
use crate::error::node_failure::NodeFailure;
use crate::protocol::node_set::NodeSet;
use crate::protocol::quorum::{Split, Tally, Verdict};
use crate::random;
use crate::time::deadline::{Deadline, DeadlineCause};
use crate::time::{clock, deadline};
use crate::transport::inbox::{Inbox, WaitEnd};
use crate::transport::round::{Round, RoundOutcome};

/// Rounds in a row without a new grant after which a leader stops. In that many rounds, every
/// caller that gives way has released its grants, also on a busy machine.
const MAX_IDLE_ROUNDS: u32 = 6;

/// Rounds in a row without a new grant for which a doubtful leader goes on at least.
///
/// A leader is doubtful if a lower node may have granted to another leader. Mostly there is none:
/// the lower node is silent for everyone, and then this leader alone can win.
const MIN_DOUBTFUL_ROUNDS: u32 = 3;

/// Further such rounds, drawn at random below this number, after which a doubtful leader gives way.
/// So it gives way before a leader without doubt stops, and two doubtful leaders do not wait for
/// each other.
const MAX_DOUBTFUL_ROUNDS: usize = 3;

/// The progress of a caller that leads a split vote.
#[derive(Default)]
struct LeaderProgress {
    idle_rounds: u32,
    grants: usize,
    /// The pause before the next round. The first round is sent at once.
    pause: Duration,
}

impl LeaderProgress {
    /// Counts a round. Returns whether the leader goes on.
    fn record_round(&mut self, grants: usize) -> bool {
        self.idle_rounds = match grants > self.grants {
            true => 0,
            false => self.idle_rounds + 1,
        };
        self.grants = grants;
        self.idle_rounds <= MAX_IDLE_ROUNDS
    }

    /// Returns whether a doubtful leader gives way.
    fn gives_way(&self, split: &Split) -> bool {
        let drawn = u32::try_from(random::below(MAX_DOUBTFUL_ROUNDS)).unwrap_or_default();
        split.is_doubtful && self.idle_rounds >= MIN_DOUBTFUL_ROUNDS + drawn
    }

    /// Returns the pause before the next round, and lengthens the one after it.
    fn next_pause(&mut self, round_trip: Duration) -> Duration {
        let pause = self.pause;
        self.pause = (2 * pause).max(round_trip / 2);
        pause
    }
}

impl Engine {
    /// Waits for the votes on a token and, while this caller leads a split vote, asks the contested
    /// nodes again.
    ///
    /// Returns the votes, and the split vote in which this caller must give way.
    pub(super) fn settle_split(
        &self,
        mut round: Round<'_>,
        context: &AttemptContext<'_>,
        attempt: &Attempt,
        repeats: &mut Repeats,
    ) -> (RoundOutcome, Option<Split>) {
        let (ttl, max_split) = (context.params.ttl.duration(), self.settings.max_split);
        let is_recent = |cause: &NodeFailure| is_recent(cause, context.kind, ttl, max_split);
        // A node that is only slow is worth this wait; a round that repeats counts.
        let patience = max_split / 8;
        let settled = repeats.settled();
        let is_split = |tally: &Tally| tally.split(is_recent, settled).is_some();
        let mut wait_end = decide_first(&mut round, attempt, (repeats, patience), is_split);
        let round_trip = self.round_trip_since(attempt.start);
        if is_refused(&round) && wait_end == WaitEnd::Complete {
            // The vote of a lower node decides which caller leads.
            let lacks_first = |tally: &Tally| tally.lacks_first(is_recent);
            round.collect_while(lacks_first, Some(clock::now() + round_trip));
        }
        let mut progress = LeaderProgress::default();
        loop {
            let may_be_split = is_refused(&round) || is_undecided(&round, wait_end);
            let split = may_be_split.then(|| round.tally().split(is_recent, settled));
            let Some(split) = split.flatten() else {
                return (round.finish(wait_end), None);
            };
            repeats.begin(round_trip, max_split);
            repeats.record_silent(round.tally().open());
            let gives_way = progress.gives_way(&split) || !split.leads;
            if gives_way || wait_end == WaitEnd::Cancelled || !repeats.spend() {
                return (round.finish(wait_end), Some(split));
            }
            if !progress.record_round(round.tally().granted().len()) {
                return (round.finish(wait_end), None);
            }
            let pause_end = deadline::deadline(clock::now(), progress.next_pause(round_trip));
            let pause_end = deadline::earlier(repeats.end(), pause_end);
            if self.pause_until(pause_end, context.inbox).is_err() {
                return (round.finish(WaitEnd::Cancelled), Some(split));
            }
            round.ask_again(split.contested);
            let budget = Deadline::new(DeadlineCause::NodeTimeout, repeats.end());
            let limit = budget.min_with(DeadlineCause::Validity, attempt.useful_until);
            wait_end = decide_or_split(&mut round, limit, (repeats.silent(), patience), is_split);
        }
    }

    /// Returns the duration of a round, measured on the round that began at `start`.
    ///
    /// At most an eighth of `max_split`, so that the pauses of several rounds fit into that time. A
    /// round that waited for a silent node takes much longer, and says nothing about the others.
    fn round_trip_since(&self, start: Instant) -> Duration {
        let elapsed = clock::now().saturating_duration_since(start);
        let round_trip = elapsed.max(self.nodes.rtt_estimate());
        round_trip.min(self.settings.max_split / 8)
    }

    /// Blocks until `end`.
    ///
    /// # Errors
    /// - `Cancelled`, `Closed`: the caller was cancelled, or the `Nodes` shut down.
    pub(super) fn pause_until(&self, end: Option<Instant>, inbox: &Inbox) -> Result<(), Error> {
        while inbox.sleep(end) && self.check_cancelled(inbox).is_ok() {}
        self.check_cancelled(inbox)
    }
}

/// Waits for the verdict of the first votes on a token.
fn decide_first(
    round: &mut Round<'_>,
    attempt: &Attempt,
    (repeats, patience): (&Repeats, Duration),
    is_split: impl Fn(&Tally) -> bool,
) -> WaitEnd {
    let cause = DeadlineCause::NodeTimeout;
    let limit = attempt.budget.min_with(cause, repeats.end());
    let wait_end = decide_or_split(round, limit, (repeats.silent(), patience), is_split);
    if wait_end == WaitEnd::TimedOut {
        round.close();
    }
    wait_end
}

/// Waits for the verdict of a round. After `patience` only until `silent` nodes alone have not
/// voted and the votes of the others are split.
fn decide_or_split(
    round: &mut Round<'_>,
    limit: Deadline,
    (silent, patience): (NodeSet, Duration),
    is_split: impl Fn(&Tally) -> bool,
) -> WaitEnd {
    if silent.len() == 0 {
        return round.decide(limit);
    }
    let patient_until = deadline::deadline(clock::now(), patience);
    let wait_end = round.decide(limit.min_with(DeadlineCause::NodeTimeout, patient_until));
    if wait_end != WaitEnd::TimedOut {
        return wait_end;
    }
    let lacks_votes = |tally: &Tally| {
        let awaits_others = tally.open().difference(silent).len() > 0;
        tally.verdict().is_none() && (awaits_others || !is_split(tally))
    };
    round.collect_while(lacks_votes, limit.end())
}

/// Returns whether the votes are split without the vote of a silent node.
fn is_undecided(round: &Round<'_>, wait_end: WaitEnd) -> bool {
    wait_end == WaitEnd::Complete && round.tally().verdict().is_none()
}

fn is_refused(round: &Round<'_>) -> bool {
    round.tally().verdict() == Some(Verdict::Refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leader_stops_after_max_idle_rounds_and_a_new_grant_restarts_the_count() {
        let mut progress = LeaderProgress::default();
        for grants in [1, 2] {
            assert!(progress.record_round(grants), "a new grant");
            for _ in 0..MAX_IDLE_ROUNDS {
                assert!(progress.record_round(grants));
            }
        }
        assert!(!progress.record_round(2));
    }

    #[test]
    fn leader_pauses_start_at_zero_and_double_from_half_a_round_trip() {
        let mut progress = LeaderProgress::default();
        let pauses = [(); 4].map(|()| progress.next_pause(Duration::from_millis(10)));
        assert_eq!(pauses.map(|pause| pause.as_millis()), [0, 5, 10, 20]);
    }

    #[test]
    fn leader_without_doubt_never_gives_way() {
        let split = Split {
            contested: Default::default(),
            first: 0,
            leads: true,
            is_doubtful: false,
        };
        let idle = |idle_rounds| LeaderProgress {
            idle_rounds,
            ..LeaderProgress::default()
        };
        assert!(!idle(MAX_IDLE_ROUNDS).gives_way(&split));
        let doubtful = Split {
            is_doubtful: true,
            ..split
        };
        assert!(
            idle(MAX_IDLE_ROUNDS - 1).gives_way(&doubtful),
            "before the other stops"
        );
        assert!(!idle(MIN_DOUBTFUL_ROUNDS - 1).gives_way(&doubtful));
    }
}
