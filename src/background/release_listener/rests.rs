//! Which nodes are not asked for wake-ups at present, since listening to them has failed.

use std::time::{Duration, Instant};

/// The pauses of all nodes.
pub(crate) struct Rests {
    nodes: Vec<Rest>,
}

#[derive(Clone, Copy, Default)]
struct Rest {
    /// How often in a row listening has failed.
    failures: u32,
    until: Option<Instant>,
}

impl Rests {
    pub(crate) fn new(nodes: usize) -> Rests {
        Rests {
            nodes: vec![Rest::default(); nodes],
        }
    }

    /// Listening to a node, from `began` on, has failed `now`. Returns whether it is the first time in a row: a connection that
    /// stood for longer than the pause before it was a good one.
    pub(crate) fn fail(&mut self, node: usize, began: Instant, now: Instant) -> bool {
        let rest = &mut self.nodes[node];
        if now.saturating_duration_since(began) > pause(rest.failures) {
            rest.failures = 0;
        }
        rest.until = Some(now + pause(rest.failures));
        rest.failures = rest.failures.saturating_add(1);
        rest.failures == 1
    }

    pub(crate) fn is_resting(&self, node: usize, now: Instant) -> bool {
        self.nodes[node].until.is_some_and(|until| now < until)
    }
}

fn pause(failures: u32) -> Duration {
    RECONNECT_DELAY * (1 << failures.min(MAX_DOUBLINGS))
}

/// The first pause of a node after a connection that failed; it is doubled so many times.
pub(crate) const RECONNECT_DELAY: Duration =
    Duration::from_millis(if cfg!(test) { 20 } else { 500 });

pub(crate) const MAX_DOUBLINGS: u32 = 6;

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::background::release_listener::rests::{MAX_DOUBLINGS, RECONNECT_DELAY};
    use crate::time::clock;

    #[test]
    fn a_node_rests_longer_after_each_failure_in_a_row() {
        let (start, mut rests) = (clock::now(), Rests::new(2));
        let mut now = start;
        for doubled in [0, 1, 2, 3, 4, 5, 6, 6, 6] {
            assert!(!rests.is_resting(0, now));
            assert_eq!(rests.fail(0, now, now), now == start);
            let end = now + RECONNECT_DELAY * (1 << doubled);
            assert!(rests.is_resting(0, end - Duration::from_micros(1)));
            assert!(!rests.is_resting(0, end) && !rests.is_resting(1, now));
            now = end;
        }
        let later = now + 2 * RECONNECT_DELAY * (1 << MAX_DOUBLINGS);
        assert!(rests.fail(0, now, later), "it had been a good one");
        assert!(!rests.is_resting(0, later + RECONNECT_DELAY));
    }
}
