//! Costs of an uncontended pair of lock and release besides time, and of a held lock.

use std::sync::Barrier;
use std::time::{Duration, Instant};
use std::{array, thread};

use redguard::{LockGuard, Locker, OnDrop, RedisLocker};

use crate::client::Client;
use crate::clients::{self, Side};
use crate::format::word;
use crate::join::join;
use crate::median::median;
use crate::{Result, alloc_counter, proc_stats};
use redguard_servers::Server;

const TTL: Duration = Duration::from_secs(30);
const OURS: Side = Side::Redguard(OnDrop::Wait);

/// Measures the heap of a held guard, and of a key whose lock was released. Buffers and maps grow in
/// some batches, but remains of a key would show in each, so the smallest batch counts.
pub(crate) fn memory(servers: &[Server], _: bool) -> Result<String> {
    const BATCHES: usize = 6;
    const GUARDS: usize = 1000;
    const MOST: i64 = 400;
    let locker = RedisLocker::new(&clients::nodes(servers, OnDrop::Wait)?);
    // Memory of the held guards, and memory after their release.
    let hold = |batch: usize| -> Result<[i64; 2]> {
        let names: Vec<String> = (0..GUARDS).map(|n| format!("held-{batch}-{n}")).collect();
        let before = alloc_counter::settled();
        let mut guards = Vec::with_capacity(GUARDS);
        for name in &names {
            guards.push(locker.lock(name, TTL)?);
        }
        let (held, _) = alloc_counter::read();
        guards.into_iter().try_for_each(LockGuard::release)?;
        Ok([held - before, alloc_counter::settled() - before])
    };
    alloc_counter::begin();
    let batches: Result<Vec<[i64; 2]>> = (0..BATCHES).map(hold).collect();
    alloc_counter::end();
    let batches = batches?;
    let each = |which: usize| {
        let least = batches.iter().map(|batch| batch[which]).min();
        least.unwrap_or_default() as f64 / GUARDS as f64
    };
    let grown: i64 = batches.iter().map(|[_, left]| left).sum();
    Ok(format!(
        "{:.0} bytes of heap, goal ≤ {MOST}: {}; {:.0} of each key that is idle again, goal 0: {}; once for all {} KiB",
        each(0),
        word(each(0) <= MOST as f64),
        each(1),
        word(each(1) < 1.0),
        grown / 1024,
    ))
}

pub(crate) fn allocations(servers: &[Server], _: bool) -> Result<String> {
    const PAIRS: u32 = 1000;
    const MOST: f64 = 10.0;
    let mut made = Vec::new();
    for side in [OURS, Side::Bare] {
        for mut client in side.clients(servers, 1)? {
            pairs(&mut *client, 1)?;
            alloc_counter::begin();
            let done = pairs(&mut *client, PAIRS);
            alloc_counter::end();
            done?;
            made.push(alloc_counter::read().1 as f64 / f64::from(PAIRS));
        }
    }
    Ok(format!(
        "redguard and scatter: {made:.1?}, in all threads, goal ≤ {MOST}: {}",
        word(made[0] <= MOST)
    ))
}

/// Counts all commands that arrive at the servers; commands inside scripts do not count.
pub(crate) fn requests(servers: &[Server], _: bool) -> Result<String> {
    const PAIRS: u32 = 200;
    const END: &str = "\"ECHO\" \"the end\"";
    let mut asked = Vec::new();
    for side in [OURS, Side::Bare] {
        let mut sum = 0;
        for mut client in side.clients(servers, 1)? {
            pairs(&mut *client, 100)?;
            let connect = |server: &Server| redis::Client::open(server.url())?.get_connection();
            let monitors = servers.iter().map(|server| {
                let mut monitor = connect(server)?;
                redis::cmd("MONITOR").exec(&mut monitor)?;
                Ok(monitor)
            });
            let mut monitors = monitors.collect::<Result<Vec<redis::Connection>>>()?;
            pairs(&mut *client, PAIRS)?;
            // A node beyond the quorum receives its last request a moment later.
            thread::sleep(Duration::from_millis(50));
            for (monitor, server) in monitors.iter_mut().zip(servers) {
                redis::cmd("ECHO")
                    .arg("the end")
                    .exec(&mut connect(server)?)?;
                loop {
                    let line: String = redis::from_redis_value(monitor.recv_response()?)?;
                    if line.ends_with(END) {
                        break;
                    }
                    let ours = ["lua] ", "\"CLIENT\"", "\"HELLO\""];
                    sum += u32::from(!ours.iter().any(|part| line.contains(part)));
                }
            }
        }
        asked.push(f64::from(sum) / f64::from(PAIRS) / servers.len() as f64);
    }
    Ok(format!(
        "redguard and scatter: {asked:.3?} for each node, goal ≤ 2: {}",
        word(asked[0] <= 2.005)
    ))
}

