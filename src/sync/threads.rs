//! Named threads, threads that start on first use, and the containment of panics.
//!
//! No other file starts a thread. A thread is never joined without a deadline, and a panic in
//! [`catch`] never reaches the caller.

use std::any::Any;
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
#[cfg(not(all(test, not(loom))))]
use std::thread;
use std::time::Instant;

use log::error;

use crate::error::error::Error;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::channel;
use crate::sync::channel::{Receiver, RecvTimeoutError};
use crate::sync::primitives::Mutex;
#[cfg(all(test, not(loom)))]
use crate::tests::simulation::runtime::{context, thread};

pub(crate) use thread::{JoinHandle, yield_now};

/// The stack size of each thread in bytes.
///
/// The parser of `redis` recurses up to 100 levels deep, which takes more than 1.25 MiB without
/// optimisation. A stack overflow would abort the process. Callers never parse nested replies.
const STACK_SIZE: usize = 4 << 20;

/// A background thread that starts on first use and runs until its owner tells it to end.
///
/// | state | `is_started` | leaves by |
/// |---|---|---|
/// | idle | false | `start`, which spawns the thread |
/// | running | true | the body returns |
/// | joined | true | nothing: `start` has no effect any more |
///
/// The type does not tell the body to end: the owner sets its own stop flag before `join_until`.
#[derive(Debug)]
pub(crate) struct LazyThread {
    name: &'static str,
    /// Read on every use of a started thread, so it is kept beside the mutex.
    started: AtomicBool,
    thread: Mutex<Option<BackgroundThread>>,
}

impl LazyThread {
    pub(crate) fn new(name: &'static str) -> LazyThread {
        LazyThread {
            name,
            started: AtomicBool::new(false),
            thread: Mutex::new(None),
        }
    }

    /// Starts the thread, unless an earlier call has started it. Concurrent calls start one thread.
    /// `body` returns what the thread runs; it is called only by the call that starts it.
    ///
    /// # Errors
    /// - `System` if the operating system refuses the thread. A later call tries again.
    pub(crate) fn start<B>(&self, body: impl FnOnce() -> B) -> Result<(), Error>
    where
        B: FnOnce() + Send + 'static,
    {
        if self.is_started() {
            return Ok(());
        }
        let mut thread = self.thread.lock();
        if !self.is_started() {
            *thread = Some(BackgroundThread::spawn(self.name, body())?);
            self.started.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Returns whether the thread was ever started.
    pub(crate) fn is_started(&self) -> bool {
        self.started.load(Ordering::Acquire)
    }

    /// Blocks until the thread has ended, at most until `end`. Returns `false` if it still runs.
    ///
    /// A thread that was never started counts as ended. The thread itself does not block here.
    pub(crate) fn join_until(&self, end: Instant) -> bool {
        let thread = self.thread.lock().take(); // unlocked before blocking
        thread.is_none_or(|thread| thread.join_until(end))
    }
}

/// A running background thread beside the workers.
#[derive(Debug)]
struct BackgroundThread {
    thread: JoinHandle<()>,
    /// Disconnected when the thread has ended.
    exited: Receiver<()>,
}

impl BackgroundThread {
    /// Starts a thread that runs `body`.
    ///
    /// # Errors
    /// - `System` if the operating system refuses the thread.
    pub(crate) fn spawn(
        name: &str,
        body: impl FnOnce() + Send + 'static,
    ) -> Result<BackgroundThread, Error> {
        let (alive, exited) = channel::unbounded::<()>();
        let thread = spawn(name.to_owned(), move || {
            let _alive = alive;
            body();
        })?;
        Ok(BackgroundThread { thread, exited })
    }

    /// Blocks until the thread has ended, at most until `end`. Returns `false` if it still runs.
    ///
    /// The thread itself returns `true` at once: it may drop the last handle, and ends after that.
    pub(crate) fn join_until(self, end: Instant) -> bool {
        if self.thread.thread().id() == thread::current().id() {
            return true;
        }
        let result = self.exited.recv_deadline(end);
        let has_exited = matches!(result, Err(RecvTimeoutError::Disconnected));
        if has_exited {
            // The panic hook has reported a panic already.
            let _ = self.thread.join();
        }
        has_exited
    }
}

/// Runs `body` and returns its result, or `None` if it panicked.
///
/// A panic, for instance of a logger or a callback, is logged under `context`.
pub(crate) fn catch<T>(context: &str, body: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(body))
        .map_err(|panic| {
            // The logger may be the cause, and the panic's value may panic when it is dropped.
            let _ = catch_unwind(AssertUnwindSafe(|| {
                error!("{context}: a panic was caught: {}", message_of(&*panic));
                drop(panic);
            }));
        })
        .ok()
}

/// Runs `line`, which logs one line. A panic of the logger is caught, so that it cannot unwind a
/// caller whose token is on a node and has no guard or undo yet (S4).
pub(crate) fn log(line: impl FnOnce()) {
    catch("logger", line);
}

/// Returns the message of a panic.
fn message_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message")
}

