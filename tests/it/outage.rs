//! Outages on real nodes: the breaker, locks that are held in the process meanwhile, nodes that come back without their data,
//! and servers that cannot vote.

use crate::rig::{LIMIT, TTL, ask, at, config, connect, everywhere, hasty, now, nowhere};
use crate::support::log_capture::{Level, captured_log};
use crate::support::servers::Server;
use crate::support::{eventually, servers, unique_key};
use redguard::{
    BreakerState, Cause, Config, Error, LockOptions, Locker, Mode, NodeState, Nodes, RedisLocker,
    RedisRwLocker, Role, RwLocker,
};
use std::thread;
use std::time::Duration;

/// Opens after three rounds, and not again by time.
fn config_with_breaker(nodes: &[Server]) -> Config {
    config(nodes).breaker(3, TTL)
}

fn break_down(nodes: &[Server], locker: &RedisLocker) {
    nodes[1..].iter().for_each(Server::kill);
    eventually(LIMIT, "the breaker opens", || {
        _ = locker.try_lock("opens it", TTL);
        matches!(locker.nodes().health().breaker, BreakerState::Open { .. })
    });
}

fn comes_back(nodes: &[Server], locker: &RedisLocker) {
    for node in &nodes[1..] {
        node.restart_empty().unwrap();
    }
    locker.nodes().wait_ready(LIMIT).unwrap();
}

fn patient() -> LockOptions {
    LockOptions::new(TTL).wait_for(LIMIT)
}

#[test]
fn an_outage_opens_the_breaker_and_its_end_closes_it() {
    let log = captured_log();
    let nodes = servers(3);
    let locker = RedisLocker::connect(config_with_breaker(&nodes)).unwrap();
    break_down(&nodes, &locker);
    let error = locker.lock("x", TTL).unwrap_err();
    assert!(matches!(error, Error::CircuitOpen { .. }), "{error}");
    let health = locker.nodes().health();
    for (node, health) in nodes.iter().zip(&health.nodes) {
        assert_eq!(health.node, node.addr());
        let dead = node.pid().is_none();
        assert_eq!(health.state == NodeState::Suspect, dead, "{health:?}");
        assert_eq!(matches!(health.cause, Some(Cause::Unreachable(_))), dead);
        assert_eq!(health.role, Some(Role::Master));
        assert_eq!(health.eviction_policy.as_deref(), Some("noeviction"));
        assert!(health.clock_offset.unwrap().size() < LIMIT);
    }
    comes_back(&nodes, &locker);
    locker.acquire("x", &patient()).unwrap().release().unwrap();
    assert_eq!(locker.nodes().health().breaker, BreakerState::Closed);
    let named = |level| log.lines(level, &nodes[0].addr());
    let circuit = |level| {
        named(level)
            .iter()
            .filter(|line| line.contains("circuit"))
            .count()
    };
    assert_eq!((circuit(Level::Warn), circuit(Level::Info)), (1, 1));
}

#[test]
fn a_program_that_starts_before_its_nodes_works_here_and_then_on_them() {
    let log = captured_log();
    let nodes = servers(3);
    nodes.iter().for_each(Server::kill);
    let soon = Duration::from_millis(300);
    let config = config_with_breaker(&nodes)
        .node_timeout(soon)
        .connect_timeout(soon);
    let error = Nodes::connect(config.clone()).unwrap_err();
    assert!(matches!(error, Error::InsufficientQuorum { .. }), "{error}");
    // Time for nodes on a busy machine again, once they are there.
    let config = config.allow_degraded(true).connect_timeout(2 * soon);
    let locker = RedisLocker::connect(config).unwrap();
    let rw = RedisRwLocker::new(locker.nodes());
    let key = unique_key("here");
    let guard = locker.lock(&key, TTL).unwrap();
    assert_eq!(guard.mode(), Mode::Local);
    assert!(locker.try_lock(&key, TTL).unwrap().is_none());
    assert_eq!(rw.write(&key, TTL).unwrap().mode(), Mode::Local);
    for node in &nodes {
        node.restart_empty().unwrap();
    }
    locker.nodes().wait_ready(LIMIT).unwrap();
    thread::scope(|scope| {
        let next = scope.spawn(|| locker.acquire(&key, &patient()).unwrap());
        let other = locker.acquire("other", &patient()).unwrap();
        assert_eq!(other.mode(), Mode::Quorum);
        nowhere(&nodes, &key); // it waits for the local holder
        guard.release().unwrap();
        assert_eq!(next.join().unwrap().mode(), Mode::Quorum);
    });
    let lines = |level| {
        let lines = log.lines(level, &nodes[0].addr());
        lines
            .into_iter()
            .filter(|line| line.contains("locks are held"))
            .count()
    };
    assert_eq!((lines(Level::Warn), lines(Level::Info)), (1, 1));
}

