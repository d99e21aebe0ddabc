//! The rights that each kind of lock needs, asked for without side effects: by
//! `redis.acl_check_cmd`, or on older servers by a transaction that is discarded. A server checks
//! the rights of a command when it queues it.

use redis::{Cmd, Connection, Pipeline, RedisResult, Value};

use crate::locks::keys::LockKeys;

const CHECK: &str = include_str!("rights.lua");

/// The purpose of a set of rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Locks,
    ReadWriteLocks,
    Fencing,
    Semaphores,
    Notifications,
    WaitingLists,
    Listing,
}

impl Use {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Use::Locks => "locks",
            Use::ReadWriteLocks => "read-write locks",
            Use::Fencing => "fencing",
            Use::Semaphores => "semaphores",
            Use::Notifications => "release notifications",
            Use::WaitingLists => "waiting lists",
            Use::Listing => "list and watch",
        }
    }
}

/// The rights of one user on one server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Rights {
    /// The denied commands, as an ACL rule names them, with their keys where they matter.
    Known(Vec<(Use, String)>),
    /// The server does not tell.
    Unknown,
}

impl Rights {
    /// Returns the missing rights as `use: rule`.
    pub(crate) fn missing(&self) -> Vec<String> {
        match self {
            Rights::Known(missing) => {
                let texts = missing.iter();
                texts
                    .map(|(purpose, rule)| format!("{}: {rule}", purpose.name()))
                    .collect()
            }
            Rights::Unknown => Vec::new(),
        }
    }
}

/// A command whose right is asked for.
struct Need {
    purpose: Use,
    words: Vec<String>,
}

/// Asks a server for the rights of the user of this connection.
pub(crate) fn ask(connection: &mut Connection, prefix: &str) -> RedisResult<Rights> {
    let needs = needs(prefix);
    let denied = match by_script(connection, &needs)? {
        Some(denied) => Some(denied),
        None => by_transaction(connection, &needs)?,
    };
    Ok(match denied {
        Some(denied) => Rights::Known(denied.into_iter().map(|at| needs[at].rule()).collect()),
        None => Rights::Unknown,
    })
}

impl Need {
    fn rule(&self) -> (Use, String) {
        let has_subcommand = matches!(&*self.words[0], "client" | "script" | "pubsub");
        let name = match self.words.get(1).filter(|_| has_subcommand) {
            Some(subcommand) => format!("+{}|{subcommand}", self.words[0]),
            None => format!("+{}", self.words[0]),
        };
        (self.purpose, name)
    }
}

/// Returns the commands of each use, on keys that no lock has.
fn needs(prefix: &str) -> Vec<Need> {
    let LockKeys { lock, derived } = LockKeys::of(prefix, "doctor");
    let [writer, readers, gate, permits, turn, waiting] = &derived;
    let fence = writer.replace(":writer", ":fence");
    let lines = [
        (
            Use::Locks,
            format!(
                "client id;client kill id 0;info;script load x;evalsha x 1 {lock};set {lock} x;get {lock};del {lock};pttl {lock};pexpire {lock} 1"
            ),
        ),
        (
            Use::ReadWriteLocks,
            format!(
                "exists {writer};time;set {turn} x;pexpireat {readers} 1;zadd {gate} 1 x;zrem {readers} x;zrange {readers} 0 1;zscore {gate} x;zmscore {readers} x;zremrangebyscore {gate} 0 1"
            ),
        ),
        (Use::Fencing, format!("time;incr {fence}")),
        (
            Use::Semaphores,
            format!(
                "time;hmget {permits} x;hget {permits} x;hgetall {permits};hset {permits} x y;hdel {permits} x;hlen {permits}"
            ),
        ),
        (
            Use::Notifications,
            format!(
                "publish {lock} x;subscribe {lock};subscribe {prefix}listener:x;unsubscribe {lock};ping"
            ),
        ),
        (
            Use::WaitingLists,
            format!(
                "exists {lock};time;zadd {waiting} 1 x;zrem {waiting} x;zrank {waiting} x;zrange {waiting} 0 0"
            ),
        ),
        (
            Use::Listing,
            format!("scan 0;pubsub numsub {lock};zrange {readers} 0 1;hgetall {permits}"),
        ),
    ];
    let mut needs = Vec::new();
    for (purpose, line) in lines {
        for command in line.split(';') {
            let words = command.split(' ').map(str::to_owned).collect();
            needs.push(Need { purpose, words });
        }
    }
    needs
}

/// Returns the positions of the denied commands; `None` if the server cannot tell so.
fn by_script(connection: &mut Connection, needs: &[Need]) -> RedisResult<Option<Vec<usize>>> {
    let mut load = Cmd::new();
    load.arg("SCRIPT").arg("LOAD").arg(CHECK);
    let hash: String = match load.query(connection) {
        Ok(hash) => hash,
        Err(error) if error.code() == Some("NOPERM") => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut check = Cmd::new();
    check.arg("EVALSHA").arg(hash).arg(0);
    for need in needs {
        check.arg(need.words.join("\u{1f}"));
    }
    match check.query::<Value>(connection) {
        Ok(Value::Array(positions)) => Ok(Some(positions.iter().filter_map(position).collect())),
        Ok(_) => Ok(None),
        Err(error) if error.code() == Some("NOPERM") => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns an index from a position that counts from 1.
fn position(value: &Value) -> Option<usize> {
    match value {
        Value::Int(position) => usize::try_from(*position).ok()?.checked_sub(1),
        _ => None,
    }
}

fn by_transaction(connection: &mut Connection, needs: &[Need]) -> RedisResult<Option<Vec<usize>>> {
    let mut pipeline = Pipeline::new();
    pipeline.ignore_errors();
    pipeline.cmd("MULTI");
    for need in needs {
        pipeline.cmd(&need.words[0]);
        for word in &need.words[1..] {
            pipeline.arg(word);
        }
    }
    pipeline.cmd("DISCARD");
    let replies: Vec<Value> = pipeline.query(connection)?;
    if is_denied(&replies[0]) || is_denied(&replies[replies.len() - 1]) {
        return Ok(None);
    }
    let queued = replies[1..=needs.len()].iter().enumerate();
    let denied = queued.filter(|(_, reply)| is_denied(reply));
    Ok(Some(denied.map(|(at, _)| at).collect()))
}

fn is_denied(reply: &Value) -> bool {
    matches!(reply, Value::ServerError(error) if error.code() == "NOPERM")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_named_as_in_an_acl_rule() {
        let needs = needs("p:");
        let rules: Vec<_> = needs.iter().map(Need::rule).collect();
        assert_eq!(rules[1], (Use::Locks, "+client|kill".to_owned()));
        assert!(rules.contains(&(Use::Semaphores, "+hset".to_owned())));
        let words = ["incr", "{p:doctor}:fence"].map(str::to_owned).to_vec();
        assert!(needs.iter().any(|need| need.words == words));
        assert!(rules.contains(&(Use::WaitingLists, "+zrank".to_owned())));
        let rights = Rights::Known(vec![rules[1].clone()]);
        assert_eq!(rights.missing(), ["locks: +client|kill"]);
    }
}