/// Starts a named thread with a stack of [`STACK_SIZE`] bytes.
///
/// # Errors
/// - `System` if the operating system refuses the thread.
#[cfg_attr(
    not(all(test, not(loom))),
    expect(
        clippy::disallowed_methods,
        reason = "this is the one place that starts threads"
    )
)]
pub(crate) fn spawn(
    name: String,
    body: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, Error> {
    thread::Builder::new()
        .name(name)
        .stack_size(STACK_SIZE)
        .spawn(body)
        .map_err(|error| Error::System {
            what: "a thread",
            reason: error.to_string(),
        })
}

/// Returns the id of this process, which differs in a forked child.
pub(crate) fn process_id() -> u32 {
    #[cfg(all(test, not(loom)))]
    if let Some(id) = context::process_id() {
        return id;
    }
    std::process::id()
}

/// Returns the number of processors that this process may use; 1 if it is unknown. In the simulator
/// 2, so that a seed gives the same history on all machines.
pub(crate) fn cores() -> u32 {
    static CORES: OnceLock<u32> = OnceLock::new();
    #[cfg(all(test, not(loom)))]
    if context::process_id().is_some() {
        return 2;
    }
    *CORES.get_or_init(|| {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        u32::try_from(cores).unwrap_or(u32::MAX)
    })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::time::clock;

    fn soon() -> Instant {
        clock::now() + Duration::from_secs(60)
    }

    #[test]
    fn lazy_thread_started_twice_runs_one_body() {
        let thread = LazyThread::new("redguard-test");
        assert!(!thread.is_started() && thread.join_until(clock::now()));
        let (ran, runs) = crossbeam_channel::unbounded();
        for _ in 0..2 {
            let ran = ran.clone();
            let body = move || ran.send(std::thread::current().name().map(str::to_owned));
            thread.start(|| move || body().unwrap()).unwrap();
            assert!(thread.is_started());
        }
        assert!(thread.join_until(soon()));
        drop(ran);
        let names: Vec<_> = runs.iter().collect();
        assert_eq!(names, [Some("redguard-test".to_owned())]);
    }

    #[test]
    fn lazy_thread_that_was_joined_does_not_start_again() {
        let thread = LazyThread::new("redguard-test");
        thread.start(|| || {}).unwrap();
        assert!(thread.join_until(soon()));
        thread.start(|| || panic!("started again")).unwrap();
        assert!(thread.is_started() && thread.join_until(clock::now()));
    }

    #[test]
    fn lazy_thread_that_still_runs_is_joined_until_the_deadline_only() {
        let thread = LazyThread::new("redguard-test");
        let (stop, stopped) = crossbeam_channel::bounded::<()>(0);
        thread.start(|| move || _ = stopped.recv()).unwrap();
        assert!(!thread.join_until(clock::now()));
        drop(stop);
    }

    #[test]
    fn lazy_thread_that_joins_itself_does_not_block() {
        let thread = Arc::new(LazyThread::new("redguard-test"));
        let (joined, results) = crossbeam_channel::bounded(1);
        let own = Arc::clone(&thread);
        // The body begins only when `start` has stored the handle.
        let (ready, go) = crossbeam_channel::bounded::<()>(0);
        thread
            .start(|| {
                move || {
                    let _ = go.recv();
                    _ = joined.send(own.join_until(soon()));
                }
            })
            .unwrap();
        drop(ready);
        assert_eq!(results.recv(), Ok(true));
    }

    #[test]
    fn catch_returns_the_value_or_none_after_a_panic() {
        assert_eq!(catch("a test", || 7), Some(7));
        assert_eq!(catch("a test", || -> u8 { panic!("on purpose") }), None);
    }
}
