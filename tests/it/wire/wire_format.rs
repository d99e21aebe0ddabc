//! Keys and values on real nodes, beside clients that do not use the library.

use std::thread;
use std::time::Duration;

use redguard::{Config, Error, LockOptions, Locker, RedisLocker};

use crate::support::fixtures::{
    LIMIT, STRANGER, TTL, acquire_lock, ask, at, config, connect, connect_by, everywhere, is_token,
    now, nowhere, pttl, shared, store_foreign_token, token, wire,
};
use crate::support::log_capture::captured_log;
use crate::support::servers::Server;
use crate::support::witness::Witness;
use crate::support::{eventually, servers, unique_key};

fn locker(config: Config) -> RedisLocker {
    RedisLocker::connect(config).unwrap()
}

/// Returns whether a plain attempt of another client under this key succeeds.
fn others_may(node: &Server, whole_key: &str) -> bool {
    let set = ["SET", whole_key, STRANGER, "NX", "PX", "300000"];
    ask::<Option<String>>(node, &set).is_some()
}

#[test]
fn key_is_prefix_and_name_and_stores_a_token_for_the_ttl() {
    let (key, nodes) = (unique_key("format"), shared());
    let ours = connect(nodes);
    captured_log();
    let mut seen = Vec::new();
    for _ in 0..2 {
        let start = now();
        let guard = ours.lock(&key, TTL).unwrap();
        let stored = everywhere(nodes, &key);
        let left: Vec<i64> = nodes.iter().map(|node| pttl(node, &key)).collect();
        let gone = start.elapsed().as_millis() as i64;
        assert!(is_token(&stored), "{stored:?}");
        let ttl = TTL.as_millis() as i64;
        assert!(
            left.iter()
                .all(|left| (ttl - gone - 300..=ttl).contains(left)),
            "{left:?} after {gone} ms"
        );
        for node in nodes {
            let kind: String = ask(node, &["TYPE", &wire(&key)]);
            assert_eq!(kind, "string");
        }
        guard.release().unwrap();
        nowhere(nodes, &key);
        seen.push(stored);
    }
    assert_ne!(seen[0], seen[1], "a fresh token for every attempt");
    assert!(seen.iter().all(|token| !captured_log().mentions(token)));
}

#[test]
fn value_is_owner_label_then_token() {
    let (key, nodes) = (unique_key("owned"), shared());
    let ours = connect_by(config(nodes).owner_label("nightly 7"), nodes);
    let guard = acquire_lock(&ours, &key);
    let stored = everywhere(nodes, &key);
    let (label, random) = stored.split_once(':').unwrap();
    assert!(label == "nightly 7" && is_token(random), "{stored:?}");
    let unlabelled = connect_by(config(nodes).no_owner_label(), nodes);
    let other = unique_key("unowned");
    let _guard = acquire_lock(&unlabelled, &other);
    assert!(!everywhere(nodes, &other).contains(':'));
    guard.extend(2 * TTL).unwrap();
    guard.release().unwrap();
    nowhere(nodes, &key);
}

#[test]
fn key_contains_only_prefix_and_name() {
    let nodes = shared();
    let (prefix, name) = (unique_key("p"), unique_key("n"));
    let joined = format!("{prefix}{name}");
    let ours = locker(config(nodes).key_prefix(&*prefix));
    let guard = acquire_lock(&ours, &name);
    for node in nodes {
        eventually(LIMIT, "the key is there", || {
            // Stores the key on a node that had missed the acquire.
            guard.extend(TTL).unwrap();
            let stored: Option<String> = ask(node, &["GET", &joined]);
            stored.is_some_and(|stored| is_token(&stored))
        });
        assert!(!others_may(node, &joined));
        assert!(others_may(node, &name));
    }
    // Another client now holds the plain name; we hold the joined key.
    assert!(guard.is_held());
    let bare = locker(config(nodes).key_prefix(""));
    assert!(bare.try_lock(&joined, TTL).unwrap().is_none());
    assert!(bare.try_lock(&name, TTL).unwrap().is_none());
    guard.release().unwrap();
    drop(bare.try_lock(&joined, TTL).unwrap().unwrap());
    let guard = ours.try_lock(&name, TTL).unwrap().unwrap();
    assert!(bare.try_lock(&joined, TTL).unwrap().is_none());
    guard.release().unwrap();
}

