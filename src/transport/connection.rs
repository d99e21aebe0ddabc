//! The callers' side of a node connection: queues a request for its worker, or sends it directly.
//!
//! - No method blocks: callers only try to lock the pipeline, which the worker locks during I/O.
//! - A direct send never passes a queued request, so requests keep their order (S4).
//! - A node is *suspect* while its connection is down, or while a reply is overdue. Then only a
//!   release of a key that the node may have is queued, so an outage leaves no other requests (L3).
//!
//! Tests: `src/tests/transport/connection.rs`.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::node_failure::NodeFailure;
use crate::protocol::node_set::NodeSet;
use crate::protocol::request::Op;
use crate::sync::atomic::Ordering;
use crate::sync::channel;
use crate::sync::channel::{Receiver, Sender};
use crate::sync::primitives::Mutex;
use crate::telemetry::stats::NodeCounters;
use crate::time::clock;
use crate::transport::job::Job;
use crate::transport::messages::{NodeConfig, Submitted, WorkerMessage};
use crate::transport::pipeline::{Pipeline, worker_stopped};
use crate::transport::registry::NodeRegistry;
use crate::transport::status::{ConnectionStatus, StatusReport};

/// The callers' end of a node connection.
pub(crate) struct NodeConnection {
    queue: Sender<WorkerMessage>,
    pipeline: Arc<Mutex<Pipeline>>,
    status: Arc<ConnectionStatus>,
}

/// The worker's end of a node connection.
pub(crate) struct WorkerEnd {
    pub(crate) node: usize,
    pub(crate) queue: Receiver<WorkerMessage>,
    pub(crate) pipeline: Arc<Mutex<Pipeline>>,
}

impl NodeConnection {
    /// Returns both ends of a connection that is not up yet.
    pub(crate) fn new(
        node: usize,
        config: &NodeConfig,
        registry: &Arc<NodeRegistry>,
    ) -> (NodeConnection, WorkerEnd) {
        let (sender, queue) = channel::unbounded();
        let status = Arc::new(ConnectionStatus::new());
        let pipeline = Pipeline::new(node, config, Arc::clone(&status), Arc::clone(registry));
        let pipeline = Arc::new(Mutex::new(pipeline));
        let connection = NodeConnection {
            queue: sender,
            pipeline: Arc::clone(&pipeline),
            status,
        };
        let end = WorkerEnd {
            node,
            queue,
            pipeline,
        };
        (connection, end)
    }

    /// Queues many jobs for the worker.
    ///
    /// # Errors
    /// The cause if the node is suspect. No job is then queued.
    pub(super) fn submit_all(&self, jobs: Vec<Job>, now: Instant) -> Result<(), NodeFailure> {
        match self.unavailable(now) {
            Some(cause) => Err(cause),
            None if self.enqueue(WorkerMessage::Jobs(jobs)) => Ok(()),
            None => Err(worker_stopped()),
        }
    }

    /// Sends a message to the worker. Returns `false` if the worker has ended.
    fn enqueue(&self, message: WorkerMessage) -> bool {
        // Counted before it is sent, because a caller that reads 0 sends directly: no message may
        // then be in the queue.
        self.status.queue_len.fetch_add(1, Ordering::SeqCst);
        self.queue.send(message).is_ok()
    }

    /// Sends a job on this connection of `node`: directly, if `bytes` (the encoded request) are
    /// given, the connection is up and its queue is empty; otherwise through the queue. After a
    /// direct send the caller must [`poll`](NodeConnection::poll) for the reply.
    ///
    /// # Errors
    /// The cause if the node is suspect. A release of a lease that the node was asked to grant is
    /// queued all the same.
    pub(crate) fn send(
        &self,
        node: usize,
        job: Job,
        bytes: Option<&[u8]>,
        now: Instant,
    ) -> Result<Submitted, NodeFailure> {
        let request = &job.request;
        if let Some(cause) = self.unavailable(now) {
            if request.op == Op::Release && request.lease.contacted().contains(node) {
                self.enqueue(WorkerMessage::Job(job));
            }
            return Err(cause);
        }
        // Recorded before the request is sent, because a lease that is abandoned in between must be
        // released on this node, too (S4). If the connection ends in between, the worker rejects
        // the job.
        if request.op.grants() {
            for lease in request.written_leases() {
                lease.record_contacted(NodeSet::single(node));
            }
        }
        let direct = bytes.and_then(|bytes| Some((bytes, self.pipeline.try_lock()?)));
        let job = match direct {
            Some((bytes, mut pipeline)) if self.is_idle() => {
                match pipeline.send_direct(job, bytes, now) {
                    Ok(wake_worker) => return Ok(Submitted::Sent { wake_worker }),
                    Err(job) => job,
                }
            }
            _ => job,
        };
        match self.enqueue(WorkerMessage::Job(job)) {
            true => Ok(Submitted::Queued),
            false => Err(worker_stopped()),
        }
    }

