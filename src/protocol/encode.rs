//! Requests as RESP commands.

use std::cell::Cell;
use std::sync::LazyLock;
use std::time::Duration;

use redis::{Cmd, RedisWrite, ToRedisArgs};

use crate::protocol::key::{Key, RedisKey};
use crate::protocol::kind::LeaseKind;
use crate::protocol::request::{Op, Request};
use crate::protocol::scripts::{PRELOADED, SCRIPTS, Script};

/// The scripts, with the SHA-1 sums under which every server knows them that has had them before.
static SCRIPT_HASHES: LazyLock<[redis::Script; SCRIPTS.len()]> =
    LazyLock::new(|| SCRIPTS.map(redis::Script::new));

/// Appends the command that loads a script.
pub(crate) fn encode_script_load(script: Script, wire: &mut Vec<u8>) {
    let mut load = redis::cmd("SCRIPT");
    load.arg("LOAD").arg(SCRIPTS[script as usize]);
    load.write_packed_command(wire);
}

/// Appends the commands that load what is to be there from the beginning. Each is answered by its sum.
pub(crate) fn encode_script_loads(wire: &mut Vec<u8>) {
    PRELOADED
        .iter()
        .for_each(|script| encode_script_load(*script, wire));
}

/// The sums that [`encode_script_loads`] is answered by.
pub(crate) fn script_hashes() -> impl Iterator<Item = &'static str> {
    PRELOADED
        .iter()
        .map(|script| SCRIPT_HASHES[*script as usize].get_hash())
}

