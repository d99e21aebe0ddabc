//! What we say to a node, and what its answers mean.
//!
//! A take of an exclusive lock with one key is Redis' own `SET NX PX`, half as dear to a server as a script that says the same; who is
//! refused asks how long the holder has left. What must look before it acts is an atomic script, sent by its SHA-1
//! (`EVALSHA`), with all keys in KEYS and integers as replies.

use std::cell::Cell;
use std::error::Error;
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use std::{fmt, io};

use redis::{Cmd, RedisError, RedisWrite, ServerError, ServerErrorKind, ToRedisArgs, Value};

use crate::config::settings::MAX_OWNER;
use crate::error::Cause;
use crate::protocol::holder::Sight;
use crate::protocol::key::{Key, NodeKey};
use crate::protocol::lease::{Claim, FOR_EVER, Lease};
use crate::protocol::permits::{Free, MOST_PERMITS};
use crate::protocol::scripts::{ENDS, SCRIPTS, Script};
use crate::telemetry::observer::NodeReply;

/// So many characters of an error are passed on.
const MOST_WORDS: usize = 200;
/// How servers say that a script may not do something: Valkey and Redis from 7.2 on, Redis 7.0, and 6.2.
const DENIED_IN_SCRIPT: [&str; 3] = [
    "NOPERM",
    "ACL failure in script",
    "The user executing the script",
];

/// What a request asks a node to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    /// Give us the lock if it is free, as in the Redlock text ("Correct implementation with a single instance"):
    /// `SET NX PX`, or for several keys a script, since they are had together or not at all. A foreign value of any kind is
    /// left untouched.
    Take,
    /// Put our token in the place of one that was handed over to us.
    Adopt,
    /// Give the lock of one thread to the next of the same process in one step: our token in the place of the former one, or
    /// of none.
    Swap,
    /// Keep it for us for longer.
    Extend,
    /// Take it again on a node that lost it while a quorum kept it: the same command as `Take`, the same checks. Only the
    /// gate and the turns, which are for newcomers, do not count.
    PutBack,
    /// Make a write lock a read lock.
    Downgrade,
    /// Raise the fence of a lock that is ours, or is about to be.
    Raise,
    /// Wake our own listener: a message to its private channel, which has the name of the lease's key.
    Knock,
    /// Tell who holds an exclusive lock, for an operator to see.
    Tell,
    /// Delete an exclusive lock whoever holds it, since an operator says so.
    Break,
    /// Delete it if it is ours. Also the undo of an attempt, and the leaving of a place at the gate.
    Release,
}

impl Verb {
    /// Whether it can bring a lease's key into being.
    pub(crate) fn grants(self) -> bool {
        matches!(self, Verb::Take | Verb::Adopt | Verb::Swap | Verb::PutBack)
    }
}

/// What the log calls it.
impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verb::Take => "acquire",
            Verb::Adopt => "adopt",
            Verb::Swap => "handoff",
            Verb::Extend => "extend",
            Verb::PutBack => "restore",
            Verb::Downgrade => "downgrade",
            Verb::Raise => "raise the fence",
            Verb::Knock => "publish",
            Verb::Tell => "holder",
            Verb::Break => "break",
            Verb::Release => "release",
        })
    }
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
    /// Whether those that wait are to hear of it: of a release or a downgrade, never of an undo.
    pub(crate) publish: bool,
    /// For a `Take` by a writer that waits: its place at the gate.
    pub(crate) place: Option<Arc<Lease>>,
    /// For a `Take`, an `Adopt` or a `Swap` that is to be numbered, and for a `Raise`: what the node's fence is to be at least.
    pub(crate) fence: Option<u64>,
    /// As it goes over the wire, where several nodes are told the same ([`with_wire`]).
    pub(crate) wire: Option<Arc<[u8]>>,
    /// For an `Adopt` or a `Swap`: the lease whose token was handed over.
    pub(crate) former: Option<Arc<Lease>>,
}

impl Request {
    /// A request that leaves no traces of waiting and gives no turn.
    pub(crate) fn new(verb: Verb, lease: &Arc<Lease>, ttl: u64) -> Request {
        Request {
            verb,
            lease: Arc::clone(lease),
            ttl,
            refresh: Duration::ZERO,
            publish: false,
            place: None,
            fence: None,
            wire: None,
            former: None,
        }
    }

    /// The leases that this can leave something of on a node.
    pub(crate) fn leases(&self) -> impl Iterator<Item = &Arc<Lease>> {
        std::iter::once(&self.lease).chain(&self.place)
    }

    /// Whether both speak of one token, so that it matters to a node which of them comes first.
    pub(crate) fn shares_a_token(&self, other: &Request) -> bool {
        let mut ours = self.tokens();
        ours.any(|id| other.tokens().any(|other| other == id))
    }

    fn tokens(&self) -> impl Iterator<Item = u64> {
        let leases = self.leases().chain(&self.former);
        leases.map(|lease| lease.token().id())
    }

