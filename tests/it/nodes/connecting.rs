//! Connecting to nodes that hang, die, come back and refuse.

use std::time::Duration;

use redguard::{
    Config, Error, FailedNode, LockGuard, Locker, NodeFailure, NodeState, Nodes, RedisLocker, Role,
};

use crate::support::fixtures::{
    LIMIT, TTL, acquire_lock, ask, at, config, connect, connect_by, everywhere, is_token, now,
    nowhere, pttl, token, wait_until_it_grants,
};
use crate::support::servers::{Server, free_port};
use crate::support::{eventually, servers, unique_key};

/// `node_timeout` of tests with hung nodes: longer than any reply of a healthy node on a busy
/// machine.
const HUNG: Duration = Duration::from_secs(1);

fn impatient(nodes: &[Server]) -> RedisLocker {
    connect_by(config(nodes).node_timeout(HUNG), nodes)
}

/// Returns the fields of an `InsufficientQuorum`: needed, reachable and total, and the cause of
/// each node.
fn insufficient(error: Error) -> ([usize; 3], Box<[FailedNode]>) {
    assert!(error.is_unavailable() && !error.is_contended() && !error.is_lost());
    match error {
        Error::InsufficientQuorum {
            needed,
            reachable,
            total,
            causes,
            ..
        } => ([needed, reachable, total], causes),
        other => panic!("{other}"),
    }
}

/// Returns the error of a connect that cannot succeed. It retries until its timeout.
fn refused(config: Config) -> Error {
    match Nodes::connect(config.node_timeout(HUNG).connect_timeout(HUNG)) {
        Ok(_) => panic!("connected"),
        Err(error) => error,
    }
}

// Connecting.

#[test]
fn connect_without_addresses_or_with_one_server_twice_fails() {
    assert_eq!(refused(at([""; 0])), Error::NoAddresses);
    let node = &servers(1)[0];
    let port = node.port();
    let by_text = refused(at([node.addr(), format!("redis://{}/3", node.addr())]));
    assert!(
        matches!(&by_text, Error::InvalidConfig(text) if text.contains(&node.addr())),
        "{by_text}"
    );
    // Only the server itself can tell that these addresses are one server.
    let by_run_id = refused(at([node.addr(), format!("localhost:{port}")]));
    assert!(
        matches!(&by_run_id, Error::InvalidConfig(text) if text.contains(&node.addr()) && text.contains("localhost")),
        "{by_run_id}"
    );
}

#[test]
fn connect_without_reachable_nodes_reports_each_cause() {
    let addresses = [(); 3].map(|()| format!("127.0.0.1:{}", free_port().unwrap()));
    let (counts, causes) = insufficient(refused(at(addresses.clone())));
    assert_eq!(counts, [2, 0, 3]);
    for (cause, address) in causes.iter().zip(&addresses) {
        assert_eq!(cause.node, *address);
        assert!(
            matches!(cause.failure, NodeFailure::Unreachable(_)),
            "{cause}"
        );
    }
    assert_eq!(causes.len(), 3);
}

#[test]
fn node_that_was_down_at_connect_is_used_later() {
    let nodes = servers(3);
    nodes[2].kill();
    let locker = connect_by(config(&nodes), &nodes[..2]);
    let key = unique_key("late");
    let guard = acquire_lock(&locker, &key);
    nodes[2].restart().unwrap();
    wait_until_it_grants(&locker, &nodes[2]);
    // The key of an earlier lock is restored there too.
    eventually(LIMIT, "the key is on the late node", || {
        guard.extend(TTL).unwrap();
        token(&nodes[2], &key).is_some()
    });
    assert!(is_token(&everywhere(&nodes, &key)));
    guard.release().unwrap();
    nowhere(&nodes, &key);
}

