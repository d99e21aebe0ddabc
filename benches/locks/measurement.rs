//! One cell: threads that acquire and release in parallel for a while.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use crate::Result;
use crate::client::Client;
use crate::join::join;
use crate::proc_stats::Usage;
use redguard_servers::Server;

/// Result of a cell: pairs of lock and release per second of all threads together, the time to
/// acquire in µs, and what a pair costs: processor time of this process and of the servers in µs,
/// and context switches of this process.
pub(crate) type Sample = [f64; 7];
pub(crate) const COLUMNS: [&str; 7] = [
    "pairs/s",
    "p50 µs",
    "p99 µs",
    "max µs",
    "cpu µs",
    "server µs",
    "switches",
];

/// Runs each client in a thread of its own. The first fifth of `time` is a warm-up, which does not
/// count. Then `between` runs while all threads wait, and all start together.
pub(crate) fn run(
    clients: Vec<Box<dyn Client>>,
    servers: &[Server],
    time: Duration,
    between: impl FnOnce() -> Result<()>,
) -> Result<Sample> {
    let barrier = &Barrier::new(clients.len() + 1);
    let (between, samples, before) = thread::scope(|scope| {
        let start = |mut client: Box<dyn Client>| {
            scope.spawn(move || {
                let warm = work(&mut *client, time / 5);
                barrier.wait();
                barrier.wait();
                // Only now, because a thread that failed earlier would leave the others at the
                // barrier.
                warm.and_then(|_| work(&mut *client, time))
            })
        };
        let threads: Vec<_> = clients.into_iter().map(start).collect();
        barrier.wait();
        let between = between();
        let before = Usage::read(servers);
        barrier.wait();
        let samples: Result<Vec<ThreadSample>> = threads.into_iter().map(join).collect();
        (between, samples, before)
    });
    let used = Usage::read(servers);
    between?;
    let samples = samples?;
    let began = samples.iter().map(|s| s.began).min();
    let ended = samples.iter().map(|s| s.ended).max();
    let mut waits: Vec<Duration> = samples.into_iter().flat_map(|s| s.waits).collect();
    waits.sort_unstable();
    let (Some(began), Some(ended), Some(max)) = (began, ended, waits.last()) else {
        return Err("a cell without threads".into());
    };
    let micros = |wait: Duration| wait.as_secs_f64() * 1e6;
    let at = |percent: usize| micros(waits[waits.len() * percent / 100]);
    let pairs = waits.len() as f64;
    let rate = pairs / (ended - began).as_secs_f64();
    let [own, of_servers, switches] = used.since(&before).map(|used| used / pairs);
    Ok([
        rate,
        at(50),
        at(99),
        micros(*max),
        own,
        of_servers,
        switches,
    ])
}

/// The acquires of one thread, with the time of each.
struct ThreadSample {
    began: Instant,
    ended: Instant,
    waits: Vec<Duration>,
}

/// Acquires and releases for `time`, at least once.
fn work(client: &mut dyn Client, time: Duration) -> Result<ThreadSample> {
    let mut waits = Vec::with_capacity(1 << 15);
    let began = Instant::now();
    loop {
        let start = Instant::now();
        client.acquire()?;
        waits.push(start.elapsed());
        client.release()?;
        let ended = Instant::now();
        if ended - began >= time {
            return Ok(ThreadSample {
                began,
                ended,
                waits,
            });
        }
    }
}
