//! One open connection and what is on its wire. The lane's thread sits here, or a caller for a moment, who finds nobody before him:
//! then his request goes out, and its answer comes back, without a word to the thread.
//!
//! What is written here is answered here or owed to the node, whoever wrote it. Nobody but the thread ever waits for the node.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use log::{trace, warn};

use crate::error::NodeFailure;
use crate::protocol::reply::Reply;
use crate::protocol::request::{Op, Request};
use crate::protocol::send_check::{note_answered, record_sent, replacement_release, skip_reply};
use crate::protocol::{reply, server_error};
use crate::telemetry::observer;
use crate::telemetry::observer::{NodeReply, Observer};
use crate::time::clock;
use crate::transport::job::{Job, MAX_BATCH, PendingReply, State};
use crate::transport::node::traits::{DirectIo, InFlight, Session};
use crate::transport::pending_releases::PendingReleases;
use crate::transport::registry::NodeRegistry;
use crate::transport::status::ConnectionStatus;
use crate::transport::warning_state::{Permission, WarningState};

/// So many requests of callers may be on the wire at a time, of so many bytes each. More are better sent together, by the thread;
/// and these a socket takes at once, so that nobody waits for a node that hangs.
pub(crate) const MAX_DIRECT_IN_FLIGHT: usize = 8;
const MAX_DIRECT_BYTES: usize = 2048;

/// A connection, while there is one, and what is on its wire.
pub(crate) struct Pipeline {
    pub(crate) node: usize,
    pub(crate) name: String,
    pub(crate) health: Arc<ConnectionStatus>,
    pub(crate) census: Arc<NodeRegistry>,
    /// The node's epoch when the connection was made.
    pub(crate) epoch: u64,
    node_timeout: Duration,
    observer: Option<Arc<dyn Observer>>,
    pub(crate) session: Option<Box<dyn Session>>,
    /// The batch on the wire, and where its answers go.
    pub(crate) batch: Vec<Request>,
    pub(crate) batch_pending: Vec<PendingReply>,
    /// What callers have sent, oldest first, and where those answers go.
    pub(crate) in_flight: VecDeque<InFlight>,
    pub(crate) pending_replies: VecDeque<(PendingReply, Instant)>,
    pub(crate) next_id: u64,
    /// Releases to be made again.
    pub(crate) pending: PendingReleases,
    /// The runs of the servers that the connection leads to, or the last one did.
    runs: String,
    /// When the first connection to them was made.
    runs_since: Instant,
    /// Whether the node has answered anything on the connection.
    has_answered: bool,
    /// Why the connection is of no use any more, until the thread has seen to it.
    pub(crate) failure: Option<NodeFailure>,
    /// Whether the thread sleeps until somebody wakes it.
    pub(crate) worker_asleep: bool,
    /// Whether a caller has sat here since the thread looked last.
    pub(crate) used_since_poll: bool,
}

impl Pipeline {
    pub(crate) fn new(
        node: usize,
        name: &str,
        node_timeout: Duration,
        observer: Option<Arc<dyn Observer>>,
        health: Arc<ConnectionStatus>,
        census: Arc<NodeRegistry>,
    ) -> Pipeline {
        Pipeline {
            node,
            name: name.to_owned(),
            pending: PendingReleases::new(node, &health),
            health,
            census,
            epoch: 0,
            node_timeout,
            observer,
            session: None,
            batch: Vec::with_capacity(MAX_BATCH),
            batch_pending: Vec::with_capacity(MAX_BATCH),
            in_flight: VecDeque::new(),
            pending_replies: VecDeque::new(),
            next_id: 0,
            runs: String::new(),
            runs_since: clock::now(),
            has_answered: false,
            failure: None,
            worker_asleep: false,
            used_since_poll: false,
        }
    }

