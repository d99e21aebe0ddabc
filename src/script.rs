//! What we say to a node, and what its answers mean.
//!
//! A take is Redis' own `SET NX PX`, half as dear to a server as a script that says the same; who is refused asks how
//! long the holder has left. What must look before it acts is an atomic script, sent by its SHA-1 (`EVALSHA`), with all
//! keys in KEYS and integers as replies.

use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, RedisError, ServerErrorKind, Value};

use crate::error::Cause;
use crate::lease::Lease;

/// Extend the lock (rule S5): never kills, never revives, never shortens.
///
/// 1. Nothing is changed unless the value is our token.
/// 2. The expiry becomes the greater of what is left and the TTL. A key that somebody made persistent gets an end.
///
/// KEYS: the lock. ARGV: token, TTL in ms. Reply: 1 ours and extended, 0 no such key, −1 another's.
const EXTEND: &str = "\
local value = redis.call('GET', KEYS[1])
if value ~= ARGV[1] then return value and -1 or 0 end
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 1";

/// Release the lock, as in the Redlock text: compare and delete.
///
/// KEYS: the lock. ARGV: token. Reply: 1 deleted, 0 no such key, −1 another's, left untouched.
const RELEASE: &str = "\
local value = redis.call('GET', KEYS[1])
if value == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return value and -1 or 0";

const SCRIPTS: [&str; 2] = [EXTEND, RELEASE];

/// What a request asks a node to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    /// Give us the lock if it is free, as in the Redlock text ("Correct implementation with a single instance"):
    /// `SET NX PX`. It looks at no type, so a foreign value of any kind is left untouched.
    Take,
    /// Keep it for us for longer.
    Extend,
    /// Take it again on a node that lost it while a quorum kept it: the same command as `Take`, the same checks.
    PutBack,
    /// Delete it if it is ours. Also the undo of an attempt.
    Release,
}

/// One verb on one lease. It owns what it speaks of, so it outlives the caller that has stopped waiting.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) verb: Verb,
    pub(crate) lease: Arc<Lease>,
    /// In whole milliseconds; without meaning for `Release`.
    pub(crate) ttl: u64,
}

/// A node's answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Granted, extended or deleted.
    Yes,
    /// Refused: held by another, for so long if its holder does not extend it.
    Held(Option<Duration>),
    /// There is no such key.
    Absent,
    /// Another's token is there.
    Foreign,
    /// An error reply, or none: nobody knows whether the request took effect.
    Fault(Cause),
}

/// The SHA-1 sums under which one server knows the scripts.
#[derive(Debug, Default)]
pub(crate) struct Loaded([String; SCRIPTS.len()]);

impl Loaded {
    /// How many replies [`load`](Loaded::load) brings.
    pub(crate) const COUNT: usize = SCRIPTS.len();

    /// Appends the commands that load the scripts; each is answered by a SHA-1 for [`learn`](Loaded::learn).
    pub(crate) fn load(wire: &mut Vec<u8>) {
        for script in SCRIPTS {
            redis::cmd("SCRIPT")
                .arg("LOAD")
                .arg(script)
                .write_packed_command(wire);
        }
    }

    pub(crate) fn learn(&mut self, script: usize, sha: String) {
        self.0[script] = sha;
    }

    /// Appends a request, with `cmd` as scratch space.
    pub(crate) fn write(&self, request: &Request, cmd: &mut Cmd, wire: &mut Vec<u8>) {
        let (key, token) = (request.lease.key().wire(), request.lease.token().text());
        cmd.clear();
        match request.verb {
            Verb::Take | Verb::PutBack => {
                cmd.arg("SET").arg(key).arg(token);
                cmd.arg("NX").arg("PX").arg(request.ttl);
            }
            Verb::Extend => {
                cmd.arg("EVALSHA").arg(&self.0[0]).arg(1);
                cmd.arg(key).arg(token).arg(request.ttl);
            }
            Verb::Release => {
                cmd.arg("EVALSHA").arg(&self.0[1]).arg(1);
                cmd.arg(key).arg(token);
            }
        }
        cmd.write_packed_command(wire);
    }
}

/// Appends the question how long a lock is held for, which is asked where a take was refused.
pub(crate) fn write_left(request: &Request, cmd: &mut Cmd, wire: &mut Vec<u8>) {
    cmd.clear();
    cmd.arg("PTTL").arg(request.lease.key().wire());
    cmd.write_packed_command(wire);
}

/// A reply, read as the answer to a request.
#[derive(Debug)]
pub(crate) enum Read {
    Answer(Answer),
    /// A take was refused; for how long is asked by [`write_left`].
    Refused,
    /// The server has forgotten the scripts: the only answer after which a request is sent twice.
    NoScript,
    /// Not a reply to this: the connection is out of step and of no use any more.
    OutOfStep,
}