#[test]
fn acquire_beside_each_subset_of_foreign_keys_is_decided_by_quorum() {
    let nodes = shared();
    let ours = connect(nodes);
    for mask in 0..8_usize {
        let key = unique_key("mask");
        let is_taken = |node: &usize| mask & (1 << node) != 0;
        let taken: Vec<&Server> = (0..3).filter(is_taken).map(|node| &nodes[node]).collect();
        taken
            .iter()
            .for_each(|node| store_foreign_token(node, &key, TTL));
        let before: Vec<i64> = taken.iter().map(|node| pttl(node, &key)).collect();
        let tried = ours.try_lock(&key, TTL).unwrap();
        assert_eq!(tried.is_some(), taken.len() <= 1, "mask {mask:03b}");
        if let Some(guard) = tried {
            guard.extend(2 * TTL).unwrap();
            guard.release().unwrap();
        }
        // Our keys are undone, and the foreign keys are unchanged.
        eventually(LIMIT, "only the foreign key is left", || {
            let left = nodes.iter().map(|node| token(node, &key));
            left.enumerate()
                .all(|(node, left)| left.as_deref() == is_taken(&node).then_some(STRANGER))
        });
        for (node, before) in taken.iter().zip(before) {
            let after = pttl(node, &key);
            assert!(0 < after && after <= before, "{after} {before}");
        }
    }
}

#[test]
fn value_of_another_type_refuses_the_lock() {
    let (key, nodes) = (unique_key("list"), shared());
    let ours = connect(nodes);
    let push = |node: &Server| {
        let items: u32 = ask(node, &["RPUSH", &wire(&key), "1", "2"]);
        assert_eq!(items, 2);
    };
    let untouched = || {
        for node in nodes {
            let items: Vec<u32> = ask(node, &["LRANGE", &wire(&key), "0", "-1"]);
            assert_eq!((items, pttl(node, &key)), (vec![1, 2], -1));
        }
    };
    nodes.iter().for_each(push);
    assert!(ours.try_lock(&key, TTL).unwrap().is_none());
    untouched();
    let delete = |node| assert_eq!(ask::<u32>(node, &["DEL", &wire(&key)]), 1);
    for extended in [false, true] {
        nodes.iter().for_each(delete);
        let guard = acquire_lock(&ours, &key);
        everywhere(nodes, &key);
        nodes.iter().for_each(delete);
        nodes.iter().for_each(push);
        if extended {
            assert!(matches!(guard.extend(TTL), Err(Error::LockLost { .. })));
            assert!(!guard.is_held());
        }
        assert!(matches!(guard.release(), Err(Error::LockLost { .. })));
        untouched();
    }
    // All queued requests have been served by now.
    assert!(ours.nodes().shutdown(LIMIT));
    untouched();
}

#[test]
fn holder_without_expiry_refuses_the_lock() {
    let (key, nodes) = (unique_key("no end"), shared());
    let ours = connect(nodes);
    for node in nodes {
        ask::<()>(node, &["SET", &wire(&key), STRANGER]);
    }
    assert!(ours.try_lock(&key, TTL).unwrap().is_none());
    let limited = LockOptions::new(TTL).wait_for(Duration::from_millis(50));
    let error = ours.acquire(&key, &limited).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Contended {
                remaining: None,
                ..
            }
        ),
        "{error:?}"
    );
    for node in nodes {
        assert_eq!(token(node, &key).as_deref(), Some(STRANGER));
        assert_eq!(pttl(node, &key), -1);
    }
}

#[test]
fn extension_never_shortens_a_ttl_on_any_node() {
    let (key, nodes) = (unique_key("extended"), shared());
    let ours = connect(nodes);
    let guard = acquire_lock(&ours, &key);
    let stored = everywhere(nodes, &key);
    let all = |what: &str, is: &dyn Fn(i64) -> bool| {
        eventually(LIMIT, what, || {
            nodes.iter().all(|node| is(pttl(node, &key)))
        });
    };
    let ttl = TTL.as_millis() as i64;
    guard.extend(2 * TTL).unwrap();
    all("it has grown", &|left| left > ttl);
    guard.extend(TTL / 2).unwrap();
    // A third extension, queued behind the second on every connection, shows that the second has
    // been served.
    guard.extend(4 * TTL).unwrap();
    all("it has grown again", &|left| left > 3 * ttl);
    guard.extend(TTL / 2).unwrap();
    assert!(ours.try_lock(&unique_key("behind"), TTL).unwrap().is_some());
    all("it was not shortened", &|left| left > 3 * ttl);
    for node in nodes {
        assert!(ask::<bool>(node, &["PERSIST", &wire(&key)]));
    }
    guard.extend(TTL).unwrap();
    all("it has an end again", &|left| 0 < left && left <= ttl);
    assert_eq!(everywhere(nodes, &key), stored);
    guard.release().unwrap();
    nowhere(nodes, &key);
}

