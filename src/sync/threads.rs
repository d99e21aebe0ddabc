//! Named background threads that are joined within a bound.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError};
use log::error;

use crate::error::Error;

/// The stack of a thread. `redis` reads a reply that is nested 100 deep, as deep as it goes, with more than 1.25 MiB of it
/// where it is built without optimisation, and an overflow is the end of the process. Callers read none that is nested.
const STACK_SIZE: usize = 4 << 20;

/// A thread of its own beside the lanes, started when it is first needed.
#[derive(Debug)]
pub(crate) struct BackgroundThread {
    thread: JoinHandle<()>,
    /// Disconnected when it has ended.
    exited: Receiver<()>,
}

impl BackgroundThread {
    /// # Errors
    /// `System` when the thread cannot be had.
    pub(crate) fn spawn(
        name: &str,
        body: impl FnOnce() + Send + 'static,
    ) -> Result<BackgroundThread, Error> {
        let (alive, ended) = crossbeam_channel::bounded::<()>(0);
        let thread = spawn(name.to_owned(), move || {
            let _alive = alive;
            body();
        })?;
        Ok(BackgroundThread {
            thread,
            exited: ended,
        })
    }

    /// Waits until it has ended, which somebody has told it to do, until `end`. `false` if it has not. The thread itself
    /// does not wait: it may be the one that drops the last handle, and ends after that.
    pub(crate) fn join_until(self, end: Instant) -> bool {
        if self.thread.thread().id() == std::thread::current().id() {
            return true;
        }
        let ended = self.exited.recv_deadline(end);
        let ended = matches!(ended, Err(RecvTimeoutError::Disconnected));
        if ended {
            // What panics in it has been told by the panic itself.
            let _ = self.thread.join();
        }
        ended
    }
}

/// Runs `turn`, of a thread's loop or of a destructor. A panic in it, of a logger or a callback say, is written to the log and
/// goes no further: `None`.
pub(crate) fn catch<T>(whose: &str, turn: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(turn))
        .map_err(|panic| {
            // The logger may be what panics, and what is thrown may panic when it is dropped.
            let _ = catch_unwind(AssertUnwindSafe(|| {
                error!("{whose}: a panic was caught: {}", said(&*panic));
                drop(panic);
            }));
        })
        .ok()
}

/// Returns the message of a panic.
fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message")
}

/// Starts a named thread.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the one place that starts threads"
)]
pub(crate) fn spawn(
    name: String,
    body: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, Error> {
    std::thread::Builder::new()
        .name(name)
        .stack_size(STACK_SIZE)
        .spawn(body)
        .map_err(|error| Error::System {
            what: "a thread",
            reason: error.to_string(),
        })
}