#[test]
fn hung_node_does_not_delay_connect() {
    let nodes = servers(3);
    nodes[0].stop().unwrap();
    let timeout = LIMIT;
    let start = now();
    let locker = RedisLocker::connect(config(&nodes).connect_timeout(timeout)).unwrap();
    assert!(start.elapsed() < timeout, "{:?}", start.elapsed());
    acquire_lock(&locker, &unique_key("hung"))
        .release()
        .unwrap();
    nodes[0].resume().unwrap();
    wait_until_it_grants(&locker, &nodes[0]);
}

#[test]
fn connect_to_hung_nodes_ends_at_its_timeout() {
    let nodes = servers(3);
    nodes[1..].iter().for_each(|node| node.stop().unwrap());
    let start = now();
    let error = refused(config(&nodes));
    assert!(start.elapsed() < LIMIT, "{:?}", start.elapsed());
    let (counts, causes) = insufficient(error);
    assert_eq!(counts, [2, 1, 3]);
    let hung = causes.iter().map(|cause| (&*cause.node, &cause.failure));
    let expected = nodes[1..].iter().map(Server::addr).collect::<Vec<_>>();
    let expected = expected
        .iter()
        .map(|node| (&**node, &NodeFailure::TimedOut));
    assert!(hung.clone().eq(expected), "{causes:?}");
}

// Nodes that hang.

#[test]
fn hung_minority_delays_no_caller_and_keeps_no_key() {
    let nodes = servers(3);
    let locker = impatient(&nodes);
    let before = unique_key("before");
    let held = acquire_lock(&locker, &before);
    everywhere(&nodes, &before);
    nodes[1].stop().unwrap();
    let mut keys = vec![before];
    for _ in 0..10 {
        let key = unique_key("hung");
        let guard = locker.lock(&key, TTL).unwrap();
        guard.extend(2 * TTL).unwrap();
        guard.release().unwrap();
        keys.push(key);
    }
    held.extend(2 * TTL).unwrap();
    held.release().unwrap();
    // The worker releases the key that the node held. The node may execute and undo the other
    // requests, if it has read them at all.
    nodes[1].resume().unwrap();
    keys.iter().for_each(|key| nowhere(&nodes, key));
    wait_until_it_grants(&locker, &nodes[1]);
    keys.iter().for_each(|key| nowhere(&nodes, key));
}

#[test]
fn hung_majority_makes_acquires_unavailable() {
    let nodes = servers(3);
    let locker = impatient(&nodes);
    let key = unique_key("hung");
    nodes[..2].iter().for_each(|node| node.stop().unwrap());
    for _ in 0..3 {
        let start = now();
        let error = locker.try_lock(&key, TTL).unwrap_err();
        assert!(start.elapsed() < LIMIT, "{:?}", start.elapsed());
        let (counts, causes) = insufficient(error);
        assert_eq!(counts, [2, 1, 3]);
        let hung: Vec<_> = causes
            .iter()
            .map(|cause| (&cause.node, &cause.failure))
            .collect();
        let expected = [0, 1].map(|node: usize| nodes[node].addr());
        assert_eq!(
            hung,
            [
                (&expected[0], &NodeFailure::TimedOut),
                (&expected[1], &NodeFailure::TimedOut)
            ]
        );
    }
    nodes[..2].iter().for_each(|node| node.resume().unwrap());
    nowhere(&nodes, &key);
    acquire_lock(&locker, &key).release().unwrap();
    nodes
        .iter()
        .for_each(|node| wait_until_it_grants(&locker, node));
    nowhere(&nodes, &key);
}

#[test]
fn guard_on_hung_nodes_is_held_until_expiry_and_then_released() {
    let nodes = servers(3);
    let locker = impatient(&nodes);
    let keys = [unique_key("released"), unique_key("dropped")];
    let [released, dropped] = keys.each_ref().map(|key| acquire_lock(&locker, key));
    keys.iter().for_each(|key| drop(everywhere(&nodes, key)));
    nodes[1..].iter().for_each(|node| node.stop().unwrap());
    let (_, causes) = insufficient(released.extend(2 * TTL).unwrap_err());
    assert_eq!(causes.len(), 2);
    assert!(released.is_held() && released.check().is_ok());
    insufficient(released.release().unwrap_err());
    let start = now();
    drop(dropped);
    assert!(start.elapsed() < LIMIT, "{:?}", start.elapsed());
    assert_eq!(locker.nodes().drop_failures(), 1);
    nodes[1..].iter().for_each(|node| node.resume().unwrap());
    keys.iter().for_each(|key| nowhere(&nodes, key));
}

