//! A process in the process group of `run`, which tells whether a signal went to the whole group.
//!
//! A signal that the terminal, or `kill` with a process group, sends reaches the command without
//! `run`. The system tells a process the sender of a signal, but not whether others got it, too. The
//! witness does nothing but receive signals: each of them has reached the command, too. It starts
//! before the command, and the command's process asks it, before it executes the command, for the
//! signals of the time between.

use std::collections::VecDeque;
use std::env;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::run::signals::{Received, Receiver};
use crate::sys::{ChildSetup, MissedSignals, RECORD, WHICH_SO_FAR};

/// The argument that makes a process the witness of another one. No command for people.
pub(crate) const ARGUMENT: &str = "__witness";

/// How long a signal to the group may be on its way to the witness when `run` has it already.
const GRACE: Duration = Duration::from_millis(20);

const POLL: Duration = Duration::from_millis(1);

/// How long the witness may be silent, in ms, before it is looked at.
const ANSWER_POLL: u8 = 20;

/// How long a sighting is kept for its signal.
const MAX_AGE: Duration = Duration::from_secs(1);

/// The question for the signals since the last one.
const WHICH: u8 = b'?';

/// The witness, as `run` has it. It ends with its pipe.
#[derive(Debug)]
pub(crate) struct Witness {
    pid: Pid,
    questions: ChildStdin,
    answers: ChildStdout,
    seen: VecDeque<(Received, Instant)>,
}

impl Witness {
    /// Starts the witness.
    pub(crate) fn start() -> io::Result<Witness> {
        let mut command = Command::new(env::current_exe()?);
        command.arg(ARGUMENT);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        // Blocked from the start, so that no signal to the group ends it.
        let setup = ChildSetup {
            mask: SigSet::all(),
            ignores_sigpipe: true,
            dies_with_parent: false,
            missed: None,
        };
        setup.apply(&mut command);
        let mut process = command.spawn()?;
        match (process.stdin.take(), process.stdout.take()) {
            (Some(questions), Some(answers)) => Ok(Witness {
                pid: Pid::from_raw(process.id().cast_signed()),
                questions,
                answers,
                seen: VecDeque::new(),
            }),
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Returns where a process of the group learns what it has missed.
    pub(crate) fn missed_signals(&self) -> MissedSignals {
        MissedSignals {
            questions: self.questions.as_raw_fd(),
            answers: self.answers.as_raw_fd(),
        }
    }

    /// Returns whether the whole group got this signal. Blocks for at most [`GRACE`].
    pub(crate) fn has_seen(&mut self, signal: Received) -> bool {
        let start = Instant::now();
        self.seen.retain(|(_, when)| when.elapsed() < MAX_AGE);
        loop {
            if self.ask().is_err() {
                return false;
            }
            if let Some(at) = self.seen.iter().position(|(seen, _)| *seen == signal) {
                self.seen.remove(at);
                return true;
            }
            if start.elapsed() >= GRACE {
                return false;
            }
            thread::sleep(POLL);
        }
    }

    /// Blocks until an answer can be read. A witness that was stopped, with its whole group and by a
    /// signal that cannot be blocked, is continued: else a lost lock would not end the command.
    fn await_answer(&self) -> io::Result<()> {
        let flags = WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED;
        loop {
            let mut asked = [PollFd::new(self.answers.as_fd(), PollFlags::POLLIN)];
            match poll(&mut asked, PollTimeout::from(ANSWER_POLL)) {
                Ok(1..) => return Ok(()),
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            if let Ok(WaitStatus::Stopped(..)) = waitpid(self.pid, Some(flags)) {
                kill(self.pid, Signal::SIGCONT)?;
            }
        }
    }

    fn ask(&mut self) -> io::Result<()> {
        self.questions.write_all(&[WHICH])?;
        self.await_answer()?;
        let mut count = [0];
        self.answers.read_exact(&mut count)?;
        for _ in 0..count[0] {
            let mut record = [0; RECORD];
            self.answers.read_exact(&mut record)?;
            let [a, b, c, d, e, f, g, h] = record;
            let signal = Received {
                number: i32::from_le_bytes([a, b, c, d]),
                sender: i32::from_le_bytes([e, f, g, h]),
            };
            self.seen.push_back((signal, Instant::now()));
        }
        Ok(())
    }
}

/// Runs the witness: answers each question on standard input, until the pipe ends.
pub(crate) fn observe() -> io::Result<()> {
    let receiver = Receiver::nonblocking()?;
    let mut questions = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    // Without the buffer of `stdout`, which would break an answer at a byte that is a line's end.
    let mut answers = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let mut question = [0];
    let mut seen: Vec<Received> = Vec::new();
    loop {
        // At once, because a stop signal discards a pending SIGCONT, and the other way round.
        let is_asked = receiver.wait_beside(questions.as_fd())?;
        while let Ok(signal) = receiver.receive() {
            seen.push(signal);
        }
        if !is_asked {
            continue;
        }
        if questions.read(&mut question)? == 0 {
            return Ok(());
        }
        let count = seen.len().min(u8::MAX.into());
        let mut answer = vec![count as u8];
        for signal in &seen[..count] {
            answer.extend(signal.number.to_le_bytes());
            answer.extend(signal.sender.to_le_bytes());
        }
        if question != [WHICH_SO_FAR] {
            seen.drain(..count);
        }
        answers.write_all(&answer)?;
    }
}
