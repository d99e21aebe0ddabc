//! A lane as its callers see it: a queue to one node, a seat at its desk for who finds nobody there, and whether that node answers
//! at present.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;

use crate::error::NodeFailure;
use crate::telemetry::stats::NodeCounters;
use crate::time::clock;
use crate::transport::job::Job;
use crate::transport::messages::{NodeConfig, Submitted, WorkerMessage};
use crate::transport::pipeline::Pipeline;
use crate::transport::registry::NodeRegistry;
use crate::transport::status::{ConnectionStatus, StatusReport};

/// A lane as its callers see it.
pub(crate) struct NodeConnection {
    jobs: Sender<WorkerMessage>,
    desk: Arc<Mutex<Pipeline>>,
    health: Arc<ConnectionStatus>,
}

impl NodeConnection {
    /// A lane that is not up yet, and the thread's end of it.
    pub(crate) fn new(
        node: usize,
        post: &NodeConfig,
        census: &Arc<NodeRegistry>,
    ) -> (
        NodeConnection,
        Receiver<WorkerMessage>,
        Arc<Mutex<Pipeline>>,
    ) {
        let (jobs, queue) = crossbeam_channel::unbounded();
        let health = Arc::new(ConnectionStatus::new());
        let desk = Arc::new(Mutex::new(Pipeline::new(
            node,
            &post.name,
            post.node_timeout,
            post.observer.clone(),
            Arc::clone(&health),
            Arc::clone(census),
        )));
        let lane = NodeConnection {
            jobs,
            desk: Arc::clone(&desk),
            health,
        };
        (lane, queue, desk)
    }

    /// Hands a job to the lane, unless the node is suspect: then the cause comes back at once, and nothing is
    /// queued but what is `owed`, a release of a key that the node may hold.
    pub(crate) fn submit(&self, job: Job, owed: bool, now: Instant) -> Result<(), NodeFailure> {
        let suspect = self.unavailable(now);
        let queued = if suspect.is_none() || owed {
            self.queue(WorkerMessage::Job(job))
        } else {
            false
        };
        match suspect {
            Some(cause) => Err(cause),
            None if queued => Ok(()),
            None => Err(worker_stopped()),
        }
    }

    /// Hands many jobs to the lane, none of them owed; the cause where it is suspect.
    pub(crate) fn submit_all(&self, jobs: Vec<Job>, now: Instant) -> Result<(), NodeFailure> {
        match self.unavailable(now) {
            Some(cause) => Err(cause),
            None if self.queue(WorkerMessage::Jobs(jobs)) => Ok(()),
            None => Err(worker_stopped()),
        }
    }

    /// `false` if the lane has ended.
    fn queue(&self, message: WorkerMessage) -> bool {
        // Before it is there, so that who sees nothing queued comes after nothing of ours.
        self.health.queue_len.fetch_add(1, Ordering::SeqCst);
        self.jobs.send(message).is_ok()
    }

    /// As [`submit`](NodeConnection::submit), but the job, whose request is `bytes` on the wire, is sent by this very thread if nobody is before it: then somebody has to
    /// [`poll`](NodeConnection::poll) for the answer.
    pub(crate) fn send_or_submit(
        &self,
        job: Job,
        bytes: &[u8],
        owed: bool,
        now: Instant,
    ) -> Result<Submitted, NodeFailure> {
        let job = match self.desk.try_lock() {
            Some(mut desk) if self.is_idle(now) => match desk.send_direct(job, bytes, now) {
                Ok(wake) => return Ok(Submitted::Sent { wake_worker: wake }),
                Err(job) => job,
            },
            _ => job,
        };
        self.submit(job, owed, now).map(|()| Submitted::Queued)
    }

    /// Whether it is up and nothing waits for its thread. Who asks has the desk, since the thread sees to what it takes out of
    /// the queue there.
    fn is_idle(&self, now: Instant) -> bool {
        self.health.queue_len.load(Ordering::SeqCst) == 0 && self.is_up(now)
    }

    /// Takes in the answers that have come to what callers have sent, unless somebody else is at it. `false` if the thread must be
    /// woken to see to the connection.
    pub(crate) fn poll(&self) -> bool {
        let desk = self.desk.try_lock();
        !desk.is_some_and(|mut desk| desk.poll_replies())
    }

    /// Lets the lane's thread wait for the answers.
    pub(crate) fn wake_worker(&self) {
        self.queue(WorkerMessage::Poll);
    }

    /// The same, unless it is certain that none is to come.
    pub(crate) fn wake_worker_if_in_flight(&self) {
        let desk = self.desk.try_lock();
        if desk.is_none_or(|desk| desk.has_in_flight()) {
            self.wake_worker();
        }
    }

    /// Why the node is not expected to answer, if it is not.
    pub(crate) fn unavailable(&self, now: Instant) -> Option<NodeFailure> {
        if !self.health.up.load(Ordering::Acquire) {
            return Some(self.health.report.lock().cause.clone());
        }
        (!self.is_up(now)).then_some(NodeFailure::TimedOut)
    }

    /// Whether the node is expected to answer.
    pub(crate) fn is_up(&self, now: Instant) -> bool {
        self.health.up.load(Ordering::Acquire)
            && clock::to_micros(now) <= self.health.overdue_at.load(Ordering::Acquire)
    }

    /// When the batch on the wire was overdue, if it is.
    pub(crate) fn overdue(&self, now: Instant) -> Option<Instant> {
        let overdue = self.health.overdue_at.load(Ordering::Acquire);
        let overdue = Some(overdue).filter(|overdue| clock::to_micros(now) > *overdue);
        overdue.and_then(clock::from_micros)
    }

    pub(crate) fn quarantine(&self, now: Instant) -> Duration {
        self.health.quarantine(now)
    }

    pub(crate) fn counters(&self) -> &NodeCounters {
        &self.health.counters
    }

    /// How many messages and pending releases wait for the node.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn waiting(&self) -> u64 {
        let pending = self.health.pending.load(Ordering::Acquire) as u64;
        self.health.queue_len.load(Ordering::SeqCst) + pending
    }

    pub(crate) fn report(&self) -> StatusReport {
        self.health.report.lock().clone()
    }

    pub(crate) fn start(&self) {
        // Fails only where the thread is gone, which `WorkerPool::spawn` would have noticed.
        self.queue(WorkerMessage::Start);
    }

    /// Lets the thread end when it has served what is queued by now.
    pub(crate) fn stop(&self) {
        self.queue(WorkerMessage::Stop);
    }
}

impl fmt::Debug for NodeConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lane")
            .field("health", &self.health)
            .finish_non_exhaustive()
    }
}

fn worker_stopped() -> NodeFailure {
    NodeFailure::Unreachable("the lane is stopped".into())
}
