//! `break`: removes a lock from its holder after a confirmation.

use super::exit_error::{Kind, NO_LOCK, Refusal};
use super::lock_row::Lock;
use super::output::{Voice, shown};
use super::status::warn_of_absent;
use redguard::RedisLocker;
use serde_json::json;
use std::io::{self, IsTerminal, Write};

/// Asks a question and returns whether the answer was yes.
pub(crate) type Ask = fn(&str) -> io::Result<bool>;

/// Asks at the terminal, if there is one.
pub(crate) fn terminal() -> Option<Ask> {
    let is_there = io::stdin().is_terminal() && io::stderr().is_terminal();
    is_there.then_some(|question| {
        write!(io::stderr(), "{question} [y/N] ")?;
        let mut answer = String::new();
        io::stdin().read_line(&mut answer)?;
        let answer = answer.trim();
        Ok(answer.eq_ignore_ascii_case("y") || answer.eq_ignore_ascii_case("yes"))
    })
}

/// Breaks the lock if the operator confirms.
pub(crate) fn break_lock(
    locker: &RedisLocker,
    key: &str,
    ask: Option<Ask>,
    voice: &mut Voice<'_>,
) -> Result<u8, Refusal> {
    let of_lock = |error| Refusal::of_lock(key, error);
    let lock = Lock::read(locker, key).map_err(of_lock)?;
    warn_of_absent(locker, voice);
    if lock.is_free() {
        return tell(&lock, false, voice);
    }
    if let Some(ask) = ask {
        let question = format!("{}: {}. Break it?", shown(key), lock.describe());
        if !ask(&question)? {
            let line = format!("lock {key:?}: not confirmed, nothing was done");
            return Err(Refusal::new(Kind::NotConfirmed, line));
        }
        let now = Lock::read(locker, key).map_err(of_lock)?;
        if !now.is_free() && now.owner != lock.owner {
            let (then, now) = (lock.holder(), now.holder());
            let line = format!("lock {key:?}: passed from {then} to {now}, nothing was done");
            return Err(Refusal::new(Kind::NotConfirmed, line));
        }
    }
    let broken = locker.force_release(key).map_err(|error| {
        let Refusal { kind, line } = of_lock(error);
        Refusal::new(
            kind,
            format!("{line}; the nodes that replied have released it"),
        )
    })?;
    tell(&lock, broken, voice)
}

/// Reports the outcome for a lock whose state was read before.
fn tell(lock: &Lock, broken: bool, voice: &mut Voice<'_>) -> Result<u8, Refusal> {
    let (who, nodes, total) = (lock.holder(), lock.nodes, lock.total);
    let text = if broken {
        format!(
            "broken; {who} had it on {nodes} of {total} nodes, and may continue until it checks"
        )
    } else {
        "there is no such lock".to_owned()
    };
    let object = json!({
        "key": lock.key,
        "broken": broken,
        "owner": lock.owner,
        "nodes": nodes,
    });
    voice.tell(&format!("{}: {text}", shown(&lock.key)), &object)?;
    Ok(if broken { 0 } else { NO_LOCK })
}
