//! One cell in a process of its own: threads of one library acquire and release in parallel for a
//! while.

use std::io::{self, Write};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Barrier, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{process, thread};

use clap::Args;

use crate::Result;
use crate::peers::{Client, Peer};

/// Time after the end of the cell until an unfinished thread counts as hung.
pub(crate) const PATIENCE: Duration = Duration::from_secs(4);

/// Line of the child when all threads are connected and warm. Then it waits for the start.
pub(crate) const WARM: &str = "warm";

#[derive(Args, Clone, Debug)]
pub(crate) struct Spec {
    #[arg(long)]
    pub(crate) peer: Peer,
    #[arg(long)]
    pub(crate) threads: usize,
    /// All threads share one key
    #[arg(long)]
    pub(crate) one_key: bool,
    /// Milliseconds
    #[arg(long)]
    pub(crate) time: u64,
    pub(crate) urls: Vec<String>,
}

/// Result of a cell.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sample {
    /// Pairs of lock and release per second, of all threads together.
    pub(crate) rate: f64,
    /// Time to acquire in µs, over all acquired locks.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
    /// Longest time in µs that a thread waited for its lock, acquired or not.
    pub(crate) longest: f64,
    /// Attempts that failed.
    pub(crate) failed: f64,
    /// Threads that hung.
    pub(crate) hung: f64,
}

impl Sample {
    pub(crate) fn from_line(line: &str) -> Option<Sample> {
        let values: std::result::Result<Vec<f64>, _> = line.split(' ').map(str::parse).collect();
        let [rate, p50, p99, max, longest, failed, hung] = values.ok()?[..] else {
            return None;
        };
        Some(Sample {
            rate,
            p50,
            p99,
            max,
            longest,
            failed,
            hung,
        })
    }

    /// Returns the sample if every attempt failed.
    pub(crate) fn failed() -> Sample {
        Sample {
            p50: f64::NAN,
            p99: f64::NAN,
            max: f64::NAN,
            longest: f64::NAN,
            failed: 1.0,
            ..Sample::default()
        }
    }

    /// Returns the sample if there is no result.
    pub(crate) fn stuck() -> Sample {
        Sample {
            hung: 1.0,
            failed: 0.0,
            ..Sample::failed()
        }
    }

    pub(crate) fn is_stuck(&self) -> bool {
        self.rate == 0.0 && self.hung > 0.0
    }

    fn to_line(self) -> String {
        let Sample {
            rate,
            p50,
            p99,
            max,
            longest,
            failed,
            hung,
        } = self;
        [rate, p50, p99, max, longest, failed, hung]
            .map(|value| value.to_string())
            .join(" ")
    }
}

/// Progress of one thread.
struct Seen {
    began: Instant,
    /// Since when it has waited for its current lock.
    wants: Instant,
    ended: Option<Instant>,
    waits: Vec<Duration>,
    failed: u32,
    error: Option<String>,
}

/// Runs the child: prints two lines, of which the second is the sample.
pub(crate) fn run(spec: &Spec) -> Result<()> {
    let time = Duration::from_millis(spec.time);
    let barrier = Arc::new(Barrier::new(spec.threads + 1));
    let (ended, end) = mpsc::channel();
    let told = parent();
    let clients = spec.peer.clients(&spec.urls, spec.threads)?;
    let start = |(thread, client): (usize, Box<dyn Client>)| {
        let seen = Arc::new(Mutex::new(Seen::new()));
        let (mine, barrier, ended) = (seen.clone(), barrier.clone(), ended.clone());
        let own = format!("bench-{thread}");
        let key = match spec.one_key {
            true => "bench".to_owned(),
            false => own.clone(),
        };
        thread::spawn(move || {
            let mut client = client;
            // Each thread on a key of its own, so that no wait remains.
            work(&mut *client, &own, time / 5, &Mutex::new(Seen::new()));
            barrier.wait();
            barrier.wait();
            work(&mut *client, &key, time, &mine);
            _ = ended.send(());
        });
        seen
    };
    let seen: Vec<_> = clients.into_iter().enumerate().map(start).collect();
    barrier.wait();
    say(WARM)?;
    told.recv()?;
    let limit = Instant::now() + time + PATIENCE;
    barrier.wait();
    for _ in 0..spec.threads {
        let left = limit.saturating_duration_since(Instant::now());
        if end.recv_timeout(left) == Err(RecvTimeoutError::Timeout) {
            break;
        }
    }
    let now = Instant::now();
    let seen: Vec<_> = seen.iter().map(|seen| lock(seen)).collect();
    let sample = sum(&seen, now);
    let error = seen.iter().find_map(|seen| seen.error.as_deref());
    // Reports why there are no figures; otherwise the count of failures suffices.
    if let Some(error) = error.filter(|_| sample.rate == 0.0) {
        eprintln!("    {}: {error}", spec.peer.name());
    }
    say(&sample.to_line())
}

/// Calls back for each line of the parent. The child ends with its parent, so that no hung thread
/// outlives it.
fn parent() -> Receiver<String> {
    let (line, lines) = mpsc::channel();
    thread::spawn(move || {
        let read = io::stdin().lines().map_while(io::Result::ok);
        read.for_each(|text| _ = line.send(text));
        process::exit(1);
    });
    lines
}

fn say(line: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

fn work(client: &mut dyn Client, key: &str, time: Duration, seen: &Mutex<Seen>) {
    *lock(seen) = Seen::new();
    let began = Instant::now();
    let mut wants = began;
    loop {
        let pair = client.pair(key);
        let now = Instant::now();
        // A lock that no other thread acquires until the end: far less than any cell measures.
        let mut seen = lock(seen);
        match pair {
            Ok(held) => {
                seen.waits.push(held - wants);
                wants = now;
            }
            Err(error) => {
                seen.failed += 1;
                seen.error.get_or_insert_with(|| error.to_string());
            }
        }
        seen.wants = wants;
        if now - began >= time {
            seen.ended = Some(now);
            return;
        }
    }
}

impl Seen {
    fn new() -> Seen {
        let now = Instant::now();
        Seen {
            began: now,
            wants: now,
            ended: None,
            waits: Vec::with_capacity(1 << 12),
            failed: 0,
            error: None,
        }
    }
}

/// Returns the sum of the threads' rates, each over the thread's own time. So a thread that waits
/// long for its last lock, or fails late, is not measured by the idle time of the others.
fn sum(seen: &[MutexGuard<'_, Seen>], now: Instant) -> Sample {
    let mut waits: Vec<Duration> = seen.iter().flat_map(|seen| seen.waits.clone()).collect();
    waits.sort_unstable();
    let micros = |wait: Duration| wait.as_secs_f64() * 1e6;
    let at = |percent: usize| match waits.get(waits.len() * percent / 100) {
        Some(wait) => micros(*wait),
        None => f64::NAN,
    };
    let rate = |seen: &MutexGuard<'_, Seen>| {
        let took = seen.ended.unwrap_or(now) - seen.began;
        seen.waits.len() as f64 / took.as_secs_f64()
    };
    let unfinished = seen
        .iter()
        .map(|seen| seen.ended.unwrap_or(now) - seen.wants);
    let longest = unfinished.chain(waits.last().copied()).max();
    Sample {
        rate: seen.iter().map(rate).sum(),
        p50: at(50),
        p99: at(99),
        max: waits.last().map_or(f64::NAN, |wait| micros(*wait)),
        longest: micros(longest.unwrap_or_default()),
        failed: seen.iter().map(|seen| f64::from(seen.failed)).sum(),
        hung: seen.iter().filter(|seen| seen.ended.is_none()).count() as f64,
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}
