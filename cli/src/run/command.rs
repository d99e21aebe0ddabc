//! The command: how it is started, signalled and reaped.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::Command;

use crate::failure::{Failure, Kind, Result, killed_by};
use crate::sys::{self, ChildSetup};

/// The running command.
#[derive(Debug)]
pub(crate) struct Running {
    pid: i32,
    has_own_group: bool,
    ended: Option<Ended>,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Exited(u8),
    /// By a signal of this number.
    Signalled(i32),
}

impl Ended {
    pub(crate) fn status(self) -> u8 {
        match self {
            Ended::Exited(status) => status,
            Ended::Signalled(signal) => killed_by(signal),
        }
    }
}

/// Starts a command with these variables; `None` removes one.
pub(crate) fn start(
    command: &[OsString],
    variables: &[(&str, Option<String>)],
    setup: ChildSetup,
    own_group: bool,
) -> Result<Running> {
    let [program, args @ ..] = command else {
        return Err(Failure::usage("no command was given"));
    };
    let mut process = Command::new(program);
    process.args(args);
    let spawned = spawn(&mut process, variables, setup, own_group).or_else(|error| {
        if error.raw_os_error() != Some(libc::ENOEXEC) {
            return Err(error);
        }
        // A script without `#!`, as a shell runs it.
        let mut shell = Command::new("/bin/sh");
        shell.arg(program).args(args);
        spawn(&mut shell, variables, setup, own_group)
    });
    let pid = spawned.map_err(|error| {
        Failure::new(kind_of(&error), format!("{}: {error}", program.display()))
    })?;
    Ok(Running {
        pid,
        has_own_group: own_group,
        ended: None,
    })
}

fn kind_of(error: &io::Error) -> Kind {
    match error.raw_os_error() {
        Some(libc::ENOENT) => Kind::NotFound,
        // Without processes, memory or descriptors no command can be started.
        Some(libc::EAGAIN | libc::ENOMEM | libc::EMFILE | libc::ENFILE) => Kind::System,
        _ => Kind::NotExecutable,
    }
}

fn spawn(
    command: &mut Command,
    variables: &[(&str, Option<String>)],
    setup: ChildSetup,
    own_group: bool,
) -> io::Result<i32> {
    for (name, value) in variables {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    if own_group {
        command.process_group(0);
    }
    setup.apply(command);
    // It is reaped by `Running::reap`, with the processes that a PID 1 inherits.
    Ok(command.spawn()?.id().cast_signed())
}

impl Running {
    pub(crate) fn ended(&self) -> Option<Ended> {
        self.ended
    }

    /// Sends a signal to the command, or to all of its process group if that is its own.
    pub(crate) fn signal(&self, number: i32) {
        if self.has_own_group {
            sys::kill(-self.pid, number);
        } else if self.ended.is_none() {
            sys::kill(self.pid, number);
        }
    }

    /// Returns whether the command's own process group has a process.
    pub(crate) fn is_group_alive(&self) -> bool {
        self.has_own_group && sys::kill(-self.pid, 0)
    }

    /// Reaps all children that have ended: the command, and orphans where this process is PID 1 or
    /// a subreaper.
    pub(crate) fn reap(&mut self) {
        while let Some((pid, status)) = sys::reap_any() {
            if pid == self.pid {
                self.ended = Some(match status.signal() {
                    Some(signal) => Ended::Signalled(signal),
                    // The status of a process is one byte.
                    None => Ended::Exited(status.code().unwrap_or_default() as u8),
                });
            }
        }
    }
}
