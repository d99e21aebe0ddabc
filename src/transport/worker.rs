//! A lane's thread: it keeps a connection to one node, serves what waits in the lane's queue, and waits for the answers that
//! callers do not wait for.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use log::{Level, debug, info, log, trace, warn};
use parking_lot::{Mutex, MutexGuard};

use crate::error::Cause;
use crate::protocol::server_info::About;
use crate::random;
use crate::sync::threads;
use crate::time::{clock, deadline};
use crate::transport::job::Job;
use crate::transport::messages::{First, Message, Post};
use crate::transport::node::traits::{Connector, Greeting, Session};
use crate::transport::pipeline;
use crate::transport::pipeline::Desk;
use crate::transport::registry::Entered;
use crate::transport::warning_state::Right;

/// An idle lane asks for a sign of life that often.
const PING_EVERY: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 10_000 });
/// So long an answer may stay unread that no caller waits for, while callers come and read it; at most a quarter of the node's
/// time-out.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// Pauses between failed connects: from the first, doubling, to the last; half of each is drawn at random.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(2);

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
    queue: Receiver<Message>,
    desk: Arc<Mutex<Desk>>,
    first: Option<Sender<(usize, First)>>,
    /// The session before this one, to be killed at the next connect.
    former: Option<Greeting>,
    /// Whether `former` is counted in the census.
    counted: bool,
    /// Whether it has fallen since it was up last, or has never been up.
    is_down: bool,
    /// Jobs out of the queue that are for the next batches.
    waiting: VecDeque<Job>,
    stopping: bool,
    /// Dropped when the thread ends, however it ends.
    _alive: Sender<()>,
}

/// The thread's seat: it leaves it only while it waits for its queue.
type Seat<'a> = MutexGuard<'a, Desk>;

impl Worker {
    pub(crate) fn new(
        node: usize,
        post: &Post,
        queue: Receiver<Message>,
        desk: Arc<Mutex<Desk>>,
        first: Sender<(usize, First)>,
        alive: Sender<()>,
    ) -> Worker {
        Worker {
            node,
            name: post.name.clone(),
            connector: Arc::clone(&post.connector),
            quarantine: post.quarantine,
            strict: post.strict,
            is_one_server: post.is_one_server,
            node_timeout: post.node_timeout,
            look_every: LOOK_EVERY.min(post.node_timeout / 4),
            queue,
            desk,
            first: Some(first),
            former: None,
            counted: false,
            is_down: false,
            waiting: VecDeque::new(),
            stopping: false,
            _alive: alive,
        }
    }

    /// The thread: from the first `Start` to the `Stop`, or until nobody has the lane any more.
    pub(crate) fn run(mut self) {
        if !matches!(self.queue.recv(), Ok(Message::Start)) {
            return;
        }
        let desk = Arc::clone(&self.desk);
        let mut seat = desk.lock();
        self.seen(&seat);
        let mut pause = Duration::ZERO;
        while !self.stopping {
            let name = self.name.clone();
            let turn = || self.connect_and_serve(&mut seat, &mut pause);
            if threads::catch(&name, turn).is_none() {
                self.fall(&mut seat, pipeline::panicked());
                self.pause_after_failure(&mut seat, &mut pause);
            }
        }
        seat.give_up_waiting();
        trace!("{}: lane ends", self.name);
    }

    /// One life of a connection, or the wait after an attempt to get one.
    fn connect_and_serve(&mut self, seat: &mut Seat<'_>, pause: &mut Duration) {
        match self.connect(seat) {
            Ok(()) => {
                *pause = Duration::ZERO;
                match self.serve(seat) {
                    // It does not answer, or is not asked any more.
                    cause @ Cause::TimedOut => self.fall(seat, cause),
                    cause if self.stopping => self.fall(seat, cause),
                    cause => self.lose(seat, &cause),
                }
            }
            Err(cause) => {
                self.fall(seat, cause);
                // Who still waits for a release learns now that the node does not come back at once.
                seat.give_up_waiting();
                self.pause_after_failure(seat, pause);
            }
        }
    }

