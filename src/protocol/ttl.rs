//! The TTL of a lock, parsed once (S2).

use std::time::Duration;

use crate::error::error::Error;
use crate::protocol::validity;

/// The longest TTL in ms: above it an integer is not exact in a Lua script.
const MAX_MILLIS: u64 = 1 << 53;

/// The TTL of a lock, in whole ms as Redis counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ttl(u64);

impl Ttl {
    /// Parses a TTL. A fraction of a millisecond is cut off, so that a lease never outlasts its
    /// keys.
    ///
    /// # Errors
    /// - `InvalidTtl`: longer than Redis can count, or so short that an attempt of zero duration
    ///   would not leave the fraction `min_validity`.
    pub(crate) fn parse(ttl: Duration, min_validity: f64) -> Result<Ttl, Error> {
        let refuse = |reason: String| Err(Error::InvalidTtl { ttl, reason });
        let millis = match u64::try_from(ttl.as_millis()) {
            Ok(millis) if millis <= MAX_MILLIS => millis,
            _ => return refuse("longer than Redis can count".into()),
        };
        let whole = Ttl(millis);
        let valid = validity::validity(whole.duration());
        if valid.is_zero() || valid < whole.min_validity(min_validity) {
            let least = shortest_ttl_millis(min_validity);
            return refuse(format!(
                "must be at least {least} ms, so that min_validity ({min_validity}) is left after clock drift"
            ));
        }
        Ok(whole)
    }

    pub(crate) fn millis(self) -> u64 {
        self.0
    }

    pub(crate) fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }

    /// Returns the validity below which an attempt is too slow.
    pub(crate) fn min_validity(self, min_validity: f64) -> Duration {
        self.duration().mul_f64(min_validity)
    }
}

/// Returns the shortest valid TTL in ms, for the error text.
fn shortest_ttl_millis(min_validity: f64) -> u64 {
    // ttl - ttl / 100 - 2 ms >= min_validity * ttl, by `validity::drift`.
    let least = 2.0 / (0.99 - min_validity);
    (least.ceil() as u64).max(3)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::validity;

    #[test]
    fn ttl_without_min_validity_is_refused() {
        for (micros, min_validity, passes) in [
            (0, 0.0, false),
            (999, 0.0, false),
            (2_000, 0.0, false),
            (3_000, 0.0, true),
            (4_000, 0.5, false),
            (5_000, 0.5, true),
            (30_000_000, 0.98, true),
            (30_000_000, 0.99, false),
        ] {
            let parsed = Ttl::parse(Duration::from_micros(micros), min_validity);
            assert_eq!(parsed.is_ok(), passes, "{micros} µs at {min_validity}");
        }
        for ttl in [Duration::MAX, Duration::from_millis(MAX_MILLIS + 1)] {
            assert!(matches!(
                Ttl::parse(ttl, 0.5),
                Err(Error::InvalidTtl { .. })
            ));
        }
        assert!(Ttl::parse(Duration::from_millis(MAX_MILLIS), 0.5).is_ok());
        let cut = Ttl::parse(Duration::from_micros(10_999), 0.5).unwrap();
        assert_eq!(cut.millis(), 10);
    }

    #[test]
    fn error_for_a_short_ttl_names_the_shortest_valid_one() {
        let parse = |ms, min_validity| Ttl::parse(Duration::from_millis(ms), min_validity);
        for min_validity in [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98] {
            let least = shortest_ttl_millis(min_validity);
            parse(least, min_validity).unwrap();
            let error = parse(least - 1, min_validity).unwrap_err().to_string();
            assert!(error.contains(&format!("at least {least} ms")), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_ttl_is_parsed_or_refused(
            secs in prop_oneof![0..10_u64, any::<u64>()],
            nanos in 0..1_000_000_000_u32,
            min_validity in 0.0..0.98,
        ) {
            let ttl = Duration::new(secs, nanos);
            match Ttl::parse(ttl, min_validity) {
                Ok(parsed) => {
                    prop_assert!(parsed.duration() <= ttl && parsed.millis() <= MAX_MILLIS);
                    let least = parsed.min_validity(min_validity);
                    prop_assert!(least <= validity::validity(parsed.duration()));
                }
                Err(error) => {
                    let shown = format!("{ttl:?}");
                    prop_assert!(error.to_string().contains(&shown));
                    prop_assert!(ttl.as_millis() > u128::from(MAX_MILLIS) || ttl.as_secs() < 10);
                }
            }
        }
    }
}
