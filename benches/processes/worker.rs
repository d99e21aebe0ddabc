//! One of the processes: acquires the lock, does the job and releases, again and again.

use std::io::{self, BufRead, Write};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::getpgrp;
use redguard::{Config, Locker, RedisLocker};

use crate::{JOB, Result};

const TTL: Duration = Duration::from_secs(10);

/// How a process acquires the lock.
pub(crate) enum Work {
    Redguard(RedisLocker),
    /// The words of a command that runs another under the lock; the job is `sleep`.
    Command(Vec<String>),
}

impl Work {
    /// Reads `redguard` and the nodes, or the words of a command.
    pub(crate) fn parse(words: &[String]) -> Result<Work> {
        Ok(match words {
            [first, nodes] if first == "redguard" => {
                Work::Redguard(RedisLocker::connect(Config::new(nodes.split(',')))?)
            }
            words => Work::Command(words.to_vec()),
        })
    }

    /// Runs from the first line on the input to its end. Reports the wait of each run in µs.
    pub(crate) fn run(&self) -> Result<()> {
        let mut line = String::new();
        writeln!(io::stdout(), "ready")?;
        io::stdin().lock().read_line(&mut line)?;
        let time = Duration::from_millis(line.trim().parse()?);
        thread::spawn(end_with_input);
        let began = Instant::now();
        let mut waits = Vec::new();
        while began.elapsed() < time {
            waits.push(self.once()?);
        }
        let waits: Vec<String> = waits
            .iter()
            .map(|wait| wait.as_micros().to_string())
            .collect();
        writeln!(io::stdout(), "{}", waits.join(" "))?;
        Ok(())
    }

    /// Runs the job once under the lock. Returns the wait for the lock.
    fn once(&self) -> Result<Duration> {
        let start = Instant::now();
        match self {
            Work::Redguard(locker) => {
                let guard = locker.lock("shared", TTL)?;
                let waited = start.elapsed();
                let [program, job] = job();
                run(Command::new(program).arg(job))?;
                guard.release()?;
                Ok(waited)
            }
            Work::Command(words) => {
                let [program, arguments @ ..] = &words[..] else {
                    return Err("no command".into());
                };
                run(Command::new(program).args(arguments).args(job()))?;
                Ok(start.elapsed().saturating_sub(JOB))
            }
        }
    }
}

/// Returns the words of the job, which is a program on all sides.
fn job() -> [String; 2] {
    ["sleep".into(), JOB.as_secs_f64().to_string()]
}

/// Runs a command to its end. A failure is an error.
fn run(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("{:?}: {status}", command.get_program()).into()),
    }
}

/// Kills this process and the command that it runs once the input has ended, because the program
/// that measures is gone then. A command that waits for a server that is gone would wait for ever.
fn end_with_input() {
    // An error of the input is an end, too.
    let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
    let _ = killpg(getpgrp(), Signal::SIGKILL);
}
