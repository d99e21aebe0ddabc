//! Contention: the time between two holders, its distribution, and the latency of a wake-up.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use redguard::{Locker, OnDrop, RedisLocker};

use crate::Result;
use crate::clients;
use crate::format::word;
use crate::join::join;
use crate::median::median;
use redguard_servers::Server;

const TTL: Duration = Duration::from_secs(30);
/// How long each holder keeps the lock.
const HOLD: Duration = Duration::from_millis(1);
/// Time after which a waiter sleeps, and so do idle threads and processors.
const REST: Duration = Duration::from_millis(10);
/// Number of processes. Each has its own `Nodes`, so they meet only on the nodes.
const PROCESSES: usize = 4;

/// The holder's work.
fn spin(until: Instant) {
    while Instant::now() < until {
        std::hint::spin_loop();
    }
}

fn locker(servers: &[Server]) -> Result<RedisLocker> {
    Ok(RedisLocker::new(&clients::nodes(servers, OnDrop::Wait)?))
}

/// Returns the median times of an uncontended acquire, and of its release, after a pause each.
fn uncontended(servers: &[Server], rest: Duration) -> Result<[Duration; 2]> {
    let locker = locker(servers)?;
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..if rest.is_zero() { 1000 } else { 100 } {
        thread::sleep(rest);
        let start = Instant::now();
        let guard = locker.lock("alone", TTL)?;
        let held = Instant::now();
        guard.release()?;
        times[0].push(held - start);
        times[1].push(held.elapsed());
    }
    Ok(times.map(|times| median(&times)))
}

/// Record of one contender.
#[derive(Default)]
struct Seen {
    waits: Vec<Duration>,
    held: Duration,
}

/// Four processes contend for one lock, and each holder keeps it for a millisecond.
pub(crate) fn contended(
    servers: &[Server],
    nodes: usize,
    goal: f64,
    short: bool,
) -> Result<String> {
    let servers = &servers[..nodes];
    let time = Duration::from_secs(if short { 1 } else { 5 });
    let [acquire, release] = uncontended(servers, Duration::ZERO)?;
    let lockers = (0..PROCESSES).map(|_| locker(servers));
    let lockers: Vec<RedisLocker> = lockers.collect::<Result<_>>()?;
    let barrier = Barrier::new(PROCESSES);
    let stop = AtomicBool::new(false);
    let share = |locker: &RedisLocker| {
        barrier.wait();
        hold_in_turn(locker, &stop, time)
    };
    let began = Instant::now();
    let seen = thread::scope(|scope| {
        let share = &share;
        let threads: Vec<_> = lockers
            .iter()
            .map(|locker| scope.spawn(move || share(locker)))
            .collect();
        threads.into_iter().map(join).collect::<Result<Vec<Seen>>>()
    })?;
    let took = began.elapsed();
    let counts: Vec<usize> = seen.iter().map(|seen| seen.waits.len()).collect();
    let all: usize = counts.iter().sum();
    let held: Duration = seen.iter().map(|seen| seen.held).sum();
    let mut waits: Vec<Duration> = seen.into_iter().flat_map(|seen| seen.waits).collect();
    waits.sort_unstable();
    let ideal = 1.0 / (held.as_secs_f64() / all as f64 + (acquire + release).as_secs_f64());
    let rate = all as f64 / took.as_secs_f64();
    let least = counts.iter().min().copied().unwrap_or_default() as f64;
    let fairness = least / counts.iter().max().copied().unwrap_or(1) as f64;
    let (late, last) = (waits[waits.len() * 999 / 1000], waits[waits.len() - 1]);
    Ok(format!(
        "{rate:.0} of ideally {ideal:.0} holds/s: {:.2}, goal ≥ {goal}: {}; the slowest has {fairness:.2} of the fastest, \
         goal ≥ 0.7: {}; waits p99.9 {late:.1?}, max {last:.1?}, goals ≤ 50 and 200 ms: {}",
        rate / ideal,
        word(rate / ideal >= goal),
        word(fairness >= 0.7),
        word(late <= Duration::from_millis(50) && last <= Duration::from_millis(200)),
    ))
}