/// Counts how often threads lose a processor per pair. With 16 threads on 1 node this has a goal.
pub(crate) fn switches(servers: &[Server], short: bool) -> Result<String> {
    const MOST: f64 = 3.0;
    let mut texts = Vec::new();
    for nodes in [1, 5] {
        for threads in [1, 16] {
            let [ours, baseline] = [OURS, Side::Bare].map(|side| {
                let clients = side.clients(&servers[..nodes], threads)?;
                switched(clients, if short { 100 } else { 2000 })
            });
            let plural = |n: usize| if n == 1 { "" } else { "s" };
            let place = format!(
                "{nodes} node{}, {threads} thread{}",
                plural(nodes),
                plural(threads)
            );
            let goal = |ours| match (nodes, threads) {
                (1, 16) => format!(", goal ≤ {MOST}: {}", word(ours <= MOST)),
                _ => String::new(),
            };
            texts.push(match (ours?, baseline?) {
                (Some(ours), Some(baseline)) => {
                    format!("{place}: {ours:.2} and {baseline:.2}{}", goal(ours))
                }
                _ => "skipped: no /proc/self/task/*/status here".into(),
            });
        }
    }
    Ok(format!("redguard and the baseline: {}", texts.join("; ")))
}

/// Counts while all threads wait, because the count of a thread ends with it.
fn switched(clients: Vec<Box<dyn Client>>, rounds: u32) -> Result<Option<f64>> {
    let all = clients.len() as f64 * f64::from(rounds);
    let barrier = &Barrier::new(clients.len() + 1);
    let (counts, done) = thread::scope(|scope| {
        let start = |mut client: Box<dyn Client>| {
            scope.spawn(move || {
                let warm = pairs(&mut *client, 10);
                barrier.wait();
                barrier.wait();
                let done = warm.and_then(|()| pairs(&mut *client, rounds));
                barrier.wait();
                barrier.wait();
                done
            })
        };
        let threads: Vec<_> = clients.into_iter().map(start).collect();
        let counts: [Option<u64>; 2] = array::from_fn(|_| {
            barrier.wait();
            let count = proc_stats::switches();
            barrier.wait();
            count
        });
        (counts, threads.into_iter().try_for_each(join))
    });
    done?;
    let [before, after] = counts;
    Ok(after
        .zip(before)
        .map(|(after, before)| (after - before) as f64 / all))
}

/// For `benches/instructions`, which subtracts two runs: pairs of one thread on all nodes after a
/// warm-up.
pub(crate) fn only_pairs(servers: &[Server], baseline: bool, count: u32) -> Result<()> {
    let side = if baseline { Side::Bare } else { OURS };
    for mut client in side.clients(servers, 1)? {
        pairs(&mut *client, 100)?;
        pairs(&mut *client, count)?;
    }
    Ok(())
}

fn pairs(client: &mut dyn Client, count: u32) -> Result<()> {
    for _ in 0..count {
        client.acquire()?;
        client.release()?;
    }
    Ok(())
}

/// Measures the first lock, alone and with the connects before it, beside a round trip to the
/// slowest server.
pub(crate) fn first_lock(servers: &[Server], short: bool) -> Result<String> {
    const MORE: Duration = Duration::from_micros(300);
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..if short { 3 } else { 51 } {
        let start = Instant::now();
        let locker = RedisLocker::new(&clients::nodes(servers, OnDrop::Wait)?);
        let connected = Instant::now();
        let guard = locker.lock("first", TTL)?;
        times[0].push(connected.elapsed());
        times[1].push(start.elapsed());
        guard.release()?;
        let mut slowest = Duration::ZERO;
        for server in servers {
            let mut connection = redis::Client::open(server.url())?.get_connection()?;
            let start = Instant::now();
            redis::cmd("PING").exec(&mut connection)?;
            slowest = slowest.max(start.elapsed());
        }
        times[2].push(slowest);
    }
    let [first, both, round_trip] = times.map(|times| median(&times));
    let most = round_trip + MORE;
    Ok(format!(
        "the first lock p50 {first:.1?}: {}; with the connects {both:.1?}: {}; goal ≤ a round trip ({round_trip:.1?}) and \
         {MORE:?}",
        word(first <= most),
        word(both <= most)
    ))
}
