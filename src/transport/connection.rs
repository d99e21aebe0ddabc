//! A lane as its callers see it: a queue to one node, a seat at its desk for who finds nobody there, and whether that node answers
//! at present.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;

use crate::error::Cause;
use crate::telemetry::observer::Observer;
use crate::telemetry::stats::Traffic;
use crate::time::clock;
use crate::transport::job::Job;
use crate::transport::node::traits::Connector;
use crate::transport::pipeline::Desk;
use crate::transport::registry::Census;
use crate::transport::status::{Health, Report};

/// What a lane's thread takes from its queue.
pub(crate) enum Message {
    Job(Job),
    /// Many at once, so that they are not taken one by one by a thread that is quicker than who sends.
    Jobs(Vec<Job>),
    /// A caller has left something on the wire, and nobody looks for the answer.
    Look,
    /// Connect for the first time. Sent when all threads have been built.
    Start,
    /// End when everything before this has been served.
    Stop,
}

/// A lane as its callers see it.
pub(crate) struct Lane {
    jobs: Sender<Message>,
    desk: Arc<Mutex<Desk>>,
    health: Arc<Health>,
}

/// What became of a job that a caller wanted to begin himself.
pub(crate) enum Start {
    /// It is in the lane's queue.
    Queued,
    /// It is on the wire. `wake` says that the lane's thread does not look for the answer unless it is woken.
    Begun { wake: bool },
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

/// What became of a lane's connect, told until it is up for the first time.
#[derive(Debug)]
pub(crate) enum First {
    Up,
    /// It tries again.
    Down(Cause),
    /// It is the same server as another node of the configuration.
    Twin(usize),
}

/// One node, as the crew needs to know it.
pub(crate) struct Post {
    pub(crate) name: String,
    pub(crate) connector: Arc<dyn Connector>,
    pub(crate) node_timeout: Duration,
    /// The longest TTL of a lock, where nodes that have just started are not to vote.
    pub(crate) quarantine: Option<Duration>,
    /// Whether a node that may evict locks is not used.
    pub(crate) strict: bool,
    /// Whether it is a server's address, and no system of servers.
    pub(crate) is_one_server: bool,
    pub(crate) observer: Option<Arc<dyn Observer>>,
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::protocol::lease::tests::lease;
    use crate::protocol::request::{Request, Verb};
    use crate::tests::fake_node::node;
    use crate::tests::fake_node::node::Fake;
    use crate::time::clock;

    #[test]
    fn nobody_passes_what_is_queued() {
        let fake = Fake::new("a");
        let post = fake.post(&node::settings(|config| config));
        let (lane, queue, desk) = Lane::new(0, &post, &Arc::new(Census::of(1)));
        let (session, _) = post.connector.connect(None).unwrap();
        desk.lock().open(session, "run");
        let take = || Job {
            request: Request::new(Verb::Take, &lease("x"), 30_000),
            reply: None,
        };
        let now = clock::now();
        let start = || lane.start_job(take(), b"", false, now);
        assert!(start().is_err(), "it is not up");
        desk.lock().health.up.store(true, Ordering::Release);
        assert!(matches!(start(), Ok(Start::Begun { wake: false })));
        let seat = desk.lock();
        assert!(matches!(start(), Ok(Start::Queued)), "somebody is there");
        drop(seat);
        assert!(matches!(start(), Ok(Start::Queued)), "that one is before");
        // The thread has taken both out, but not seen to them yet.
        assert_eq!(queue.try_iter().count(), 2);
        assert!(matches!(start(), Ok(Start::Queued)));
        desk.lock().health.queued.store(0, Ordering::SeqCst);
        assert!(matches!(start(), Ok(Start::Begun { .. })));
    }
}
