//! The yield deadlines of the keys that this `Nodes` yields to other processes after its releases.
//!
//! Pure: the time is passed in. A release reports how many subscribers received its message. If
//! other processes did, the next acquire of that key in this process waits until they had time to
//! acquire. Calls that do not wait ignore the deadline.
//!
//! - A deadline only delays an acquire; it never refuses one.
//! - The number of channels does not grow without an end: each is forgotten some time after its
//!   last deadline.
//!
//! Tests: below; `src/tests/engine/wake_up.rs`, `release_with_foreign_receivers_yields_to_others`.
//!
//! | state of a channel | stored as          | ends by                                          |
//! |--------------------|--------------------|--------------------------------------------------|
//! | yielded            | `Some(…)`          | a release without other receivers; forgotten     |
//! | not yielded        | `None`             | a release with other receivers; forgotten        |
//! | unknown            | no entry           | a release with other receivers                   |

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::protocol::key::Channel;
use crate::random::HashMap;

/// A channel is forgotten at the earliest when its deadline has passed for this long.
const FORGET_AFTER: Duration = Duration::from_secs(10);

/// The largest number of channels that are checked when a deadline is set. It is more than one, the
/// number of channels that this adds, so that their number shrinks.
const MAX_CHECKED: usize = 2;

/// The deadlines of the channels on which other processes have received a message.
pub(super) struct YieldDeadlines {
    /// `None` if the last release had no other receivers. Such a channel stays until it is checked.
    deadlines: HashMap<Channel, Option<Yield>>,
    /// Each channel once, with the time of its next check, in the order of these times.
    queue: VecDeque<(Instant, Channel)>,
    /// The number of deadlines that are not `None`.
    count: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Yield {
    deadline: Instant,
    /// The time that others have after a release.
    time: Duration,
}

impl YieldDeadlines {
    pub(super) fn new() -> YieldDeadlines {
        YieldDeadlines {
            deadlines: HashMap::default(),
            queue: VecDeque::new(),
            count: 0,
        }
    }

    /// Returns the number of channels with a deadline.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Returns the deadline of a channel, which may have passed.
    pub(super) fn deadline(&self, channel: &str) -> Option<Instant> {
        let of = self.deadlines.get(channel).copied().flatten();
        of.map(|of| of.deadline)
    }

    /// Sets the deadline of a channel to `time` after `now`. First checks up to [`MAX_CHECKED`]
    /// channels whether they can be forgotten, so that no release checks them all.
    pub(super) fn set(&mut self, channel: &Channel, time: Duration, now: Instant) {
        self.forget_some(now);
        let deadline = now + time;
        let of = Some(Yield { deadline, time });
        match self.deadlines.insert(Arc::clone(channel), of) {
            Some(Some(_)) => {}
            Some(None) => self.count += 1,
            None => {
                self.count += 1;
                self.queue
                    .push_back((now + FORGET_AFTER, Arc::clone(channel)));
            }
        }
    }

    /// Sets the deadline of a channel again, if it has one, because a release begins at `now`.
    pub(super) fn extend(&mut self, channel: &str, now: Instant) {
        if let Some(Some(of)) = self.deadlines.get_mut(channel) {
            of.deadline = now + of.time;
        }
    }

    /// Removes the deadline of a channel. The channel is forgotten at its next check.
    pub(super) fn remove(&mut self, channel: &str) {
        if let Some(deadline) = self.deadlines.get_mut(channel)
            && deadline.take().is_some()
        {
            self.count -= 1;
        }
    }

    /// Checks up to [`MAX_CHECKED`] channels, and forgets those without a deadline in the last
    /// [`FORGET_AFTER`].
    fn forget_some(&mut self, now: Instant) {
        for _ in 0..MAX_CHECKED {
            if self.queue.front().is_none_or(|(due, _)| *due > now) {
                return;
            }
            let Some((_, channel)) = self.queue.pop_front() else {
                return;
            };
            match self.deadline(&channel) {
                Some(deadline) if now < deadline + FORGET_AFTER => {
                    self.queue.push_back((now + FORGET_AFTER, channel));
                }
                deadline => {
                    self.count -= usize::from(deadline.is_some());
                    self.deadlines.remove(&channel);
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
    fn deadlines_that_have_passed_are_forgotten_a_few_per_release() {
        let mut all = YieldDeadlines::new();
        let start = clock::now();
        let name = |n: u32| Channel::from(format!("x{n}"));
        for n in 0..100 {
            all.set(&name(n), Duration::ZERO, start);
            all.set(&name(n), Duration::ZERO, start);
            all.remove("x7");
        }
        assert_eq!(
            (all.count(), all.deadlines.len(), all.queue.len()),
            (99, 100, 100)
        );
        assert_eq!(
            (all.deadline("x8"), all.deadline("x7")),
            (Some(start), None)
        );
        let later = start + 2 * FORGET_AFTER;
        all.extend("x1", later);
        // Each release forgets two at most.
        all.set(&name(1000), Duration::ZERO, later);
        assert_eq!((all.count(), all.deadlines.len()), (99, 100));
        for n in 0..100 {
            all.set(&name(n % 2), Duration::ZERO, later);
        }
        assert_eq!(
            (all.count(), all.deadlines.len(), all.queue.len()),
            (3, 3, 3)
        );
    }
}
