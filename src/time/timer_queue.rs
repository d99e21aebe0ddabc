//! A queue of items by due time, used by the threads that act at given instants.
//!
//! Pure: callers pass in the time, and the queue never reads a clock.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::random::HashMap;

/// Items in the order of their due times. Each has an id that is unique in the queue.
#[derive(Debug)]
pub(crate) struct TimerQueue<T> {
    by_time: BTreeMap<(Instant, u64), T>,
    deadline_of: HashMap<u64, Instant>,
}

impl<T> TimerQueue<T> {
    pub(crate) fn new() -> TimerQueue<T> {
        TimerQueue {
            by_time: BTreeMap::new(),
            deadline_of: HashMap::default(),
        }
    }

    /// Inserts an item, replacing an item of the same id.
    pub(crate) fn insert(&mut self, id: u64, due: Instant, item: T) {
        if let Some(former) = self.deadline_of.insert(id, due) {
            self.by_time.remove(&(former, id));
        }
        self.by_time.insert((due, id), item);
    }

    /// Removes and returns an item, whether it is due or not.
    pub(crate) fn remove(&mut self, id: u64) -> Option<T> {
        let due = self.deadline_of.remove(&id)?;
        self.by_time.remove(&(due, id))
    }

    #[cfg(all(test, not(loom)))]
    pub(crate) fn len(&self) -> usize {
        self.deadline_of.len()
    }

    /// Returns the item that is due next, and its due time.
    pub(crate) fn peek(&self) -> Option<(Instant, &T)> {
        let ((due, _), item) = self.by_time.first_key_value()?;
        Some((*due, item))
    }

    /// Removes and returns the item that is due next.
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
    fn timer_queue_pops_each_item_once_in_order_of_due_times() {
        let now = clock::now();
        let at = |n| now + Duration::from_secs(n);
        let mut queue = TimerQueue::new();
        queue.insert(1, at(3), "c");
        queue.insert(2, at(1), "a");
        queue.insert(3, at(1), "b");
        queue.insert(4, at(2), "never");
        assert_eq!(queue.remove(4), Some("never"));
        assert_eq!(queue.remove(4), None);
        assert_eq!(queue.peek(), Some((at(1), &"a")));
        queue.insert(1, at(0), "now first");
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, [(1, "now first"), (2, "a"), (3, "b")]);
        assert!(queue.deadline_of.is_empty() && queue.peek().is_none());
    }
}
