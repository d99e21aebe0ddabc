//! The worker thread of a node connection: sends the queued requests in batches, and reads the
//! replies for which no caller polls. `worker_connect.rs` has the connects.
//!
//! - It never sends a request again that may have been executed, except a pending release.
//! - While its connection is down it keeps nothing but pending releases: every other job is
//!   rejected with the cause (L3).
//! - A panic in a session, a sink or a logger does not end it.
//!
//! Tests, for these rules in this order: `src/tests/transport/pipeline.rs`,
//! `broken_connection_fails_acquires_and_keeps_releases_pending`; `src/tests/engine/idle.rs`,
//! `round_on_connections_that_cannot_be_replaced_fails_with_the_cause_of_the_connect`;
//! `src/tests/engine/quorum.rs`, `worker_survives_a_panic_in_its_session` (a panic in the session
//! only). Else `src/tests/transport/worker.rs`, `connection.rs`, and `src/tests/engine/pending.rs`.
//!
//! The states of the worker (`status.rs` has the states that callers see):
//!
//! | state | leaves by |
//! |---|---|
//! | connecting | a handshake → up; a failure → down |
//! | up | the connection ends, is replaced or times out → connecting; `Stop` → ended |
//! | up after a retry | as up; the connection ends before any reply → down |
//! | down | the reconnect delay passes → connecting; `Stop` → ended |
//! | any | a panic → down |
//!
//! A reply that times out also marks the connection as down for its callers, and rejects all unsent
//! jobs. The next connect follows without a delay.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use log::{Level, debug, log, trace};

use crate::error::node_failure::NodeFailure;
use crate::random;
use crate::sync::atomic::Ordering;
use crate::sync::channel::{Receiver, RecvTimeoutError, Sender};
use crate::sync::primitives::{Mutex, MutexGuard};
use crate::sync::threads;
use crate::time::clock;
use crate::transport::connection::WorkerEnd;
use crate::transport::job::Job;
use crate::transport::messages::{ConnectEvent, NodeConfig, WorkerMessage};
use crate::transport::node::traits::{Connector, Handshake};
use crate::transport::pipeline::{Pipeline, panic_failure, worker_stopped};

/// How long after a direct send the worker leaves the reply to the caller, which may poll for it.
/// At most a quarter of `node_timeout`.
const POLL_INTERVAL: Duration = Duration::from_millis(2);
/// The bound of the delay after the first failed connect. It doubles with each further failure. The
/// delay is half to all of its bound, drawn at random.
const MIN_RECONNECT_DELAY: Duration = Duration::from_millis(50);
/// The largest bound of the delay between two connects.
const MAX_RECONNECT_DELAY: Duration = Duration::from_secs(2);

/// The worker of one node connection.
pub(crate) struct Worker {
    pub(super) node: usize,
    pub(super) name: String,
    pub(super) connector: Arc<dyn Connector>,
    /// As [`NodeConfig::restart_quarantine`].
    pub(super) restart_quarantine: Option<Duration>,
    /// As [`NodeConfig::reject_evicting`].
    pub(super) reject_evicting: bool,
    /// As [`NodeConfig::is_one_server`].
    pub(super) is_one_server: bool,
    pub(super) node_timeout: Duration,
    /// As [`NodeConfig::ping_interval`].
    ping_interval: Duration,
    /// [`POLL_INTERVAL`], or less for a short `node_timeout`.
    poll_interval: Duration,
    queue: Receiver<WorkerMessage>,
    pipeline: Arc<Mutex<Pipeline>>,
    /// `None` once the connection has been up, or if `Nodes::connect` has ended.
    pub(super) connect_events: Option<Sender<(usize, ConnectEvent)>>,
    /// The handshake of the last session, whose connection the next connect kills.
    pub(super) former_session: Option<Handshake>,
    /// Whether the run of `former_session` is counted in the registry.
    pub(super) registered: bool,
    /// Whether the node's warnings count the connection as down.
    pub(super) is_down: bool,
    /// Whether jobs or a due release have waited for the latest connect. If that connection ends
    /// before any reply, the jobs are rejected.
    is_retry: bool,
    /// Received jobs for the next batches.
    queued_jobs: VecDeque<Job>,
    /// Set by `Stop`, or when all handles of the connection are dropped.
    stopping: bool,
    /// Dropped when the thread ends, also by a panic: a shutdown waits for that.
    _alive: Sender<()>,
}

