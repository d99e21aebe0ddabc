//! Servers that break off, lie, babble, hang and flood cause an error, never a panic, within the
//! timeout, and recover.

use std::sync::Once;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::Duration;

use redguard::{
    Config, Error, LockOptions, Locker, NodeFailure, NodeState, Nodes, RedisLocker, RedisRwLocker,
    RwLocker,
};

use crate::support::fixtures::{
    LIMIT, TTL, acquire_lock, ask, at, now, nowhere, shared, store_foreign_token,
    wait_until_it_grants, wire,
};
use crate::support::hostile::{BadReply, Hostile, Then};
use crate::support::servers::Server;
use crate::support::{eventually, unique_key};

/// Time limit for a node that is not needed: longer than any reply of a healthy node on a busy
/// machine.
const SOON: Duration = Duration::from_secs(1);
/// Number of table rows that run in parallel.
const AT_ONCE: usize = 8;

/// Replies to a command that expects `+OK`, a number or an array. Except the last two, all are
/// invalid.
fn bad_replies() -> Vec<BadReply> {
    let noise = |n: u32| (n.wrapping_mul(2_654_435_761) >> 13).to_le_bytes();
    let noise: Vec<u8> = (0..1024).flat_map(noise).collect();
    let mut bad_replies = vec![
        BadReply {
            says: noise,
            then: Then::Hang,
        },
        text("", Then::Close),
        text("+O", Then::Close),
        text("*2\r\n:0\r\n", Then::Close),
        text("$10\r\n123", Then::Close),
        text("", Then::Hang),
        text("+OK\r", Then::Hang),
        // A length beyond the end.
        text("$999999999999\r\nabc", Then::Hang),
        text("$9223372036854775807\r\n", Then::Hang),
        text("!-1\r\nabc", Then::Hang),
        text("*1000000000\r\n:1\r\n:1\r\n", Then::Hang),
        text("*9223372036854775807\r\n:1\r\n", Then::Hang),
        text("%4611686018427387904\r\n:1\r\n", Then::Hang),
        text("|9223372036854775807\r\n:1\r\n", Then::Hang),
        text(&"*1000000000\r\n".repeat(100), Then::Hang),
        text(&deep(99), Then::Hang),
        text(&deep(1_000_000), Then::Hang),
    ];
    bad_replies.extend(complete_replies());
    // The valid reply, followed by an unexpected one.
    bad_replies.push(text("+OK\r\n+OK\r\n", Then::GoOn));
    bad_replies.push(text("$-1\r\n:5\r\n:5\r\n", Then::GoOn));
    bad_replies
}

fn text(says: &str, then: Then) -> BadReply {
    BadReply {
        says: says.into(),
        then,
    }
}

fn deep(levels: usize) -> String {
    "*1\r\n".repeat(levels)
}

/// Bad replies behind which the server serves on.
fn complete_replies() -> Vec<BadReply> {
    let long = "x".repeat(1_000_000);
    let replies = [
        "$99999999999999999999\r\n",
        "*x\r\n",
        ":\r\n",
        "\r\n",
        "\0",
        "HTTP/1.1 400 Bad Request\r\n\r\n",
        // Another type.
        "+QUEUED\r\n",
        "$3\r\nfoo\r\n",
        "*0\r\n",
        "*3\r\n:1\r\n:1\r\n:1\r\n",
        "*2\r\n:9\r\n:-9\r\n",
        ":-9223372036854775808\r\n",
        ",nan\r\n",
        "#t\r\n",
        "(1\r\n",
        "=6\r\ntxt:OK\r\n",
        "~1\r\n+OK\r\n",
        "%1\r\n+a\r\n+b\r\n",
        "|1\r\n+a\r\n+b\r\n+OK\r\n",
        ">3\r\n+message\r\n+a\r\n+b\r\n",
        ">-1\r\n",
        &format!("{}:1\r\n", deep(99)),
        // Errors.
        "-\r\n",
        "-ERR two\nlines\r\n",
        "-NOSCRIPT no\r\n",
        "-MOVED 1 127.0.0.1:1\r\n",
        &format!("-ERR {long}\r\n"),
        &format!("-{long}\r\n"),
        "!3\r\nERR\r\n",
    ];
    replies.map(|says| text(says, Then::GoOn)).into()
}

