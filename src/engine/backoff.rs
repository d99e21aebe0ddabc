//! The delays between the attempts of one acquire.
//!
//! Tests: beside `protocol/retry.rs`; `src/tests/engine/cancel.rs` (limits).

use std::time::Duration;

use crate::engine::core::Engine;
use crate::protocol::kind::LeaseKind;
use crate::random;

/// The state of one acquire's retry delays.
///
/// A published release does not restart the delays. It causes one attempt at once, and a caller
/// that loses it waits for the next release: the attempts of all waiters settle which of them wins
/// (L1).
#[derive(Default)]
pub(super) struct Backoff {
    retries: u32,
}

impl Backoff {
    /// Returns the delay before the next attempt, with jitter, by the policy for this kind.
    pub(super) fn next_delay(&mut self, engine: &Engine, kind: LeaseKind) -> Duration {
        self.retries = self.retries.saturating_add(1);
        engine
            .retry_policy(kind)
            .delay(self.retries, random::unit())
    }
}
