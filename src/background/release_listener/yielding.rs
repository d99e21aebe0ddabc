//! Who releases a lock that others wait for lets them pass: a release tells how many heard of it, and what they have before
//! this `Nodes` asks for it again.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::protocol::key::Channel;

/// A `Nodes` that let others pass at a key forgets it after this.
const FORGET_AFTER: Duration = Duration::from_secs(10);

/// Until when others are let pass, for each key that others were seen to listen to.
pub(crate) struct Courtesies {
    /// `None` where nobody was heard to listen last; kept until the queue comes to it.
    until: HashMap<Channel, Option<Instant>>,
    /// Each channel once, with when it is to be looked at whether it can be forgotten.
    queue: VecDeque<(Instant, Channel)>,
    /// How many are not `None`.
    count: usize,
}

impl Courtesies {
    pub(crate) fn new() -> Courtesies {
        Courtesies {
            until: HashMap::new(),
            queue: VecDeque::new(),
            count: 0,
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.count
    }

    pub(crate) fn until(&self, channel: &str) -> Option<Instant> {
        self.until.get(channel).copied().flatten()
    }

    /// Sets until when others are let pass at a channel, and forgets up to two others that are over: one more than is added, so
    /// that no release looks at all of them.
    pub(crate) fn put(&mut self, channel: &Channel, until: Instant, now: Instant) {
        self.forget_some(now);
        match self.until.insert(Arc::clone(channel), Some(until)) {
            Some(Some(_)) => {}
            Some(None) => self.count += 1,
            None => {
                self.count += 1;
                self.queue
                    .push_back((now + FORGET_AFTER, Arc::clone(channel)));
            }
        }
    }

    /// Moves the end of one that is there.
    pub(crate) fn prolong(&mut self, channel: &str, end: Instant) {
        if let Some(Some(until)) = self.until.get_mut(channel) {
            *until = end;
        }
    }

    pub(crate) fn remove(&mut self, channel: &str) {
        if let Some(until) = self.until.get_mut(channel)
            && until.take().is_some()
        {
            self.count -= 1;
        }
    }

    fn forget_some(&mut self, now: Instant) {
        for _ in 0..2 {
            if self.queue.front().is_none_or(|(due, _)| *due > now) {
                return;
            }
            let Some((_, channel)) = self.queue.pop_front() else {
                return;
            };
            match self.until.get(&channel).copied().flatten() {
                Some(until) if now < until + FORGET_AFTER => {
                    self.queue.push_back((now + FORGET_AFTER, channel))
                }
                until => {
                    self.count -= usize::from(until.is_some());
                    self.until.remove(&channel);
                }
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::time::clock;

    #[test]
    fn courtesies_that_are_over_are_forgotten_a_few_with_each_release() {
        let mut all = Courtesies::new();
        let start = clock::now();
        let name = |n: u32| Channel::from(format!("x{n}"));
        for n in 0..100 {
            all.put(&name(n), start, start);
            all.put(&name(n), start, start);
            all.remove("x7");
        }
        assert_eq!(
            (all.count(), all.until.len(), all.queue.len()),
            (99, 100, 100)
        );
        assert_eq!((all.until("x8"), all.until("x7")), (Some(start), None));
        let later = start + 2 * FORGET_AFTER;
        all.prolong("x1", later);
        // Each release forgets two at the most.
        all.put(&name(1000), later, later);
        assert_eq!((all.count(), all.until.len()), (99, 100));
        for n in 0..100 {
            all.put(&name(n % 2), later, later);
        }
        assert_eq!((all.count(), all.until.len(), all.queue.len()), (3, 3, 3));
    }
}
