//! Servers without memory under `noeviction`, the required policy: requests that only end or keep a
//! lock work. Only a real server knows which commands a script may then run.

use std::thread;
use std::time::Duration;

use redguard::{
    LockOptions, Locker, RedisLocker, RedisRwLocker, RedisSemaphore, RwLocker, Semaphore,
};

use crate::support::fixtures::{BRIEF, LIMIT, PREFIX, TTL, ask, connect, nowhere};
use crate::support::servers::Server;
use crate::support::{eventually, servers, unique_key};

/// Limits the memory of all servers to one byte until it is dropped.
struct OutOfMemory<'a>(&'a [Server]);

impl OutOfMemory<'_> {
    fn of(nodes: &[Server]) -> OutOfMemory<'_> {
        for node in nodes {
            ask::<()>(node, &["CONFIG", "SET", "maxmemory", "1"]);
            // Flushes the scripts, so that the first use of each finds it missing too.
            ask::<()>(node, &["SCRIPT", "FLUSH"]);
        }
        OutOfMemory(nodes)
    }
}

impl Drop for OutOfMemory<'_> {
    fn drop(&mut self) {
        for node in self.0 {
            ask::<()>(node, &["CONFIG", "SET", "maxmemory", "0"]);
        }
    }
}

fn all_gone(nodes: &[Server]) {
    eventually(LIMIT, "no key is left", || {
        let left = nodes.iter().map(|node| {
            let keys: Vec<String> = ask(node, &["KEYS", "*"]);
            keys.iter().filter(|key| !key.ends_with(":fence")).count()
        });
        left.sum::<usize>() == 0
    });
}

#[test]
fn locks_of_every_kind_are_extended_and_released_without_memory() {
    let nodes = servers(3);
    let locker = connect(&nodes);
    let rw = RedisRwLocker::new(locker.nodes());
    let semaphore = RedisSemaphore::new(locker.nodes(), &unique_key("permits"), 2).unwrap();
    let once = LockOptions::new(TTL);
    let [read, write, turned, many, more, handed] = [0; 6].map(|_| unique_key("memory"));
    let reader = rw.read(&read, TTL).unwrap();
    // A longer lock, so that the expiry of the set that contains both does not move.
    let longer = rw.read(&read, 3 * TTL).unwrap();
    let writer = rw.write(&write, TTL).unwrap();
    let turning = rw.write(&turned, TTL).unwrap();
    let several = locker.acquire_all(&[&many, &more], &once).unwrap();
    let permit = semaphore.acquire(&once).unwrap();
    let other = semaphore.acquire(&LockOptions::new(3 * TTL)).unwrap();
    let token = locker.lock(&handed, TTL).unwrap().into_token().unwrap();
    let out = OutOfMemory::of(&nodes);
    assert!(locker.try_lock(&unique_key("new"), TTL).is_err());
    reader.extend(2 * TTL).unwrap();
    longer.extend(2 * TTL).unwrap();
    writer.extend(2 * TTL).unwrap();
    several.extend(2 * TTL).unwrap();
    permit.extend(2 * TTL).unwrap();
    other.extend(2 * TTL).unwrap();
    let turned = turning.downgrade().unwrap();
    turned.extend(2 * TTL).unwrap();
    let adopted = locker.adopt(&token, TTL).unwrap();
    adopted.extend(2 * TTL).unwrap();
    // The waiter is refused, although its reader marker finds no memory.
    let brief = LockOptions::new(TTL).wait_for(Duration::from_millis(50));
    let refused = rw.acquire_read(&write, &brief).unwrap_err();
    assert!(refused.is_contended(), "{refused}");
    let refused = rw.acquire_write(&read, &brief).unwrap_err();
    assert!(refused.is_contended(), "{refused}");
    for released in [
        reader.release(),
        longer.release(),
        writer.release(),
        turned.release(),
        several.release(),
        permit.release(),
        other.release(),
        adopted.release(),
    ] {
        assert_eq!(released, Ok(()));
    }
    all_gone(&nodes);
    drop(out);
}

#[test]
fn readers_and_permits_are_renewed_without_memory() {
    let nodes = servers(3);
    let locker = connect(&nodes);
    let rw = RedisRwLocker::new(locker.nodes());
    let semaphore = RedisSemaphore::new(locker.nodes(), &unique_key("permits"), 1).unwrap();
    let renewed = LockOptions::new(BRIEF).auto_renew(true);
    let reader = rw.acquire_read(&unique_key("memory"), &renewed).unwrap();
    let permit = semaphore.acquire(&renewed).unwrap();
    let out = OutOfMemory::of(&nodes);
    let before = locker.nodes().stats().renewals;
    // Each lock is renewed at least twice, after its first lease would have ended.
    eventually(LIMIT, "the locks are renewed", || {
        assert!(reader.is_held() && permit.is_held());
        locker.nodes().stats().renewals >= before + 8
    });
    assert_eq!((reader.release(), permit.release()), (Ok(()), Ok(())));
    all_gone(&nodes);
    drop(out);
}