    fn pause_after_failure(&mut self, seat: &mut Seat<'_>, pause: &mut Duration) {
        *pause = (*pause * 2).clamp(FIRST_PAUSE, LAST_PAUSE);
        self.pause(seat, pause.mul_f64(0.5 + random::unit() / 2.0));
    }

    /// Connects. What is pending waits behind what callers ask for from now on.
    fn connect(&mut self, seat: &mut Desk) -> Result<(), Cause> {
        let attempt = AssertUnwindSafe(|| self.connector.connect(self.former.as_ref()));
        let attempt = catch_unwind(attempt).unwrap_or_else(|_| Err(pipeline::panicked()));
        let round_trip = attempt.as_ref().ok();
        let round_trip = round_trip.map(|(_, greeting)| greeting.about.round_trip);
        seat.health.report.lock().connecting = round_trip;
        let reached = !attempt.as_ref().is_err_and(Cause::is_outage);
        seat.census.note_connect(self.node, reached);
        let (session, mut greeting): (Box<dyn Session>, Greeting) = match attempt {
            Ok(connected) => connected,
            Err(cause) => {
                // Nobody can mend that but who runs the nodes.
                if matches!(cause, Cause::Denied(_)) && seat.news().denied(Right::Connect) {
                    warn!("{}: {cause}", self.name);
                }
                self.tell_first(First::Down(cause.clone()));
                return Err(cause);
            }
        };
        seat.news().allowed(Right::Connect);
        self.tell_of_kill(seat, greeting.no_kill.as_ref());
        if let Some(former) = &self.former
            && former.run_id == greeting.run_id
        {
            greeting.about.refine(&former.about);
        }
        let entered = seat
            .census
            .enter(self.node, &greeting.run_id, self.is_one_server);
        let (about, run_id) = (greeting.about.clone(), greeting.run_id.clone());
        let runs = greeting.runs();
        let (how, is_quiet) = match self.former.replace(greeting) {
            None => ("connected", false),
            // Something that closes idle connections may do so all day.
            Some(former) if seat.health.up.load(Ordering::Acquire) => {
                ("connected again", former.run_id == run_id)
            }
            Some(_) => ("connected again", false),
        };
        match entered {
            Entered::Counted { epoch } => seat.epoch = epoch,
            Entered::Twin(twin) => {
                self.tell_first(First::Twin(twin));
                return Err(Cause::Unreachable(
                    "it is the same server as another of the nodes".into(),
                ));
            }
            Entered::SeveralServers => {
                let cause = Cause::Server(
                    "several servers answer at this address, as behind a balancer: each is a node of its own".into(),
                );
                if seat.news().several_servers() {
                    warn!("{}: {cause}", self.name);
                }
                self.tell_first(First::Down(cause.clone()));
                return Err(cause);
            }
        }
        self.counted = true;
        if let Err(cause) = self.judge(seat, about, &run_id) {
            self.tell_first(First::Down(cause.clone()));
            return Err(cause);
        }
        if seat.is_overdue() {
            // It was suspect for that long, and those who submitted before have stopped waiting.
            seat.health.report.lock().cause = Cause::TimedOut;
            self.refuse_what_waits(seat);
        }
        seat.open(session, &runs);
        seat.health.overdue.store(u64::MAX, Ordering::Release);
        if !seat.health.up.load(Ordering::Acquire) {
            seat.health.report.lock().since = clock::now();
            seat.health.up.store(true, Ordering::Release);
        }
        self.tell_first(First::Up);
        seat.census.rise();
        let is_news = seat.news().rose(std::mem::take(&mut self.is_down));
        self.log(is_news && !is_quiet, how);
        Ok(())
    }