/// Returns a check that no worker and no listener has panicked.
fn watch_for_panics() -> impl Fn() {
    static HOOKED: Once = Once::new();
    static PANICS: AtomicU64 = AtomicU64::new(0);
    HOOKED.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if thread::current()
                .name()
                .is_some_and(|name| name.starts_with("redguard-"))
            {
                PANICS.fetch_add(1, SeqCst);
            }
            before(info);
        }));
    });
    || assert_eq!(PANICS.load(SeqCst), 0)
}

/// Runs a function for each row, several rows in parallel, with the row's index.
fn each<T: Sync>(table: &[T], row: impl Fn(usize, &T) + Sync) {
    let (next, row) = (AtomicU64::new(0), &row);
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(number) = usize::try_from(next.fetch_add(1, SeqCst)).ok()
                    && number < table.len()
                {
                    row(number, &table[number]);
                }
            });
        }
    });
}

/// Short time limits, for a node that does not reply.
fn with_short_timeouts(addresses: impl IntoIterator<Item = String>) -> Config {
    let config = at(addresses).circuit_breaker(u32::MAX, LIMIT);
    config.node_timeout(SOON).connect_timeout(SOON)
}

/// Short time limits, with a long one for connects.
fn alone(hostile: &Hostile) -> RedisLocker {
    RedisLocker::connect(with_short_timeouts([hostile.addr()]).connect_timeout(LIMIT)).unwrap()
}

/// A locker of three nodes, of which the first is hostile.
fn two_honest(first: String) -> Config {
    let honest = shared()[1..].iter().map(Server::addr);
    at([first].into_iter().chain(honest))
}

/// Runs `act` within a time limit and returns its result.
fn in_time<T>(what: &str, act: impl FnOnce() -> T) -> T {
    let start = now();
    let done = act();
    assert!(start.elapsed() < LIMIT, "{what} took {:?}", start.elapsed());
    done
}

#[test]
fn quorum_beside_a_hostile_node_grants_and_the_node_recovers() {
    let no_panic = watch_for_panics();
    each(&bad_replies(), |_, bad_reply| {
        let hostile = Hostile::before(shared()[0].addr());
        let nodes = Nodes::connect(two_honest(hostile.addr())).unwrap();
        let (locks, rw) = (RedisLocker::new(&nodes), RedisRwLocker::new(&nodes));
        eventually(LIMIT, "all are up", || {
            let nodes = nodes.health().nodes;
            nodes.iter().all(|node| node.state == NodeState::Up)
        });
        for command in ["SET", "EVALSHA"] {
            let before = hostile.bad_replies();
            hostile.set_bad_reply(command, bad_reply);
            let key = unique_key("hostile");
            let patient = LockOptions::new(TTL).wait_for(LIMIT);
            // A connection may be down for a moment, and then receives no reply of a round.
            eventually(LIMIT, "a bad reply is sent", || {
                let guard = acquire_lock(&locks, &key);
                guard.extend(TTL).unwrap();
                guard.release().unwrap();
                drop(rw.acquire_write(&key, &patient).unwrap());
                drop(rw.acquire_read(&key, &patient).unwrap());
                hostile.bad_replies() > before
            });
            hostile.restore();
            wait_until_it_grants(&locks, &shared()[0]);
            nowhere(shared(), &key);
        }
    });
    no_panic();
    assert!(peak_memory() < 16 << 30, "what is declared is allocated");
}

/// Returns the greatest address space of this process so far, in bytes.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmPeak:"));
    peak.map_or(0, |kb| {
        kb.trim_end_matches("kB").trim().parse::<u64>().unwrap() << 10
    })
}

#[test]
fn single_hostile_node_is_an_error_in_time() {
    let no_panic = watch_for_panics();
    let bad_replies = bad_replies();
    let (errors, answers) = bad_replies.split_at(bad_replies.len() - 2);
    each(errors, |number, bad_reply| {
        let hostile = Hostile::before(shared()[0].addr());
        let locks = alone(&hostile);
        hostile.set_bad_reply("SET", bad_reply);
        let key = unique_key("alone");
        let error = in_time("an attempt", || locks.try_lock(&key, TTL).unwrap_err());
        assert!(error.is_unavailable(), "row {number}: {error}");
        let text = error.to_string();
        assert!(
            text.chars().count() < 500 && !text.contains(char::is_control),
            "{text}"
        );
        hostile.restore();
        acquire_lock(&locks, &key).release().unwrap();
        assert!(locks.nodes().shutdown(LIMIT), "row {number}");
    });
    // The worker notices the extra reply when it does not fit the next request.
    for bad_reply in answers {
        let hostile = Hostile::before(shared()[0].addr());
        let locks = alone(&hostile);
        hostile.set_bad_reply("SET", bad_reply);
        let _ = in_time("an attempt", || locks.try_lock(&unique_key("alone"), TTL));
        hostile.restore();
        acquire_lock(&locks, &unique_key("alone"))
            .release()
            .unwrap();
    }
    no_panic();
}

