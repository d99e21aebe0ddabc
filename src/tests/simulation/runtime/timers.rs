//! Events due at a true time: the ends of waits, and callbacks.

use std::collections::BTreeMap;

/// Code that runs at a true time, on no fiber.
pub(super) type Callback = Box<dyn FnOnce()>;

pub(super) enum Timer {
    /// Ends the wait of a fiber.
    Wait(usize),
    Callback(Callback),
}

/// The timers by the times at which they are due, in ns; of equal ones the older comes first.
pub(super) struct Timers {
    by_time: BTreeMap<(u64, u64), Timer>,
    last: u64,
    next_due: u64,
}

impl Default for Timers {
    fn default() -> Timers {
        Timers {
            by_time: BTreeMap::new(),
            last: 0,
            next_due: u64::MAX,
        }
    }
}

impl Timers {
    /// Returns when the first timer is due; `u64::MAX` without any.
    pub(super) fn next_due(&self) -> u64 {
        self.next_due
    }

    /// Inserts a timer, and returns the key to remove it by.
    pub(super) fn insert(&mut self, due: u64, timer: Timer) -> (u64, u64) {
        self.last += 1;
        let key = (due, self.last);
        self.by_time.insert(key, timer);
        self.next_due = self.next_due.min(due);
        key
    }

    pub(super) fn remove(&mut self, key: (u64, u64)) {
        self.by_time.remove(&key);
        if key.0 == self.next_due {
            self.find_next_due();
        }
    }

    /// Removes and returns the first timer, if it is due.
    pub(super) fn pop_due(&mut self, now: u64) -> Option<Timer> {
        if self.next_due > now {
            return None;
        }
        let (_, timer) = self.by_time.pop_first()?;
        self.find_next_due();
        Some(timer)
    }

    fn find_next_due(&mut self) {
        let first = self.by_time.first_key_value();
        self.next_due = first.map_or(u64::MAX, |((due, _), _)| *due);
    }
}
