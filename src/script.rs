//! What we say to a node, and what its answers mean.
//!
//! A take of an exclusive lock is Redis' own `SET NX PX`, half as dear to a server as a script that says the same; who is
//! refused asks how long the holder has left. What must look before it acts is an atomic script, sent by its SHA-1
//! (`EVALSHA`), with all keys in KEYS and integers as replies.
//!
//! # Read-write locks
//!
//! | key | what it is |
//! |---|---|
//! | `:writer` | the token of the writer, with its TTL |
//! | `:readers` | the readers' tokens, sorted by the time at which each ends |
//! | `:gate` | the tokens of writers that wait, sorted by the time at which each place ends |
//! | `:turn` | `asked` while a refused reader waits, `given` while readers have their turn |
//!
//! Times are the server's own, in milliseconds (`TIME`); an entry is alive up to and including its time. A sorted set ends a
//! second after its last entry, so nothing is left when nobody holds or waits. Scripts read first what can fail on its type,
//! so that they fail before they have changed anything.

use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, RedisError, RedisWrite, ServerErrorKind, ToRedisArgs, Value};

use crate::error::Cause;
use crate::key::Derived;
use crate::lease::{Claim, Lease};

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

/// Sets `now`.
macro_rules! now {
    () => {
        "
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)"
    };
}

/// Enters ARGV[1] into the sorted set `set`, to end in `life` ms.
macro_rules! enter {
    () => {
        "
redis.call('ZADD', set, now + life, member)
if redis.call('PTTL', set) < life + 1000 then redis.call('PEXPIRE', set, life + 1000) end"
    };
}

/// Take a read lock (rule S10).
///
/// 1. Refused while there is a writer.
/// 2. Refused while a place at the gate is alive, unless the readers have their turn, or the gate is not heeded.
/// 3. Who is refused and waits leaves a mark, unless the readers have their turn already.
/// 4. Otherwise: readers that have ended are swept out, and the token is entered.
///
/// KEYS: writer, readers, gate, turn. ARGV: token, TTL in ms, how long a mark stays in ms or 0 for none, 1 if the gate is
/// heeded. Reply: 1 granted, or who stands in the way (0 a writer, 2 the gate) and for how many ms (−1 without an end).
const READ: &str = concat!(
    "local writer = redis.call('GET', KEYS[1])",
    now!(),
    "
local refused
if writer then
  refused = {0, redis.call('PTTL', KEYS[1])}
elseif ARGV[4] == '1' then
  local last = redis.call('ZRANGE', KEYS[3], -1, -1, 'WITHSCORES')[2]
  if last and tonumber(last) >= now and redis.call('GET', KEYS[4]) ~= 'given' then refused = {2, last - now} end
end
if refused then
  if ARGV[3] ~= '0' and redis.call('GET', KEYS[4]) ~= 'given' then
    redis.call('SET', KEYS[4], 'asked', 'PX', ARGV[3])
  end
  return refused
end
local set, member, life = KEYS[2], ARGV[1], tonumber(ARGV[2])
redis.call('ZREMRANGEBYSCORE', set, '-inf', now - 1)",
    enter!(),
    "
return 1"
);

/// Take the write lock (rule S10).
///
/// 1. Refused while there is a writer, or a reader that has not ended.
/// 2. Refused while the readers have their turn, unless that is not heeded.
/// 3. Who is refused and waits takes its place at the gate, or keeps it for longer.
/// 4. Otherwise the token is stored with its TTL. A gate keeps no writer out; a place of its own is left later.
///
/// KEYS: writer, readers, gate, turn. ARGV: token, TTL in ms, how long a place at the gate stays in ms or 0 for none,
/// 1 if a turn is heeded, the place's token. Reply: 1 granted, or who stands in the way (0 a writer, 1 readers, 3 their
/// turn) and for how many ms (−1 without an end).
const WRITE: &str = concat!(
    "local writer = redis.call('GET', KEYS[1])
local last = redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')[2]",
    now!(),
    "
local refused
if writer then
  refused = {0, redis.call('PTTL', KEYS[1])}
elseif last and tonumber(last) >= now then
  refused = {1, last - now}
elseif ARGV[4] == '1' and redis.call('GET', KEYS[4]) == 'given' then
  refused = {3, redis.call('PTTL', KEYS[4])}
end
if refused then
  if ARGV[3] ~= '0' then
    local set, member, life = KEYS[3], ARGV[5], tonumber(ARGV[3])
    redis.call('ZREMRANGEBYSCORE', set, '-inf', now - 1)",
    enter!(),
    "
  end
  return refused
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1"
);