/// Reads a reply to `verb`.
pub(crate) fn read(verb: Verb, reply: Value) -> Read {
    Read::Answer(match (verb, reply) {
        (Verb::Take | Verb::PutBack, Value::Okay) => Answer::Yes,
        (Verb::Extend | Verb::Release, Value::Int(1)) => Answer::Yes,
        (Verb::Take | Verb::PutBack, Value::Nil) => return Read::Refused,
        (Verb::Extend | Verb::Release, Value::Int(0)) => Answer::Absent,
        (Verb::Extend | Verb::Release, Value::Int(-1)) => Answer::Foreign,
        (_, Value::ServerError(error)) => match error.kind() {
            Some(ServerErrorKind::NoScript) => return Read::NoScript,
            _ => Answer::Fault(cause(&error.into())),
        },
        _ => return Read::OutOfStep,
    })
}

/// Reads a reply to the question of [`write_left`].
pub(crate) fn read_left(reply: Value) -> Read {
    Read::Answer(Answer::Held(match reply {
        // Without an end, or nobody may say.
        Value::Int(-1) | Value::ServerError(_) => None,
        // Gone since.
        Value::Int(-2) => Some(Duration::ZERO),
        Value::Int(left) => match u64::try_from(left) {
            Ok(left) => Some(Duration::from_millis(left)),
            Err(_) => return Read::OutOfStep,
        },
        _ => return Read::OutOfStep,
    }))
}

/// What an error of `redis` means to us. The one place where they are told apart.
pub(crate) fn cause(error: &RedisError) -> Cause {
    if error.is_timeout() {
        return Cause::TimedOut;
    }
    let text = match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{code} {detail}"),
        _ => error.to_string(),
    };
    match (error.kind(), error.code()) {
        (redis::ErrorKind::AuthenticationFailed, _) => Cause::Denied(text),
        (_, Some("NOAUTH" | "WRONGPASS" | "NOPERM")) => Cause::Denied(text),
        (_, Some("WRONGTYPE")) => Cause::WrongType,
        // An error inside a script keeps its code only in its text.
        (_, Some(_)) if text.contains("WRONGTYPE") => Cause::WrongType,
        (_, Some(_)) => Cause::Server(text),
        _ => Cause::Unreachable(text),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn error(line: &str) -> Value {
        let wire = format!("-{line}\r\n");
        redis::parse_redis_value(wire.as_bytes()).unwrap_or(Value::Nil)
    }

    #[test]
    fn replies_mean_what_the_scripts_say() {
        let ms = Duration::from_millis;
        for verb in [Verb::Take, Verb::PutBack] {
            assert!(matches!(read(verb, Value::Okay), Read::Answer(Answer::Yes)));
            assert!(matches!(read(verb, Value::Nil), Read::Refused));
            assert!(matches!(read(verb, Value::Int(1)), Read::OutOfStep));
        }
        for (reply, expected) in [
            (-2, Some(ms(0))),
            (-1, None),
            (0, Some(ms(0))),
            (70, Some(ms(70))),
        ] {
            let read = read_left(Value::Int(reply));
            assert!(matches!(read, Read::Answer(Answer::Held(left)) if left == expected));
        }
        assert!(matches!(read_left(Value::Int(-3)), Read::OutOfStep));
        assert!(matches!(read_left(Value::Okay), Read::OutOfStep));
        for verb in [Verb::Extend, Verb::Release] {
            for (reply, expected) in [(1, Answer::Yes), (0, Answer::Absent), (-1, Answer::Foreign)]
            {
                let read = read(verb, Value::Int(reply));
                assert!(matches!(read, Read::Answer(answer) if answer == expected));
            }
            assert!(matches!(read(verb, Value::Int(2)), Read::OutOfStep));
        }
        assert!(matches!(read(Verb::Release, Value::Okay), Read::OutOfStep));
    }

    #[test]
    fn errors_are_told_apart() {
        assert!(matches!(
            read(Verb::Release, error("NOSCRIPT No matching script.")),
            Read::NoScript
        ));
        let fault = |line: &str| match read(Verb::Take, error(line)) {
            Read::Answer(Answer::Fault(cause)) => cause,
            other => panic!("{other:?}"),
        };
        for line in ["NOAUTH Authentication required.", "NOPERM no"] {
            assert!(matches!(fault(line), Cause::Denied(_)), "{line}");
        }
        for line in ["READONLY You can't write", "LOADING Redis", "OOM command"] {
            assert!(matches!(fault(line), Cause::Server(text) if text.contains(&line[..3])));
        }
        for line in [
            "WRONGTYPE Operation against a key",
            "ERR WRONGTYPE Operation against a key script: f_1",
        ] {
            assert_eq!(fault(line), Cause::WrongType, "{line}");
        }
    }
}
