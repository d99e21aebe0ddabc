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

use crate::error::Cause;
use crate::protocol::reply::Answer;
use crate::protocol::request::{Request, Verb};
use crate::protocol::send_check::{instead, note_answered, note_written, unsent};
use crate::protocol::{reply, server_error};
use crate::telemetry::observer;
use crate::telemetry::observer::{NodeReply, Observer};
use crate::time::clock;
use crate::transport::job::{BATCH, Job, Return, State};
use crate::transport::node::traits::{Flight, Prompt, Session};
use crate::transport::pending_releases::PendingReleases;
use crate::transport::registry::Census;
use crate::transport::status::Health;
use crate::transport::warning_state::{News, Right};

/// So many requests of callers may be on the wire at a time, of so many bytes each. More are better sent together, by the thread;
/// and these a socket takes at once, so that nobody waits for a node that hangs.
pub(crate) const FEW: usize = 8;
const SHORT: usize = 2048;

/// A connection, while there is one, and what is on its wire.
pub(crate) struct Desk {
    pub(crate) node: usize,
    pub(crate) name: String,
    pub(crate) health: Arc<Health>,
    pub(crate) census: Arc<Census>,
    /// The node's epoch when the connection was made.
    pub(crate) epoch: u64,
    node_timeout: Duration,
    observer: Option<Arc<dyn Observer>>,
    pub(crate) session: Option<Box<dyn Session>>,
    /// The batch on the wire, and where its answers go.
    pub(crate) requests: Vec<Request>,
    pub(crate) returns: Vec<Return>,
    /// What callers have sent, oldest first, and where those answers go.
    pub(crate) flights: VecDeque<Flight>,
    pub(crate) backs: VecDeque<(Return, Instant)>,
    pub(crate) next: u64,
    /// Releases to be made again.
    pub(crate) pending: PendingReleases,
    /// The runs of the servers that the connection leads to, or the last one did.
    pub(crate) runs: Arc<str>,
    /// Why the connection is of no use any more, until the thread has seen to it.
    pub(crate) broken: Option<Cause>,
    /// Whether the thread sleeps until somebody wakes it.
    pub(crate) dozes: bool,
    /// Whether a caller has sat here since the thread looked last.
    pub(crate) used: bool,
}

impl Desk {
    pub(crate) fn new(
        node: usize,
        name: &str,
        node_timeout: Duration,
        observer: Option<Arc<dyn Observer>>,
        health: Arc<Health>,
        census: Arc<Census>,
    ) -> Desk {
        Desk {
            node,
            name: name.to_owned(),
            pending: PendingReleases::new(node, &health),
            health,
            census,
            epoch: 0,
            node_timeout,
            observer,
            session: None,
            requests: Vec::with_capacity(BATCH),
            returns: Vec::with_capacity(BATCH),
            flights: VecDeque::new(),
            backs: VecDeque::new(),
            next: 0,
            runs: Arc::default(),
            broken: None,
            dozes: false,
            used: false,
        }
    }

    /// Takes a session with servers of these runs. What is pending goes behind what is asked from now on.
    pub(crate) fn open(&mut self, session: Box<dyn Session>, runs: &str) {
        self.session = Some(session);
        self.broken = None;
        if *self.runs != *runs {
            self.runs = Arc::from(runs);
        }
        self.note_killed();
    }

    /// What the log has said of the node.
    pub(crate) fn news(&self) -> &News {
        self.census.news(self.node)
    }

    /// Whether no other connection to the node has led to another run of its server since this one was made.
    fn is_current(&self) -> bool {
        self.census.epoch(self.node) == self.epoch
    }

    /// # Errors
    /// Why the connection is outdated.
    pub(crate) fn check_epoch(&self) -> Result<(), Cause> {
        match self.is_current() {
            true => Ok(()),
            false => Err(Cause::Unreachable(
                "another connection has led to another server, or to this one restarted".to_owned(),
            )),
        }
    }

    /// Why the lane is not up.
    pub(crate) fn cause(&self) -> Cause {
        self.health.report.lock().cause.clone()
    }

    /// Whether the batch has room.
    pub(crate) fn has_room(&self) -> bool {
        self.requests.len() < BATCH
    }