/// Extend a read lock (rule S5): never kills, never revives, never shortens.
///
/// 1. A reader that has ended is not revived.
/// 2. The token in the writer's place is what a downgrade left that did not come here: it becomes a reader's, for no less.
/// 3. The end becomes the later of what it is and the TTL from now.
///
/// KEYS: writer, readers. ARGV: token, TTL in ms. Reply: 1 ours and extended, 0 not here.
const EXTEND_READ: &str = concat!(
    "local score = redis.call('ZSCORE', KEYS[2], ARGV[1])",
    now!(),
    "
local set, member, life = KEYS[2], ARGV[1], tonumber(ARGV[2])
if not score or tonumber(score) < now then
  if redis.call('GET', KEYS[1]) ~= member then return 0 end
  score, life = now, math.max(life, redis.call('PTTL', KEYS[1]))
  redis.call('DEL', KEYS[1])
end
if tonumber(score) < now + life then",
    enter!(),
    "
end
return 1"
);

/// Release a read lock.
///
/// 1. The token is taken out; the set then ends a second after the last of those that are left.
/// 2. It may be in the writer's place, where a downgrade did not come: then it is deleted there.
///
/// KEYS: writer, readers. ARGV: token. Reply: 1 released, 0 not here, or ended before.
const RELEASE_READ: &str = concat!(
    "local score = redis.call('ZSCORE', KEYS[2], ARGV[1])
if not score then
  if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
  return redis.call('DEL', KEYS[1])
end",
    now!(),
    "
redis.call('ZREM', KEYS[2], ARGV[1])
local last = redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')[2]
if last and tonumber(last) < tonumber(score) then redis.call('PEXPIREAT', KEYS[2], last + 1000) end
return tonumber(score) >= now and 1 or 0"
);

/// Release the write lock: compare and delete. If a refused reader waits, the readers get a turn.
///
/// KEYS: writer, turn. ARGV: token, how long a turn is in ms, or 0 for none. Reply: 1 deleted, 0 no such key, −1 another's,
/// left untouched.
const RELEASE_WRITE: &str = "\
local writer = redis.call('GET', KEYS[1])
if writer ~= ARGV[1] then return writer and -1 or 0 end
redis.call('DEL', KEYS[1])
if ARGV[2] ~= '0' and redis.pcall('GET', KEYS[2]) == 'asked' then
  redis.call('SET', KEYS[2], 'given', 'PX', ARGV[2])
end
return 1";

/// Turn a write lock into a read lock with the same token and the same end, and give waiting readers a turn.
///
/// 1. Nothing is changed unless the token is the writer's. Where it is a reader's already, this has been here before.
/// 2. A writer's key that somebody made persistent gets the end that our lease has.
///
/// KEYS: writer, readers, turn. ARGV: token, what the lease has left in ms, how long a turn is in ms. Reply: 1 ours, and a
/// reader now; 0 no such key; −1 another's.
const DOWNGRADE: &str = concat!(
    "local writer = redis.call('GET', KEYS[1])
local score = redis.call('ZSCORE', KEYS[2], ARGV[1])",
    now!(),
    "
if writer ~= ARGV[1] then
  if score and tonumber(score) >= now then return 1 end
  return writer and -1 or 0
end
local set, member, life = KEYS[2], ARGV[1], redis.call('PTTL', KEYS[1])
if life < 0 then life = tonumber(ARGV[2]) end",
    enter!(),
    "
redis.call('DEL', KEYS[1])
if redis.pcall('GET', KEYS[3]) == 'asked' then redis.call('SET', KEYS[3], 'given', 'PX', ARGV[3]) end
return 1"
);