    /// What follows from what the node says of itself, before it is up.
    fn judge(&self, seat: &Desk, about: About, run_id: &str) -> Result<(), Cause> {
        let (name, now, news) = (&self.name, clock::now(), seat.news());
        let quarantine = self.quarantine.map(|max_ttl| about.quarantine(max_ttl));
        let quarantine = quarantine.unwrap_or_default();
        let until = match quarantine.is_zero() {
            true => 0,
            false => deadline::deadline(now, quarantine).map_or(u64::MAX, clock::micros),
        };
        seat.health.quarantined.store(until, Ordering::Release);
        let fault = about.fault(self.strict);
        seat.health.report.lock().about = Some(about.clone());
        if let Some(cause) = fault {
            return Err(cause);
        }
        let (danger, offset) = (about.danger(), about.clock_is_off());
        if let (true, Some(danger)) = (news.danger(danger.as_deref()), danger) {
            warn!("{name}: {danger}");
        }
        if let (true, Some(offset)) = (news.clock(offset.is_some()), offset) {
            warn!("{name}: its clock is {offset}");
        }
        let far = about.is_too_far(self.node_timeout);
        if let (true, Some(far)) = (news.distance(far.is_some()), far) {
            warn!("{name}: {far}");
        }
        if until > 0 && news.quarantined(run_id) {
            info!("{name}: in quarantine for {quarantine:.1?}, since it started a short time ago");
        }
        Ok(())
    }

    /// Warns, once, where the server does not let us kill the former connection.
    fn tell_of_kill(&self, seat: &Desk, no_kill: Option<&Cause>) {
        match no_kill {
            None => seat.news().allowed(Right::Kill),
            Some(cause) if seat.news().denied(Right::Kill) => warn!(
                "{}: no right to CLIENT KILL: after a broken connection a request that was sent on it may still be executed, and \
                 its lock is then taken until its TTL ends: {cause}",
                self.name
            ),
            Some(_) => {}
        }
    }

    fn tell_first(&mut self, outcome: First) {
        if let Some(first) = &self.first {
            let last = matches!(outcome, First::Up);
            // Nobody listens any more when `Nodes::connect` has ended.
            if first.send((self.node, outcome)).is_err() || last {
                self.first = None;
            }
        }
    }

    /// Serves batches until the session fails or the lane is stopped; answers why it ended.
    fn serve(&mut self, seat: &mut Seat<'_>) -> Cause {
        loop {
            let done = match self.wait(seat) {
                Ok(()) => self.serve_what_waits(seat),
                Err(RecvTimeoutError::Timeout) => self.look_after(seat),
                Err(RecvTimeoutError::Disconnected) => {
                    self.stopping = true;
                    Ok(())
                }
            };
            match done {
                Err(cause) => return cause,
                Ok(()) if self.stopping => {
                    let stopped = Cause::Unreachable("the lane is stopped".into());
                    return seat.send_all_pending().err().unwrap_or(stopped);
                }
                Ok(()) => {}
            }
        }
    }

