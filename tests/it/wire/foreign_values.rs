//! Foreign values under the keys of each kind of lock, on real servers. The fake nodes of the ring
//! before store no foreign values, so they cannot show how scripts treat them.

use std::thread;
use std::time::{Duration, Instant};

use redguard::{
    Error, LockOptions, Locker, Nodes, RedisLocker, RedisRwLocker, RedisSemaphore, RwLocker,
    Semaphore,
};

use crate::support::fixtures::{LIMIT, PREFIX, TTL, ask, config, connect, pttl, wire};
use crate::support::log_capture::{Level, captured_log};
use crate::support::servers::Server;
use crate::support::{eventually, servers, unique_key};

/// Returns a key that is derived from a lock's key.
fn part(key: &str, ending: &str) -> String {
    format!("{{{PREFIX}{key}}}:{ending}")
}

/// Kind of the acquire.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Exclusive,
    Several,
    Fenced,
    Read,
    Write,
    FencedWrite,
    Permit,
}

impl Kind {
    /// Returns whether a caller that waits briefly acquires the lock.
    fn acquire(self, nodes: &Nodes, key: &str) -> Result<bool, Error> {
        let locker = RedisLocker::new(nodes);
        let rw = RedisRwLocker::new(nodes);
        let brief = LockOptions::new(TTL).wait_for(Duration::from_millis(60));
        Ok(match self {
            Kind::Exclusive => locker.try_acquire(key, &brief)?.is_some(),
            Kind::Several => {
                let other = format!("beside {key}");
                locker.try_acquire_all(&[&other, key], &brief)?.is_some()
            }
            Kind::Fenced => locker.try_acquire(key, &brief.fencing(true))?.is_some(),
            Kind::Read => rw.try_acquire_read(key, &brief)?.is_some(),
            Kind::Write => rw.try_acquire_write(key, &brief)?.is_some(),
            Kind::FencedWrite => rw.try_acquire_write(key, &brief.fencing(true))?.is_some(),
            Kind::Permit => {
                let semaphore = RedisSemaphore::new(nodes, key, 3)?;
                semaphore.try_acquire(&brief)?.is_some()
            }
        })
    }
}

const HUGE: &str = "9223372036854775807";
const MANY_DIGITS: &str = "99999999999999999999 x";

/// The acquire, the suffix of the lock's key that is foreign (`""`: the key itself), and the
/// command that stores it, without the key after its first word.
fn table() -> Vec<(Kind, &'static str, Vec<&'static str>)> {
    use Kind::{Exclusive, Fenced, FencedWrite, Permit, Read, Several, Write};
    let mut table = Vec::new();
    for kind in [Exclusive, Several, Fenced] {
        table.push((kind, "", vec!["RPUSH", "1"]));
        table.push((kind, "", vec!["HSET", "a", "b"]));
        table.push((kind, "", vec!["SET", "x"]));
        table.push((kind, "", vec!["SET", "x", "PXAT", HUGE]));
    }
    for kind in [Read, Write] {
        table.push((kind, "writer", vec!["RPUSH", "1"]));
        table.push((kind, "writer", vec!["SET", "x"]));
        table.push((kind, "writer", vec!["SET", "x", "PXAT", HUGE]));
        table.push((kind, "readers", vec!["SET", "x"]));
    }
    for end in ["+inf", "1e300", "9007199254740993000", "99999999999999.5"] {
        table.push((Write, "readers", vec!["ZADD", end, "x"]));
        table.push((Read, "gate", vec!["ZADD", end, "x"]));
    }
    table.push((Read, "gate", vec!["SET", "x"]));
    table.push((Write, "turn", vec!["RPUSH", "1"]));
    table.push((Write, "turn", vec!["SET", "given"]));
    for kind in [Fenced, FencedWrite] {
        for number in [
            "junk",
            "",
            "1.5",
            "-5",
            "007",
            "1e3",
            "9007199254740991",
            HUGE,
            "99999999999999999999",
        ] {
            table.push((kind, "fence", vec!["SET", number]));
        }
        table.push((kind, "fence", vec!["RPUSH", "1"]));
    }
    for fields in [
        &["foo", "bar"][..],
        &["permits", "many", "0", "x"],
        &["permits", "0"],
        &["permits", "1025"],
        &["permits", "03"],
        &["permits", "3", "0", "junk", "1", "junk", "2", "junk"],
        &[
            "permits",
            "3",
            "0",
            MANY_DIGITS,
            "1",
            MANY_DIGITS,
            "2",
            "9007199254740993 x",
        ],
    ] {
        table.push((Permit, "permits", [&["HSET"], fields].concat()));
    }
    table.push((Permit, "permits", vec!["SET", "x"]));
    table
}

