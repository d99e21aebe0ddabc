//! Connections that end while nothing is in flight: real servers that close them in each way, for
//! each kind of node.

use std::thread;
#[cfg(feature = "cluster")]
use std::time::Duration;

use redguard::{BreakerState, Config, Locker, RedisLocker};

#[cfg(feature = "cluster")]
use crate::support::clusters::Cluster;
use crate::support::fixtures::{
    LIMIT, TTL, acquire_lock, ask, at, config, connect_by, store_foreign_token,
};
use crate::support::hostile::{BadReply, Hostile, Then};
use crate::support::proxy::Proxy;
#[cfg(feature = "sentinel")]
use crate::support::sentinels::Watched;
use crate::support::servers::Server;
#[cfg(feature = "tls")]
use crate::support::tls::{Ask, Authority, TlsServer};
use crate::support::{eventually, on_socket, servers, unique_key};

/// One failed round opens the breaker.
fn strict(config: Config) -> Config {
    config.circuit_breaker(1, LIMIT)
}

/// Returns the ids of a server's clients whose last command was a lock request.
fn clients(node: &Server) -> Vec<String> {
    let list: String = ask(node, &["CLIENT", "LIST"]);
    let ours = |line: &&str| line.contains("cmd=set ") || line.contains("cmd=evalsha ");
    let id = |line: &str| line.split([' ', '=']).nth(1).unwrap().to_owned();
    list.lines().filter(ours).map(id).collect()
}

/// Kills all connections of lockers that have sent requests.
fn kill(nodes: &[Server]) {
    for node in nodes {
        for id in clients(node) {
            let _: u32 = ask(node, &["CLIENT", "KILL", "ID", &id]);
        }
        eventually(LIMIT, "the connections are closed", || {
            clients(node).is_empty()
        });
    }
}

/// Makes the servers close connections that are idle for a second, and waits for that.
fn let_idle_connections_end(nodes: &[Server]) {
    let set = |seconds| {
        let each = nodes.iter();
        each.for_each(|node| ask(node, &["CONFIG", "SET", "timeout", seconds]));
    };
    set("1");
    for node in nodes {
        eventually(LIMIT, "idle connections are closed", || {
            clients(node).is_empty()
        });
    }
    set("0");
}

/// Asserts that `try_lock` succeeds in one round after each `end` of the connections, for one
/// caller and for several at once. A quorum answered the previous release, so a request can be in
/// flight on a minority.
fn try_lock_succeeds_after(locker: &RedisLocker, nodes: &[Server], end: impl Fn(&[Server])) {
    let lock = |name: &str| {
        let locked = locker.try_lock(&unique_key(name), TTL).unwrap();
        locked.expect("the lock is free")
    };
    for _ in 0..3 {
        acquire_lock(locker, &unique_key("before"))
            .release()
            .unwrap();
        end(nodes);
        lock("alone").release().unwrap();
        end(nodes);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| lock("together").release().unwrap());
            }
        });
        let health = locker.nodes().health();
        assert!(matches!(health.breaker, BreakerState::Closed), "{health:?}");
    }
}

#[test]
fn try_lock_after_connections_were_killed_succeeds() {
    let nodes = servers(3);
    let locker = connect_by(strict(config(&nodes)), &nodes);
    try_lock_succeeds_after(&locker, &nodes, kill);
}

#[test]
fn try_lock_after_the_servers_closed_idle_connections_succeeds() {
    let nodes = servers(3);
    let locker = connect_by(strict(config(&nodes)), &nodes);
    try_lock_succeeds_after(&locker, &nodes, let_idle_connections_end);
}

#[test]
fn try_lock_after_a_proxy_cut_the_connections_succeeds() {
    let nodes = servers(3);
    let proxies: Vec<Proxy> = nodes.iter().map(|node| Proxy::to(node.addr())).collect();
    let through = at(proxies.iter().map(Proxy::addr));
    let locker = connect_by(strict(through), &nodes);
    try_lock_succeeds_after(&locker, &nodes, |_| proxies.iter().for_each(Proxy::cut));
}

#[test]
fn try_lock_after_the_servers_restarted_succeeds() {
    let nodes = servers(3);
    let locker = connect_by(strict(config(&nodes)), &nodes);
    try_lock_succeeds_after(&locker, &nodes, |nodes| {
        for node in nodes {
            node.kill();
            node.restart().unwrap();
        }
    });
}

#[test]
fn try_lock_over_a_socket_that_was_closed_succeeds() {
    let (node, url) = on_socket("");
    let nodes = [node];
    let locker = connect_by(strict(at([url])), &nodes);
    try_lock_succeeds_after(&locker, &nodes, kill);
}

#[cfg(feature = "tls")]
#[test]
fn try_lock_over_tls_after_the_servers_closed_idle_connections_succeeds() {
    let ca = Authority::new("ours");
    let start = || TlsServer::start(&ca.signs(&["127.0.0.1"]), &ca, Ask::No, &[]);
    let started = [(); 3].map(|()| start());
    let addresses: Vec<String> = started.iter().map(TlsServer::addr).collect();
    let started = started.map(|node| (node.server, node.tls));
    let (nodes, _ports): (Vec<_>, Vec<_>) = started.into_iter().unzip();
    let locker = connect_by(strict(at(addresses).tls(ca.trusted())), &nodes);
    try_lock_succeeds_after(&locker, &nodes, let_idle_connections_end);
}

#[cfg(feature = "cluster")]
#[test]
fn try_lock_on_a_cluster_that_killed_the_connections_succeeds() {
    let cluster = Cluster::start(Duration::from_secs(30));
    let locker = RedisLocker::connect(strict(at([cluster.endpoint()]))).unwrap();
    let ends = |masters: &[Server]| {
        masters
            .iter()
            .for_each(|one| kill(std::slice::from_ref(one)))
    };
    for _ in 0..5 {
        let guard = acquire_lock(&locker, &unique_key("before"));
        ends(&cluster.masters);
        guard.release().unwrap();
        ends(&cluster.masters);
        let again = locker.try_lock(&unique_key("cluster"), TTL).unwrap();
        again.expect("the lock is free").release().unwrap();
    }
}

#[cfg(feature = "sentinel")]
#[test]
fn try_lock_on_a_watched_master_that_killed_the_connection_succeeds() {
    let watched = Watched::start(1);
    let locker = RedisLocker::connect(strict(at([watched.endpoint()]))).unwrap();
    let master = std::slice::from_ref(&watched.master);
    try_lock_succeeds_after(&locker, master, kill);
}

#[test]
fn unexpected_reply_is_no_grant() {
    let node = Server::start().unwrap();
    let hostile = Hostile::before(node.addr());
    let locker = RedisLocker::connect(strict(at([hostile.addr()]))).unwrap();
    let twice = BadReply {
        says: b"+OK\r\n+OK\r\n".to_vec(),
        then: Then::GoOn,
    };
    hostile.set_bad_reply("SET", &twice);
    let first = locker.try_lock(&unique_key("first"), TTL).unwrap();
    hostile.set_bad_reply("NOTHING", &twice);
    let key = unique_key("second");
    store_foreign_token(&node, &key, TTL);
    let second = locker.try_lock(&key, TTL).unwrap();
    assert!(second.is_none(), "another owner holds the lock");
    drop(first);
}