    /// Waits for the queue, and meanwhile leaves the seat to callers. They read what they have sent as a rule, so it looks
    /// seldom, and sleeps where they do not come.
    fn wait(&mut self, seat: &mut Seat<'_>) -> Result<(), RecvTimeoutError> {
        if !self.waiting.is_empty() {
            return Ok(());
        }
        let used = std::mem::take(&mut seat.used);
        seat.dozes = !used && !seat.is_open();
        let wait = if seat.dozes {
            PING_EVERY
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
        self.unpack(seat, message?);
        Ok(())
    }

    fn serve_what_waits(&mut self, seat: &mut Seat<'_>) -> Result<(), Cause> {
        // What callers have sent was before.
        seat.finish()?;
        // What waits has not been sent yet, so it can wait for the next connection.
        seat.check_idle()?;
        self.check_epoch(seat)?;
        self.fill(seat);
        seat.admit_pending();
        seat.exchange()
    }

    /// # Errors
    /// Why the connection is outdated. If its server is alive, it did not restart: several answer at the address.
    fn check_epoch(&self, seat: &mut Desk) -> Result<(), Cause> {
        let outdated = seat.check_epoch();
        if outdated.is_err()
            && self.is_one_server
            && seat.finish().and_then(|()| seat.ping()).is_ok()
        {
            seat.census.doubt(self.node);
        }
        outdated
    }

    /// Nothing was queued for some time.
    pub(crate) fn look_after(&mut self, seat: &mut Seat<'_>) -> Result<(), Cause> {
        self.check_epoch(seat)?;
        let now = clock::now();
        if seat.pending_due(now).is_some_and(|due| due <= now) {
            return self.serve_what_waits(seat);
        }
        // A caller may have come meanwhile, and its answer is the next to be read.
        if seat.dozes && !seat.is_open() {
            seat.check_idle()?;
            return seat.ping();
        }
        match clock::now().checked_sub(self.look_every) {
            Some(then) if !seat.waits_since(then) => Ok(()),
            _ => seat.finish(),
        }
    }

    /// Takes in a message, of which nobody need wait for the seat any more.
    fn unpack(&mut self, seat: &Desk, message: Message) {
        match message {
            Message::Job(job) => self.waiting.push_back(job),
            Message::Jobs(jobs) => self.waiting.extend(jobs),
            Message::Stop => self.stopping = true,
            Message::Start | Message::Look => {}
        }
        self.seen(seat);
    }

    /// A message is out of the queue, and what it brings in our hands.
    fn seen(&self, seat: &Desk) {
        seat.health.queued.fetch_sub(1, Ordering::SeqCst);
    }

    /// Gathers a batch of what waits, up to the limit.
    fn fill(&mut self, seat: &mut Desk) {
        while seat.has_room() {
            match self.waiting.pop_front() {
                Some(job) if seat.shares_a_token(&job) => {
                    // Within a batch the order is not kept when scripts have to be loaded again.
                    self.waiting.push_front(job);
                    return;
                }
                Some(job) => seat.admit(job),
                // What comes after a stop is not served.
                None if self.stopping => return,
                None => match self.queue.try_recv() {
                    Ok(message) => self.unpack(seat, message),
                    Err(_) => return,
                },
            }
        }
    }

    /// The connection has ended, which says nothing of the node yet. What was not sent waits for one connect, and callers may go
    /// on to submit, for as long as they wait for an answer: else all would fail on all nodes at once where something closes idle
    /// connections.
    fn lose(&mut self, seat: &mut Desk, cause: &Cause) {
        debug!("{}: connection ended, reconnecting: {cause}", self.name);
        self.leave_census(seat);
        seat.close(cause);
        seat.expect_connect();
    }

    fn leave_census(&mut self, seat: &Desk) {
        if let (true, Some(former)) = (std::mem::take(&mut self.counted), &self.former) {
            seat.census.leave(self.node, &former.run_id);
        }
    }

    /// The node does not answer: tells the callers, and answers all that the lane holds before anything blocks.
    fn fall(&mut self, seat: &mut Desk, cause: Cause) {
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
        let is_first = !std::mem::replace(&mut self.is_down, true);
        let is_outage = is_first && seat.news().fell();
        if (is_outage || was_up || news) && !self.stopping {
            self.log(is_outage, &format!("suspect: {cause}"));
        }
        seat.close(&cause);
        self.refuse_what_waits(seat);
    }

    /// Answers what has not been sent, here and in the queue.
    fn refuse_what_waits(&mut self, seat: &mut Desk) {
        while let Some(job) = self.waiting.pop_front() {
            seat.refuse(job);
        }
        while let Ok(message) = self.queue.try_recv() {
            self.refuse_message(seat, message);
        }
    }

    /// What is news of the node is for everybody, and what repeats it, or is of one more connection to it, for debugging. A
    /// logger that panics is no fault of the node.
    fn log(&self, is_news: bool, what: &str) {
        let level = if is_news { Level::Info } else { Level::Debug };
        threads::catch(&self.name, || log!(level, "{}: {what}", self.name));
    }

    /// Waits before the next connect, and answers what comes in the meantime.
    fn pause(&mut self, seat: &mut Desk, pause: Duration) {
        let end = clock::now() + pause;
        while !self.stopping {
            match self.queue.recv_deadline(end) {
                Ok(message) => self.refuse_message(seat, message),
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => self.stopping = true,
            }
        }
    }

    fn refuse_message(&mut self, seat: &mut Desk, message: Message) {
        self.unpack(seat, message);
        while let Some(job) = self.waiting.pop_front() {
            seat.refuse(job);
        }
    }
}
