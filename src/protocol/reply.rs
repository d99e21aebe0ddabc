//! Parses replies, and decides which vote each of them is (S6).
//!
//! - A reply that the request cannot have is a [`ParsedReply::ProtocolError`]: the connection is
//!   out of step, and no further reply on it counts (L2).
//! - Only the reply that the script or command documents is a grant (S1).
//! - No reply causes a panic, and the text of an error or an owner label is cut.
//!
//! Tests: below, such as `any_reply_is_parsed_or_a_protocol_error`.

use std::time::Duration;

use redis::{ServerErrorKind, Value};

use crate::error::node_failure::NodeFailure;
use crate::protocol::holder::NodeHolder;
use crate::protocol::kind::LeaseKind;
use crate::protocol::lease::NEVER_EXPIRES_AFTER;
use crate::protocol::permits::{FreePermits, MAX_PERMITS};
use crate::protocol::quorum::{Vote, VoteRule};
use crate::protocol::request::{Op, Request};
use crate::protocol::server_error::failure;
use crate::protocol::token::MAX_OWNER_LABEL;

/// The greatest number of receivers, and one more, that a reply may name. Another reply is not
/// ours.
const MAX_RECEIVERS: i64 = u32::MAX as i64;

/// A node's reply to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// Executed: for example granted, extended, restored, or deleted without receivers.
    Done,
    /// Deleted or downgraded, and published to this number of receivers, at least 1.
    DoneNotified(u64),
    /// Deleted and published to this number of receivers, at least 1; and the first process of the
    /// waiting list was woken.
    DoneWoke(u64),
    /// The holder of the lock, to an `Inspect`.
    Holder(Box<NodeHolder>),
    /// Granted, with the node's incremented fence counter.
    Fenced(u64),
    /// Granted by a `Swap` that did not find the former token; with the fence counter of a fenced
    /// lock.
    SwappedAbsent(Option<u64>),
    /// Refused by a blocker, which has this time left unless it is extended. `None` for no end, and
    /// for a time that is unknown. With the owner label if the node reports one.
    Held(Blocker, Option<Duration>, Option<Box<str>>),
    /// Refused because another owner holds this permit. Lists the free permits, and the time until
    /// the next held one expires.
    PermitTaken(FreePermits, Duration),
    /// Refused because the semaphore has this number of permits on the node, and another number in
    /// the request.
    PermitCountMismatch(u16),
    /// The key is absent.
    Absent,
    /// The key holds another token.
    OtherToken,
    /// An error reply or no reply. [`is_not_run`](crate::protocol::server_error::is_not_run) says
    /// whether the request may have taken effect.
    Failed(NodeFailure),
}

impl Reply {
    /// Returns whether the node reports a blocker that has no end. Every lock of this library has
    /// one, so the value is foreign.
    pub(crate) fn is_endless(&self) -> bool {
        match self {
            Reply::Held(Blocker::Unknown, ..) => false,
            Reply::Held(_, left, _) => left.is_none(),
            Reply::PermitTaken(_, next) => *next >= NEVER_EXPIRES_AFTER,
            _ => false,
        }
    }
}

/// The cause for which a node refused an acquire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blocker {
    /// The owner of an exclusive lock, or a writer.
    Owner,
    /// An owner whose remaining time the node does not report.
    Unknown,
    /// The owner of the key with this index, for a lock of several keys.
    OwnerOfKey(usize),
    /// Readers.
    Readers,
    /// A gate entry of a waiting writer.
    WaitingWriter,
    /// A reader turn.
    ReaderTurn,
}

/// A reply, parsed with the request it belongs to.
#[derive(Debug)]
pub(crate) enum ParsedReply {
    /// The node's reply.
    Reply(Reply),
    /// A refused `SET NX PX`. The remaining time of the blocker is asked for by
    /// [`encode_pttl`](crate::protocol::encode::encode_pttl).
    RefusedAskTtl,
    /// NOSCRIPT: the only reply after which a request is sent to the same server again.
    ScriptMissing,
    /// A reply that the request cannot have. The connection is out of step.
    ProtocolError,
}

