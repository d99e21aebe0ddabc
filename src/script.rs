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

/// Enters `member` into the sorted set `set`, to end in `life` ms.
macro_rules! enter {
    () => {
        "
redis.call('ZADD', set, now + life, member)"
    };
}

/// Lets the sorted set `set` end a second after an entry that ends in `life` ms, unless it ends later anyway.
macro_rules! keep {
    () => {
        "
if redis.call('PTTL', set) < life + 1000 then redis.call('PEXPIRE', set, life + 1000) end"
    };
}

/// Take read locks, for any number of readers that come together (rule S10).
///
/// 1. Refused while there is a writer.
/// 2. Refused while a place at the gate is alive, unless the readers have their turn, or the gate is not heeded.
/// 3. Who is refused and waits leaves a mark, unless the readers have their turn already.
/// 4. Otherwise: readers that have ended are swept out, and the tokens are entered.
///
/// KEYS: writer, readers, gate, turn. ARGV: TTL in ms, how long a mark stays in ms or 0 for none, 1 if the gate is heeded,
/// tokens. Reply: 1 granted to all, or who stands in the way of all (0 a writer, 2 the gate) and for how many ms (−1
/// without an end).
const READ: &str = concat!(
    "local some = redis.call('EXISTS', KEYS[1], KEYS[3]) > 0
local writer = some and redis.call('GET', KEYS[1])",
    now!(),
    "
local refused
if writer then
  refused = {0, redis.call('PTTL', KEYS[1])}
elseif some and ARGV[3] == '1' then
  local last = redis.call('ZRANGE', KEYS[3], -1, -1, 'WITHSCORES')[2]
  if last and tonumber(last) >= now and redis.call('GET', KEYS[4]) ~= 'given' then refused = {2, last - now} end
end
if refused then
  if ARGV[2] ~= '0' and redis.call('GET', KEYS[4]) ~= 'given' then
    redis.call('SET', KEYS[4], 'asked', 'PX', ARGV[2])
  end
  return refused
end
local set, life = KEYS[2], tonumber(ARGV[1])
redis.call('ZREMRANGEBYSCORE', set, '-inf', now - 1)
local entries = {}
for i = 4, #ARGV do
  entries[2 * i - 7], entries[2 * i - 6] = now + life, ARGV[i]
end
redis.call('ZADD', set, unpack(entries))",
    keep!(),
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
    "if redis.call('EXISTS', KEYS[1], KEYS[2], KEYS[4]) > 0 then
local writer = redis.call('GET', KEYS[1])
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
    keep!(),
    "
  end
  return refused
end
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
    keep!(),
    "
end
return 1"
);