/// All scripts; [`Script`] says which is where.
const SCRIPTS: [&str; 8] = [
    EXTEND,
    RELEASE,
    READ,
    WRITE,
    EXTEND_READ,
    RELEASE_READ,
    RELEASE_WRITE,
    DOWNGRADE,
];

#[derive(Clone, Copy)]
enum Script {
    Extend,
    Release,
    Read,
    Write,
    ExtendRead,
    ReleaseRead,
    ReleaseWrite,
    Downgrade,
}

/// What a request asks a node to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    /// Give us the lock if it is free, as in the Redlock text ("Correct implementation with a single instance"):
    /// `SET NX PX`. It looks at no type, so a foreign value of any kind is left untouched.
    Take,
    /// Keep it for us for longer.
    Extend,
    /// Take it again on a node that lost it while a quorum kept it: the same command as `Take`, the same checks. Only the
    /// gate and the turns, which are for newcomers, do not count.
    PutBack,
    /// Make a write lock a read lock.
    Downgrade,
    /// Delete it if it is ours. Also the undo of an attempt, and the leaving of a place at the gate.
    Release,
}

/// One verb on one lease. It owns what it speaks of, so it outlives the caller that has stopped waiting.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) verb: Verb,
    pub(crate) lease: Arc<Lease>,
    /// In whole milliseconds; without meaning for `Release`.
    pub(crate) ttl: u64,
    /// The interval in which a writer that waits says so again, and how long a turn of the readers is. Zero for requests
    /// that are to leave nothing of the kind: of one that does not wait, or the undo of an attempt.
    pub(crate) refresh: Duration,
    /// For a `Take` by a writer that waits: its place at the gate.
    pub(crate) place: Option<Arc<Lease>>,
}

impl Request {
    /// A request that leaves no traces of waiting and gives no turn.
    pub(crate) fn new(verb: Verb, lease: &Arc<Lease>, ttl: u64) -> Request {
        Request {
            verb,
            lease: Arc::clone(lease),
            ttl,
            refresh: Duration::ZERO,
            place: None,
        }
    }

    /// How long a place at the gate or a reader's mark stays if it is not refreshed: three intervals, so that one that is
    /// late does not matter.
    pub(crate) fn trace(&self) -> Duration {
        3 * self.refresh
    }
}

/// A node's answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Granted, extended or deleted.
    Yes,
    /// Refused because of somebody who holds it, for so long if that one does not extend it.
    Held(Holder, Option<Duration>),
    /// There is no such key.
    Absent,
    /// Another's token is there.
    Foreign,
    /// An error reply, or none: nobody knows whether the request took effect.
    Fault(Cause),
}

