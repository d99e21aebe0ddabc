//! A thread of a simulated process.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::api::local_locker::LocalLocker;
use crate::api::lock_token::LockToken;
use crate::api::locker::Locker;
use crate::api::nodes::Nodes;
use crate::api::options::LockOptions;
use crate::api::redis_locker::RedisLocker;
use crate::tests::simulation::checker::checker::Checker;
use crate::tests::simulation::checker::hold::HoldId;
use crate::tests::simulation::checker::waits::TimedCall;
use crate::tests::simulation::network::server::lock_name;
use crate::tests::simulation::plan::locks::{FORCED_LOCK, STRANGERS_LOCK, own_lock};
use crate::tests::simulation::plan::plan::{ProcessPlan, Step};
use crate::tests::simulation::program::guard::AnyGuard;
use crate::tests::simulation::program::progress::Progress;
use crate::tests::simulation::runtime::signal;
use crate::tests::simulation::world;
use crate::tests::simulation::world::World;

/// How long a thread waits for a quorum of nodes.
const MAX_READY: Duration = Duration::from_millis(50);

/// A thread and what it shares with the others.
pub(crate) struct ProgramThread {
    pub(super) process: usize,
    pub(super) thread: usize,
    pub(super) world: World,
    pub(super) nodes: Nodes,
    /// The locks that its process has for itself alone.
    pub(super) own_locks: LocalLocker,
    pub(super) checker: Arc<Checker>,
    pub(super) progress: Arc<Progress>,
    /// Detached locks of all processes.
    pub(super) detached: Arc<Mutex<Vec<(LockToken, HoldId)>>>,
    /// The guards that the process keeps until its end.
    pub(super) kept: Arc<Mutex<Vec<(AnyGuard, HoldId)>>>,
    /// The plan of its process.
    pub(super) plan: Arc<ProcessPlan>,
}

impl ProgramThread {
    pub(crate) fn run(&self) {
        for step in &self.plan.threads[self.thread] {
            self.progress
                .set_step(self.process, self.thread, step.to_string());
            self.checker
                .note(|| format!("process {} thread {} {step}", self.process, self.thread));
            self.step(step);
        }
        self.progress.set_step(self.process, self.thread, "ended");
    }

    fn step(&self, step: &Step) {
        let locker = RedisLocker::new(&self.nodes);
        match step {
            Step::Acquire(plan) => self.acquire(plan),
            Step::Adopt { ttl, renewed, hold } => self.adopt(*ttl, *renewed, *hold),
            Step::Holder(lock) => {
                let holder = locker.holder(&lock_name(*lock));
                self.checker.expect_calm("holder", holder.as_ref().err());
            }
            Step::Churn { times, pause } => self.churn(*times, *pause),
            Step::ForceRelease => {
                let receivers = self.checker.notice_receivers();
                let released = locker.force_release(&lock_name(FORCED_LOCK));
                self.checker.forced(self.process, &receivers, &released);
            }
            Step::Health => {
                let (health, stats) = (self.nodes.health(), self.nodes.stats());
                assert_eq!(health.nodes.len(), stats.nodes.len());
                let ready = self.nodes.wait_ready(MAX_READY);
                self.checker.expect_calm("wait_ready", ready.as_ref().err());
            }
            Step::Sleep(time) => world::sleep(*time),
            Step::ShutDown(grace) => {
                self.progress.set_unsettled(self.process);
                self.checker.shutting_down(self.process);
                let _ = self.nodes.shutdown(*grace);
            }
        }
    }

    /// Adopts a lock that another thread has detached.
    fn adopt(&self, ttl: Duration, renewed: bool, hold: Duration) {
        let Some((token, former)) = self.detached.lock().pop() else {
            return;
        };
        // From here on the nodes may have the new token.
        self.checker.adopting(former);
        let token: LockToken = token.to_string().parse().expect("a token as text");
        let options = LockOptions::new(ttl).auto_renew(renewed);
        match RedisLocker::new(&self.nodes).adopt_with(&token, &options) {
            Ok(guard) => {
                self.checker.count("adopted locks");
                let guard = AnyGuard::Lock(guard);
                let id = self.hold(&guard, None);
                world::sleep(hold);
                self.release(guard, id);
            }
            Err(error) => self
                .checker
                .note(|| format!("process {}: adopt: {error}", self.process)),
        }
    }

    /// Acquires and releases the own lock again and again, and fails to acquire another one.
    fn churn(&self, times: u32, pause: Duration) {
        let locker = RedisLocker::new(&self.nodes);
        let own = lock_name(own_lock(self.process, self.thread));
        let ttl = Duration::from_secs(30);
        for _ in 0..times {
            if let Ok(Some(guard)) = locker.try_lock(&own, ttl) {
                let guard = AnyGuard::Lock(guard);
                let id = self.hold(&guard, None);
                self.release(guard, id);
                self.checker.count("locks during an outage");
            }
            _ = locker.try_lock(&lock_name(STRANGERS_LOCK), ttl).map(drop);
            if self.plan.settings.pool_size == 1 {
                let threads = self.plan.threads.len();
                self.checker
                    .check_waiting(self.process, &self.nodes, threads);
            }
            world::sleep(pause);
        }
    }

    /// Records a guard.
    pub(super) fn hold(&self, guard: &AnyGuard, asked: Option<std::time::Instant>) -> HoldId {
        let lease = guard.lease();
        self.checker
            .acquired(self.process, self.thread, (&lease, guard.mode()), asked)
    }

    pub(super) fn release(&self, guard: AnyGuard, hold: HoldId) {
        let asked = signal::true_time();
        self.checker.end(hold);
        let result = guard.release();
        self.checker.released(hold, &result);
        if !self.checker.may_fail(hold) {
            self.checker
                .check_duration(self.process, TimedCall::Alone, asked);
        }
    }
}