#[test]
fn hostile_replies_to_the_handshake_fail_one_node() {
    let no_panic = watch_for_panics();
    let greetings = ["AUTH", "SELECT", "CLIENT", "INFO", "SCRIPT"];
    let rows = greetings.iter().cycle().zip(bad_replies());
    let mut table: Vec<_> = rows.collect();
    let usual = table.len();
    // A client id that the next connect cannot kill, and an invalid run id.
    for (command, says) in [(&"CLIENT", ":-5\r\n"), (&"INFO", "$8\r\nrun_id:x\r\n")] {
        let (says, then) = (says.into(), Then::GoOn);
        table.push((command, BadReply { says, then }));
    }
    each(&table, |number, (command, bad_reply)| {
        let hostile = Hostile::before(shared()[0].addr());
        hostile.set_bad_reply(command, bad_reply);
        // The real server has no password, and its error would end the connect: only the hostile
        // server is asked.
        let needs = matches!(**command, "AUTH" | "SELECT");
        let first = match needs {
            true => format!("redis://:s3cret@{}/1", hostile.addr()),
            false => hostile.addr(),
        };
        if number % 4 == 0 || number >= usual {
            let error = in_time("connecting", || {
                Nodes::connect(with_short_timeouts([first.clone()]))
            });
            match error {
                Err(error) => {
                    let is_known = error.is_unavailable() || error.is_denied();
                    assert!(is_known, "row {number}: {error}");
                }
                // Some of these replies are valid there.
                Ok(_) => assert!(!matches!(**command, "INFO" | "SCRIPT"), "row {number}"),
            }
        }
        let nodes = in_time("connecting", || Nodes::connect(two_honest(first)).unwrap());
        let locks = RedisLocker::new(&nodes);
        acquire_lock(&locks, &unique_key("greeted"))
            .release()
            .unwrap();
        eventually(LIMIT, "the handshake was hostile", || {
            hostile.bad_replies() > 0
        });
        hostile.restore();
        if !needs {
            wait_until_it_grants(&locks, &shared()[0]);
        }
        in_time("shutting down", || nodes.shutdown(LIMIT));
    });
    no_panic();
}

#[test]
fn password_in_a_server_reply_is_not_shown() {
    let options = Server::options().arg("--requirepass", "s3cret");
    let node = options.start().unwrap();
    // Cuts an error in the middle.
    let long = format!("-ERR {}s3cret\r\n", "x".repeat(193));
    let words = [
        "-ERR unknown command 'AUTH', with args beginning with: 's3cret' \r\n",
        "-ERR not now: AUTH s3cret\r\n",
        &long,
    ];
    let commands = ["AUTH", "SELECT", "INFO"];
    let table: Vec<_> = words
        .iter()
        .flat_map(|words| commands.map(|at| (*words, at)))
        .collect();
    each(&table, |_, (words, command)| {
        let hostile = Hostile::before(node.addr());
        let says = words.as_bytes().to_vec();
        let then = Then::GoOn;
        hostile.set_bad_reply(command, &BadReply { says, then });
        let address = format!("redis://:s3cret@{}/1", hostile.addr());
        let error = Nodes::connect(with_short_timeouts([address])).unwrap_err();
        assert!(error.is_unavailable() || error.is_denied(), "{error}");
        assert!(hostile.bad_replies() > 0, "{error}");
        assert!(!format!("{error} {error:?}").contains("s3c"), "{error}");
    });
}

#[test]
fn reply_that_comes_byte_by_byte_is_read() {
    let hostile = Hostile::before(shared()[0].addr());
    let locks = RedisLocker::connect(at([hostile.addr()])).unwrap();
    let bad_reply = BadReply {
        says: "+OK\r\n".into(),
        then: Then::Slowly,
    };
    hostile.set_bad_reply("SET", &bad_reply);
    let guard = locks.try_lock(&unique_key("slow"), TTL).unwrap();
    assert!(guard.is_some_and(|guard| guard.is_held()) && hostile.bad_replies() > 0);
}

