//! The signals that end `watch`.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crossterm::terminal;
use nix::sys::signal::{SigSet, Signal};

use crate::failure::Result;
use crate::notes::is_writable;
use crate::sys;

/// How long a write may take after a signal.
const WRITE_LIMIT: Duration = Duration::from_millis(100);

/// The blocked signals.
#[derive(Debug)]
pub(crate) struct StopSignals(SigSet);

impl StopSignals {
    /// Blocks the signals that are not ignored. To be called before any thread starts.
    pub(crate) fn block() -> Result<StopSignals> {
        use Signal::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
        let signals = [SIGHUP, SIGINT, SIGQUIT, SIGTERM];
        let signals = signals.into_iter();
        let set: SigSet = signals.filter(|it| !sys::is_ignored(*it as i32)).collect();
        set.thread_block()?;
        Ok(StopSignals(set))
    }

    /// Returns a flag that the first of the signals sets. While standard output is blocked, by a reader
    /// that has stopped for example, nobody sees the flag: the process then ends.
    pub(crate) fn listen(self) -> io::Result<Stop> {
        let stop = Stop::default();
        let told = stop.clone();
        let builder = thread::Builder::new().name("signals".to_owned());
        builder.spawn(move || {
            if self.0.wait().is_ok() {
                told.set();
                end_when_blocked();
            }
        })?;
        Ok(stop)
    }
}

/// Ends the process once standard output is blocked. Else the main thread ends it.
fn end_when_blocked() -> ! {
    loop {
        thread::sleep(WRITE_LIMIT);
        if !is_writable(io::stdout().as_fd()) {
            // Does nothing without a table. Its screen cannot be left, which would need a write.
            let _ = terminal::disable_raw_mode();
            std::process::exit(0);
        }
    }
}

/// Ends a watch from another thread.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    is_set: AtomicBool,
    mutex: Mutex<()>,
    changed: Condvar,
}

impl Stop {
    pub(crate) fn set(&self) {
        let guard = self.0.mutex.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.is_set.store(true, Ordering::Release);
        drop(guard); // unlock before waking
        self.0.changed.notify_all();
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.is_set.load(Ordering::Acquire)
    }

    /// Returns whether the flag is set within this time.
    pub(crate) fn wait(&self, time: Duration) -> bool {
        let guard = self.0.mutex.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = self
            .0
            .changed
            .wait_timeout_while(guard, time, |()| !self.is_set());
        drop(waiting);
        self.is_set()
    }
}