fn foreign_key(key: &str, ending: &str) -> String {
    match ending {
        "" => wire(key),
        ending => part(key, ending),
    }
}

fn put(node: &Server, foreign: &str, command: &[&str]) {
    let words = [&[command[0], foreign], &command[1..]].concat();
    ask::<redis::Value>(node, &words);
}

/// Returns the value under a key, and whether it has an expiry.
fn dump(node: &Server, key: &str) -> (Vec<u8>, bool) {
    let left: i64 = ask(node, &["PTTL", key]);
    (ask(node, &["DUMP", key]), left >= 0)
}

/// Returns since when each node has been up.
fn up_since(nodes: &Nodes) -> Vec<Instant> {
    let health = nodes.health();
    health.nodes.iter().map(|node| node.since).collect()
}

#[test]
fn foreign_value_refuses_its_own_lock_and_breaks_no_connection() {
    let servers = servers(3);
    let locker = connect(&servers);
    let nodes = locker.nodes();
    let since = up_since(nodes);
    for (number, (kind, ending, command)) in table().into_iter().enumerate() {
        let key = unique_key(&format!("foreign {number}"));
        let what = format!("{kind:?} {ending:?} {command:?}");
        let foreign = foreign_key(&key, ending);
        captured_log();
        servers
            .iter()
            .for_each(|node| put(node, &foreign, &command));
        let before: Vec<_> = servers.iter().map(|node| dump(node, &foreign)).collect();
        for _ in 0..2 {
            let granted = kind.acquire(nodes, &key);
            assert_eq!(granted, Ok(false), "{what}");
        }
        let after: Vec<_> = servers.iter().map(|node| dump(node, &foreign)).collect();
        assert!(before == after, "{what}: it is left untouched");
        assert_eq!(up_since(nodes), since, "{what}: no connection broke");
        let quoted = format!("{key:?}");
        let said = || captured_log().lines(Level::Warn, &quoted);
        // The last node may reply after the verdict.
        eventually(LIMIT, &what, || said().len() >= servers.len());
        assert_eq!(said().len(), servers.len(), "{what}: {:?}", said());
    }
}

#[test]
fn reader_beside_a_foreign_reader_keeps_its_set_without_expiry() {
    let servers = servers(1);
    let rw = RedisRwLocker::new(connect(&servers).nodes());
    let key = unique_key("endless");
    let readers = part(&key, "readers");
    put(&servers[0], &readers, &["ZADD", "+inf", "x"]);
    let before = dump(&servers[0], &readers);
    let guard = rw.read(&key, TTL).unwrap();
    guard.extend(2 * TTL).unwrap();
    guard.release().unwrap();
    assert!(dump(&servers[0], &readers) == before);
    // Scores may be fractions.
    let fraction: String = format!("{}.5", 4_000_000_000_000_u64);
    put(&servers[0], &readers, &["DEL"]);
    put(&servers[0], &readers, &["ZADD", &fraction, "x"]);
    rw.read(&key, TTL).unwrap().release().unwrap();
}