/// Release read locks, of any number of readers that leave together.
///
/// 1. The tokens are taken out; the set then ends a second after the last of those that are left.
/// 2. One may be in the writer's place, where a downgrade did not come: then it is deleted there.
///
/// KEYS: writer, readers. ARGV: tokens. Reply: 1 all released; otherwise for each token 1, or 0 when it was not here or had
/// ended before.
const RELEASE_READ: &str = concat!(
    "local scores = redis.call('ZMSCORE', KEYS[2], unpack(ARGV))",
    now!(),
    "
local ended, all, found = {}, true, 0
for i, score in ipairs(scores) do
  if score then
    score = tonumber(score)
    if score > found then found = score end
    ended[i] = score >= now and 1 or 0
  elseif redis.call('GET', KEYS[1]) == ARGV[i] then
    ended[i] = redis.call('DEL', KEYS[1])
  else
    ended[i] = 0
  end
  all = all and ended[i] == 1
end
if found > 0 then
  redis.call('ZREM', KEYS[2], unpack(ARGV))
  local last = redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')[2]
  if last and tonumber(last) < found then redis.call('PEXPIREAT', KEYS[2], last + 1000) end
end
return all and 1 or ended"
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
    keep!(),
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

    /// Whether this can be told to a node in one call with `other`, which is before it in a batch: readers of one key that
    /// come, or leave, are granted, refused and released together.
    pub(crate) fn joins(&self, other: &Request) -> bool {
        self.is_of_readers()
            && other.is_of_readers()
            && (self.verb, self.ttl, self.refresh) == (other.verb, other.ttl, other.refresh)
            && self.lease.key() == other.lease.key()
    }

    /// Whether it does not matter which of two requests for one key comes first, if this holds for both.
    pub(crate) fn is_of_readers(&self) -> bool {
        matches!(self.verb, Verb::Take | Verb::Release) && self.lease.claim() == Claim::Read
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

    /// Appends the call of a request, with `cmd` as scratch space; of those that travel with it ([`Request::joins`])
    /// only the tokens.
    pub(crate) fn write<'a>(
        &self,
        request: &Request,
        joined: impl Iterator<Item = &'a Request>,
        cmd: &mut Cmd,
        wire: &mut Vec<u8>,
    ) {
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
                cmd.arg(ttl).arg(trace).arg(is_new).arg(token);
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
        for request in joined {
            cmd.arg(request.lease.token().text());
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
    /// A take was refused; for how long is asked with [`write_left`].
    Refused,
    /// The server has forgotten the scripts: the only answer after which a request is sent twice.
    NoScript,
    /// Not a reply to this: the connection is out of step and of no use any more.
    OutOfStep,
}

/// Reads a reply to a request; of a call for several to that which is number `place` in it.
pub(crate) fn read(request: &Request, place: usize, reply: &Value) -> Read {
    use Verb::{Downgrade, Extend, PutBack, Release, Take};
    let is_script = request.lease.claim() != Claim::Exclusive;
    Read::Answer(match (request.verb, reply) {
        (Take | PutBack, Value::Int(1)) if is_script => Answer::Yes,
        (Take | PutBack, Value::Array(refused)) if is_script => match refused[..] {
            [Value::Int(holder), Value::Int(left)] => match (holder_of(holder), left_of(left)) {
                (Some(holder), Some(left)) => Answer::Held(holder, left),
                _ => return Read::OutOfStep,
            },
            _ => return Read::OutOfStep,
        },
        (Take | PutBack, Value::Okay) if !is_script => Answer::Yes,
        (Take | PutBack, Value::Nil) if !is_script => return Read::Refused,
        (Release, Value::Array(each)) if is_script => match each.get(place) {
            Some(one @ Value::Int(_)) => return read(request, 0, one),
            _ => return Read::OutOfStep,
        },
        (Extend | Downgrade | Release, Value::Int(1)) => Answer::Yes,
        (Extend | Downgrade | Release, Value::Int(0)) => Answer::Absent,
        (Extend | Downgrade | Release, Value::Int(-1)) => Answer::Foreign,
        (_, Value::ServerError(error)) => match error.kind() {
            Some(ServerErrorKind::NoScript) => return Read::NoScript,
            _ => Answer::Fault(cause(&error.clone().into())),
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

/// Reads a reply to the question of [`write_left`]; `None` where it is not one.
pub(crate) fn read_left(reply: &Value) -> Option<Answer> {
    let left = match reply {
        Value::Int(left) => left_of(*left)?,
        Value::ServerError(_) => None, // nobody may say
        _ => return None,
    };
    Some(Answer::Held(Holder::One, left))
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
    use crate::lease::tests::lease_as;

    fn error(line: &str) -> Value {
        let wire = format!("-{line}\r\n");
        redis::parse_redis_value(wire.as_bytes()).unwrap_or(Value::Nil)
    }

    fn request(verb: Verb, claim: Claim) -> Request {
        Request::new(verb, &lease_as("x", claim), 30)
    }

    /// The answer that a reply is, if it is one.
    fn answer(verb: Verb, claim: Claim, reply: Value) -> Option<Answer> {
        match read(&request(verb, claim), 0, &reply) {
            Read::Answer(answer) => Some(answer),
            Read::OutOfStep => None,
            other => panic!("{other:?}"),
        }
    }

    fn held(by: Holder, millis: u64) -> Option<Answer> {
        Some(Answer::Held(by, Some(Duration::from_millis(millis))))
    }

    #[test]
    fn replies_to_a_take() {
        for verb in [Verb::Take, Verb::PutBack] {
            let exclusive = |reply| answer(verb, Claim::Exclusive, reply);
            assert_eq!(exclusive(Value::Okay), Some(Answer::Yes));
            assert_eq!(exclusive(Value::Int(1)), None);
            let nil = read(&request(verb, Claim::Exclusive), 0, &Value::Nil);
            assert!(matches!(nil, Read::Refused));
            for claim in [Claim::Read, Claim::Write] {
                assert_eq!(answer(verb, claim, Value::Int(1)), Some(Answer::Yes));
                for bad in [Value::Okay, Value::Nil, Value::Int(0)] {
                    assert_eq!(answer(verb, claim, bad), None);
                }
                for (holder, left, expected) in [
                    (0, -1, Some(Answer::Held(Holder::One, None))),
                    (1, 70, held(Holder::Readers, 70)),
                    (2, 0, held(Holder::Gate, 0)),
                    (3, -2, held(Holder::Turn, 0)),
                    (4, 0, None),
                    (-1, 0, None),
                    (0, -3, None),
                ] {
                    let reply = Value::Array(vec![Value::Int(holder), Value::Int(left)]);
                    assert_eq!(answer(verb, claim, reply), expected);
                }
            }
        }
        for (reply, expected) in [
            (-2, held(Holder::One, 0)),
            (-1, Some(Answer::Held(Holder::One, None))),
            (0, held(Holder::One, 0)),
            (70, held(Holder::One, 70)),
            (-3, None),
        ] {
            assert_eq!(read_left(&Value::Int(reply)), expected);
        }
        assert_eq!(read_left(&Value::Okay), None);
    }

    #[test]
    fn replies_to_one_that_has_a_token() {
        for verb in [Verb::Extend, Verb::Downgrade, Verb::Release] {
            for (reply, expected) in [
                (1, Some(Answer::Yes)),
                (0, Some(Answer::Absent)),
                (-1, Some(Answer::Foreign)),
                (2, None),
            ] {
                assert_eq!(answer(verb, Claim::Exclusive, Value::Int(reply)), expected);
            }
            assert_eq!(answer(verb, Claim::Write, Value::Okay), None);
        }
        // One reply for several that leave together.
        let reply = Value::Array(vec![Value::Int(1), Value::Int(0)]);
        let release = request(Verb::Release, Claim::Read);
        for (place, expected) in [(0, Some(Answer::Yes)), (1, Some(Answer::Absent)), (2, None)] {
            let answer = match read(&release, place, &reply) {
                Read::Answer(answer) => Some(answer),
                _ => None,
            };
            assert_eq!(answer, expected);
        }
    }

    #[test]
    fn errors_are_told_apart() {
        let forgotten = error("NOSCRIPT No matching script.");
        let release = request(Verb::Release, Claim::Exclusive);
        assert!(matches!(read(&release, 0, &forgotten), Read::NoScript));
        let fault = |line: &str| match answer(Verb::Take, Claim::Exclusive, error(line)) {
            Some(Answer::Fault(cause)) => cause,
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