#[test]
fn a_right_that_is_taken_away_is_no_outage() {
    let log = captured_log();
    let nodes = servers(3);
    for node in &nodes {
        ask::<()>(
            node,
            &[
                "ACL",
                "SETUSER",
                "worker",
                "on",
                ">pass",
                "allkeys",
                "allchannels",
                "+@all",
            ],
        );
    }
    let config = config_with_breaker(&nodes).allow_degraded(true);
    let config = config.username("worker").password("pass");
    let locker = RedisLocker::connect(config.clone()).unwrap();
    locker.lock("x", TTL).unwrap().release().unwrap();
    for node in &nodes {
        ask::<()>(node, &["ACL", "SETUSER", "worker", "-set"]);
    }
    let start = now();
    while start.elapsed() < Duration::from_millis(1500) {
        let error = locker.try_lock("x", TTL).unwrap_err();
        let Error::InsufficientQuorum { causes, .. } = error else {
            panic!("{error}")
        };
        let denied = causes
            .iter()
            .filter(|one| matches!(one.cause, Cause::Denied(_)));
        assert!(denied.count() >= 2, "{causes:?}");
    }
    let warned = log.lines(Level::Warn, &nodes[0].addr());
    assert_eq!(
        warned.iter().filter(|line| line.contains("denied")).count(),
        1
    );
    let error = Nodes::connect(config.password("wrong")).unwrap_err();
    assert!(matches!(error, Error::InsufficientQuorum { .. }), "{error}");
}

// Nodes that come back without their data.

fn restart_a_majority_without_data(nodes: &[Server]) {
    for node in &nodes[..2] {
        node.kill();
        node.restart_empty().unwrap();
    }
}

#[test]
fn a_majority_that_forgets_gives_a_lock_to_two_holders() {
    let nodes = servers(3);
    let [first, second] = [connect(&nodes), connect(&nodes)];
    let key = unique_key("twice");
    let holds = first.lock(&key, TTL).unwrap();
    everywhere(&nodes, &key);
    restart_a_majority_without_data(&nodes);
    let holds_too = second.acquire(&key, &patient()).unwrap();
    assert!(holds.is_held() && holds_too.is_held());
    assert!(holds.remaining() > TTL / 2);
}

#[test]
fn with_quarantine_a_majority_that_forgets_gives_it_to_the_next_one_only_when_it_is_free() {
    const MAX_TTL: Duration = Duration::from_secs(4);
    let nodes = servers(3);
    let config = config(&nodes).restart_quarantine(MAX_TTL);
    let [first, second] = [(); 2].map(|()| RedisLocker::connect(config.clone()).unwrap());
    let quarantined = |locker: &RedisLocker| {
        let nodes = locker.nodes().health().nodes;
        nodes
            .iter()
            .filter(|node| node.state == NodeState::Quarantined)
            .count()
    };
    assert_eq!(quarantined(&first), 3, "all have just started");
    let key = unique_key("once");
    assert!(
        first.try_lock(&key, MAX_TTL).unwrap().is_none(),
        "contended"
    );
    let error = first
        .lock(&key, MAX_TTL + Duration::from_millis(1))
        .unwrap_err();
    assert!(matches!(error, Error::InvalidTtl { .. }), "{error}");
    for _ in 0..3 {
        let holds = first
            .acquire(&key, &LockOptions::new(MAX_TTL).wait_for(LIMIT))
            .unwrap();
        restart_a_majority_without_data(&nodes);
        let next = second
            .acquire(&key, &LockOptions::new(MAX_TTL).wait_for(LIMIT))
            .unwrap();
        assert!(!holds.is_held(), "two holders");
        next.release().unwrap();
        drop(holds);
    }
}

