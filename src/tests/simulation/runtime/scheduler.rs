//! The scheduler: the fibers of a history, its time, and the choice of the fiber that runs.
//!
//! It is a data structure: `context.rs` calls it from the fibers, `history.rs` runs them.
//!
//! | fiber | in `ready` | leaves by |
//! |---|---|---|
//! | ready, its process runs | yes | chosen: it runs until it blocks, yields, ends or is preempted |
//! | ready, its process stands | no | the process runs again |
//! | blocked | no | notified; its timer is due |
//! | ended | no | nothing |

use std::time::Duration;

use crate::tests::simulation::runtime::config::Config;
use crate::tests::simulation::runtime::failure::Failure;
use crate::tests::simulation::runtime::fiber::{Blocked, Fiber, Resource, State, Wait, Woken};
use crate::tests::simulation::runtime::process::{Condition, ProcessState};
use crate::tests::simulation::runtime::random::Random;
use crate::tests::simulation::runtime::stack::Job;
use crate::tests::simulation::runtime::strategy::Strategy;
use crate::tests::simulation::runtime::timers::{Callback, Timer, Timers};
use crate::tests::simulation::runtime::trace::Trace;

/// True time per step, in ns.
const STEP_TIME: u64 = 50;
/// By how much the time advances when all runnable fibers have yielded, in ns. It doubles while
/// that goes on.
const MIN_IDLE_TIME: u64 = 5_000;
const MAX_IDLE_TIME: u64 = 200_000;

const WAITING_BUCKETS: usize = 256;

/// The code to run next.
pub(super) enum Next {
    Fiber(usize, Option<Job>),
    Callback(Callback),
    /// All fibers have ended, or none of those left can run.
    Nothing,
}

pub(super) struct Scheduler {
    config: Config,
    pub(super) fibers: Vec<Fiber>,
    pub(super) processes: Vec<ProcessState>,
    /// The runnable fibers of processes that run.
    ready: Vec<usize>,
    pub(super) running: Option<usize>,
    /// How many fibers wait on the resources of each bucket, so that a notification that nobody
    /// waits for looks at no fiber.
    waiting: [u32; WAITING_BUCKETS],
    timers: Timers,
    /// True time since the history began, in ns.
    pub(super) now: u64,
    idle_time: u64,
    pub(super) steps: u64,
    max_steps: u64,
    max_time: u64,
    /// A fiber that is to run before the running one has become runnable.
    preempt: bool,
    strategy: Strategy,
    pub(super) is_over: bool,
    pub(super) failure: Option<Failure>,
    pub(super) trace: Trace,
}

impl Scheduler {
    pub(super) fn new(seed: u64, config: &Config) -> Scheduler {
        let strategy = Strategy::new(config.strategy, Random::new(seed, 0));
        Scheduler {
            fibers: Vec::new(),
            processes: Vec::new(),
            ready: Vec::new(),
            running: None,
            waiting: [0; WAITING_BUCKETS],
            timers: Timers::default(),
            now: 0,
            idle_time: MIN_IDLE_TIME,
            steps: 0,
            max_steps: config.max_steps,
            max_time: nanos(config.max_time),
            preempt: false,
            strategy,
            is_over: false,
            failure: None,
            trace: Trace::new(config.trace),
            config: config.clone(),
        }
    }

    // Called by the running fiber.

    /// Counts a step of the running fiber. Returns whether it is to pause.
    pub(super) fn step(&mut self) -> bool {
        self.steps += 1;
        self.now += STEP_TIME;
        let Some(running) = self.running else {
            return false;
        };
        let chooses = self.strategy.step(&mut self.fibers[running].priority);
        chooses
            || std::mem::take(&mut self.preempt)
            || self.timers.next_due() <= self.now
            || self.steps >= self.max_steps
    }

    /// Lets others run before the running fiber.
    pub(super) fn yield_running(&mut self) {
        if let Some(running) = self.running {
            self.fibers[running].yielded = true;
        }
    }

    /// Makes the running fiber wait. It is to pause at once.
    pub(super) fn block(&mut self, wait: Wait) {
        let Some(running) = self.running else { return };
        self.waiting[wait.on.bucket(WAITING_BUCKETS)] += 1;
        let blocked = Blocked {
            wait,
            since: self.now,
            timer: None,
        };
        self.fibers[running].state = State::Blocked(blocked);
        self.set_timer(running);
    }