/// Parses the reply to a request. For a call that several requests share, `index` is the position
/// of the request in the call.
pub(crate) fn parse_reply(request: &Request, index: usize, reply: &Value) -> ParsedReply {
    if let Value::ServerError(error) = reply {
        return match error.kind() {
            Some(ServerErrorKind::NoScript) => ParsedReply::ScriptMissing,
            _ => ParsedReply::Reply(Reply::Failed(failure(&error.clone().into()))),
        };
    }
    let parsed = match request.op {
        Op::Acquire | Op::Restore if request.is_single_exclusive() => return parse_set(reply),
        Op::Acquire | Op::Restore => parse_acquire(request, reply),
        Op::Adopt if request.wants_fencing_token() => {
            parse_fenced(reply).or_else(|| parse_ownership(request.op, reply))
        }
        Op::Swap => parse_swap(request, reply),
        Op::Inspect => parse_inspect(reply),
        Op::TakePlace => match reply {
            Value::Int(0) => Some(Reply::Absent),
            _ => (*reply == Value::Int(1)).then_some(Reply::Done),
        },
        Op::WakeListener | Op::Notify | Op::LeavePlace => {
            matches!(reply, Value::Int(_)).then_some(Reply::Done)
        }
        Op::Release => parse_release(request, index, reply),
        Op::Adopt | Op::Extend | Op::Downgrade | Op::RaiseFence | Op::ForceRelease => {
            parse_ownership(request.op, reply)
        }
    };
    parsed.map_or(ParsedReply::ProtocolError, ParsedReply::Reply)
}

/// Parses the reply to `SET NX PX`.
fn parse_set(reply: &Value) -> ParsedReply {
    match reply {
        Value::Okay => ParsedReply::Reply(Reply::Done),
        Value::Nil => ParsedReply::RefusedAskTtl,
        _ => ParsedReply::ProtocolError,
    }
}

/// Parses the reply of an acquiring script: a grant, or a list that describes the refusal.
fn parse_acquire(request: &Request, reply: &Value) -> Option<Reply> {
    let Value::Array(refusal) = reply else {
        return match request.wants_fencing_token() {
            true => parse_fenced(reply),
            false => (*reply == Value::Int(1)).then_some(Reply::Done),
        };
    };
    let kind = request.lease.kind();
    match (kind, &refusal[..]) {
        (LeaseKind::Permit { total, .. }, refusal) => parse_permit_refusal(refusal, total),
        (_, &[Value::Int(blocker), Value::Int(left), ref label @ ..]) => {
            let blocker = match kind {
                LeaseKind::Exclusive => {
                    parse_blocking_key(blocker, request.lease.keys().as_slice().len())
                }
                _ => parse_blocker(blocker),
            };
            let label = match label {
                [] => None,
                [Value::BulkString(label)] => printable_label(label),
                _ => return None,
            };
            Some(Reply::Held(blocker?, parse_ttl(left)?, label))
        }
        _ => None,
    }
}

/// Parses a fence counter, which is at least 1.
fn parse_fenced(reply: &Value) -> Option<Reply> {
    match reply {
        Value::Int(counter @ 1..) => Some(Reply::Fenced(counter.unsigned_abs())),
        _ => None,
    }
}

/// Parses the reply of `swap.lua`, which is negative if the former token was absent.
fn parse_swap(request: &Request, reply: &Value) -> Option<Reply> {
    let is_fenced = request.wants_fencing_token();
    match reply {
        Value::Int(0) => Some(Reply::OtherToken),
        Value::Int(counter @ ..=-1) => Some(Reply::SwappedAbsent(
            is_fenced.then_some(counter.unsigned_abs()),
        )),
        _ if is_fenced => parse_fenced(reply),
        Value::Int(1) => Some(Reply::Done),
        _ => None,
    }
}

/// Parses the reply to a release. If several readers share a call, `index` selects the element.
fn parse_release(request: &Request, index: usize, reply: &Value) -> Option<Reply> {
    match reply {
        Value::Array(each) if !request.is_single_exclusive() => match each.get(index)? {
            one @ Value::Int(_) => parse_ownership(request.op, one),
            _ => None,
        },
        _ => parse_ownership(request.op, reply),
    }
}

