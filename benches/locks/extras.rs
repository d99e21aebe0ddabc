//! What is not a matter of speed: what held locks cost in memory, and waiting threads in processor time.

use std::sync::Barrier;
use std::time::Duration;
use std::{fs, thread};

use redguard::{Error, Locker, OnDrop, RedisLocker};

use crate::clients::{self, Side};
use crate::servers::Server;
use crate::{Result, count};

/// A name, and what finds out the rest of the line.
type Extra = (&'static str, fn(&[Server]) -> Result<String>);

pub(crate) const EXTRAS: [Extra; 3] = [
    ("memory of 1,000 held guards on 5 nodes", memory),
    ("allocations of an uncontended pair on 5 nodes", allocations),
    ("50 threads that wait for one held key", waiting),
];

const TTL: Duration = Duration::from_secs(30);

fn memory(servers: &[Server]) -> Result<String> {
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

fn allocations(servers: &[Server]) -> Result<String> {
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

fn waiting(servers: &[Server]) -> Result<String> {
    const THREADS: usize = 50;
    let watched = Duration::from_secs(1);
    let locker = RedisLocker::new(&clients::nodes(servers, OnDrop::Wait)?);
    let held = locker.lock("held", TTL)?;
    let barrier = Barrier::new(THREADS + 1);
    let used = thread::scope(|scope| {
        let wait = |_| {
            scope.spawn(|| {
                barrier.wait();
                locker.lock("held", TTL)?.release()
            })
        };
        let waiters: Vec<_> = (0..THREADS).map(wait).collect();
        barrier.wait();
        thread::sleep(watched / 5); // by now all are in the queue
        let before = processor_time();
        thread::sleep(watched);
        let after = processor_time();
        let ended = waiters.into_iter().fold(held.release(), |ended, waiter| {
            ended.and(waiter.join().unwrap_or(Err(Error::Closed)))
        });
        ended.map(|()| Some(after?.saturating_sub(before?)))
    })?;
    Ok(match used {
        Some(used) => format!(
            "{:.2} % of one core, lanes included",
            used.as_secs_f64() / watched.as_secs_f64() * 100.0
        ),
        None => "skipped: no /proc/self/task/*/schedstat here".into(),
    })
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
