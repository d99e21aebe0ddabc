//! How long an acquire pauses between two attempts.

use std::time::Duration;

use crate::engine::core::Engine;
use crate::protocol::kind::LeaseKind;
use crate::random;

/// The pauses between the attempts of one acquire.
#[derive(Default)]
pub(crate) struct Backoff {
    retries: u32,
    /// A release was heard of: from then on delays grow from one round trip.
    fast: bool,
}

impl Backoff {
    /// A release was heard of: from one round trip on again.
    pub(crate) fn reset_after_release(&mut self) {
        *self = Backoff {
            fast: true,
            ..Backoff::default()
        };
    }

    /// As the policy says.
    pub(crate) fn next_delay(&mut self, engine: &Engine, claim: LeaseKind) -> Duration {
        let mut policy = engine.retry_policy(claim).clone();
        self.retries = self.retries.saturating_add(1);
        if self.fast {
            let round = engine.nodes.rtt_estimate();
            policy.initial_delay = policy.initial_delay.min(round);
        }
        policy.delay(self.retries, random::unit())
    }
}
