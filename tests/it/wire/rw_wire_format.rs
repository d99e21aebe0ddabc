//! Keys and values of a read-write lock on real nodes, and its treatment of foreign values there.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use redguard::{Error, LockOptions, Locker, RedisLocker, RedisRwLocker, RetryPolicy, RwLocker};

use crate::support::fixtures::{
    LIMIT, PREFIX, TTL, ask, config, connect, connect_by, is_token, now, token, try_ask,
};
use crate::support::servers::Server;
use crate::support::{eventually, servers, unique_key};

fn rw(nodes: &[Server]) -> RedisRwLocker {
    RedisRwLocker::new(connect(nodes).nodes())
}

fn brief() -> LockOptions {
    LockOptions::new(TTL).wait_for(Duration::from_millis(200))
}

/// Returns one of a lock's keys. Its name has no hash tag.
fn part(key: &str, ending: &str) -> String {
    format!("{{{PREFIX}{key}}}:{ending}")
}

/// Returns the readers, or the gate entries, that a node stores, with their expiries on its clock.
fn members(node: &Server, key: &str, ending: &str) -> BTreeMap<String, u64> {
    ask(
        node,
        &["ZRANGE", &part(key, ending), "0", "-1", "WITHSCORES"],
    )
}

fn writer(node: &Server, key: &str) -> Option<String> {
    ask(node, &["GET", &part(key, "writer")])
}

/// Returns a node's clock, in ms.
fn clock(node: &Server) -> u64 {
    let (seconds, micros): (u64, u64) = ask(node, &["TIME"]);
    seconds * 1000 + micros / 1000
}

/// Adds another process's member to one of the sets, with this lifetime. The set outlives its
/// members, as the library's sets do.
fn enter(node: &Server, key: &str, ending: &str, who: &str, left: Duration) {
    let end = (clock(node) + left.as_millis() as u64).to_string();
    ask::<usize>(node, &["ZADD", &part(key, ending), &end, who]);
    let last = members(node, key, ending).into_values().max().unwrap_or(0) + 1_000;
    ask::<()>(node, &["PEXPIREAT", &part(key, ending), &last.to_string()]);
}

fn keys(node: &Server) -> Vec<String> {
    ask(node, &["KEYS", "*"])
}

fn all_empty(nodes: &[Server]) {
    let mut left = Vec::new();
    eventually(LIMIT, "no key is left on any node", || {
        left = nodes.iter().flat_map(keys).collect();
        left.is_empty()
    });
}

#[test]
fn read_write_keys_values_and_expiries_match_the_documentation() {
    let nodes = servers(3);
    let locker = rw(&nodes);
    for (name, base) in [
        ("plain", "{redguard:plain}"),
        ("{shop}tagged", "redguard:{shop}tagged"),
        ("a}b{}c", "{redguard:a}b{}c}"),
    ] {
        let writing = locker.write(name, TTL).unwrap();
        let ttl = TTL.as_millis() as i64;
        eventually(LIMIT, "the writer is everywhere", || {
            let left = |node| ask::<i64>(node, &["PTTL", &format!("{base}:writer")]);
            nodes
                .iter()
                .all(|node| (ttl - 5_000..=ttl).contains(&left(node)))
        });
        let reading = writing.downgrade().unwrap();
        let beside = locker.read(name, TTL).unwrap();
        eventually(LIMIT, "both readers are everywhere", || {
            nodes.iter().all(|node| {
                let readers: BTreeMap<String, u64> = ask(
                    node,
                    &[
                        "ZRANGE",
                        &format!("{base}:readers"),
                        "0",
                        "-1",
                        "WITHSCORES",
                    ],
                );
                let end = clock(node) + TTL.as_millis() as u64;
                readers.len() == 2
                    && readers
                        .iter()
                        .all(|(token, ends)| is_token(token) && *ends <= end)
            })
        });
        let names: Vec<String> = keys(&nodes[0]);
        assert_eq!(names, [format!("{base}:readers")]);
        drop((reading, beside));
        all_empty(&nodes);
    }
}

#[test]
fn every_reader_has_a_token_of_its_own() {
    let nodes = servers(1);
    let key = unique_key("own");
    let [locker, other] = [rw(&nodes), rw(&nodes)];
    let guards = [
        locker.read(&key, TTL).unwrap(),
        locker.read(&key, TTL).unwrap(),
        other.read(&key, 2 * TTL).unwrap(),
    ];
    let readers = members(&nodes[0], &key, "readers");
    assert_eq!(readers.len(), 3);
    let [first, second, third] = guards;
    third.release().unwrap();
    assert_eq!(members(&nodes[0], &key, "readers").len(), 2);
    // The set expires a second after the last remaining member.
    let left: i64 = ask(&nodes[0], &["PTTL", &part(&key, "readers")]);
    assert!(left <= TTL.as_millis() as i64 + 1_000, "{left}");
    drop((first, second));
    all_empty(&nodes);
}

