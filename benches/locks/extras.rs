//! What is not a matter of speed: what held locks cost in memory, and waiting threads in processor time.

use std::sync::Barrier;
use std::time::Duration;
use std::{fs, thread};

use redguard::{Error, LockGuard, LockOptions, Locker, OnDrop, RedisLocker};

use crate::clients::{self, Side};
use crate::outage;
use crate::servers::Server;
use crate::sharing::{contended, handed_over, threads};
use crate::{Result, count};

/// A name, and what finds out the rest of the line.
type Extra = (&'static str, fn(&[Server], bool) -> Result<String>);

pub(crate) const EXTRAS: [Extra; 12] = [
    ("memory of 1,000 held guards on 5 nodes", memory),
    ("allocations of an uncontended pair on 5 nodes", allocations),
    ("50 threads that wait for one held key", |servers, short| {
        waiting(servers, short, 50)
    }),
    (
        "1,000 threads that wait for one held key",
        |servers, short| waiting(servers, short, 1000),
    ),
    ("10,000 guards renewed at a TTL of 30 s on 3 nodes", renewed),
    ("contended by 4 processes, 1 node", |servers, short| {
        contended(servers, 1, 0.9, short)
    }),
    ("contended by 4 processes, 3 nodes", |servers, short| {
        contended(servers, 3, 0.8, short)
    }),
    (
        "handed over to another process, 1 node",
        |servers, short| handed_over(servers, 1, 3.0, short),
    ),
    (
        "handed over to another process, 3 nodes",
        |servers, short| handed_over(servers, 3, 4.0, short),
    ),
    ("8 threads of one process, one key, 1 node", threads),
    (
        "refused while the breaker is open, 3 nodes",
        outage::refused,
    ),
    ("1,000 guards dropped while a quorum hangs", outage::dropped),
];

const TTL: Duration = Duration::from_secs(30);

fn memory(servers: &[Server], _: bool) -> Result<String> {
    const GUARDS: usize = 1000;
    const MOST: i64 = 1 << 20;
    let locker = RedisLocker::new(&clients::nodes(servers, OnDrop::Wait)?);
    let names: Vec<String> = (0..GUARDS).map(|n| format!("held-{n}")).collect();
    locker.lock("first", TTL)?.release()?; // what is made once for all
    count::begin();
    let mut guards = Vec::with_capacity(GUARDS);
    for name in &names {
        guards.push(locker.lock(name, TTL)?);
    }
    let (held, _) = count::read();
    guards.into_iter().try_for_each(|guard| guard.release())?;
    // The lanes that were not waited for let go of the last leases a moment later.
    thread::sleep(Duration::from_millis(50));
    let (left, _) = count::read();
    count::end();
    let word = if held <= MOST { "ok" } else { "short" };
    Ok(format!(
        "{} KiB of heap, {} KiB left after their release; goal ≤ {} KiB: {word}",
        held / 1024,
        left / 1024,
        MOST / 1024
    ))
}

fn allocations(servers: &[Server], _: bool) -> Result<String> {
    const PAIRS: u32 = 1000;
    let mut made = Vec::new();
    for side in [Side::Redguard(OnDrop::Wait), Side::Bare] {
        for mut client in side.clients(servers, 1)? {
            client.take()?;
            client.release()?;
            count::begin();
            for _ in 0..PAIRS {
                client.take()?;
                client.release()?;
            }
            count::end();
            made.push(count::read().1 as f64 / f64::from(PAIRS));
        }
    }
    Ok(format!("redguard and scatter: {made:.1?}, in all threads"))
}

fn waiting(servers: &[Server], short: bool, threads: usize) -> Result<String> {
    let watched = Duration::from_secs(if short { 1 } else { 5 });
    let locker = RedisLocker::new(&clients::nodes(servers, OnDrop::Wait)?);
    let held = locker.lock("held", TTL)?;
    let barrier = Barrier::new(threads + 1);
    let used: Result<_> = thread::scope(|scope| {
        let wait = |_| {
            scope.spawn(|| {
                barrier.wait();
                locker.lock("held", TTL)?.release()
            })
        };
        let waiters: Vec<_> = (0..threads).map(wait).collect();
        barrier.wait();
        thread::sleep(Duration::from_secs(1)); // by now all are in the queue, and the first one's delays are long
        let before = (processor_time(), requests(servers));
        thread::sleep(watched);
        let after = (processor_time(), requests(servers));
        let ended = waiters.into_iter().fold(held.release(), |ended, waiter| {
            ended.and(waiter.join().unwrap_or(Err(Error::Closed)))
        });
        let asked = after.1? - before.1?;
        ended?;
        Ok((
            after.0.and_then(|after| after.checked_sub(before.0?)),
            asked,
        ))
    });
    let (used, asked) = used?;
    let asked = asked as f64 / watched.as_secs_f64();
    let word = if asked <= 20.0 { "ok" } else { "short" };
    Ok(format!(
        "{}, {asked:.1} requests a second, goal ≤ 20: {word}",
        of_a_core(used, watched, 1.0)
    ))
}

fn renewed(servers: &[Server], short: bool) -> Result<String> {
    let (guards, watched) = match short {
        true => (1000, Duration::from_secs(1)),
        false => (10_000, Duration::from_secs(30)),
    };
    let locker = RedisLocker::new(&clients::nodes(&servers[..3], OnDrop::Wait)?);
    let options = LockOptions::new(TTL).auto_renew();
    let first = locker.acquire("renewed", &options)?;
    let threads = thread_count();
    let names: Vec<String> = (0..guards).map(|n| format!("renewed-{n}")).collect();
    let guards = thread::scope(|scope| {
        let take = |names: &[String]| -> Result<Vec<LockGuard>> {
            let take = |name: &String| Ok(locker.acquire(name, &options)?);
            names.iter().map(take).collect()
        };
        let chunks = names.chunks(names.len() / 8);
        let bursts: Vec<_> = chunks
            .map(|chunk| scope.spawn(move || take(chunk)))
            .collect();
        let join = |burst: thread::ScopedJoinHandle<'_, Result<Vec<LockGuard>>>| {
            burst.join().unwrap_or(Err("a thread panicked".into()))
        };
        bursts.into_iter().map(join).collect::<Result<Vec<_>>>()
    })?;
    thread::sleep(Duration::from_secs(1));
    let before = processor_time();
    thread::sleep(watched);
    let used = processor_time().and_then(|after| after.checked_sub(before?));
    let more = thread_count()
        .zip(threads)
        .map(|(now, then)| now as i64 - then as i64);
    let held = guards
        .iter()
        .flatten()
        .filter(|guard| guard.is_held())
        .count();
    drop((first, guards));
    let lost = names.len() - held;
    let word = |good: bool| if good { "ok" } else { "short" };
    let threads = more.map_or("skipped: no /proc/self/task here".into(), |more| {
        format!("{more}, goal 0: {}", word(more <= 0))
    });
    Ok(format!(
        "{}; threads more than with one guard: {threads}; lost: {lost} of {}, goal 0: {}",
        of_a_core(used, watched, 3.0),
        names.len(),
        word(lost == 0)
    ))
}