    /// Takes a session with servers of these runs. What is pending goes behind what is asked from now on.
    pub(crate) fn attach_session(&mut self, session: Box<dyn Session>, runs: &str) {
        self.session = Some(session);
        self.has_answered = false;
        self.failure = None;
        if self.runs != runs {
            runs.clone_into(&mut self.runs);
            self.runs_since = clock::now();
        }
        self.note_killed();
    }

    /// What the log has said of the node.
    pub(crate) fn news(&self) -> &WarningState {
        self.census.warnings(self.node)
    }

    /// Whether no other connection to the node has led to another run of its server since this one was made.
    fn is_current(&self) -> bool {
        self.census.epoch(self.node) == self.epoch
    }

    /// # Errors
    /// Why the connection is outdated.
    pub(crate) fn check_epoch(&self) -> Result<(), NodeFailure> {
        match self.is_current() {
            true => Ok(()),
            false => Err(NodeFailure::Unreachable(
                "another connection has led to another server, or to this one restarted".to_owned(),
            )),
        }
    }

    /// Whether the node has answered anything on the connection, or on the last one.
    pub(crate) fn has_answered(&self) -> bool {
        self.has_answered
    }

    /// Why the lane is not up.
    pub(crate) fn cause(&self) -> NodeFailure {
        self.health.report.lock().cause.clone()
    }

    /// Whether the batch has room.
    pub(crate) fn has_room(&self) -> bool {
        self.batch.len() < MAX_BATCH
    }

    pub(crate) fn shares_a_token(&self, job: &Job) -> bool {
        let mut others = self.batch.iter();
        others.any(|other| other.shares_token(&job.request))
    }

    /// Puts a job into the batch, unless what it is for is over: then it is dropped unsent.
    pub(crate) fn push_to_batch(&mut self, job: Job) {
        let now = clock::now();
        if let Some((request, back)) = self.prepare(job, now) {
            record_sent(&request, self.node, now);
            self.batch.push(request);
            self.batch_pending.push(back);
        }
    }

    /// `None` where it is answered unsent.
    fn prepare(&self, job: Job, now: Instant) -> Option<(Request, PendingReply)> {
        let Job { request, reply } = job;
        let mut back = PendingReply::new(reply);
        let (node, quarantine) = (self.node, self.health.quarantine(now));
        let Some(mut answer) = skip_reply(&request, node, quarantine, now) else {
            return Some((request, back));
        };
        if let Some(release) = replacement_release(&request, &answer) {
            match skip_reply(&release, node, quarantine, now) {
                None => {
                    back.was_sent = true;
                    return Some((release, back));
                }
                Some(unsent) => answer = unsent,
            }
        }
        back.deliver(self.node, answer);
        None
    }

