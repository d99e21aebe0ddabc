//! A history as its program sees it: processes, time, callbacks, notes.

use std::time::Duration;

use crate::sync::threads::JoinHandle;
use crate::tests::simulation::runtime::config::Config;
use crate::tests::simulation::runtime::context;
use crate::tests::simulation::runtime::failure::Failure;
use crate::tests::simulation::runtime::history;
use crate::tests::simulation::runtime::history::Outcome;
use crate::tests::simulation::runtime::process::{Condition, ProcessState};
use crate::tests::simulation::runtime::random::Random;
use crate::tests::simulation::runtime::scheduler::nanos;
use crate::tests::simulation::runtime::thread::spawn_in;
use crate::tests::simulation::runtime::trace::TraceLevel;

/// The history that the caller runs in. All methods are for its fibers and callbacks only.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Simulation {
    seed: u64,
}

/// A simulated process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process(usize);

impl Simulation {
    /// Runs one history: `main`, all that it starts, and then all fibers until they have ended.
    ///
    /// The same seed and settings give the same history. The calling thread runs all of it; other
    /// threads may run other histories meanwhile.
    ///
    /// The history is over when `main` returns, or at the first failure. From then on killed and
    /// paused processes run again, so that their fibers end.
    pub(crate) fn run<T: Send + 'static>(
        seed: u64,
        config: &Config,
        main: impl FnOnce(Simulation) -> T + Send + 'static,
    ) -> Outcome<T> {
        history::run(seed, config, main)
    }

    pub(super) fn of_seed(seed: u64) -> Simulation {
        Simulation { seed }
    }

    /// Returns a stream of random numbers of this history's seed. `stream` tells streams apart.
    pub(crate) fn random(self, stream: u64) -> Random {
        Random::new(self.seed, (1 << 32) + stream)
    }

    /// Creates a process without fibers.
    pub(crate) fn process(self, name: &str) -> Process {
        context::with(|scheduler| {
            let (index, now) = (scheduler.processes.len(), scheduler.now);
            let process = ProcessState::new(name, index, self.seed, now);
            scheduler.processes.push(process);
            Process(index)
        })
    }

    /// Returns the process of the caller.
    pub(crate) fn current(self) -> Process {
        Process(context::with(|scheduler| scheduler.running_process()))
    }

    /// Returns the true time since the history began.
    pub(crate) fn now(self) -> Duration {
        Duration::from_nanos(context::with(|scheduler| scheduler.now))
    }

    /// Calls `callback` after `delay` of true time, between two fibers. It must not block: it may
    /// send, notify and wake, and lock what no fiber holds across a step.
    pub(crate) fn after(self, delay: Duration, callback: impl FnOnce() + 'static) {
        context::with(|scheduler| {
            let at = scheduler.now.saturating_add(nanos(delay));
            scheduler.add_callback(at, Box::new(callback));
        });
    }

    /// Returns whether the history is over, and the fibers only run out.
    pub(crate) fn is_over(self) -> bool {
        context::with(|scheduler| scheduler.is_over)
    }

    /// Ends the history as failed, because `rule` is broken. The caller goes on, and ends soon.
    pub(crate) fn fail(self, rule: impl Into<String>) {
        context::with(|scheduler| scheduler.fail(Failure::Broken(rule.into())));
    }

    /// Adds a line to the trace, with the time and the fiber. `text` is called only if it is kept.
    pub(crate) fn note(self, text: impl FnOnce() -> String) {
        context::with(|scheduler| {
            if scheduler.trace.has(TraceLevel::Notes) {
                scheduler.note(|_| text());
            }
        });
    }
}

impl Process {
    /// Starts a fiber. Fibers that it starts belong to this process, too.
    pub(crate) fn spawn<T: Send + 'static>(
        self,
        name: &str,
        body: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        JoinHandle::Simulated(spawn_in(self.0, name.to_owned(), body))
    }

    /// Stops the process as SIGSTOP does: its clocks go on.
    pub(crate) fn pause(self) {
        context::set_condition(self.0, Condition::Paused);
    }

    /// Stops the process as a suspend of its machine does: its steady clock stands still.
    pub(crate) fn suspend(self) {
        context::set_condition(self.0, Condition::Suspended);
    }

    /// Lets a process run that was paused or suspended.
    pub(crate) fn resume(self) {
        if self.condition() != Condition::Killed {
            context::set_condition(self.0, Condition::Runs);
        }
    }

    /// Stops the process for ever. Its fibers keep what they hold, and run out when the history is
    /// over. So nothing that they lock may be needed by other processes.
    pub(crate) fn kill(self) {
        context::set_condition(self.0, Condition::Killed);
    }

    pub(crate) fn condition(self) -> Condition {
        context::with(|scheduler| scheduler.processes[self.0].condition)
    }

    /// Lets the steady clock run faster than true time by `drift` parts per million.
    pub(crate) fn set_drift(self, drift: i64) {
        context::with(|scheduler| {
            let now = scheduler.now;
            scheduler.processes[self.0].clock.set_drift(now, drift);
            scheduler.reset_timers(self.0);
        });
    }

    /// Sets the wall clock forward by `by` ms, or back.
    pub(crate) fn step_wall(self, by: i64) {
        context::with(|scheduler| scheduler.processes[self.0].clock.step_wall(by * 1_000_000));
    }

    /// Returns the names of its fibers that have not ended.
    pub(crate) fn live_threads(self) -> Vec<String> {
        context::with(|scheduler| {
            let fibers = scheduler.fibers.iter();
            let live = fibers.filter(|fiber| fiber.process == self.0 && fiber.is_live());
            live.map(|fiber| fiber.name.clone()).collect()
        })
    }
}