#[test]
fn value_that_became_foreign_loses_its_own_lock() {
    let servers = servers(3);
    let locker = connect(&servers);
    let nodes = locker.nodes();
    let since = up_since(nodes);
    let rw = RedisRwLocker::new(nodes);
    let all = |key: &str, command: &[&str]| {
        for node in &servers {
            ask::<redis::Value>(node, &["DEL", key]);
            put(node, key, command);
        }
    };
    let lost = |ended: Result<(), Error>| {
        let error = ended.unwrap_err();
        assert!(error.is_lost(), "{error}");
    };

    let key = unique_key("reader");
    let guard = rw.read(&key, TTL).unwrap();
    all(&part(&key, "readers"), &["SET", "x"]);
    lost(guard.extend(TTL));
    lost(guard.release());

    let key = unique_key("writer");
    let guard = rw.write(&key, TTL).unwrap();
    all(&part(&key, "readers"), &["SET", "x"]);
    lost(guard.downgrade().map(drop));

    let name = unique_key("permit");
    let semaphore = RedisSemaphore::new(nodes, &name, 1).unwrap();
    for command in [&["SET", "x"][..], &["HSET", "permits", "1", "0", "junk"]] {
        let permit = semaphore.acquire(&LockOptions::new(TTL)).unwrap();
        let permits = part(&name, "permits");
        all(&permits, command);
        let before = dump(&servers[0], &permits);
        lost(permit.extend(TTL));
        lost(permit.release());
        assert!(dump(&servers[0], &permits) == before, "{command:?}");
        servers
            .iter()
            .for_each(|node| ask::<()>(node, &["DEL", &permits]));
    }
    assert_eq!(up_since(nodes), since);
}

#[test]
fn handoff_to_a_fenced_waiter_succeeds_beside_a_foreign_fence_counter() {
    let servers = servers(3);
    let locker = connect(&servers);
    let key = unique_key("junk fence");
    let guard = locker.lock(&key, TTL).unwrap();
    for node in &servers {
        ask::<()>(node, &["SET", &part(&key, "fence"), "junk"]);
    }
    let fenced = LockOptions::new(TTL)
        .wait_for(Duration::from_millis(300))
        .fencing(true);
    thread::scope(|scope| {
        let waits = scope.spawn(|| locker.acquire(&key, &fenced));
        // Queued or not yet queued, the release has the same result.
        eventually(LIMIT, "it asks", || {
            locker.nodes().stats().attempts > 1 || !waits.is_finished()
        });
        assert_eq!(guard.release(), Ok(()));
        let error = waits.join().unwrap().unwrap_err();
        assert!(error.is_contended(), "{error}");
    });
    eventually(LIMIT, "no key of the lock is left", || {
        servers.iter().all(|node| pttl(node, &key) == -2)
    });
}

#[test]
fn holder_of_a_foreign_value_is_reported_as_foreign() {
    let servers = servers(3);
    let locker = connect(&servers);
    let key = unique_key("holder");
    for node in &servers[..2] {
        ask::<()>(node, &["RPUSH", &wire(&key), "1"]);
    }
    let holder = locker.holder(&key).unwrap().unwrap();
    assert!(holder.foreign && holder.has_quorum(), "{holder:?}");
    assert_eq!((holder.owner_label, holder.remaining), (None, None));
    assert!(!locker.force_release(&key).unwrap());
    // Labels of any length are shortened.
    let key = unique_key("long");
    let long = format!("{}:x", "é".repeat(1_000_000));
    for node in &servers {
        ask::<()>(node, &["SET", &wire(&key), &long]);
    }
    let holder = locker.holder(&key).unwrap().unwrap();
    assert!(!holder.foreign);
    assert_eq!(holder.owner_label.unwrap().chars().count(), 64);
    assert!(locker.force_release(&key).unwrap());
}