    /// Sends the batch and hands out the answers. Afterwards it is empty, whatever happened.
    pub(crate) fn send_batch(&mut self) -> Result<(), NodeFailure> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let mut session = self.session.take();
        let (mut requests, mut returns) = (
            std::mem::take(&mut self.batch),
            std::mem::take(&mut self.batch_pending),
        );
        let (sent, mut replies, mut undone) = (clock::now(), 0, None);
        let done = self.with_overdue_mark(|| match &mut session {
            None => Err(no_connection()),
            Some(session) => session.send_batch(&requests, &mut |index, answer| {
                replies += 1;
                let (request, back) = (&requests[index], &mut returns[index]);
                let stays = self.handle_reply(request, back, answer, sent, clock::now());
                undone = undone.take().or(stays.err());
            }),
        });
        self.has_answered |= replies > 0;
        let took = clock::now().saturating_duration_since(sent);
        (replies..requests.len()).for_each(|_| self.record_reply(NodeReply::NoReply, took));
        let done = done.and(undone.map_or(Ok(()), Err));
        match &done {
            Ok(()) => {
                for (request, back) in requests.drain(..).zip(returns.drain(..)) {
                    self.settle(request, back);
                }
                self.session = session;
            }
            Err(cause) => {
                for (request, back) in requests.drain(..).zip(returns.drain(..)) {
                    self.abandon_request(request, back, cause);
                }
                self.abort_connection(cause);
            }
        }
        (self.batch, self.batch_pending) = (requests, returns);
        done
    }

    /// What follows from an answer to what was sent then. The error is why the connection is not to be used any more.
    fn handle_reply(
        &self,
        request: &Request,
        back: &mut PendingReply,
        answer: Reply,
        sent: Instant,
        now: Instant,
    ) -> Result<(), NodeFailure> {
        let (name, news) = (&self.name, self.news());
        trace!("{name}: {:?} {answer:?}", request.verb);
        self.record_reply(answer.reply(), now.saturating_duration_since(sent));
        // The node may have taken its time: what it did, it did by now.
        record_sent(request, self.node, now);
        note_answered(request, self.node, &answer);
        let right = Permission::Run(request.verb, request.lease.claim());
        let mut stays = Ok(());
        back.state = State::Answered;
        let keys = request.lease.keys();
        if answer.is_endless() {
            let key = match &answer {
                Reply::Held(reply::Blocker::OwnerOfKey(key), _) => keys.as_slice().get(*key),
                _ => None,
            };
            let key = key.unwrap_or(keys.first());
            if news.foreign(key, request) {
                warn!("{name}: {key}: held without an end, as no lock is: it is left untouched");
            }
        }
        match &answer {
            Reply::Failed(cause) => {
                if *cause == NodeFailure::WrongType && news.foreign(keys.first(), request) {
                    warn!("{name}: {keys}: {cause}: it is left untouched");
                }
                if request.verb == Op::Release {
                    back.state = self.refused_release(request, cause, now);
                } else if matches!(cause, NodeFailure::AccessDenied(_))
                    && news.is_newly_denied(right)
                {
                    warn!("{name}: {}: {cause}", request.verb);
                }
                // It was a master when it was greeted. Another may be by now, where somebody tells us which.
                if server_error::is_read_only(cause) {
                    stays = Err(cause.clone());
                }
            }
            Reply::Done | Reply::DoneNotified(_) | Reply::Fenced(_) | Reply::SwappedAbsent(_) => {
                news.clear_denied(right);
                if matches!(request.verb, Op::Acquire | Op::Swap) {
                    news.not_foreign(request);
                }
            }
            _ => {}
        }
        back.post_from(self.runs_since, &request.lease, self.node, answer);
        stays
    }

    /// What becomes of a release that was answered with an error. A server that cannot delete now (MISCONF, BUSY …) may be able
    /// to later.
    fn refused_release(&self, request: &Request, cause: &NodeFailure, now: Instant) -> State {
        // On this connection nothing runs any more of the former one.
        request.lease.note_killed(self.node, now);
        if cause.is_permanent() || !request.lease.may_exist(self.node, now) {
            return State::Answered;
        }
        let code = match cause {
            NodeFailure::ServerError(text) | NodeFailure::AccessDenied(text) => {
                match server_error::code(text) {
                    "ERR" => text,
                    code => code,
                }
            }
            _ => "",
        };
        if self.news().refused_release(code) {
            let name = &self.name;
            warn!("{name}: release refused, tried again until the lease's TTL is over: {cause}");
        }
        State::Refused
    }

    pub(crate) fn record_reply(&self, reply: NodeReply, latency: Duration) {
        self.health.counters.record(reply, latency);
        let observer = self.observer.as_ref();
        observer::notify(observer, |observer| {
            observer.replied(&self.name, reply, latency);
        });
    }

    /// Finds out whether the connection has ended, or is out of step, where nothing is on the wire: then nothing is lost with it.
    pub(crate) fn check_idle(&mut self) -> Result<(), NodeFailure> {
        self.while_idle(|session| session.check_idle())
    }

    /// Asks for a sign of life, where nothing is on the wire.
    pub(crate) fn ping(&mut self) -> Result<(), NodeFailure> {
        let done = self.while_idle(|session| session.ping());
        self.has_answered |= done.is_ok();
        done
    }

    fn while_idle(
        &mut self,
        talk: impl FnOnce(&mut dyn Session) -> Result<(), NodeFailure>,
    ) -> Result<(), NodeFailure> {
        debug_assert!(!self.has_in_flight());
        let mut session = self.session.take();
        let done =
            self.with_overdue_mark(|| talk(session.as_deref_mut().ok_or_else(no_connection)?));
        self.session = session;
        done
    }

    /// Talks to the node. While that is overdue, callers see it: a reply that comes byte by byte can take longer than any
    /// time-out, and what were queued behind it would not be served.
    pub(crate) fn with_overdue_mark(
        &self,
        talk: impl FnOnce() -> Result<(), NodeFailure>,
    ) -> Result<(), NodeFailure> {
        let overdue = clock::to_micros(clock::now() + self.node_timeout);
        self.health.overdue_at.store(overdue, Ordering::Release);
        let done = catch_panic(talk);
        self.health.overdue_at.store(u64::MAX, Ordering::Release);
        if done.is_ok() && clock::to_micros(clock::now()) > overdue {
            self.census.record_connected(); // callers have seen it down
        }
        done
    }
}

