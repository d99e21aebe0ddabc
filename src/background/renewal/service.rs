//! Renewal as its callers see it: register a lease, unregister it, stop.
//!
//! A call never blocks on a node and never runs a renewal itself: the thread of
//! `renewal/worker.rs` does.
//!
//! Tests: `src/tests/engine/loss.rs`, `notice.rs` (checks).

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::background::renewal::queue::{NAME, RenewalEntry, RenewalQueue, RenewalResults};
use crate::background::renewal::worker::RenewalWorker;
use crate::error::error::Error;
use crate::protocol::lease::Lease;
use crate::protocol::ttl::Ttl;
use crate::sync::threads::LazyThread;
use crate::time::{clock, deadline};
use crate::transport::node_group::NodeGroup;

/// The leases that are renewed, and the renewal thread, started by the first of them.
pub(crate) struct RenewalService {
    queue: Arc<RenewalQueue>,
    nodes: Arc<NodeGroup>,
    node_timeout: Duration,
    results: Arc<dyn RenewalResults>,
    thread: LazyThread,
}

impl RenewalService {
    pub(crate) fn new(
        nodes: &Arc<NodeGroup>,
        node_timeout: Duration,
        results: Arc<dyn RenewalResults>,
    ) -> RenewalService {
        RenewalService {
            queue: Arc::new(RenewalQueue::new()),
            nodes: Arc::clone(nodes),
            node_timeout,
            results,
            thread: LazyThread::new(NAME),
        }
    }

    /// Renews a lease from now on, at most for `max_renewal` (`None`: no limit). Does not block.
    ///
    /// # Errors
    /// - `System` if the operating system refuses the thread.
    pub(crate) fn register(
        &self,
        lease: &Arc<Lease>,
        ttl: Ttl,
        max_renewal: Option<Duration>,
    ) -> Result<(), Error> {
        self.start_thread()?;
        let now = clock::now();
        let entry = RenewalEntry {
            renew_until: max_renewal.and_then(|max| deadline::deadline(now, max)),
            ..RenewalEntry::new(lease, ttl)
        };
        let due = now + entry.interval();
        let mut state = self.queue.state.lock();
        let first = state.timers.peek().map(|(due, _)| due);
        state.timers.insert(lease.token().id(), due, entry);
        drop(state); // unlock before waking
        if first.is_none_or(|first| due < first) {
            self.queue.changed.notify_one();
        }
        Ok(())
    }

    /// Asks the nodes at once whether they have the token of a lease: by its renewal, or by one
    /// extension that does not move its expiry. Does not block.
    ///
    /// # Errors
    /// - `System` if the operating system refuses the thread.
    pub(crate) fn check(&self, lease: &Arc<Lease>) -> Result<(), Error> {
        self.start_thread()?;
        let (id, now) = (lease.token().id(), clock::now());
        let mut state = self.queue.state.lock();
        if let Some(entry) = state.in_flight.get_mut(&id) {
            // The nodes may have served that request before the notice was published.
            entry.checks_again = true;
            return Ok(());
        }
        let Some(entry) = state.timers.remove(id).or_else(|| check_of(lease, now)) else {
            return Ok(());
        };
        state.timers.insert(id, now, entry);
        drop(state); // unlock before waking
        self.queue.changed.notify_one();
        Ok(())
    }

    fn start_thread(&self) -> Result<(), Error> {
        self.thread.start(|| {
            let (nodes, results) = (Arc::clone(&self.nodes), Arc::clone(&self.results));
            let mut worker = RenewalWorker::new(&self.queue, nodes, self.node_timeout, results);
            move || worker.run()
        })
    }

    /// Stops renewing a lease. A renewal in flight may still extend it.
    pub(crate) fn unregister(&self, lease: &Lease) {
        if self.thread.is_started() {
            let id = lease.token().id();
            let mut state = self.queue.state.lock();
            let entries = (state.timers.remove(id), state.in_flight.remove(&id));
            drop(state); // unlock before the lease is dropped
            drop(entries);
        }
    }

    /// Returns the number of leases that are renewed.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn count(&self) -> usize {
        let state = self.queue.state.lock();
        state.timers.len() + state.in_flight.len()
    }

    /// Returns whether an entry is in flight or due.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn is_busy(&self) -> bool {
        let (state, now) = (self.queue.state.lock(), clock::now());
        let first = state.timers.peek();
        !state.in_flight.is_empty() || first.is_some_and(|(due, _)| due <= now)
    }

    /// Tells the thread to end. Does not block.
    pub(crate) fn stop(&self) {
        self.queue.state.lock().stopping = true;
        self.queue.changed.notify_one();
    }

    /// Blocks until the thread has ended, at most until `end`. Returns `false` if it still runs.
    pub(crate) fn join_until(&self, end: Instant) -> bool {
        self.thread.join_until(end)
    }
}

/// Returns the entry that checks a lease without renewing it. `None` if the nodes do not have the
/// lease, or if it ends in a moment.
fn check_of(lease: &Arc<Lease>, now: Instant) -> Option<RenewalEntry> {
    let left = lease.expiry(now)?.saturating_duration_since(now);
    let entry = RenewalEntry::new(lease, Ttl::parse(left, 0.0).ok()?);
    Some(RenewalEntry {
        is_check: true,
        ..entry
    })
}
