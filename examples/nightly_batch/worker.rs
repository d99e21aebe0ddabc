//! One copy of the batch: threads that read files, each file under its lock. It uses only the trait
//! `Locker`.

use crate::Outcome;
use crate::cli::Cli;
use crate::counts::Counts;
use crate::report::{Entry, Report};
use parking_lot::Mutex;
use redguard::{
    Config, Error, LocalLocker, LockGuard, LockOptions, Locker, Nodes, RedisLocker, RetryPolicy,
};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Time for the current files when the copy must end early.
const GRACE: Duration = Duration::from_secs(2);

/// Set when this copy must end early: on request or death of the first process, or after a failed
/// thread.
static STOP: AtomicBool = AtomicBool::new(false);

/// Does the copy's share of the work and prints its counts.
pub(crate) fn run(cli: &Cli) -> Outcome<()> {
    let (Some(out), Some(night)) = (&cli.out, &cli.night) else {
        return Err("--copy needs --out and --night".into());
    };
    let nodes = match &cli.redis[..] {
        [] => None,
        urls => {
            // Locks are held for milliseconds here, so retries are frequent.
            let retry = RetryPolicy {
                initial_delay: Duration::from_millis(10),
                max_delay: Duration::from_millis(500),
                ..RetryPolicy::default()
            };
            Some(Nodes::connect(Config::new(urls).retry(retry))?)
        }
    };
    let locker: Box<dyn Locker> = match &nodes {
        Some(nodes) => Box::new(RedisLocker::new(nodes)),
        None => Box::new(LocalLocker::new()),
    };
    let batch = Batch {
        locker: &*locker,
        ttl: cli.ttl(),
        work: cli.work(),
        files: crate::report::list(&cli.dir, out)?,
        report: Report::open(out, night)?,
        unreadable: Mutex::default(),
    };
    stop_with_input(nodes.clone());
    let (mut sum, mut ended) = (Counts::default(), Ok(()));
    thread::scope(|scope| {
        let threads: Vec<_> = (0..cli.threads)
            .map(|_| scope.spawn(|| batch.run()))
            .collect();
        for thread in threads {
            let (counts, end) = thread.join().unwrap_or_else(|panic| resume_unwind(panic));
            sum += counts;
            if ended.is_ok() {
                ended = end;
            }
        }
    });
    if let Some(nodes) = nodes {
        // Explicitly, because the thread that reads the input keeps a handle on the nodes.
        _ = nodes.shutdown(GRACE);
    }
    for (path, error) in batch.unreadable.into_inner() {
        eprintln!("{}: {error}", path.display());
    }
    // `println!` would panic after the death of the first process.
    write!(io::stdout(), "{sum}")?;
    ended
}

fn stop() {
    STOP.store(true, Ordering::Relaxed);
}

fn stopped() -> bool {
    STOP.load(Ordering::Relaxed)
}

#[expect(
    clippy::disallowed_methods,
    reason = "this thread cannot be joined: its read cannot be interrupted"
)]
fn stop_with_input(nodes: Option<Nodes>) {
    thread::spawn(move || {
        _ = io::copy(&mut io::stdin(), &mut io::sink());
        stop();
        // Ends the waits for locks, and waits for the held ones.
        nodes.map(|nodes| nodes.shutdown(GRACE))
    });
}

struct Batch<'a> {
    locker: &'a dyn Locker,
    ttl: Duration,
    /// Time that each file takes at least.
    work: Duration,
    files: Vec<Entry>,
    report: Report,
    unreadable: Mutex<BTreeMap<PathBuf, io::Error>>,
}

