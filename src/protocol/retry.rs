//! When to try again: back-off with jitter, and the limits that end it.

use std::time::Duration;

use crate::error::Error;

/// How an acquire tries again, and when it gives up.
///
/// The delay before the n-th retry is `initial_delay` doubled n − 1 times, at most `max_delay`, of which the
/// fraction `jitter` is drawn at random: with 1.0 ("full jitter" in *Exponential Backoff And Jitter*, AWS
/// Architecture Blog, 2015) anything from nothing to the whole delay, with 0.0 always the whole.
///
/// ```
/// use redguard::RetryPolicy;
/// use std::time::Duration;
///
/// let patient = RetryPolicy::default(); // waits as `Mutex::lock` does
/// let hasty = RetryPolicy {
///     max_wait: Some(Duration::from_secs(2)),
///     ..RetryPolicy::default()
/// };
/// assert_eq!(patient.max_wait, None);
/// assert_eq!(hasty.max_delay, Duration::from_secs(2));
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    /// The most attempts that an acquire makes, at least 1. A back-off delay that passes in the queue of this
    /// process counts as one. An attempt repeats a split vote of callers that ask at the same moment, for 50 ms at most; these
    /// repeats belong to it. `None` (the default) sets no limit.
    pub max_attempts: Option<u32>,
    /// The longest that an acquire waits, time in the queue of this process included. An attempt that has begun
    /// is finished, so the call may return up to `node_timeout` later. `None` (the default) sets no limit.
    pub max_wait: Option<Duration>,
    /// How long an acquire that waits bears with fewer than a quorum of nodes answering its own rounds, in a row; time at an open
    /// breaker ([`Config::circuit_breaker`](crate::Config::circuit_breaker)) counts. Then it is
    /// [`InsufficientQuorum`](Error::InsufficientQuorum). Default: 10 s.
    pub max_outage: Duration,
    /// The first delay; more than zero. Default: 100 ms.
    pub initial_delay: Duration,
    /// The longest delay; at least `initial_delay`. For read-write locks no delay is longer than 50 ms, so that nobody
    /// misses a turn. Default: 2 s.
    pub max_delay: Duration,
    /// The part of a delay that is drawn at random, 0.0 to 1.0. Default: 1.0.
    pub jitter: f64,
}

impl Default for RetryPolicy {
    fn default() -> RetryPolicy {
        RetryPolicy {
            max_attempts: None,
            max_wait: None,
            max_outage: Duration::from_secs(10),
            initial_delay: Duration::from_millis(100),
            max_delay: Duration::from_secs(2),
            jitter: 1.0,
        }
    }
}

