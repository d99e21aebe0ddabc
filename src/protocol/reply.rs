//! Replies parsed, and what they vote.

use std::time::Duration;

use redis::{ServerErrorKind, Value};

use crate::error::Cause;
use crate::protocol::holder::Sight;
use crate::protocol::kind::Claim;
use crate::protocol::lease::FOR_EVER;
use crate::protocol::permits::{Free, MOST_PERMITS};
use crate::protocol::quorum::{Question, Vote};
use crate::protocol::request::{Request, Verb};
use crate::protocol::server_error::cause;
use crate::protocol::token::MAX_OWNER;

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

/// What a verb asks, as the tally counts it.
pub(crate) fn question(verb: Verb) -> Question {
    match verb {
        Verb::Take | Verb::Swap | Verb::PutBack => Question::Take,
        _ => Question::Mine,
    }
}

/// An answer as a vote. A value of another type, for example, is a clear refusal: it will not go away by asking again.
pub(crate) fn vote(answer: Answer) -> Vote {
    match answer {
        Answer::Yes | Answer::Numbered(_) | Answer::Heard(_) | Answer::Seen(_) => Vote::Granted,
        Answer::Anew(_) => Vote::Granted,
        Answer::Held(by, remaining) => Vote::Refused(match by {
            Holder::One | Holder::Unknown | Holder::Of(_) => Cause::Held { remaining },
            Holder::Readers => Cause::Readers { remaining },
            // Who comes in during the turn may stay for longer.
            Holder::Turn => Cause::Readers { remaining: None },
            Holder::Gate => Cause::WriterWaiting { remaining },
        }),
        Answer::NotThisOne(_, next) => Vote::Refused(Cause::Held {
            remaining: Some(next).filter(|next| *next < FOR_EVER),
        }),
        Answer::OtherPermits(permits) => Vote::Refused(Cause::OtherPermits {
            permits: u32::from(permits),
        }),
        Answer::Absent | Answer::Foreign => Vote::Refused(Cause::NotOurs),
        Answer::Fault(cause @ Cause::Quarantined { .. }) => Vote::Refused(cause),
        Answer::Fault(cause) if cause.is_lasting() => Vote::Refused(cause),
        Answer::Fault(cause) => Vote::Fault(cause),
    }
}
