//! Runs a plan.

use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use crate::tests::simulation::checker::checker::Checker;
use crate::tests::simulation::checker::coverage::Coverage;
use crate::tests::simulation::network::fault::TimedChange;
use crate::tests::simulation::network::network::Network;
use crate::tests::simulation::network::server::ServerClock;
use crate::tests::simulation::plan::plan::{Fault, Plan};
use crate::tests::simulation::program::process::SimulatedProcess;
use crate::tests::simulation::program::progress::{ProcessPhase, Progress};
use crate::tests::simulation::runtime::config::Config;
use crate::tests::simulation::runtime::signal;
use crate::tests::simulation::runtime::simulation::Simulation;
use crate::tests::simulation::runtime::trace::TraceLevel;
use crate::tests::simulation::world;
use crate::tests::simulation::world::World;

/// How long the threads of a history may take once all faults have ended and all leases that are
/// left have expired.
const MAX_REST: Duration = Duration::from_secs(100);
/// The time in which processes undo what they have left behind: two reconnect delays, and the
/// longest delay of a pending release.
const SETTLE: Duration = Duration::from_secs(8);
/// The longest TTL of tokens besides those of the plan's locks.
const MAX_FOREIGN_TTL: Duration = Duration::from_secs(60);
/// How long a process may take to shut down.
const MAX_SHUTDOWN: Duration = Duration::from_secs(120);

/// The result of a history.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) violation: Option<String>,
    pub(crate) coverage: Coverage,
    pub(crate) fingerprint: u64,
    pub(crate) steps: u64,
    /// The steps in words, if they were recorded.
    pub(crate) lines: Vec<String>,
}

/// The parts of a running history.
struct History {
    plan: Arc<Plan>,
    world: World,
    network: Arc<Network>,
    checker: Arc<Checker>,
    progress: Arc<Progress>,
}

/// Runs a plan to its end.
pub(crate) fn run(plan: &Arc<Plan>, trace: TraceLevel) -> Shown {
    let config = Config {
        trace,
        max_time: Duration::from_secs(3_600),
        max_steps: 10_000_000,
        ..Config::draw(plan.seed)
    };
    let coverage = Arc::new(Mutex::new(Coverage::default()));
    let network = Arc::new(Mutex::new(Weak::new()));
    let (its_plan, its_coverage) = (Arc::clone(plan), Arc::clone(&coverage));
    let its_network = Arc::clone(&network);
    let outcome = Simulation::run(plan.seed, &config, move |simulation| {
        let history = History::new(its_plan, simulation, trace != TraceLevel::Off);
        *its_network.lock() = Arc::downgrade(&history.network);
        history.run();
        *its_coverage.lock() = history.checker.coverage();
    });
    let coverage = std::mem::take(&mut *coverage.lock());
    let violation = outcome.result.err().map(|failure| failure.to_string());
    // The connections hold the network, so it outlives a worker or an engine that is never dropped.
    let is_kept = network.lock().strong_count() > 0;
    let kept = is_kept.then(|| "parts of a `Nodes` are never dropped".to_owned());
    let violation = violation.or(kept);
    Shown {
        violation,
        coverage,
        fingerprint: outcome.fingerprint,
        steps: outcome.steps,
        lines: outcome.trace,
    }
}

impl History {
    fn new(plan: Arc<Plan>, simulation: Simulation, records: bool) -> History {
        let start = signal::true_time();
        let clocks = plan.servers.iter().map(|clock| ServerClock {
            start,
            offset: clock.offset,
            rate: clock.rate,
        });
        let clocks: Vec<ServerClock> = clocks.collect();
        let processes = plan.processes.iter();
        let threads: Vec<usize> = processes.map(|process| process.threads.len()).collect();
        let network = Network::new(simulation, plan.seed, plan.delays, &clocks, threads.len());
        let drifts = plan.processes.iter().map(|process| process.clock.rate);
        let checker = Arc::new(Checker::new(simulation, &network, plan.promises, records));
        network.with(|state, _| state.records = records);
        checker.give_strangers_lock();
        // The checker holds the network: neither is to keep the other.
        let observer = Arc::downgrade(&checker);
        network.observe(move || {
            if let Some(checker) = observer.upgrade() {
                checker.check_event();
            }
        });
        History {
            world: World::new(simulation, drifts),
            checker,
            network,
            progress: Arc::new(Progress::new(&threads)),
            plan,
        }
    }

