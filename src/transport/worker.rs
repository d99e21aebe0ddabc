//! A lane's thread: it keeps a connection to one node, serves what waits in the lane's queue, and waits for the answers that
//! callers do not wait for.

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
use crate::transport::job::Job;
use crate::transport::messages::{ConnectEvent, NodeConfig, WorkerMessage};
use crate::transport::node::traits::{Connector, Handshake, Session};
use crate::transport::pipeline;
use crate::transport::pipeline::Pipeline;
use crate::transport::registry::Entered;
use crate::transport::warning_state::Permission;

/// An idle lane asks for a sign of life that often.
const PING_INTERVAL: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 10_000 });
/// So long an answer may stay unread that no caller waits for, while callers come and read it; at most a quarter of the node's
/// time-out.
const POLL_INTERVAL: Duration = Duration::from_millis(2);
/// Pauses between failed connects: from the first, doubling, to the last; half of each is drawn at random.
const MIN_RECONNECT_DELAY: Duration = Duration::from_millis(50);
const MAX_RECONNECT_DELAY: Duration = Duration::from_secs(2);

/// A lane's thread.
pub(crate) struct Worker {
    node: usize,
    name: String,
    connector: Arc<dyn Connector>,
    quarantine: Option<Duration>,
    strict: bool,
    is_one_server: bool,
    node_timeout: Duration,
    look_every: Duration,
    queue: Receiver<WorkerMessage>,
    desk: Arc<Mutex<Pipeline>>,
    connect_events: Option<Sender<(usize, ConnectEvent)>>,
    /// The session before this one, to be killed at the next connect.
    former_session: Option<Handshake>,
    /// Whether `former` is counted in the census.
    registered: bool,
    /// Whether it has fallen since it was up last, or has never been up.
    is_down: bool,
    /// Whether the connection was made at once for requests that the one before it had not served.
    is_retry: bool,
    /// Jobs out of the queue that are for the next batches.
    queued_jobs: VecDeque<Job>,
    stopping: bool,
    /// Dropped when the thread ends, however it ends.
    _alive: Sender<()>,
}

/// The thread's seat: it leaves it only while it waits for its queue.
type PipelineGuard<'a> = MutexGuard<'a, Pipeline>;

impl Worker {
    pub(crate) fn new(
        node: usize,
        post: &NodeConfig,
        queue: Receiver<WorkerMessage>,
        desk: Arc<Mutex<Pipeline>>,
        first: Sender<(usize, ConnectEvent)>,
        alive: Sender<()>,
    ) -> Worker {
        Worker {
            node,
            name: post.name.clone(),
            connector: Arc::clone(&post.connector),
            quarantine: post.restart_quarantine,
            strict: post.reject_evicting,
            is_one_server: post.is_one_server,
            node_timeout: post.node_timeout,
            look_every: POLL_INTERVAL.min(post.node_timeout / 4),
            queue,
            desk,
            connect_events: Some(first),
            former_session: None,
            registered: false,
            is_down: false,
            is_retry: false,
            queued_jobs: VecDeque::new(),
            stopping: false,
            _alive: alive,
        }
    }

    /// The thread: from the first `Start` to the `Stop`, or until nobody has the lane any more.
    pub(crate) fn run(mut self) {
        if !matches!(self.queue.recv(), Ok(WorkerMessage::Start)) {
            return;
        }
        let desk = Arc::clone(&self.desk);
        let mut seat = desk.lock();
        self.count_dequeued(&seat);
        let mut pause = Duration::ZERO;
        while !self.stopping {
            let name = self.name.clone();
            let turn = || self.connect_and_serve(&mut seat, &mut pause);
            if threads::catch(&name, turn).is_none() {
                self.fail(&mut seat, pipeline::panic_failure(), &mut pause);
            }
        }
        seat.fail_release_waiters();
        trace!("{}: lane ends", self.name);
    }

    /// One life of a connection, or the wait after an attempt to get one.
    fn connect_and_serve(&mut self, seat: &mut PipelineGuard<'_>, pause: &mut Duration) {
        match self.connect(seat) {
            Ok(()) => {
                let cause = self.serve(seat);
                if seat.has_answered() {
                    (*pause, self.is_retry) = (Duration::ZERO, false);
                }
                match cause {
                    // It does not answer, or is not asked any more.
                    cause @ NodeFailure::TimedOut => self.go_down(seat, cause),
                    cause if self.stopping => self.go_down(seat, cause),
                    // What waited for it has waited for one connect, and does not wait for a second one.
                    cause if self.is_retry => self.fail(seat, cause, pause),
                    cause => self.lose(seat, &cause),
                }
            }
            Err(cause) => self.fail(seat, cause, pause),
        }
    }

