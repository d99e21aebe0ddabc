//! The signals that ask a program to end, waited for in a thread of their own.

use nix::sys::signal::{SigSet, Signal};
use std::ffi::OsString;
use std::process::{Child, Command};
use std::{io, thread};

/// Signals that `exclusive` must survive for as long as its command runs, so that the lock lives as long; or until its
/// screen is left.
pub(crate) struct Signals(SigSet);

impl Signals {
    /// Blocks them in this thread and those that it starts: they are waited for instead, which also tells them apart.
    pub(crate) fn block() -> io::Result<Signals> {
        use Signal::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
        let set = SigSet::from_iter([SIGHUP, SIGINT, SIGQUIT, SIGTERM]);
        set.thread_block()?;
        Ok(Signals(set))
    }

    /// Tells of each that comes.
    #[expect(
        clippy::disallowed_methods,
        reason = "nobody can wait for this thread, which waits for signals to the end"
    )]
    pub(crate) fn listen(&self, told: impl Fn(Signal) + Clone + Send + 'static) -> io::Result<()> {
        let unknown = told.clone();
        // For the moment in `spawn` in which they are not blocked.
        ctrlc::set_handler(move || unknown(Signal::SIGTERM)).map_err(io::Error::other)?;
        let set = self.0;
        thread::spawn(move || {
            while let Ok(signal) = set.wait() {
                told(signal);
            }
        });
        Ok(())
    }

    /// Starts a command, which would inherit the block.
    pub(crate) fn spawn(&self, program: &OsString, args: &[OsString]) -> io::Result<Child> {
        self.0.thread_unblock()?;
        let spawned = Command::new(program).args(args).spawn();
        self.0.thread_block()?;
        spawned
    }
}
