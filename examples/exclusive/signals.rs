//! Termination signals, received in a thread of their own.

use nix::sys::signal::{SigSet, Signal};
use std::ffi::OsString;
use std::process::{Child, Command};
use std::{io, thread};

/// Signals that `exclusive` must survive while its command runs, so that the lock lives as long, or
/// until its screen is left.
pub(crate) struct Signals(SigSet);

impl Signals {
    /// Blocks the signals in this thread and its children, so that a thread can wait for them and
    /// tell them apart.
    pub(crate) fn block() -> io::Result<Signals> {
        use Signal::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
        let set = SigSet::from_iter([SIGHUP, SIGINT, SIGQUIT, SIGTERM]);
        set.thread_block()?;
        Ok(Signals(set))
    }

    /// Calls `tell` for each signal.
    #[expect(
        clippy::disallowed_methods,
        reason = "no thread can join it, because it waits for signals to the end"
    )]
    pub(crate) fn listen(&self, told: impl Fn(Signal) + Clone + Send + 'static) -> io::Result<()> {
        let unknown = told.clone();
        // Ignored while `spawn` unblocks them for a moment.
        ctrlc::set_handler(move || unknown(Signal::SIGTERM)).map_err(io::Error::other)?;
        let set = self.0;
        thread::spawn(move || {
            while let Ok(signal) = set.wait() {
                told(signal);
            }
        });
        Ok(())
    }

    /// Starts a command without the inherited block.
    pub(crate) fn spawn(&self, program: &OsString, args: &[OsString]) -> io::Result<Child> {
        self.0.thread_unblock()?;
        let spawned = Command::new(program).args(args).spawn();
        self.0.thread_block()?;
        spawned
    }
}
