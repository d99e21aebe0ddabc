//! Rows beside the table of cells: a name, and a function that measures and returns the rest of the
//! line, with its goal.

use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use redguard::{Error, Locker, OnDrop, RedisLocker};

use crate::contention::{contended, handed_over, threads};
use crate::format::word;
use crate::proc_stats::{of_a_core, processor_time};
use crate::renewal::renewed;
use crate::{Result, clients, outage, overhead};
use redguard_servers::Server;

type Extra = (&'static str, fn(&[Server], bool) -> Result<String>);

pub(crate) const EXTRAS: [Extra; 16] = [
    (
        "memory of a held guard and of an idle key on 5 nodes",
        overhead::memory,
    ),
    (
        "allocations of an uncontended pair on 5 nodes",
        overhead::allocations,
    ),
    (
        "requests of an uncontended pair on 5 nodes",
        overhead::requests,
    ),
    (
        "context switches of an uncontended pair",
        overhead::switches,
    ),
    (
        "connecting to 5 nodes and the first lock",
        overhead::first_lock,
    ),
    ("50 threads that wait for one held key", |servers, short| {
        waiting(servers, short, 50)
    }),
    (
        "1,000 threads that wait for one held key",
        |servers, short| waiting(servers, short, 1000),
    ),
    (
        "10,000 guards renewed at a TTL of 30 s on 3 nodes",
        |servers, short| renewed(servers, short, 10_000, Duration::from_secs(30), 3.0),
    ),
    (
        "100,000 guards renewed at a TTL of 60 s on 3 nodes",
        |servers, short| renewed(servers, short, 100_000, Duration::from_secs(60), 3.0),
    ),
    ("contended by 4 processes, 1 node", |servers, short| {
        contended(servers, 1, 0.9, short)
    }),
    ("contended by 4 processes, 3 nodes", |servers, short| {
        contended(servers, 3, 0.8, short)
    }),
    (
        "acquired next by another process, 1 node",
        |servers, short| handed_over(servers, 1, 3.0, short),
    ),
    (
        "acquired next by another process, 3 nodes",
        |servers, short| handed_over(servers, 3, 3.0, short),
    ),
    ("8 threads of one process, one key, 1 node", threads),
    (
        "refused while the breaker is open, 3 nodes",
        outage::refused,
    ),
    ("1,000 guards dropped while a quorum hangs", outage::dropped),
];

const TTL: Duration = Duration::from_secs(30);

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
        thread::sleep(Duration::from_secs(1)); // all are queued by now, and the first delays are long
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
    Ok(format!(
        "{}, {asked:.1} requests a second, goal ≤ 20: {}",
        of_a_core(used, watched, 1.0),
        word(asked <= 20.0)
    ))
}

/// Returns the number of commands that the servers received, without this one.
fn requests(servers: &[Server]) -> Result<u64> {
    let mut sum = 0;
    for server in servers {
        let mut connection = redis::Client::open(server.url())?.get_connection()?;
        let info: String = redis::cmd("INFO")
            .arg("commandstats")
            .query(&mut connection)?;
        let calls = info.lines().filter(|line| {
            // Commands inside scripts are not requests, and the others are our own queries.
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