#[test]
fn tries_and_waits_without_the_lock_leave_no_key() {
    let nodes = servers(3);
    let key = unique_key("left");
    let [locker, other] = [rw(&nodes), rw(&nodes)];
    let reader = other.read(&key, TTL).unwrap();
    assert!(locker.try_write(&key, TTL).unwrap().is_none());
    assert!(
        nodes
            .iter()
            .all(|node| members(node, &key, "gate").is_empty())
    );
    let error = locker.acquire_write(&key, &brief()).unwrap_err();
    assert!(matches!(error, Error::ReadersTimeout { .. }), "{error}");
    drop(reader);
    all_empty(&nodes);
    let writer = other.write(&key, TTL).unwrap();
    assert!(locker.try_read(&key, TTL).unwrap().is_none());
    let turns = |node| ask::<Option<String>>(node, &["GET", &part(&key, "turn")]);
    assert!(nodes.iter().all(|node| turns(node).is_none()));
    let error = locker.acquire_read(&key, &brief()).unwrap_err();
    assert!(matches!(error, Error::WriteLockTimeout { .. }), "{error}");
    drop(writer);
    // The reader turn expires on its own.
    all_empty(&nodes);
}

#[test]
fn foreign_values_are_refused_and_left_untouched() {
    let nodes = servers(3);
    let locker = rw(&nodes);
    let key = unique_key("foreign");
    for node in &nodes {
        ask::<()>(node, &["SET", &part(&key, "writer"), "foreign"]);
    }
    assert!(locker.try_read(&key, TTL).unwrap().is_none());
    assert!(locker.try_write(&key, TTL).unwrap().is_none());
    let error = locker.acquire_write(&key, &brief()).unwrap_err();
    assert!(
        matches!(
            error,
            Error::WriteLockHeld {
                remaining: None,
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(writer(&nodes[0], &key).as_deref(), Some("foreign"));
    // A value of another type counts as contended too, because another attempt does not remove it.
    for (ending, set) in [
        ("writer", ["LPUSH", "1"]),
        ("readers", ["SET", "1"]),
        ("gate", ["SET", "1"]),
        ("turn", ["LPUSH", "1"]),
    ] {
        let key = unique_key("type");
        for node in &nodes {
            ask::<()>(node, &[set[0], &part(&key, ending), set[1]]);
        }
        let before: String = ask(&nodes[0], &["TYPE", &part(&key, ending)]);
        // Without a writer and a gate, a reader does not ask for a reader turn.
        let read = locker.try_read(&key, TTL).unwrap().is_some();
        assert_eq!(read, ending == "turn", "{ending}");
        if ending != "gate" {
            assert!(locker.try_write(&key, TTL).unwrap().is_none(), "{ending}");
        }
        for node in &nodes {
            assert_eq!(ask::<String>(node, &["TYPE", &part(&key, ending)]), before);
        }
    }
}

#[test]
fn crashed_reader_expires_alone() {
    let nodes = servers(1);
    let key = unique_key("crashed");
    let locker = rw(&nodes);
    // An expired reader, a reader that expires soon, and a living reader.
    let alive = locker.read(&key, TTL).unwrap();
    enter(&nodes[0], &key, "readers", "soon", TTL);
    ask::<usize>(&nodes[0], &["ZADD", &part(&key, "readers"), "1", "dead"]);
    drop(locker.read(&key, TTL).unwrap());
    assert!(!members(&nodes[0], &key, "readers").contains_key("dead"));
    alive.release().unwrap();
    // The refusal contains its expiry.
    let error = locker.acquire_write(&key, &LockOptions::new(TTL).wait_for(Duration::ZERO));
    let Err(Error::ReadersTimeout {
        remaining: Some(left),
        ..
    }) = error
    else {
        panic!("{error:?}")
    };
    assert!(left <= TTL && left > TTL / 2, "{left:?}");
    let soon = Duration::from_millis(700);
    enter(&nodes[0], &key, "readers", "soon", soon);
    let began = now();
    drop(locker.write(&key, TTL).unwrap());
    assert!(began.elapsed() < LIMIT);
    all_empty(&nodes);
}

#[test]
fn a_writer_waits_for_the_longest_of_the_readers() {
    let nodes = servers(1);
    let key = unique_key("longest");
    let locker = rw(&nodes);
    let [short, long] = [2, 3].map(Duration::from_secs);
    enter(&nodes[0], &key, "readers", "long", long);
    let end = members(&nodes[0], &key, "readers")["long"];
    locker.read(&key, short).unwrap().release().unwrap();
    drop(locker.write(&key, TTL).unwrap());
    assert!(clock(&nodes[0]) >= end);
}

#[test]
fn foreign_gate_entry_refuses_new_readers_only() {
    let nodes = servers(3);
    let key = unique_key("gate");
    let locker = rw(&nodes);
    let reader = locker.read(&key, TTL).unwrap();
    nodes
        .iter()
        .for_each(|node| enter(node, &key, "gate", "stranger", TTL));
    assert!(locker.try_read(&key, TTL).unwrap().is_none());
    reader.extend(TTL).unwrap();
    reader.release().unwrap();
    locker
        .try_write(&key, TTL)
        .unwrap()
        .unwrap()
        .release()
        .unwrap();
    assert!(locker.try_read(&key, TTL).unwrap().is_none());
    // An expired member refuses nobody.
    for node in &nodes {
        ask::<()>(node, &["ZADD", &part(&key, "gate"), "1", "stranger"]);
    }
    assert!(locker.try_read(&key, TTL).unwrap().is_some());
}

#[test]
fn flushed_scripts_are_loaded_within_each_request() {
    let nodes = servers(3);
    let key = unique_key("flushed");
    let locker = rw(&nodes);
    let flush = || {
        nodes
            .iter()
            .for_each(|node| ask(node, &["SCRIPT", "FLUSH"]))
    };
    flush();
    let writer = locker.write(&key, TTL).unwrap();
    flush();
    writer.extend(TTL).unwrap();
    flush();
    let reader = writer.downgrade().unwrap();
    flush();
    reader.extend(TTL).unwrap();
    flush();
    reader.release().unwrap();
    flush();
    // Several at once: readers that share a script call are restored together.
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| locker.read(&key, TTL).unwrap().release().unwrap());
        }
    });
    flush();
    locker.write(&key, TTL).unwrap().release().unwrap();
    all_empty(&nodes);
}