    /// Whether it is a command of Redis' own, which a server never asks to have again.
    pub(crate) fn is_set(&self) -> bool {
        matches!(self.verb, Verb::Take | Verb::PutBack) && self.is_plain()
    }

    /// Whether it is about one key of an exclusive lock, and no number of it is wanted.
    fn is_plain(&self) -> bool {
        let is_one = self.lease.keys().all().len() == 1;
        is_one && self.lease.claim() == Claim::Exclusive && !self.is_numbered()
    }

    /// Whether a grant is to come with a number of the node's fence.
    fn is_numbered(&self) -> bool {
        matches!(self.verb, Verb::Take | Verb::Adopt | Verb::Swap) && self.fence.is_some()
    }

    /// Whether this can be told to a node in one call with `other`, which is before it in a batch: readers of one key that
    /// come, or leave, are granted, refused and released together.
    pub(crate) fn joins(&self, other: &Request) -> bool {
        self.is_of_readers()
            && other.is_of_readers()
            && (self.verb, self.ttl, self.refresh) == (other.verb, other.ttl, other.refresh)
            && self.publish == other.publish
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
    /// Deleted, and so many heard of it.
    Heard(u64),
    /// Somebody holds it.
    Seen(Box<Sight>),
    /// Granted, with this number of the node's fence.
    Numbered(u64),
    /// Granted by a `Swap`, but there was nothing of the former token; with the number, if it is to have one.
    Anew(Option<u64>),
    /// Refused because of somebody who holds it, for so long if that one does not extend it.
    Held(Holder, Option<Duration>),
    /// This permit of a semaphore is held, and these are free. The next one of those that are held ends then.
    NotThisOne(Free, Duration),
    /// The semaphore has so many permits here, and not as many as we say.
    OtherPermits(u16),
    /// There is no such key.
    Absent,
    /// Another's token is there.
    Foreign,
    /// An error reply, or none: nobody knows whether the request took effect.
    Fault(Cause),
}

impl Answer {
    /// Whether what stands in the way has no end. Every lock of this library has one.
    pub(crate) fn is_endless(&self) -> bool {
        match self {
            Answer::Held(Holder::Unknown, _) => false,
            Answer::Held(_, left) => left.is_none(),
            Answer::NotThisOne(_, next) => *next >= FOR_EVER,
            _ => false,
        }
    }

    /// The same for an observer.
    pub(crate) fn reply(&self) -> NodeReply {
        match self {
            Answer::Yes | Answer::Heard(_) | Answer::Numbered(_) | Answer::Seen(_) => {
                NodeReply::Done
            }
            Answer::Anew(_) => NodeReply::Done,
            Answer::Held(..) | Answer::Absent | Answer::Foreign => NodeReply::Refused,
            Answer::NotThisOne(..) | Answer::OtherPermits(_) => NodeReply::Refused,
            Answer::Fault(_) => NodeReply::Fault,
        }
    }
}

/// Who stands in the way of a take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    /// One that has the lock alone: another owner, or a writer.
    One,
    /// The same, of whom the node does not say how long.
    Unknown,
    /// The owner of this one of the lock's keys, of several.
    Of(usize),
    Readers,
    /// A writer that waits.
    Gate,
    /// Readers that waited and have their turn.
    Turn,
}

/// The scripts, with the SHA-1 sums under which every server knows them that has had them before.
static HASHED: LazyLock<[redis::Script; SCRIPTS.len()]> =
    LazyLock::new(|| SCRIPTS.map(redis::Script::new));

/// Appends the command that loads a script.
pub(crate) fn write_load(script: Script, wire: &mut Vec<u8>) {
    let mut load = redis::cmd("SCRIPT");
    load.arg("LOAD").arg(SCRIPTS[script as usize]);
    load.write_packed_command(wire);
}

/// Appends the commands that load what is to be there from the beginning. Each is answered by its sum.
pub(crate) fn write_loads(wire: &mut Vec<u8>) {
    ENDS.iter().for_each(|script| write_load(*script, wire));
}

/// The sums that [`write_loads`] is answered by.
pub(crate) fn sums() -> impl Iterator<Item = &'static str> {
    ENDS.iter()
        .map(|script| HASHED[*script as usize].get_hash())
}

/// Why a server lacks a script that it was to load, if that was its answer.
pub(crate) fn unloaded(answer: &Value) -> Cause {
    match answer {
        Value::ServerError(error) => cause(&error.clone().into()),
        _ => Cause::Server("NOSCRIPT after SCRIPT LOAD".into()),
    }
}