#[test]
fn connections_use_the_database_number() {
    let nodes = &servers(1);
    let in_db = |db: &str, key: &str| {
        let mut connection = crate::support::raw(&nodes[0]);
        let mut pipe = redis::pipe();
        pipe.cmd("SELECT").arg(db).ignore();
        pipe.cmd("EXISTS").arg(wire(key));
        let (exists,): (bool,) = pipe.query(&mut connection).unwrap();
        exists
    };
    let set = locker(config(nodes).db(3));
    let named = locker(at([format!("{}/5", nodes[0].url())]).db(3));
    let key = unique_key("db");
    // One name in three databases: three locks.
    let guards = [acquire_lock(&set, &key), acquire_lock(&named, &key)];
    assert_eq!(
        ["0", "3", "5"].map(|db| in_db(db, &key)),
        [false, true, true]
    );
    drop(acquire_lock(&connect(nodes), &key));
    // Also after a reconnect.
    ask::<u32>(
        &nodes[0],
        &["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"],
    );
    for (guard, db) in guards.into_iter().zip(["3", "5"]) {
        eventually(LIMIT, "extended on a new connection", || {
            guard.extend(TTL).is_ok()
        });
        assert!(in_db(db, &key));
        guard.release().unwrap();
        assert!(!in_db(db, &key));
    }
}

#[test]
fn a_unix_socket_is_an_address() {
    let start = || Server::options().arg("--unixsocket", "redis.sock").start();
    let nodes = &[(); 3].map(|()| start().unwrap());
    let address = |node: &Server| format!("unix://{}", node.dir().join("redis.sock").display());
    let ours = connect_by(at(nodes.iter().map(address)), nodes);
    let key = unique_key("socket");
    let guard = acquire_lock(&ours, &key);
    everywhere(nodes, &key);
    assert!(connect(nodes).try_lock(&key, TTL).unwrap().is_none());
    guard.extend(2 * TTL).unwrap();
    guard.release().unwrap();
    nowhere(nodes, &key);
}

#[test]
fn forgotten_scripts_are_loaded_again() {
    let nodes = &servers(3);
    let ours = connect(nodes);
    let key = unique_key("flushed");
    let flush = || {
        for node in nodes {
            ask::<()>(node, &["SCRIPT", "FLUSH"]);
        }
    };
    for _ in 0..3 {
        flush();
        let guard = ours.try_lock(&key, TTL).unwrap().unwrap();
        let stored = everywhere(nodes, &key);
        flush();
        guard.extend(2 * TTL).unwrap();
        assert_eq!(everywhere(nodes, &key), stored);
        flush();
        guard.release().unwrap();
        nowhere(nodes, &key);
    }
}

/// Returns the server's clients without the connection that asks. Since Redis 7.2 the server also
/// reports their library.
fn clients(node: &Server) -> usize {
    let list: String = ask(node, &["CLIENT", "LIST"]);
    let named = list.contains("lib-name=");
    let ours = |line: &&str| match named {
        true => line.contains("lib-name=redguard "),
        false => !line.contains("cmd=client"),
    };
    list.lines().filter(ours).count()
}

#[test]
fn several_connections_per_node_exclude_as_one() {
    let nodes = &servers(3);
    let ours = locker(config(nodes).pool_size(3));
    let used = |node: &Server| {
        let list: String = ask(node, &["CLIENT", "LIST"]);
        // A node that was too late for the acquire gets a message in place of the release.
        let releases = ["cmd=evalsha", "cmd=publish"];
        releases
            .iter()
            .map(|cmd| list.matches(cmd).count())
            .sum::<usize>()
    };
    for node in nodes {
        eventually(LIMIT, "there are three connections", || clients(node) == 3);
    }
    let key = unique_key("one");
    for node in nodes {
        eventually(LIMIT, "a connection is used", || {
            acquire_lock(&ours, &key).release().unwrap();
            used(node) > 0
        });
    }
    (0..20).for_each(|_| acquire_lock(&ours, &key).release().unwrap());
    for node in nodes {
        eventually(LIMIT, "one subscription is for a key", || used(node) == 1);
    }
    let witness = Witness::new();
    let keys: Vec<String> = (0..4).map(|_| unique_key("pooled")).collect();
    thread::scope(|scope| {
        for key in keys.iter().flat_map(|key| [key; 3]) {
            let (ours, witness) = (&ours, &witness);
            scope.spawn(move || {
                for _ in 0..10 {
                    let guard = acquire_lock(ours, key);
                    let inside = witness.enter(key);
                    guard.extend(TTL).unwrap();
                    drop(inside);
                    guard.release().unwrap();
                }
            });
        }
    });
    assert_eq!(witness.overlaps(), 0);
    assert!(keys.iter().all(|key| witness.entries(key) == 30));
    for node in nodes {
        eventually(LIMIT, "all are used", || {
            acquire_lock(&ours, &unique_key("some")).release().unwrap();
            used(node) == 3
        });
        assert_eq!(clients(node), 3);
    }
    assert!(ours.nodes().shutdown(LIMIT));
    for node in nodes {
        eventually(LIMIT, "no connection is left", || clients(node) == 0);
    }
}
