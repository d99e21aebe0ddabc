//! On which nodes the key of a lease may still exist (S4, L3).
//!
//! The connections record what they send for a lease and what becomes of it. A node is left out of
//! a release only if the key cannot exist there: every doubt counts as "may exist".
//!
//! Tests: in this file; `src/tests/engine/leftovers.rs`, `pending.rs` (L3).

use std::time::{Duration, Instant};

use crate::protocol::lease::Lease;
use crate::protocol::node_set::NodeSet;
use crate::protocol::validity;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::time::clock;
use crate::time::clock::whole_micros;

impl Lease {
    /// Records the nodes whose connections get a granting request next.
    pub(crate) fn record_contacted(&self, nodes: NodeSet) {
        self.contacted.fetch_or(nodes.bits(), Ordering::AcqRel);
    }

    /// Returns the nodes whose connections got a granting request.
    /// [`may_exist`](Lease::may_exist) says whether the request can have left a key.
    pub(crate) fn contacted(&self) -> NodeSet {
        NodeSet::from_bits(self.contacted.load(Ordering::Acquire))
    }

    /// Records that a request which can create the key for `ttl` is about to be written to a node.
    pub(crate) fn record_sent(&self, node: usize, now: Instant, ttl: Duration) {
        self.record_extension_sent(now, ttl);
        let bit = NodeSet::single(node).bits();
        // The reply finds it set.
        if self.written.load(Ordering::Acquire) & bit == 0 {
            self.written.fetch_or(bit, Ordering::AcqRel);
        }
    }

    /// Records that a request which can extend the key by `ttl` is about to be written to a node.
    pub(crate) fn record_extension_sent(&self, now: Instant, ttl: Duration) {
        let lifetime = max_lifetime(ttl);
        raise(&self.max_ttl, lifetime);
        self.record_may_exist(now, lifetime);
    }

    fn record_may_exist(&self, now: Instant, lifetime: u64) {
        let until = clock::to_micros(now).saturating_add(lifetime);
        if self.exists_until.load(Ordering::Acquire) < until {
            let until = until.saturating_add(EXISTS_SLACK_US);
            self.exists_until.fetch_max(until, Ordering::AcqRel);
        }
    }

    /// Records that the node's only granting request was refused or did not run.
    pub(crate) fn record_not_granted(&self, node: usize) {
        self.written
            .fetch_and(!NodeSet::single(node).bits(), Ordering::AcqRel);
    }

    /// Records that the connection broke before the reply to a granting request, so the node may
    /// run the request at any later time.
    pub(crate) fn record_unanswered(&self, node: usize) {
        self.unanswered
            .fetch_or(NodeSet::single(node).bits(), Ordering::AcqRel);
    }

    /// Records at `now` that the former connection was killed. The node runs none of its requests
    /// later, but may have run one just before.
    pub(crate) fn record_killed(&self, node: usize, now: Instant) {
        let bit = NodeSet::single(node).bits();
        if self.unanswered.load(Ordering::Acquire) & bit != 0 {
            self.record_may_exist(now, self.max_ttl.load(Ordering::Acquire));
            self.unanswered.fetch_and(!bit, Ordering::AcqRel);
        }
    }

    /// Records that an extension has no reply. It may run as late as the key exists, and prolong it
    /// from then on by `ttl`.
    pub(crate) fn record_unanswered_extension(&self, ttl: Duration) {
        let lifetime = max_lifetime(ttl);
        let later = |until: u64| Some(until.saturating_add(lifetime));
        // `later` never returns `None`, so this never fails.
        let _ = self
            .exists_until
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, later);
    }

    /// Returns whether the key may still exist on a node; if not, it needs no release there (S4).
    pub(crate) fn may_exist(&self, node: usize, now: Instant) -> bool {
        let contains =
            |nodes: &AtomicU64| NodeSet::from_bits(nodes.load(Ordering::Acquire)).contains(node);
        let is_alive = || clock::to_micros(now) <= self.exists_until.load(Ordering::Acquire);
        contains(&self.written) && (contains(&self.unanswered) || is_alive())
    }
}

/// Added to the time at which a key expires, in µs, so that most records of one round find the time
/// late enough: each write takes the lease from the cache of the other threads.
const EXISTS_SLACK_US: u64 = 1_000;

/// Returns how long a key with this TTL can exist by our clock, in µs: the TTL and the drift.
fn max_lifetime(ttl: Duration) -> u64 {
    validity::lifetime_us(whole_micros(ttl))
}

/// Raises an atomic to `value` unless it is greater. Reads first, because a read costs less than a
/// write that changes nothing.
fn raise(atomic: &AtomicU64, value: u64) {
    if atomic.load(Ordering::Acquire) < value {
        atomic.fetch_max(value, Ordering::AcqRel);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use crate::protocol::node_set::NodeSet;
    use crate::tests::fixtures::lease;
    use crate::time::clock;

    const SECOND: Duration = Duration::from_secs(1);
    const NODE: usize = 1;
    /// The drift, the slack and a ms more.
    const LATER: Duration = Duration::from_millis(14);

    #[test]
    fn key_may_exist_until_the_last_sent_ttl_is_over() {
        let now = clock::now();
        let lease = lease("x");
        assert!(!lease.may_exist(NODE, now), "nothing was written");
        lease.record_sent(NODE, now, SECOND);
        lease.record_sent(NODE, now, SECOND / 2);
        assert!(lease.may_exist(NODE, now + SECOND));
        assert!(!lease.may_exist(NODE, now + SECOND + LATER));
    }

    #[test]
    fn key_never_exists_on_a_node_without_a_granting_request() {
        let now = clock::now();
        let lease = lease("x");
        lease.record_contacted(NodeSet::all(3));
        lease.record_sent(NODE, now, SECOND);
        lease.record_unanswered(NODE);
        let may_exist = [0, 1, 2].map(|node| lease.may_exist(node, now));
        assert_eq!(may_exist, [false, true, false]);
        lease.record_not_granted(NODE);
        assert!(!lease.may_exist(NODE, now));
    }

    #[test]
    fn unanswered_request_may_run_until_its_connection_is_killed() {
        let now = clock::now();
        let lease = lease("x");
        lease.record_sent(NODE, now, SECOND);
        lease.record_unanswered(NODE);
        assert!(lease.may_exist(NODE, now + 1_000 * SECOND));
        let killed = now + 10 * SECOND;
        lease.record_killed(0, killed + SECOND);
        assert!(
            lease.may_exist(NODE, now + 1_000 * SECOND),
            "another node's"
        );
        lease.record_killed(NODE, killed);
        lease.record_killed(NODE, killed + 10 * SECOND);
        assert!(lease.may_exist(NODE, killed + SECOND));
        assert!(!lease.may_exist(NODE, killed + SECOND + LATER));
    }

    #[test]
    fn unanswered_extension_may_run_at_the_end_of_the_key() {
        let now = clock::now();
        let lease = lease("x");
        lease.record_sent(NODE, now, SECOND);
        lease.record_unanswered_extension(SECOND);
        assert!(lease.may_exist(NODE, now + 2 * SECOND));
        assert!(!lease.may_exist(NODE, now + 2 * SECOND + 2 * LATER));
    }
}
