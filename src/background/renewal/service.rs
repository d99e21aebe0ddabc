//! The clock after a lock: one thread that extends all leases of a `Nodes` that are to be renewed.
//!
//! It never blocks on a round: due renewals go into the lanes together, answers are collected as they come. A lease is
//! tried for the first time at a third of its TTL, and after a failure again and again, with back-off, until it ends. Only a
//! quorum that says "not yours", or the clock, makes it lost (rules S5, S7).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::background::renewal::queue::{
    NAME, OnLeaseLost, RenewalEntry, RenewalQueue, RenewalQueueState,
};
use crate::background::renewal::worker::RenewalWorker;
use crate::error::Error;
use crate::protocol::lease::Lease;
use crate::protocol::ttl::Ttl;
use crate::sync::threads::BackgroundThread;
use crate::time::timer_queue::TimerQueue;
use crate::time::{clock, deadline};
use crate::transport::node_group::NodeGroup;

/// The leases that are renewed, and their thread once there is one.
pub(crate) struct RenewalService {
    desk: Arc<RenewalQueue>,
    nodes: Arc<NodeGroup>,
    node_timeout: Duration,
    lost: OnLeaseLost,
    started: AtomicBool,
    thread: Mutex<Option<BackgroundThread>>,
}

impl RenewalService {
    pub(crate) fn new(
        nodes: &Arc<NodeGroup>,
        node_timeout: Duration,
        lost: OnLeaseLost,
    ) -> RenewalService {
        RenewalService {
            desk: Arc::new(RenewalQueue {
                state: Mutex::new(RenewalQueueState {
                    agenda: TimerQueue::new(),
                    open: HashMap::new(),
                    arrived: Vec::new(),
                    wanted: 0,
                    stopping: false,
                }),
                changed: Condvar::new(),
            }),
            nodes: Arc::clone(nodes),
            node_timeout,
            lost,
            started: AtomicBool::new(false),
            thread: Mutex::new(None),
        }
    }

    /// From now on a lease is renewed, for `most` at the longest.
    ///
    /// # Errors
    /// `System` when there is no thread to be had.
    pub(crate) fn register(
        &self,
        lease: &Arc<Lease>,
        ttl: Ttl,
        most: Option<Duration>,
    ) -> Result<(), Error> {
        if !self.started.load(Ordering::Acquire) {
            self.start()?;
        }
        let now = clock::now();
        let renewed = RenewalEntry {
            lease: Arc::clone(lease),
            ttl,
            until: most.and_then(|most| deadline::deadline(now, most)),
            failures: 0,
        };
        let mut state = self.desk.state.lock();
        let first = state.agenda.peek().map(|(due, _)| due);
        let due = now + renewed.interval();
        state.agenda.insert(lease.token().id(), due, renewed);
        drop(state);
        if first.is_none_or(|first| due < first) {
            self.desk.changed.notify_one();
        }
        Ok(())
    }

    fn start(&self) -> Result<(), Error> {
        let mut thread = self.thread.lock();
        if thread.is_none() {
            let nodes = Arc::clone(&self.nodes);
            let lost = Arc::clone(&self.lost);
            let mut rounds = RenewalWorker::new(&self.desk, nodes, self.node_timeout, lost);
            *thread = Some(BackgroundThread::spawn(NAME, move || rounds.run())?);
            self.started.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// A lease is not renewed any more. A renewal that is on its way may still extend it.
    pub(crate) fn unregister(&self, lease: &Lease) {
        if self.started.load(Ordering::Acquire) {
            let id = lease.token().id();
            let mut state = self.desk.state.lock();
            let renewed = (state.agenda.remove(id), state.open.remove(&id));
            drop(state);
            drop(renewed);
        }
    }

    /// How many leases are renewed.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn count(&self) -> usize {
        let state = self.desk.state.lock();
        state.agenda.len() + state.open.len()
    }

    /// Lets the thread end.
    pub(crate) fn stop(&self) {
        self.desk.state.lock().stopping = true;
        self.desk.changed.notify_one();
    }

    /// Waits until the thread has ended, until `end`. `false` if it has not.
    pub(crate) fn await_end(&self, end: Instant) -> bool {
        let thread = self.thread.lock().take();
        thread.is_none_or(|thread| thread.join_until(end))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    #![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

    use super::*;
    use crate::background::renewal::queue::RenewalEntry;
    use crate::protocol::lease::tests::lease;

    const TTL: Duration = Duration::from_secs(64);

    fn renewed(failures: u32) -> RenewalEntry {
        RenewalEntry {
            lease: lease("x"),
            ttl: Ttl::parse(TTL, 0.5).unwrap(),
            until: None,
            failures,
        }
    }

    #[test]
    fn renewals_are_a_third_of_the_ttl_apart_a_tenth_more_or_less() {
        let drawn: Vec<Duration> = (0..1000).map(|_| renewed(0).interval()).collect();
        let (third, least, most) = (TTL / 3, drawn.iter().min(), drawn.iter().max());
        let within = |part: f64, low: f64, high: f64| (low..=high).contains(&part);
        let parts = [least, most].map(|part| part.unwrap().as_secs_f64() / third.as_secs_f64());
        // Of a thousand some come near to both ends.
        assert!(within(parts[0], 0.9, 0.92), "{parts:?}");
        assert!(within(parts[1], 1.08, 1.1), "{parts:?}");
    }

    #[test]
    fn pauses_after_failures_double_up_to_an_eighth_of_the_ttl() {
        for (failures, whole) in [(0, 1), (1, 2), (2, 4), (3, 8), (4, 8), (u32::MAX, 8)] {
            let whole = Duration::from_secs(whole);
            let drawn: Vec<Duration> = (0..1000).map(|_| renewed(failures).pause()).collect();
            assert!(
                drawn
                    .iter()
                    .all(|pause| (whole / 2..=whole).contains(pause)),
                "after {failures}"
            );
            let (least, most) = (drawn.iter().min(), drawn.iter().max());
            let spread = *most.unwrap() - *least.unwrap();
            assert!(spread > whole / 4, "after {failures}: {spread:?}");
        }
    }
}
