//! Failures of a command: their exit statuses and error lines.

use std::io;
use std::time::Duration;

use redguard::Error;

use crate::secrets;

/// The exit status if there is no lock, or `doctor` found something to change.
pub(crate) const NO: u8 = 1;

/// The exit status of a command whose lock was lost.
pub(crate) const LOST: u8 = 70;

/// The failure of a command: its kind for programs, its line for people.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) kind: Kind,
    pub(crate) line: String,
    /// The holder of a held lock, for programs.
    pub(crate) holder: Option<Holder>,
}

/// The holder that a failure names.
#[derive(Debug)]
pub(crate) struct Holder {
    pub(crate) owner: Option<String>,
    pub(crate) remaining: Option<Duration>,
}

pub(crate) type Result<T> = std::result::Result<T, Failure>;

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
    /// The lock was lost before the command was started.
    Lost,
    NotExecutable,
    NotFound,
    /// A signal of this number ended the wait for the lock.
    Signal(i32),
    /// The reader of the output has closed it, as `… | head` does. No line is written.
    Pipe,
}

impl Failure {
    pub(crate) fn new(kind: Kind, line: impl Into<String>) -> Failure {
        let line = line.into();
        Failure {
            kind,
            line,
            holder: None,
        }
    }

    /// Returns the failure of a wrong usage. Its line may repeat arguments: a password in an address
    /// is left out.
    pub(crate) fn usage(line: impl AsRef<str>) -> Failure {
        Failure::new(Kind::Usage, secrets::hidden(line.as_ref()))
    }

    /// Returns the exit status: as in sysexits.h, from 126 as in the shell.
    pub(crate) fn status(&self) -> u8 {
        match self.kind {
            Kind::NotConfirmed => 2,
            Kind::Usage => 64,
            Kind::Unavailable => 69,
            Kind::Lost => LOST,
            Kind::System => 71,
            Kind::Held => 75,
            Kind::Denied => 77,
            Kind::NotExecutable => 126,
            Kind::NotFound => 127,
            Kind::Signal(signal) => killed_by(signal),
            Kind::Pipe => killed_by(libc::SIGPIPE),
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
            Kind::Lost => "lost",
            Kind::NotExecutable => "not_executable",
            Kind::NotFound => "not_found",
            Kind::Signal(_) => "signal",
            Kind::Pipe => "pipe",
        }
    }
}

/// Returns the exit status that shells use for a process that a signal ended.
pub(crate) fn killed_by(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let kind = match error {
            _ if error.is_denied() => Kind::Denied,
            _ if error.is_contended() => Kind::Held,
            Error::NoAddresses
            | Error::InvalidKey { .. }
            | Error::InvalidTtl { .. }
            | Error::InvalidConfig(_) => Kind::Usage,
            Error::System { .. } => Kind::System,
            _ => Kind::Unavailable,
        };
        Failure {
            holder: holder_of(&error),
            ..Failure::new(kind, error.to_string())
        }
    }
}

fn holder_of(error: &Error) -> Option<Holder> {
    match error {
        Error::Contended {
            lock, remaining, ..
        }
        | Error::WriteLockTimeout {
            lock, remaining, ..
        }
        | Error::WriteLockHeld {
            lock, remaining, ..
        }
        | Error::ReadersTimeout {
            lock, remaining, ..
        } => Some(Holder {
            owner: lock.owner_label.clone(),
            remaining: *remaining,
        }),
        _ => None,
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        let kind = match error.kind() {
            io::ErrorKind::BrokenPipe => Kind::Pipe,
            _ => Kind::System,
        };
        Failure::new(kind, error.to_string())
    }
}

impl From<nix::Error> for Failure {
    fn from(error: nix::Error) -> Failure {
        io::Error::from(error).into()
    }
}
