//! Bad networks: cut replies, late requests, closed doors, and the keys that they leave behind.

use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;
use std::{io, thread};

use redguard::{Config, Error, Locker, NodeFailure, RedisLocker, RetryPolicy};
use redis::ConnectionLike;

use crate::support::fixtures::{
    LIMIT, TTL, acquire_lock, ask, at, calls, everywhere, now, nowhere, pttl, token,
};
use crate::support::log_capture::{Level, captured_log};
use crate::support::proxy::{Door, Flow, Proxy};
use crate::support::servers::Server;
use crate::support::{eventually, raw, servers, unique_key};

/// Time limit for a node that will not reply: longer than any reply of a healthy node on a busy
/// machine.
const HUNG: Duration = Duration::from_secs(1);

/// Short time limits for a node that does not reply, also for connects.
fn impatient(addresses: impl IntoIterator<Item = String>) -> Config {
    at(addresses).node_timeout(HUNG).connect_timeout(HUNG)
}

/// A locker of one node behind a proxy.
fn behind_a_proxy() -> ([Server; 1], Proxy, RedisLocker) {
    let node = Server::start().unwrap();
    let proxy = Proxy::to(node.addr());
    let config = impatient([proxy.addr()]);
    ([node], proxy, RedisLocker::connect(config).unwrap())
}

/// A locker of three nodes, of which the first is behind a proxy.
fn one_behind_a_proxy() -> (Vec<Server>, Proxy) {
    let nodes = servers(3);
    let proxy = Proxy::to(nodes[0].addr());
    (nodes, proxy)
}

fn addresses(nodes: &[Server], proxy: &Proxy) -> Vec<String> {
    let direct = nodes[1..].iter().map(Server::addr);
    [proxy.addr()].into_iter().chain(direct).collect()
}

fn cause(error: Error) -> NodeFailure {
    assert!(error.is_unavailable(), "{error}");
    match error {
        Error::InsufficientQuorum { causes, .. } => causes[0].failure.clone(),
        other => panic!("{other}"),
    }
}

/// Waits until the connection is up and has no work left.
fn is_idle(locker: &dyn Locker) {
    acquire_lock(locker, &unique_key("idle")).release().unwrap();
}

#[test]
fn a_grant_whose_reply_was_cut_is_undone() {
    let (nodes, proxy, locker) = behind_a_proxy();
    // The reply is "+OK\r\n".
    for bytes in 0..5 {
        is_idle(&locker);
        let [sets, dels] = ["set", "del"].map(|command| calls(&nodes[0], command));
        let key = unique_key("cut");
        proxy.cut_reply_after(bytes);
        let error = locker.try_lock(&key, TTL).unwrap_err();
        assert!(matches!(cause(error), NodeFailure::Unreachable(_)));
        // The key existed, and another client deleted it.
        eventually(LIMIT, "granted and undone", || {
            calls(&nodes[0], "del") > dels
        });
        assert_eq!(calls(&nodes[0], "set"), sets + 1);
        nowhere(&nodes, &key);
    }
}

#[test]
fn a_release_whose_reply_was_cut_is_a_release() {
    let (nodes, proxy, locker) = behind_a_proxy();
    // The reply is ":1\r\n".
    for bytes in 0..4 {
        let key = unique_key("cut");
        let guard = acquire_lock(&locker, &key);
        proxy.cut_reply_after(bytes);
        assert_eq!(guard.release(), Ok(()), "cut after {bytes} bytes");
        assert_eq!(token(&nodes[0], &key), None);
    }
    // If the reply never arrives the request times out, but the lock is not lost.
    let key = unique_key("swallowed");
    let guard = acquire_lock(&locker, &key);
    proxy.replies(Flow::Swallow);
    assert_eq!(cause(guard.release().unwrap_err()), NodeFailure::TimedOut);
    nowhere(&nodes, &key);
    proxy.pass();
    is_idle(&locker);
}

