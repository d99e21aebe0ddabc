//! Who releases a lock that others wait for lets them pass: a release tells how many heard of it, and what they have before
//! this `Nodes` asks for it again.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::background::release_listener::listener::{Desk, Listener};
use crate::protocol::key::{Channel, Key};
use crate::protocol::key_set::Keys;
use crate::protocol::request::Answer;
use crate::random;
use crate::time::clock;
use crate::transport::job::Addressee;

/// A `Nodes` that let others pass at a key forgets it after this.
const KEPT: Duration = Duration::from_secs(10);

impl Listener {
    /// A lock of ours is being released. If others are known to listen there, they are let pass from now on.
    pub(crate) fn releases(&self, keys: &Keys) {
        if self.desk.courtesies.load(Ordering::Acquire) > 0 {
            let mut state = self.desk.state.lock();
            for key in keys.all() {
                let until = self.desk.others_pass();
                state.courtesies.prolong(key.channel().as_ref(), until);
            }
        }
    }

    /// So many heard on these nodes that a lock of ours was released.
    pub(crate) fn released(&self, keys: &Keys, heard: &[(usize, u64)]) {
        self.desk.released(keys, heard);
    }

    /// Hears how many heard of a release that nobody waits for.
    pub(crate) fn addressee(&self, keys: &Keys) -> Arc<dyn Addressee> {
        Arc::new(Released {
            desk: Arc::clone(&self.desk),
            keys: keys.clone(),
        })
    }

    /// Until when others are let pass at one of these keys.
    pub(crate) fn courtesy(&self, keys: &Keys) -> Option<Instant> {
        if self.desk.courtesies.load(Ordering::Acquire) == 0 {
            return None;
        }
        let state = self.desk.state.lock();
        let until = |key: &Key| state.courtesies.until(key.channel().as_ref());
        keys.all().iter().filter_map(until).max()
    }
}

/// Where the answers to a release go that nobody waits for.
struct Released {
    desk: Arc<Desk>,
    keys: Keys,
}

impl Addressee for Released {
    fn post(&self, _: u32, node: usize, answer: Answer) {
        match answer {
            Answer::Heard(count) => self.desk.released(&self.keys, &[(node, count)]),
            Answer::Yes => self.desk.unheard(&self.keys, node),
            _ => {}
        }
    }
}

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

    fn count(&self) -> usize {
        self.count
    }

    fn until(&self, channel: &str) -> Option<Instant> {
        self.until.get(channel).copied().flatten()
    }

    /// Sets until when others are let pass at a channel, and forgets up to two others that are over: one more than is added, so
    /// that no release looks at all of them.
    fn put(&mut self, channel: &Channel, until: Instant, now: Instant) {
        self.forget_some(now);
        match self.until.insert(Arc::clone(channel), Some(until)) {
            Some(Some(_)) => {}
            Some(None) => self.count += 1,
            None => {
                self.count += 1;
                self.queue.push_back((now + KEPT, Arc::clone(channel)));
            }
        }
    }

    /// Moves the end of one that is there.
    fn prolong(&mut self, channel: &str, end: Instant) {
        if let Some(Some(until)) = self.until.get_mut(channel) {
            *until = end;
        }
    }

    fn remove(&mut self, channel: &str) {
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
                Some(until) if now < until + KEPT => self.queue.push_back((now + KEPT, channel)),
                until => {
                    self.count -= usize::from(until.is_some());
                    self.until.remove(&channel);
                }
            }
        }
    }
}

impl Desk {
    /// Of a lock with several keys a node says how many heard of the one that most heard of: those who listen to the others
    /// are let pass as well.
    fn released(&self, keys: &Keys, heard: &[(usize, u64)]) {
        let known = self.courtesies.load(Ordering::Acquire) > 0;
        if heard.is_empty() && !known {
            return;
        }
        let mut state = self.state.lock();
        for key in keys.all() {
            let channel = key.channel();
            let is_ours = state.subscriptions.is_confirmed(&channel);
            let ours = state.node.filter(|_| is_ours);
            let others = heard
                .iter()
                .any(|(node, count)| *count > u64::from(ours == Some(*node)));
            if others {
                let until = self.others_pass();
                state.courtesies.put(&channel, until, clock::now());
            } else {
                state.courtesies.remove(&channel);
            }
        }
        let count = state.courtesies.count();
        self.courtesies.store(count, Ordering::Release);
    }

    /// Nobody heard of it on this node. Where others listen they do so on the first one.
    fn unheard(&self, keys: &Keys, node: usize) {
        if self.nodes.first_up() == Some(node) {
            self.released(keys, &[]);
        }
    }

    /// Two round trips and as much again, more or less, from now on.
    fn others_pass(&self) -> Instant {
        clock::now() + (2 * self.nodes.usual_round()).mul_f64(1.0 + random::unit())
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
        let later = start + 2 * KEPT;
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
