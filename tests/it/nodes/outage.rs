//! Outages on real nodes: the breaker, local locks in degraded mode, nodes that come back without
//! their data, and servers that cannot vote.

use std::thread;
use std::time::Duration;

use redguard::{
    BreakerState, Config, Error, LockOptions, Locker, Mode, NodeFailure, NodeState, Nodes,
    RedisLocker, RedisRwLocker, RetryPolicy, Role, RwLocker,
};

use crate::support::fixtures::{
    LIMIT, TTL, acquire_lock, ask, at, config, connect, connect_by, everywhere, now, nowhere,
    token, try_ask, wait_until_it_grants, with_short_timeouts,
};
use crate::support::hostile::{BadReply, Hostile, Then};
use crate::support::log_capture::{Level, captured_log};
use crate::support::servers::Server;
use crate::support::{eventually, servers, unique_key};

/// Opens after three rounds, and does not probe again by time.
fn config_with_breaker(nodes: &[Server]) -> Config {
    config(nodes).circuit_breaker(3, TTL)
}

fn break_down(nodes: &[Server], locker: &RedisLocker) {
    nodes[1..].iter().for_each(Server::kill);
    eventually(LIMIT, "the breaker opens", || {
        _ = locker.try_lock("opens it", TTL);
        matches!(locker.nodes().health().breaker, BreakerState::Open { .. })
    });
}

