//! The one place that reads the clock, and the arithmetic of validity.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Two clocks were read at the same time if no more than this lies between, in µs; else they are read again, so often.
const CLOCK_READ_TOLERANCE_US: u64 = 1_000;
const MAX_CLOCK_READS: u32 = 20;

/// The current time, on a clock that never goes back.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the one reader of the clock"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// The wall clock's time since 1970.
pub(crate) fn unix_time() -> Duration {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default()
}

/// By how much the wall clock leads the clock of [`now`], in µs. It grows by as much as the system was suspended, when that
/// clock stands still, and by what somebody set the wall clock forward.
#[expect(
    clippy::cast_possible_truncation,
    reason = "centuries in microseconds fit"
)]
pub(crate) fn wall_offset() -> i64 {
    let mut tries = 0;
    loop {
        let before = to_micros(now());
        let wall = unix_time();
        let after = to_micros(now());
        tries += 1;
        // Whoever was held up between the two clocks would take that for a suspend.
        if after - before < CLOCK_READ_TOLERANCE_US || tries == MAX_CLOCK_READS {
            return wall.as_micros() as i64 - after as i64 + suspended();
        }
    }
}

/// How long tests of this thread have the system suspended, in µs.
#[cfg(test)]
fn suspended() -> i64 {
    SUSPENDED.get()
}

#[cfg(not(test))]
fn suspended() -> i64 {
    0
}

#[cfg(test)]
thread_local! {
    static SUSPENDED: std::cell::Cell<i64> = const { std::cell::Cell::new(0) };
}

/// As if the system had been suspended for so long, for all that this thread sees.
#[cfg(all(test, not(loom)))]
pub(crate) fn suspend(time: Duration) {
    SUSPENDED.set(SUSPENDED.get() + time.as_micros() as i64);
}

/// An instant as microseconds, so that it fits an atomic. Instants before the first call count as 0.
pub(crate) fn to_micros(at: Instant) -> u64 {
    let since = at.saturating_duration_since(epoch()).as_micros();
    u64::try_from(since).unwrap_or(u64::MAX)
}

/// The reverse of [`micros`]; `None` beyond the clock's range.
pub(crate) fn from_micros(micros: u64) -> Option<Instant> {
    epoch().checked_add(Duration::from_micros(micros))
}

/// An hour before the first look at the clock, so that instants which a caller took earlier still have a number.
fn epoch() -> Instant {
    static BASE: OnceLock<Instant> = OnceLock::new();
    *BASE.get_or_init(|| {
        let now = now();
        now.checked_sub(Duration::from_secs(3600)).unwrap_or(now)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::validity::{valid_until, validity};
    use crate::time::deadline::{Deadline, DeadlineCause, deadline, earlier};

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn validity_is_ttl_less_drift_and_never_negative() {
        let table = [
            (ms(10_000), ms(9_898)),
            (ms(1_000), ms(988)),
            (ms(100), ms(97)),
            (ms(2), Duration::ZERO),
            (Duration::ZERO, Duration::ZERO),
        ];
        for (ttl, expected) in table {
            assert_eq!(validity(ttl), expected, "TTL {ttl:?}");
        }
        assert!(validity(Duration::MAX) < Duration::MAX);
    }

    #[test]
    fn a_lease_is_good_while_enough_of_it_is_left() {
        let start = now();
        let end = start + ms(988);
        for (elapsed, least, expected) in [
            (0, 500, Some(end)),
            (488, 500, Some(end)),
            (489, 500, None),
            (987, 0, Some(end)),
            (988, 0, None),
            (989, 0, None),
            (2_000, 500, None),
        ] {
            let until = valid_until(start, ms(1_000), ms(least), start + ms(elapsed));
            assert_eq!(until, expected, "{least} of it after {elapsed} ms");
        }
        assert_eq!(valid_until(start, Duration::MAX, ms(1), start), None);
    }

    #[test]
    fn micros_and_back() {
        let at = now();
        let back = from_micros(to_micros(at)).unwrap();
        assert!(at.saturating_duration_since(back) < Duration::from_micros(1));
        assert!(to_micros(at + ms(5)) - to_micros(at) >= 4_999);
        assert_eq!(to_micros(epoch()), 0);
    }

    #[test]
    fn a_budget_knows_which_limit_is_first() {
        let start = now();
        let budget = Deadline::new(DeadlineCause::NodeTimeout, Some(start + ms(200)))
            .min_with(DeadlineCause::Validity, Some(start + ms(50)))
            .min_with(DeadlineCause::CallerWait, None)
            .min_with(DeadlineCause::Outage, Some(start + ms(50)));
        assert_eq!(budget.end(), Some(start + ms(50)));
        assert_eq!(budget.limit(), DeadlineCause::Validity);
        let forever = Deadline::new(DeadlineCause::CallerWait, None);
        assert_eq!(forever.end(), None);
        let bounded = forever.min_with(DeadlineCause::RetryDelay, Some(start));
        assert_eq!(bounded.limit(), DeadlineCause::RetryDelay);
    }

    #[test]
    fn a_deadline_beyond_the_clock_is_none() {
        assert_eq!(deadline(now(), Duration::MAX), None);
        assert_eq!(earlier(None, None), None);
    }
}