    fn run(&self) {
        for (after, fault) in &self.plan.faults {
            if let Fault::Network(change) = fault {
                self.network.change_after(*after, *change);
            }
        }
        self.network
            .change_after(self.plan.calm_at, TimedChange::Calm);
        self.start_processes();
        self.schedule_faults();
        let leases = 4 * self.plan.max_ttl + self.plan.holding_time();
        let limit = self.plan.calm_at + leases + MAX_REST;
        let stuck = self.progress.wait_all(&[ProcessPhase::Done], limit);
        if !stuck.is_empty() {
            return self.checker.report(format!("stuck: {stuck:#?}"));
        }
        // A server may still be away although no thread waits for it.
        let calm_in = self
            .plan
            .calm_at
            .saturating_sub(self.world.simulation.now());
        world::sleep(calm_in + SETTLE);
        let unsettled = self.progress.unsettled();
        self.checker.check_leftovers(|process| !unsettled[process]);
        self.checker.check_gate_entries();
        self.progress.end();
        let stuck = self.progress.wait_all(&[ProcessPhase::Ended], MAX_SHUTDOWN);
        if !stuck.is_empty() {
            return self
                .checker
                .report(format!("does not shut down: {stuck:#?}"));
        }
        let killed = self.progress.killed();
        self.checker.check_told(|process| !killed[process]);
        self.check_threads(&killed);
        self.checker.check_connections(|process| !killed[process]);
        self.checker.check_strangers_value();
        // Clocks of servers run at most a hundredth slower than true time.
        world::sleep(self.plan.max_ttl.mul_f64(1.01) + MAX_FOREIGN_TTL);
        self.checker.check_empty();
    }

    /// Checks that all threads of the processes have ended.
    fn check_threads(&self, killed: &[bool]) {
        // A thread may still be on its last lines.
        world::sleep(Duration::from_millis(1_000));
        for (process, is_killed) in self.world.processes.iter().zip(killed) {
            let left = process.live_threads();
            if !is_killed && !left.is_empty() {
                self.checker.report(format!("threads are left: {left:?}"));
            }
        }
    }

    fn start_processes(&self) {
        let detached = Arc::new(Mutex::new(Vec::new()));
        for (number, plan) in self.plan.processes.iter().enumerate() {
            let process = SimulatedProcess {
                number,
                plan: Arc::new(plan.clone()),
                max_ttl: self.plan.max_ttl,
                world: self.world.clone(),
                network: Arc::clone(&self.network),
                checker: Arc::clone(&self.checker),
                progress: Arc::clone(&self.progress),
                detached: Arc::clone(&detached),
            };
            self.world.spawn(number, "main", move || process.run());
        }
    }

    /// Schedules a time in which a process does nothing.
    fn schedule_stop(&self, process: usize, time: Range<Duration>, is_suspend: bool) {
        let (simulation, handle) = (self.world.simulation, self.world.processes[process]);
        let checker = Arc::clone(&self.checker);
        simulation.after(time.start, move || match is_suspend {
            true => {
                checker.process_suspended(process);
                handle.suspend();
            }
            false => {
                checker.process_paused(process);
                handle.pause();
            }
        });
        let checker = Arc::clone(&self.checker);
        simulation.after(time.end, move || {
            checker.process_resumed(process);
            handle.resume();
        });
    }

    /// Schedules the pauses and ends of processes.
    fn schedule_faults(&self) {
        let simulation = self.world.simulation;
        for (at, fault) in &self.plan.faults {
            match *fault {
                Fault::Network(_) => {}
                Fault::Pause { process, lasts } => {
                    self.schedule_stop(process, *at..*at + lasts, false);
                }
                Fault::Suspend { process, lasts } => {
                    self.schedule_stop(process, *at..*at + lasts, true);
                }
                Fault::Kill { process, is_silent } => {
                    let (handle, network) = (self.world.processes[process], self.network.clone());
                    let (checker, progress) = (self.checker.clone(), self.progress.clone());
                    simulation.after(*at, move || {
                        handle.kill();
                        checker.process_ended(process);
                        progress.set(process, ProcessPhase::Killed);
                        let change = TimedChange::ProcessEnds { process, is_silent };
                        network.change_after(Duration::ZERO, change);
                    });
                }
                Fault::StepWall { process, by } => {
                    let process = self.world.processes[process];
                    simulation.after(*at, move || process.step_wall(by / 1_000));
                }
            }
        }
    }
}
