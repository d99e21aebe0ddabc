//! One cell, once, in a process of its own: threads of one library that take and release for a while, all at the same time.

use std::io::{self, Write};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Barrier, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{process, thread};

use clap::Args;

use crate::Result;
use crate::peers::{Client, Peer};

/// Whoever has not come back so long after the end of the cell is given up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(4);

/// What the child says when all are connected and warm. Then it waits until it is told to go on.
pub(crate) const WARM: &str = "warm";

#[derive(Args, Clone, Debug)]
pub(crate) struct Spec {
    #[arg(long)]
    pub(crate) peer: Peer,
    #[arg(long)]
    pub(crate) threads: usize,
    /// All threads want one key
    #[arg(long)]
    pub(crate) one_key: bool,
    /// Milliseconds
    #[arg(long)]
    pub(crate) time: u64,
    pub(crate) urls: Vec<String>,
}

/// What a cell came to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sample {
    /// Pairs of lock and release in a second, of all threads together.
    pub(crate) rate: f64,
    /// The time to have the lock in µs, over all that were taken.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
    /// The longest time in µs that a thread was without the lock that it wanted, be it that it never got it.
    pub(crate) longest: f64,
    /// Attempts that failed.
    pub(crate) failed: f64,
    /// Threads that were given up.
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

    /// Nothing came of any attempt.
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

    /// Nothing came at all.
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

/// What one thread has done so far.
struct Seen {
    began: Instant,
    /// Since when it has wanted the lock it wants.
    wants: Instant,
    ended: Option<Instant>,
    waits: Vec<Duration>,
    failed: u32,
    error: Option<String>,
}

/// The child's part: two lines to stdout, the second of which is the sample.
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
            // Each on a key of its own, so that no wait is left over.
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
    // Why there are no figures; else it is enough that failures are counted.
    if let Some(error) = error.filter(|_| sample.rate == 0.0) {
        eprintln!("    {}: {error}", spec.peer.name());
    }
    say(&sample.to_line())
}

/// Each line that the parent says. Its end is ours: nothing may outlive it, least of all a thread that hangs.
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
        // A lock of its own that nobody else asks for until the end: far less than any cell measures.
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

/// The rate is the sum of the threads' own, each over the time that it took itself: who waits long for the last lock, or gives
/// up late, is not measured by what the others do meanwhile, which is nothing.
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