/// The locked pipeline. The worker unlocks it only in [`Worker::wait`], so neither while it
/// connects nor while the connection is down.
type PipelineGuard<'a> = MutexGuard<'a, Pipeline>;

impl Worker {
    pub(crate) fn new(
        end: WorkerEnd,
        config: &NodeConfig,
        connect_events: Sender<(usize, ConnectEvent)>,
        alive: Sender<()>,
    ) -> Worker {
        Worker {
            node: end.node,
            name: config.name.clone(),
            connector: Arc::clone(&config.connector),
            restart_quarantine: config.restart_quarantine,
            reject_evicting: config.reject_evicting,
            is_one_server: config.is_one_server,
            node_timeout: config.node_timeout,
            ping_interval: config.ping_interval,
            poll_interval: POLL_INTERVAL.min(config.node_timeout / 4),
            queue: end.queue,
            pipeline: end.pipeline,
            connect_events: Some(connect_events),
            former_session: None,
            registered: false,
            is_down: false,
            is_retry: false,
            queued_jobs: VecDeque::new(),
            stopping: false,
            _alive: alive,
        }
    }

    /// Runs the worker from `Start` to `Stop`, or until all handles of the connection are dropped.
    pub(crate) fn run(mut self) {
        if !matches!(self.queue.recv(), Ok(WorkerMessage::Start)) {
            return;
        }
        let pipeline = Arc::clone(&self.pipeline);
        let mut pipeline = pipeline.lock();
        self.count_dequeued(&pipeline);
        let mut delay = Duration::ZERO;
        while !self.stopping {
            let name = self.name.clone();
            let cycle = || self.connect_and_serve(&mut pipeline, &mut delay);
            if threads::catch(&name, cycle).is_none() {
                // A logger that has panicked may do so again.
                let fail = || self.fail(&mut pipeline, panic_failure(), &mut delay);
                threads::catch(&name, fail);
            }
        }
        pipeline.fail_release_waiters();
        trace!("{}: worker ended", self.name);
    }

    /// Connects, and serves the connection until it ends. After a failure blocks for the delay.
    fn connect_and_serve(&mut self, pipeline: &mut PipelineGuard<'_>, delay: &mut Duration) {
        match self.connect(pipeline) {
            Ok(()) => {
                let cause = self.serve(pipeline);
                if pipeline.has_replied() {
                    (*delay, self.is_retry) = (Duration::ZERO, false);
                }
                match cause {
                    cause @ NodeFailure::TimedOut => self.go_down(pipeline, cause),
                    cause if self.stopping => self.go_down(pipeline, cause),
                    // The requests have waited for one connect, and do not wait for a second one.
                    cause if self.is_retry => self.fail(pipeline, cause, delay),
                    cause => self.prepare_reconnect(pipeline, &cause),
                }
            }
            Err(cause) => self.fail(pipeline, cause, delay),
        }
    }

    /// Marks the connection as down, and blocks for the delay before the next connect.
    fn fail(&mut self, pipeline: &mut PipelineGuard<'_>, cause: NodeFailure, delay: &mut Duration) {
        self.go_down(pipeline, cause);
        // The next connect comes after a delay, so callers must not wait for their releases.
        pipeline.fail_release_waiters();
        *delay = (*delay * 2).clamp(MIN_RECONNECT_DELAY, MAX_RECONNECT_DELAY);
        self.wait_before_reconnect(pipeline, delay.mul_f64(0.5 + random::unit() / 2.0));
    }

    /// Serves batches until the session fails or the worker is stopped. Returns the cause.
    fn serve(&mut self, pipeline: &mut PipelineGuard<'_>) -> NodeFailure {
        loop {
            let done = match self.wait(pipeline) {
                Ok(()) => self.serve_queued(pipeline),
                Err(RecvTimeoutError::Timeout) => self.idle_tick(pipeline),
                Err(RecvTimeoutError::Disconnected) => {
                    self.stopping = true;
                    Ok(())
                }
            };
            match done {
                Err(cause) => return cause,
                Ok(()) if self.stopping => {
                    let result = pipeline.send_all_pending();
                    return result.err().unwrap_or_else(worker_stopped);
                }
                Ok(()) => {}
            }
        }
    }