/// Parses the integer reply of a script that acts only where our token is, or of a forced release.
fn parse_ownership(op: Op, reply: &Value) -> Option<Reply> {
    let Value::Int(state) = reply else {
        return None;
    };
    match (op, *state) {
        (_, 1) => Some(Reply::Done),
        (_, 0) => Some(Reply::Absent),
        (Op::ForceRelease, -1) => None,
        (Op::Release, state @ ..=-2) if state >= -MAX_RECEIVERS => {
            Some(Reply::DoneWoke(state.unsigned_abs() - 1))
        }
        (_, -1) => Some(Reply::OtherToken),
        (Op::Downgrade | Op::Release | Op::ForceRelease, state @ 2..=MAX_RECEIVERS) => {
            Some(Reply::DoneNotified(state.unsigned_abs() - 1))
        }
        _ => None,
    }
}

/// Parses the reply of `inspect.lua`.
fn parse_inspect(reply: &Value) -> Option<Reply> {
    match reply {
        Value::Int(0) => Some(Reply::Absent),
        Value::Array(fields) => parse_holder(fields).map(|holder| Reply::Holder(Box::new(holder))),
        _ => None,
    }
}

/// Returns an owner label, cut and made printable, because a foreign client may have written
/// anything. `None` if it is empty.
fn printable_label(label: &[u8]) -> Option<Box<str>> {
    let label = String::from_utf8_lossy(label);
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    let label: String = label.chars().take(MAX_OWNER_LABEL).map(printable).collect();
    Some(label.into_boxed_str()).filter(|label| !label.is_empty())
}

/// Parses digest, owner label, remaining time and the time of the acquire.
fn parse_holder(fields: &[Value]) -> Option<NodeHolder> {
    let [
        Value::BulkString(digest),
        Value::BulkString(owner),
        Value::Int(left),
        Value::BulkString(since),
    ] = fields
    else {
        return None;
    };
    Some(NodeHolder {
        digest: String::from_utf8(digest.clone()).ok()?,
        owner: printable_label(owner),
        remaining: parse_ttl(*left)?,
        since: parse_since(since),
    })
}

/// Parses the hexadecimal digits of a token's time, in ms since 1970.
fn parse_since(digits: &[u8]) -> Option<Duration> {
    let digits = str::from_utf8(digits).ok()?;
    let millis = u64::from_str_radix(digits, 16).ok()?;
    Some(Duration::from_millis(millis))
}

/// Parses the reply to the `Inspect` that follows a refused `SET NX PX`: the refusal with the owner
/// label. `Ok(None)` if the node denies it, so that PTTL is to be asked.
///
/// # Errors
/// The reply cannot be one.
pub(crate) fn parse_blocking_holder(reply: &Value) -> Result<Option<Reply>, ()> {
    if matches!(reply, Value::ServerError(_)) {
        return Ok(None);
    }
    match parse_inspect(reply) {
        Some(Reply::Holder(holder)) => {
            let NodeHolder {
                remaining, owner, ..
            } = *holder;
            Ok(Some(Reply::Held(Blocker::Owner, remaining, owner)))
        }
        // Deleted meanwhile.
        Some(_) => Ok(Some(Reply::Held(
            Blocker::Owner,
            Some(Duration::ZERO),
            None,
        ))),
        None => Err(()),
    }
}

/// Parses the blocker of a read or write lock.
fn parse_blocker(code: i64) -> Option<Blocker> {
    Some(match code {
        0 => Blocker::Owner,
        1 => Blocker::Readers,
        2 => Blocker::WaitingWriter,
        3 => Blocker::ReaderTurn,
        _ => return None,
    })
}

