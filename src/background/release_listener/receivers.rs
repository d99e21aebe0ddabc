//! Records the receivers of the messages of our releases. If other processes are among them, this
//! one yields to them.
//!
//! This only delays an acquire of this process, and no call that does not wait. A receiver count
//! that is missing or wrong costs other processes one chance to acquire, and no more.
//!
//! Tests: beside `yielding.rs`; `src/tests/engine/wake_up.rs`.

use std::time::Duration;

use crate::background::release_listener::shared::ListenerShared;
use crate::protocol::key_set::KeySet;
use crate::random;
use crate::sync::atomic::Ordering;
use crate::time::clock;
use crate::transport::round::RoundOutcome;

impl ListenerShared {
    /// Records how many subscribers received the message of a release of ours, per node. If other
    /// processes are among them, this process yields the keys to them from now on.
    ///
    /// For a lock of several keys a node reports the greatest number of its keys only, so the
    /// others are yielded as well.
    pub(super) fn record_receivers(
        &self,
        keys: &KeySet,
        receivers: &[(usize, u64)],
        woke_next: bool,
    ) {
        let has_deadlines = self.yield_count.load(Ordering::Acquire) > 0;
        if receivers.is_empty() && !has_deadlines {
            return;
        }
        let mut state = self.state.lock();
        for key in keys.as_slice() {
            let channel = key.channel();
            // Our own listener is one of the receivers on its node.
            let is_ours = state.subscriptions.is_confirmed(&channel);
            let our_node = state.node.filter(|_| is_ours);
            let has_others = woke_next
                || receivers
                    .iter()
                    .any(|(node, count)| *count > u64::from(our_node == Some(*node)));
            if has_others {
                let time = match woke_next {
                    true => self.check_unit(),
                    false => self.new_yield_time(),
                };
                state.yields.set(&channel, time, clock::now());
            } else {
                state.yields.remove(&channel);
            }
        }
        let count = state.yields.count();
        self.yield_count.store(count, Ordering::Release);
    }

    /// Records the receivers of a release that a quorum has replied to. Without the reply of the
    /// first voting node, which all listeners use, the former result stays.
    pub(super) fn record_release(&self, keys: &KeySet, release: &RoundOutcome) {
        let replied = release.tally.granted().union(release.tally.refused());
        let first = self.nodes.first_voting_node();
        if release.receivers().is_empty() && first.is_some_and(|node| !replied.contains(node)) {
            return;
        }
        self.record_receivers(keys, release.receivers(), release.woke_next());
    }

    /// Records that the message of a release had no receivers on a node. Only the first voting node
    /// counts, because all listeners use it.
    pub(super) fn record_no_receivers(&self, keys: &KeySet, node: usize) {
        if self.nodes.first_voting_node() == Some(node) {
            self.record_receivers(keys, &[], false);
        }
    }

    /// Returns the time of two to four round trips, drawn at random.
    fn new_yield_time(&self) -> Duration {
        (2 * self.nodes.rtt_estimate()).mul_f64(1.0 + random::unit())
    }
}
