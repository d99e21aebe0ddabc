//! The clocks of nodes and clients, as functions of the true time.

use std::time::Instant;

use crate::time::clock;

/// The head start of every clock over the true time in µs, so that no clock reads less than zero.
const EPOCH_OFFSET: i64 = 10_000_000_000;

/// A clock with a rate of its own. True time is in µs since the beginning of the history.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// The difference to the true time, in µs.
    offset: i64,
    /// The excess of its rate over that of true time, in millionths.
    rate: i64,
}

impl Clock {
    pub(crate) fn new(offset: i64, rate: i64) -> Clock {
        Clock {
            offset: EPOCH_OFFSET + offset,
            rate,
        }
    }

    fn micros(&self, now: u64) -> i64 {
        let now = now as i64;
        now + now * self.rate / 1_000_000 + self.offset
    }

    pub(crate) fn at(&self, now: u64) -> Instant {
        clock::from_micros(self.micros(now) as u64).expect("within the clock's range")
    }

    /// Returns the first true time at which the clock reads `at` or later.
    pub(crate) fn when(&self, at: Instant) -> u64 {
        let shown = clock::to_micros(at) as i64;
        let guess = (shown - self.offset) * 1_000_000 / (1_000_000 + self.rate);
        let mut when = (guess - 2).max(0) as u64;
        while self.micros(when) < shown {
            when += 1;
        }
        when
    }

    /// Sets the clock forward or back by `by` µs.
    pub(crate) fn step(&mut self, by: i64) {
        self.offset += by;
    }
}

#[test]
fn clock_reads_at_least_the_time_asked_for() {
    for (offset, rate) in [(0, 0), (77, 5_000), (-3_600_000_000, -5_000), (5, 50_000)] {
        let clock = Clock::new(offset, rate);
        for now in [0, 1, 999, 1_000_000, 123_456_789] {
            let shown = clock.at(now);
            let when = clock.when(shown);
            assert!(clock.at(when) >= shown && when <= now, "{clock:?} {now}");
            assert!(when == 0 || clock.at(when - 1) < shown, "{clock:?} {now}");
        }
    }
}
