//! One copy of the batch: threads that take files, each file under its lock. It knows the trait, not where the locks are.

use crate::report::{Entry, Report};
use crate::{Cli, Outcome};
use parking_lot::Mutex;
use rand::seq::SliceRandom;
use redguard::{
    Config, Error, LocalLocker, LockGuard, LockOptions, Locker, Nodes, RedisLocker, RetryPolicy,
};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// How long the files at hand may take when the copy is to end early.
const GRACE: Duration = Duration::from_secs(2);

/// Set when this copy is to end early: the first process wants it, or is gone, or a thread has failed.
static STOP: AtomicBool = AtomicBool::new(false);

/// Does the copy's share of the work and prints its counts.
pub(crate) fn run(cli: &Cli) -> Outcome<()> {
    let (Some(out), Some(night)) = (&cli.out, &cli.night) else {
        return Err("--copy needs --out and --night".into());
    };
    let nodes = match &cli.redis[..] {
        [] => None,
        urls => {
            // Locks are held for milliseconds here, so whoever waits for one looks again soon.
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
        ttl: *cli.ttl,
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
        // By hand, for the thread that reads the input holds on to them, and only the last one to go does it.
        nodes.shutdown(GRACE);
    }
    for (path, error) in batch.unreadable.into_inner() {
        eprintln!("{}: {error}", path.display());
    }
    // Not `println!`, which panics when the first process is gone.
    writeln!(io::stdout(), "{sum}")?;
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
    reason = "nobody can wait for this thread: its read cannot be cut short"
)]
fn stop_with_input(nodes: Option<Nodes>) {
    thread::spawn(move || {
        _ = io::copy(&mut io::stdin(), &mut io::sink());
        stop();
        // Ends the waits for locks. Those that are held are waited for.
        nodes.map(|nodes| nodes.shutdown(GRACE))
    });
}

struct Batch<'a> {
    locker: &'a dyn Locker,
    ttl: Duration,
    files: Vec<Entry>,
    report: Report,
    unreadable: Mutex<BTreeMap<PathBuf, io::Error>>,
}

impl Batch<'_> {
    /// One thread's night, and what it counted, however it ended.
    fn run(&self) -> (Counts, Outcome<()>) {
        let mut counts = Counts::default();
        let ended = self.work(&mut counts);
        if ended.is_err() {
            stop();
        }
        (counts, ended)
    }

    /// Passes over what is left to do, in an order of the thread's own, until nothing is left.
    fn work(&self, counts: &mut Counts) -> Outcome<()> {
        let mut todo: Vec<&Entry> = self.files.iter().collect();
        todo.shuffle(&mut rand::rng());
        let mut wait = false;
        while !todo.is_empty() && !stopped() {
            let mut later = Vec::new();
            for &file in &todo {
                match self.settle(file, wait, counts) {
                    // A wait that the stop has ended is not worth an error.
                    _ if stopped() => break,
                    Ok(true) => {}
                    Ok(false) => later.push(file),
                    Err(error) => return Err(error),
                }
            }
            // When a pass got nowhere, all that is left is in other hands: the next one waits for it.
            wait = later.len() == todo.len();
            todo = later;
        }
        Ok(())
    }

    /// `true` once there is nothing more to do for the file, `false` when it is to be tried again later.
    fn settle(&self, file: &Entry, wait: bool, counts: &mut Counts) -> Outcome<bool> {
        // A row that is there stays there, so this can be seen without the lock. That there is none cannot.
        if self.report.has(file)? {
            return Ok(true);
        }
        let Some(guard) = self.take(file, wait)? else {
            counts.contended += 1;
            return Ok(false);
        };
        counts.taken += 1;
        match self.add_row(file, &guard) {
            Ok(added) => counts.rows += u64::from(added),
            Err(error) if error.downcast_ref().is_some_and(Error::is_lost) => {
                counts.lost += 1;
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
        match guard.release() {
            Ok(()) => {}
            // Lost after the last look. The row is there all the same.
            Err(error) if error.is_lost() => counts.lost += 1,
            // The TTL will free it, and whoever has it then will see the row.
            Err(error) if error.is_unavailable() => {}
            Err(error) => return Err(error.into()),
        }
        Ok(true)
    }

    fn take(&self, file: &Entry, wait: bool) -> Result<Option<LockGuard>, Error> {
        // Never the bare path, which may end in `:writer` or another of the endings that redguard keeps for itself.
        let key = format!("{}@{}", file.id, self.report.night);
        // Renewed, however long a file takes: the TTL is how long a copy that was killed keeps others from it.
        let options = LockOptions::new(self.ttl).auto_renew();
        if !wait {
            match self.locker.try_acquire(&key, &options) {
                // `lock` has patience with an outage: it tries for 10 s (`max_outage`) before this is its answer too.
                Err(error) if error.is_unavailable() => {}
                taken => return taken,
            }
        }
        self.locker.acquire(&key, &options).map(Some)
    }

    /// Adds this night's row for the file unless it is there. What the report says under the lock is final.
    fn add_row(&self, file: &Entry, guard: &LockGuard) -> Outcome<bool> {
        if self.report.has(file)? {
            return Ok(false);
        }
        match self.digest(file, guard) {
            Ok(digest) => {
                // The last look, as close to the write as can be: without the lock another copy may be at this file.
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
            // Without the lock another copy may be at this file: no more work on it.
            guard.check()?;
        }
        Ok(format!("{lines}\t{bytes}\t{:08x}", sum.finalize()))
    }
}

/// What can stand in the way of reading a file.
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

/// What a copy tells the first process, as one line.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) taken: u64,
    pub(crate) contended: u64,
    pub(crate) lost: u64,
    pub(crate) rows: u64,
}

impl Counts {
    pub(crate) fn parse(line: &str) -> Option<Counts> {
        let mut numbers = line.strip_prefix("counts ")?.split_whitespace();
        let mut next = || numbers.next()?.parse().ok();
        Some(Counts {
            taken: next()?,
            contended: next()?,
            lost: next()?,
            rows: next()?,
        })
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (taken, contended, lost, rows) = (self.taken, self.contended, self.lost, self.rows);
        write!(f, "counts {taken} {contended} {lost} {rows}")
    }
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Counts) {
        self.taken += other.taken;
        self.contended += other.contended;
        self.lost += other.lost;
        self.rows += other.rows;
    }
}
