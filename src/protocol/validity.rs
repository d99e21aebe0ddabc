//! Redlock's validity arithmetic (S2).

use std::time::{Duration, Instant};

use crate::time::deadline::deadline;

/// The allowance for clock drift beside 1 % of the TTL.
const DRIFT_FLOOR: Duration = Duration::from_millis(2);

/// Returns the allowed drift between two clocks during `ttl`: `ttl / 100 + 2 ms`.
///
/// Source: *Distributed Locks with Redis*, "The Redlock algorithm": validity = TTL − elapsed −
/// drift.
pub(crate) fn drift(ttl: Duration) -> Duration {
    ttl / 100 + DRIFT_FLOOR
}

/// Returns the TTL and the [`drift`] during it, in µs, rounded up.
pub(crate) fn lifetime_us(ttl_us: u64) -> u64 {
    const FLOOR_US: u64 = DRIFT_FLOOR.as_micros() as u64;
    ttl_us.saturating_add(ttl_us.div_ceil(100) + FLOOR_US)
}

/// Returns the validity of a lease of `ttl`, counted from just before its first request was sent.
pub(crate) fn validity(ttl: Duration) -> Duration {
    ttl.saturating_sub(drift(ttl))
}

/// Returns the end of validity of a lease of `ttl` whose attempt began at `start`; `None` if less
/// than `min_validity`, or nothing, is left at `now`. This is the last step before a guard is
/// returned.
pub(crate) fn valid_until(
    start: Instant,
    ttl: Duration,
    min_validity: Duration,
    now: Instant,
) -> Option<Instant> {
    let end = deadline(start, validity(ttl))?;
    let left = end.saturating_duration_since(now);
    (!left.is_zero() && left >= min_validity).then_some(end)
}

/// Returns a TTL in ms that lasts until `expiry` even on a node whose clock is as fast as the drift
/// allows.
pub(crate) fn ttl_to_outlast(expiry: Instant, now: Instant) -> u64 {
    let left = expiry.saturating_duration_since(now);
    let millis = (left + 2 * drift(left)).as_millis();
    u64::try_from(millis).unwrap_or(u64::MAX).saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetime_is_the_ttl_and_the_drift_rounded_up() {
        for ttl_us in [0, 1, 99, 100, 1_001, 30_000_000, 86_400_000_000] {
            let ttl = Duration::from_micros(ttl_us);
            let (exact, lifetime) = (ttl + drift(ttl), Duration::from_micros(lifetime_us(ttl_us)));
            assert!(lifetime >= exact, "{ttl:?}");
            assert!(lifetime - exact <= Duration::from_micros(1), "{ttl:?}");
        }
        assert_eq!(lifetime_us(u64::MAX), u64::MAX);
    }
}
