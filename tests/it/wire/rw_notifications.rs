//! Messages of read lock releases: only the last reader publishes, and only where the lock was
//! held.

use redguard::{RedisRwLocker, RwLocker};

use crate::support::fixtures::{LIMIT, TTL, ask, config, wire};
use crate::support::servers::Server;
use crate::support::{eventually, raw, servers, unique_key};

const MARKER: &str = "the end";

/// Returns the messages for a key on a node while `act` ran, without the marker at the end.
fn published(node: &Server, key: &str, act: impl FnOnce()) -> usize {
    let mut connection = raw(node);
    let mut messages = connection.as_pubsub();
    messages.subscribe(wire(key)).unwrap();
    act();
    ask::<()>(node, &["PUBLISH", &wire(key), MARKER]);
    messages.set_read_timeout(Some(LIMIT)).unwrap();
    let heard = std::iter::repeat_with(|| {
        let message = messages.get_message().unwrap();
        message.get_payload::<String>().unwrap()
    });
    heard.take_while(|payload| payload != MARKER).count()
}

fn readers(node: &Server, key: &str) -> usize {
    ask(node, &["ZCARD", &format!("{{{}}}:readers", wire(key))])
}

#[test]
fn only_the_last_reader_publishes_its_release() {
    let nodes = servers(1);
    let locker = RedisRwLocker::connect(config(&nodes)).unwrap();
    let key = unique_key("last");
    let [first, last] = [(); 2].map(|()| locker.read(&key, TTL).unwrap());
    let alone = published(&nodes[0], &key, || first.release().unwrap());
    assert_eq!(alone, 0, "another one is inside");
    let alone = published(&nodes[0], &key, || last.release().unwrap());
    assert_eq!(alone, 1);
}

/// A waiter may listen on a node that refused the holder, where the release deletes nothing (L4).
#[test]
fn release_publishes_once_on_a_node_that_refused() {
    let nodes = servers(3);
    let locker = RedisRwLocker::connect(config(&nodes)).unwrap();
    let key = unique_key("refused");
    // A gate entry on one node.
    let gate = format!("{{{}}}:gate", wire(&key));
    let (seconds, _): (u64, u64) = ask(&nodes[0], &["TIME"]);
    let end = ((seconds + 1000) * 1000).to_string();
    ask::<()>(&nodes[0], &["ZADD", &gate, &end, "a writer"]);
    let reader = locker.read(&key, TTL).unwrap();
    for node in &nodes[1..] {
        eventually(LIMIT, "the others granted", || readers(node, &key) == 1);
    }
    assert_eq!(readers(&nodes[0], &key), 0);
    let released = |node: &Server| readers(node, &key) == 0;
    let heard = published(&nodes[0], &key, || {
        reader.release().unwrap();
        nodes[1..]
            .iter()
            .for_each(|node| eventually(LIMIT, "the lock is released", || released(node)));
        // The node serves the release of the refused reader before the release of another lock.
        let other = unique_key("other");
        locker.read(&other, TTL).unwrap().release().unwrap();
        eventually(LIMIT, "the node has served the other release", || {
            ask::<String>(&nodes[0], &["INFO", "commandstats"]).contains("cmdstat_zmscore:calls=2,")
        });
    });
    assert_eq!(heard, 1);
}
