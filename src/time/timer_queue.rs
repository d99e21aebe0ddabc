//! What is due when: the pure part of every thread that has a clock.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

/// Items in the order in which they are due, each under a number of its own.
#[derive(Debug)]
pub(crate) struct TimerQueue<T> {
    by_time: BTreeMap<(Instant, u64), T>,
    deadline_of: HashMap<u64, Instant>,
}

impl<T> TimerQueue<T> {
    pub(crate) fn new() -> TimerQueue<T> {
        TimerQueue {
            by_time: BTreeMap::new(),
            deadline_of: HashMap::new(),
        }
    }

    /// Enters an item, in the place of one with the same number.
    pub(crate) fn insert(&mut self, id: u64, due: Instant, item: T) {
        self.remove(id);
        self.deadline_of.insert(id, due);
        self.by_time.insert((due, id), item);
    }

    /// Takes an item out, due or not.
    pub(crate) fn remove(&mut self, id: u64) -> Option<T> {
        let due = self.deadline_of.remove(&id)?;
        self.by_time.remove(&(due, id))
    }

    #[cfg(all(test, not(loom)))]
    pub(crate) fn len(&self) -> usize {
        self.deadline_of.len()
    }

    /// The item that is due next, and when.
    pub(crate) fn peek(&self) -> Option<(Instant, &T)> {
        let ((due, _), item) = self.by_time.first_key_value()?;
        Some((*due, item))
    }

    /// Takes the first item out.
    pub(crate) fn pop(&mut self) -> Option<(u64, T)> {
        let ((_, id), item) = self.by_time.pop_first()?;
        self.deadline_of.remove(&id);
        Some((id, item))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::time::clock;

    #[test]
    fn items_come_when_they_are_due_and_once() {
        let now = clock::now();
        let at = |n| now + Duration::from_secs(n);
        let mut agenda = TimerQueue::new();
        agenda.insert(1, at(3), "c");
        agenda.insert(2, at(1), "a");
        agenda.insert(3, at(1), "b");
        agenda.insert(4, at(2), "never");
        assert_eq!(agenda.remove(4), Some("never"));
        assert_eq!(agenda.remove(4), None);
        assert_eq!(agenda.peek(), Some((at(1), &"a")));
        agenda.insert(1, at(0), "now first");
        let order: Vec<_> = std::iter::from_fn(|| agenda.pop()).collect();
        assert_eq!(order, [(1, "now first"), (2, "a"), (3, "b")]);
        assert!(agenda.deadline_of.is_empty() && agenda.peek().is_none());
    }
}