/// Appends the call of a request, with `cmd` as scratch space; of those that travel with it ([`Request::joins`])
/// only the tokens. Answers which script it is of, which the server may not have.
pub(crate) fn write<'a>(
    request: &Request,
    joined: impl Iterator<Item = &'a Request>,
    cmd: &mut Cmd,
    wire: &mut Vec<u8>,
) -> Option<Script> {
    let (key, ttl) = (request.lease.key(), request.ttl);
    let keys = request.lease.keys().all().iter();
    let (owners, fences) = (
        keys.clone().map(Key::owner),
        keys.map(|key| key.derived(":fence")),
    );
    let locks = owners.len();
    let token = request.lease.token().text();
    let trace = millis(request.trace());
    let (owner, readers) = (key.owner(), key.derived(":readers"));
    let (gate, turn) = (key.derived(":gate"), key.derived(":turn"));
    let is_new = u8::from(request.verb == Verb::Take);
    let channel = if request.publish { key.wire() } else { "" };
    let publish = if request.publish { "1" } else { "" };
    let mut script = None;
    cmd.clear();
    match (request.verb, request.lease.claim()) {
        (Verb::Take, Claim::Exclusive) if request.fence.is_some() => {
            script = call(Script::Take, cmd, owners.chain(fences));
            cmd.arg(token).arg(ttl).arg(locks);
        }
        (Verb::Take | Verb::PutBack, Claim::Exclusive) if locks > 1 => {
            script = call(Script::Take, cmd, owners);
            cmd.arg(token).arg(ttl).arg(locks);
        }
        (Verb::Take | Verb::PutBack, Claim::Exclusive) => {
            cmd.arg("SET").arg(owner).arg(token);
            cmd.arg("NX").arg("PX").arg(ttl);
        }
        (Verb::Take | Verb::PutBack, Claim::Read) => {
            script = call(Script::Read, cmd, [owner, readers, gate, turn]);
            cmd.arg(ttl).arg(trace).arg(is_new).arg(token);
        }
        (Verb::Take | Verb::PutBack, Claim::Write) => {
            let place = request.place.as_ref();
            let fence = fences.filter(|_| request.fence.is_some());
            let keys = [owner, readers, gate, turn].into_iter();
            script = call(Script::Write, cmd, keys.chain(fence));
            cmd.arg(token).arg(ttl);
            cmd.arg(place.map_or(0, |_| trace)).arg(is_new);
            cmd.arg(place.map_or("", |place| place.token().text()));
        }
        (Verb::Adopt, _) => {
            let fences = fences.filter(|_| request.fence.is_some());
            script = call(Script::Adopt, cmd, owners.chain(fences));
            let former = request.former.as_ref();
            cmd.arg(former.map_or("", |lease| lease.token().text()));
            cmd.arg(token).arg(ttl).arg(locks);
        }
        (Verb::Swap, _) => {
            let fences = fences.filter(|_| request.fence.is_some());
            script = call(Script::Swap, cmd, owners.chain(fences));
            let former = request.former.as_ref();
            cmd.arg(former.map_or("", |lease| lease.token().text()));
            cmd.arg(token).arg(ttl);
        }
        (Verb::Extend, Claim::Exclusive | Claim::Write) => {
            script = call(Script::Extend, cmd, owners);
            cmd.arg(token).arg(ttl);
        }
        (Verb::Extend, Claim::Read) => {
            script = call(Script::ExtendRead, cmd, [owner, readers]);
            cmd.arg(token).arg(ttl);
        }
        (Verb::Release, Claim::Exclusive) => {
            let release = match locks {
                1 => Script::Release,
                _ => Script::ReleaseAll,
            };
            script = call(release, cmd, owners);
            cmd.arg(token).arg(publish);
        }
        (Verb::Release, Claim::Read) => {
            script = call(Script::ReleaseRead, cmd, [owner, readers, turn]);
            cmd.arg(channel).arg(millis(request.refresh)).arg(token);
        }
        (Verb::Release, Claim::Write) => {
            script = call(Script::ReleaseWrite, cmd, [owner, turn]);
            cmd.arg(token).arg(millis(request.refresh)).arg(channel);
        }
        (Verb::Tell, _) => script = call(Script::Tell, cmd, [owner]),
        (Verb::Break, _) => {
            script = call(Script::Break, cmd, [owner]);
            cmd.arg(channel);
        }
        (Verb::Take | Verb::PutBack, Claim::Permit { slot, of }) => {
            script = call(Script::Permit, cmd, owners);
            cmd.arg(token).arg(ttl).arg(slot).arg(of);
        }
        (Verb::Extend, Claim::Permit { slot, .. }) => {
            script = call(Script::ExtendPermit, cmd, owners);
            cmd.arg(token).arg(ttl).arg(slot);
        }
        (Verb::Release, Claim::Permit { slot, .. }) => {
            script = call(Script::ReleasePermit, cmd, owners);
            cmd.arg(token).arg(channel).arg(slot);
        }
        (Verb::Knock, _) => {
            cmd.arg("PUBLISH").arg(key.wire()).arg("");
        }
        // A place at the gate is taken by the attempts of its writer, and only ever left by itself.
        (_, Claim::Gate) => {
            cmd.arg("ZREM").arg(gate).arg(token);
        }
        (Verb::Raise, _) => {
            script = call(Script::Raise, cmd, owners.chain(fences));
            cmd.arg(token).arg(request.fence.unwrap_or_default());
        }
        (Verb::Downgrade, _) => {
            script = call(Script::Downgrade, cmd, [owner, readers, turn]);
            cmd.arg(token).arg(ttl);
            cmd.arg(millis(request.refresh)).arg(channel);
        }
    }
    for request in joined {
        cmd.arg(request.lease.token().text());
    }
    cmd.write_packed_command(wire);
    script
}

