//! The request that reads the holders of one name on one server.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redis::{Cmd, Connection, Pipeline, RedisResult, Script, Value};

use crate::locks::LockKind;
use crate::locks::keys::LockKeys;

const INSPECT: &str = include_str!("inspect.lua");

/// The number of names per round trip.
const BATCH: usize = 100;

/// The most names whose holders are read. A list beyond that helps nobody.
pub(crate) const MAX_NAMES: usize = 10_000;

/// One server's report on one name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NameReport {
    pub(crate) holders: Vec<ServerHolder>,
    /// The owner labels of waiting writers.
    pub(crate) waiting_writers: Vec<(String, String)>,
    /// The number of processes that wait for a release; `None` if the server does not tell.
    pub(crate) waiting: Option<usize>,
}

/// A holder as one server reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServerHolder {
    pub(crate) kind: LockKind,
    /// The SHA-1 of the token; empty for a value of another type.
    pub(crate) digest: String,
    /// Empty without a label.
    pub(crate) owner: String,
    /// `None` without an end.
    pub(crate) remaining: Option<Duration>,
    /// The permit, and the number of permits of its semaphore.
    pub(crate) permit: Option<(u16, u16)>,
    /// When the lock was acquired, if the token tells.
    pub(crate) since: Option<SystemTime>,
}

/// Reads the holders of names on one server, in the order of the names.
pub(crate) fn inspect(
    connection: &mut Connection,
    prefix: &str,
    names: &[String],
) -> RedisResult<Vec<NameReport>> {
    let mut reports = Vec::with_capacity(names.len());
    if !names.is_empty() {
        load(connection, INSPECT)?;
    }
    for batch in names.chunks(BATCH) {
        let all = send(connection, prefix, batch, true)?;
        // A user may have the right to the keys of exclusive locks alone.
        let reduced = if all.iter().any(is_denied) {
            Some(send(connection, prefix, batch, false)?)
        } else {
            None
        };
        for (at, _) in batch.iter().enumerate() {
            let holders = match (&all[2 * at], &reduced) {
                (Value::ServerError(_), Some(reduced)) => &reduced[2 * at],
                (told, _) => told,
            };
            reports.push(NameReport::parse(holders, &all[2 * at + 1])?);
        }
    }
    Ok(reports)
}

/// Loads a script, so that it is sent once instead of with each call.
pub(crate) fn load(connection: &mut Connection, source: &str) -> RedisResult<()> {
    let mut load = Cmd::new();
    load.arg("SCRIPT").arg("LOAD").arg(source);
    load.query(connection)
}

/// Sends two requests per name: for its holders and for its listeners.
fn send(
    connection: &mut Connection,
    prefix: &str,
    names: &[String],
    all_kinds: bool,
) -> RedisResult<Vec<Value>> {
    let hash = Script::new(INSPECT).get_hash().to_owned();
    let mut pipeline = Pipeline::with_capacity(2 * names.len());
    pipeline.ignore_errors();
    for name in names {
        let LockKeys { lock, derived } = LockKeys::of(prefix, name);
        pipeline.cmd("EVALSHA").arg(&hash);
        if all_kinds {
            let [writer, readers, gate, permits, _, waiting] = &derived;
            pipeline.arg(6).arg(&lock);
            pipeline.arg(&[writer, readers, gate, permits, waiting]);
        } else {
            pipeline.arg(1).arg(&lock);
        }
        pipeline.cmd("PUBSUB").arg("NUMSUB").arg(&lock);
    }
    pipeline.query(connection)
}

fn is_denied(value: &Value) -> bool {
    matches!(value, Value::ServerError(error) if error.code() == "NOPERM")
}

impl NameReport {
    fn parse(holders: &Value, listeners: &Value) -> RedisResult<NameReport> {
        let mut report = NameReport::default();
        let rows = match holders {
            // Another master of the cluster has the key.
            Value::ServerError(error) if matches!(error.code(), "MOVED" | "ASK") => Vec::new(),
            holders => redis::from_redis_value::<Vec<ServerRow>>(holders.clone())?,
        };
        let mut in_list = 0;
        for (kind, digest, owner, ms, number, total, since) in rows {
            let owner = String::from_utf8_lossy(&owner).into_owned();
            let kind = match &*kind {
                "lock" => LockKind::Lock,
                "write" => LockKind::Write,
                "read" => LockKind::Read,
                "permit" => LockKind::Permit,
                "list" => {
                    in_list = usize::try_from(ms).unwrap_or_default();
                    continue;
                }
                _ => {
                    report.waiting_writers.push((digest, owner));
                    continue;
                }
            };
            report.holders.push(ServerHolder {
                kind,
                digest,
                owner,
                remaining: u64::try_from(ms).ok().map(Duration::from_millis),
                permit: u16::try_from(number).ok().zip(u16::try_from(total).ok()),
                since: parse_since(&since),
            });
        }
        // The right +pubsub|numsub may be missing.
        let listeners = match listeners {
            Value::Array(fields) => fields.get(1).and_then(as_count),
            _ => None,
        };
        // A process may be in the list, or subscribed, or both.
        report.waiting = listeners.map(|count| count.max(in_list));
        Ok(report)
    }
}

/// Kind, digest, owner label, ms left, number of the permit, number of permits, time of the
/// acquire.
type ServerRow = (String, String, Vec<u8>, i64, i64, i64, String);

fn parse_since(text: &str) -> Option<SystemTime> {
    let millis = u64::from_str_radix(text, 16).ok()?;
    UNIX_EPOCH.checked_add(Duration::from_millis(millis))
}

fn as_count(value: &Value) -> Option<usize> {
    match value {
        Value::Int(count) => usize::try_from(*count).ok(),
        _ => None,
    }
}
