//! Replies parsed, and what they vote.

use std::time::Duration;

use redis::{ServerErrorKind, Value};

use crate::error::NodeFailure;
use crate::protocol::holder::NodeHolder;
use crate::protocol::kind::LeaseKind;
use crate::protocol::lease::NEVER_EXPIRES_AFTER;
use crate::protocol::permits::{FreePermits, MAX_PERMITS};
use crate::protocol::quorum::{Vote, VoteRule};
use crate::protocol::request::{Op, Request};
use crate::protocol::server_error::failure;
use crate::protocol::token::MAX_OWNER_LABEL;

/// A node's answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// Granted, extended or deleted.
    Done,
    /// Deleted, and so many heard of it.
    DoneNotified(u64),
    /// Somebody holds it.
    Holder(Box<NodeHolder>),
    /// Granted, with this number of the node's fence.
    Fenced(u64),
    /// Granted by a `Swap`, but there was nothing of the former token; with the number, if it is to have one.
    SwappedAbsent(Option<u64>),
    /// Refused because of somebody who holds it, for so long if that one does not extend it.
    Held(Blocker, Option<Duration>),
    /// This permit of a semaphore is held, and these are free. The next one of those that are held ends then.
    PermitTaken(FreePermits, Duration),
    /// The semaphore has so many permits here, and not as many as we say.
    PermitCountMismatch(u16),
    /// There is no such key.
    Absent,
    /// Another's token is there.
    OtherToken,
    /// An error reply, or none: nobody knows whether the request took effect.
    Failed(NodeFailure),
}

impl Reply {
    /// Whether what stands in the way has no end. Every lock of this library has one.
    pub(crate) fn is_endless(&self) -> bool {
        match self {
            Reply::Held(Blocker::Unknown, _) => false,
            Reply::Held(_, left) => left.is_none(),
            Reply::PermitTaken(_, next) => *next >= NEVER_EXPIRES_AFTER,
            _ => false,
        }
    }
}

/// Who stands in the way of a take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blocker {
    /// One that has the lock alone: another owner, or a writer.
    Owner,
    /// The same, of whom the node does not say how long.
    Unknown,
    /// The owner of this one of the lock's keys, of several.
    OwnerOfKey(usize),
    Readers,
    /// A writer that waits.
    WaitingWriter,
    /// Readers that waited and have their turn.
    ReaderTurn,
}

/// A reply, read as the answer to a request.
#[derive(Debug)]
pub(crate) enum ParsedReply {
    Reply(Reply),
    /// A take was refused; for how long is asked with [`encode_pttl`].
    RefusedAskTtl,
    /// The server has forgotten the scripts: the only answer after which a request is sent twice.
    ScriptMissing,
    /// Not a reply to this: the connection is out of step and of no use any more.
    ProtocolError,
}

/// Reads a reply to a request; of a call for several to that which is number `place` in it.
pub(crate) fn parse_reply(request: &Request, place: usize, reply: &Value) -> ParsedReply {
    use Op::{
        Acquire, Adopt, Downgrade, Extend, ForceRelease, Inspect, RaiseFence, Release, Restore,
        Swap, WakeListener,
    };
    let is_numbered = request.wants_fencing_token();
    let claim = request.lease.claim();
    let is_exclusive = claim == LeaseKind::Exclusive;
    let locks = request.lease.keys().as_slice().len();
    let is_script = !request.is_single_exclusive();
    ParsedReply::Reply(match (request.verb, reply) {
        (Acquire | Adopt, Value::Int(number @ 1..)) if is_numbered => {
            match u64::try_from(*number) {
                Ok(number) if number > 0 => Reply::Fenced(number),
                _ => return ParsedReply::ProtocolError,
            }
        }
        (Swap, Value::Int(0)) => Reply::OtherToken,
        (Swap, Value::Int(number @ ..=-1)) => {
            Reply::SwappedAbsent(is_numbered.then_some(number.unsigned_abs()))
        }
        (Swap, Value::Int(number @ 1..)) if is_numbered => Reply::Fenced(number.unsigned_abs()),
        (Swap, Value::Int(1)) => Reply::Done,
        (Acquire | Restore, Value::Int(1)) if is_script => Reply::Done,
        (Acquire | Restore, Value::Array(refused)) if is_script => match (claim, &refused[..]) {
            (LeaseKind::Permit { total: of, .. }, refused) => {
                match parse_permit_refusal(refused, of) {
                    Some(answer) => answer,
                    None => return ParsedReply::ProtocolError,
                }
            }
            (_, &[Value::Int(number), Value::Int(left)]) => {
                let holder = match is_exclusive {
                    true => parse_blocking_key(number, locks),
                    false => parse_blocker(number),
                };
                match (holder, parse_ttl(left)) {
                    (Some(holder), Some(left)) => Reply::Held(holder, left),
                    _ => return ParsedReply::ProtocolError,
                }
            }
            _ => return ParsedReply::ProtocolError,
        },
        (Acquire | Restore, Value::Okay) if !is_script => Reply::Done,
        (Acquire | Restore, Value::Nil) if !is_script => return ParsedReply::RefusedAskTtl,
        (Release, Value::Array(each)) if is_script => match each.get(place) {
            Some(one @ Value::Int(_)) => return parse_reply(request, 0, one),
            _ => return ParsedReply::ProtocolError,
        },
        (WakeListener, Value::Int(_)) => Reply::Done,
        (Inspect, Value::Array(said)) => match parse_holder(said) {
            Some(sight) => Reply::Holder(Box::new(sight)),
            None => return ParsedReply::ProtocolError,
        },
        (Inspect, Value::Int(0)) => Reply::Absent,
        (Downgrade | Release | ForceRelease, Value::Int(more)) if *more > 1 => {
            Reply::DoneNotified(*more as u64 - 1)
        }
        (Adopt | Extend | Downgrade | RaiseFence | Release | ForceRelease, Value::Int(1)) => {
            Reply::Done
        }
        (Adopt | Extend | Downgrade | RaiseFence | Release | ForceRelease, Value::Int(0)) => {
            Reply::Absent
        }
        (Adopt | Extend | Downgrade | RaiseFence | Release, Value::Int(-1)) => Reply::OtherToken,
        (_, Value::ServerError(error)) => match error.kind() {
            Some(ServerErrorKind::NoScript) => return ParsedReply::ScriptMissing,
            _ => Reply::Failed(failure(&error.clone().into())),
        },
        _ => return ParsedReply::ProtocolError,
    })
}

