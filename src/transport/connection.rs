//! A lane as its callers see it: a queue to one node, a seat at its desk for who finds nobody there, and whether that node answers
//! at present.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;

use crate::error::Cause;
use crate::telemetry::stats::Traffic;
use crate::time::clock;
use crate::transport::job::Job;
use crate::transport::messages::{Message, Post, Start};
use crate::transport::pipeline::Desk;
use crate::transport::registry::Census;
use crate::transport::status::{Health, Report};

/// A lane as its callers see it.
pub(crate) struct Lane {
    jobs: Sender<Message>,
    desk: Arc<Mutex<Desk>>,
    health: Arc<Health>,
}

impl Lane {
    /// A lane that is not up yet, and the thread's end of it.
    pub(crate) fn new(
        node: usize,
        post: &Post,
        census: &Arc<Census>,
    ) -> (Lane, Receiver<Message>, Arc<Mutex<Desk>>) {
        let (jobs, queue) = crossbeam_channel::unbounded();
        let health = Arc::new(Health::new());
        let desk = Arc::new(Mutex::new(Desk::new(
            node,
            &post.name,
            post.node_timeout,
            post.observer.clone(),
            Arc::clone(&health),
            Arc::clone(census),
        )));
        let lane = Lane {
            jobs,
            desk: Arc::clone(&desk),
            health,
        };
        (lane, queue, desk)
    }

    /// Hands a job to the lane, unless the node is suspect: then the cause comes back at once, and nothing is
    /// queued but what is `owed`, a release of a key that the node may hold.
    pub(crate) fn submit(&self, job: Job, owed: bool, now: Instant) -> Result<(), Cause> {
        let suspect = self.suspect(now);
        let queued = if suspect.is_none() || owed {
            self.queue(Message::Job(job))
        } else {
            false
        };
        match suspect {
            Some(cause) => Err(cause),
            None if queued => Ok(()),
            None => Err(stopped()),
        }
    }

    /// Hands many jobs to the lane, none of them owed; the cause where it is suspect.
    pub(crate) fn submit_all(&self, jobs: Vec<Job>, now: Instant) -> Result<(), Cause> {
        match self.suspect(now) {
            Some(cause) => Err(cause),
            None if self.queue(Message::Jobs(jobs)) => Ok(()),
            None => Err(stopped()),
        }
    }

    /// `false` if the lane has ended.
    fn queue(&self, message: Message) -> bool {
        // Before it is there, so that who sees nothing queued comes after nothing of ours.
        self.health.queued.fetch_add(1, Ordering::SeqCst);
        self.jobs.send(message).is_ok()
    }

    /// As [`submit`](Lane::submit), but the job, whose request is `bytes` on the wire, is sent by this very thread if nobody is before it: then somebody has to
    /// [`look`](Lane::look) for the answer.
    pub(crate) fn start_job(
        &self,
        job: Job,
        bytes: &[u8],
        owed: bool,
        now: Instant,
    ) -> Result<Start, Cause> {
        let job = match self.desk.try_lock() {
            Some(mut desk) if self.is_idle(now) => match desk.begin(job, bytes, now) {
                Ok(wake) => return Ok(Start::Begun { wake }),
                Err(job) => job,
            },
            _ => job,
        };
        self.submit(job, owed, now).map(|()| Start::Queued)
    }

    /// Whether it is up and nothing waits for its thread. Who asks has the desk, since the thread sees to what it takes out of
    /// the queue there.
    fn is_idle(&self, now: Instant) -> bool {
        self.health.queued.load(Ordering::SeqCst) == 0 && self.is_up(now)
    }

    /// Takes in the answers that have come to what callers have sent, unless somebody else is at it. `false` if the thread must be
    /// woken to see to the connection.
    pub(crate) fn look(&self) -> bool {
        let desk = self.desk.try_lock();
        !desk.is_some_and(|mut desk| desk.look())
    }

    /// Lets the lane's thread wait for the answers.
    pub(crate) fn wake(&self) {
        self.queue(Message::Look);
    }

    /// The same, unless it is certain that none is to come.
    pub(crate) fn wake_if_open(&self) {
        let desk = self.desk.try_lock();
        if desk.is_none_or(|desk| desk.is_open()) {
            self.wake();
        }
    }

    /// Why the node is not expected to answer, if it is not.
    pub(crate) fn suspect(&self, now: Instant) -> Option<Cause> {
        if !self.health.up.load(Ordering::Acquire) {
            return Some(self.health.report.lock().cause.clone());
        }
        (!self.is_up(now)).then_some(Cause::TimedOut)
    }

    /// Whether the node is expected to answer.
    pub(crate) fn is_up(&self, now: Instant) -> bool {
        self.health.up.load(Ordering::Acquire)
            && clock::micros(now) <= self.health.overdue.load(Ordering::Acquire)
    }

    /// When the batch on the wire was overdue, if it is.
    pub(crate) fn overdue(&self, now: Instant) -> Option<Instant> {
        let overdue = self.health.overdue.load(Ordering::Acquire);
        let overdue = Some(overdue).filter(|overdue| clock::micros(now) > *overdue);
        overdue.and_then(clock::instant)
    }

    pub(crate) fn quarantine(&self, now: Instant) -> Duration {
        self.health.quarantine(now)
    }

    pub(crate) fn traffic(&self) -> &Traffic {
        &self.health.traffic
    }

    /// How many messages and pending releases wait for the node.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn waiting(&self) -> u64 {
        let pending = self.health.pending.load(Ordering::Acquire) as u64;
        self.health.queued.load(Ordering::SeqCst) + pending
    }

    pub(crate) fn report(&self) -> Report {
        self.health.report.lock().clone()
    }

    pub(crate) fn start(&self) {
        // Fails only where the thread is gone, which `Crew::build` would have noticed.
        self.queue(Message::Start);
    }

    /// Lets the thread end when it has served what is queued by now.
    pub(crate) fn stop(&self) {
        self.queue(Message::Stop);
    }
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lane")
            .field("health", &self.health)
            .finish_non_exhaustive()
    }
}

fn stopped() -> Cause {
    Cause::Unreachable("the lane is stopped".into())
}
