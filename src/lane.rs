//! A lane as its callers see it: a queue to one node, and whether that node answers at present.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use parking_lot::{Condvar, Mutex};

use crate::about::About;
use crate::error::Cause;
use crate::news::News;
use crate::node::Connector;
use crate::observer::Observer;
use crate::script::{Answer, Request};
use crate::stats::Traffic;
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
    /// Until when the node does not vote on new locks, in [`time::micros`].
    pub(crate) quarantined: AtomicU64,
    /// What has come back from it.
    pub(crate) traffic: Traffic,
    pub(crate) report: Mutex<Report>,
}

/// What there is to tell of a lane to those who ask how it is.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    /// Why the lane is not up, or was not when it was down last.
    pub(crate) cause: Cause,
    /// Since when it is up, or not up.
    pub(crate) since: Instant,
    /// What the node said of itself when it was greeted last.
    pub(crate) about: Option<About>,
}

impl Health {
    /// For how long the node does not vote yet on new locks; zero if it does.
    pub(crate) fn quarantine(&self, now: Instant) -> Duration {
        let left = self.quarantined.load(Ordering::Acquire);
        Duration::from_micros(left.saturating_sub(time::micros(now)))
    }
}

impl Lane {
    /// A lane that is not up yet, and the thread's end of it.
    pub(crate) fn new() -> (Lane, Receiver<Message>, Arc<Health>) {
        let (jobs, queue) = crossbeam_channel::unbounded();
        let health = Arc::new(Health {
            up: AtomicBool::new(false),
            overdue: AtomicU64::new(u64::MAX),
            quarantined: AtomicU64::new(0),
            traffic: Traffic::default(),
            report: Mutex::new(Report {
                cause: Cause::Unreachable("not connected yet".into()),
                since: time::now(),
                about: None,
            }),
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
            return Some(self.health.report.lock().cause.clone());
        }
        (!self.is_up(now)).then_some(Cause::TimedOut)
    }

    /// Whether the node is expected to answer.
    pub(crate) fn is_up(&self, now: Instant) -> bool {
        self.health.up.load(Ordering::Acquire)
            && time::micros(now) <= self.health.overdue.load(Ordering::Acquire)
    }

    /// When the batch on the wire was overdue, if it is.
    pub(crate) fn overdue(&self, now: Instant) -> Option<Instant> {
        let overdue = self.health.overdue.load(Ordering::Acquire);
        let overdue = Some(overdue).filter(|overdue| time::micros(now) > *overdue);
        overdue.and_then(time::instant)
    }

    pub(crate) fn quarantine(&self, now: Instant) -> Duration {
        self.health.quarantine(now)
    }

    pub(crate) fn traffic(&self) -> &Traffic {
        &self.health.traffic
    }

    pub(crate) fn report(&self) -> Report {
        self.health.report.lock().clone()
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
///
/// It also tells those who wait for nodes to come up, counts how often one did, so that nobody need look all the time, and has
/// what the log has said of each.
#[derive(Debug)]
pub(crate) struct Census {
    runs: Mutex<Vec<Option<(String, usize)>>>,
    changed: Condvar,
    risen: AtomicU64,
    news: Vec<News>,
}

impl Census {
    pub(crate) fn of(nodes: usize) -> Census {
        Census {
            runs: Mutex::new(vec![None; nodes]),
            changed: Condvar::new(),
            risen: AtomicU64::new(0),
            news: (0..nodes).map(|_| News::default()).collect(),
        }
    }

    /// What the log has said of a node.
    pub(crate) fn news(&self, node: usize) -> &News {
        &self.news[node]
    }

    /// A lane has come up, or answers again with what was overdue.
    pub(crate) fn rise(&self) {
        self.risen.fetch_add(1, Ordering::Release);
        self.announce();
    }

    /// How often a lane has come up. What is up by then was not before, if this has changed.
    pub(crate) fn risen(&self) -> u64 {
        self.risen.load(Ordering::Acquire)
    }

    /// Lets those look who wait.
    pub(crate) fn announce(&self) {
        // Who has seen it down, and is about to wait, has the lock.
        drop(self.runs.lock());
        self.changed.notify_all();
    }

    /// Waits until `holds`, which lanes that come up may bring about, until `end`. `false` if it does not.
    pub(crate) fn wait_until(&self, end: Option<Instant>, holds: impl Fn() -> bool) -> bool {
        let mut runs = self.runs.lock();
        while !holds() {
            match end {
                None => self.changed.wait(&mut runs),
                Some(end) if self.changed.wait_until(&mut runs, end).timed_out() => return holds(),
                Some(_) => {}
            }
        }
        true
    }

    /// `node` runs as `run_id`. Answers the other node that does so already.
    pub(crate) fn enter(&self, node: usize, run_id: &str) -> Option<usize> {
        let mut runs = self.runs.lock();
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
        let mut runs = self.runs.lock();
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
    /// The longest TTL of a lock, where nodes that have just started are not to vote.
    pub(crate) quarantine: Option<Duration>,
    /// Whether a node that may evict locks is not used.
    pub(crate) strict: bool,
    pub(crate) observer: Option<Arc<dyn Observer>>,
}
