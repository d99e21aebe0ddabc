//! The clocks of one simulated process, as functions of the true time. All times are in ns.
//!
//! The steady clock drifts by a rate and stands still during a suspend. The wall clock runs as the
//! steady clock does, goes on during a suspend, and may step.

const PPM: u64 = 1_000_000;

#[derive(Clone, Debug)]
pub(super) struct ProcessClock {
    /// The true time of the last change of rate.
    changed_at: u64,
    /// The steady clock at that time.
    steady_then: u64,
    /// How much faster than true time the steady clock runs, in parts per million.
    drift: i64,
    suspended: bool,
    /// How far the wall clock is ahead of the steady clock.
    wall_ahead: i64,
}

impl ProcessClock {
    pub(super) fn new(now: u64, steady: u64, wall: u64) -> ProcessClock {
        ProcessClock {
            changed_at: now,
            steady_then: steady,
            drift: 0,
            suspended: false,
            wall_ahead: wall as i64 - steady as i64,
        }
    }

    pub(super) fn steady(&self, now: u64) -> u64 {
        match (self.suspended, now - self.changed_at) {
            (true, _) => self.steady_then,
            (false, since) if self.drift == 0 => self.steady_then + since,
            (false, since) => self.steady_then + scale(since, self.rate(), PPM),
        }
    }

    pub(super) fn wall(&self, now: u64) -> u64 {
        (self.steady(now) as i64 + self.wall_ahead).max(0) as u64
    }

    /// Returns the first true time at which the steady clock shows `steady`. `None` while it stands
    /// still.
    pub(super) fn true_time_of(&self, steady: u64) -> Option<u64> {
        let ahead = steady.saturating_sub(self.steady_then);
        let since = match self.drift {
            0 => ahead,
            _ => scale(ahead, PPM, self.rate()) + 1,
        };
        (!self.suspended).then(|| self.changed_at.saturating_add(since))
    }

    pub(super) fn set_drift(&mut self, now: u64, drift: i64) {
        self.rebase(now);
        self.drift = drift;
    }

    pub(super) fn step_wall(&mut self, by: i64) {
        self.wall_ahead += by;
    }

    pub(super) fn suspend(&mut self, now: u64) {
        self.rebase(now);
        self.suspended = true;
    }

    /// Ends a suspend, if there is one.
    pub(super) fn wake(&mut self, now: u64) {
        if self.suspended {
            self.wall_ahead += (now - self.changed_at) as i64;
            self.changed_at = now;
            self.suspended = false;
        }
    }

    /// Returns by how much the steady clock advances in `PPM` ns.
    fn rate(&self) -> u64 {
        PPM.saturating_add_signed(self.drift)
    }

    fn rebase(&mut self, now: u64) {
        if !self.suspended {
            self.steady_then = self.steady(now);
            self.changed_at = now;
        }
    }
}

/// Returns `time * by / of`, rounded down. Divides in parts, since a product in 128 bits is slow to
/// divide.
fn scale(time: u64, by: u64, of: u64) -> u64 {
    let whole = (time / of).saturating_mul(by);
    whole.saturating_add(time % of * by / of)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn clock_with_a_drift_reaches_a_deadline_at_its_true_time() {
        for drift in [0, 1, -1, 9_999, -9_999, 333_333] {
            let mut clock = ProcessClock::new(7, 5 * SECOND, 0);
            clock.set_drift(SECOND, drift);
            for steady in (0..10_000).map(|n| 6 * SECOND + n * 1_234_567) {
                let due = clock.true_time_of(steady).unwrap();
                assert!(clock.steady(due) >= steady, "{drift}");
                assert!(clock.steady(due - 2) < steady, "{drift}: woken late");
            }
        }
    }

    #[test]
    fn suspend_stops_the_steady_clock_and_not_the_wall_clock() {
        let mut clock = ProcessClock::new(0, 0, 100 * SECOND);
        clock.suspend(SECOND);
        assert_eq!(clock.true_time_of(2 * SECOND), None);
        assert_eq!(clock.steady(4 * SECOND), SECOND);
        clock.wake(4 * SECOND);
        assert_eq!(clock.steady(5 * SECOND), 2 * SECOND);
        assert_eq!(clock.wall(5 * SECOND), 105 * SECOND);
        assert_eq!(clock.true_time_of(3 * SECOND), Some(6 * SECOND));
        clock.step_wall(-(SECOND as i64));
        assert_eq!(clock.wall(5 * SECOND), 104 * SECOND);
    }
}