/// Calls `tell` with a request as it goes over the wire to every node.
pub(crate) fn with_wire<T>(request: &Request, tell: impl FnOnce(&[u8]) -> T) -> T {
    thread_local! {
        /// Kept for its memory. Empty while it is in use.
        static SCRATCH: Cell<(Option<Cmd>, Vec<u8>)> = const { Cell::new((None, Vec::new())) };
    }
    // In a destructor at the end of a thread there is none any more.
    let (cmd, mut wire) = SCRATCH.try_with(Cell::take).unwrap_or_default();
    let mut cmd = cmd.unwrap_or_default();
    wire.clear();
    write(request, std::iter::empty(), &mut cmd, &mut wire);
    let told = tell(&wire);
    _ = SCRATCH.try_with(|scratch| scratch.set((Some(cmd), wire)));
    told
}

/// The same for one that the server may not have the script of, which is loaded before: one reply more.
pub(crate) fn write_with_script<'a>(
    request: &Request,
    joined: impl Iterator<Item = &'a Request>,
    cmd: &mut Cmd,
    wire: &mut Vec<u8>,
) {
    let mut call = Vec::new();
    // Who has no script cannot lack it.
    let script = write(request, joined, cmd, &mut call).unwrap_or(Script::Release);
    write_load(script, wire);
    wire.append(&mut call);
}

fn call<'a, I>(script: Script, cmd: &mut Cmd, keys: I) -> Option<Script>
where
    I: IntoIterator<Item = NodeKey<'a>, IntoIter: Clone>,
{
    let keys = keys.into_iter();
    cmd.arg("EVALSHA").arg(HASHED[script as usize].get_hash());
    cmd.arg(keys.clone().count());
    for key in keys {
        cmd.arg(key);
    }
    Some(script)
}

impl ToRedisArgs for NodeKey<'_> {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        match self {
            NodeKey::Lock(key) => out.write_arg(key.wire().as_bytes()),
            derived => out.write_arg_fmt(derived),
        }
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
    use Verb::{Adopt, Break, Downgrade, Extend, Knock, PutBack, Raise, Release, Swap, Take, Tell};
    let is_numbered = request.is_numbered();
    let claim = request.lease.claim();
    let is_exclusive = claim == Claim::Exclusive;
    let locks = request.lease.keys().all().len();
    let is_script = !request.is_plain();
    Read::Answer(match (request.verb, reply) {
        (Take | Adopt, Value::Int(number @ 1..)) if is_numbered => match u64::try_from(*number) {
            Ok(number) if number > 0 => Answer::Numbered(number),
            _ => return Read::OutOfStep,
        },
        (Swap, Value::Int(0)) => Answer::Foreign,
        (Swap, Value::Int(number @ ..=-1)) => {
            Answer::Anew(is_numbered.then_some(number.unsigned_abs()))
        }
        (Swap, Value::Int(number @ 1..)) if is_numbered => Answer::Numbered(number.unsigned_abs()),
        (Swap, Value::Int(1)) => Answer::Yes,
        (Take | PutBack, Value::Int(1)) if is_script => Answer::Yes,
        (Take | PutBack, Value::Array(refused)) if is_script => match (claim, &refused[..]) {
            (Claim::Permit { of, .. }, refused) => match not_this_one(refused, of) {
                Some(answer) => answer,
                None => return Read::OutOfStep,
            },
            (_, &[Value::Int(number), Value::Int(left)]) => {
                let holder = match is_exclusive {
                    true => owner_of(number, locks),
                    false => holder_of(number),
                };
                match (holder, left_of(left)) {
                    (Some(holder), Some(left)) => Answer::Held(holder, left),
                    _ => return Read::OutOfStep,
                }
            }
            _ => return Read::OutOfStep,
        },
        (Take | PutBack, Value::Okay) if !is_script => Answer::Yes,
        (Take | PutBack, Value::Nil) if !is_script => return Read::Refused,
        (Release, Value::Array(each)) if is_script => match each.get(place) {
            Some(one @ Value::Int(_)) => return read(request, 0, one),
            _ => return Read::OutOfStep,
        },
        (Knock, Value::Int(_)) => Answer::Yes,
        (Tell, Value::Array(said)) => match sight(said) {
            Some(sight) => Answer::Seen(Box::new(sight)),
            None => return Read::OutOfStep,
        },
        (Tell, Value::Int(0)) => Answer::Absent,
        (Downgrade | Release | Break, Value::Int(more)) if *more > 1 => {
            Answer::Heard(*more as u64 - 1)
        }
        (Adopt | Extend | Downgrade | Raise | Release | Break, Value::Int(1)) => Answer::Yes,
        (Adopt | Extend | Downgrade | Raise | Release | Break, Value::Int(0)) => Answer::Absent,
        (Adopt | Extend | Downgrade | Raise | Release, Value::Int(-1)) => Answer::Foreign,
        (_, Value::ServerError(error)) => match error.kind() {
            Some(ServerErrorKind::NoScript) => return Read::NoScript,
            _ => Answer::Fault(cause(&error.clone().into())),
        },
        _ => return Read::OutOfStep,
    })
}