    /// Blocks until a message arrives or it is time for an [`idle_tick`](Worker::idle_tick).
    ///
    /// The pipeline is unlocked meanwhile, for direct sends. Callers usually read their replies
    /// themselves, so the worker polls rarely, and not at all while no caller sends directly.
    ///
    /// # Errors
    /// - `Timeout`: it is time for an idle tick.
    /// - `Disconnected`: all handles of the connection are dropped.
    fn wait(&mut self, pipeline: &mut PipelineGuard<'_>) -> Result<(), RecvTimeoutError> {
        if !self.queued_jobs.is_empty() {
            return Ok(());
        }
        let was_used = std::mem::take(&mut pipeline.used_since_sleep);
        pipeline.polls_paused = !was_used && !pipeline.has_in_flight();
        let interval = match pipeline.polls_paused {
            true => self.ping_interval,
            false => self.poll_interval,
        };
        let now = clock::now();
        let due = pipeline.pending_due(now);
        let until_due = due.map(|due| due.saturating_duration_since(now));
        let timeout = until_due.map_or(interval, |until_due| interval.min(until_due));
        let queue = &self.queue;
        let message = MutexGuard::unlocked(pipeline, || {
            let message = queue.recv_timeout(timeout);
            // Other callers that woke at the same time may submit, too: one batch of two jobs costs
            // less than two batches.
            threads::yield_now();
            message
        });
        self.take_message(pipeline, message?);
        Ok(())
    }

    /// Sends the queued jobs and the due pending releases as one batch, and delivers the replies.
    /// Blocks for the replies.
    ///
    /// # Errors
    /// The cause if the connection has to be closed. Jobs that were not sent stay queued.
    fn serve_queued(&mut self, pipeline: &mut PipelineGuard<'_>) -> Result<(), NodeFailure> {
        // The direct sends precede the batch, so their replies precede those to the batch.
        pipeline.drain_replies()?;
        // Checked before the batch is filled: an unsent job can wait for the next connection.
        pipeline.check_idle()?;
        self.check_epoch(pipeline)?;
        self.fill_batch(pipeline);
        pipeline.admit_pending();
        pipeline.send_batch()
    }

    /// Checks that the connection is not replaced. If a replaced connection's server still replies,
    /// several servers share the address: the node then counts only after `SAME_IN_A_ROW` connects
    /// to one run.
    ///
    /// # Errors
    /// The cause if the connection is replaced.
    fn check_epoch(&self, pipeline: &mut Pipeline) -> Result<(), NodeFailure> {
        let current = pipeline.check_epoch();
        if current.is_err()
            && self.is_one_server
            && pipeline
                .drain_replies()
                .and_then(|()| pipeline.ping())
                .is_ok()
        {
            pipeline.registry.doubt(self.node);
        }
        current
    }

    /// Does what is due when no message has arrived: sends pending releases, sends a PING, or reads
    /// replies that callers have left unread.
    ///
    /// # Errors
    /// The cause if the connection has to be closed.
    pub(crate) fn idle_tick(
        &mut self,
        pipeline: &mut PipelineGuard<'_>,
    ) -> Result<(), NodeFailure> {
        self.check_epoch(pipeline)?;
        let now = clock::now();
        if pipeline.pending_due(now).is_some_and(|due| due <= now) {
            return self.serve_queued(pipeline);
        }
        // A caller may have sent directly meanwhile. Its reply comes before that to a PING.
        if pipeline.polls_paused && !pipeline.has_in_flight() {
            pipeline.check_idle()?;
            return pipeline.ping();
        }
        match clock::now().checked_sub(self.poll_interval) {
            Some(then) if !pipeline.oldest_sent_before(then) => Ok(()),
            _ => pipeline.drain_replies(),
        }
    }

    /// Queues the jobs of a received message, or records a `Stop`, and counts the message as
    /// received in the queue length.
    fn take_message(&mut self, pipeline: &Pipeline, message: WorkerMessage) {
        match message {
            WorkerMessage::Job(job) => self.queued_jobs.push_back(job),
            WorkerMessage::Jobs(jobs) => self.queued_jobs.extend(jobs),
            WorkerMessage::Stop => self.stopping = true,
            WorkerMessage::Start | WorkerMessage::Poll => {}
        }
        self.count_dequeued(pipeline);
    }

    /// Lowers the queue length by one, after a message was received and stored.
    fn count_dequeued(&self, pipeline: &Pipeline) {
        pipeline.status.queue_len.fetch_sub(1, Ordering::SeqCst);
    }

