//! The measurements: what one lock costs, and what a held key takes of the heap.

use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use redguard::{Config, LockGuard, Locker, RedisLocker};
use redguard_servers::Server;

use crate::join::join;
use crate::{Result, alloc_counter};

/// Longer than any measurement, also on a busy machine, since nothing renews the locks.
const TTL: Duration = Duration::from_secs(3_600);
/// Stack of a waiting thread, so that 10,000 of them take little address space.
const STACK: usize = 128 << 10;

pub(crate) fn locker(servers: &[Server]) -> Result<RedisLocker> {
    let urls: Vec<String> = servers.iter().map(Server::url).collect();
    // A busy machine is slow, which does not matter here.
    let limit = Duration::from_secs(10);
    let config = Config::new(urls).connect_timeout(limit);
    Ok(RedisLocker::connect(config.node_timeout(limit))?)
}

/// Returns the processor time that this process has used, in µs.
fn used() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let used = usage.user_time() + usage.system_time();
    Ok(used.num_microseconds() as f64)
}

/// Runs `count` pairs of lock and release in all, on a key per thread.
pub(crate) fn pairs(locker: &RedisLocker, threads: usize, count: usize) -> Result<f64> {
    let each = count.div_ceil(threads);
    let run = |thread: usize, count: usize| -> Result<()> {
        let key = format!("own-{thread}");
        (0..count).try_for_each(|_| Ok(locker.lock(&key, TTL)?.release()?))
    };
    run(0, 200)?;
    // The threads start and end outside of the measured time.
    let barrier = &Barrier::new(threads + 1);
    let (used, ended) = thread::scope(|scope| {
        let start = |thread| {
            scope.spawn(move || {
                barrier.wait();
                let ended = run(thread, each);
                barrier.wait();
                barrier.wait();
                ended
            })
        };
        let all: Vec<_> = (0..threads).map(start).collect();
        let before = used();
        barrier.wait();
        barrier.wait();
        let after = used();
        barrier.wait();
        let ended = all.into_iter().try_for_each(join);
        (after.and_then(|after| Ok(after - before?)), ended)
    });
    ended?;
    Ok(used? / (each * threads) as f64)
}

/// Runs pairs of one thread while this number of other keys is held.
pub(crate) fn pairs_beside(locker: &RedisLocker, keys: usize) -> Result<f64> {
    let held = hold(locker, keys)?;
    let cost = pairs(locker, 1, 3_000);
    release(held)?;
    cost
}

/// Returns the bytes of heap that each of this number of held keys takes.
pub(crate) fn heap(locker: &RedisLocker, keys: usize) -> Result<f64> {
    const BEFORE: usize = 1_000; // fill the buffers
    release(hold(locker, BEFORE)?)?;
    alloc_counter::begin();
    let held = hold(locker, keys);
    let grown = alloc_counter::settled();
    alloc_counter::end();
    release(held?)?;
    Ok(grown as f64 / keys as f64)
}

/// Holds this number of keys, acquired by some threads.
fn hold(locker: &RedisLocker, keys: usize) -> Result<Vec<Vec<LockGuard>>> {
    const THREADS: usize = 16;
    thread::scope(|scope| {
        let acquire = |thread| {
            scope.spawn(move || -> Result<Vec<LockGuard>> {
                let own = (thread..keys).step_by(THREADS);
                let mut guards = Vec::with_capacity(own.len()); // without the slack of its growth
                for key in own {
                    guards.push(locker.lock(&format!("held-{key}"), TTL)?);
                }
                Ok(guards)
            })
        };
        let threads: Vec<_> = (0..THREADS).map(acquire).collect();
        threads.into_iter().map(join).collect()
    })
}

/// Releases the guards by as many threads as acquired them. A lock that was lost meanwhile is an
/// error.
fn release(held: Vec<Vec<LockGuard>>) -> Result<()> {
    thread::scope(|scope| {
        let release = |guards: Vec<LockGuard>| {
            scope.spawn(|| -> Result<()> {
                let mut guards = guards.into_iter();
                Ok(guards.try_for_each(LockGuard::release)?)
            })
        };
        let threads: Vec<_> = held.into_iter().map(release).collect();
        threads.into_iter().try_for_each(join)
    })
}

/// Lets this number of threads wait for one key, and each of them hold it once.
pub(crate) fn waiting(locker: &RedisLocker, waiters: usize) -> Result<f64> {
    let held = locker.lock("shared", TTL)?;
    let (sender, queued) = mpsc::channel();
    thread::scope(|scope| {
        // An error here drops `held`, so that the threads made so far end.
        let wait = |_| {
            let sender = sender.clone();
            let wait = move || -> Result<()> {
                sender.send(())?;
                Ok(locker.lock("shared", TTL)?.release()?)
            };
            let thread = thread::Builder::new().stack_size(STACK);
            Ok(thread.spawn_scoped(scope, wait)?)
        };
        let threads: Vec<_> = (0..waiters).map(wait).collect::<Result<_>>()?;
        (0..waiters).try_for_each(|_| queued.recv())?;
        // The last threads to begin queue within this time; a later one would only wait less.
        thread::sleep(Duration::from_millis(200));
        let before = used()?;
        held.release()?;
        threads.into_iter().try_for_each(join)?;
        Ok((used()? - before) / waiters as f64)
    })
}
