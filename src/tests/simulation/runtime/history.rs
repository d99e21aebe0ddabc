//! Runs one history: the fibers of its processes, one at a time, until all have ended.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::tests::simulation::runtime::config::Config;
use crate::tests::simulation::runtime::context;
use crate::tests::simulation::runtime::context::Running;
use crate::tests::simulation::runtime::failure::Failure;
use crate::tests::simulation::runtime::process::ProcessState;
use crate::tests::simulation::runtime::scheduler::{Next, Scheduler};
use crate::tests::simulation::runtime::simulation::Simulation;
use crate::tests::simulation::runtime::stack::{Job, Returned, Stack};
use crate::tests::simulation::runtime::thread::spawn_in;
use crate::tests::simulation::runtime::timers::Callback;

/// The outcome of a history.
#[derive(Debug)]
pub(crate) struct Outcome<T> {
    /// The value that `main` returned, or the first failure.
    pub(crate) result: Result<T, Failure>,
    pub(crate) steps: u64,
    /// The simulated time that it took.
    pub(crate) time: Duration,
    /// Differs between two histories in which not the same fibers ran at the same times.
    pub(crate) fingerprint: u64,
    pub(crate) trace: Vec<String>,
    /// The waits of the fibers that never end, if there are any.
    pub(crate) left: Option<String>,
}

/// Runs a history, whose first process runs `main`.
pub(super) fn run<T: Send + 'static>(
    seed: u64,
    config: &Config,
    main: impl FnOnce(Simulation) -> T + Send + 'static,
) -> Outcome<T> {
    assert!(!context::is_simulated(), "a history within a history");
    let mut scheduler = Scheduler::new(seed, config);
    scheduler
        .processes
        .push(ProcessState::new("main", 0, seed, 0));
    let former = context::replace_scheduler(Some(Box::new(scheduler)));
    assert!(former.is_none(), "a history within a history");
    let main = spawn_in(0, "main".to_owned(), move || {
        main(Simulation::of_seed(seed))
    });
    let mut stacks = Stacks(Vec::new());
    while run_next(&mut stacks) {}
    let left = stacks
        .leak_used()
        .then(|| context::with(|scheduler| scheduler.describe_fibers()));
    let scheduler = context::replace_scheduler(None).expect("it was set");
    let result = match (scheduler.failure, main.into_result()) {
        (Some(failure), _) => Err(failure),
        (None, Some(Ok(value))) => Ok(value),
        (None, _) => Err(Failure::Deadlock(left.clone().unwrap_or_default())),
    };
    Outcome {
        result,
        steps: scheduler.steps,
        time: Duration::from_nanos(scheduler.now),
        fingerprint: scheduler.trace.fingerprint,
        trace: scheduler.trace.lines,
        left,
    }
}

/// Runs the next fiber until it pauses, or a callback. Returns `false` if there is nothing to run.
fn run_next(stacks: &mut Stacks) -> bool {
    match context::with(Scheduler::next) {
        Next::Fiber(fiber, job) => {
            context::set_running(Running::Fiber);
            stacks.run(fiber, job);
            context::set_running(Running::Real);
        }
        Next::Callback(callback) => run_callback(callback),
        Next::Nothing => return false,
    }
    true
}

fn run_callback(callback: Callback) {
    context::set_running(Running::Callback);
    let ended = catch_unwind(AssertUnwindSafe(callback));
    context::set_running(Running::Real);
    if ended.is_err() {
        context::with(|scheduler| {
            scheduler.fail(Failure::Panicked {
                fiber: "a callback".to_owned(),
                message: "see above".to_owned(),
            });
        });
    }
}

/// The stacks of the fibers that have begun and not ended.
struct Stacks(Vec<Option<Stack>>);

impl Stacks {
    fn run(&mut self, fiber: usize, job: Option<Job>) {
        if self.0.len() <= fiber {
            self.0.resize_with(fiber + 1, || None);
        }
        let stack = self.0[fiber].get_or_insert_with(Stack::take);
        let returned = match job {
            Some(job) => stack.start(job),
            None => stack.resume(),
        };
        if returned == Returned::Done
            && let Some(stack) = self.0[fiber].take()
        {
            stack.put_back();
        }
    }

    /// Gives up the stacks that are left. Returns whether there were any.
    fn leak_used(&mut self) -> bool {
        let left: Vec<Stack> = self.0.drain(..).flatten().collect();
        let has_left = !left.is_empty();
        left.into_iter().for_each(Stack::leak);
        has_left
    }
}
