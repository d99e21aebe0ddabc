//! How long an acquire pauses between two attempts.

use std::time::Duration;

use crate::engine::Engine;
use crate::engine::attempt::Contention;
use crate::lease::Claim;

/// Two writers that split the nodes have undone it after so many usual rounds.
const ROUNDS_OF_A_SPLIT: u32 = 4;

/// The pauses between the attempts of one acquire.
#[derive(Default)]
pub(super) struct Pauses {
    retries: u32,
    /// How many attempts in a row have split the nodes.
    splits: u32,
    /// A release was heard of, or others wanted the lock at the same time and may all have lost: from then on delays grow
    /// from one round trip.
    woken: bool,
}

impl Pauses {
    /// A release was heard of: from one round trip on again.
    pub(super) fn wake(&mut self) {
        *self = Pauses {
            woken: true,
            ..Pauses::default()
        };
    }

    /// As the policy says. Only a writer that has split the nodes with another waits for some round trips, which the
    /// other's undo takes, and with jitter, so that one of them is first; longer each time, up to the policy's longest
    /// delay.
    pub(super) fn next(
        &mut self,
        engine: &Engine,
        claim: Claim,
        met: Option<&Contention>,
    ) -> Duration {
        let mut policy = engine.retry(claim).clone();
        let split = met.is_some_and(|met| met.split);
        if split && !self.woken {
            self.wake(); // the undo of an attempt is not published
        }
        self.retries = self.retries.saturating_add(1);
        if self.woken {
            let round = engine.nodes.usual_round();
            policy.initial_delay = policy.initial_delay.min(round);
        }
        if claim != Claim::Write || !split {
            self.splits = 0;
            return policy.delay(self.retries, rand::random());
        }
        self.splits = self.splits.saturating_add(1);
        let rounds = ROUNDS_OF_A_SPLIT << self.splits.min(8);
        let most = engine.nodes.usual_round().saturating_mul(rounds);
        most.min(policy.max_delay).mul_f64(rand::random())
    }
}