impl Batch<'_> {
    /// Runs one thread; returns its counts also after an error.
    fn run(&self) -> (Counts, Outcome<()>) {
        let mut counts = Counts::default();
        let ended = self.work(&mut counts);
        if ended.is_err() {
            stop();
        }
        (counts, ended)
    }

    /// Goes through the remaining files in random order until none remains.
    fn work(&self, counts: &mut Counts) -> Outcome<()> {
        let mut todo: Vec<&Entry> = self.files.iter().collect();
        fastrand::shuffle(&mut todo);
        let mut wait = false;
        while !todo.is_empty() && !stopped() {
            let mut later = Vec::new();
            for &file in &todo {
                match self.settle(file, wait, counts) {
                    // After a stop, an interrupted wait is no error.
                    _ if stopped() => break,
                    Ok(true) => {}
                    Ok(false) => later.push(file),
                    Err(error) => return Err(error),
                }
            }
            // If nothing was done, other copies hold all remaining files: wait for them next time.
            wait = later.len() == todo.len();
            todo = later;
        }
        Ok(())
    }

    /// Returns `true` if the file is done, `false` if it must be tried again later.
    fn settle(&self, file: &Entry, wait: bool, counts: &mut Counts) -> Outcome<bool> {
        // Rows are never removed, so a row can be seen without the lock. Its absence cannot.
        if self.report.has(file)? {
            return Ok(true);
        }
        let began = now();
        let Some(guard) = self.acquire(file, wait)? else {
            counts.contended += 1;
            return Ok(false);
        };
        let granted = now();
        counts.acquired += 1;
        counts.waited = counts.waited.max(granted - began);
        let added = self.add_row(file, &guard);
        counts.add_hold(now() - granted, &file.id);
        match added {
            Ok(added) => counts.rows += u64::from(added),
            Err(error) if error.downcast_ref().is_some_and(Error::is_lost) => {
                counts.lost += 1;
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
        match guard.release() {
            Ok(()) => {}
            // Lost after the last check; the row is written.
            Err(error) if error.is_lost() => counts.lost += 1,
            // The lock ends with its TTL, and its next holder finds the row.
            Err(error) if error.is_unavailable() => {}
            Err(error) => return Err(error.into()),
        }
        Ok(true)
    }

    fn acquire(&self, file: &Entry, wait: bool) -> Result<Option<LockGuard>, Error> {
        // A bare path may end in a reserved suffix such as `:writer`.
        let key = format!("{}@{}", file.id, self.report.night);
        // With renewal a file may take any time; the TTL bounds how long a killed copy blocks
        // others.
        let options = LockOptions::new(self.ttl).auto_renew(true);
        if !wait {
            match self.locker.try_acquire(&key, &options) {
                // `acquire` tolerates an outage: it retries for 10 s (`max_outage`) before it
                // returns this error.
                Err(error) if error.is_unavailable() => {}
                result => return result,
            }
        }
        self.locker.acquire(&key, &options).map(Some)
    }

    /// Adds the row of the file unless the report has one; returns whether it was added.
    fn add_row(&self, file: &Entry, guard: &LockGuard) -> Outcome<bool> {
        if self.report.has(file)? {
            return Ok(false);
        }
        pause(self.work);
        match self.digest(file, guard) {
            Ok(digest) => {
                // The last check, right before the write: without the lock another copy may work on
                // this file.
                guard.check()?;
                self.report.append(file, &digest)?;
                Ok(true)
            }
            Err(Failure::Lock(error)) => Err(error.into()),
            // Deleted since the tree was listed.
            Err(Failure::File(error)) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(Failure::File(error)) => {
                self.unreadable.lock().insert(file.path.clone(), error);
                Ok(false)
            }
        }
    }

    fn digest(&self, file: &Entry, guard: &LockGuard) -> Result<String, Failure> {
        let mut content = File::open(&file.path)?;
        let mut chunk = vec![0; 256 * 1024];
        let (mut lines, mut bytes, mut sum) = (0, 0, crc32fast::Hasher::new());
        loop {
            let read = match content.read(&mut chunk)? {
                0 => break,
                some => &chunk[..some],
            };
            lines += read.iter().filter(|&&byte| byte == b'\n').count();
            bytes += read.len();
            sum.update(read);
            // Without the lock another copy may work on this file.
            guard.check()?;
        }
        Ok(format!("{lines}\t{bytes}\t{:08x}", sum.finalize()))
    }
}

#[expect(clippy::disallowed_methods, reason = "the sleep stands for work")]
fn pause(time: Duration) {
    if !time.is_zero() {
        thread::sleep(time);
    }
}

#[expect(clippy::disallowed_methods, reason = "an example reads the clock")]
fn now() -> Instant {
    Instant::now()
}

/// Why a file was not read to its end.
enum Failure {
    File(io::Error),
    Lock(Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::File(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Lock(error)
    }
}