// Nodes that die and come back.

#[test]
fn node_that_comes_back_keeps_its_keys_or_is_restored() {
    let start = || Server::options().append_always().start().unwrap();
    let nodes = [(); 3].map(|()| start());
    let locker = connect(&nodes);
    let key = unique_key("restarted");
    let guard = acquire_lock(&locker, &key);
    let stored = everywhere(&nodes, &key);
    let longer = |node: &Server, ttl: Duration| {
        eventually(LIMIT, "extended on the node that was away", || {
            guard.extend(ttl).unwrap();
            pttl(node, &key) > (ttl - TTL).as_millis() as i64
        });
        assert_eq!(token(node, &key).as_ref(), Some(&stored));
    };
    nodes[0].kill();
    guard.extend(2 * TTL).unwrap();
    nodes[0].restart().unwrap();
    assert_eq!(token(&nodes[0], &key).as_ref(), Some(&stored));
    longer(&nodes[0], 3 * TTL);
    nodes[1].restart_empty().unwrap();
    assert_eq!(token(&nodes[1], &key), None);
    longer(&nodes[1], 4 * TTL);
    assert_eq!(everywhere(&nodes, &key), stored);
    assert!(connect(&nodes).try_lock(&key, TTL).unwrap().is_none());
    guard.release().unwrap();
    nowhere(&nodes, &key);
}

#[test]
fn lock_after_restart_of_all_nodes_succeeds() {
    let nodes = servers(3);
    let locker = connect(&nodes);
    let key = unique_key("restarted");
    let lost = acquire_lock(&locker, &key);
    nodes.iter().for_each(|node| node.restart().unwrap());
    let next = unique_key("next");
    locker.lock(&next, TTL).unwrap().release().unwrap();
    // The nodes came back empty: the lock is lost as soon as two of them report that.
    let mut told = Ok(());
    eventually(LIMIT, "two nodes report a missing key", || {
        told = lost.extend(TTL);
        told.as_ref().is_err_and(Error::is_lost)
    });
    assert!(!lost.is_held());
    acquire_lock(&locker, &key).release().unwrap();
}

#[test]
fn idle_connections_that_were_killed_reconnect() {
    let nodes = servers(3);
    let locker = connect(&nodes);
    let key = unique_key("killed");
    let guard = acquire_lock(&locker, &key);
    let stored = everywhere(&nodes, &key);
    for _ in 0..3 {
        for node in &nodes {
            let kill = ["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"];
            assert!(ask::<u32>(node, &kill) >= 1);
        }
        locker
            .lock(&unique_key("next"), TTL)
            .unwrap()
            .release()
            .unwrap();
        nodes
            .iter()
            .for_each(|node| wait_until_it_grants(&locker, node));
    }
    guard.extend(2 * TTL).unwrap();
    assert_eq!(everywhere(&nodes, &key), stored);
    guard.release().unwrap();
    nowhere(&nodes, &key);
}

// Nodes that refuse.