    /// Fills the batch with queued jobs.
    fn fill_batch(&mut self, pipeline: &mut Pipeline) {
        let now = clock::now();
        while pipeline.batch_has_room() {
            match self.queued_jobs.pop_front() {
                Some(job) if pipeline.batch_shares_token(&job) => {
                    // A request whose script the server lacks is sent again, behind the batch.
                    self.queued_jobs.push_front(job);
                    return;
                }
                Some(job) => pipeline.push_to_batch(job, now),
                None if self.stopping => return, // jobs behind a `Stop` are not served
                None => match self.queue.try_recv() {
                    Ok(message) => self.take_message(pipeline, message),
                    Err(_) => return,
                },
            }
        }
    }

    /// Prepares for a reconnect without marking the connection as down, because the node may be
    /// reachable although its connection has ended.
    ///
    /// Unsent jobs and due releases wait for one connect, and callers may submit meanwhile, for
    /// `node_timeout` at most. Otherwise a balancer that closes idle connections would fail an
    /// acquire on all nodes at once. The next connect is a retry only if a job or release waits.
    fn prepare_reconnect(&mut self, pipeline: &mut Pipeline, cause: &NodeFailure) {
        debug!("{}: connection ended, reconnecting: {cause}", self.name);
        self.unregister(pipeline);
        pipeline.abort_with_batch(cause);
        pipeline.expect_connect();
        let now = clock::now();
        let is_due = pipeline.pending_due(now).is_some_and(|due| due <= now);
        self.is_retry = is_due || !self.queued_jobs.is_empty();
    }

    /// Removes the run of the last session from the registry, if it is counted there.
    fn unregister(&mut self, pipeline: &Pipeline) {
        if let (true, Some(former)) = (std::mem::take(&mut self.registered), &self.former_session) {
            pipeline.registry.unregister_run(self.node, &former.run_id);
        }
    }

    /// Marks the connection as down, aborts it, and rejects all unsent jobs. Does not block, so
    /// their callers learn the cause before the next connect.
    fn go_down(&mut self, pipeline: &mut Pipeline, cause: NodeFailure) {
        let mut report = pipeline.status.report.lock();
        let is_new_cause = report.cause != cause;
        report.cause = cause.clone();
        // Stored after the cause: a caller that reads `up` as false asks for the cause.
        let was_up = pipeline.status.up.swap(false, Ordering::AcqRel);
        if was_up {
            report.since = clock::now();
        }
        drop(report); // unlock before logging
        self.unregister(pipeline);
        self.is_retry = false;
        let is_first = !std::mem::replace(&mut self.is_down, true);
        let is_outage = is_first && pipeline.warnings().note_down();
        if (is_outage || was_up || is_new_cause) && !self.stopping {
            self.log(is_outage, &format!("unavailable: {cause}"));
        }
        pipeline.abort_with_batch(&cause);
        self.reject_queued(pipeline);
    }

    /// Rejects all unsent jobs: the received jobs, and the jobs that are still in the queue.
    pub(super) fn reject_queued(&mut self, pipeline: &mut Pipeline) {
        while let Some(job) = self.queued_jobs.pop_front() {
            pipeline.reject(job);
        }
        while let Ok(message) = self.queue.try_recv() {
            self.reject_message(pipeline, message);
        }
    }

    /// Logs an event at level info if it `is_new` for the node. Repetitions, and events of its
    /// further connections, are logged at level debug. A panic of the logger is caught.
    pub(super) fn log(&self, is_new: bool, event: &str) {
        let level = if is_new { Level::Info } else { Level::Debug };
        threads::log(|| log!(level, "{}: {event}", self.name));
    }

    /// Blocks for the delay before the next connect, and rejects the jobs that arrive meanwhile.
    /// The pipeline stays locked: unlocking serves direct sends only, and a connection that is down
    /// carries none.
    fn wait_before_reconnect(&mut self, pipeline: &mut Pipeline, delay: Duration) {
        let end = clock::now() + delay;
        while !self.stopping {
            match self.queue.recv_deadline(end) {
                Ok(message) => self.reject_message(pipeline, message),
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => self.stopping = true,
            }
        }
    }

    /// Rejects the jobs of a message that arrives while the connection is down.
    fn reject_message(&mut self, pipeline: &mut Pipeline, message: WorkerMessage) {
        self.take_message(pipeline, message);
        while let Some(job) = self.queued_jobs.pop_front() {
            pipeline.reject(job);
        }
    }
}