/// A label is at most as long as one can be set, and printable: a foreign client may have written anything.
fn sight(said: &[Value]) -> Option<Sight> {
    let [
        Value::BulkString(digest),
        Value::BulkString(owner),
        Value::Int(left),
    ] = said
    else {
        return None;
    };
    let owner = String::from_utf8_lossy(owner);
    let shown = |c: char| if c.is_control() { ' ' } else { c };
    Some(Sight {
        digest: String::from_utf8(digest.clone()).ok()?,
        owner: owner.chars().take(MAX_OWNER).map(shown).collect(),
        remaining: left_of(*left)?,
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

/// The refusal of one permit of so many.
fn not_this_one(refused: &[Value], of: u16) -> Option<Answer> {
    let number = |value: &Value| match value {
        Value::Int(number) => Some(*number),
        _ => None,
    };
    let numbers: Option<Vec<i64>> = refused.iter().map(number).collect();
    match numbers?[..] {
        [-1, permits] => {
            let permits = u16::try_from(permits).ok()?;
            let is_other = (1..=MOST_PERMITS).contains(&permits) && permits != of;
            is_other.then_some(Answer::OtherPermits(permits))
        }
        [next, ref words @ ..] => {
            let next = Duration::from_millis(u64::try_from(next).ok()?);
            Some(Answer::NotThisOne(Free::read(words, of)?, next))
        }
        [] => None,
    }
}

/// Who owns the lock with this number, of so many that are held as one.
fn owner_of(number: i64, locks: usize) -> Option<Holder> {
    let number = usize::try_from(number).ok()?;
    match locks {
        1 => (number == 0).then_some(Holder::One),
        _ => (number < locks).then_some(Holder::Of(number)),
    }
}

/// The inner `None` is without an end, as one is that nobody lives to see; the outer one a number that no server says.
fn left_of(millis: i64) -> Option<Option<Duration>> {
    let left = match millis {
        -1 => return Some(None),
        -2 => 0, // gone since
        _ => u64::try_from(millis).ok()?,
    };
    Some(Some(Duration::from_millis(left)).filter(|left| *left < FOR_EVER))
}

/// Reads a reply to the question of [`write_left`]; `None` where it is not one.
pub(crate) fn read_left(reply: &Value) -> Option<Answer> {
    match reply {
        Value::Int(left) => Some(Answer::Held(Holder::One, left_of(*left)?)),
        Value::ServerError(_) => Some(Answer::Held(Holder::Unknown, None)), // nobody may say
        _ => None,
    }
}

/// What an error of `redis` means to us. The one place where they are told apart.
pub(crate) fn cause(error: &RedisError) -> Cause {
    cause_without(error, "")
}

/// The same where the words are not to have a secret in them: a server or proxy may repeat what it does not understand, and
/// that may be how we log in.
pub(crate) fn cause_without(error: &RedisError, secret: &str) -> Cause {
    if error.is_timeout() {
        return Cause::TimedOut;
    }
    let text = match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{code} {detail}"),
        _ => error.to_string(),
    };
    // An error inside a script keeps its code only in its text, if anywhere.
    let is_of_type = text.contains("WRONGTYPE");
    let is_denied = DENIED_IN_SCRIPT.iter().any(|words| text.contains(words));
    let text = in_short(&text, secret);
    match (error.kind(), error.code()) {
        (redis::ErrorKind::AuthenticationFailed, _) => Cause::Denied(text),
        (_, Some("NOAUTH" | "WRONGPASS" | "NOPERM" | "DENIED")) => Cause::Denied(text),
        (_, Some("WRONGTYPE")) => Cause::WrongType,
        (_, Some("CROSSSLOT")) => Cause::CrossSlot,
        (_, Some(_)) if is_of_type => Cause::WrongType,
        (_, Some(_)) if is_denied => Cause::Denied(text),
        (_, Some(_)) => Cause::Server(text),
        // In place of the page that `rustls` writes on it.
        _ if is_end(error) => Cause::Unreachable("the other side closed the connection".to_owned()),
        _ => Cause::Unreachable(text),
    }
}

/// Whether an error reply to AUTH refuses the credentials. Others are about the connection or the server.
pub(crate) fn is_about_auth(error: &ServerError) -> bool {
    // `ERR` covers: no password is set on the server (two wordings), and a wrong one before Redis 6.
    const WORDS: [&str; 3] = [
        "called without any password configured",
        "no password is set",
        "invalid password",
    ];
    match error.code() {
        "NOAUTH" | "WRONGPASS" | "NOPERM" | "DENIED" => true,
        _ => error
            .details()
            .is_some_and(|text| WORDS.iter().any(|words| text.contains(words))),
    }
}

/// Whether a server says with it that it is a replica. An error inside a script keeps its code only in its text.
pub(crate) fn is_read_only(cause: &Cause) -> bool {
    matches!(cause, Cause::Server(text) if text.contains("READONLY"))
}

/// The codes of errors with which a server refuses a command before it runs any of it.
const NOT_RUN: [&str; 16] = [
    "ASK",
    "BUSY",
    "CLUSTERDOWN",
    "CROSSSLOT",
    "LOADING",
    "MASTERDOWN",
    "MISCONF",
    "MOVED",
    "NOAUTH",
    "NOPERM",
    "NOREPLICAS",
    "NOSCRIPT",
    "OOM",
    "READONLY",
    "TRYAGAIN",
    "WRONGPASS",
];
/// How servers say that an error comes from a command within a script, which may have changed something before: Redis from 7.0
/// on and Valkey at the end of the text, Redis 6.2 at its beginning.
const WITHIN_SCRIPT: [&str; 4] = [
    "script:",
    "rror running script",
    "ACL failure in script",
    "executing the script",
];

/// Whether a server says with this error that it has run nothing of the command (rule S4): then a request to grant a lease has
/// left nothing to release. Of all other errors it is not known.
pub(crate) fn is_not_run(cause: &Cause) -> bool {
    let text = match cause {
        // Scripts read all that can fail on its type before they change anything.
        Cause::WrongType | Cause::CrossSlot => return true,
        Cause::Server(text) | Cause::Denied(text) => text,
        _ => return false,
    };
    // What says that it was within a script may be what was cut off.
    let is_within = WITHIN_SCRIPT.iter().any(|words| text.contains(words)) || text.ends_with('…');
    let is_unknown = text.starts_with("ERR unknown command");
    let code = code(text);
    !is_within && (is_unknown || NOT_RUN.contains(&code))
}

/// The first word of a server's error.
pub(crate) fn code(text: &str) -> &str {
    text.split(' ').next().unwrap_or_default()
}

/// The operating system's error, or that of TLS in its place.
pub(crate) fn io(error: &RedisError) -> Option<&io::Error> {
    let shared = error
        .source()?
        .downcast_ref::<Arc<dyn Error + Send + Sync>>()?;
    shared.downcast_ref()
}

fn is_end(error: &RedisError) -> bool {
    io(error).is_some_and(|error| error.kind() == io::ErrorKind::UnexpectedEof)
}

/// Whether the other side ended a connection that it had taken.
pub(crate) fn is_cut(error: &RedisError) -> bool {
    error.is_connection_dropped() && !error.is_connection_refusal()
}

/// Another's words as they are passed on: on one line, not too many, and without what a server was sent, which it repeats
/// where it does not know a command. That may have been a password; where `secret` is in them they are not passed on at all.
/// It is looked for in all that was said, since a part of it is a secret, too.
pub(crate) fn in_short(words: &str, secret: &str) -> String {
    let end = words
        .find(", with args beginning with")
        .unwrap_or(words.len());
    if !secret.is_empty() && words.find(secret).is_some_and(|at| at < end) {
        return "its words have the password in them".to_owned();
    }
    let mut chars = words[..end].chars();
    let mut short: String = chars
        .by_ref()
        .take(MOST_WORDS)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if chars.next().is_some() {
        short.push('…');
    }
    short
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::lease::tests::lease_as;

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
            (i64::MAX, Some(Answer::Held(Holder::One, None))),
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
                (-2, None),
                (3, (verb != Verb::Extend).then_some(Answer::Heard(2))),
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
        let far = "x".repeat(1_000);
        for line in [
            "NOAUTH Authentication required.",
            "NOPERM no",
            "WRONGPASS invalid username-password pair or user is disabled.",
            "DENIED Redis is running in protected mode because no password is set",
            // Inside a script: Redis 6.2, 7.0, and later ones.
            "ERR Error running script (call to f_1): @user_script:1: The user executing the script can't run this command",
            "ERR ACL failure in script: User joe has no permissions to run the 'zadd' command",
            "ERR NOPERM User joe has no permissions to run the 'zadd' command script: f_1",
            &format!("ERR {far} ACL failure in script"),
        ] {
            assert!(matches!(fault(line), Cause::Denied(_)), "{line}");
        }
        for line in [
            "READONLY You can't write",
            "LOADING Redis",
            "OOM command",
            "ERR max number of clients reached",
        ] {
            assert!(matches!(fault(line), Cause::Server(text) if text.contains(&line[..3])));
        }
        for line in [
            "WRONGTYPE Operation against a key",
            "ERR WRONGTYPE Operation against a key script: f_1",
        ] {
            assert_eq!(fault(line), Cause::WrongType, "{line}");
        }
    }

    #[test]
    fn error_before_a_command_runs_is_told_from_one_within_it() {
        let long = format!("NOPERM User {} has no permissions", "x".repeat(300));
        for (line, is_not_run) in [
            ("NOPERM No permissions to access a key", true),
            (
                "NOPERM User a has no permissions to run the 'script|load' command",
                true,
            ),
            (
                "NOPERM No permissions to access a key script: f2, on @user_script:5.",
                false,
            ),
            (&long, false),
            (
                "ERR The user executing the script can't run this command or subcommand",
                false,
            ),
            (
                "ERR Error running script (call to f_2): @user_script:5: ACL failure in script",
                false,
            ),
            ("NOAUTH Authentication required.", true),
            ("MOVED 3999 127.0.0.1:6381", true),
            ("ASK 3999 127.0.0.1:6381", true),
            (
                "TRYAGAIN Multiple keys request during rehashing of slot",
                true,
            ),
            (
                "CROSSSLOT Keys in request don't hash to the same slot",
                true,
            ),
            ("CLUSTERDOWN The cluster is down", true),
            ("LOADING Redis is loading the dataset in memory", true),
            (
                "READONLY You can't write against a read only replica.",
                true,
            ),
            (
                "READONLY You can't write against a read only replica. script: f2, on @user_script:5.",
                false,
            ),
            ("BUSY Redis is busy running a script.", true),
            ("MISCONF Redis is configured to save RDB snapshots", true),
            (
                "OOM command not allowed when used memory > 'maxmemory'.",
                true,
            ),
            (
                "OOM command not allowed when used memory > 'maxmemory'. script: f2, on @user_script:9.",
                false,
            ),
            (
                "ERR Error running script (call to f_2): @user_script:9: -OOM command not allowed",
                false,
            ),
            (
                "ERR unknown command 'EVALSHA', with args beginning with: 'f2' '1'",
                true,
            ),
            (
                "ERR unknown command `EVALSHA`, with args beginning with: `f2`, `1`, ",
                true,
            ),
            (
                "ERR Unknown Redis command called from script script: f2, on @user_script:1.",
                false,
            ),
            ("ERR value is not an integer or out of range", false),
            (
                "WRONGTYPE Operation against a key holding the wrong kind of value",
                true,
            ),
            ("SOMETHING else", false),
        ] {
            let Some(Answer::Fault(cause)) = answer(Verb::Take, Claim::Exclusive, error(line))
            else {
                panic!("{line}");
            };
            assert_eq!(super::is_not_run(&cause), is_not_run, "{line}");
        }
        for cause in [Cause::TimedOut, Cause::Unreachable("NOAUTH".into())] {
            assert!(!super::is_not_run(&cause), "{cause}");
        }
    }

    #[test]
    fn reply_to_auth_is_a_denial_only_in_words_about_auth() {
        for (line, expected) in [
            (
                "WRONGPASS invalid username-password pair or user is disabled.",
                true,
            ),
            ("NOAUTH Authentication required.", true),
            ("NOPERM no", true),
            ("DENIED Redis is running in protected mode", true),
            (
                "ERR AUTH <password> called without any password configured for the default user. Are you sure?",
                true,
            ),
            ("ERR Client sent AUTH, but no password is set", true),
            ("ERR invalid password", true),
            ("ERR max number of clients reached", false),
            (
                "ERR max number of clients + cluster connections reached",
                false,
            ),
            ("ERR unknown command 'AUTH'", false),
            ("LOADING Redis is loading the dataset in memory", false),
            ("MASTERDOWN Link with MASTER is down", false),
            ("ERR", false),
        ] {
            let Value::ServerError(error) = error(line) else {
                panic!("{line}");
            };
            assert_eq!(is_about_auth(&error), expected, "{line}");
        }
    }

    #[test]
    fn a_servers_words_are_passed_on_in_short() {
        let told = |line: &str| match answer(Verb::Take, Claim::Exclusive, error(line)) {
            Some(Answer::Fault(Cause::Server(text))) => text,
            other => panic!("{other:?}"),
        };
        let echo = "ERR unknown command 'AUTH', with args beginning with: 'joe' 's3cret' ";
        assert_eq!(told(echo), "ERR unknown command 'AUTH'");
        assert_eq!(told("ERR two\nlines\x1b[2J"), "ERR two lines [2J");
        let long = told(&format!("ERR {}", "é".repeat(1_000_000)));
        assert!(long.ends_with("é…") && long.chars().count() == MOST_WORDS + 1);
        let code = told(&"E".repeat(1_000_000));
        assert!(code.chars().count() == MOST_WORDS + 1);
        let far = format!("ERR {} WRONGTYPE", "x".repeat(1_000));
        let answer = answer(Verb::Take, Claim::Exclusive, error(&far));
        assert_eq!(answer, Some(Answer::Fault(Cause::WrongType)));
    }

    #[test]
    fn words_with_a_secret_in_them_are_not_passed_on_not_even_in_part() {
        let cut = format!("{}s3cret", "x".repeat(MOST_WORDS - 3));
        let long = "0123456789".repeat(30);
        let own = "p, with args beginning with";
        for (words, secret, is_hidden) in [
            ("not now: AUTH s3cret", "s3cret", true),
            ("not now: AUTH s3cret", "", false),
            ("not now", "s3cret", false),
            (&cut, "s3cret", true),
            (&format!("AUTH {long}"), &long, true),
            ("two\nlines", "two\nlines", true),
            (&format!("AUTH {own}"), own, true),
            // What it was sent is left out anyway.
            (
                "unknown 'AUTH', with args beginning with: 's3cret'",
                "s3cret",
                false,
            ),
        ] {
            let told = in_short(words, secret);
            assert_eq!(
                told.contains("password in them"),
                is_hidden,
                "{words}: {told}"
            );
            assert!(!told.contains("s3c") || secret.is_empty(), "{told}");
        }
    }

    /// Any reply, on the wire: those that mean something more often than others.
    fn reply() -> impl Strategy<Value = Vec<u8>> {
        let number = prop_oneof![-3..4_i64, any::<i64>(), Just(i64::MIN), Just(i64::MAX)];
        let words = [
            "+OK",
            "+QUEUED",
            "$-1",
            "*-1",
            "$0\r\n",
            "$2\r\nOK",
            "-NOSCRIPT",
            "-NOSCRIPT no",
            "-",
            "-ERR",
            "-NOAUTH x",
            "-WRONGTYPE",
            "-MOVED 1 h:1",
            "_",
            "#t",
            ",nan",
            ",1.5",
            "(123",
            "=7\r\ntxt:abc",
            "!5\r\nERR x",
            ">0",
            "%0",
        ];
        let leaf = prop_oneof![
            4 => number.prop_map(|n| format!(":{n}\r\n").into_bytes()),
            3 => proptest::sample::select(words.to_vec()).prop_map(|w| format!("{w}\r\n").into_bytes()),
            1 => proptest::collection::vec(any::<u8>(), 0..9).prop_map(|bytes| {
                [format!("${}\r\n", bytes.len()).as_bytes(), &bytes, b"\r\n"].concat()
            }),
            1 => "[^\r\n]{0,9}".prop_map(|text| format!("-{text}\r\n").into_bytes()),
        ];
        let nested = leaf.clone().prop_recursive(3, 12, 4, |inner| {
            let some = proptest::collection::vec(inner, 0..4);
            (0..5_usize, some).prop_map(|(kind, some)| {
                let (mark, count) = match kind {
                    0 => ('~', some.len()),
                    1 if some.len() % 2 == 0 => ('%', some.len() / 2),
                    1 => ('|', some.len() / 2),
                    _ => ('*', some.len()),
                };
                let mut wire = format!("{mark}{count}\r\n").into_bytes();
                wire.extend(some.concat());
                wire
            })
        });
        prop_oneof![leaf, nested]
    }

    proptest! {
        #[test]
        fn any_reply_is_an_answer_or_out_of_step(wire in reply(), place in 0..3_usize) {
            let Ok(value) = redis::parse_redis_value(&wire) else {
                return Ok(()); // as if the connection had ended
            };
            let number = match &value {
                Value::Int(number) => Some(*number),
                _ => None,
            };
            for verb in [
                Verb::Take, Verb::Extend, Verb::PutBack, Verb::Downgrade, Verb::Raise, Verb::Knock, Verb::Release,
            ] {
                for claim in [Claim::Exclusive, Claim::Read, Claim::Write, Claim::Gate] {
                    for fence in [None, Some(0)] {
                        let mut request = request(verb, claim);
                        request.fence = fence;
                        let is_numbered = verb == Verb::Take && fence.is_some();
                        match read(&request, place, &value) {
                            // Nothing but its own word is a grant.
                            Read::Answer(Answer::Yes) if matches!(verb, Verb::Take | Verb::PutBack) => {
                                let good = if claim == Claim::Exclusive && !is_numbered {
                                    value == Value::Okay
                                } else {
                                    number == Some(1)
                                };
                                prop_assert!(good, "{:?} {:?}", verb, value);
                            }
                            Read::Answer(Answer::Numbered(given)) => {
                                let same = number == i64::try_from(given).ok();
                                prop_assert!(is_numbered && same && given > 0);
                            }
                            Read::Answer(Answer::Heard(heard)) => prop_assert!(heard > 0),
                            Read::Answer(Answer::Fault(cause)) => {
                                let text = cause.to_string();
                                prop_assert!(text.chars().count() < MOST_WORDS + 50);
                                prop_assert!(!text.contains(char::is_control));
                            }
                            Read::Answer(_) | Read::OutOfStep => {}
                            Read::Refused => prop_assert_eq!(&value, &Value::Nil),
                            Read::NoScript => prop_assert!(matches!(value, Value::ServerError(_))),
                        }
                    }
                }
            }
            if let Some(left) = read_left(&value) {
                prop_assert!(matches!(left, Answer::Held(Holder::One | Holder::Unknown, _)));
            }
        }
    }
}
