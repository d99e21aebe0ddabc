//! The only reader of the steady clock and of the wall clock.
//!
//! Every decision takes the time as an argument, so that tests and the simulator can choose it.

use std::cell::Cell;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

#[cfg(all(test, not(loom)))]
use crate::tests::simulation::runtime::context;

/// The longest time between two reads of the steady clock around one of the wall clock, in µs.
const CLOCK_READ_TOLERANCE_US: u64 = 1_000;
/// How often [`read_both`] reads both clocks to meet [`CLOCK_READ_TOLERANCE_US`].
const MAX_CLOCK_READS: u32 = 20;

/// An advance of the wall clock over the steady clock by more than this and 1 % of the time counts
/// as a suspend (S11). In µs.
const SUSPEND_THRESHOLD_US: i64 = 100_000;

/// Returns the current time on the steady clock, which never goes back.
pub(crate) fn now() -> Instant {
    #[cfg(all(test, not(loom)))]
    if let Some(now) = context::now() {
        return now;
    }
    system_now()
}

#[expect(
    clippy::disallowed_methods,
    reason = "this is the one reader of the clock"
)]
fn system_now() -> Instant {
    Instant::now()
}

/// Returns the wall clock's time since 1970; zero if the clock is set earlier than that.
pub(crate) fn unix_time() -> Duration {
    #[cfg(all(test, not(loom)))]
    if let Some(now) = context::unix_time() {
        return now;
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default()
}

/// Returns the wall clock's time at the steady time `at`, in ms since 1970, by an offset of
/// [`wall_offset`].
pub(crate) fn unix_millis(at: Instant, wall_offset: i64) -> u64 {
    to_micros(at).saturating_add_signed(wall_offset) / 1_000
}

/// Returns the wall clock's time this long after 1970; `None` beyond its range.
pub(crate) fn system_time(since_1970: Duration) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(since_1970)
}

/// Returns how far the wall clock is ahead of the steady clock, in µs.
///
/// The offset grows by the length of a suspend, during which the steady clock stands still. It also
/// grows when the wall clock is set forward.
pub(crate) fn wall_offset() -> i64 {
    let (_, offset) = read_both();
    offset
}

/// Returns whether the wall clock, which ran ahead of the steady one by `ahead` µs within `elapsed`
/// µs of it, shows a suspend (S11).
pub(crate) fn is_suspend(ahead: i64, elapsed: u64) -> bool {
    #[expect(
        clippy::cast_possible_wrap,
        reason = "a hundredth of any time in µs fits"
    )]
    let drift = (elapsed / 100) as i64;
    ahead > SUSPEND_THRESHOLD_US.saturating_add(drift)
}

/// Returns the current time on the steady clock, and how far the wall clock is ahead of it, in µs.
#[expect(
    clippy::cast_possible_truncation,
    reason = "centuries in microseconds fit"
)]
pub(crate) fn read_both() -> (Instant, i64) {
    let mut reads = 0;
    loop {
        let now = now();
        let (before, wall, after) = (to_micros(now), unix_time(), to_micros(self::now()));
        reads += 1;
        // A thread that is preempted between the two reads would see that time as a suspend.
        if after - before < CLOCK_READ_TOLERANCE_US || reads == MAX_CLOCK_READS {
            return (now, wall.as_micros() as i64 - after as i64 + suspended());
        }
    }
}

/// Returns how long tests of this thread have suspended the system, in µs.
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

/// Simulates a suspend of the system by `time`, as seen by this thread.
#[cfg(all(test, not(loom)))]
pub(crate) fn suspend(time: Duration) {
    SUSPENDED.set(SUSPENDED.get() + time.as_micros() as i64);
}

thread_local! {
    /// The instant that this thread converted last, and its µs. Has no destructor, so it outlives
    /// every other local of the thread (S13).
    static LAST_MICROS: Cell<Option<(Instant, u64)>> = const { Cell::new(None) };
}

/// Converts an instant to µs since [`epoch`], which fits an atomic. Earlier instants give 0.
///
/// Repeats the last result for the same instant: a round passes one instant to each node, and the
/// subtraction in `std` takes longer than all else here.
#[inline]
pub(crate) fn to_micros(at: Instant) -> u64 {
    match LAST_MICROS.get() {
        Some((last, micros)) if last == at => micros,
        _ => {
            let micros = whole_micros(at.saturating_duration_since(epoch()));
            LAST_MICROS.set(Some((at, micros)));
            micros
        }
    }
}

/// Returns whole microseconds, at most `u64::MAX`.
pub(crate) fn whole_micros(duration: Duration) -> u64 {
    let seconds = duration.as_secs().saturating_mul(1_000_000);
    seconds.saturating_add(u64::from(duration.subsec_micros()))
}

/// Reverses [`to_micros`]. Returns `None` if the instant exceeds the clock's range.
pub(crate) fn from_micros(micros: u64) -> Option<Instant> {
    epoch().checked_add(Duration::from_micros(micros))
}

/// Returns the instant one hour before the first call.
///
/// The hour gives a positive number to instants that a caller has read before that call.
fn epoch() -> Instant {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    *EPOCH.get_or_init(|| {
        let now = system_now();
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
    fn validity_of_a_ttl_is_ttl_less_drift_and_never_negative() {
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
    fn valid_until_with_too_little_validity_left_is_none() {
        let start = now();
        let end = start + ms(988);
        for (elapsed, min, expected) in [
            (0, 500, Some(end)),
            (488, 500, Some(end)),
            (489, 500, None),
            (987, 0, Some(end)),
            (988, 0, None),
            (989, 0, None),
            (2_000, 500, None),
        ] {
            let until = valid_until(start, ms(1_000), ms(min), start + ms(elapsed));
            assert_eq!(until, expected, "{min} ms left after {elapsed} ms");
        }
        assert_eq!(valid_until(start, Duration::MAX, ms(1), start), None);
    }

    #[test]
    fn instant_converted_to_micros_and_back_is_the_same() {
        let at = now();
        let back = from_micros(to_micros(at)).unwrap();
        assert!(at.saturating_duration_since(back) < Duration::from_micros(1));
        assert!(to_micros(at + ms(5)) - to_micros(at) >= 4_999);
        assert_eq!(to_micros(epoch()), 0);
    }

    #[test]
    fn deadline_of_several_limits_is_the_first_one() {
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
    fn deadline_beyond_the_clock_is_none() {
        assert_eq!(deadline(now(), Duration::MAX), None);
        assert_eq!(earlier(None, None), None);
    }
}
