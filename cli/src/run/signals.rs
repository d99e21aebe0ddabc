//! Signals of `run`, received by a thread of their own.
//!
//! All signals are blocked, and none has a handler: so each stays as it was for the command, which
//! gets the former mask back, and a stop signal that is unblocked again acts by the rules of the
//! kernel (a process group without a shell does not stop).

use std::io;
use std::os::fd::BorrowedFd;
use std::thread;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, raise, sigprocmask};

use crate::failure::Result;
use crate::sys;

/// The blocked signals.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Signals {
    /// The mask at the start of the program.
    pub(crate) original: SigSet,
}

/// A received signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) number: i32,
    /// The process that sent it; 0 for the kernel, and where the system does not tell.
    pub(crate) sender: i32,
}

/// The effect of a signal on a process that has no handler for it (signal(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DefaultAction {
    Ends,
    Stops,
    Nothing,
}

impl Signals {
    /// Blocks all signals. To be called before any thread starts, because threads inherit the mask.
    pub(crate) fn block() -> Result<Signals> {
        sys::reset_sigchld();
        let mut original = SigSet::empty();
        sigprocmask(
            SigmaskHow::SIG_SETMASK,
            Some(&SigSet::all()),
            Some(&mut original),
        )?;
        Ok(Signals { original })
    }

    /// Calls `tell` for each signal that was not ignored when the program started.
    pub(crate) fn listen(self, tell: impl Fn(Received) + Send + 'static) -> io::Result<()> {
        let receiver = Receiver::new()?;
        let builder = thread::Builder::new().name("signals".to_owned());
        builder.spawn(move || {
            while let Ok(received) = receiver.receive() {
                if !is_ignored(received.number) {
                    tell(received);
                }
            }
        })?;
        Ok(())
    }
}

/// Returns whether a signal was ignored when the program started.
fn is_ignored(signal: i32) -> bool {
    if signal == libc::SIGPIPE {
        return sys::was_pipe_ignored();
    }
    sys::is_ignored(signal)
}

/// Takes blocked signals one by one.
#[derive(Debug)]
pub(crate) struct Receiver {
    #[cfg(target_os = "linux")]
    descriptor: nix::sys::signalfd::SignalFd,
}

#[cfg(target_os = "linux")]
impl Receiver {
    pub(crate) fn new() -> io::Result<Receiver> {
        Receiver::with_flags(nix::sys::signalfd::SfdFlags::SFD_CLOEXEC)
    }

    /// A receiver whose `receive` returns `WouldBlock` if no signal is pending.
    pub(crate) fn nonblocking() -> io::Result<Receiver> {
        use nix::sys::signalfd::SfdFlags;
        Receiver::with_flags(SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
    }

    fn with_flags(flags: nix::sys::signalfd::SfdFlags) -> io::Result<Receiver> {
        let descriptor = nix::sys::signalfd::SignalFd::with_flags(&SigSet::all(), flags)?;
        Ok(Receiver { descriptor })
    }

    /// Blocks until a signal is pending, or the descriptor has something to read or is closed.
    /// Returns whether it is the descriptor.
    pub(crate) fn wait_beside(&self, other: BorrowedFd<'_>) -> io::Result<bool> {
        use std::os::fd::AsFd;

        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let asked = |descriptor| PollFd::new(descriptor, PollFlags::POLLIN);
        let mut both = [asked(self.descriptor.as_fd()), asked(other)];
        poll(&mut both, PollTimeout::NONE)?;
        Ok(both[1].any().unwrap_or_default())
    }

    pub(crate) fn receive(&self) -> io::Result<Received> {
        loop {
            match self.descriptor.read_signal() {
                Ok(Some(info)) => {
                    return Ok(Received {
                        number: info.ssi_signo.cast_signed(),
                        sender: info.ssi_pid.cast_signed(),
                    });
                }
                Ok(None) => return Err(io::ErrorKind::WouldBlock.into()),
                Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
impl Receiver {
    pub(crate) fn new() -> io::Result<Receiver> {
        Ok(Receiver {})
    }

    /// Only Linux tells the pending signals of a process without waiting.
    pub(crate) fn nonblocking() -> io::Result<Receiver> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn wait_beside(&self, _: BorrowedFd<'_>) -> io::Result<bool> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn receive(&self) -> io::Result<Received> {
        let signal = SigSet::all().wait()?;
        Ok(Received {
            number: signal as i32,
            sender: 0,
        })
    }
}

/// Returns what a signal does without a handler.
pub(crate) fn default_action(signal: i32) -> DefaultAction {
    match signal {
        libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU => DefaultAction::Stops,
        libc::SIGCHLD | libc::SIGCONT | libc::SIGURG | libc::SIGWINCH => DefaultAction::Nothing,
        _ => DefaultAction::Ends,
    }
}

/// Stops this process as the signal would have done unblocked, until it is continued.
pub(crate) fn stop_by(signal: i32) {
    act_by(signal);
}

/// Ends this process by SIGINT, so that the script or loop that runs it ends, too: a shell goes on
/// after a command that was interrupted and then exited.
pub(crate) fn end_by_interrupt() {
    act_by(libc::SIGINT);
}

fn act_by(number: i32) {
    if let Ok(signal) = Signal::try_from(number) {
        let mask = SigSet::from(signal);
        // None of these calls fails for a valid signal.
        let _ = mask.thread_unblock();
        let _ = raise(signal);
        let _ = mask.thread_block();
    }
}

/// Returns the name of a signal, or its number.
pub(crate) fn name_of(signal: i32) -> String {
    match Signal::try_from(signal) {
        Ok(signal) => signal.to_string(),
        Err(_) => format!("signal {signal}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_actions_are_those_of_signal_7() {
        for (signal, action) in [
            (libc::SIGTERM, DefaultAction::Ends),
            (libc::SIGUSR1, DefaultAction::Ends),
            (libc::SIGALRM, DefaultAction::Ends),
            (libc::SIGTSTP, DefaultAction::Stops),
            (libc::SIGCONT, DefaultAction::Nothing),
            (libc::SIGWINCH, DefaultAction::Nothing),
            (40, DefaultAction::Ends),
        ] {
            assert_eq!(default_action(signal), action, "{signal}");
        }
        assert_eq!(name_of(libc::SIGTERM), "SIGTERM");
        assert_eq!(name_of(40), "signal 40");
    }
}
