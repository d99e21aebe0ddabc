//! Redlock's validity arithmetic (S2).

use std::time::{Duration, Instant};

use crate::time::deadline::deadline;

/// Clock drift that is granted to every node, besides a hundredth of the TTL.
const DRIFT_FLOOR: Duration = Duration::from_millis(2);

/// What the clocks of two machines may disagree by while a lease of `ttl` runs: `ttl / 100 + 2 ms`.
///
/// The same allowance as in the Redlock text (*Distributed Locks with Redis*, section "The Redlock
/// algorithm": validity = TTL − elapsed − drift).
pub(crate) fn drift(ttl: Duration) -> Duration {
    ttl / 100 + DRIFT_FLOOR
}

/// How long a lease of `ttl` is good for, counted from just before its first request was sent.
pub(crate) fn validity(ttl: Duration) -> Duration {
    ttl.saturating_sub(drift(ttl))
}

/// Until when a lease of `ttl` is good that was asked for at `start`, if some of that is left at `now`, and `least` at least: the
/// last step before a guard is handed out (rule S2).
pub(crate) fn valid_until(
    start: Instant,
    ttl: Duration,
    least: Duration,
    now: Instant,
) -> Option<Instant> {
    let end = deadline(start, validity(ttl))?;
    let left = end.saturating_duration_since(now);
    (!left.is_zero() && left >= least).then_some(end)
}

/// So many milliseconds that a node whose clock is as fast as is allowed keeps it for as long as we think it held.
pub(crate) fn ttl_to_outlast(expiry: Instant, now: Instant) -> u64 {
    let left = expiry.saturating_duration_since(now);
    let millis = (left + 2 * drift(left)).as_millis();
    u64::try_from(millis).unwrap_or(u64::MAX).saturating_add(1)
}
