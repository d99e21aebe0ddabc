//! The simulation that the calling code runs in, if any. The seams ask for it.
//!
//! A system thread runs at most one history at a time. Code of a fiber is in the mode `Fiber`,
//! where each call of a seam is a step. A callback is in the mode `Callback`: it has the time and
//! the random numbers of the history, and must not block. All other code is `Real`.

use std::cell::{Cell, RefCell};
use std::panic::Location;
use std::time::{Duration, Instant};

use crate::tests::simulation::runtime::failure::Failure;
use crate::tests::simulation::runtime::fiber::{Resource, State, Wait, Woken};
use crate::tests::simulation::runtime::process::Condition;
use crate::tests::simulation::runtime::scheduler::Scheduler;
use crate::tests::simulation::runtime::stack;
use crate::tests::simulation::runtime::trace::TraceLevel;
use crate::time::clock;

/// Which code runs on this system thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Running {
    Real,
    Fiber,
    Callback,
}

thread_local! {
    static RUNNING: Cell<Running> = const { Cell::new(Running::Real) };
    static SCHEDULER: RefCell<Option<Box<Scheduler>>> = const { RefCell::new(None) };
}

/// Returns whether the caller runs in a simulation.
pub(crate) fn is_simulated() -> bool {
    RUNNING.get() != Running::Real
}

pub(super) fn set_running(running: Running) {
    RUNNING.set(running);
}

/// Sets the scheduler of this system thread, and returns the former one.
pub(super) fn replace_scheduler(scheduler: Option<Box<Scheduler>>) -> Option<Box<Scheduler>> {
    SCHEDULER.replace(scheduler)
}

/// Calls `f` with the scheduler.
///
/// # Panics
/// If the caller runs in no simulation.
pub(super) fn with<T>(f: impl FnOnce(&mut Scheduler) -> T) -> T {
    SCHEDULER.with_borrow_mut(|scheduler| f(scheduler.as_mut().expect("outside of a simulation")))
}

/// Where another fiber may be chosen. Does nothing outside of a fiber.
pub(super) fn step() {
    if RUNNING.get() == Running::Fiber && with(Scheduler::step) {
        pause();
    }
}

/// Lets the scheduler choose. A fiber that unwinds goes on, because the others would seem to.
fn pause() {
    if !std::thread::panicking() {
        stack::pause();
    }
}

pub(super) fn yield_now() {
    if RUNNING.get() == Running::Fiber {
        with(Scheduler::yield_running);
        pause();
    }
}

/// Makes the running fiber wait until it is notified or `until` has passed.
pub(super) fn block(wait: Wait) -> Woken {
    begin_wait(wait);
    end_wait()
}

/// The first half of [`block`]: from now on the fiber can be notified. It makes no step before
/// [`end_wait`].
pub(super) fn begin_wait(wait: Wait) {
    let Wait { what, at, .. } = wait;
    assert!(RUNNING.get() == Running::Fiber, "a callback {what} at {at}");
    with(|scheduler| {
        if scheduler.trace.has(TraceLevel::Waits) {
            let (now, name) = (scheduler.now, scheduler.running_name());
            scheduler
                .trace
                .note(now, &name, || format!("{what} at {at}"));
        }
        scheduler.block(wait);
    });
}

pub(super) fn end_wait() -> Woken {
    stack::pause();
    with(|scheduler| {
        let running = scheduler.running.map(|id| &scheduler.fibers[id]);
        running.map_or(Woken::Notified, |fiber| fiber.woken)
    })
}

/// Returns the wait of the caller for `on`.
pub(super) fn wait(
    what: &'static str,
    on: Resource,
    until: Option<Instant>,
    at: &'static Location<'static>,
) -> Wait {
    let until = until.map(|until| until.saturating_duration_since(start()).as_nanos() as u64);
    Wait {
        what,
        on,
        until,
        at,
    }
}

pub(super) fn wake_all(resource: Resource) {
    if is_simulated() {
        with(|scheduler| scheduler.wake_all(resource));
    }
}

pub(super) fn wake_one(resource: Resource) {
    if is_simulated() {
        with(|scheduler| scheduler.wake_one(resource));
    }
}

/// The steady clock of the first process when the history begins. The same in all histories, so
/// that no rounding differs.
pub(super) fn start() -> Instant {
    const SINCE_EPOCH: u64 = 7_200_000_000;
    clock::from_micros(SINCE_EPOCH).expect("two hours fit")
}

/// Returns the steady clock of the running process, in a simulation. Makes a step.
pub(crate) fn now() -> Option<Instant> {
    let steady = |scheduler: &mut Scheduler| {
        let now = scheduler.now;
        scheduler.process().clock.steady(now)
    };
    let steady = match RUNNING.get() {
        Running::Real => return None,
        Running::Callback => with(steady),
        // The most frequent step, so the scheduler is borrowed once if the fiber goes on.
        Running::Fiber => {
            let read = with(|scheduler| (!scheduler.step()).then(|| steady(scheduler)));
            read.unwrap_or_else(|| {
                pause();
                with(steady)
            })
        }
    };
    Some(start() + Duration::from_nanos(steady))
}

/// Returns the wall clock of the running process, in a simulation. Makes a step.
pub(crate) fn unix_time() -> Option<Duration> {
    step();
    is_simulated().then(|| {
        let wall = with(|scheduler| {
            let now = scheduler.now;
            scheduler.process().clock.wall(now)
        });
        Duration::from_nanos(wall)
    })
}

/// Fills `bytes` with random numbers of the running process. Returns `false` outside of a
/// simulation.
pub(crate) fn fill(bytes: &mut [u8]) -> bool {
    if is_simulated() {
        with(|scheduler| scheduler.process().random.fill(bytes));
    }
    is_simulated()
}

/// Draws a random number of the running process, in a simulation.
pub(crate) fn draw() -> Option<u64> {
    is_simulated().then(|| with(|scheduler| scheduler.process().random.next()))
}

/// Returns the id of the running process, in a simulation.
pub(crate) fn process_id() -> Option<u32> {
    const FIRST_ID: u32 = 100_000;
    is_simulated().then(|| with(|scheduler| FIRST_ID + scheduler.running_process() as u32))
}

pub(super) fn running_fiber() -> Option<usize> {
    match is_simulated() {
        true => with(|scheduler| scheduler.running),
        false => None,
    }
}

/// Lets a process run or stand. If that stops the caller it blocks here.
pub(super) fn set_condition(process: usize, condition: Condition) {
    let stops_caller = with(|scheduler| {
        if scheduler.is_over {
            return false;
        }
        scheduler.note(|scheduler| format!("{}: {condition:?}", scheduler.processes[process].name));
        scheduler.set_condition(process, condition);
        condition != Condition::Runs && scheduler.running_process() == process
    });
    if stops_caller && RUNNING.get() == Running::Fiber {
        stack::pause();
    }
}

/// Ends the running fiber, with the message of its panic if it had one.
pub(super) fn end_fiber(panic: Option<String>) {
    with(|scheduler| {
        if let Some(message) = panic {
            let fiber = scheduler.running_name();
            scheduler.fail(Failure::Panicked { fiber, message });
        }
        scheduler.end_running();
    });
}

/// Returns whether a fiber has ended.
pub(super) fn has_ended(fiber: usize) -> bool {
    with(|scheduler| matches!(scheduler.fibers[fiber].state, State::Ended))
}
