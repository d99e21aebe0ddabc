//! A lane as its callers see it: a queue to one node, and whether that node answers at present.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;

use crate::error::Cause;
use crate::node::Connector;
use crate::script::{Answer, Request};
use crate::time;

/// Who is told what nodes answer.
pub(crate) trait Addressee: Send + Sync {
    /// A node's answer in one of its rounds. Must not block.
    fn post(&self, round: u32, node: usize, answer: Answer);
}

/// Where an answer goes: to whom, and in which of its rounds.
pub(crate) type Reply = (Arc<dyn Addressee>, u32);

/// A request on its way, and where its answer goes.
pub(crate) struct Job {
    pub(crate) request: Request,
    /// `None` where nobody waits.
    pub(crate) reply: Option<Reply>,
}

/// What a lane's thread takes from its queue.
pub(crate) enum Message {
    Job(Job),
    /// Many at once, so that they are not taken one by one by a thread that is quicker than who sends.
    Jobs(Vec<Job>),
    /// Connect for the first time. Sent when all threads have been built.
    Start,
    /// End when everything before this has been served.
    Stop,
}

/// A lane as its callers see it: a queue, and whether the node answers at present.
#[derive(Debug)]
pub(crate) struct Lane {
    jobs: Sender<Message>,
    health: Arc<Health>,
}

/// What the lane's thread tells its callers, readable without waiting for it.
#[derive(Debug)]
pub(crate) struct Health {
    /// Whether the handshake's replies have been read and nothing has gone wrong since.
    pub(crate) up: AtomicBool,
    /// When the batch on the wire is overdue, in [`time::micros`]; `u64::MAX` when there is none.
    pub(crate) overdue: AtomicU64,
    /// Why the lane is not up.
    pub(crate) cause: Mutex<Cause>,
}

impl Lane {
    /// A lane that is not up yet, and the thread's end of it.
    pub(crate) fn new() -> (Lane, Receiver<Message>, Arc<Health>) {
        let (jobs, queue) = crossbeam_channel::unbounded();
        let health = Arc::new(Health {
            up: AtomicBool::new(false),
            overdue: AtomicU64::new(u64::MAX),
            cause: Mutex::new(Cause::Unreachable("not connected yet".into())),
        });
        let lane = Lane {
            jobs,
            health: Arc::clone(&health),
        };
        (lane, queue, health)
    }

    /// Hands a job to the lane, unless the node is suspect: then the cause comes back at once, and nothing is
    /// queued but what is `owed`, a release of a key that the node may hold.
    pub(crate) fn submit(&self, job: Job, owed: bool, now: Instant) -> Result<(), Cause> {
        let suspect = self.suspect(now);
        let queued = if suspect.is_none() || owed {
            self.jobs.send(Message::Job(job)).is_ok()
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
            None if self.jobs.send(Message::Jobs(jobs)).is_ok() => Ok(()),
            None => Err(stopped()),
        }
    }

    /// Why the node is not expected to answer, if it is not.
    pub(crate) fn suspect(&self, now: Instant) -> Option<Cause> {
        if !self.health.up.load(Ordering::Acquire) {
            return Some(self.health.cause.lock().clone());
        }
        let overdue = time::micros(now) > self.health.overdue.load(Ordering::Acquire);
        overdue.then_some(Cause::TimedOut)
    }

    pub(crate) fn start(&self) {
        // Fails only where the thread is gone, which `Crew::build` would have noticed.
        let _ = self.jobs.send(Message::Start);
    }

    /// Lets the thread end when it has served what is queued by now.
    pub(crate) fn stop(&self) {
        let _ = self.jobs.send(Message::Stop);
    }
}

fn stopped() -> Cause {
    Cause::Unreachable("the lane is stopped".into())
}

/// Keeps two addresses of one server from counting twice, also when one of them comes up later: for each node the run
/// that its lanes which are up are connected to, and how many they are.
#[derive(Debug)]
pub(crate) struct Census(Mutex<Vec<Option<(String, usize)>>>);

impl Census {
    pub(crate) fn of(nodes: usize) -> Census {
        Census(Mutex::new(vec![None; nodes]))
    }

    /// `node` runs as `run_id`. Answers the other node that does so already.
    pub(crate) fn enter(&self, node: usize, run_id: &str) -> Option<usize> {
        let mut runs = self.0.lock();
        let same = |run: &Option<(String, usize)>| run.as_ref().is_some_and(|run| run.0 == run_id);
        let twin = runs.iter().position(same).filter(|twin| *twin != node);
        if twin.is_none() {
            match &mut runs[node] {
                Some((run, lanes)) if run == run_id => *lanes += 1,
                run => *run = Some((run_id.to_owned(), 1)),
            }
        }
        twin
    }

    /// A lane of `node` is not connected to that run any more. The address may lead elsewhere by the time it is again.
    pub(crate) fn leave(&self, node: usize, run_id: &str) {
        let mut runs = self.0.lock();
        match &mut runs[node] {
            Some((run, lanes)) if run == run_id && *lanes > 1 => *lanes -= 1,
            Some((run, _)) if run == run_id => runs[node] = None,
            _ => {}
        }
    }
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
}