/// What a caller does here, who does not wait.
impl Pipeline {
    /// Sends a job, whose request is `bytes` on the wire, if nobody is before it, and answers whether the thread has to be woken
    /// to look for the answer. The job is given back where the thread must see to it, or does better.
    pub(crate) fn send_direct(
        &mut self,
        job: Job,
        bytes: &[u8],
        now: Instant,
    ) -> Result<bool, Job> {
        let may_follow = |flight: &InFlight| {
            !flight.request.shares_token(&job.request) || flight.request.is_plain_set()
        };
        // What holders are called may be anything, and is no matter of a glance.
        let is_small = bytes.len() <= MAX_DIRECT_BYTES && job.request.verb != Op::Inspect;
        let is_free = self.failure.is_none()
            && self.is_current()
            && is_small
            && self.in_flight.len() < MAX_DIRECT_IN_FLIGHT
            && self.in_flight.iter().all(may_follow);
        let prompt = self
            .session
            .as_mut()
            .and_then(|session| session.direct_io());
        if !is_free || prompt.is_none_or(|prompt| !prompt.can_append()) {
            return Err(job);
        }
        if skip_reply(&job.request, self.node, self.health.quarantine(now), now).is_some() {
            return Err(job); // what it is for is over: something else may have to be sent in its place
        }
        let is_idle = self.in_flight.is_empty();
        let check = |session: &mut Box<dyn Session>| catch_panic(|| session.check_idle()).is_ok();
        if is_idle && !self.session.as_mut().is_some_and(check) {
            return Err(job); // the thread finds the same, and connects before it sends the job
        }
        let Job { request, reply } = job;
        record_sent(&request, self.node, now);
        let number = self.next_id;
        self.next_id += 1;
        let sent = self.with_direct_io(|prompt, _| prompt.send(number, bytes));
        if is_idle {
            self.set_overdue(now);
        }
        self.in_flight.push_back(InFlight { number, request });
        self.pending_replies
            .push_back((PendingReply::new(reply), now));
        self.used_since_poll = true;
        if let Err(cause) = sent {
            self.failure = Some(cause);
        }
        Ok(self.worker_asleep || self.failure.is_some())
    }

    /// Takes in the answers that have come. `true` if the thread must see to the connection, or to a pending release.
    pub(crate) fn poll_replies(&mut self) -> bool {
        let pending = self.pending.len();
        if self.failure.is_none()
            && let Err(cause) = self.read_replies(false)
        {
            self.failure = Some(cause);
        }
        // A release that is to be tried again is new to the thread, which may sleep for longer.
        self.failure.is_some() || self.pending.len() > pending
    }

