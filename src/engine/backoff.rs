//! The delays between the attempts of one acquire.

use std::time::Duration;

use crate::engine::core::Engine;
use crate::protocol::kind::LeaseKind;
use crate::random;

/// The state of one acquire's retry delays.
#[derive(Default)]
pub(super) struct Backoff {
    retries: u32,
    /// A release was published, so the delays start from one round trip.
    fast: bool,
}

impl Backoff {
    /// Restarts the delays from one round trip, because the waiters now compete for a free lock.
    pub(super) fn reset_after_release(&mut self) {
        *self = Backoff {
            fast: true,
            ..Backoff::default()
        };
    }

    /// Returns the delay before the next attempt, with jitter, by the policy for this kind.
    pub(super) fn next_delay(&mut self, engine: &Engine, kind: LeaseKind) -> Duration {
        let mut policy = engine.retry_policy(kind).clone();
        self.retries = self.retries.saturating_add(1);
        if self.fast {
            let round_trip = engine.nodes.rtt_estimate();
            policy.initial_delay = policy.initial_delay.min(round_trip);
        }
        policy.delay(self.retries, random::unit())
    }
}