    pub(crate) fn shares_a_token(&self, job: &Job) -> bool {
        let mut others = self.requests.iter();
        others.any(|other| other.shares_a_token(&job.request))
    }

    /// Puts a job into the batch, unless what it is for is over: then it is dropped unsent.
    pub(crate) fn admit(&mut self, job: Job) {
        let now = clock::now();
        if let Some((request, back)) = self.accept(job, now) {
            note_written(&request, self.node, now);
            self.requests.push(request);
            self.returns.push(back);
        }
    }

    /// `None` where it is answered unsent.
    fn accept(&self, job: Job, now: Instant) -> Option<(Request, Return)> {
        let Job { request, reply } = job;
        let mut back = Return::new(reply);
        let (node, quarantine) = (self.node, self.health.quarantine(now));
        let Some(mut answer) = unsent(&request, node, quarantine, now) else {
            return Some((request, back));
        };
        if let Some(release) = instead(&request, &answer) {
            match unsent(&release, node, quarantine, now) {
                None => {
                    back.sent_to = Some(Arc::clone(&self.runs));
                    return Some((release, back));
                }
                Some(unsent) => answer = unsent,
            }
        }
        back.post(self.node, answer);
        None
    }

    /// Sends the batch and hands out the answers. Afterwards it is empty, whatever happened.
    pub(crate) fn exchange(&mut self) -> Result<(), Cause> {
        if self.requests.is_empty() {
            return Ok(());
        }
        let mut session = self.session.take();
        let (mut requests, mut returns) = (
            std::mem::take(&mut self.requests),
            std::mem::take(&mut self.returns),
        );
        let (sent, mut replies, mut undone) = (clock::now(), 0, None);
        let done = self.watched(|| match &mut session {
            None => Err(gone()),
            Some(session) => session.exchange(&requests, &mut |index, answer| {
                replies += 1;
                let (request, back) = (&requests[index], &mut returns[index]);
                let stays = self.answered(request, back, answer, sent, clock::now());
                undone = undone.take().or(stays.err());
            }),
        });
        let took = clock::now().saturating_duration_since(sent);
        (replies..requests.len()).for_each(|_| self.note(NodeReply::Unknown, took));
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
                    self.give_up(request, back, cause);
                }
                self.break_off(cause);
            }
        }
        (self.requests, self.returns) = (requests, returns);
        done
    }

    /// What follows from an answer to what was sent then. The error is why the connection is not to be used any more.
    fn answered(
        &self,
        request: &Request,
        back: &mut Return,
        answer: Answer,
        sent: Instant,
        now: Instant,
    ) -> Result<(), Cause> {
        let (name, news) = (&self.name, self.news());
        trace!("{name}: {:?} {answer:?}", request.verb);
        self.note(answer.reply(), now.saturating_duration_since(sent));
        // The node may have taken its time: what it did, it did by now.
        note_written(request, self.node, now);
        note_answered(request, self.node, &answer);
        let right = Right::Serve(request.verb, request.lease.claim());
        let mut stays = Ok(());
        back.state = State::Answered;
        let keys = request.lease.keys();
        if answer.is_endless() {
            let key = match &answer {
                Answer::Held(reply::Holder::Of(key), _) => keys.all().get(*key),
                _ => None,
            };
            let key = key.unwrap_or(keys.first());
            if news.foreign(key) {
                warn!("{name}: {key}: held without an end, as no lock is: it is left untouched");
            }
        }
        match &answer {
            Answer::Fault(cause) => {
                if *cause == Cause::WrongType && news.foreign(keys.first()) {
                    warn!("{name}: {keys}: {cause}: it is left untouched");
                }
                if request.verb == Verb::Release {
                    back.state = self.refused_release(request, cause, now);
                } else if matches!(cause, Cause::Denied(_)) && news.denied(right) {
                    warn!("{name}: {}: {cause}", request.verb);
                }
                // It was a master when it was greeted. Another may be by now, where somebody tells us which.
                if server_error::is_read_only(cause) {
                    stays = Err(cause.clone());
                }
            }
            Answer::Yes | Answer::Heard(_) | Answer::Numbered(_) | Answer::Anew(_) => {
                news.allowed(right);
                if matches!(request.verb, Verb::Take | Verb::Swap) {
                    news.not_foreign(keys);
                }
            }
            _ => {}
        }
        back.post_from(&self.runs, self.node, answer);
        stays
    }

    /// What becomes of a release that was answered with an error. A server that cannot delete now (MISCONF, BUSY …) may be able
    /// to later.
    fn refused_release(&self, request: &Request, cause: &Cause, now: Instant) -> State {
        // On this connection nothing runs any more of the former one.
        request.lease.note_killed(self.node, now);
        if cause.is_lasting() || !request.lease.may_exist(self.node, now) {
            return State::Answered;
        }
        let code = match cause {
            Cause::Server(text) | Cause::Denied(text) => match server_error::code(text) {
                "ERR" => text,
                code => code,
            },
            _ => "",
        };
        if self.news().refused_release(code) {
            let name = &self.name;
            warn!("{name}: release refused, tried again until the lease's TTL is over: {cause}");
        }
        State::Refused
    }

    pub(crate) fn note(&self, reply: NodeReply, latency: Duration) {
        self.health.traffic.note(reply, latency);
        let observer = self.observer.as_ref();
        observer::tell(observer, |observer| {
            observer.replied(&self.name, reply, latency);
        });
    }

    /// Finds out whether the connection has ended, or is out of step, where nothing is on the wire: then nothing is lost with it.
    pub(crate) fn check_idle(&mut self) -> Result<(), Cause> {
        debug_assert!(!self.is_open());
        let mut session = self.session.take();
        let done = self.watched(|| session.as_mut().ok_or_else(gone)?.check_idle());
        self.session = session;
        done
    }

    /// Asks for a sign of life, where nothing is on the wire.
    pub(crate) fn ping(&mut self) -> Result<(), Cause> {
        debug_assert!(!self.is_open());
        let mut session = self.session.take();
        let done = self.watched(|| session.as_mut().ok_or_else(gone)?.ping());
        self.session = session;
        done
    }

    /// Talks to the node. While that is overdue, callers see it: a reply that comes byte by byte can take longer than any
    /// time-out, and what were queued behind it would not be served.
    pub(crate) fn watched(&self, talk: impl FnOnce() -> Result<(), Cause>) -> Result<(), Cause> {
        let overdue = clock::micros(clock::now() + self.node_timeout);
        self.health.overdue.store(overdue, Ordering::Release);
        let done = caught(talk);
        self.health.overdue.store(u64::MAX, Ordering::Release);
        if done.is_ok() && clock::micros(clock::now()) > overdue {
            self.census.rise(); // callers have seen it down
        }
        done
    }
}