/// A search of a pattern from each byte of a value took 0.7 µs per byte, and blocked the server.
#[test]
fn holder_of_a_long_hexadecimal_value_is_told_without_a_search_through_it() {
    let servers = servers(1);
    let locker = connect(&servers);
    let key = unique_key("digits");
    let slower_than = "1000000"; // µs
    let config = ["CONFIG", "SET", "slowlog-log-slower-than", slower_than];
    ask::<()>(&servers[0], &config);
    let long = "a".repeat(8_000_000);
    let random = "0123456789".repeat(4);
    for (value, is_timed) in [
        (long.clone(), false),
        (format!("{long}.19a12345678"), true),
        (format!("x:{random}"), false),
        (format!("x:{random}.19a12345678"), true),
        (format!("x:{random}.ffffffffffffffff"), true),
        (format!("{}.19a12345678", &random[1..]), false),
    ] {
        ask::<()>(&servers[0], &["SET", &wire(&key), &value]);
        let holder = locker.holder(&key).unwrap().unwrap();
        let end = &value[value.len().saturating_sub(60)..];
        assert_eq!(holder.since.is_some(), is_timed, "{end}: {holder:?}");
    }
    let slow: u64 = ask(&servers[0], &["SLOWLOG", "LEN"]);
    assert_eq!(slow, 0, "commands took longer than {slower_than} µs");
}

/// The replies of refusals have the label in them, which looks like a header of a reply. A `Nodes`
/// that has just connected sends directly and polls for the reply, also on a busy machine.
#[test]
fn label_that_looks_like_a_header_is_told_and_breaks_no_connection() {
    let servers = servers(1);
    for label in ["*nightly*", "%1", "~1", ">1", "|1", "$9", "*", "a:*1"] {
        let token = format!("{label}:{}", "5".repeat(40));
        for (kind, ending) in [
            (Kind::Exclusive, ""),
            (Kind::Several, ""),
            (Kind::Fenced, ""),
            (Kind::Read, "writer"),
            (Kind::Write, "writer"),
            (Kind::FencedWrite, "writer"),
        ] {
            let (key, what) = (unique_key("label"), format!("{kind:?} {label}"));
            let foreign = foreign_key(&key, ending);
            put(&servers[0], &foreign, &["SET", &token, "PX", "600000"]);
            let locker = RedisLocker::connect(config(&servers)).unwrap();
            let since = up_since(locker.nodes());
            assert_eq!(kind.acquire(locker.nodes(), &key), Ok(false), "{what}");
            assert_eq!(up_since(locker.nodes()), since, "{what}");
        }
        let key = unique_key("label");
        put(&servers[0], &wire(&key), &["SET", &token, "PX", "600000"]);
        let locker = RedisLocker::connect(config(&servers)).unwrap();
        let fenced = LockOptions::new(TTL).wait_for(Duration::ZERO).fencing(true);
        let error = locker.acquire(&key, &fenced).unwrap_err();
        assert!(error.is_contended(), "{error}");
        assert!(error.to_string().contains(label), "{error}");
        let holder = locker.holder(&key).unwrap().unwrap();
        assert_eq!(holder.owner_label.as_deref(), Some(label));
    }
}

#[test]
fn expired_entries_without_an_expiry_of_their_key_keep_nothing_alive() {
    let servers = servers(1);
    let locker = connect(&servers);
    let key = unique_key("expired");
    let readers = part(&key, "readers");
    put(&servers[0], &readers, &["ZADD", "1", "x", "2", "y"]);
    let reader = RedisRwLocker::new(locker.nodes()).read(&key, TTL).unwrap();
    let permits = part(&key, "permits");
    put(
        &servers[0],
        &permits,
        &["HSET", "permits", "5", "0", "1 x", "4", "2 y"],
    );
    let semaphore = RedisSemaphore::new(locker.nodes(), &key, 1).unwrap();
    let permit = semaphore.acquire(&LockOptions::new(TTL)).unwrap();
    let entries: [u64; 2] = [
        ask(&servers[0], &["ZCARD", &readers]),
        ask(&servers[0], &["HLEN", &permits]),
    ];
    assert_eq!(entries, [1, 2]);
    for key in [&readers, &permits] {
        let left: i64 = ask(&servers[0], &["PTTL", key]);
        assert!(left > 0, "{key}: {left}");
    }
    assert_eq!((reader.release(), permit.release()), (Ok(()), Ok(())));
}