    /// The node cannot be had at present: the next connect comes after a pause.
    fn fail(&mut self, seat: &mut PipelineGuard<'_>, cause: NodeFailure, pause: &mut Duration) {
        self.go_down(seat, cause);
        // Who still waits for a release learns now that the node does not come back at once.
        seat.fail_release_waiters();
        *pause = (*pause * 2).clamp(MIN_RECONNECT_DELAY, MAX_RECONNECT_DELAY);
        self.wait_before_reconnect(seat, pause.mul_f64(0.5 + random::unit() / 2.0));
    }

    /// Connects. What is pending waits behind what callers ask for from now on.
    fn connect(&mut self, seat: &mut Pipeline) -> Result<(), NodeFailure> {
        let attempt =
            pipeline::catch_panic(|| self.connector.connect(self.former_session.as_ref()));
        let round_trip = attempt.as_ref().ok();
        let round_trip = round_trip.map(|(_, greeting)| greeting.server_info.round_trip);
        seat.health.report.lock().connecting = round_trip;
        let reached = !attempt.as_ref().is_err_and(NodeFailure::is_outage);
        seat.census.note_connect(self.node, reached);
        let (session, mut greeting): (Box<dyn Session>, Handshake) = match attempt {
            Ok(connected) => connected,
            Err(cause) => {
                // Nobody can mend that but who runs the nodes.
                if matches!(cause, NodeFailure::AccessDenied(_))
                    && seat.news().is_newly_denied(Permission::Connect)
                {
                    warn!("{}: {cause}", self.name);
                }
                self.send_connect_event(ConnectEvent::Failed(cause.clone()));
                return Err(cause);
            }
        };
        seat.news().clear_denied(Permission::Connect);
        self.tell_of_kill(seat, greeting.no_kill.as_ref());
        if let Some(former) = &self.former_session
            && former.run_id == greeting.run_id
        {
            greeting.server_info.refine(&former.server_info);
        }
        let entered = seat
            .census
            .register_run(self.node, &greeting.run_id, self.is_one_server);
        let (about, run_id) = (greeting.server_info.clone(), greeting.run_id.clone());
        let runs = greeting.runs();
        let is_first = self.former_session.replace(greeting).is_none();
        match entered {
            Entered::Counted { epoch } => seat.epoch = epoch,
            Entered::Twin(twin) => {
                self.send_connect_event(ConnectEvent::Duplicate(twin));
                return Err(NodeFailure::Unreachable(
                    "it is the same server as another of the nodes".into(),
                ));
            }
            Entered::SeveralServers => {
                let cause = NodeFailure::ServerError(
                    "several servers answer at this address, as behind a balancer: each is a node of its own".into(),
                );
                if seat.news().several_servers() {
                    warn!("{}: {cause}", self.name);
                }
                self.send_connect_event(ConnectEvent::Failed(cause.clone()));
                return Err(cause);
            }
        }
        self.registered = true;
        if let Err(cause) = self.apply_server_info(seat, about, &run_id) {
            self.send_connect_event(ConnectEvent::Failed(cause.clone()));
            return Err(cause);
        }
        if seat.is_overdue() {
            // It was suspect for that long, and those who submitted before have stopped waiting.
            seat.health.report.lock().cause = NodeFailure::TimedOut;
            self.refuse_what_waits(seat);
        }
        seat.attach_session(session, &runs);
        seat.health.overdue_at.store(u64::MAX, Ordering::Release);
        if !seat.health.up.load(Ordering::Acquire) {
            seat.health.report.lock().since = clock::now();
            seat.health.up.store(true, Ordering::Release);
        }
        self.send_connect_event(ConnectEvent::Up);
        seat.census.record_connected();
        let was_down = std::mem::take(&mut self.is_down);
        let (is_back, has_changed) = (seat.news().rose(was_down), seat.news().ran_as(&runs));
        let how = match (is_first, has_changed) {
            (_, true) => "connected again, after its restart or to another server",
            (true, false) => "connected",
            (false, false) => "connected again",
        };
        // Something that closes idle connections may do so all day, which is no news.
        self.log(is_back || has_changed && !was_down, how);
        Ok(())
    }