/// What a caller does here, who does not wait.
impl Desk {
    /// Sends a job, whose request is `bytes` on the wire, if nobody is before it, and answers whether the thread has to be woken
    /// to look for the answer. The job is given back where the thread must see to it, or does better.
    pub(crate) fn begin(&mut self, job: Job, bytes: &[u8], now: Instant) -> Result<bool, Job> {
        let may_follow = |flight: &Flight| {
            !flight.request.shares_a_token(&job.request) || flight.request.is_set()
        };
        // What holders are called may be anything, and is no matter of a glance.
        let is_small = bytes.len() <= SHORT && job.request.verb != Verb::Tell;
        let is_free = self.broken.is_none()
            && self.is_current()
            && is_small
            && self.flights.len() < FEW
            && self.flights.iter().all(may_follow);
        let prompt = self.session.as_mut().and_then(|session| session.prompt());
        if !is_free || prompt.is_none_or(|prompt| !prompt.is_in_order()) {
            return Err(job);
        }
        if unsent(&job.request, self.node, self.health.quarantine(now), now).is_some() {
            return Err(job); // what it is for is over: something else may have to be sent in its place
        }
        let is_idle = self.flights.is_empty();
        let check = |session: &mut Box<dyn Session>| caught(|| session.check_idle()).is_ok();
        if is_idle && !self.session.as_mut().is_some_and(check) {
            return Err(job); // the thread finds the same, and connects before it sends the job
        }
        let Job { request, reply } = job;
        note_written(&request, self.node, now);
        let number = self.next;
        self.next += 1;
        let sent = self.with_prompt(|prompt, _| prompt.send(number, bytes));
        if is_idle {
            self.expect_by(now);
        }
        self.flights.push_back(Flight { number, request });
        self.backs.push_back((Return::new(reply), now));
        self.used = true;
        if let Err(cause) = sent {
            self.broken = Some(cause);
        }
        Ok(self.dozes || self.broken.is_some())
    }

