//! Decides the delays between the attempts of an acquire, and the limits that end it. Random delays
//! separate callers that ask at the same moment (L1). The random part is passed in.

use std::time::Duration;

use crate::error::error::Error;

/// The delays and limits of an acquire that waits.
///
/// The delay before the n-th retry is `initial_delay` doubled n − 1 times, at most `max_delay`. The
/// fraction `jitter` of it is random: 1.0 draws between zero and the whole delay ("full jitter" in
/// *Exponential Backoff And Jitter*, AWS Architecture Blog, 2015), 0.0 always uses the whole.
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
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(default, deny_unknown_fields)
)]
pub struct RetryPolicy {
    /// The maximal number of attempts of an acquire, at least 1. Each back-off delay that passes in
    /// this process's wait queue counts as an attempt. The repeats of a split vote, for at most 50
    /// ms, belong to their attempt. `None` (the default) sets no limit.
    pub max_attempts: Option<u32>,
    /// The maximal time that an acquire waits, including time in this process's wait queue. An
    /// attempt that has begun is finished, so the call may return later, as for
    /// [`LockOptions::wait_for`](crate::LockOptions::wait_for). `None` (the default) sets no limit.
    #[cfg_attr(feature = "serde", serde(with = "crate::time::human::optional"))]
    pub max_wait: Option<Duration>,
    /// The maximal time that a waiting acquire continues while fewer than a quorum of nodes reply.
    /// Time at an open breaker ([`Config::circuit_breaker`](crate::Config::circuit_breaker))
    /// counts. Then [`InsufficientQuorum`](Error::InsufficientQuorum) is returned. Default: 10 s.
    #[cfg_attr(feature = "serde", serde(with = "crate::time::human"))]
    pub max_outage: Duration,
    /// The first delay; more than zero. Default: 100 ms.
    #[cfg_attr(feature = "serde", serde(with = "crate::time::human"))]
    pub initial_delay: Duration,
    /// The longest delay; at least `initial_delay`. For read-write locks no delay is longer than 50
    /// ms, so that no waiting caller misses a reader turn. Default: 2 s.
    #[cfg_attr(feature = "serde", serde(with = "crate::time::human"))]
    pub max_delay: Duration,
    /// The random fraction of a delay, 0.0 to 1.0. Default: 1.0.
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
    /// Validates the policy.
    ///
    /// # Errors
    /// - `InvalidConfig` with the values that contradict each other.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let refuse = |text: String| Err(Error::InvalidConfig(text));
        if self.max_attempts == Some(0) {
            return refuse("max_attempts is 0; an acquire makes at least 1 attempt".into());
        }
        if self.initial_delay.is_zero() {
            return refuse("initial_delay is 0; attempts need a delay between them".into());
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

    /// Returns the delay before the retry with this number (from 1); `draw`, 0.0 to 1.0, is the
    /// random part.
    pub(crate) fn delay(&self, retry: u32, draw: f64) -> Duration {
        let whole = self.delay_without_jitter(retry);
        part_of(whole, 1.0 - self.jitter * (1.0 - draw.clamp(0.0, 1.0)))
    }

    /// Returns the delay of a caller that a node wakes when it is its turn: half of `max_delay` at
    /// least.
    pub(crate) fn delay_of_placed(&self, draw: f64) -> Duration {
        part_of(self.max_delay, 1.0 - draw.clamp(0.0, 1.0) / 2.0)
    }

    /// Returns the number of whole delays in `waited`, which is the number of attempts that a
    /// caller outside the queue would have made.
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

    /// Returns the sum of the delays between `attempts` attempts.
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

/// Returns this part of a delay, 0.0 to 1.0.
fn part_of(whole: Duration, part: f64) -> Duration {
    // Conversion to a float rounds the longest durations up, even beyond the range of the type.
    Duration::try_from_secs_f64(whole.as_secs_f64() * part).map_or(whole, |part| part.min(whole))
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
    fn delays_double_up_to_max_delay() {
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
    fn jitter_only_shortens_a_delay() {
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
        assert_eq!(huge.delay_of_placed(0.0), Duration::MAX);
        assert!(huge.delay_of_placed(1.0) >= Duration::MAX / 2);
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
    fn invalid_policy_is_named() {
        let table = [
            (
                policy(200, 100, 1.0),
                "initial_delay 200ms is above max_delay 100ms",
            ),
            (policy(0, 100, 1.0), "initial_delay is 0"),
            (policy(1, 2, 1.5), "jitter 1.5"),
            (policy(1, 2, f64::NAN), "jitter NaN"),
        ];
        for (policy, text) in table {
            let error = policy.validate().unwrap_err();
            assert!(error.to_string().contains(text), "{error}");
        }
        RetryPolicy::default().validate().unwrap();
    }
}
