//! Failures of a command: their exit statuses and error lines.

use redguard::Error;
use std::io;

/// Exit status if there is no lock.
pub(crate) const NO_LOCK: u8 = 1;

/// Failure of a command: its kind for programs, its line for people.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) kind: Kind,
    pub(crate) line: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The operator declined, or the owner changed before the answer.
    NotConfirmed,
    Usage,
    Unavailable,
    /// The nodes deny access.
    Denied,
    /// The operating system refused something.
    System,
    Held,
    NotExecutable,
    NotFound,
    /// Of this number.
    Signal(i32),
    /// The reader of the output has closed it, as `… | head` does. No line is written.
    Pipe,
}

impl Refusal {
    pub(crate) fn new(kind: Kind, line: impl Into<String>) -> Refusal {
        let line = line.into();
        Refusal { kind, line }
    }

    /// Returns the failure of an operation on one lock.
    pub(crate) fn of_lock(key: &str, error: Error) -> Refusal {
        let Refusal { kind, line } = error.into();
        Refusal::new(kind, format!("lock {key:?}: {line}"))
    }

    /// Returns the exit status: as in sysexits.h, from 126 as in the shell.
    pub(crate) fn status(&self) -> u8 {
        match self.kind {
            Kind::NotConfirmed => 2,
            Kind::Usage => 64,
            Kind::Unavailable => 69,
            Kind::System => 71,
            Kind::Held => 75,
            Kind::Denied => 77,
            Kind::NotExecutable => 126,
            Kind::NotFound => 127,
            Kind::Signal(signal) => killed_by(signal),
            Kind::Pipe => killed_by(nix::libc::SIGPIPE),
        }
    }

    /// Returns the value of `kind` in JSON.
    pub(crate) fn name(&self) -> &'static str {
        match self.kind {
            Kind::NotConfirmed => "not_confirmed",
            Kind::Usage => "usage",
            Kind::Unavailable => "unavailable",
            Kind::Denied => "denied",
            Kind::System => "system",
            Kind::Held => "held",
            Kind::NotExecutable => "not_executable",
            Kind::NotFound => "not_found",
            Kind::Signal(_) => "signal",
            Kind::Pipe => "pipe",
        }
    }
}

pub(crate) fn killed_by(signal: i32) -> u8 {
    128 + signal as u8
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        let kind = match error {
            _ if error.is_denied() => Kind::Denied,
            _ if error.is_contended() => Kind::Held,
            Error::InvalidKey { .. } | Error::InvalidTtl { .. } | Error::InvalidConfig(_) => {
                Kind::Usage
            }
            Error::System { .. } => Kind::System,
            _ => Kind::Unavailable,
        };
        Refusal::new(kind, error.to_string())
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Refusal {
        let kind = match error.kind() {
            io::ErrorKind::BrokenPipe => Kind::Pipe,
            _ => Kind::System,
        };
        Refusal::new(kind, error.to_string())
    }
}
