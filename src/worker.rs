//! A lane's thread: it owns one connection to one node and serves what waits in the lane's queue.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use log::{info, trace, warn};

use crate::about::About;
use crate::error::Cause;
use crate::lane::{Census, First, Health, Job, Message, Post};
use crate::news::{News, Right};
use crate::node::{Connector, Greeting, Session};
use crate::observer::{self, NodeReply, Observer};
use crate::script::{self, Answer, Request, Verb};
use crate::time;

use self::owed::{Owed, Return};
use self::sent::{instead, note_written, unsent};

mod owed;
pub(crate) mod sent;

/// The most requests that are sent as one pipeline.
const BATCH: usize = 256;
/// An idle lane asks for a sign of life that often.
const PING_EVERY: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 10_000 });
/// Pauses between failed connects: from the first, doubling, to the last; half of each is drawn at random.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(2);

/// A lane's thread.
pub(crate) struct Worker {
    node: usize,
    name: String,
    connector: Arc<dyn Connector>,
    node_timeout: Duration,
    quarantine: Option<Duration>,
    strict: bool,
    observer: Option<Arc<dyn Observer>>,
    queue: Receiver<Message>,
    health: Arc<Health>,
    census: Arc<Census>,
    first: Option<Sender<(usize, First)>>,
    /// The session before this one, to be killed at the next connect.
    former: Option<Greeting>,
    /// Whether `former` is counted in the census.
    counted: bool,
    /// The batch on the wire, and where its answers go.
    requests: Vec<Request>,
    returns: Vec<Return>,
    /// Jobs out of the queue that are for the next batches.
    waiting: VecDeque<Job>,
    /// Releases to be made as soon as the node is back.
    owed: VecDeque<Owed>,
    stopping: bool,
    /// Dropped when the thread ends, however it ends.
    _alive: Sender<()>,
}

impl Worker {
    pub(crate) fn new(
        node: usize,
        post: &Post,
        queue: Receiver<Message>,
        health: Arc<Health>,
        census: Arc<Census>,
        first: Sender<(usize, First)>,
        alive: Sender<()>,
    ) -> Worker {
        Worker {
            node,
            name: post.name.clone(),
            connector: Arc::clone(&post.connector),
            node_timeout: post.node_timeout,
            quarantine: post.quarantine,
            strict: post.strict,
            observer: post.observer.clone(),
            queue,
            health,
            census,
            first: Some(first),
            former: None,
            counted: false,
            requests: Vec::with_capacity(BATCH),
            returns: Vec::with_capacity(BATCH),
            waiting: VecDeque::new(),
            owed: VecDeque::new(),
            stopping: false,
            _alive: alive,
        }
    }

    /// The thread: from the first `Start` to the `Stop`, or until nobody has the lane any more.
    pub(crate) fn run(mut self) {
        if !matches!(self.queue.recv(), Ok(Message::Start)) {
            return;
        }
        let mut pause = Duration::ZERO;
        while !self.stopping {
            let turn = AssertUnwindSafe(|| self.connect_and_serve(&mut pause));
            if catch_unwind(turn).is_err() {
                self.break_off(&panicked());
                self.fall(panicked());
            }
        }
        self.give_up_waiting();
        trace!("{}: lane ends", self.name);
    }

    /// One life of a connection, or the wait after an attempt to get one.
    fn connect_and_serve(&mut self, pause: &mut Duration) {
        match self.connect() {
            Ok(session) => {
                *pause = Duration::ZERO;
                let cause = self.serve(session);
                self.fall(cause);
            }
            Err(cause) => {
                self.fall(cause);
                // Who still waits for a release learns now that the node does not come back at once.
                self.give_up_waiting();
                *pause = (*pause * 2).clamp(FIRST_PAUSE, LAST_PAUSE);
                self.pause(pause.mul_f64(0.5 + rand::random::<f64>() / 2.0));
            }
        }
    }

    /// Connects, and pays what is owed. The lane is up only afterwards.
    fn connect(&mut self) -> Result<Box<dyn Session>, Cause> {
        let attempt = AssertUnwindSafe(|| self.connector.connect(self.former.as_ref()));
        let attempt = catch_unwind(attempt).unwrap_or_else(|_| Err(panicked()));
        let (mut session, greeting) = match attempt {
            Ok(connected) => connected,
            Err(cause) => {
                // Nobody can mend that but who runs the nodes.
                if matches!(cause, Cause::Denied(_)) && self.news().denied(Right::Connect) {
                    warn!("{}: {cause}", self.name);
                }
                self.tell_first(First::Down(cause.clone()));
                return Err(cause);
            }
        };
        self.news().allowed(Right::Connect);
        let twin = self.census.enter(self.node, &greeting.run_id);
        let (about, run_id) = (greeting.about.clone(), greeting.run_id.clone());
        let how = match self.former.replace(greeting) {
            None => "connected",
            Some(_) => "connected again",
        };
        if let Some(twin) = twin {
            self.tell_first(First::Twin(twin));
            return Err(Cause::Unreachable(
                "it is the same server as another of the nodes".into(),
            ));
        }
        self.counted = true;
        if let Err(cause) = self.judge(about, &run_id) {
            self.tell_first(First::Down(cause.clone()));
            return Err(cause);
        }
        self.pay(&mut *session)?;
        self.health.report.lock().since = time::now();
        self.health.up.store(true, Ordering::Release);
        info!("{}: {how}", self.name);
        self.tell_first(First::Up);
        self.census.rise();
        Ok(session)
    }

