//! One of the processes: acquires the lock, does the job and releases, again and again.

use std::io::{self, BufRead, Write};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use redguard::{Config, Locker, RedisLocker};

use crate::{JOB, Result};

const TTL: Duration = Duration::from_secs(10);

/// How a process acquires the lock.
pub(crate) enum Work {
    Redguard(RedisLocker),
    /// flock(1) on this file, with `sleep` as the job.
    Flock(String),
}

impl Work {
    pub(crate) fn parse(work: &str) -> Result<Work> {
        if let Some(file) = work.strip_prefix("flock:") {
            return Ok(Work::Flock(file.to_owned()));
        }
        let locker = RedisLocker::connect(Config::new(work.split(',')))?;
        Ok(Work::Redguard(locker))
    }

    /// Runs from the first line on the input to its end. Reports the wait of each run in µs.
    pub(crate) fn run(&self) -> Result<()> {
        let mut line = String::new();
        writeln!(io::stdout(), "ready")?;
        io::stdin().lock().read_line(&mut line)?;
        let time = Duration::from_millis(line.trim().parse()?);
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
                thread::sleep(JOB);
                guard.release()?;
                Ok(waited)
            }
            Work::Flock(file) => {
                let job = JOB.as_secs_f64().to_string();
                let status = Command::new("flock").args([file, "sleep", &job]).status()?;
                if !status.success() {
                    return Err(format!("flock: {status}").into());
                }
                Ok(start.elapsed().saturating_sub(JOB))
            }
        }
    }
}
