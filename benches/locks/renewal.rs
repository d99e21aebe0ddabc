//! Costs of many held locks with renewal.

use std::thread;
use std::time::{Duration, Instant};

use redguard::{LockGuard, LockOptions, Locker, OnDrop, RedisLocker};

use crate::Result;
use crate::clients;
use crate::format::word;
use crate::join::join;
use crate::proc_stats::{of_a_core, processor_time, thread_count};
use redguard_servers::Server;

/// Acquires `count` guards in a burst by a few threads, and watches them for longer than their TTL,
/// so that every guard that is still held was renewed in time. `goal` is in percent of a core.
pub(crate) fn renewed(
    servers: &[Server],
    short: bool,
    guards: usize,
    ttl: Duration,
    goal: f64,
) -> Result<String> {
    let (guards, watched) = match short {
        true => (guards / 10, Duration::from_secs(1)),
        false => (guards, ttl),
    };
    let locker = RedisLocker::new(&clients::nodes(&servers[..3], OnDrop::Wait)?);
    let options = LockOptions::new(ttl).auto_renew(true);
    let first = locker.acquire("renewed", &options)?;
    let threads = thread_count();
    let names: Vec<String> = (0..guards).map(|n| format!("renewed-{n}")).collect();
    let began = Instant::now();
    let guards = thread::scope(|scope| {
        let acquire = |names: &[String]| -> Result<Vec<LockGuard>> {
            let acquire = |name: &String| Ok(locker.acquire(name, &options)?);
            names.iter().map(acquire).collect()
        };
        let chunks = names.chunks(names.len() / 8);
        let bursts: Vec<_> = chunks
            .map(|chunk| scope.spawn(move || acquire(chunk)))
            .collect();
        bursts.into_iter().map(join).collect::<Result<Vec<_>>>()
    })?;
    let burst = began.elapsed();
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
    let threads = more.map_or("skipped: no /proc/self/task here".into(), |more| {
        format!("{more}, goal 0: {}", word(more <= 0))
    });
    Ok(format!(
        "{}; threads more than with one guard: {threads}; lost: {lost} of {}, goal 0: {}; acquired in {burst:.1?}",
        of_a_core(used, watched, goal),
        names.len(),
        word(lost == 0)
    ))
}