/// Acquires, holds and releases one lock until `time` has passed for a thread.
fn hold_in_turn(locker: &RedisLocker, stop: &AtomicBool, time: Duration) -> Result<Seen> {
    let mut seen = Seen::default();
    let began = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        let guard = locker.lock("shared", TTL)?;
        let held = Instant::now();
        seen.waits.push(held - start);
        spin(held + HOLD);
        seen.held += held.elapsed();
        guard.release()?;
        if began.elapsed() > time {
            stop.store(true, Ordering::Relaxed);
        }
    }
    Ok(seen)
}

/// Measures from a release to the next holder, which waits in another process.
pub(crate) fn handed_over(
    servers: &[Server],
    nodes: usize,
    goal: f64,
    short: bool,
) -> Result<String> {
    let servers = &servers[..nodes];
    let [acquire, _] = uncontended(servers, Duration::ZERO)?;
    let [rested, _] = uncontended(servers, REST)?;
    let [ours, theirs] = [locker(servers)?, locker(servers)?];
    let (wants, wanted) = mpsc::channel::<()>();
    let (has, had) = mpsc::channel();
    let mut times = thread::scope(|scope| {
        let other = scope.spawn(move || -> Result<()> {
            while wanted.recv().is_ok() {
                let guard = theirs.lock("handed", TTL)?;
                has.send(Instant::now())?;
                guard.release()?;
            }
            Ok(())
        });
        let mut times = Vec::new();
        for _ in 0..if short { 20 } else { 200 } {
            let guard = ours.lock("handed", TTL)?;
            wants.send(())?;
            // The waiter sleeps and is subscribed by now.
            thread::sleep(REST);
            let released = Instant::now();
            guard.release()?;
            times.push(had.recv()?.saturating_duration_since(released));
        }
        drop(wants);
        join(other)?;
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(times)
    })?;
    times.sort_unstable();
    let median = median(&times);
    let ratio = median.as_secs_f64() / acquire.as_secs_f64();
    Ok(format!(
        "p50 {median:.0?}, p99 {:.0?}; {ratio:.2} of an uncontended lock ({acquire:.0?}), goal ≤ {goal}: {}; {:.2} of one \
         after the same rest ({rested:.0?})",
        times[times.len() * 99 / 100],
        word(ratio <= goal),
        median.as_secs_f64() / rested.as_secs_f64()
    ))
}

/// Threads of one process contend for one lock, without work under it.
pub(crate) fn threads(servers: &[Server], short: bool) -> Result<String> {
    const THREADS: usize = 8;
    const GOAL: f64 = 1.5;
    let time = Duration::from_secs(if short { 1 } else { 3 });
    let locker = locker(&servers[..1])?;
    let count = |threads: usize| -> Result<Vec<usize>> {
        let end = Instant::now() + time;
        let work = || -> Result<usize> {
            let mut pairs = 0;
            while Instant::now() < end {
                locker.lock("one", TTL)?.release()?;
                pairs += 1;
            }
            Ok(pairs)
        };
        thread::scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            threads.into_iter().map(join).collect()
        })
    };
    let alone: usize = count(1)?.iter().sum();
    let each = count(THREADS)?;
    let all: usize = each.iter().sum();
    let mean = all as f64 / THREADS as f64;
    let share = |count: Option<&usize>| count.copied().unwrap_or_default() as f64 / mean;
    let (least, most) = (share(each.iter().min()), share(each.iter().max()));
    let ratio = all as f64 / alone as f64;
    Ok(format!(
        "{ratio:.2} of one thread alone, goal ≥ {GOAL}: {}; a thread has {least:.2} to {most:.2} of the mean, goal 0.8 to 1.25: {}",
        word(ratio >= GOAL),
        word(least >= 0.8 && most <= 1.25)
    ))
}
