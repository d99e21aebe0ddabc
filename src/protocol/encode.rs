//! Requests as RESP commands.

use std::cell::Cell;
use std::sync::LazyLock;
use std::time::Duration;

use redis::{Cmd, RedisWrite, ToRedisArgs};

use crate::protocol::key::{Key, NodeKey};
use crate::protocol::kind::Claim;
use crate::protocol::request::{Request, Verb};
use crate::protocol::scripts::{ENDS, SCRIPTS, Script};

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

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Appends the question how long a lock is held for, which is asked where a take was refused.
pub(crate) fn write_left(request: &Request, cmd: &mut Cmd, wire: &mut Vec<u8>) {
    cmd.clear();
    cmd.arg("PTTL").arg(request.lease.key().wire());
    cmd.write_packed_command(wire);
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use redis::Value;

    use crate::error::Cause;

    use crate::protocol::kind::Claim;
    use crate::protocol::lease::tests::lease_as;
    use crate::protocol::reply::{Answer, Holder, Read, read, read_left};
    use crate::protocol::request::{Request, Verb};
    use crate::protocol::server_error::{MOST_WORDS, in_short, is_about_auth};

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
            assert_eq!(
                crate::protocol::server_error::is_not_run(&cause),
                is_not_run,
                "{line}"
            );
        }
        for cause in [Cause::TimedOut, Cause::Unreachable("NOAUTH".into())] {
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