/// Releases a lock that another thread of this process waits for. Returns `true` if that thread
/// acquired it.
fn is_handed_off(nodes: &[Server], locker: &RedisLocker, next: &LockOptions) -> bool {
    let key = unique_key("handed off");
    let once = LockOptions::new(TTL).fencing(true);
    let first = locker.acquire(&key, &once).unwrap();
    let granted = thread::scope(|scope| {
        let waits = scope.spawn(|| locker.acquire(&key, next).map(|guard| guard.release()));
        let out = OutOfMemory::of(nodes);
        assert_eq!(first.release(), Ok(()));
        let waited = waits.join().unwrap();
        drop(out);
        match waited {
            Ok(released) => {
                assert_eq!(released, Ok(()));
                true
            }
            // The waiter arrived after the release, so its acquire is an ordinary one.
            Err(error) => {
                assert!(error.is_unavailable(), "{error}");
                false
            }
        }
    });
    nowhere(nodes, &key);
    granted
}

#[test]
fn handoff_succeeds_without_memory() {
    let nodes = servers(3);
    let locker = connect(&nodes);
    let patient = LockOptions::new(TTL).wait_for(Duration::from_millis(500));
    for options in [patient.clone(), patient.fencing(true)] {
        eventually(LIMIT, "the thread waits at the release", || {
            is_handed_off(&nodes, &locker, &options)
        });
    }
}

/// Stores values on all nodes, and returns what each node stores then.
fn stored<'a>(nodes: &'a [Server], commands: &[&[&str]]) -> impl Fn() -> Vec<Vec<u8>> + 'a {
    for node in nodes {
        for command in commands {
            ask::<redis::Value>(node, command);
        }
    }
    let keys: Vec<String> = commands.iter().map(|words| words[1].to_owned()).collect();
    move || {
        let dump = |node| {
            keys.iter()
                .flat_map(move |key| ask::<Vec<u8>>(node, &["DUMP", key]))
        };
        nodes.iter().map(|node| dump(node).collect()).collect()
    }
}

/// A removal of expired entries needs no memory. As the first write of a script it would let the
/// next writes pass.
#[test]
fn new_lock_is_refused_without_memory_whatever_has_expired() {
    let nodes = servers(3);
    let locker = connect(&nodes);
    let rw = RedisRwLocker::new(locker.nodes());
    let [read, expired, write, turned, name] = [0; 5].map(|_| unique_key("new"));
    let part = |key: &str, suffix: &str| format!("{{{PREFIX}{key}}}:{suffix}");
    let semaphore = RedisSemaphore::new(locker.nodes(), &name, 2).unwrap();
    let stored = stored(
        &nodes,
        &[
            &["ZADD", &part(&expired, "readers"), "1", "x"],
            &["ZADD", &part(&write, "readers"), "1", "x"],
            &["SET", &part(&turned, "turn"), "asked", "PX", "600000"],
            &["HSET", &part(&name, "permits"), "permits", "3", "0", "1 x"],
        ],
    );
    let before = stored();
    let out = OutOfMemory::of(&nodes);
    let once = LockOptions::new(TTL);
    let fenced = once.clone().fencing(true);
    for error in [
        rw.try_read(&read, TTL).map(drop),
        rw.try_read(&expired, TTL).map(drop),
        rw.try_write(&write, TTL).map(drop),
        rw.try_acquire_write(&write, &fenced).map(drop),
        rw.try_write(&turned, TTL).map(drop),
        semaphore.try_acquire(&once).map(drop),
        locker.try_acquire(&read, &fenced).map(drop),
    ] {
        let error = error.expect_err("no memory");
        assert!(
            error.is_unavailable() && error.to_string().contains("OOM"),
            "{error}"
        );
    }
    assert!(stored() == before, "nothing has changed");
    drop(out);
    // With memory they are granted, and the expired entries are removed.
    drop((
        rw.read(&expired, TTL).unwrap(),
        rw.write(&write, TTL).unwrap(),
    ));
    semaphore.acquire(&once).unwrap().release().unwrap();
    let set: Vec<String> = ask(
        &nodes[0],
        &["ZRANGE", &part(&expired, "readers"), "0", "-1"],
    );
    assert_eq!(set, Vec::<String>::new());
}
