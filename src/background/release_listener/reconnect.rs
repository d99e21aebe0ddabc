//! When the release listener may connect to a node again after a failure.
//!
//! Pure: the time is passed in.
//!
//! - After a failure the delay counts from the failure, so that a node that does not answer is
//!   passed over. It is [`RECONNECT_DELAY`] at first, and doubles with each failure in a row, up to
//!   [`MAX_DOUBLINGS`] times.
//! - After the end of a confirmed connection the delay counts from its start, so it has mostly
//!   passed: the node may have closed all connections, by `CLIENT KILL` or a balancer.
//! - A node is never given up: every delay ends.

use std::time::{Duration, Instant};

/// The delay after the first failure of a node.
pub(super) const RECONNECT_DELAY: Duration =
    Duration::from_millis(if cfg!(test) { 20 } else { 500 });

/// The largest number of times that the delay doubles.
const MAX_DOUBLINGS: u32 = 6;

/// The delays of all nodes.
pub(super) struct ReconnectDelays {
    nodes: Vec<NodeDelay>,
}

#[derive(Clone, Copy, Default)]
struct NodeDelay {
    /// Failures in a row.
    failures: u32,
    until: Option<Instant>,
}

impl ReconnectDelays {
    pub(super) fn new(nodes: usize) -> ReconnectDelays {
        ReconnectDelays {
            nodes: vec![NodeDelay::default(); nodes],
        }
    }

    /// Records at `now` that a connect failed, or that the node has stopped answering. Returns
    /// whether it is the first failure in a row.
    pub(super) fn record_failure(&mut self, node: usize, now: Instant) -> bool {
        let node = &mut self.nodes[node];
        node.until = Some(now + delay(node.failures));
        node.failures = node.failures.saturating_add(1);
        node.failures == 1
    }

    /// Records that a connection was closed that began at `start` and on which the node had
    /// confirmed the subscription. It ends a row of failures.
    pub(super) fn record_end(&mut self, node: usize, start: Instant) {
        self.nodes[node] = NodeDelay {
            failures: 0,
            until: Some(start + RECONNECT_DELAY),
        };
    }

    /// Returns whether the listener must not connect to the node yet.
    pub(super) fn is_delayed(&self, node: usize, now: Instant) -> bool {
        self.nodes[node].until.is_some_and(|until| now < until)
    }
}

fn delay(failures: u32) -> Duration {
    RECONNECT_DELAY * (1 << failures.min(MAX_DOUBLINGS))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::time::clock;

    #[test]
    fn delay_doubles_with_each_failure_in_a_row() {
        let (start, mut delays) = (clock::now(), ReconnectDelays::new(2));
        let mut now = start;
        for doubled in [0, 1, 2, 3, 4, 5, 6, 6, 6] {
            assert!(!delays.is_delayed(0, now));
            assert_eq!(delays.record_failure(0, now), now == start);
            let end = now + RECONNECT_DELAY * (1 << doubled);
            assert!(delays.is_delayed(0, end - Duration::from_micros(1)));
            assert!(!delays.is_delayed(0, end) && !delays.is_delayed(1, now));
            now = end;
        }
        delays.record_end(0, now);
        assert!(delays.is_delayed(0, now) && !delays.is_delayed(0, now + RECONNECT_DELAY));
        assert!(delays.record_failure(0, now), "it had been confirmed");
    }
}
