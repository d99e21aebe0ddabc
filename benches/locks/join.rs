//! Joins the threads of a measurement.

use std::thread::ScopedJoinHandle;

use crate::Result;

/// Blocks until the thread has ended, and returns its result. A panic in it is an error.
pub(crate) fn join<T>(thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    let panicked = |_| Err("a thread panicked".into());
    thread.join().unwrap_or_else(panicked)
}