    /// Whether callers have left answers to be waited for.
    pub(crate) fn has_in_flight(&self) -> bool {
        !self.in_flight.is_empty() || self.failure.is_some()
    }

    /// Whether the oldest of what callers have sent is as old as that.
    pub(crate) fn oldest_sent_before(&self, then: Instant) -> bool {
        self.failure.is_some()
            || self
                .pending_replies
                .front()
                .is_some_and(|(_, sent)| *sent <= then)
    }

    /// Waits for the answers to what callers have sent, for each as long as a node may take.
    pub(crate) fn drain_replies(&mut self) -> Result<(), NodeFailure> {
        let done = match self.failure.take() {
            Some(cause) => Err(cause),
            None => self.read_replies(true),
        };
        if let Err(cause) = &done {
            self.abort_connection(cause);
        }
        done
    }

    /// Takes answers in, waiting for them or not, until none is open, or none is there.
    fn read_replies(&mut self, waits: bool) -> Result<(), NodeFailure> {
        while let Some((_, sent)) = self.pending_replies.front() {
            let end = waits.then(|| *sent + self.node_timeout);
            let next = self.with_direct_io(|prompt, flights| prompt.next_reply(flights, end))?;
            let Some((number, answer)) = next else {
                return Ok(());
            };
            let place = self.in_flight.iter().position(|one| one.number == number);
            let flight = place.and_then(|place| self.in_flight.remove(place));
            let back = place.and_then(|place| self.pending_replies.remove(place));
            let (Some(flight), Some((mut back, sent))) = (flight, back) else {
                continue;
            };
            let now = clock::now();
            match self.pending_replies.front() {
                None => self.health.overdue_at.store(u64::MAX, Ordering::Release),
                Some((_, sent)) => self.set_overdue(*sent),
            }
            if now > sent + self.node_timeout {
                self.census.record_connected(); // callers have seen it down
            }
            let stays = self.handle_reply(&flight.request, &mut back, answer, sent, now);
            self.has_answered = true;
            self.settle(flight.request, back);
            stays?;
        }
        Ok(())
    }

    /// The connection has ended, and a connect follows. Callers may wait for it as they do for an answer.
    pub(crate) fn expect_connect(&self) {
        self.set_overdue(clock::now());
    }

    /// Whether what is expected of the node has not come in time.
    pub(crate) fn is_overdue(&self) -> bool {
        clock::to_micros(clock::now()) > self.health.overdue_at.load(Ordering::Acquire)
    }

    /// What was sent then is the oldest that is open.
    fn set_overdue(&self, sent: Instant) {
        let overdue = clock::to_micros(sent + self.node_timeout);
        self.health.overdue_at.store(overdue, Ordering::Release);
    }

    fn with_direct_io<T>(
        &mut self,
        talk: impl FnOnce(&mut dyn DirectIo, &VecDeque<InFlight>) -> Result<T, NodeFailure>,
    ) -> Result<T, NodeFailure> {
        let prompt = self
            .session
            .as_mut()
            .and_then(|session| session.direct_io());
        let prompt = prompt.ok_or_else(no_connection)?;
        catch_panic(|| talk(prompt, &self.in_flight))
    }
}

/// A panic as an error: neither a caller nor the lane's thread is to end by what is said to a node.
pub(crate) fn catch_panic<T>(
    talk: impl FnOnce() -> Result<T, NodeFailure>,
) -> Result<T, NodeFailure> {
    catch_unwind(AssertUnwindSafe(talk)).unwrap_or_else(|_| Err(panic_failure()))
}

pub(crate) fn panic_failure() -> NodeFailure {
    NodeFailure::Unreachable("a panic in the lane".into())
}

pub(crate) fn no_connection() -> NodeFailure {
    NodeFailure::Unreachable("there is no connection".into())
}