#[test]
fn what_is_held_is_served_in_quarantine() {
    let nodes = servers(3);
    let locker = RedisLocker::connect(config(&nodes).restart_quarantine(LIMIT)).unwrap();
    let key = unique_key("served");
    // As if it had been up for long: a lock from before the quarantine.
    let before = connect(&nodes);
    let guard = before.lock(&key, TTL).unwrap();
    everywhere(&nodes, &key);
    assert!(
        locker
            .try_lock(&unique_key("new"), LIMIT)
            .unwrap()
            .is_none()
    );
    guard.extend(TTL).unwrap();
    guard.release().unwrap();
    let brief = LockOptions::new(LIMIT).wait_for(Duration::from_millis(10));
    let Error::Contended { remaining, .. } = locker.acquire(&key, &brief).unwrap_err() else {
        panic!("another error")
    };
    assert!(remaining.unwrap() < LIMIT + Duration::from_secs(2));
}

// Servers that cannot vote.

fn fault(locker: &RedisLocker) -> Option<Cause> {
    locker.nodes().health().nodes[0].cause.clone()
}

#[test]
fn replicas_and_servers_that_evict_are_told_apart_at_connect() {
    let log = captured_log();
    let others = servers(2);
    let replica = Server::options().arg("--replicaof", &format!("127.0.0.1 {}", others[0].port()));
    let evicts = || {
        let options = Server::options().arg("--maxmemory", "100mb");
        options
            .arg("--maxmemory-policy", "allkeys-lru")
            .start()
            .unwrap()
    };
    for (node, strict, is_fault) in [
        (replica.start().unwrap(), false, true),
        (evicts(), false, false),
        (evicts(), true, true),
    ] {
        let addresses = [&node, &others[0], &others[1]].map(Server::addr);
        let config = at(addresses).retry(hasty()).strict_servers(strict);
        let locker = RedisLocker::connect(config).unwrap();
        locker
            .acquire(&unique_key("by the others"), &patient())
            .unwrap()
            .release()
            .unwrap();
        eventually(LIMIT, "it is judged", || {
            matches!(fault(&locker), Some(Cause::Server(_))) == is_fault
        });
        let warnings = log.lines(Level::Warn, &node.addr());
        assert_eq!(
            warnings.len(),
            usize::from(!strict && !is_fault),
            "{warnings:?}"
        );
        if is_fault {
            // It takes part as soon as it may.
            ask::<()>(&node, &["REPLICAOF", "NO", "ONE"]);
            ask::<()>(&node, &["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
            eventually(LIMIT, "it takes part", || fault(&locker).is_none());
        }
    }
}

#[test]
fn servers_that_stop_voting_are_faults_with_their_cause() {
    let node = servers(1);
    let locker = connect(&node);
    for (break_it, mend_it, code) in [
        (
            &["REPLICAOF", "127.0.0.1", "1"][..],
            &["REPLICAOF", "NO", "ONE"][..],
            "READONLY",
        ),
        (
            &["CONFIG", "SET", "maxmemory", "1"],
            &["CONFIG", "SET", "maxmemory", "0"],
            "OOM",
        ),
        (
            &["CONFIG", "SET", "min-replicas-to-write", "1"],
            &["CONFIG", "SET", "min-replicas-to-write", "0"],
            "NOREPLICAS",
        ),
    ] {
        ask::<()>(&node[0], break_it);
        let error = locker.try_lock(&unique_key("x"), TTL).unwrap_err();
        let Error::InsufficientQuorum { causes, .. } = error else {
            panic!("{error}")
        };
        let told = matches!(&causes[0].cause, Cause::Server(text) if text.contains(code));
        assert!(told, "{code}: {causes:?}");
        ask::<()>(&node[0], mend_it);
        eventually(LIMIT, "it votes again", || {
            locker.try_lock(&unique_key("x"), TTL).is_ok()
        });
    }
}