/// Parses the refusal of one permit of a semaphore with `total` permits.
fn parse_permit_refusal(refusal: &[Value], total: u16) -> Option<Reply> {
    let integer = |value: &Value| match value {
        Value::Int(integer) => Some(*integer),
        _ => None,
    };
    let integers: Option<Vec<i64>> = refusal.iter().map(integer).collect();
    match integers?[..] {
        [-1, permits] => {
            let permits = u16::try_from(permits).ok()?;
            let is_other = (1..=MAX_PERMITS).contains(&permits) && permits != total;
            is_other.then_some(Reply::PermitCountMismatch(permits))
        }
        [next, ref words @ ..] => {
            let next = Duration::from_millis(u64::try_from(next).ok()?);
            Some(Reply::PermitTaken(
                FreePermits::from_words(words, total)?,
                next,
            ))
        }
        [] => None,
    }
}

/// Parses the index of the key that blocks a lock of `locks` keys.
fn parse_blocking_key(index: i64, locks: usize) -> Option<Blocker> {
    let index = usize::try_from(index).ok()?;
    match locks {
        1 => (index == 0).then_some(Blocker::Owner),
        _ => (index < locks).then_some(Blocker::OwnerOfKey(index)),
    }
}

/// Parses a remaining time in ms. Returns `None` for an integer that no server replies, and
/// `Some(None)` for no end, or one beyond `NEVER_EXPIRES_AFTER`.
fn parse_ttl(millis: i64) -> Option<Option<Duration>> {
    let left = match millis {
        -1 => return Some(None),
        -2 => 0, // deleted meanwhile
        _ => u64::try_from(millis).ok()?,
    };
    Some(Some(Duration::from_millis(left)).filter(|left| *left < NEVER_EXPIRES_AFTER))
}

/// Parses the reply to PTTL; `None` if it cannot be one.
pub(crate) fn parse_pttl(reply: &Value) -> Option<Reply> {
    match reply {
        Value::Int(left) => Some(Reply::Held(Blocker::Owner, parse_ttl(*left)?, None)),
        Value::ServerError(_) => Some(Reply::Held(Blocker::Unknown, None, None)), // PTTL denied
        _ => None,
    }
}

/// Returns the rule by which the votes on an operation are counted.
pub(crate) fn vote_rule(op: Op) -> VoteRule {
    match op {
        Op::Acquire | Op::Swap | Op::Restore => VoteRule::Acquire,
        _ => VoteRule::Ownership,
    }
}

