//! Facts on a server, as it reports them.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use redis::{Cmd, Connection, RedisResult};
use serde_json::{Value, json};

use crate::doctor::rights::{self, Rights};
use crate::duration::millis;

/// The facts on one server.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// The name and version of the server, `valkey 8.1.0` for example.
    pub(crate) version: String,
    /// Major and minor version of Redis that the server is compatible with.
    pub(crate) compatible: (u32, u32),
    pub(crate) is_replica: bool,
    pub(crate) is_cluster: bool,
    pub(crate) persistence: Persistence,
    pub(crate) maxmemory: u64,
    pub(crate) eviction: String,
    pub(crate) clock_offset_ms: i64,
    /// Half of the round trip in which the clock was read.
    pub(crate) clock_uncertainty: Duration,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    pub(crate) rights: Rights,
}

/// The locks that a restart keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Persistence {
    /// An append-only file that is synced before each reply.
    EachWrite,
    /// An append-only file that loses up to a second.
    LosesTheLast,
    /// Snapshots, or nothing.
    Forgets,
    /// An append-only file; how it is synced is not told.
    Unknown,
}

impl Persistence {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Persistence::EachWrite => "aof always",
            Persistence::LosesTheLast => "aof",
            Persistence::Forgets => "none",
            Persistence::Unknown => "aof ?",
        }
    }
}

/// Asks a server. `prefix` is that of the keys whose rights are asked for.
pub(crate) fn examine(connection: &mut Connection, prefix: &str, pings: u32) -> RedisResult<Facts> {
    let info: String = Cmd::new().arg("INFO").query(connection)?;
    let info = parse_info(&info);
    let field = |name: &str| info.get(name).copied().unwrap_or_default();
    let (clock_offset_ms, clock_uncertainty) = clock(connection)?;
    let (p50, p99) = latency(connection, pings)?;
    let is_valkey = field("server_name") == "valkey";
    let name = if is_valkey { "valkey" } else { "redis" };
    let version = if is_valkey {
        field("valkey_version")
    } else {
        field("redis_version")
    };
    Ok(Facts {
        version: format!("{name} {version}"),
        compatible: major_minor(field("redis_version")),
        is_replica: field("role") == "slave",
        is_cluster: field("redis_mode") == "cluster",
        persistence: persistence(connection, field("aof_enabled") == "1"),
        maxmemory: field("maxmemory").parse().unwrap_or_default(),
        eviction: field("maxmemory_policy").to_owned(),
        clock_offset_ms,
        clock_uncertainty,
        p50,
        p99,
        rights: rights::ask(connection, prefix)?,
    })
}

fn parse_info(text: &str) -> HashMap<&str, &str> {
    text.lines()
        .filter_map(|line| line.trim().split_once(':'))
        .collect()
}

fn major_minor(version: &str) -> (u32, u32) {
    let mut numbers = version
        .split('.')
        .map(|part| part.parse().unwrap_or_default());
    (
        numbers.next().unwrap_or_default(),
        numbers.next().unwrap_or_default(),
    )
}

/// Returns the offset of the server's clock to ours, and its uncertainty.
fn clock(connection: &mut Connection) -> RedisResult<(i64, Duration)> {
    let start = Instant::now();
    let (seconds, micros): (i64, i64) = Cmd::new().arg("TIME").query(connection)?;
    let half = start.elapsed() / 2;
    let ours = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let ours = i64::try_from(ours.saturating_sub(half).as_millis()).unwrap_or(i64::MAX);
    Ok((seconds * 1000 + micros / 1000 - ours, half))
}

/// Returns the median and the 99th percentile of round trips.
fn latency(connection: &mut Connection, pings: u32) -> RedisResult<(Duration, Duration)> {
    let mut times = Vec::new();
    for _ in 0..pings.max(1) {
        let start = Instant::now();
        let _: String = Cmd::new().arg("PING").query(connection)?;
        times.push(start.elapsed());
    }
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    Ok((at(50), at(99)))
}

fn persistence(connection: &mut Connection, has_aof: bool) -> Persistence {
    if !has_aof {
        return Persistence::Forgets;
    }
    let mut get = Cmd::new();
    get.arg("CONFIG").arg("GET").arg("appendfsync");
    // The right +config|get may be missing.
    match get.query::<Vec<String>>(connection) {
        Ok(pair) if pair.get(1).is_some_and(|value| value == "always") => Persistence::EachWrite,
        Ok(_) => Persistence::LosesTheLast,
        Err(_) => Persistence::Unknown,
    }
}

impl Facts {
    pub(crate) fn role(&self) -> &'static str {
        if self.is_replica { "replica" } else { "master" }
    }

    pub(crate) fn clock_text(&self) -> String {
        format!("{:+} ms", self.clock_offset_ms)
    }

    pub(crate) fn latency_text(&self) -> String {
        let ms = |time: Duration| format!("{:.1}", time.as_secs_f64() * 1000.0);
        format!("{}/{} ms", ms(self.p50), ms(self.p99))
    }

    pub(crate) fn object(&self) -> Value {
        json!({
            "version": self.version,
            "role": self.role(),
            "cluster": self.is_cluster,
            "persistence": self.persistence.name(),
            "maxmemory": self.maxmemory,
            "eviction": self.eviction,
            "clock_offset_ms": self.clock_offset_ms,
            "clock_uncertainty_ms": millis(self.clock_uncertainty),
            "p50_us": u64::try_from(self.p50.as_micros()).unwrap_or(u64::MAX),
            "p99_us": u64::try_from(self.p99.as_micros()).unwrap_or(u64::MAX),
            "missing_rights": self.rights.missing(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info_and_version_are_parsed() {
        let info = parse_info("# Server\r\nredis_version:7.2.4\r\nrole:master\r\n");
        assert_eq!(info.get("role"), Some(&"master"));
        assert_eq!(major_minor(info["redis_version"]), (7, 2));
        assert_eq!(major_minor(""), (0, 0));
    }
}