/// Who stands in the way of a take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    /// One that has the lock alone: another owner, or a writer.
    One,
    Readers,
    /// A writer that waits.
    Gate,
    /// Readers that waited and have their turn.
    Turn,
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
        let (key, ttl) = (request.lease.key(), request.ttl);
        let token = request.lease.token().text();
        let trace = millis(request.trace());
        let (writer, readers) = (key.derived(":writer"), key.derived(":readers"));
        let (gate, turn) = (key.derived(":gate"), key.derived(":turn"));
        let is_new = u8::from(request.verb == Verb::Take);
        cmd.clear();
        match (request.verb, request.lease.claim()) {
            (Verb::Take | Verb::PutBack, Claim::Exclusive) => {
                cmd.arg("SET").arg(key.wire()).arg(token);
                cmd.arg("NX").arg("PX").arg(ttl);
            }
            (Verb::Take | Verb::PutBack, Claim::Read) => {
                self.call(Script::Read, cmd, &[writer, readers, gate, turn]);
                cmd.arg(token).arg(ttl).arg(trace).arg(is_new);
            }
            (Verb::Take | Verb::PutBack, Claim::Write) => {
                let place = request.place.as_ref();
                self.call(Script::Write, cmd, &[writer, readers, gate, turn]);
                cmd.arg(token).arg(ttl);
                cmd.arg(place.map_or(0, |_| trace)).arg(is_new);
                cmd.arg(place.map_or("", |place| place.token().text()));
            }
            (Verb::Extend, Claim::Exclusive) => {
                self.call(Script::Extend, cmd, &[key.wire()]);
                cmd.arg(token).arg(ttl);
            }
            (Verb::Extend, Claim::Write) => {
                self.call(Script::Extend, cmd, &[writer]);
                cmd.arg(token).arg(ttl);
            }
            (Verb::Extend, Claim::Read) => {
                self.call(Script::ExtendRead, cmd, &[writer, readers]);
                cmd.arg(token).arg(ttl);
            }
            (Verb::Release, Claim::Exclusive) => {
                self.call(Script::Release, cmd, &[key.wire()]);
                cmd.arg(token);
            }
            (Verb::Release, Claim::Read) => {
                self.call(Script::ReleaseRead, cmd, &[writer, readers]);
                cmd.arg(token);
            }
            (Verb::Release, Claim::Write) => {
                self.call(Script::ReleaseWrite, cmd, &[writer, turn]);
                cmd.arg(token).arg(millis(request.refresh));
            }
            (Verb::Downgrade, _) => {
                self.call(Script::Downgrade, cmd, &[writer, readers, turn]);
                cmd.arg(token).arg(ttl).arg(millis(request.refresh));
            }
            // A place at the gate is taken by the attempts of its writer, and only ever left by itself.
            (_, Claim::Gate) => {
                cmd.arg("ZREM").arg(gate).arg(token);
            }
        }
        cmd.write_packed_command(wire);
    }

    fn call(&self, script: Script, cmd: &mut Cmd, keys: &[impl ToRedisArgs]) {
        cmd.arg("EVALSHA").arg(&self.0[script as usize]);
        cmd.arg(keys.len());
        for key in keys {
            cmd.arg(key);
        }
    }
}

impl ToRedisArgs for Derived<'_> {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        out.write_arg_fmt(self);
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
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

/// Reads a reply to a request of this verb and claim.
pub(crate) fn read(verb: Verb, claim: Claim, reply: Value) -> Read {
    let is_script = claim != Claim::Exclusive;
    Read::Answer(match (verb, reply) {
        (Verb::Take | Verb::PutBack, Value::Int(1)) if is_script => Answer::Yes,
        (Verb::Take | Verb::PutBack, Value::Array(refused)) if is_script => match refused[..] {
            [Value::Int(holder), Value::Int(left)] => match (holder_of(holder), left_of(left)) {
                (Some(holder), Some(left)) => Answer::Held(holder, left),
                _ => return Read::OutOfStep,
            },
            _ => return Read::OutOfStep,
        },
        (Verb::Take | Verb::PutBack, Value::Okay) if !is_script => Answer::Yes,
        (Verb::Take | Verb::PutBack, Value::Nil) if !is_script => return Read::Refused,
        (Verb::Extend | Verb::Downgrade | Verb::Release, Value::Int(1)) => Answer::Yes,
        (Verb::Extend | Verb::Downgrade | Verb::Release, Value::Int(0)) => Answer::Absent,
        (Verb::Extend | Verb::Downgrade | Verb::Release, Value::Int(-1)) => Answer::Foreign,
        (_, Value::ServerError(error)) => match error.kind() {
            Some(ServerErrorKind::NoScript) => return Read::NoScript,
            _ => Answer::Fault(cause(&error.into())),
        },
        _ => return Read::OutOfStep,
    })
}