/// Returns the vote that a reply is. A quarantine is a refusal. So is a permanent error, because a
/// repeated request has the same reply.
pub(crate) fn vote_of(reply: Reply) -> Vote {
    match reply {
        Reply::Done
        | Reply::Fenced(_)
        | Reply::DoneNotified(_)
        | Reply::DoneWoke(_)
        | Reply::Holder(_) => Vote::Granted,
        Reply::SwappedAbsent(_) => Vote::Granted,
        Reply::Held(by, remaining, _) => Vote::Refused(match by {
            Blocker::Owner | Blocker::Unknown | Blocker::OwnerOfKey(_) => {
                NodeFailure::Held { remaining }
            }
            Blocker::Readers => NodeFailure::HeldByReaders { remaining },
            // A reader that enters during the turn may hold the lock for longer than the turn.
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

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::server_error::MAX_ERROR_CHARS;
    use crate::tests::fixtures::lease_as;

    fn error(line: &str) -> Value {
        let wire = format!("-{line}\r\n");
        redis::parse_redis_value(wire.as_bytes()).unwrap_or(Value::Nil)
    }

    fn request(op: Op, kind: LeaseKind) -> Request {
        Request::new(op, &lease_as("x", kind), 30)
    }

    /// Parses a reply that needs no further question.
    fn parse(op: Op, kind: LeaseKind, reply: Value) -> Option<Reply> {
        match parse_reply(&request(op, kind), 0, &reply) {
            ParsedReply::Reply(reply) => Some(reply),
            ParsedReply::ProtocolError => None,
            other => panic!("{other:?}"),
        }
    }

    fn held(by: Blocker, millis: u64) -> Option<Reply> {
        Some(Reply::Held(by, Some(Duration::from_millis(millis)), None))
    }

    #[test]
    fn reply_to_acquire_is_a_grant_or_names_the_blocker() {
        for op in [Op::Acquire, Op::Restore] {
            let exclusive = |reply| parse(op, LeaseKind::Exclusive, reply);
            assert_eq!(exclusive(Value::Okay), Some(Reply::Done));
            assert_eq!(exclusive(Value::Int(1)), None);
            let nil = parse_reply(&request(op, LeaseKind::Exclusive), 0, &Value::Nil);
            assert!(matches!(nil, ParsedReply::RefusedAskTtl));
            for kind in [LeaseKind::Read, LeaseKind::Write] {
                assert_eq!(parse(op, kind, Value::Int(1)), Some(Reply::Done));
                for bad in [Value::Okay, Value::Nil, Value::Int(0)] {
                    assert_eq!(parse(op, kind, bad), None);
                }
                for (holder, left, expected) in [
                    (0, -1, Some(Reply::Held(Blocker::Owner, None, None))),
                    (1, 70, held(Blocker::Readers, 70)),
                    (2, 0, held(Blocker::WaitingWriter, 0)),
                    (3, -2, held(Blocker::ReaderTurn, 0)),
                    (4, 0, None),
                    (-1, 0, None),
                    (0, -3, None),
                ] {
                    let reply = Value::Array(vec![Value::Int(holder), Value::Int(left)]);
                    assert_eq!(parse(op, kind, reply), expected);
                }
            }
        }
        for (reply, expected) in [
            (-2, held(Blocker::Owner, 0)),
            (-1, Some(Reply::Held(Blocker::Owner, None, None))),
            (0, held(Blocker::Owner, 0)),
            (70, held(Blocker::Owner, 70)),
            (i64::MAX, Some(Reply::Held(Blocker::Owner, None, None))),
            (-3, None),
        ] {
            assert_eq!(parse_pttl(&Value::Int(reply)), expected);
        }
        assert_eq!(parse_pttl(&Value::Okay), None);
    }

    #[test]
    fn reply_to_a_request_with_a_token_says_whose_it_is() {
        for op in [Op::Extend, Op::Downgrade, Op::Release] {
            for (reply, expected) in [
                (1, Some(Reply::Done)),
                (0, Some(Reply::Absent)),
                (-1, Some(Reply::OtherToken)),
                (-3, (op == Op::Release).then_some(Reply::DoneWoke(2))),
                (3, (op != Op::Extend).then_some(Reply::DoneNotified(2))),
                (i64::MIN, None),
                (i64::MAX, None),
            ] {
                assert_eq!(parse(op, LeaseKind::Exclusive, Value::Int(reply)), expected);
            }
            assert_eq!(parse(op, LeaseKind::Write, Value::Okay), None);
        }
        // One reply to several readers that share a call.
        let reply = Value::Array(vec![Value::Int(1), Value::Int(0)]);
        let release = request(Op::Release, LeaseKind::Read);
        for (index, expected) in [(0, Some(Reply::Done)), (1, Some(Reply::Absent)), (2, None)] {
            let parsed = match parse_reply(&release, index, &reply) {
                ParsedReply::Reply(reply) => Some(reply),
                _ => None,
            };
            assert_eq!(parsed, expected);
        }
    }

    #[test]
    fn error_reply_is_classified_by_its_code_or_text() {
        let missing = error("NOSCRIPT No matching script.");
        let release = request(Op::Release, LeaseKind::Exclusive);
        assert!(matches!(
            parse_reply(&release, 0, &missing),
            ParsedReply::ScriptMissing
        ));
        let classify = |line: &str| match parse(Op::Acquire, LeaseKind::Exclusive, error(line)) {
            Some(Reply::Failed(cause)) => cause,
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
            assert!(
                matches!(classify(line), NodeFailure::AccessDenied(_)),
                "{line}"
            );
        }
        for line in [
            "READONLY You can't write",
            "LOADING Redis",
            "OOM command",
            "ERR max number of clients reached",
        ] {
            assert!(
                matches!(classify(line), NodeFailure::ServerError(text) if text.contains(&line[..3]))
            );
        }
        for line in [
            "WRONGTYPE Operation against a key",
            "ERR WRONGTYPE Operation against a key script: f_1",
        ] {
            assert_eq!(classify(line), NodeFailure::WrongType, "{line}");
        }
    }

    #[test]
    fn error_text_is_cut_to_one_line() {
        let shown = |line: &str| match parse(Op::Acquire, LeaseKind::Exclusive, error(line)) {
            Some(Reply::Failed(NodeFailure::ServerError(text))) => text,
            other => panic!("{other:?}"),
        };
        let echo = "ERR unknown command 'AUTH', with args beginning with: 'joe' 's3cret' ";
        assert_eq!(shown(echo), "ERR unknown command 'AUTH'");
        assert_eq!(shown("ERR two\nlines\x1b[2J"), "ERR two lines [2J");
        let long = shown(&format!("ERR {}", "é".repeat(1_000_000)));
        assert!(long.ends_with("é…") && long.chars().count() == MAX_ERROR_CHARS + 1);
        let code = shown(&"E".repeat(1_000_000));
        assert!(code.chars().count() == MAX_ERROR_CHARS + 1);
        let far = format!("ERR {} WRONGTYPE", "x".repeat(1_000));
        let parsed = parse(Op::Acquire, LeaseKind::Exclusive, error(&far));
        assert_eq!(parsed, Some(Reply::Failed(NodeFailure::WrongType)));
    }

    /// Generates any reply as bytes, meaningful ones more often than others.
    fn any_reply() -> impl Strategy<Value = Vec<u8>> {
        let number = prop_oneof![-3..4_i64, any::<i64>(), Just(i64::MIN), Just(i64::MAX)];
        let lines = [
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
            3 => proptest::sample::select(lines.to_vec()).prop_map(|w| format!("{w}\r\n").into_bytes()),
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
        fn any_reply_is_parsed_or_a_protocol_error(wire in any_reply(), index in 0..3_usize) {
            let Ok(value) = redis::parse_redis_value(&wire) else {
                return Ok(()); // the connection would be closed
            };
            let number = match &value {
                Value::Int(number) => Some(*number),
                _ => None,
            };
            for op in [
                Op::Acquire, Op::Extend, Op::Restore, Op::Downgrade, Op::RaiseFence, Op::WakeListener, Op::Notify,
                Op::Release,
            ] {
                for kind in [LeaseKind::Exclusive, LeaseKind::Read, LeaseKind::Write, LeaseKind::GateEntry] {
                    for fence in [None, Some(0)] {
                        let mut request = request(op, kind);
                        request.min_fence = fence;
                        let is_fenced = op == Op::Acquire && fence.is_some();
                        match parse_reply(&request, index, &value) {
                            // Only the documented reply is a grant.
                            ParsedReply::Reply(Reply::Done) if matches!(op, Op::Acquire | Op::Restore) => {
                                let good = if kind == LeaseKind::Exclusive && !is_fenced {
                                    value == Value::Okay
                                } else {
                                    number == Some(1)
                                };
                                prop_assert!(good, "{:?} {:?}", op, value);
                            }
                            ParsedReply::Reply(Reply::Fenced(counter)) => {
                                let same = number == i64::try_from(counter).ok();
                                prop_assert!(is_fenced && same && counter > 0);
                            }
                            ParsedReply::Reply(Reply::DoneNotified(receivers)) => prop_assert!(receivers > 0),
                            ParsedReply::Reply(Reply::Failed(cause)) => {
                                let text = cause.to_string();
                                prop_assert!(text.chars().count() < MAX_ERROR_CHARS + 50);
                                prop_assert!(!text.contains(char::is_control));
                            }
                            ParsedReply::Reply(_) | ParsedReply::ProtocolError => {}
                            ParsedReply::RefusedAskTtl => prop_assert_eq!(&value, &Value::Nil),
                            ParsedReply::ScriptMissing => prop_assert!(matches!(value, Value::ServerError(_))),
                        }
                    }
                }
            }
            if let Some(left) = parse_pttl(&value) {
                prop_assert!(matches!(left, Reply::Held(Blocker::Owner | Blocker::Unknown, ..)));
            }
        }
    }
}