    pub(super) fn spawn(&mut self, process: usize, name: String, job: Job) -> usize {
        let id = self.fibers.len();
        self.fibers.push(Fiber {
            name,
            process,
            state: State::Ready,
            job: Some(job),
            priority: self.strategy.new_priority(),
            yielded: false,
            woken: Woken::Notified,
        });
        self.processes[process].live_fibers += 1;
        self.make_ready(id);
        id
    }

    /// Ends the running fiber.
    pub(super) fn end_running(&mut self) {
        let Some(id) = self.running else { return };
        self.fibers[id].state = State::Ended;
        let process = &mut self.processes[self.fibers[id].process];
        process.live_fibers -= 1;
        self.wake_all(Resource::Fiber(id));
        if id == 0 {
            self.end_history();
        }
    }

    /// Records the first failure. From then on the fibers only run out.
    pub(super) fn fail(&mut self, failure: Failure) {
        if !self.is_over {
            self.trace.note(self.now, "", || failure.to_string());
            self.failure = Some(failure);
            self.end_history();
        }
    }

    /// Lets all fibers run out, those of killed and paused processes, too.
    fn end_history(&mut self) {
        if !self.is_over {
            self.is_over = true;
            self.max_steps = self.steps + self.config.max_steps;
            self.max_time = self.now + nanos(self.config.max_time);
            (0..self.processes.len())
                .for_each(|process| self.set_condition(process, Condition::Runs));
        }
    }

    // Waits and timers.

    /// Wakes all fibers that wait on a resource.
    pub(super) fn wake_all(&mut self, resource: Resource) {
        if self.waiting[resource.bucket(WAITING_BUCKETS)] == 0 {
            return;
        }
        for id in 0..self.fibers.len() {
            if self.fibers[id].waits_on(resource) {
                self.wake(id, Woken::Notified);
            }
        }
    }

    /// Wakes one fiber that waits on a resource, chosen by the strategy.
    pub(super) fn wake_one(&mut self, resource: Resource) {
        let waits = |fiber: &&Fiber| fiber.waits_on(resource);
        let count = self.fibers.iter().filter(waits).count();
        if count > 0 {
            let chosen = self.strategy.choose_waiter(count);
            let mut waiting =
                (0..self.fibers.len()).filter(|id| self.fibers[*id].waits_on(resource));
            if let Some(id) = waiting.nth(chosen) {
                self.wake(id, Woken::Notified);
            }
        }
    }

    fn wake(&mut self, id: usize, woken: Woken) {
        if let Some(blocked) = self.fibers[id].blocked().copied() {
            self.waiting[blocked.wait.on.bucket(WAITING_BUCKETS)] -= 1;
            if let Some(key) = blocked.timer {
                self.timers.remove(key);
            }
        }
        self.fibers[id].woken = woken;
        self.fibers[id].state = State::Ready;
        self.make_ready(id);
    }

    fn make_ready(&mut self, id: usize) {
        let fiber = &self.fibers[id];
        if self.processes[fiber.process].condition == Condition::Runs {
            self.ready.push(id);
            let running = self.running.map(|running| self.fibers[running].priority);
            self.preempt |=
                running.is_some_and(|running| self.strategy.preempts(fiber.priority, running));
        }
    }

    /// Sets the timer of a blocked fiber by the clock of its process.
    fn set_timer(&mut self, id: usize) {
        let process = self.fibers[id].process;
        let State::Blocked(blocked) = &mut self.fibers[id].state else {
            return;
        };
        if let Some(key) = blocked.timer.take() {
            self.timers.remove(key);
        }
        let clock = &self.processes[process].clock;
        let due = blocked
            .wait
            .until
            .and_then(|until| clock.true_time_of(until));
        blocked.timer = due.map(|due| self.timers.insert(due.max(self.now), Timer::Wait(id)));
    }

    pub(super) fn add_callback(&mut self, at: u64, callback: Callback) {
        self.timers.insert(at, Timer::Callback(callback));
    }

    // Processes.

    /// Lets a process run or stand. The waits of its fibers follow its clock.
    pub(super) fn set_condition(&mut self, process: usize, condition: Condition) {
        let state = &mut self.processes[process];
        let before = std::mem::replace(&mut state.condition, condition);
        if before == condition {
            return;
        }
        match condition {
            Condition::Suspended => state.clock.suspend(self.now),
            _ => state.clock.wake(self.now),
        }
        self.reset_timers(process);
        self.ready.retain(|id| self.fibers[*id].process != process);
        for id in 0..self.fibers.len() {
            let fiber = &self.fibers[id];
            let is_ready = fiber.process == process && matches!(fiber.state, State::Ready);
            if is_ready && self.running != Some(id) {
                self.make_ready(id);
            }
        }
    }

