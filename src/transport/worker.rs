//! The worker thread of a node connection: connects, sends the queued requests in batches, and
//! waits for the replies for which no caller polls.
//!
//! - It never sends a request again that may have been executed, except a pending release.
//! - While its node is down it keeps nothing but pending releases: every other job is rejected with
//!   the cause (L3).
//! - A panic in a session, a sink or a logger does not end it.
//!
//! Tests: `src/tests/transport/worker.rs`, `src/tests/transport/connection.rs`,
//! `src/tests/engine/idle.rs`.
//!
//! | state | leaves by |
//! |---|---|
//! | connecting | a handshake → up; a failure → down |
//! | up | the connection ends → connecting; a reply times out → down; `Stop` → ended |
//! | up after a retry | as up, but the connection ends before any reply → down |
//! | down | the reconnect delay passes → connecting; `Stop` → ended |

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use log::{Level, debug, info, log, trace, warn};
use parking_lot::{Mutex, MutexGuard};

use crate::error::NodeFailure;
use crate::protocol::server_info::ServerInfo;
use crate::random;
use crate::sync::threads;
use crate::time::{clock, deadline};
use crate::transport::connection::WorkerEnd;
use crate::transport::job::Job;
use crate::transport::messages::{ConnectEvent, NodeConfig, WorkerMessage};
use crate::transport::node::traits::{Connector, Handshake, Session};
use crate::transport::pipeline::{Pipeline, catch_panic, panic_failure, worker_stopped};
use crate::transport::registry::Entered;
use crate::transport::warning_state::Permission;

/// How often the worker of an idle connection sends a PING.
const PING_INTERVAL: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 10_000 });
/// How long the worker leaves a reply unread before it reads it itself, because the caller may poll
/// for it; at most a quarter of `node_timeout`.
const POLL_INTERVAL: Duration = Duration::from_millis(2);
/// The delay after the first failed connect. It doubles with each further one, and half of it is
/// drawn at random.
const MIN_RECONNECT_DELAY: Duration = Duration::from_millis(50);
/// The longest delay between two connects.
const MAX_RECONNECT_DELAY: Duration = Duration::from_secs(2);

/// The worker of one node connection.
pub(crate) struct Worker {
    node: usize,
    name: String,
    connector: Arc<dyn Connector>,
    /// As [`NodeConfig::restart_quarantine`].
    restart_quarantine: Option<Duration>,
    /// As [`NodeConfig::reject_evicting`].
    reject_evicting: bool,
    /// As [`NodeConfig::is_one_server`].
    is_one_server: bool,
    node_timeout: Duration,
    /// [`POLL_INTERVAL`], or less for a short `node_timeout`.
    poll_interval: Duration,
    queue: Receiver<WorkerMessage>,
    pipeline: Arc<Mutex<Pipeline>>,
    /// `None` once the connection has been up, or if `Nodes::connect` has ended.
    connect_events: Option<Sender<(usize, ConnectEvent)>>,
    /// The handshake of the last session, whose connection the next connect kills.
    former_session: Option<Handshake>,
    /// Whether the run of `former_session` is counted in the registry.
    registered: bool,
    /// Whether the connection has been counted as down since it was up last.
    is_down: bool,
    /// Whether the last connect was made without a delay, for requests that have waited since the
    /// former connection ended.
    is_retry: bool,
    /// Received jobs for the next batches.
    queued_jobs: VecDeque<Job>,
    /// Set by `Stop`, or when all handles of the connection are dropped.
    stopping: bool,
    /// Dropped when the thread ends, also by a panic: a shutdown waits for that.
    _alive: Sender<()>,
}

