//! The stacks on which fibers run, and the switch between a fiber and the scheduler.
//!
//! A stack runs one job after the other, so that a history costs no new stacks. A stack whose job
//! never ends is leaked: to drop it would unwind code that is not made for it.

use std::cell::RefCell;

use generator::{Generator, Gn};

/// The code of one fiber.
pub(super) type Job = Box<dyn FnOnce() + Send>;

/// Words per stack. The system gives memory to the pages that are touched only.
const STACK_WORDS: usize = 1 << 17;

/// The reason why control comes back to the scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Returned {
    /// The job waits to be resumed.
    Paused,
    /// The job is done. The stack can run another.
    Done,
}

/// A stack, with the job that it runs.
pub(super) struct Stack(Generator<'static, Job, Returned>);

/// The stacks of this system thread that run no job.
struct IdleStacks(Vec<Stack>);

thread_local! {
    static IDLE: RefCell<IdleStacks> = const { RefCell::new(IdleStacks(Vec::new())) };
}

impl Stack {
    /// Returns a stack that runs no job.
    pub(super) fn take() -> Stack {
        let idle = IDLE.with_borrow_mut(|idle| idle.0.pop());
        idle.unwrap_or_else(|| Stack(Gn::new_opt(STACK_WORDS, run_jobs)))
    }

    /// Gives back a stack whose job is done.
    pub(super) fn put_back(self) {
        IDLE.with_borrow_mut(|idle| idle.0.push(self));
    }

    /// Runs a new job until it pauses or is done.
    pub(super) fn start(&mut self, job: Job) -> Returned {
        self.0.raw_send(Some(job)).unwrap_or(Returned::Done)
    }

    /// Goes on with the job until it pauses again or is done.
    pub(super) fn resume(&mut self) -> Returned {
        self.0.raw_send(None).unwrap_or(Returned::Done)
    }

    /// Forgets a stack whose job will never end.
    pub(super) fn leak(self) {
        std::mem::forget(self);
    }
}

impl Drop for IdleStacks {
    fn drop(&mut self) {
        // Without a job the code of a stack returns. A stack that is dropped before would unwind
        // it.
        self.0
            .iter_mut()
            .for_each(|stack| _ = stack.0.raw_send(None));
    }
}

#[expect(deprecated, reason = "a scope cannot be reached from within the job")]
fn run_jobs() -> Returned {
    let mut job: Option<Job> = generator::get_yield();
    while let Some(run) = job {
        run();
        job = generator::yield_(Returned::Done);
    }
    Returned::Done
}

/// Returns control to the scheduler. Called on a stack, in its job.
#[expect(deprecated, reason = "a scope cannot be reached from within the job")]
pub(super) fn pause() {
    generator::yield_with(Returned::Paused);
}