fn assert_released(nodes: &[Server], locker: &RedisLocker) {
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
    let locker = connect_by(config_with_breaker(&nodes), &nodes);
    break_down(&nodes, &locker);
    let error = locker.try_lock("x", TTL).unwrap_err();
    let Error::CircuitOpen { causes, .. } = &error else {
        panic!("{error}")
    };
    let named: Vec<&str> = causes.iter().map(|cause| cause.node.as_str()).collect();
    assert_eq!(named, [nodes[1].addr(), nodes[2].addr()], "{error}");
    let health = locker.nodes().health();
    for (node, health) in nodes.iter().zip(&health.nodes) {
        assert_eq!(health.node, node.addr());
        let dead = node.pid().is_none();
        assert_eq!(health.state == NodeState::Suspect, dead, "{health:?}");
        assert_eq!(
            matches!(health.cause, Some(NodeFailure::Unreachable(_))),
            dead
        );
        assert_eq!(health.role, Some(Role::Master));
        assert_eq!(health.eviction_policy.as_deref(), Some("noeviction"));
        assert!(health.clock_offset.unwrap().abs() < LIMIT);
    }
    assert_released(&nodes, &locker);
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
fn a_lock_waits_through_the_breaker_until_hung_nodes_are_back() {
    let nodes = servers(3);
    let soon = Duration::from_millis(200);
    let policy = RetryPolicy {
        max_outage: 10 * LIMIT,
        ..with_short_timeouts()
    };
    let config = Config::new(nodes.iter().map(Server::addr)).retry(policy);
    let locker = connect_by(
        config.node_timeout(soon).circuit_breaker(3, 10 * LIMIT),
        &nodes,
    );
    nodes[1..].iter().for_each(|node| node.stop().unwrap());
    thread::scope(|scope| {
        let waits = scope.spawn(|| locker.lock("x", TTL));
        eventually(LIMIT, "the breaker opens", || {
            matches!(locker.nodes().health().breaker, BreakerState::Open { .. })
        });
        let error = locker.try_lock("y", TTL).unwrap_err();
        assert!(matches!(error, Error::CircuitOpen { .. }), "{error}");
        assert!(!waits.is_finished());
        nodes[1..].iter().for_each(|node| node.resume().unwrap());
        waits.join().unwrap().unwrap().release().unwrap();
    });
}

/// Replies of all nodes about one lock must not let another lock be held twice.
#[test]
fn errors_of_one_lock_make_no_other_lock_local() {
    let nodes = servers(3);
    let config = config(&nodes).circuit_breaker(1, TTL).allow_degraded(true);
    let [locker, other] = [(); 2].map(|()| connect_by(config.clone(), &nodes));
    for node in &nodes {
        let only_held = ["ACL", "SETUSER", "default", "resetkeys", "~redguard:held"];
        ask::<()>(node, &only_held);
    }
    let held = acquire_lock(&other, "held");
    let start = now();
    while start.elapsed() < Duration::from_millis(1500) {
        let error = locker.try_lock("other", TTL).unwrap_err();
        assert!(error.is_denied(), "{error}");
    }
    assert_eq!(locker.nodes().health().breaker, BreakerState::Closed);
    assert!(locker.try_lock("held", TTL).unwrap().is_none());
    assert!(held.is_held());
}

#[test]
fn program_that_starts_before_its_nodes_locks_locally_then_on_nodes() {
    let log = captured_log();
    let nodes = servers(3);
    nodes.iter().for_each(Server::kill);
    let soon = Duration::from_secs(1);
    let config = config_with_breaker(&nodes)
        .node_timeout(soon)
        .connect_timeout(soon);
    let error = Nodes::connect(config.clone()).unwrap_err();
    assert!(matches!(error, Error::InsufficientQuorum { .. }), "{error}");
    // A probe that takes too long on a busy machine is repeated.
    let config = config.allow_degraded(true).circuit_breaker(3, soon);
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
    eventually(LIMIT, "locks are held on the nodes", || {
        let other = locker.acquire("other", &patient()).unwrap();
        other.mode() == Mode::Quorum
    });
    thread::scope(|scope| {
        let next = scope.spawn(|| locker.acquire(&key, &patient()).unwrap());
        nowhere(&nodes, &key); // it waits for the local holder
        guard.release().unwrap();
        assert_eq!(next.join().unwrap().mode(), Mode::Quorum);
    });
    let lines = |level| {
        let lines = log.lines(level, &nodes[0].addr());
        lines
            .into_iter()
            .filter(|line| line.contains("local locks"))
            .count()
    };
    assert_eq!((lines(Level::Warn), lines(Level::Info)), (1, 1));
}

#[test]
fn revoked_right_is_no_outage() {
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
    let locker = connect_by(config.clone(), &nodes);
    for node in &nodes {
        ask::<()>(node, &["ACL", "SETUSER", "worker", "-set"]);
    }
    let start = now();
    while start.elapsed() < Duration::from_millis(1500) {
        denied_by_two(locker.try_lock("x", TTL).unwrap_err());
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
fn majority_that_loses_data_grants_a_lock_to_two_holders() {
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
fn quarantined_majority_grants_a_lock_only_when_it_is_free() {
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
    eventually(LIMIT, "all have just started", || quarantined(&first) == 3);
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
fn held_lock_is_served_by_a_quarantined_node() {
    const MAX_TTL: Duration = Duration::from_secs(4);
    let nodes = servers(3);
    let locker = RedisLocker::connect(config(&nodes).restart_quarantine(MAX_TTL)).unwrap();
    let key = unique_key("served");
    let brief = LockOptions::new(MAX_TTL).wait_for(Duration::from_millis(10));
    let Error::Contended { remaining, .. } = locker.acquire(&key, &brief).unwrap_err() else {
        panic!("another error")
    };
    assert!(remaining.unwrap() < MAX_TTL + Duration::from_secs(2));
    let options = LockOptions::new(MAX_TTL).wait_for(LIMIT).auto_renew(true);
    let guard = locker.acquire(&key, &options).unwrap();
    let mine = everywhere(&nodes, &key);
    // Each node forgets the key in turn. The lock is restored there, and the node grants it before
    // the next one forgets.
    for node in [1, 2, 0] {
        nodes[node].restart_empty().unwrap();
        eventually(LIMIT, "the node is in quarantine", || {
            locker.nodes().health().nodes[node].state == NodeState::Quarantined
        });
        eventually(LIMIT, "the key is restored", || {
            token(&nodes[node], &key).as_ref() == Some(&mine)
        });
        guard.check().unwrap();
    }
    guard.release().unwrap();
    nowhere(&nodes, &key);
}

// Servers that cannot vote.

fn fault(locker: &RedisLocker) -> Option<NodeFailure> {
    locker.nodes().health().nodes[0].cause.clone()
}

#[test]
fn replicas_and_evicting_servers_are_reported_at_connect() {
    let log = captured_log();
    let others = servers(2);
    let replica =
        Server::options().args(&["--replicaof", "127.0.0.1", &others[0].port().to_string()]);
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
        let config = at(addresses)
            .retry(with_short_timeouts())
            .reject_evicting_servers(strict);
        let locker = RedisLocker::connect(config).unwrap();
        locker
            .acquire(&unique_key("by the others"), &patient())
            .unwrap()
            .release()
            .unwrap();
        let warnings = || log.lines(Level::Warn, &node.addr());
        eventually(LIMIT, "it is judged", || match is_fault {
            true => matches!(fault(&locker), Some(NodeFailure::ServerError(_))),
            false => locker.nodes().health().nodes[0].state == NodeState::Up,
        });
        assert_eq!(warnings().len(), usize::from(!is_fault), "{:?}", warnings());
        if is_fault {
            // The node grants locks as soon as it may.
            ask::<()>(&node, &["REPLICAOF", "NO", "ONE"]);
            ask::<()>(&node, &["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
            eventually(LIMIT, "the node grants locks", || fault(&locker).is_none());
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
        let told =
            matches!(&causes[0].failure, NodeFailure::ServerError(text) if text.contains(code));
        assert!(told, "{code}: {causes:?}");
        ask::<()>(&node[0], mend_it);
        eventually(LIMIT, "the node votes again", || {
            locker.try_lock(&unique_key("x"), TTL).is_ok()
        });
    }
}

/// A snapshot that is configured but fails, because a directory stands at the path of the file.
#[test]
fn a_server_that_cannot_save_is_a_fault_with_its_cause() {
    let node = Server::options()
        .args(&["--save", "3600", "1"])
        .start()
        .unwrap();
    let locker = connect(std::slice::from_ref(&node));
    let in_the_way = node.dir().join("dump.rdb");
    let saved = |how: &str| {
        eventually(LIMIT, how, || {
            _ = try_ask::<String>(&node, &["BGSAVE"]);
            let info: String = ask(&node, &["INFO", "persistence"]);
            info.contains(&format!("rdb_last_bgsave_status:{how}"))
        });
    };
    std::fs::create_dir(&in_the_way).unwrap();
    saved("err");
    let told = |error: Error| match error {
        Error::InsufficientQuorum { causes, .. } => match causes[0].failure.clone() {
            NodeFailure::ServerError(text) => text,
            other => panic!("{other}"),
        },
        other => panic!("{other}"),
    };
    let text = told(locker.try_lock(&unique_key("x"), TTL).unwrap_err());
    assert!(text.contains("MISCONF"), "{text}");
    std::fs::remove_dir(&in_the_way).unwrap();
    saved("ok");
    acquire_lock(&locker, &unique_key("x")).release().unwrap();
}

#[test]
fn a_server_that_loads_its_data_is_a_fault_with_its_cause() {
    // Each of these keys takes a millisecond to load. Between kilobytes the server answers other
    // clients.
    let slow = Server::options().arg("--key-load-delay", "1000");
    let slow = slow.arg("--loading-process-events-interval-bytes", "1024");
    let node = slow.start().unwrap();
    let fill = "for i = 1, 3000 do redis.call('SET', i, i) end";
    ask::<()>(&node, &["EVAL", fill, "0"]);
    ask::<()>(&node, &["SAVE"]);
    let locker = connect(std::slice::from_ref(&node));
    thread::scope(|scope| {
        let back = scope.spawn(|| node.restart().unwrap());
        eventually(LIMIT, "the server loads", || {
            // An idle worker does not notice the closed connection at once.
            _ = locker.try_lock(&unique_key("x"), TTL);
            matches!(fault(&locker), Some(NodeFailure::ServerError(text)) if text.contains("LOADING"))
        });
        back.join().unwrap();
    });
    acquire_lock(&locker, &unique_key("x")).release().unwrap();
}

#[test]
fn node_that_goes_down_and_comes_back_is_logged_once_each() {
    let log = captured_log();
    let nodes = servers(3);
    let locker = connect_by(config(&nodes).pool_size(2), &nodes);
    let told = |what| {
        let lines = log.lines(Level::Info, &nodes[0].addr());
        lines.iter().filter(|line| line.contains(what)).count()
    };
    for outage in 1..=2 {
        // Its connections end, and then it refuses connects: one outage with two causes.
        nodes[0].kill();
        eventually(LIMIT, "both connections have two causes to tell", || {
            _ = locker.try_lock(&unique_key("x"), TTL);
            let lines = log.lines(Level::Debug, &nodes[0].addr());
            let is_told = |line: &&String| {
                line.contains("unavailable: ") || line.contains("connection ended")
            };
            lines.iter().filter(is_told).count() >= 3 * outage
        });
        nodes[0].restart().unwrap();
        wait_until_it_grants(&locker, &nodes[0]);
        eventually(LIMIT, "the node is back", || {
            told("connected again") == outage
        });
        assert_eq!(
            (told("unavailable: "), told("connected again")),
            (outage, outage)
        );
    }
}

#[test]
fn a_clock_that_is_off_is_warned_about_once() {
    let log = captured_log();
    let node = &servers(1)[0];
    let hostile = Hostile::before(node.addr());
    let about = format!(
        "run_id:{:040x}\r\nrole:master\r\nserver_time_usec:1000000\r\n",
        hostile.addr().len()
    );
    let bad_reply = BadReply {
        says: format!("${}\r\n{about}\r\n", about.len()).into_bytes(),
        then: Then::GoOn,
    };
    hostile.set_bad_reply("INFO", &bad_reply);
    let locker = RedisLocker::connect(at([hostile.addr()]).pool_size(2)).unwrap();
    acquire_lock(&locker, &unique_key("x")).release().unwrap();
    let health = locker.nodes().health();
    let offset = health.nodes[0].clock_offset.unwrap();
    assert!(offset.abs() > Duration::from_secs(1_000_000_000));
    ask::<u64>(node, &["CLIENT", "KILL", "TYPE", "normal"]);
    let again = |level| {
        let lines = log.lines(level, &hostile.addr());
        let again = lines.iter().filter(|line| line.contains("connected again"));
        again.count()
    };
    // If both are down together, only one line reports that the node is back.
    eventually(LIMIT, "both are connected again", || {
        _ = locker.try_lock(&unique_key("x"), TTL);
        again(Level::Info) + again(Level::Debug) >= 2
    });
    let warned = log.lines(Level::Warn, &hostile.addr());
    assert_eq!(warned.len(), 1, "{warned:?}");
    assert!(warned[0].contains(" s behind ours (±"), "{warned:?}");
}

/// Creates a user that lacks only the rights for read locks.
#[test]
fn a_denial_inside_a_script_is_no_outage() {
    let log = captured_log();
    let nodes = servers(3);
    let rights = "on >pass allkeys allchannels +@all -zadd";
    for node in &nodes {
        let words: Vec<&str> = ["ACL", "SETUSER", "reader"]
            .into_iter()
            .chain(rights.split(' '))
            .collect();
        ask::<()>(node, &words);
    }
    let config = config(&nodes).circuit_breaker(1, TTL).allow_degraded(true);
    let locker = connect_by(config.username("reader").password("pass"), &nodes);
    let rw = RedisRwLocker::new(locker.nodes());
    let start = now();
    while start.elapsed() < Duration::from_millis(1500) {
        denied_by_two(rw.try_read("x", TTL).unwrap_err());
    }
    assert_eq!(locker.nodes().health().breaker, BreakerState::Closed);
    acquire_lock(&locker, &unique_key("x")).release().unwrap();
    let warned = log.lines(Level::Warn, &nodes[0].addr());
    let denied = warned.iter().filter(|line| line.contains("denied"));
    assert_eq!(denied.count(), 1, "{warned:?}");
}

/// Asserts that an acquire failed because two nodes deny access.
fn denied_by_two(error: Error) {
    let Error::InsufficientQuorum { causes, .. } = error else {
        panic!("{error}")
    };
    let denied = causes
        .iter()
        .filter(|one| matches!(one.failure, NodeFailure::AccessDenied(_)));
    assert!(denied.count() >= 2, "{causes:?}");
}