    /// Returns whether the connection is up and its queue is empty.
    ///
    /// Call it with the pipeline locked: the worker serves its messages under that lock.
    fn is_idle(&self) -> bool {
        self.status.queue_len.load(Ordering::SeqCst) == 0 && self.status.up.load(Ordering::Acquire)
    }

    /// Reads the replies to direct sends that have arrived, unless another thread has locked the
    /// pipeline. Returns `false` if the caller must wake the worker, because the connection failed
    /// or a release has become pending.
    pub(crate) fn poll(&self) -> bool {
        let pipeline = self.pipeline.try_lock();
        !pipeline.is_some_and(|mut pipeline| pipeline.poll_replies())
    }

    /// Makes the worker wait for the replies to direct sends.
    pub(crate) fn wake_worker(&self) {
        self.enqueue(WorkerMessage::Poll);
    }

    /// Makes the worker wait for the replies to direct sends, if some are outstanding or another
    /// thread has locked the pipeline.
    pub(super) fn wake_worker_if_in_flight(&self) {
        let pipeline = self.pipeline.try_lock();
        if pipeline.is_none_or(|pipeline| pipeline.has_in_flight()) {
            self.wake_worker();
        }
    }

    /// Returns why the node is suspect; `None` if it is not.
    pub(crate) fn unavailable(&self, now: Instant) -> Option<NodeFailure> {
        if !self.status.up.load(Ordering::Acquire) {
            return Some(self.status.report.lock().cause.clone());
        }
        self.status.is_overdue(now).then_some(NodeFailure::TimedOut)
    }

    /// Returns whether the connection is up and no reply is overdue.
    pub(crate) fn is_up(&self, now: Instant) -> bool {
        self.status.up.load(Ordering::Acquire) && !self.status.is_overdue(now)
    }

    /// Returns since when a reply is overdue; `None` if none is.
    pub(crate) fn overdue(&self, now: Instant) -> Option<Instant> {
        let overdue_at = self.status.overdue_at.load(Ordering::Acquire);
        let overdue_at = Some(overdue_at).filter(|at| clock::to_micros(now) > *at);
        overdue_at.and_then(clock::from_micros)
    }

    /// Returns for how long the node does not vote on new locks; zero if it votes.
    pub(crate) fn quarantine(&self, now: Instant) -> Duration {
        self.status.quarantine(now)
    }

    pub(crate) fn counters(&self) -> &NodeCounters {
        &self.status.counters
    }

    /// Returns whether the worker has something to send: it is connected, or has messages or
    /// pending releases.
    pub(crate) fn has_duties(&self) -> bool {
        self.status.up.load(Ordering::Acquire) || self.waiting() > 0
    }

    /// Returns the number of queued messages and pending releases.
    pub(crate) fn waiting(&self) -> u64 {
        let pending = self.status.pending.load(Ordering::Acquire) as u64;
        self.status.queue_len.load(Ordering::SeqCst) + pending
    }

    pub(crate) fn report(&self) -> StatusReport {
        self.status.report.lock().clone()
    }

    /// Makes the worker connect for the first time.
    pub(crate) fn start(&self) {
        // Fails only if the thread is gone, which `WorkerPool::spawn` would have reported.
        self.enqueue(WorkerMessage::Start);
    }

    /// Makes the worker end when it has served the jobs that are queued by now.
    pub(crate) fn stop(&self) {
        self.enqueue(WorkerMessage::Stop);
    }
}

impl fmt::Debug for NodeConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeConnection")
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}