    /// Sets the timers of a process again after a change of its clock.
    pub(super) fn reset_timers(&mut self, process: usize) {
        for id in 0..self.fibers.len() {
            if self.fibers[id].process == process {
                self.set_timer(id);
            }
        }
    }

    // Called between two fibers.

    /// Chooses what runs next, and lets time pass if nothing can run.
    pub(super) fn next(&mut self) -> Next {
        if let Some(running) = self.running.take()
            && matches!(self.fibers[running].state, State::Ready)
        {
            self.make_ready(running);
        }
        self.preempt = false;
        if !self.ready.is_empty() && self.timers.next_due() > self.now && self.strategy.stalls() {
            self.stall();
        }
        loop {
            if let Some(callback) = self.fire_due() {
                return Next::Callback(callback);
            }
            if let Some(failure) = self.limit_reached() {
                if self.is_over {
                    return Next::Nothing;
                }
                self.fail(failure);
            }
            match self.choose() {
                Some(id) => return self.run(id),
                None if self.ready.is_empty() && self.timers.next_due() == u64::MAX => {
                    if self.is_over || !self.fibers.iter().any(Fiber::is_live) {
                        return Next::Nothing;
                    }
                    self.fail(Failure::Deadlock(self.describe_fibers()));
                }
                None => self.pass_time(),
            }
        }
    }

    fn run(&mut self, id: usize) -> Next {
        self.running = Some(id);
        self.idle_time = MIN_IDLE_TIME;
        let fiber = &mut self.fibers[id];
        fiber.yielded = false;
        self.trace.switch(self.now, self.steps, id);
        Next::Fiber(id, fiber.job.take())
    }

    /// Takes the chosen fiber from those that are ready; none of those that have yielded.
    fn choose(&mut self) -> Option<usize> {
        let fibers = &self.fibers;
        let count = self.ready.iter().filter(|id| !fibers[**id].yielded).count();
        if count == 0 {
            return None;
        }
        if count == self.ready.len() {
            let priorities = self.ready.iter().map(|id| fibers[*id].priority);
            let index = self.strategy.choose(priorities);
            return Some(self.ready.swap_remove(index));
        }
        let willing: Vec<usize> = (0..self.ready.len())
            .filter(|index| !fibers[self.ready[*index]].yielded)
            .collect();
        let priorities = willing
            .iter()
            .map(|index| fibers[self.ready[*index]].priority);
        let index = willing[self.strategy.choose(priorities)];
        Some(self.ready.swap_remove(index))
    }

    /// Advances the time to the next timer, or by little if fibers that have yielded are waiting.
    fn pass_time(&mut self) {
        match self.ready.is_empty() {
            true => self.now = self.timers.next_due(),
            false => {
                self.now = self.timers.next_due().min(self.now + self.idle_time);
                self.idle_time = (self.idle_time * 2).min(MAX_IDLE_TIME);
                self.ready
                    .iter()
                    .for_each(|id| self.fibers[*id].yielded = false);
            }
        }
    }

    fn stall(&mut self) {
        let max_stall = nanos(self.config.max_stall);
        if self.timers.next_due() - self.now <= max_stall {
            self.now = self.timers.next_due();
        }
    }

    fn fire_due(&mut self) -> Option<Callback> {
        while let Some(timer) = self.timers.pop_due(self.now) {
            match timer {
                Timer::Callback(callback) => return Some(callback),
                Timer::Wait(id) => {
                    if let State::Blocked(blocked) = &mut self.fibers[id].state {
                        blocked.timer = None;
                    }
                    self.wake(id, Woken::TimedOut);
                }
            }
        }
        None
    }

    fn limit_reached(&self) -> Option<Failure> {
        match (self.steps >= self.max_steps, self.now >= self.max_time) {
            (true, _) => Some(Failure::OutOfSteps(self.describe_fibers())),
            (_, true) => Some(Failure::OutOfTime(self.describe_fibers())),
            _ => None,
        }
    }

    /// Returns the index of the running fiber's process; 0 for a callback.
    pub(super) fn running_process(&self) -> usize {
        self.running.map_or(0, |id| self.fibers[id].process)
    }

    pub(super) fn process(&mut self) -> &mut ProcessState {
        let process = self.running_process();
        &mut self.processes[process]
    }
}

pub(super) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
