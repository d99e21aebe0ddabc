//! What is due when: the pure part of every thread that has a clock.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

/// Items in the order in which they are due, each under a number of its own.
#[derive(Debug)]
pub(crate) struct Agenda<T> {
    by_time: BTreeMap<(Instant, u64), T>,
    times: HashMap<u64, Instant>,
}

impl<T> Agenda<T> {
    pub(crate) fn new() -> Agenda<T> {
        Agenda {
            by_time: BTreeMap::new(),
            times: HashMap::new(),
        }
    }

    /// Enters an item, in the place of one with the same number.
    pub(crate) fn put(&mut self, id: u64, due: Instant, item: T) {
        self.take(id);
        self.times.insert(id, due);
        self.by_time.insert((due, id), item);
    }

    /// Takes an item out, due or not.
    pub(crate) fn take(&mut self, id: u64) -> Option<T> {
        let due = self.times.remove(&id)?;
        self.by_time.remove(&(due, id))
    }

    #[cfg(all(test, not(loom)))]
    pub(crate) fn len(&self) -> usize {
        self.times.len()
    }

    /// The item that is due next, and when.
    pub(crate) fn first(&self) -> Option<(Instant, &T)> {
        let ((due, _), item) = self.by_time.first_key_value()?;
        Some((*due, item))
    }

    /// Takes the first item out.
    pub(crate) fn pop(&mut self) -> Option<(u64, T)> {
        let ((_, id), item) = self.by_time.pop_first()?;
        self.times.remove(&id);
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
        let mut agenda = Agenda::new();
        agenda.put(1, at(3), "c");
        agenda.put(2, at(1), "a");
        agenda.put(3, at(1), "b");
        agenda.put(4, at(2), "never");
        assert_eq!(agenda.take(4), Some("never"));
        assert_eq!(agenda.take(4), None);
        assert_eq!(agenda.first(), Some((at(1), &"a")));
        agenda.put(1, at(0), "now first");
        let order: Vec<_> = std::iter::from_fn(|| agenda.pop()).collect();
        assert_eq!(order, [(1, "now first"), (2, "a"), (3, "b")]);
        assert!(agenda.times.is_empty() && agenda.first().is_none());
    }
}