impl RetryPolicy {
    /// # Errors
    /// `InvalidConfig` that names the numbers which do not go together.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let refuse = |text: String| Err(Error::InvalidConfig(text));
        if self.max_attempts == Some(0) {
            return refuse("max_attempts is 0, an acquire makes at least 1".into());
        }
        if self.initial_delay.is_zero() {
            return refuse("initial_delay is 0, which would ask without a pause".into());
        }
        if self.initial_delay > self.max_delay {
            return refuse(format!(
                "initial_delay {:?} is above max_delay {:?}",
                self.initial_delay, self.max_delay
            ));
        }
        if !(0.0..=1.0).contains(&self.jitter) {
            return refuse(format!("jitter {} is not within 0.0 to 1.0", self.jitter));
        }
        Ok(())
    }

    /// The delay before retry number `retry` (from 1), with `draw` from 0.0 to 1.0 as the random part.
    pub(crate) fn delay(&self, retry: u32, draw: f64) -> Duration {
        let whole = self.delay_without_jitter(retry);
        let part = 1.0 - self.jitter * (1.0 - draw.clamp(0.0, 1.0));
        // The longest durations are rounded up when they become a float, also beyond the type's range.
        Duration::try_from_secs_f64(whole.as_secs_f64() * part)
            .map_or(whole, |part| part.min(whole))
    }

    /// How many of the (whole) delays have passed after `waited`: as many attempts would have been made.
    pub(crate) fn attempts_elapsed(&self, waited: Duration) -> u32 {
        let mut attempts = 0_u32;
        let mut left = waited;
        loop {
            let delay = self.delay_without_jitter(attempts.saturating_add(1));
            if delay == self.max_delay {
                let rest = left.as_nanos() / delay.as_nanos().max(1);
                return attempts.saturating_add(u32::try_from(rest).unwrap_or(u32::MAX));
            }
            match left.checked_sub(delay) {
                Some(rest) => left = rest,
                None => return attempts,
            }
            attempts += 1;
        }
    }

    /// How long `attempts` attempts may take in the queue: the sum of the delays between them.
    pub(crate) fn total_delay(&self, attempts: u32) -> Duration {
        let mut sum = Duration::ZERO;
        for retry in 1..attempts {
            let delay = self.delay_without_jitter(retry);
            if delay == self.max_delay {
                let rest = delay.checked_mul(attempts - retry);
                return sum.saturating_add(rest.unwrap_or(Duration::MAX));
            }
            sum = sum.saturating_add(delay);
        }
        sum
    }

    fn delay_without_jitter(&self, retry: u32) -> Duration {
        let mut delay = self.initial_delay;
        for _ in 1..retry {
            if delay >= self.max_delay {
                break;
            }
            delay = delay.saturating_mul(2);
        }
        delay.min(self.max_delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn policy(initial: u64, max: u64, jitter: f64) -> RetryPolicy {
        RetryPolicy {
            initial_delay: ms(initial),
            max_delay: ms(max),
            jitter,
            ..RetryPolicy::default()
        }
    }

    #[test]
    fn delays_double_up_to_the_longest() {
        let plain = policy(100, 1_000, 0.0);
        for (retry, expected) in [
            (1, 100),
            (2, 200),
            (3, 400),
            (4, 800),
            (5, 1_000),
            (6, 1_000),
            (u32::MAX, 1_000),
        ] {
            assert_eq!(plain.delay(retry, 0.3), ms(expected), "retry {retry}");
        }
    }

    #[test]
    fn jitter_takes_its_part_and_never_adds() {
        for (jitter, draw, expected) in [
            (1.0, 0.0, 0),
            (1.0, 0.5, 50),
            (1.0, 1.0, 100),
            (0.5, 0.0, 50),
            (0.5, 1.0, 100),
            (0.0, 0.0, 100),
            (1.0, 7.0, 100),
        ] {
            let delay = policy(100, 1_000, jitter).delay(1, draw);
            assert_eq!(delay, ms(expected), "jitter {jitter}, draw {draw}");
        }
    }

    #[test]
    fn huge_delays_do_not_overflow() {
        let huge = RetryPolicy {
            initial_delay: Duration::MAX / 2,
            max_delay: Duration::MAX,
            ..RetryPolicy::default()
        };
        assert_eq!(huge.delay(9, 1.0), Duration::MAX);
        assert_eq!(huge.total_delay(u32::MAX), Duration::MAX);
        assert_eq!(huge.attempts_elapsed(Duration::MAX), 1);
        let tiny = RetryPolicy {
            initial_delay: Duration::from_nanos(1),
            max_delay: Duration::from_secs(3_600),
            jitter: 0.0,
            ..RetryPolicy::default()
        };
        assert_eq!(tiny.delay(u32::MAX, 0.0), tiny.max_delay);
        let odd = RetryPolicy {
            max_delay: Duration::from_secs(13_405_666_198_677_039),
            ..tiny
        };
        assert_eq!(
            odd.delay(u32::MAX, 0.0),
            odd.max_delay,
            "as a float it is more"
        );
    }

    #[test]
    fn time_in_the_queue_counts_as_attempts() {
        let plain = policy(100, 400, 1.0);
        for (waited, attempts) in [
            (0, 0),
            (99, 0),
            (100, 1),
            (299, 1),
            (300, 2),
            (699, 2),
            (700, 3),
            (1_100, 4),
        ] {
            assert_eq!(plain.attempts_elapsed(ms(waited)), attempts, "{waited} ms");
        }
        for attempts in 1..9 {
            let span = plain.total_delay(attempts);
            assert_eq!(plain.attempts_elapsed(span), attempts - 1);
        }
    }

    #[test]
    fn contradictions_are_named() {
        let table = [
            (
                policy(200, 100, 1.0),
                "initial_delay 200ms is above max_delay 100ms",
            ),
            (policy(0, 100, 1.0), "initial_delay is 0"),
            (policy(1, 2, 1.5), "jitter 1.5"),
            (policy(1, 2, f64::NAN), "jitter NaN"),
        ];
        for (policy, words) in table {
            let error = policy.validate().unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
        }
        RetryPolicy::default().validate().unwrap();
    }
}
