//! Costs without a quorum: a refused lock, and dropped guards.

use std::time::{Duration, Instant};

use redguard::{Config, LockGuard, Locker, OnDrop, RedisLocker, RetryPolicy};

use crate::Result;
use crate::clients;
use crate::format::word;
use redguard_servers::Server;

const TTL: Duration = Duration::from_secs(60);

/// Stops two of three nodes during a measurement.
fn without_quorum(servers: &[Server], measure: impl FnOnce() -> Result<String>) -> Result<String> {
    servers[1..3].iter().try_for_each(Server::stop)?;
    let measured = measure();
    servers[1..3].iter().try_for_each(Server::resume)?;
    measured
}

pub(crate) fn refused(servers: &[Server], short: bool) -> Result<String> {
    const MOST: Duration = Duration::from_micros(5);
    let config = Config::new(servers[..3].iter().map(Server::addr)).retry(RetryPolicy {
        max_delay: Duration::from_millis(100),
        ..RetryPolicy::default()
    });
    let locker = RedisLocker::connect(config.circuit_breaker(1, TTL))?;
    without_quorum(servers, || {
        while !matches!(
            locker.try_lock("opens it", TTL),
            Err(redguard::Error::CircuitOpen { .. })
        ) {}
        let mut times = Vec::new();
        for _ in 0..if short { 10_000 } else { 200_000 } {
            let start = Instant::now();
            let refused = locker.try_lock("refused", TTL);
            times.push(start.elapsed());
            if refused.is_ok() {
                return Err("locked without a quorum".into());
            }
        }
        times.sort_unstable();
        let [middle, late] = [50, 99].map(|part| times[times.len() * part / 100]);
        Ok(format!(
            "p50 {middle:.1?}, p99 {late:.1?}, goal < {MOST:?}: {}",
            word(late < MOST)
        ))
    })
}

pub(crate) fn dropped(servers: &[Server], _: bool) -> Result<String> {
    const GUARDS: usize = 1000;
    let node_timeout = Duration::from_millis(200);
    let locker = RedisLocker::new(&clients::nodes(&servers[..3], OnDrop::Wait)?);
    let acquire = |n: usize| Ok(locker.lock(&format!("dropped-{n}"), TTL)?);
    let guards = (0..GUARDS)
        .map(acquire)
        .collect::<Result<Vec<LockGuard>>>()?;
    without_quorum(servers, || {
        let start = Instant::now();
        drop(guards);
        let took = start.elapsed();
        let ok = word(took <= 2 * node_timeout);
        Ok(format!(
            "{took:.0?} in all, goal ≤ {:?}: {ok}",
            2 * node_timeout
        ))
    })
}