#[test]
fn an_extension_whose_reply_was_cut_leaves_the_lock_held() {
    let (nodes, proxy, locker) = behind_a_proxy();
    let key = unique_key("cut");
    let guard = acquire_lock(&locker, &key);
    let stored = token(&nodes[0], &key);
    let before = guard.remaining();
    proxy.cut_reply_after(1);
    cause(guard.extend(3 * TTL).unwrap_err());
    assert!(guard.is_held() && guard.remaining() <= before);
    is_idle(&locker);
    guard.extend(3 * TTL).unwrap();
    assert!(guard.remaining() > 2 * TTL);
    assert_eq!(token(&nodes[0], &key), stored);
    guard.release().unwrap();
    nowhere(&nodes, &key);
}

#[test]
fn release_that_did_not_arrive_is_repeated() {
    let (nodes, proxy, locker) = behind_a_proxy();
    let key = unique_key("pending");
    let guard = acquire_lock(&locker, &key);
    proxy.requests(Flow::Swallow);
    assert_eq!(cause(guard.release().unwrap_err()), NodeFailure::TimedOut);
    assert!(pttl(&nodes[0], &key) > 0);
    proxy.pass();
    nowhere(&nodes, &key);
}

/// Listens on a port that forwards its first connection to `first` and all others to `rest`, until
/// the program ends.
fn switch(first: String, rest: String) -> String {
    lead([first].into_iter().chain(std::iter::repeat(rest)))
}

/// Listens on a port that forwards each connection to the next target, until the program ends.
fn lead(targets: impl Iterator<Item = String> + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let here = listener.local_addr().unwrap().to_string();
    let carry = |from: &TcpStream, to: &TcpStream| {
        let [mut from, mut to] = [from, to].map(|end| end.try_clone().unwrap());
        detached(move || {
            _ = io::copy(&mut from, &mut to);
            _ = to.shutdown(Shutdown::Write);
        });
    };
    detached(move || {
        for (client, target) in listener.incoming().zip(targets) {
            let (client, server) = (client.unwrap(), TcpStream::connect(target).unwrap());
            carry(&client, &server);
            carry(&server, &client);
        }
    });
    here
}

#[expect(
    clippy::disallowed_methods,
    reason = "no thread can join it after a panic of the test"
)]
fn detached(run: impl FnOnce() + Send + 'static) {
    thread::Builder::new().spawn(run).unwrap();
}

#[test]
fn requests_of_a_former_connection_never_run() {
    let nodes = servers(1);
    let slow = Proxy::to(nodes[0].addr());
    let address = switch(slow.addr(), nodes[0].addr());
    let locker = RedisLocker::connect(impatient([address])).unwrap();
    let (key, sent) = (unique_key("late"), slow.request_bytes());
    slow.requests(Flow::Hold);
    assert_eq!(
        cause(locker.try_lock(&key, TTL).unwrap_err()),
        NodeFailure::TimedOut
    );
    assert!(slow.request_bytes() > sent, "the request is on its way");
    // The undo was sent on the new connection, before the request that it undoes.
    is_idle(&locker);
    assert_eq!(pttl(&nodes[0], &key), -2);
    // Now the request arrives, on a connection that the server has closed.
    slow.pass();
    eventually(LIMIT, "the former connection has ended", || {
        slow.open() == 0
    });
    assert_eq!(pttl(&nodes[0], &key), -2, "the late request was done");
}