/// Appends the call of a request, with `cmd` as scratch space; of those that travel with it ([`Request::can_join`])
/// only the tokens. Answers which script it is of, which the server may not have.
pub(crate) fn encode_request<'a>(
    request: &Request,
    joined: impl Iterator<Item = &'a Request>,
    cmd: &mut Cmd,
    wire: &mut Vec<u8>,
) -> Option<Script> {
    let (key, ttl) = (request.lease.key(), request.ttl);
    let keys = request.lease.keys().as_slice().iter();
    let (owners, fences) = (
        keys.clone().map(Key::token_key),
        keys.map(|key| key.derived(":fence")),
    );
    let locks = owners.len();
    let token = request.lease.token().text();
    let trace = millis(request.marker_ttl());
    let (owner, readers) = (key.token_key(), key.derived(":readers"));
    let (gate, turn) = (key.derived(":gate"), key.derived(":turn"));
    let is_new = u8::from(request.verb == Op::Acquire);
    let channel = if request.publish { key.as_str() } else { "" };
    let publish = if request.publish { "1" } else { "" };
    let mut script = None;
    cmd.clear();
    match (request.verb, request.lease.claim()) {
        (Op::Acquire, LeaseKind::Exclusive) if request.min_fence.is_some() => {
            script = encode_evalsha(Script::Take, cmd, owners.chain(fences));
            cmd.arg(token).arg(ttl).arg(locks);
        }
        (Op::Acquire | Op::Restore, LeaseKind::Exclusive) if locks > 1 => {
            script = encode_evalsha(Script::Take, cmd, owners);
            cmd.arg(token).arg(ttl).arg(locks);
        }
        (Op::Acquire | Op::Restore, LeaseKind::Exclusive) => {
            cmd.arg("SET").arg(owner).arg(token);
            cmd.arg("NX").arg("PX").arg(ttl);
        }
        (Op::Acquire | Op::Restore, LeaseKind::Read) => {
            script = encode_evalsha(Script::Read, cmd, [owner, readers, gate, turn]);
            cmd.arg(ttl).arg(trace).arg(is_new).arg(token);
        }
        (Op::Acquire | Op::Restore, LeaseKind::Write) => {
            let place = request.gate_entry.as_ref();
            let fence = fences.filter(|_| request.min_fence.is_some());
            let keys = [owner, readers, gate, turn].into_iter();
            script = encode_evalsha(Script::Write, cmd, keys.chain(fence));
            cmd.arg(token).arg(ttl);
            cmd.arg(place.map_or(0, |_| trace)).arg(is_new);
            cmd.arg(place.map_or("", |place| place.token().text()));
        }
        (Op::Adopt, _) => {
            let fences = fences.filter(|_| request.min_fence.is_some());
            script = encode_evalsha(Script::Adopt, cmd, owners.chain(fences));
            let former = request.former_lease.as_ref();
            cmd.arg(former.map_or("", |lease| lease.token().text()));
            cmd.arg(token).arg(ttl).arg(locks);
        }
        (Op::Swap, _) => {
            let fences = fences.filter(|_| request.min_fence.is_some());
            script = encode_evalsha(Script::Swap, cmd, owners.chain(fences));
            let former = request.former_lease.as_ref();
            cmd.arg(former.map_or("", |lease| lease.token().text()));
            cmd.arg(token).arg(ttl);
        }
        (Op::Extend, LeaseKind::Exclusive | LeaseKind::Write) => {
            script = encode_evalsha(Script::Extend, cmd, owners);
            cmd.arg(token).arg(ttl);
        }
        (Op::Extend, LeaseKind::Read) => {
            script = encode_evalsha(Script::ExtendRead, cmd, [owner, readers]);
            cmd.arg(token).arg(ttl);
        }
        (Op::Release, LeaseKind::Exclusive) => {
            let release = match locks {
                1 => Script::Release,
                _ => Script::ReleaseAll,
            };
            script = encode_evalsha(release, cmd, owners);
            cmd.arg(token).arg(publish);
        }
        (Op::Release, LeaseKind::Read) => {
            script = encode_evalsha(Script::ReleaseRead, cmd, [owner, readers, turn]);
            cmd.arg(channel)
                .arg(millis(request.refresh_interval))
                .arg(token);
        }
        (Op::Release, LeaseKind::Write) => {
            script = encode_evalsha(Script::ReleaseWrite, cmd, [owner, turn]);
            cmd.arg(token)
                .arg(millis(request.refresh_interval))
                .arg(channel);
        }
        (Op::Inspect, _) => script = encode_evalsha(Script::Tell, cmd, [owner]),
        (Op::ForceRelease, _) => {
            script = encode_evalsha(Script::Break, cmd, [owner]);
            cmd.arg(channel);
        }
        (
            Op::Acquire | Op::Restore,
            LeaseKind::Permit {
                index: slot,
                total: of,
            },
        ) => {
            script = encode_evalsha(Script::Permit, cmd, owners);
            cmd.arg(token).arg(ttl).arg(slot).arg(of);
        }
        (Op::Extend, LeaseKind::Permit { index: slot, .. }) => {
            script = encode_evalsha(Script::ExtendPermit, cmd, owners);
            cmd.arg(token).arg(ttl).arg(slot);
        }
        (Op::Release, LeaseKind::Permit { index: slot, .. }) => {
            script = encode_evalsha(Script::ReleasePermit, cmd, owners);
            cmd.arg(token).arg(channel).arg(slot);
        }
        (Op::WakeListener, _) => {
            cmd.arg("PUBLISH").arg(key.as_str()).arg("");
        }
        // A place at the gate is taken by the attempts of its writer, and only ever left by itself.
        (_, LeaseKind::GateEntry) => {
            cmd.arg("ZREM").arg(gate).arg(token);
        }
        (Op::RaiseFence, _) => {
            script = encode_evalsha(Script::Raise, cmd, owners.chain(fences));
            cmd.arg(token).arg(request.min_fence.unwrap_or_default());
        }
        (Op::Downgrade, _) => {
            script = encode_evalsha(Script::Downgrade, cmd, [owner, readers, turn]);
            cmd.arg(token).arg(ttl);
            cmd.arg(millis(request.refresh_interval)).arg(channel);
        }
    }
    for request in joined {
        cmd.arg(request.lease.token().text());
    }
    cmd.write_packed_command(wire);
    script
}

/// Calls `tell` with a request as it goes over the wire to every node.
pub(crate) fn with_encoded<T>(request: &Request, tell: impl FnOnce(&[u8]) -> T) -> T {
    thread_local! {
        /// Kept for its memory. Empty while it is in use.
        static SCRATCH: Cell<(Option<Cmd>, Vec<u8>)> = const { Cell::new((None, Vec::new())) };
    }
    // In a destructor at the end of a thread there is none any more.
    let (cmd, mut wire) = SCRATCH.try_with(Cell::take).unwrap_or_default();
    let mut cmd = cmd.unwrap_or_default();
    wire.clear();
    encode_request(request, std::iter::empty(), &mut cmd, &mut wire);
    let told = tell(&wire);
    _ = SCRATCH.try_with(|scratch| scratch.set((Some(cmd), wire)));
    told
}

/// The same for one that the server may not have the script of, which is loaded before: one reply more.
pub(crate) fn encode_with_script_load<'a>(
    request: &Request,
    joined: impl Iterator<Item = &'a Request>,
    cmd: &mut Cmd,
    wire: &mut Vec<u8>,
) {
    let mut call = Vec::new();
    // Who has no script cannot lack it.
    let script = encode_request(request, joined, cmd, &mut call).unwrap_or(Script::Release);
    encode_script_load(script, wire);
    wire.append(&mut call);
}

