//! A simulated process: connects, runs its threads, and shuts down.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::api::local_locker::LocalLocker;
use crate::api::lock_token::LockToken;
use crate::api::nodes::Nodes;
use crate::config::builder::Config;
use crate::config::on_drop::OnDrop;
use crate::config::settings::Settings;
use crate::protocol::retry::RetryPolicy;
use crate::tests::simulation::checker::checker::Checker;
use crate::tests::simulation::checker::hold::HoldId;
use crate::tests::simulation::network::network::Network;
use crate::tests::simulation::plan::plan::{ProcessPlan, SettingsPlan};
use crate::tests::simulation::program::guard::AnyGuard;
use crate::tests::simulation::program::progress::{ProcessPhase, Progress};
use crate::tests::simulation::program::thread::ProgramThread;
use crate::tests::simulation::world;
use crate::tests::simulation::world::World;

/// How often a process tries to connect while its nodes are out of reach.
const MAX_CONNECTS: u32 = 8;

/// A process and what it shares with the others.
#[derive(Clone)]
pub(crate) struct SimulatedProcess {
    pub(super) number: usize,
    pub(super) plan: Arc<ProcessPlan>,
    pub(super) max_ttl: Duration,
    pub(super) world: World,
    pub(super) network: Arc<Network>,
    pub(super) checker: Arc<Checker>,
    pub(super) progress: Arc<Progress>,
    pub(super) detached: Arc<Mutex<Vec<(LockToken, HoldId)>>>,
}

impl SimulatedProcess {
    /// Runs the process on its main thread.
    pub(super) fn run(&self) {
        world::sleep(self.plan.starts_at);
        let Some(nodes) = self.connect() else {
            self.checker.count("processes without nodes");
            self.progress.set_unsettled(self.number);
            self.progress.set(self.number, ProcessPhase::Done);
            self.progress.wait_for_end(self.number);
            return self.progress.set(self.number, ProcessPhase::Ended);
        };
        let kept = Arc::new(Mutex::new(Vec::new()));
        self.run_threads(&nodes, &kept);
        let pool_size = self.plan.settings.pool_size;
        self.checker
            .check_undisturbed(self.number, &nodes, pool_size);
        self.progress.set(self.number, ProcessPhase::Done);
        self.progress.wait_for_end(self.number);
        if pool_size == 1 && !self.progress.is_unsettled(self.number) {
            self.checker.check_back(self.number, &nodes);
        }
        self.end(nodes, &kept);
        self.progress.set(self.number, ProcessPhase::Ended);
    }

    fn connect(&self) -> Option<Nodes> {
        let settings = settings(self.number, &self.plan.settings, self.max_ttl);
        for _ in 0..MAX_CONNECTS {
            let configs = self.network.node_configs(self.number, &settings);
            match Nodes::start(settings.clone(), &configs) {
                Ok(nodes) => return Some(nodes),
                Err(error) => {
                    self.checker.expect_calm("connect", Some(&error));
                    self.checker
                        .note(|| format!("process {}: connect: {error}", self.number));
                }
            }
            world::sleep(Duration::from_millis(200));
        }
        None
    }

    fn run_threads(&self, nodes: &Nodes, kept: &Arc<Mutex<Vec<(AnyGuard, HoldId)>>>) {
        let (mut threads, own_locks) = (Vec::new(), LocalLocker::new());
        for thread in 0..self.plan.threads.len() {
            let program = ProgramThread {
                process: self.number,
                thread,
                world: self.world.clone(),
                nodes: nodes.clone(),
                own_locks: own_locks.clone(),
                checker: Arc::clone(&self.checker),
                progress: Arc::clone(&self.progress),
                detached: Arc::clone(&self.detached),
                kept: Arc::clone(kept),
                plan: Arc::clone(&self.plan),
            };
            let run = move || program.run();
            threads.push(self.world.spawn(self.number, "program", run));
        }
        threads.into_iter().for_each(|thread| _ = thread.join());
    }

    /// Ends the process: shuts its nodes down, or drops them.
    fn end(&self, nodes: Nodes, kept: &Mutex<Vec<(AnyGuard, HoldId)>>) {
        let kept = std::mem::take(&mut *kept.lock());
        match self.plan.shutdown {
            Some(grace) => {
                let _ = nodes.shutdown(grace);
                kept.iter().for_each(|(_, hold)| self.checker.end(*hold));
                self.checker.count("shutdowns");
            }
            None => kept.iter().for_each(|(_, hold)| self.checker.end(*hold)),
        }
        drop(kept);
        drop(nodes);
    }
}

fn settings(process: usize, plan: &SettingsPlan, max_ttl: Duration) -> Settings {
    let mut config = Config::new(["simulated"])
        .owner_label(format!("p{process}"))
        .key_prefix(world::KEY_PREFIX)
        .node_timeout(plan.node_timeout)
        .connect_timeout(plan.connect_timeout)
        .pool_size(plan.pool_size)
        .min_validity(plan.min_validity)
        .circuit_breaker(plan.breaker_threshold, plan.breaker_open_for)
        .allow_degraded(plan.degraded)
        .retry(RetryPolicy {
            max_attempts: plan.max_attempts,
            max_outage: plan.max_outage,
            initial_delay: plan.initial_delay,
            max_delay: plan.max_delay,
            ..RetryPolicy::default()
        });
    if plan.background_drop {
        config = config.on_drop(OnDrop::Background);
    }
    if plan.quarantine {
        config = config.restart_quarantine(2 * max_ttl);
    }
    config.validate().expect("good settings")
}