/// The locked pipeline. The worker unlocks it only while it waits for its queue.
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
                self.fail(&mut pipeline, panic_failure(), &mut delay);
            }
        }
        pipeline.fail_release_waiters();
        trace!("{}: worker ended", self.name);
    }

    /// Connects and serves the connection until it ends, or waits for the delay after a failure.
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
        // The node does not come back at once, so callers must not wait for releases.
        pipeline.fail_release_waiters();
        *delay = (*delay * 2).clamp(MIN_RECONNECT_DELAY, MAX_RECONNECT_DELAY);
        self.wait_before_reconnect(pipeline, delay.mul_f64(0.5 + random::unit() / 2.0));
    }

    /// Connects to the node, and brings the connection up.
    ///
    /// # Errors
    /// The cause if the connect failed, or if the server must not be used as this node.
    fn connect(&mut self, pipeline: &mut Pipeline) -> Result<(), NodeFailure> {
        let (session, mut handshake) = self.open_session(pipeline)?;
        pipeline.warnings().clear_denied(Permission::Connect);
        self.warn_of_kill(pipeline, handshake.no_kill.as_ref());
        if let Some(former) = &self.former_session
            && former.run_id == handshake.run_id
        {
            handshake.server_info.refine(&former.server_info);
        }
        let entered =
            pipeline
                .registry
                .register_run(self.node, &handshake.run_id, self.is_one_server);
        let (info, run_id) = (handshake.server_info.clone(), handshake.run_id.clone());
        let run_ids = handshake.runs();
        let is_first = self.former_session.replace(handshake).is_none();
        self.check_registration(pipeline, entered)?;
        self.registered = true;
        if let Err(cause) = self.apply_server_info(pipeline, info, &run_id) {
            self.send_connect_event(ConnectEvent::Failed(cause.clone()));
            return Err(cause);
        }
        self.come_up(pipeline, session, &run_ids);
        let was_down = std::mem::take(&mut self.is_down);
        let warnings = pipeline.warnings();
        let (is_back, has_changed) = (warnings.note_up(was_down), warnings.note_runs(&run_ids));
        let event = match (is_first, has_changed) {
            (_, true) => "connected again, after its restart or to another server",
            (true, false) => "connected",
            (false, false) => "connected again",
        };
        // A middlebox may close idle connections all day, so a reconnect alone gets no info line.
        self.log(is_back || has_changed && !was_down, event);
        Ok(())
    }

    /// Opens a session, and records whether the node was reached.
    fn open_session(
        &mut self,
        pipeline: &Pipeline,
    ) -> Result<(Box<dyn Session>, Handshake), NodeFailure> {
        let opened = catch_panic(|| self.connector.connect(self.former_session.as_ref()));
        let round_trip = opened.as_ref().ok();
        let round_trip = round_trip.map(|(_, handshake)| handshake.server_info.round_trip);
        pipeline.status.report.lock().connecting = round_trip;
        let reached = !opened.as_ref().is_err_and(NodeFailure::is_outage);
        pipeline.registry.note_connect(self.node, reached);
        if let Err(cause) = &opened {
            // Logged as a warning: only an operator can grant the access.
            if matches!(cause, NodeFailure::AccessDenied(_))
                && pipeline.warnings().is_newly_denied(Permission::Connect)
            {
                warn!("{}: {cause}", self.name);
            }
            self.send_connect_event(ConnectEvent::Failed(cause.clone()));
        }
        opened
    }

    /// Checks that the server counts as this node.
    ///
    /// # Errors
    /// The cause if the server is another node's, or if several servers share the address.
    fn check_registration(
        &mut self,
        pipeline: &mut Pipeline,
        entered: Entered,
    ) -> Result<(), NodeFailure> {
        match entered {
            Entered::Counted { epoch } => {
                pipeline.epoch = epoch;
                Ok(())
            }
            Entered::Twin(twin) => {
                self.send_connect_event(ConnectEvent::Duplicate(twin));
                Err(NodeFailure::Unreachable(
                    "the same server as another node".into(),
                ))
            }
            Entered::SeveralServers => {
                let cause = NodeFailure::ServerError(
                    "several servers at this address, as behind a balancer: \
                     each must be a node of its own"
                        .into(),
                );
                if pipeline.warnings().is_new_several_servers() {
                    warn!("{}: {cause}", self.name);
                }
                self.send_connect_event(ConnectEvent::Failed(cause.clone()));
                Err(cause)
            }
        }
    }

    /// Attaches the session and marks the connection as up. Pending releases stay behind the
    /// requests of callers.
    fn come_up(&mut self, pipeline: &mut Pipeline, session: Box<dyn Session>, run_ids: &str) {
        if pipeline.is_overdue() {
            // Callers that submitted before the connection was overdue have stopped waiting.
            pipeline.status.report.lock().cause = NodeFailure::TimedOut;
            self.reject_queued(pipeline);
        }
        pipeline.attach_session(session, run_ids);
        let status = &pipeline.status;
        status.overdue_at.store(u64::MAX, Ordering::Release);
        if !status.up.load(Ordering::Acquire) {
            status.report.lock().since = clock::now();
            status.up.store(true, Ordering::Release);
        }
        self.send_connect_event(ConnectEvent::Up);
        pipeline.registry.record_connected();
    }

    /// Sets the quarantine and logs warnings by a node's server info, before the node is up.
    ///
    /// # Errors
    /// The cause if the node must not be used.
    fn apply_server_info(
        &self,
        pipeline: &Pipeline,
        info: ServerInfo,
        run_id: &str,
    ) -> Result<(), NodeFailure> {
        let (name, now, warnings) = (&self.name, clock::now(), pipeline.warnings());
        let quarantine = self
            .restart_quarantine
            .map(|max_ttl| info.quarantine_left(max_ttl));
        let quarantine = quarantine.unwrap_or_default();
        let until = match quarantine.is_zero() {
            true => 0,
            false => deadline::deadline(now, quarantine).map_or(u64::MAX, clock::to_micros),
        };
        pipeline
            .status
            .quarantined_until
            .store(until, Ordering::Release);
        let rejection = info.rejection(self.reject_evicting);
        pipeline.status.report.lock().server_info = Some(info.clone());
        if let Some(cause) = rejection {
            return Err(cause);
        }
        let (eviction, offset) = (info.eviction_warning(), info.excessive_clock_offset());
        let is_new = warnings.is_new_eviction_warning(eviction.as_deref());
        if let (true, Some(eviction)) = (is_new, eviction) {
            warn!("{name}: {eviction}");
        }
        if let (true, Some(offset)) = (warnings.is_new_clock_warning(offset.is_some()), offset) {
            warn!("{name}: its clock is {offset}");
        }
        let far = info.is_too_far(self.node_timeout);
        if let (true, Some(far)) = (warnings.is_new_distance_warning(far.is_some()), far) {
            warn!("{name}: {far}");
        }
        if until > 0 && warnings.is_new_quarantine(run_id) {
            info!("{name}: restarted recently: quarantined for {quarantine:.1?}");
        }
        Ok(())
    }

    /// Warns, once, if the server does not permit to kill the former connection.
    fn warn_of_kill(&self, pipeline: &Pipeline, no_kill: Option<&NodeFailure>) {
        match no_kill {
            None => pipeline.warnings().clear_denied(Permission::Kill),
            Some(cause) if pipeline.warnings().is_newly_denied(Permission::Kill) => warn!(
                "{}: CLIENT KILL not permitted: a request on a broken connection may still be \
                 executed, and its lock then blocks others until its TTL ends: {cause}",
                self.name
            ),
            Some(_) => {}
        }
    }

    /// Reports an event to `Nodes::connect`, until the connection is up or the call has ended.
    fn send_connect_event(&mut self, event: ConnectEvent) {
        if let Some(connect_events) = &self.connect_events {
            let is_last = matches!(event, ConnectEvent::Up);
            // The receiver is dropped when `Nodes::connect` has ended.
            if connect_events.send((self.node, event)).is_err() || is_last {
                self.connect_events = None;
            }
        }
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
    fn wait(&mut self, pipeline: &mut PipelineGuard<'_>) -> Result<(), RecvTimeoutError> {
        if !self.queued_jobs.is_empty() {
            return Ok(());
        }
        let was_used = std::mem::take(&mut pipeline.used_since_poll);
        pipeline.worker_asleep = !was_used && !pipeline.has_in_flight();
        let interval = match pipeline.worker_asleep {
            true => PING_INTERVAL,
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
            std::thread::yield_now();
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
        // Direct sends went out first, so their replies come first.
        pipeline.drain_replies()?;
        // Checked before the batch is filled: an unsent job can wait for the next connection.
        pipeline.check_idle()?;
        self.check_epoch(pipeline)?;
        self.fill_batch(pipeline);
        pipeline.admit_pending();
        pipeline.send_batch()
    }

    /// Checks that the connection is not replaced. If it is and its server still replies, that
    /// server did not restart: several servers share the address.
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

    /// Sends due pending releases, sends a PING or reads replies, when no message has arrived.
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
        if pipeline.worker_asleep && !pipeline.has_in_flight() {
            pipeline.check_idle()?;
            return pipeline.ping();
        }
        match clock::now().checked_sub(self.poll_interval) {
            Some(then) if !pipeline.oldest_sent_before(then) => Ok(()),
            _ => pipeline.drain_replies(),
        }
    }

    /// Stores a received message, and updates the queue length that callers read.
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
        while pipeline.batch_has_room() {
            match self.queued_jobs.pop_front() {
                Some(job) if pipeline.batch_shares_token(&job) => {
                    // A batch does not keep the order when scripts have to be loaded again.
                    self.queued_jobs.push_front(job);
                    return;
                }
                Some(job) => pipeline.push_to_batch(job),
                None if self.stopping => return, // jobs behind a `Stop` are not served
                None => match self.queue.try_recv() {
                    Ok(message) => self.take_message(pipeline, message),
                    Err(_) => return,
                },
            }
        }
    }

    /// Prepares for a reconnect. The node may be well although its connection has ended.
    ///
    /// Unsent jobs and due releases wait for one connect, and callers may submit meanwhile, for
    /// `node_timeout` at most. Otherwise a middlebox that closes idle connections would fail an
    /// acquire on all nodes at once. If nothing waits, the next connect is no retry.
    fn prepare_reconnect(&mut self, pipeline: &mut Pipeline, cause: &NodeFailure) {
        debug!("{}: connection ended, reconnecting: {cause}", self.name);
        self.unregister(pipeline);
        pipeline.go_down(cause);
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

    /// Marks the connection as down, and rejects all jobs before anything blocks.
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
        pipeline.go_down(&cause);
        self.reject_queued(pipeline);
    }

    /// Rejects all unsent jobs: the received jobs, and the jobs that are still in the queue.
    fn reject_queued(&mut self, pipeline: &mut Pipeline) {
        while let Some(job) = self.queued_jobs.pop_front() {
            pipeline.reject(job);
        }
        while let Ok(message) = self.queue.try_recv() {
            self.reject_message(pipeline, message);
        }
    }

    /// Logs an event at level info if it `is_new` for the node. Repetitions, and events of its
    /// further connections, are logged at level debug. A panic of the logger is caught.
    fn log(&self, is_new: bool, event: &str) {
        let level = if is_new { Level::Info } else { Level::Debug };
        threads::catch(&self.name, || log!(level, "{}: {event}", self.name));
    }

    /// Blocks for the delay before the next connect, and rejects the jobs that arrive meanwhile.
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