/// A label is at most as long as one can be set, and printable: a foreign client may have written anything.
fn parse_holder(said: &[Value]) -> Option<NodeHolder> {
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
    Some(NodeHolder {
        digest: String::from_utf8(digest.clone()).ok()?,
        owner: owner.chars().take(MAX_OWNER_LABEL).map(shown).collect(),
        remaining: parse_ttl(*left)?,
    })
}

fn parse_blocker(number: i64) -> Option<Blocker> {
    Some(match number {
        0 => Blocker::Owner,
        1 => Blocker::Readers,
        2 => Blocker::WaitingWriter,
        3 => Blocker::ReaderTurn,
        _ => return None,
    })
}

/// The refusal of one permit of so many.
fn parse_permit_refusal(refused: &[Value], of: u16) -> Option<Reply> {
    let number = |value: &Value| match value {
        Value::Int(number) => Some(*number),
        _ => None,
    };
    let numbers: Option<Vec<i64>> = refused.iter().map(number).collect();
    match numbers?[..] {
        [-1, permits] => {
            let permits = u16::try_from(permits).ok()?;
            let is_other = (1..=MAX_PERMITS).contains(&permits) && permits != of;
            is_other.then_some(Reply::PermitCountMismatch(permits))
        }
        [next, ref words @ ..] => {
            let next = Duration::from_millis(u64::try_from(next).ok()?);
            Some(Reply::PermitTaken(
                FreePermits::from_words(words, of)?,
                next,
            ))
        }
        [] => None,
    }
}

/// Who owns the lock with this number, of so many that are held as one.
fn parse_blocking_key(number: i64, locks: usize) -> Option<Blocker> {
    let number = usize::try_from(number).ok()?;
    match locks {
        1 => (number == 0).then_some(Blocker::Owner),
        _ => (number < locks).then_some(Blocker::OwnerOfKey(number)),
    }
}

/// The inner `None` is without an end, as one is that nobody lives to see; the outer one a number that no server says.
fn parse_ttl(millis: i64) -> Option<Option<Duration>> {
    let left = match millis {
        -1 => return Some(None),
        -2 => 0, // gone since
        _ => u64::try_from(millis).ok()?,
    };
    Some(Some(Duration::from_millis(left)).filter(|left| *left < NEVER_EXPIRES_AFTER))
}

/// Reads a reply to the question of [`encode_pttl`]; `None` where it is not one.
pub(crate) fn parse_pttl(reply: &Value) -> Option<Reply> {
    match reply {
        Value::Int(left) => Some(Reply::Held(Blocker::Owner, parse_ttl(*left)?)),
        Value::ServerError(_) => Some(Reply::Held(Blocker::Unknown, None)), // nobody may say
        _ => None,
    }
}

/// What a verb asks, as the tally counts it.
pub(crate) fn vote_rule(verb: Op) -> VoteRule {
    match verb {
        Op::Acquire | Op::Swap | Op::Restore => VoteRule::Acquire,
        _ => VoteRule::Ownership,
    }
}

/// An answer as a vote. A value of another type, for example, is a clear refusal: it will not go away by asking again.
pub(crate) fn vote_of(answer: Reply) -> Vote {
    match answer {
        Reply::Done | Reply::Fenced(_) | Reply::DoneNotified(_) | Reply::Holder(_) => Vote::Granted,
        Reply::SwappedAbsent(_) => Vote::Granted,
        Reply::Held(by, remaining) => Vote::Refused(match by {
            Blocker::Owner | Blocker::Unknown | Blocker::OwnerOfKey(_) => {
                NodeFailure::Held { remaining }
            }
            Blocker::Readers => NodeFailure::HeldByReaders { remaining },
            // Who comes in during the turn may stay for longer.
            Blocker::ReaderTurn => NodeFailure::HeldByReaders { remaining: None },
            Blocker::WaitingWriter => NodeFailure::WriterWaiting { remaining },
        }),
        Reply::PermitTaken(_, next) => Vote::Refused(NodeFailure::Held {
            remaining: Some(next).filter(|next| *next < NEVER_EXPIRES_AFTER),
        }),
        Reply::PermitCountMismatch(permits) => Vote::Refused(NodeFailure::PermitCountMismatch {
            permits: u32::from(permits),
        }),
        Reply::Absent | Reply::OtherToken => Vote::Refused(NodeFailure::NotOurs),
        Reply::Failed(cause @ NodeFailure::Quarantined { .. }) => Vote::Refused(cause),
        Reply::Failed(cause) if cause.is_permanent() => Vote::Refused(cause),
        Reply::Failed(cause) => Vote::Fault(cause),
    }
}
