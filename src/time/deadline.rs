//! Deadlines: the earliest of several, and which it was.

use std::time::{Duration, Instant};

use crate::time::clock;

/// The moment `after` from `start`; `None`, which means no deadline, where that is beyond the clock's range.
pub(crate) fn deadline(start: Instant, after: Duration) -> Option<Instant> {
    start.checked_add(after)
}

/// The earlier of two deadlines, where `None` is never.
pub(crate) fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// The limits that can end a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeadlineCause {
    /// A node had its `node_timeout` to answer.
    NodeTimeout,
    /// The lease that is asked for could not be valid long enough any more.
    Validity,
    /// The pause between two attempts is over, or the holder's lease may have ended.
    RetryDelay,
    /// The caller does not want to wait any longer.
    CallerWait,
    /// There was no quorum for as long as the policy bears with.
    Outage,
}

/// The end of a wait, and the limit that it comes from: the earliest of all that were put in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Deadline {
    end: Option<Instant>,
    limit: DeadlineCause,
}

impl Deadline {
    pub(crate) fn new(limit: DeadlineCause, end: Option<Instant>) -> Deadline {
        Deadline { end, limit }
    }

    /// Adds a limit; of two that end together the one that was there first is kept.
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

/// A time-out that ends then; never zero, which would be none at all.
pub(crate) fn remaining_timeout(end: Instant) -> Duration {
    let left = end.saturating_duration_since(clock::now());
    left.max(Duration::from_millis(1))
}