fn holder_of(number: i64) -> Option<Holder> {
    Some(match number {
        0 => Holder::One,
        1 => Holder::Readers,
        2 => Holder::Gate,
        3 => Holder::Turn,
        _ => return None,
    })
}

/// The inner `None` is without an end; the outer one a number that no server says.
fn left_of(millis: i64) -> Option<Option<Duration>> {
    match millis {
        -1 => Some(None),
        -2 => Some(Some(Duration::ZERO)), // gone since
        _ => Some(Some(Duration::from_millis(u64::try_from(millis).ok()?))),
    }
}

/// Reads a reply to the question of [`write_left`].
pub(crate) fn read_left(reply: Value) -> Read {
    let left = match reply {
        Value::Int(left) => left_of(left),
        Value::ServerError(_) => Some(None), // nobody may say
        _ => None,
    };
    match left {
        Some(left) => Read::Answer(Answer::Held(Holder::One, left)),
        None => Read::OutOfStep,
    }
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
            let exclusive = |reply| read(verb, Claim::Exclusive, reply);
            assert!(matches!(exclusive(Value::Okay), Read::Answer(Answer::Yes)));
            assert!(matches!(exclusive(Value::Nil), Read::Refused));
            assert!(matches!(exclusive(Value::Int(1)), Read::OutOfStep));
            for claim in [Claim::Read, Claim::Write] {
                let read = |reply| read(verb, claim, reply);
                assert!(matches!(read(Value::Int(1)), Read::Answer(Answer::Yes)));
                for bad in [Value::Okay, Value::Nil, Value::Int(0)] {
                    assert!(matches!(read(bad), Read::OutOfStep));
                }
                for (holder, left, expected) in [
                    (0, -1, Answer::Held(Holder::One, None)),
                    (1, 70, Answer::Held(Holder::Readers, Some(ms(70)))),
                    (2, 0, Answer::Held(Holder::Gate, Some(ms(0)))),
                    (3, -2, Answer::Held(Holder::Turn, Some(ms(0)))),
                ] {
                    let reply = Value::Array(vec![Value::Int(holder), Value::Int(left)]);
                    assert!(matches!(read(reply), Read::Answer(answer) if answer == expected));
                }
                for bad in [[4, 0], [-1, 0], [0, -3]] {
                    let reply = Value::Array(bad.map(Value::Int).to_vec());
                    assert!(matches!(read(reply), Read::OutOfStep), "{bad:?}");
                }
            }
        }
        for (reply, expected) in [
            (-2, Some(ms(0))),
            (-1, None),
            (0, Some(ms(0))),
            (70, Some(ms(70))),
        ] {
            let read = read_left(Value::Int(reply));
            assert!(
                matches!(read, Read::Answer(Answer::Held(Holder::One, left)) if left == expected)
            );
        }
        assert!(matches!(read_left(Value::Int(-3)), Read::OutOfStep));
        assert!(matches!(read_left(Value::Okay), Read::OutOfStep));
        for verb in [Verb::Extend, Verb::Downgrade, Verb::Release] {
            for (reply, expected) in [(1, Answer::Yes), (0, Answer::Absent), (-1, Answer::Foreign)]
            {
                let read = read(verb, Claim::Exclusive, Value::Int(reply));
                assert!(matches!(read, Read::Answer(answer) if answer == expected));
            }
            let two = read(verb, Claim::Exclusive, Value::Int(2));
            assert!(matches!(two, Read::OutOfStep));
        }
        let okay = read(Verb::Release, Claim::Exclusive, Value::Okay);
        assert!(matches!(okay, Read::OutOfStep));
    }

    #[test]
    fn errors_are_told_apart() {
        assert!(matches!(
            read(
                Verb::Release,
                Claim::Exclusive,
                error("NOSCRIPT No matching script.")
            ),
            Read::NoScript
        ));
        let fault = |line: &str| match read(Verb::Take, Claim::Exclusive, error(line)) {
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