#[test]
fn reconnect_after_restart_kills_no_foreign_connection() {
    let node = Server::start().unwrap();
    let proxy = Proxy::to(node.addr());
    let id = |connection: &mut redis::Connection| -> u64 {
        redis::cmd("CLIENT").arg("ID").query(connection).unwrap()
    };
    // Raises our client id above every id that the next run reaches before the check.
    let before: Vec<_> = (0..50).map(|_| raw(&node)).collect();
    let locker = RedisLocker::connect(impatient([proxy.addr()])).unwrap();
    let ours = id(&mut raw(&node)) - 1;
    let list: String = ask(&node, &["CLIENT", "LIST", "ID", &ours.to_string()]);
    assert!(list.contains("cmd=script"), "not our connection: {list}");
    drop(before);

    proxy.door(Door::Shut);
    node.restart().unwrap();
    let mut strangers = Vec::new();
    loop {
        let mut stranger = raw(&node);
        let number = id(&mut stranger);
        strangers.push(stranger);
        assert!(number <= ours, "the client ids exceed ours");
        if number == ours {
            break;
        }
    }
    proxy.door(Door::Open);
    is_idle(&locker);
    assert!(
        strangers
            .iter_mut()
            .all(|stranger| stranger.check_connection())
    );
}

#[test]
fn black_hole_before_one_of_three_nodes_delays_no_caller() {
    let (nodes, proxy) = one_behind_a_proxy();
    let config = impatient(addresses(&nodes, &proxy));
    let connect = || RedisLocker::connect(config.clone()).unwrap();
    let before = connect();
    let mut keys = Vec::new();
    let mut works = |locker: &RedisLocker| {
        for _ in 0..5 {
            let key = unique_key("hole");
            let guard = locker.lock(&key, TTL).unwrap();
            guard.extend(2 * TTL).unwrap();
            guard.release().unwrap();
            keys.push(key);
        }
    };
    proxy.both(Flow::Swallow);
    works(&before);
    let start = now();
    let after = connect();
    assert!(start.elapsed() < LIMIT, "{:?}", start.elapsed());
    works(&after);
    proxy.pass();
    for locker in [&before, &after] {
        eventually(LIMIT, "the node is reached again", || {
            let key = unique_key("reached");
            let guard = acquire_lock(locker, &key);
            let there = token(&nodes[0], &key).is_some();
            guard.release().unwrap();
            there
        });
    }
    keys.iter().for_each(|key| nowhere(&nodes, key));
}

#[test]
fn slow_node_of_three_delays_no_caller() {
    let (nodes, proxy) = one_behind_a_proxy();
    let config = at(addresses(&nodes, &proxy)).node_timeout(LIMIT);
    let locker = RedisLocker::connect(config.connect_timeout(LIMIT)).unwrap();
    let key = unique_key("slow");
    // The node is slow but in time: it grants, extends and releases after all others.
    proxy.both(Flow::Delay(LIMIT / 4));
    let start = now();
    let guard = locker.lock(&key, TTL).unwrap();
    guard.extend(2 * TTL).unwrap();
    guard.release().unwrap();
    assert!(start.elapsed() < LIMIT / 4, "{:?}", start.elapsed());
    proxy.pass();
    is_idle(&locker);
    nowhere(&nodes, &key);
}

#[test]
fn node_behind_a_reopened_door_is_used_again() {
    for door in [Door::Shut, Door::Slam] {
        let (nodes, proxy, locker) = behind_a_proxy();
        let key = unique_key("door");
        let guard = acquire_lock(&locker, &key);
        let stored = everywhere(&nodes, &key);
        proxy.door(door);
        proxy.cut();
        eventually(LIMIT, "the worker has noticed", || {
            let error = locker.try_lock(&unique_key("door"), TTL).unwrap_err();
            matches!(cause(error), NodeFailure::Unreachable(_))
        });
        assert!(guard.is_held());
        let accepted = proxy.accepted();
        proxy.door(Door::Open);
        is_idle(&locker);
        assert!(proxy.accepted() > accepted);
        guard.extend(2 * TTL).unwrap();
        assert_eq!(everywhere(&nodes, &key), stored);
        guard.release().unwrap();
        nowhere(&nodes, &key);
    }
}

