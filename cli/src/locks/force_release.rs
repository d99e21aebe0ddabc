//! The request that removes holders of one name from all nodes.

use redis::{Cmd, Connection, ErrorKind, RedisResult, Script};

use crate::failure::{Failure, Result};
use crate::locks::inspect;
use crate::locks::keys::LockKeys;
use crate::nodes::fan_out::Nodes;

const FORCE_RELEASE: &str = include_str!("force_release.lua");

/// Removes the holders of a name whose tokens have these digests, and returns whether a node had one
/// of them. A holder that has come since the digests were read stays.
///
/// As the library's `force_release`, it wakes the waiters on each node and tells the holders of that
/// name to check their locks, also where it finds none: the keys may have been deleted by hand.
///
/// # Errors
/// As [`Nodes::require_quorum`]; the nodes that answered have removed them.
pub(crate) fn force_release(
    nodes: &mut Nodes,
    prefix: &str,
    name: &str,
    digests: &[&str],
) -> Result<bool> {
    let keys = LockKeys::of(prefix, name);
    let answers = nodes.ask(|connection| on_server(connection, &keys, digests));
    nodes.require_quorum(&answers.absent).map_err(|failure| {
        let line = format!("{}; the nodes that replied have released it", failure.line);
        Failure::new(failure.kind, line)
    })?;
    // After all nodes: while a quorum has its token, a holder that checks would restore the lock.
    nodes.ask(|connection| publish_notice(connection, &keys.lock, prefix));
    let removed: u64 = answers.by_node.iter().flatten().flatten().sum();
    Ok(removed > 0)
}

/// Publishes a notice. The right may be missing: then a holder finds out at its next renewal.
fn publish_notice(connection: &mut Connection, lock: &str, prefix: &str) -> RedisResult<()> {
    let mut notice = redis::cmd("PUBLISH");
    notice.arg(format!("{prefix}listener:notices"));
    notice.arg(format!("check {lock}"));
    notice.exec(connection).or(Ok(()))
}

fn on_server(connection: &mut Connection, keys: &LockKeys, digests: &[&str]) -> RedisResult<u64> {
    inspect::load(connection, FORCE_RELEASE)?;
    let hash = Script::new(FORCE_RELEASE).get_hash().to_owned();
    let [writer, readers, gate, permits, turn, _] = &keys.derived;
    let mut all = Cmd::new();
    all.arg("EVALSHA").arg(&hash).arg(6).arg(&keys.lock);
    all.arg(&[writer, readers, gate, permits, turn])
        .arg(digests);
    let result = match all.query(connection) {
        // A user may have the right to the keys of exclusive locks alone.
        Err(error) if error.code() == Some("NOPERM") => {
            let mut lock = Cmd::new();
            lock.arg("EVALSHA").arg(&hash).arg(1).arg(&keys.lock);
            lock.arg(digests).query(connection)
        }
        result => result,
    };
    match result {
        // Another master of the cluster has the key.
        Err(error)
            if matches!(error.code(), Some("MOVED" | "ASK"))
                || error.kind() == ErrorKind::Server(redis::ServerErrorKind::Moved) =>
        {
            Ok(0)
        }
        result => result,
    }
}