    /// What follows from what the node says of itself, before it is up.
    fn apply_server_info(
        &self,
        seat: &Pipeline,
        about: ServerInfo,
        run_id: &str,
    ) -> Result<(), NodeFailure> {
        let (name, now, news) = (&self.name, clock::now(), seat.news());
        let quarantine = self
            .quarantine
            .map(|max_ttl| about.quarantine_left(max_ttl));
        let quarantine = quarantine.unwrap_or_default();
        let until = match quarantine.is_zero() {
            true => 0,
            false => deadline::deadline(now, quarantine).map_or(u64::MAX, clock::to_micros),
        };
        seat.health
            .quarantined_until
            .store(until, Ordering::Release);
        let fault = about.rejection(self.strict);
        seat.health.report.lock().server_info = Some(about.clone());
        if let Some(cause) = fault {
            return Err(cause);
        }
        let (danger, offset) = (about.eviction_warning(), about.excessive_clock_offset());
        if let (true, Some(danger)) = (news.is_new_eviction_warning(danger.as_deref()), danger) {
            warn!("{name}: {danger}");
        }
        if let (true, Some(offset)) = (news.is_new_clock_warning(offset.is_some()), offset) {
            warn!("{name}: its clock is {offset}");
        }
        let far = about.is_too_far(self.node_timeout);
        if let (true, Some(far)) = (news.distance(far.is_some()), far) {
            warn!("{name}: {far}");
        }
        if until > 0 && news.is_new_quarantine(run_id) {
            info!("{name}: in quarantine for {quarantine:.1?}, since it started a short time ago");
        }
        Ok(())
    }

    /// Warns, once, where the server does not let us kill the former connection.
    fn tell_of_kill(&self, seat: &Pipeline, no_kill: Option<&NodeFailure>) {
        match no_kill {
            None => seat.news().clear_denied(Permission::Kill),
            Some(cause) if seat.news().is_newly_denied(Permission::Kill) => warn!(
                "{}: no right to CLIENT KILL: after a broken connection a request that was sent on it may still be executed, and \
                 its lock is then taken until its TTL ends: {cause}",
                self.name
            ),
            Some(_) => {}
        }
    }

    fn send_connect_event(&mut self, outcome: ConnectEvent) {
        if let Some(first) = &self.connect_events {
            let last = matches!(outcome, ConnectEvent::Up);
            // Nobody listens any more when `Nodes::connect` has ended.
            if first.send((self.node, outcome)).is_err() || last {
                self.connect_events = None;
            }
        }
    }

    /// Serves batches until the session fails or the lane is stopped; answers why it ended.
    fn serve(&mut self, seat: &mut PipelineGuard<'_>) -> NodeFailure {
        loop {
            let done = match self.wait(seat) {
                Ok(()) => self.serve_queued(seat),
                Err(RecvTimeoutError::Timeout) => self.idle_tick(seat),
                Err(RecvTimeoutError::Disconnected) => {
                    self.stopping = true;
                    Ok(())
                }
            };
            match done {
                Err(cause) => return cause,
                Ok(()) if self.stopping => {
                    let stopped = NodeFailure::Unreachable("the lane is stopped".into());
                    return seat.send_all_pending().err().unwrap_or(stopped);
                }
                Ok(()) => {}
            }
        }
    }

    /// Waits for the queue, and meanwhile leaves the seat to callers. They read what they have sent as a rule, so it looks
    /// seldom, and sleeps where they do not come.
    fn wait(&mut self, seat: &mut PipelineGuard<'_>) -> Result<(), RecvTimeoutError> {
        if !self.queued_jobs.is_empty() {
            return Ok(());
        }
        let used = std::mem::take(&mut seat.used_since_poll);
        seat.worker_asleep = !used && !seat.has_in_flight();
        let wait = if seat.worker_asleep {
            PING_INTERVAL
        } else {
            self.look_every
        };
        let now = clock::now();
        let due = seat.pending_due(now);
        let wait = due.map_or(wait, |due| wait.min(due.saturating_duration_since(now)));
        let queue = &self.queue;
        let message = MutexGuard::unlocked(seat, || {
            let message = queue.recv_timeout(wait);
            // Whoever was woken along with us may have a job too: two in one batch are cheaper than two batches.
            std::thread::yield_now();
            message
        });
        self.take_message(seat, message?);
        Ok(())
    }

    fn serve_queued(&mut self, seat: &mut PipelineGuard<'_>) -> Result<(), NodeFailure> {
        // What callers have sent was before.
        seat.drain_replies()?;
        // What waits has not been sent yet, so it can wait for the next connection.
        seat.check_idle()?;
        self.check_epoch(seat)?;
        self.fill_batch(seat);
        seat.admit_pending();
        seat.send_batch()
    }

    /// # Errors
    /// Why the connection is outdated. If its server is alive, it did not restart: several answer at the address.
    fn check_epoch(&self, seat: &mut Pipeline) -> Result<(), NodeFailure> {
        let outdated = seat.check_epoch();
        if outdated.is_err()
            && self.is_one_server
            && seat.drain_replies().and_then(|()| seat.ping()).is_ok()
        {
            seat.census.doubt(self.node);
        }
        outdated
    }