fn of_a_core(used: Option<Duration>, watched: Duration, goal: f64) -> String {
    let Some(used) = used else {
        return "skipped: no /proc/self/task/*/schedstat here".into();
    };
    let percent = used.as_secs_f64() / watched.as_secs_f64() * 100.0;
    let word = if percent < goal { "ok" } else { "short" };
    format!("{percent:.2} % of one core, goal < {goal}: {word}")
}

/// How many commands the servers have been sent, without this one.
fn requests(servers: &[Server]) -> Result<u64> {
    let mut sum = 0;
    for server in servers {
        let mut connection = redis::Client::open(server.url())?.get_connection()?;
        let info: String = redis::cmd("INFO")
            .arg("commandstats")
            .query(&mut connection)?;
        let calls = info.lines().filter(|line| {
            // What scripts call is no request, and the rest is our own looking.
            [
                "cmdstat_set:",
                "cmdstat_pttl:",
                "cmdstat_evalsha:",
                "cmdstat_publish:",
                "cmdstat_subscribe:",
                "cmdstat_unsubscribe:",
                "cmdstat_ping:",
            ]
            .iter()
            .any(|name| line.starts_with(name))
        });
        let count = |line: &str| {
            line.split_once("calls=")?
                .1
                .split(',')
                .next()?
                .parse::<u64>()
                .ok()
        };
        sum += calls.filter_map(count).sum::<u64>();
    }
    Ok(sum)
}

fn thread_count() -> Option<usize> {
    Some(fs::read_dir("/proc/self/task").ok()?.count())
}

/// The processor time of all threads. `None` where the system does not count it in nanoseconds.
fn processor_time() -> Option<Duration> {
    let mut sum = Duration::ZERO;
    for task in fs::read_dir("/proc/self/task").ok()? {
        let counts = fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        sum += Duration::from_nanos(counts.split(' ').next()?.parse().ok()?);
    }
    Some(sum)
}
