//! Means of the simulated nodes and the checker beside the seams: a signal that a callback may
//! raise, code that no step interrupts, and the clocks of other processes.

use std::panic::Location;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::tests::simulation::runtime::context;
use crate::tests::simulation::runtime::context::Running;
use crate::tests::simulation::runtime::fiber::Resource;
use crate::tests::simulation::runtime::process::Condition;
use crate::time::clock;

/// A flag that fibers wait for. No fiber holds a lock for it, so a killed process blocks nobody.
#[derive(Debug, Default)]
pub(crate) struct Signal(AtomicBool);

impl Signal {
    /// Ends the present waits, or the next one.
    pub(crate) fn raise(&self) {
        self.0.store(true, Ordering::Relaxed);
        context::wake_all(Resource::of(self));
    }

    /// Blocks until the signal is raised, at most until `end` by the clock of the caller's process.
    #[track_caller]
    pub(crate) fn wait_until(&self, end: Option<Instant>) {
        context::step();
        // No step lies between the look at the flag and the wait.
        if !self.0.swap(false, Ordering::Relaxed) {
            let what = "waits for a signal";
            let wait = context::wait(what, Resource::of(self), end, Location::caller());
            context::block(wait);
            self.0.store(false, Ordering::Relaxed);
        }
    }
}

/// Runs `body` without a step: no other fiber runs meanwhile. It must not block.
pub(crate) fn uninterrupted<T>(body: impl FnOnce() -> T) -> T {
    if context::running_fiber().is_none() {
        return body();
    }
    context::set_running(Running::Callback);
    let result = body();
    context::set_running(Running::Fiber);
    result
}

/// Returns the steady clock of the process with this index.
pub(crate) fn clock_of(process: usize) -> Instant {
    let steady =
        context::with(|scheduler| scheduler.processes[process].clock.steady(scheduler.now));
    context::start() + Duration::from_nanos(steady)
}

/// Returns how far the wall clock of the process with this index is ahead of its steady clock, in
/// µs.
pub(crate) fn wall_offset_of(process: usize) -> i64 {
    let wall = context::with(|scheduler| scheduler.processes[process].clock.wall(scheduler.now));
    let steady = clock::to_micros(clock_of(process));
    Duration::from_nanos(wall).as_micros() as i64 - steady as i64
}

/// Returns whether the process with this index is suspended.
pub(crate) fn is_suspended(process: usize) -> bool {
    context::with(|scheduler| scheduler.processes[process].condition == Condition::Suspended)
}

/// Returns the steady clock of the first process when the history begins. No process reads less.
pub(crate) fn start() -> Instant {
    context::start()
}

/// Returns the true time as an instant, which no process reads.
pub(crate) fn true_time() -> Instant {
    context::start() + Duration::from_nanos(context::with(|scheduler| scheduler.now))
}