/// Runs `how` on the only node, so that it cannot grant, and undoes that with `back`.
fn refuses(node: &Server, how: &[&str], code: &str, back: &[&str], check: impl Fn(&LockGuard)) {
    let nodes = std::slice::from_ref(node);
    let locker = connect(nodes);
    let held = acquire_lock(&locker, &unique_key("held"));
    ask::<()>(node, how);
    let key = unique_key("refused");
    let error = locker.try_lock(&key, TTL).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("granted by 0 of 1 nodes"), "{text}");
    let (counts, causes) = insufficient(error);
    assert_eq!(counts, [1, 1, 1], "an error is an answer");
    assert!(
        matches!(&causes[0].failure, NodeFailure::ServerError(text) if text.contains(code)),
        "{causes:?}"
    );
    check(&held);
    ask::<()>(node, back);
    // A known replica is asked again only after it reports that it is a master.
    eventually(LIMIT, "it grants again", || {
        let guard = locker.try_lock(&key, TTL).ok().flatten();
        guard.is_some_and(|guard| guard.release().is_ok())
    });
    held.release().unwrap();
}

#[test]
fn a_node_that_became_a_replica_is_a_fault() {
    let node = &servers(1)[0];
    let nobody = free_port().unwrap().to_string();
    let how = ["REPLICAOF", "127.0.0.1", &nobody];
    let back = ["REPLICAOF", "NO", "ONE"];
    let locker = connect(std::slice::from_ref(node));
    let health = || locker.nodes().health().nodes[0].clone();
    assert_eq!(health().role, Some(Role::Master));
    refuses(node, &how, "READONLY", &back, |held| {
        insufficient(held.extend(2 * TTL).unwrap_err());
        assert!(held.is_held());
        assert!(locker.try_lock(&unique_key("refused"), TTL).is_err());
        // The worker connects again, to learn whether the node may be used.
        eventually(LIMIT, "the node is known as a replica", || {
            (health().role, health().state) == (Some(Role::Replica), NodeState::Suspect)
        });
    });
}

#[test]
fn a_node_without_memory_is_a_fault_but_keeps_and_releases() {
    let node = &servers(1)[0];
    let how = ["CONFIG", "SET", "maxmemory", "1"];
    let back = ["CONFIG", "SET", "maxmemory", "0"];
    let locker = connect(std::slice::from_ref(node));
    let key = unique_key("released");
    let released = std::cell::Cell::new(Some(acquire_lock(&locker, &key)));
    refuses(node, &how, "OOM", &back, |held| {
        held.extend(2 * TTL).unwrap();
        released.take().unwrap().release().unwrap();
        assert_eq!(token(node, &key), None);
    });
}

// The end of a `Nodes`.

#[test]
fn shutdown_leaves_held_locks_to_their_ttl() {
    let nodes = servers(3);
    let locker = connect(&nodes);
    let key = unique_key("in use");
    let guard = acquire_lock(&locker, &key);
    let stored = everywhere(&nodes, &key);
    assert!(!locker.nodes().shutdown(Duration::from_millis(20)));
    assert_eq!(
        locker.try_lock(&unique_key("x"), TTL).err(),
        Some(Error::Closed)
    );
    assert!(!guard.is_held());
    assert!(matches!(guard.extend(TTL), Err(Error::LockLost { .. })));
    assert!(matches!(guard.release(), Err(Error::LockLost { .. })));
    drop(locker);
    for node in &nodes {
        let clients = || ask::<String>(node, &["CLIENT", "LIST"]);
        let ours = |line: &str| !line.contains("cmd=client");
        eventually(LIMIT, "our connection is closed", || {
            !clients().lines().any(ours)
        });
    }
    assert_eq!(everywhere(&nodes, &key), stored);
    assert!(nodes.iter().all(|node| pttl(node, &key) > 0));
}

#[test]
fn shutdown_without_guards_leaves_no_key() {
    let nodes = servers(3);
    let locker = connect(&nodes);
    let keys: Vec<String> = (0..20).map(|_| unique_key("done")).collect();
    keys.iter().for_each(|key| drop(acquire_lock(&locker, key)));
    assert!(locker.nodes().shutdown(LIMIT));
    for node in &nodes {
        assert_eq!(ask::<u32>(node, &["DBSIZE"]), 0);
    }
    assert_eq!(locker.lock(&keys[0], TTL).err(), Some(Error::Closed));
}