fn encode_evalsha<'a, I>(script: Script, cmd: &mut Cmd, keys: I) -> Option<Script>
where
    I: IntoIterator<Item = RedisKey<'a>, IntoIter: Clone>,
{
    let keys = keys.into_iter();
    cmd.arg("EVALSHA")
        .arg(SCRIPT_HASHES[script as usize].get_hash());
    cmd.arg(keys.clone().count());
    for key in keys {
        cmd.arg(key);
    }
    Some(script)
}

impl ToRedisArgs for RedisKey<'_> {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        match self {
            RedisKey::Plain(key) => out.write_arg(key.as_str().as_bytes()),
            derived => out.write_arg_fmt(derived),
        }
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Appends the question how long a lock is held for, which is asked where a take was refused.
pub(crate) fn encode_pttl(request: &Request, cmd: &mut Cmd, wire: &mut Vec<u8>) {
    cmd.clear();
    cmd.arg("PTTL").arg(request.lease.key().as_str());
    cmd.write_packed_command(wire);
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use redis::Value;

    use crate::error::NodeFailure;

    use crate::protocol::kind::LeaseKind;
    use crate::protocol::lease::tests::lease_as;
    use crate::protocol::reply::{Blocker, ParsedReply, Reply, parse_pttl, parse_reply};
    use crate::protocol::request::{Op, Request};
    use crate::protocol::server_error::{MAX_ERROR_CHARS, is_about_auth, redact_and_truncate};

    fn error(line: &str) -> Value {
        let wire = format!("-{line}\r\n");
        redis::parse_redis_value(wire.as_bytes()).unwrap_or(Value::Nil)
    }

    fn request(verb: Op, claim: LeaseKind) -> Request {
        Request::new(verb, &lease_as("x", claim), 30)
    }

    /// The answer that a reply is, if it is one.
    fn answer(verb: Op, claim: LeaseKind, reply: Value) -> Option<Reply> {
        match parse_reply(&request(verb, claim), 0, &reply) {
            ParsedReply::Reply(answer) => Some(answer),
            ParsedReply::ProtocolError => None,
            other => panic!("{other:?}"),
        }
    }

    fn held(by: Blocker, millis: u64) -> Option<Reply> {
        Some(Reply::Held(by, Some(Duration::from_millis(millis))))
    }

    #[test]
    fn replies_to_a_take() {
        for verb in [Op::Acquire, Op::Restore] {
            let exclusive = |reply| answer(verb, LeaseKind::Exclusive, reply);
            assert_eq!(exclusive(Value::Okay), Some(Reply::Done));
            assert_eq!(exclusive(Value::Int(1)), None);
            let nil = parse_reply(&request(verb, LeaseKind::Exclusive), 0, &Value::Nil);
            assert!(matches!(nil, ParsedReply::RefusedAskTtl));
            for claim in [LeaseKind::Read, LeaseKind::Write] {
                assert_eq!(answer(verb, claim, Value::Int(1)), Some(Reply::Done));
                for bad in [Value::Okay, Value::Nil, Value::Int(0)] {
                    assert_eq!(answer(verb, claim, bad), None);
                }
                for (holder, left, expected) in [
                    (0, -1, Some(Reply::Held(Blocker::Owner, None))),
                    (1, 70, held(Blocker::Readers, 70)),
                    (2, 0, held(Blocker::WaitingWriter, 0)),
                    (3, -2, held(Blocker::ReaderTurn, 0)),
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
            (-2, held(Blocker::Owner, 0)),
            (-1, Some(Reply::Held(Blocker::Owner, None))),
            (0, held(Blocker::Owner, 0)),
            (70, held(Blocker::Owner, 70)),
            (i64::MAX, Some(Reply::Held(Blocker::Owner, None))),
            (-3, None),
        ] {
            assert_eq!(parse_pttl(&Value::Int(reply)), expected);
        }
        assert_eq!(parse_pttl(&Value::Okay), None);
    }

    #[test]
    fn replies_to_one_that_has_a_token() {
        for verb in [Op::Extend, Op::Downgrade, Op::Release] {
            for (reply, expected) in [
                (1, Some(Reply::Done)),
                (0, Some(Reply::Absent)),
                (-1, Some(Reply::OtherToken)),
                (-2, None),
                (3, (verb != Op::Extend).then_some(Reply::DoneNotified(2))),
            ] {
                assert_eq!(
                    answer(verb, LeaseKind::Exclusive, Value::Int(reply)),
                    expected
                );
            }
            assert_eq!(answer(verb, LeaseKind::Write, Value::Okay), None);
        }
        // One reply for several that leave together.
        let reply = Value::Array(vec![Value::Int(1), Value::Int(0)]);
        let release = request(Op::Release, LeaseKind::Read);
        for (place, expected) in [(0, Some(Reply::Done)), (1, Some(Reply::Absent)), (2, None)] {
            let answer = match parse_reply(&release, place, &reply) {
                ParsedReply::Reply(answer) => Some(answer),
                _ => None,
            };
            assert_eq!(answer, expected);
        }
    }

    #[test]
    fn errors_are_told_apart() {
        let forgotten = error("NOSCRIPT No matching script.");
        let release = request(Op::Release, LeaseKind::Exclusive);
        assert!(matches!(
            parse_reply(&release, 0, &forgotten),
            ParsedReply::ScriptMissing
        ));
        let fault = |line: &str| match answer(Op::Acquire, LeaseKind::Exclusive, error(line)) {
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
                matches!(fault(line), NodeFailure::AccessDenied(_)),
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
                matches!(fault(line), NodeFailure::ServerError(text) if text.contains(&line[..3]))
            );
        }
        for line in [
            "WRONGTYPE Operation against a key",
            "ERR WRONGTYPE Operation against a key script: f_1",
        ] {
            assert_eq!(fault(line), NodeFailure::WrongType, "{line}");
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
            let Some(Reply::Failed(cause)) = answer(Op::Acquire, LeaseKind::Exclusive, error(line))
            else {
                panic!("{line}");
            };
            assert_eq!(
                crate::protocol::server_error::is_not_run(&cause),
                is_not_run,
                "{line}"
            );
        }
        for cause in [
            NodeFailure::TimedOut,
            NodeFailure::Unreachable("NOAUTH".into()),
        ] {
            assert!(
                !crate::protocol::server_error::is_not_run(&cause),
                "{cause}"
            );
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
        let told = |line: &str| match answer(Op::Acquire, LeaseKind::Exclusive, error(line)) {
            Some(Reply::Failed(NodeFailure::ServerError(text))) => text,
            other => panic!("{other:?}"),
        };
        let echo = "ERR unknown command 'AUTH', with args beginning with: 'joe' 's3cret' ";
        assert_eq!(told(echo), "ERR unknown command 'AUTH'");
        assert_eq!(told("ERR two\nlines\x1b[2J"), "ERR two lines [2J");
        let long = told(&format!("ERR {}", "é".repeat(1_000_000)));
        assert!(long.ends_with("é…") && long.chars().count() == MAX_ERROR_CHARS + 1);
        let code = told(&"E".repeat(1_000_000));
        assert!(code.chars().count() == MAX_ERROR_CHARS + 1);
        let far = format!("ERR {} WRONGTYPE", "x".repeat(1_000));
        let answer = answer(Op::Acquire, LeaseKind::Exclusive, error(&far));
        assert_eq!(answer, Some(Reply::Failed(NodeFailure::WrongType)));
    }

    #[test]
    fn words_with_a_secret_in_them_are_not_passed_on_not_even_in_part() {
        let cut = format!("{}s3cret", "x".repeat(MAX_ERROR_CHARS - 3));
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
            let told = redact_and_truncate(words, secret);
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
                Op::Acquire, Op::Extend, Op::Restore, Op::Downgrade, Op::RaiseFence, Op::WakeListener, Op::Release,
            ] {
                for claim in [LeaseKind::Exclusive, LeaseKind::Read, LeaseKind::Write, LeaseKind::GateEntry] {
                    for fence in [None, Some(0)] {
                        let mut request = request(verb, claim);
                        request.min_fence = fence;
                        let is_numbered = verb == Op::Acquire && fence.is_some();
                        match parse_reply(&request, place, &value) {
                            // Nothing but its own word is a grant.
                            ParsedReply::Reply(Reply::Done) if matches!(verb, Op::Acquire | Op::Restore) => {
                                let good = if claim == LeaseKind::Exclusive && !is_numbered {
                                    value == Value::Okay
                                } else {
                                    number == Some(1)
                                };
                                prop_assert!(good, "{:?} {:?}", verb, value);
                            }
                            ParsedReply::Reply(Reply::Fenced(given)) => {
                                let same = number == i64::try_from(given).ok();
                                prop_assert!(is_numbered && same && given > 0);
                            }
                            ParsedReply::Reply(Reply::DoneNotified(heard)) => prop_assert!(heard > 0),
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
                prop_assert!(matches!(left, Reply::Held(Blocker::Owner | Blocker::Unknown, _)));
            }
        }
    }
}
