//! Threads in the shape of those of `std`. A thread that a fiber starts is a fiber of its process.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;

use crate::tests::simulation::runtime::context;
use crate::tests::simulation::runtime::fiber::Resource;
use crate::time::clock;

/// The settings of a new thread.
pub(crate) struct Builder {
    name: String,
    stack_size: usize,
}

#[derive(Debug)]
pub(crate) enum JoinHandle<T> {
    Real(thread::JoinHandle<T>),
    Simulated(SimulatedThread<T>),
}

#[derive(Debug)]
pub(crate) struct SimulatedThread<T> {
    fiber: usize,
    result: Arc<Mutex<Option<thread::Result<T>>>>,
}

/// A thread, by its id.
#[derive(Debug)]
pub(crate) struct Thread(ThreadId);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ThreadId {
    Real(thread::ThreadId),
    Simulated(usize),
}

impl Builder {
    pub(crate) fn new() -> Builder {
        Builder {
            name: String::new(),
            stack_size: 0,
        }
    }

    pub(crate) fn name(mut self, name: String) -> Builder {
        self.name = name;
        self
    }

    pub(crate) fn stack_size(mut self, stack_size: usize) -> Builder {
        self.stack_size = stack_size;
        self
    }

    #[expect(clippy::disallowed_methods, reason = "stands in for it")]
    pub(crate) fn spawn<T: Send + 'static>(
        self,
        body: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<JoinHandle<T>> {
        if context::is_simulated() {
            context::step();
            let process = context::with(|scheduler| scheduler.running_process());
            return Ok(JoinHandle::Simulated(spawn_in(process, self.name, body)));
        }
        let builder = thread::Builder::new().name(self.name);
        builder
            .stack_size(self.stack_size)
            .spawn(body)
            .map(JoinHandle::Real)
    }
}

/// Starts a fiber in a process.
pub(super) fn spawn_in<T: Send + 'static>(
    process: usize,
    name: String,
    body: impl FnOnce() -> T + Send + 'static,
) -> SimulatedThread<T> {
    let result = Arc::new(Mutex::new(None));
    let slot = Arc::clone(&result);
    let job = Box::new(move || {
        let ended = catch_unwind(AssertUnwindSafe(body));
        let panic = ended.as_ref().err().map(|panic| message_of(&**panic));
        *slot.lock() = Some(ended);
        drop(slot);
        context::end_fiber(panic);
    });
    let fiber = context::with(|scheduler| scheduler.spawn(process, name, job));
    SimulatedThread { fiber, result }
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_default()
}

impl<T> JoinHandle<T> {
    pub(crate) fn thread(&self) -> Thread {
        Thread(match self {
            JoinHandle::Real(thread) => ThreadId::Real(thread.thread().id()),
            JoinHandle::Simulated(thread) => ThreadId::Simulated(thread.fiber),
        })
    }

    /// Blocks until the thread has ended, and returns its result.
    #[track_caller]
    pub(crate) fn join(self) -> thread::Result<T> {
        match self {
            JoinHandle::Real(thread) => thread.join(),
            JoinHandle::Simulated(thread) => thread.join(),
        }
    }
}

impl<T> SimulatedThread<T> {
    /// Blocks until the fiber has ended, and returns its result.
    #[track_caller]
    pub(crate) fn join(self) -> thread::Result<T> {
        let at = Location::caller();
        context::step();
        while !context::has_ended(self.fiber) {
            let ends = Resource::Fiber(self.fiber);
            context::block(context::wait("joins a thread", ends, None, at));
        }
        let result = self.result.lock().take();
        result.expect("the fiber has ended")
    }

    /// Returns the result, if the fiber has ended.
    pub(super) fn into_result(self) -> Option<thread::Result<T>> {
        self.result.lock().take()
    }
}

impl Thread {
    pub(crate) fn id(&self) -> ThreadId {
        self.0
    }
}

pub(crate) fn current() -> Thread {
    let fiber = context::running_fiber().map(ThreadId::Simulated);
    Thread(fiber.unwrap_or_else(|| ThreadId::Real(thread::current().id())))
}

pub(crate) fn yield_now() {
    match context::is_simulated() {
        true => context::yield_now(),
        false => thread::yield_now(),
    }
}

/// Blocks for `time`, by the clock of the process in a simulation.
#[track_caller]
#[expect(clippy::disallowed_methods, reason = "stands in for it")]
pub(crate) fn sleep(time: Duration) {
    if !context::is_simulated() {
        return thread::sleep(time);
    }
    let end = clock::now().checked_add(time);
    context::block(context::wait(
        "sleeps",
        Resource::Time,
        end,
        Location::caller(),
    ));
}