    /// What follows from what the node says of itself, before it is up.
    fn judge(&mut self, about: About, run_id: &str) -> Result<(), Cause> {
        let (name, now, news) = (&self.name, time::now(), self.news());
        let quarantine = self.quarantine.map(|max_ttl| about.quarantine(max_ttl));
        let quarantine = quarantine.unwrap_or_default();
        let until = match quarantine.is_zero() {
            true => 0,
            false => time::deadline(now, quarantine).map_or(u64::MAX, time::micros),
        };
        self.health.quarantined.store(until, Ordering::Release);
        let fault = about.fault(self.strict);
        self.health.report.lock().about = Some(about.clone());
        if let Some(cause) = fault {
            return Err(cause);
        }
        let (danger, offset) = (about.danger(), about.clock_is_off());
        if let (true, Some(danger)) = (news.danger(danger.as_deref()), danger) {
            warn!("{name}: {danger}");
        }
        if let (true, Some(offset)) = (news.clock(offset.is_some()), offset) {
            warn!("{name}: its clock is off: {offset:?}");
        }
        if until > 0 && news.quarantined(run_id) {
            info!("{name}: in quarantine for {quarantine:.1?}, since it started a short time ago");
        }
        Ok(())
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
    fn serve(&mut self, mut session: Box<dyn Session>) -> Cause {
        loop {
            let waited = match self.waiting.is_empty() {
                true => self.queue.recv_timeout(PING_EVERY).map(Some),
                false => Ok(None),
            };
            let done = match waited {
                Ok(message) => {
                    message.into_iter().for_each(|message| self.unpack(message));
                    // Whoever was woken along with us may have a job too: two in one batch are cheaper than two batches.
                    std::thread::yield_now();
                    self.fill();
                    self.exchange(&mut *session)
                }
                Err(RecvTimeoutError::Timeout) => {
                    watched(&self.health, &self.census, self.node_timeout, || {
                        session.ping()
                    })
                }
                Err(RecvTimeoutError::Disconnected) => {
                    self.stopping = true;
                    Ok(())
                }
            };
            match done {
                Err(cause) => return cause,
                Ok(()) if self.stopping => return Cause::Unreachable("the lane is stopped".into()),
                Ok(()) => {}
            }
        }
    }

    fn unpack(&mut self, message: Message) {
        match message {
            Message::Job(job) => self.waiting.push_back(job),
            Message::Jobs(jobs) => self.waiting.extend(jobs),
            Message::Stop => self.stopping = true,
            Message::Start => {}
        }
    }

    /// Gathers a batch of what waits, up to the limit.
    fn fill(&mut self) {
        while self.requests.len() < BATCH {
            match self.waiting.pop_front() {
                Some(job) if self.shares_a_token(&job) => {
                    // Within a batch the order is not kept when scripts have to be loaded again.
                    self.waiting.push_front(job);
                    return;
                }
                Some(job) => self.admit(job),
                // What comes after a stop is not served.
                None if self.stopping => return,
                None => match self.queue.try_recv() {
                    Ok(message) => self.unpack(message),
                    Err(_) => return,
                },
            }
        }
    }

    fn shares_a_token(&self, job: &Job) -> bool {
        let mut others = self.requests.iter();
        others.any(|other| other.shares_a_token(&job.request))
    }

    /// Puts a job into the batch, unless what it is for is over: then it is dropped unsent.
    fn admit(&mut self, job: Job) {
        let Job { mut request, reply } = job;
        let mut back = Return {
            to: reply,
            again: false,
            owed: true,
        };
        let now = time::now();
        if let Some(answer) = unsent(&request, self.health.quarantine(now), now) {
            let Some(release) = instead(&request, &answer) else {
                back.post(self.node, answer);
                return;
            };
            (request, back.again) = (release, true);
        }
        note_written(&request, now);
        self.requests.push(request);
        self.returns.push(back);
    }

    /// Sends the batch and hands out the answers. Afterwards it is empty, whatever happened.
    fn exchange(&mut self, session: &mut dyn Session) -> Result<(), Cause> {
        if self.requests.is_empty() {
            return Ok(());
        }
        let (node, name) = (self.node, &self.name);
        let (requests, returns) = (&self.requests, &mut self.returns);
        let news = self.census.news(node);
        let (traffic, observer) = (&self.health.traffic, self.observer.as_ref());
        let (sent, mut replies) = (time::now(), 0);
        let note = |reply, latency| {
            traffic.note(reply, latency);
            observer::tell(observer, |observer| observer.replied(name, reply, latency));
        };
        let mut undone = None;
        let attempt = || {
            session.exchange(requests, &mut |index, answer| {
                let request = &requests[index];
                trace!("{name}: {:?} {answer:?}", request.verb);
                let now = time::now();
                replies += 1;
                note(answer.reply(), now.saturating_duration_since(sent));
                // The node may have taken its time: what it did, it did by now.
                note_written(request, now);
                let right = Right::Serve(request.verb, request.lease.claim());
                match &answer {
                    Answer::Fault(cause @ Cause::Denied(_)) if news.denied(right) => {
                        warn!("{name}: {:?}: {cause}", request.verb);
                    }
                    Answer::Yes | Answer::Heard(_) | Answer::Numbered(_) | Answer::Anew(_) => {
                        news.allowed(right);
                    }
                    _ => {}
                }
                match &answer {
                    // A server that cannot delete now (MISCONF, BUSY …) may be able to later: the release stays owed.
                    Answer::Fault(cause)
                        if request.verb == Verb::Release && !script::is_final(cause) =>
                    {
                        undone = Some(cause.clone());
                        returns[index].owed = true;
                    }
                    _ => returns[index].owed = false,
                }
                returns[index].post(node, answer);
            })
        };
        let done = watched(&self.health, &self.census, self.node_timeout, attempt);
        let took = time::now().saturating_duration_since(sent);
        (replies..requests.len()).for_each(|_| note(NodeReply::Unknown, took));
        let done = done.and(undone.map_or(Ok(()), Err));
        match &done {
            Ok(()) => {
                self.requests.clear();
                self.returns.clear();
            }
            Err(cause) => self.break_off(cause),
        }
        done
    }

    /// The node does not answer: tells the callers, and answers all that the lane holds before anything blocks.
    fn fall(&mut self, cause: Cause) {
        let mut report = self.health.report.lock();
        let news = report.cause != cause;
        report.cause = cause.clone();
        // Only now: who sees it down asks for the cause.
        let was_up = self.health.up.swap(false, Ordering::AcqRel);
        if was_up {
            report.since = time::now();
        }
        drop(report);
        if let (true, Some(former)) = (std::mem::take(&mut self.counted), &self.former) {
            self.census.leave(self.node, &former.run_id);
        }
        if (was_up || news) && !self.stopping {
            info!("{}: suspect: {cause}", self.name);
        }
        while let Some(job) = self.waiting.pop_front() {
            self.refuse(job);
        }
        while let Ok(message) = self.queue.try_recv() {
            self.refuse_message(message);
        }
    }

    /// Waits before the next connect, and answers what comes in the meantime.
    fn pause(&mut self, pause: Duration) {
        let end = time::now() + pause;
        while !self.stopping {
            match self.queue.recv_deadline(end) {
                Ok(message) => self.refuse_message(message),
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => self.stopping = true,
            }
        }
    }

    fn refuse_message(&mut self, message: Message) {
        match message {
            Message::Job(job) => self.refuse(job),
            Message::Jobs(jobs) => jobs.into_iter().for_each(|job| self.refuse(job)),
            Message::Stop => self.stopping = true,
            Message::Start => {}
        }
    }

    /// What the log has said of the node.
    fn news(&self) -> &News {
        self.census.news(self.node)
    }

    /// Why the lane is not up.
    fn cause(&self) -> Cause {
        self.health.report.lock().cause.clone()
    }
}

/// Talks to the node. While that is overdue, callers see it: a reply that comes byte by byte can take longer than any
/// time-out, and what were queued behind it would not be served.
fn watched(
    health: &Health,
    census: &Census,
    node_timeout: Duration,
    talk: impl FnOnce() -> Result<(), Cause>,
) -> Result<(), Cause> {
    let overdue = time::micros(time::now() + node_timeout);
    health.overdue.store(overdue, Ordering::Release);
    let done = catch_unwind(AssertUnwindSafe(talk)).unwrap_or_else(|_| Err(panicked()));
    health.overdue.store(u64::MAX, Ordering::Release);
    if done.is_ok() && time::micros(time::now()) > overdue {
        census.rise(); // callers have seen it down
    }
    done
}

fn panicked() -> Cause {
    Cause::Unreachable("a panic in the lane".into())
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::lane::Lane;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn who_waits_for_a_node_is_woken_when_it_answers_what_was_overdue() {
        let (_, _, health) = Lane::new();
        let census = Census::of(1);
        let (looked, looks) = crossbeam_channel::unbounded();
        let answered = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| {
                census.wait_until(Some(time::now() + Duration::from_secs(20)), || {
                    let _ = looked.send(());
                    answered.load(Ordering::Acquire)
                })
            });
            assert!(looks.recv().is_ok());
            let done = watched(&health, &census, Duration::from_millis(1), || {
                answered.store(true, Ordering::Release);
                let overdue = health.overdue.load(Ordering::Acquire);
                while time::micros(time::now()) <= overdue {
                    std::thread::yield_now();
                }
                Ok(())
            });
            assert_eq!((done, census.risen()), (Ok(()), 1));
            assert!(waits.join().is_ok_and(|holds| holds));
        });
        let long = Duration::from_secs(60);
        assert_eq!(watched(&health, &census, long, || Ok(())), Ok(()));
        assert_eq!(census.risen(), 1, "it was in time");
    }
}
