//! Deadlines: the earliest of several limits, and which limit that is.
//!
//! Pure but for [`remaining_timeout`], which reads the clock.
//!
//! Tests: beside its users; `src/tests/engine/outage.rs` (which limit ends an acquire).

use std::time::{Duration, Instant};

use crate::time::clock;

/// Returns the instant `after` from `start`. `None` (no deadline) if it exceeds the clock's range.
pub(crate) fn deadline(start: Instant, after: Duration) -> Option<Instant> {
    start.checked_add(after)
}

/// Returns the earlier of two deadlines. `None` means no deadline.
pub(crate) fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// The limits that can end a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeadlineCause {
    /// `node_timeout` has passed since the request was sent.
    NodeTimeout,
    /// A grant would leave less than `min_validity` of the lease.
    Validity,
    /// The delay between two attempts is over, or the holder's lease may have ended.
    RetryDelay,
    /// The wait limit of the caller is reached.
    CallerWait,
    /// No quorum was available for `max_outage`.
    Outage,
}

/// The end of a wait: the earliest of its limits, and the cause of that limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Deadline {
    end: Option<Instant>,
    limit: DeadlineCause,
}

impl Deadline {
    pub(crate) fn new(limit: DeadlineCause, end: Option<Instant>) -> Deadline {
        Deadline { end, limit }
    }

    /// Adds a limit. Of two limits that end at the same instant the first one added stays.
    #[must_use]
    pub(crate) fn min_with(self, limit: DeadlineCause, end: Option<Instant>) -> Deadline {
        match (self.end, end) {
            (Some(old), Some(new)) if new < old => Deadline::new(limit, end),
            (None, Some(_)) => Deadline::new(limit, end),
            _ => self,
        }
    }

    pub(crate) fn end(&self) -> Option<Instant> {
        self.end
    }

    pub(crate) fn limit(&self) -> DeadlineCause {
        self.limit
    }
}

/// Returns the time left until `end`, at least 1 ms, because sockets read zero as no timeout.
pub(crate) fn remaining_timeout(end: Instant) -> Duration {
    let left = end.saturating_duration_since(clock::now());
    left.max(Duration::from_millis(1))
}