#[test]
fn read_write_lock_that_a_quorum_lost_is_reported() {
    let nodes = servers(3);
    let key = unique_key("lost");
    let locker = rw(&nodes);
    let lose = || nodes[1..].iter().for_each(|node| ask(node, &["FLUSHALL"]));
    let everywhere = |ending: &str| {
        eventually(LIMIT, "the key is on every node", || {
            let there = |node| ask::<usize>(node, &["EXISTS", &part(&key, ending)]) == 1;
            nodes.iter().all(there)
        });
    };
    let reader = locker.read(&key, TTL).unwrap();
    everywhere("readers");
    lose();
    assert!(matches!(reader.extend(TTL), Err(Error::LockLost { .. })));
    assert!(!reader.is_held());
    let reader = locker.read(&key, TTL).unwrap();
    everywhere("readers");
    lose();
    assert!(matches!(reader.release(), Err(Error::LockLost { .. })));
    let writer = locker.write(&key, TTL).unwrap();
    everywhere("writer");
    lose();
    assert!(matches!(
        writer.downgrade().map(drop),
        Err(Error::LockLost { .. })
    ));
    all_empty(&nodes);
}

#[test]
fn key_that_one_node_lost_is_restored_by_an_extension() {
    let nodes = servers(3);
    let key = unique_key("back");
    let locker = rw(&nodes);
    let reader = locker.read(&key, TTL).unwrap();
    ask::<()>(&nodes[2], &["FLUSHALL"]);
    eventually(LIMIT, "the reader is restored", || {
        reader.extend(TTL).unwrap();
        members(&nodes[2], &key, "readers").len() == 1
    });
    let token = members(&nodes[0], &key, "readers");
    assert_eq!(
        token.keys().next(),
        members(&nodes[2], &key, "readers").keys().next()
    );
    reader.release().unwrap();
    all_empty(&nodes);
    let writing = locker.write(&key, TTL).unwrap();
    ask::<()>(&nodes[2], &["FLUSHALL"]);
    eventually(LIMIT, "the writer is restored", || {
        writing.extend(TTL).unwrap();
        writer(&nodes[2], &key).is_some()
    });
    writing.release().unwrap();
    all_empty(&nodes);
}

#[test]
fn exclusive_and_read_write_locks_of_one_name_are_different_locks() {
    let nodes = servers(3);
    let key = unique_key("two");
    let exclusive: RedisLocker = connect_by(config(&nodes), &nodes);
    let locker = RedisRwLocker::new(exclusive.nodes());
    let lock = exclusive.lock(&key, TTL).unwrap();
    let writer = locker.try_write(&key, TTL).unwrap().unwrap();
    eventually(LIMIT, "both are there", || token(&nodes[0], &key).is_some());
    lock.release().unwrap();
    assert!(writer.is_held());
    writer.release().unwrap();
    all_empty(&nodes);
}

#[test]
fn long_retry_delays_do_not_prolong_gate_entry_and_reader_turn() {
    let nodes = servers(1);
    let key = unique_key("policy");
    let policy = RetryPolicy {
        initial_delay: LIMIT,
        max_delay: LIMIT,
        ..RetryPolicy::default()
    };
    let slow = RedisRwLocker::connect(config(&nodes).retry(policy)).unwrap();
    let other = rw(&nodes);
    let reader = other.read(&key, TTL).unwrap();
    thread::scope(|scope| {
        let writer = scope.spawn(|| slow.write(&key, TTL).unwrap());
        let mut ends = BTreeMap::new();
        eventually(LIMIT, "the gate entry is there", || {
            ends = members(&nodes[0], &key, "gate");
            ends.len() == 1
        });
        let left = ends
            .values()
            .map(|end| end.saturating_sub(clock(&nodes[0])));
        assert!(left.max() <= Some(300));
        reader.release().unwrap();
        drop(writer.join().unwrap());
    });
    all_empty(&nodes);
    assert!(try_ask::<()>(&nodes[0], &["PING"]).is_ok());
}
