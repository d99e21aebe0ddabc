//! The few system calls that have no safe interface: all `unsafe` code of this package.
//!
//! Dispositions of signals are process-wide and can only be read by `sigaction`; the child of a
//! fork is set up between `fork` and `exec`; and real-time signals have no name in `nix`.
#![allow(
    unsafe_code,
    reason = "`sigaction`, `pre_exec` and `kill` with a number are `unsafe` or foreign functions"
)]

use std::io;
use std::os::fd::RawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{SigSet, SigmaskHow};

/// Whether SIGPIPE was ignored when this program started. The runtime of Rust ignores it before
/// `main`, so it is read earlier.
static PIPE_IGNORED: AtomicBool = AtomicBool::new(false);

#[cfg(target_os = "linux")]
#[used]
// SAFETY: the dynamic linker and the C runtime call each entry of this section once, on the main
// thread, as a C function; `read_sigpipe` calls only `sigaction` and stores to an atomic.
#[unsafe(link_section = ".init_array")]
static READ_SIGPIPE: extern "C" fn() = read_sigpipe;

#[cfg(target_os = "linux")]
extern "C" fn read_sigpipe() {
    PIPE_IGNORED.store(is_ignored(libc::SIGPIPE), Ordering::Relaxed);
}

/// Returns whether the process ignored SIGPIPE when it was started.
pub(crate) fn was_pipe_ignored() -> bool {
    PIPE_IGNORED.load(Ordering::Relaxed)
}

/// Returns whether the process ignores a signal.
pub(crate) fn is_ignored(signal: i32) -> bool {
    // SAFETY: all bytes of `sigaction` may be zero, and a null pointer for the new action only
    // reads.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &raw mut action) == 0
            && action.sa_sigaction == libc::SIG_IGN
    }
}

/// Resets SIGCHLD: where the parent ignored it, the kernel would reap the command and its status.
pub(crate) fn reset_sigchld() {
    // SAFETY: SIG_DFL installs no handler.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// Sends a signal by its number, which may be a real-time signal. A negative `pid` is a process
/// group. Returns whether there was a process to send it to.
pub(crate) fn kill(pid: i32, signal: i32) -> bool {
    // SAFETY: `kill` takes two integers.
    unsafe { libc::kill(pid, signal) == 0 }
}

/// Reaps a child that has ended: its process, and how it ended. `nix` has no name for real-time
/// signals, so it would lose the end of a process by one.
pub(crate) fn reap_any() -> Option<(i32, ExitStatus)> {
    loop {
        let mut status = 0;
        // SAFETY: `status` is a valid place for the status.
        match unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) } {
            0 => return None,
            -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            -1 => return None,
            pid => return Some((pid, ExitStatus::from_raw(status))),
        }
    }
}

/// Properties of a child process that `Command` cannot set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChildSetup {
    /// The blocked signals.
    pub(crate) mask: SigSet,
    /// Whether SIGPIPE is ignored.
    pub(crate) ignores_sigpipe: bool,
    /// Whether the child is killed when the thread that starts it ends (Linux).
    pub(crate) dies_with_parent: bool,
    /// Where the signals are asked for that the process group got before the child was in it.
    pub(crate) missed: Option<MissedSignals>,
}

/// The pipes of the witness, for a child that is being set up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MissedSignals {
    pub(crate) questions: RawFd,
    pub(crate) answers: RawFd,
}

/// The question for all signals so far, which a later question still tells.
pub(crate) const WHICH_SO_FAR: u8 = b'!';

/// The bytes of a signal in an answer: its number, and its sender.
pub(crate) const RECORD: usize = 8;

impl MissedSignals {
    /// Raises the signals that are not pending already. All are blocked, so they are delivered when
    /// the mask is set. A witness that has ended tells none.
    fn raise(self) {
        let mut count = [0_u8];
        if !write(self.questions, WHICH_SO_FAR) || !read(self.answers, &mut count) {
            return;
        }
        for _ in 0..count[0] {
            let mut record = [0_u8; RECORD];
            if !read(self.answers, &mut record) {
                return;
            }
            let [a, b, c, d, ..] = record;
            let number = i32::from_le_bytes([a, b, c, d]);
            // A stopped child would keep `spawn` waiting.
            let stops = matches!(number, libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU);
            if !stops && !is_pending(number) {
                // SAFETY: `getpid` and `kill` take and return integers.
                unsafe { libc::kill(libc::getpid(), number) };
            }
        }
    }
}

/// Writes a byte. Returns whether it was written.
fn write(to: RawFd, byte: u8) -> bool {
    // SAFETY: `byte` is valid for one byte; all signals are blocked, so no call is interrupted.
    unsafe { libc::write(to, (&raw const byte).cast(), 1) == 1 }
}

/// Fills a buffer. Returns whether it was filled.
fn read(from: RawFd, buffer: &mut [u8]) -> bool {
    // SAFETY: the buffer is valid for its length. An answer is one write of less than PIPE_BUF bytes, so
    // that a read of a part of it is never short.
    let length = unsafe { libc::read(from, buffer.as_mut_ptr().cast(), buffer.len()) };
    usize::try_from(length) == Ok(buffer.len())
}

/// Returns whether a blocked signal is pending for this process.
fn is_pending(number: i32) -> bool {
    // SAFETY: all bytes of `sigset_t` may be zero, and both calls get a valid place for one.
    unsafe {
        let mut pending: libc::sigset_t = std::mem::zeroed();
        libc::sigpending(&raw mut pending) == 0
            && libc::sigismember(&raw const pending, number) == 1
    }
}

impl ChildSetup {
    /// Adds the set-up to a command.
    pub(crate) fn apply(self, command: &mut Command) {
        let parent = std::process::id();
        let setup = move || {
            if self.dies_with_parent {
                die_with(parent)?;
            }
            if self.ignores_sigpipe {
                // SAFETY: SIG_IGN installs no handler; `signal` is async-signal-safe.
                unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
            }
            if let Some(missed) = self.missed {
                missed.raise();
            }
            nix::sys::signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(&self.mask), None)?;
            Ok(())
        };
        // SAFETY: between `fork` and `exec` the closure makes only system calls that are
        // async-signal-safe, and it allocates nothing.
        unsafe { command.pre_exec(setup) };
    }
}

#[cfg(target_os = "linux")]
fn die_with(parent: u32) -> io::Result<()> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    // The parent may have ended before the request.
    if nix::unistd::getppid().as_raw().cast_unsigned() == parent {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::ESRCH))
    }
}

#[cfg(not(target_os = "linux"))]
fn die_with(_parent: u32) -> io::Result<()> {
    Err(io::Error::from_raw_os_error(libc::ENOSYS))
}