    /// Nothing was queued for some time.
    pub(crate) fn idle_tick(&mut self, seat: &mut PipelineGuard<'_>) -> Result<(), NodeFailure> {
        self.check_epoch(seat)?;
        let now = clock::now();
        if seat.pending_due(now).is_some_and(|due| due <= now) {
            return self.serve_queued(seat);
        }
        // A caller may have come meanwhile, and its answer is the next to be read.
        if seat.worker_asleep && !seat.has_in_flight() {
            seat.check_idle()?;
            return seat.ping();
        }
        match clock::now().checked_sub(self.look_every) {
            Some(then) if !seat.oldest_sent_before(then) => Ok(()),
            _ => seat.drain_replies(),
        }
    }

    /// Takes in a message, of which nobody need wait for the seat any more.
    fn take_message(&mut self, seat: &Pipeline, message: WorkerMessage) {
        match message {
            WorkerMessage::Job(job) => self.queued_jobs.push_back(job),
            WorkerMessage::Jobs(jobs) => self.queued_jobs.extend(jobs),
            WorkerMessage::Stop => self.stopping = true,
            WorkerMessage::Start | WorkerMessage::Poll => {}
        }
        self.count_dequeued(seat);
    }

    /// A message is out of the queue, and what it brings in our hands.
    fn count_dequeued(&self, seat: &Pipeline) {
        seat.health.queue_len.fetch_sub(1, Ordering::SeqCst);
    }

    /// Gathers a batch of what waits, up to the limit.
    fn fill_batch(&mut self, seat: &mut Pipeline) {
        while seat.has_room() {
            match self.queued_jobs.pop_front() {
                Some(job) if seat.shares_a_token(&job) => {
                    // Within a batch the order is not kept when scripts have to be loaded again.
                    self.queued_jobs.push_front(job);
                    return;
                }
                Some(job) => seat.push_to_batch(job),
                // What comes after a stop is not served.
                None if self.stopping => return,
                None => match self.queue.try_recv() {
                    Ok(message) => self.take_message(seat, message),
                    Err(_) => return,
                },
            }
        }
    }

    /// The connection has ended, which says nothing of the node yet. What was not sent waits for one connect, and callers may go
    /// on to submit, for as long as they wait for an answer: else all would fail on all nodes at once where something closes idle
    /// connections.
    fn lose(&mut self, seat: &mut Pipeline, cause: &NodeFailure) {
        debug!("{}: connection ended, reconnecting: {cause}", self.name);
        self.leave_census(seat);
        seat.go_down(cause);
        seat.expect_connect();
        let now = clock::now();
        let is_due = seat.pending_due(now).is_some_and(|due| due <= now);
        self.is_retry = is_due || !self.queued_jobs.is_empty();
    }

    fn leave_census(&mut self, seat: &Pipeline) {
        if let (true, Some(former)) = (std::mem::take(&mut self.registered), &self.former_session) {
            seat.census.unregister_run(self.node, &former.run_id);
        }
    }

    /// The node does not answer: tells the callers, and answers all that the lane holds before anything blocks.
    fn go_down(&mut self, seat: &mut Pipeline, cause: NodeFailure) {
        let mut report = seat.health.report.lock();
        let news = report.cause != cause;
        report.cause = cause.clone();
        // Only now: who sees it down asks for the cause.
        let was_up = seat.health.up.swap(false, Ordering::AcqRel);
        if was_up {
            report.since = clock::now();
        }
        drop(report);
        self.leave_census(seat);
        self.is_retry = false;
        let is_first = !std::mem::replace(&mut self.is_down, true);
        let is_outage = is_first && seat.news().fell();
        if (is_outage || was_up || news) && !self.stopping {
            self.log(is_outage, &format!("suspect: {cause}"));
        }
        seat.go_down(&cause);
        self.refuse_what_waits(seat);
    }

    /// Answers what has not been sent, here and in the queue.
    fn refuse_what_waits(&mut self, seat: &mut Pipeline) {
        while let Some(job) = self.queued_jobs.pop_front() {
            seat.reject(job);
        }
        while let Ok(message) = self.queue.try_recv() {
            self.reject_message(seat, message);
        }
    }

    /// What is news of the node is for everybody, and what repeats it, or is of one more connection to it, for debugging. A
    /// logger that panics is no fault of the node.
    fn log(&self, is_news: bool, what: &str) {
        let level = if is_news { Level::Info } else { Level::Debug };
        threads::catch(&self.name, || log!(level, "{}: {what}", self.name));
    }

    /// Waits before the next connect, and answers what comes in the meantime.
    fn wait_before_reconnect(&mut self, seat: &mut Pipeline, pause: Duration) {
        let end = clock::now() + pause;
        while !self.stopping {
            match self.queue.recv_deadline(end) {
                Ok(message) => self.reject_message(seat, message),
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => self.stopping = true,
            }
        }
    }

    fn reject_message(&mut self, seat: &mut Pipeline, message: WorkerMessage) {
        self.take_message(seat, message);
        while let Some(job) = self.queued_jobs.pop_front() {
            seat.reject(job);
        }
    }
}