#[test]
fn refused_minority_does_not_delay_connect_and_is_used_later() {
    let (nodes, proxy) = one_behind_a_proxy();
    proxy.door(Door::Shut);
    let locker = RedisLocker::connect(at(addresses(&nodes, &proxy))).unwrap();
    let key = unique_key("refused");
    let guard = acquire_lock(&locker, &key);
    proxy.door(Door::Open);
    eventually(LIMIT, "the key is on the node behind the door", || {
        guard.extend(2 * TTL).unwrap();
        token(&nodes[0], &key).is_some()
    });
    guard.release().unwrap();
    nowhere(&nodes, &key);
}

#[test]
fn node_slower_than_node_timeout_is_reported_with_the_limit() {
    let log = captured_log();
    let node = Server::start().unwrap();
    let proxy = Proxy::to(node.addr());
    proxy.both(Flow::Delay(Duration::from_millis(150)));
    let config = at([proxy.addr()]).node_timeout(Duration::from_millis(100));
    let locker = RedisLocker::connect(config).unwrap();
    let told = locker.try_lock(&unique_key("far"), TTL).unwrap_err();
    let words = "no answer within 100 ms (node_timeout; connecting took ";
    assert!(told.to_string().contains(words), "{told}");
    let warned = log.lines(Level::Warn, &proxy.addr());
    let is_told = |line: &String| line.contains("more than node_timeout (100 ms)");
    assert_eq!(
        warned.iter().filter(|line| is_told(line)).count(),
        1,
        "{warned:?}"
    );
}

#[test]
fn node_that_hung_during_connect_has_no_clock_warning() {
    let log = captured_log();
    let node = Server::start().unwrap();
    let proxy = Proxy::to(node.addr());
    proxy.requests(Flow::Hold);
    // The node seems hung: it answers requests much later.
    let config = at([proxy.addr()]).node_timeout(Duration::from_millis(100));
    let locker = thread::scope(|scope| {
        let connecting = scope.spawn(|| RedisLocker::connect(config).unwrap());
        let has_greeted = || proxy.request_bytes() > 0;
        eventually(LIMIT, "the handshake is on its way", has_greeted);
        let greeted = now();
        // Longer than the limit for a warning; the exact excess does not matter.
        let is_late = || greeted.elapsed() > 2 * HUNG;
        eventually(LIMIT, "it has been hung for long", is_late);
        proxy.pass();
        connecting.join().unwrap()
    });
    let health = locker.nodes().health();
    let [offset, uncertainty] = [
        health.nodes[0].clock_offset.unwrap().abs(),
        health.nodes[0].clock_uncertainty.unwrap(),
    ];
    assert!(
        offset <= uncertainty + Duration::from_millis(1),
        "{offset:?} {uncertainty:?}"
    );
    let warned = log.lines(Level::Warn, &proxy.addr());
    let is_odd = |line: &String| line.contains("clock") || line.contains("node_timeout");
    assert!(!warned.iter().any(is_odd), "{warned:?}");
}

#[test]
fn two_servers_behind_one_address_are_a_failure_of_the_node() {
    let nodes = servers(2);
    let in_turn = nodes.iter().map(Server::addr).collect::<Vec<_>>();
    let address = lead(in_turn.into_iter().cycle());
    let config = at([address]).pool_size(2).retry(RetryPolicy {
        max_outage: Duration::ZERO,
        ..RetryPolicy::default()
    });
    let locker = match RedisLocker::connect(config) {
        Ok(locker) => locker,
        Err(error) => return assert!(error.to_string().contains("several servers"), "{error}"),
    };
    // Each key is assigned to a connection: with several connections both are used.
    eventually(LIMIT, "the event is reported", || {
        _ = locker.try_lock(&unique_key("behind"), TTL);
        let node = &locker.nodes().health().nodes[0];
        let told = node.cause.as_ref().map(NodeFailure::to_string);
        told.is_some_and(|told| told.contains("several servers"))
    });
    for _ in 0..20 {
        let tried = locker.try_lock(&unique_key("behind"), TTL);
        assert!(tried.is_err(), "{tried:?}");
    }
}