/// A reply without an end delays no other caller, and its worker by at most `node_timeout`.
#[test]
fn node_that_replies_byte_by_byte_delays_no_caller() {
    let no_panic = watch_for_panics();
    let drip = BadReply {
        says: "*1000000000\r\n:1\r\n".into(),
        then: Then::Drip(4),
    };
    let hostile = Hostile::before(shared()[0].addr());
    let locks = RedisLocker::connect(two_honest(hostile.addr())).unwrap();
    let (recovers, ends) = (alone(&hostile), alone(&hostile));
    hostile.set_bad_reply("SET", &drip);
    for _ in 0..20 {
        let key = unique_key("drip");
        in_time("a lock", || drop(acquire_lock(&locks, &key)));
    }
    for locks in [&recovers, &ends] {
        for _ in 0..5 {
            let key = unique_key("drip");
            match in_time("an attempt", || locks.try_lock(&key, TTL)) {
                Err(Error::InsufficientQuorum { causes, .. }) => {
                    assert_eq!(causes[0].failure, NodeFailure::TimedOut);
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(in_time("shutting down", || ends.nodes().shutdown(LIMIT)));
    hostile.restore();
    acquire_lock(&recovers, &unique_key("drip"))
        .release()
        .unwrap();
    wait_until_it_grants(&locks, &shared()[0]);
    assert!(locks.nodes().shutdown(LIMIT));
    no_panic();
}

/// Replies to a subscription, or messages after it.
fn subscription_replies() -> Vec<BadReply> {
    // There are two subscriptions: to the private channel, and to a lock's channel.
    let confirmed = "*3\r\n$9\r\nsubscribe\r\n$1\r\nx\r\n:1\r\n";
    let message = "*3\r\n$7\r\nmessage\r\n$1\r\nx\r\n$0\r\n\r\n";
    let text = |says: String, then| BadReply {
        says: says.into(),
        then,
    };
    let mut subscription_replies = vec![
        text(message.into(), Then::Flood(message.len())),
        text(format!("{confirmed}{message}"), Then::Flood(message.len())),
        text(
            format!("{confirmed}{confirmed}{message}"),
            Then::Flood(message.len()),
        ),
        text(format!("{confirmed}{confirmed}:1\r\n"), Then::Drip(4)),
        text(message.into(), Then::Drip(message.len())),
        text(format!("{confirmed}{message}"), Then::Drip(message.len())),
        text(format!("{confirmed}*1000000000\r\n"), Then::Hang),
        text(
            format!("{confirmed}*3\r\n$7\r\nmessage\r\n:1\r\n:2\r\n"),
            Then::Hang,
        ),
        text(format!("{confirmed}*1\r\n$7\r\nmessage\r\n"), Then::Hang),
        text(format!("{confirmed}-ERR no\r\n:1\r\n+OK\r\n"), Then::Hang),
        text(format!("{confirmed}\0"), Then::Hang),
        text(confirmed.into(), Then::Close),
    ];
    subscription_replies.extend(bad_replies().into_iter().step_by(3));
    subscription_replies
}

/// Whether the hostile server keeps sending bytes.
fn is_endless(subscription_reply: &BadReply) -> bool {
    matches!(subscription_reply.then, Then::Flood(_))
}

#[test]
fn hostile_subscription_blocks_no_waiter() {
    let no_panic = watch_for_panics();
    each(&subscription_replies(), |number, subscription_reply| {
        let hostile = Hostile::before(shared()[0].addr());
        let nodes = Nodes::connect(two_honest(hostile.addr())).unwrap();
        let locks = RedisLocker::new(&nodes);
        wait_until_it_grants(&locks, &shared()[0]);
        hostile.set_bad_reply("SUBSCRIBE", subscription_reply);
        let key = unique_key("subscription");
        shared()
            .iter()
            .for_each(|node| store_foreign_token(node, &key, TTL));
        thread::scope(|scope| {
            let waiter = scope.spawn(|| acquire_lock(&locks, &key));
            eventually(LIMIT, "a waiter is subscribed", || {
                hostile.bad_replies() > 0
            });
            for node in shared() {
                ask::<i64>(node, &["DEL", &wire(&key)]);
            }
            waiter.join().unwrap().release().unwrap();
        });
        let ended = in_time("shutting down", || nodes.shutdown(LIMIT));
        assert!(
            ended || !is_endless(subscription_reply),
            "row {number}: it listens on"
        );
    });
    no_panic();
}
