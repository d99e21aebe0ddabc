//! How long an acquire pauses between two attempts.

use std::time::Duration;

use crate::engine::core::Engine;
use crate::protocol::kind::Claim;
use crate::random;

/// The pauses between the attempts of one acquire.
#[derive(Default)]
pub(crate) struct Pauses {
    retries: u32,
    /// A release was heard of: from then on delays grow from one round trip.
    woken: bool,
}

impl Pauses {
    /// A release was heard of: from one round trip on again.
    pub(crate) fn wake(&mut self) {
        *self = Pauses {
            woken: true,
            ..Pauses::default()
        };
    }

    /// As the policy says.
    pub(crate) fn next(&mut self, engine: &Engine, claim: Claim) -> Duration {
        let mut policy = engine.retry(claim).clone();
        self.retries = self.retries.saturating_add(1);
        if self.woken {
            let round = engine.nodes.usual_round();
            policy.initial_delay = policy.initial_delay.min(round);
        }
        policy.delay(self.retries, random::unit())
    }
}