    /// Takes in the answers that have come. `true` if the thread must see to the connection, or to a pending release.
    pub(crate) fn look(&mut self) -> bool {
        let pending = self.pending.len();
        if self.broken.is_none()
            && let Err(cause) = self.take_in(false)
        {
            self.broken = Some(cause);
        }
        // A release that is to be tried again is new to the thread, which may sleep for longer.
        self.broken.is_some() || self.pending.len() > pending
    }

    /// Whether callers have left answers to be waited for.
    pub(crate) fn is_open(&self) -> bool {
        !self.flights.is_empty() || self.broken.is_some()
    }

    /// Whether the oldest of what callers have sent is as old as that.
    pub(crate) fn waits_since(&self, then: Instant) -> bool {
        self.broken.is_some() || self.backs.front().is_some_and(|(_, sent)| *sent <= then)
    }

    /// Waits for the answers to what callers have sent, for each as long as a node may take.
    pub(crate) fn finish(&mut self) -> Result<(), Cause> {
        let done = match self.broken.take() {
            Some(cause) => Err(cause),
            None => self.take_in(true),
        };
        if let Err(cause) = &done {
            self.break_off(cause);
        }
        done
    }

    /// Takes answers in, waiting for them or not, until none is open, or none is there.
    fn take_in(&mut self, waits: bool) -> Result<(), Cause> {
        while let Some((_, sent)) = self.backs.front() {
            let end = waits.then(|| *sent + self.node_timeout);
            let next = self.with_prompt(|prompt, flights| prompt.next(flights, end))?;
            let Some((number, answer)) = next else {
                return Ok(());
            };
            let place = self.flights.iter().position(|one| one.number == number);
            let flight = place.and_then(|place| self.flights.remove(place));
            let back = place.and_then(|place| self.backs.remove(place));
            let (Some(flight), Some((mut back, sent))) = (flight, back) else {
                continue;
            };
            let now = clock::now();
            match self.backs.front() {
                None => self.health.overdue.store(u64::MAX, Ordering::Release),
                Some((_, sent)) => self.expect_by(*sent),
            }
            if now > sent + self.node_timeout {
                self.census.rise(); // callers have seen it down
            }
            let stays = self.answered(&flight.request, &mut back, answer, sent, now);
            self.settle(flight.request, back);
            stays?;
        }
        Ok(())
    }

    /// The connection has ended, and a connect follows. Callers may wait for it as they do for an answer.
    pub(crate) fn expect_connect(&self) {
        self.expect_by(clock::now());
    }

    /// Whether what is expected of the node has not come in time.
    pub(crate) fn is_overdue(&self) -> bool {
        clock::micros(clock::now()) > self.health.overdue.load(Ordering::Acquire)
    }

    /// What was sent then is the oldest that is open.
    fn expect_by(&self, sent: Instant) {
        let overdue = clock::micros(sent + self.node_timeout);
        self.health.overdue.store(overdue, Ordering::Release);
    }

    fn with_prompt<T>(
        &mut self,
        talk: impl FnOnce(&mut dyn Prompt, &VecDeque<Flight>) -> Result<T, Cause>,
    ) -> Result<T, Cause> {
        let prompt = self.session.as_mut().and_then(|session| session.prompt());
        let prompt = prompt.ok_or_else(gone)?;
        caught(|| talk(prompt, &self.flights))
    }
}

/// A panic as an error: neither a caller nor the lane's thread is to end by what is said to a node.
fn caught<T>(talk: impl FnOnce() -> Result<T, Cause>) -> Result<T, Cause> {
    catch_unwind(AssertUnwindSafe(talk)).unwrap_or_else(|_| Err(panicked()))
}

pub(crate) fn panicked() -> Cause {
    Cause::Unreachable("a panic in the lane".into())
}

pub(crate) fn gone() -> Cause {
    Cause::Unreachable("there is no connection".into())
}
