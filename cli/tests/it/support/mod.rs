//! Tools of the tests: servers, the tool as a process, terminals, proxies, and bounded waits.

pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod signal_log;
pub(crate) mod terminal;

use std::time::{Duration, Instant};

pub(crate) use redguard_servers as servers;
use redguard_servers::Server;
use redis::{Cmd, Connection, FromRedisValue};

/// Longer than anything that is waited for; only bounds a failure.
pub(crate) const LIMIT: Duration = Duration::from_secs(180);

/// Starts `n` servers for one test.
pub(crate) fn servers(n: usize) -> Vec<Server> {
    (0..n).map(|_| Server::start().unwrap()).collect()
}

pub(crate) fn server() -> Server {
    Server::start().unwrap()
}

/// Returns the addresses of servers, as `--redis` takes them.
pub(crate) fn addresses(servers: &[Server]) -> String {
    let addresses: Vec<_> = servers.iter().map(Server::addr).collect();
    addresses.join(",")
}

/// Blocks until `holds` returns true.
#[track_caller]
pub(crate) fn eventually(what: &str, holds: impl FnMut() -> bool) {
    eventually_or(|| what.to_owned(), holds);
}

/// Blocks until `holds` returns true; `what` is asked for only if it does not.
#[track_caller]
pub(crate) fn eventually_or(what: impl Fn() -> String, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < LIMIT, "not within {LIMIT:?}: {}", what());
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn connection(server: &Server) -> Connection {
    let client = redis::Client::open(server.url()).unwrap();
    client.get_connection_with_timeout(LIMIT).unwrap()
}

/// Asks a server, beside the tool.
pub(crate) fn ask<T: FromRedisValue>(server: &Server, words: &[&str]) -> T {
    let mut command = Cmd::new();
    for word in words {
        command.arg(*word);
    }
    command.query(&mut connection(server)).unwrap()
}

/// Returns whether a server has the key of a lock.
pub(crate) fn has_lock(server: &Server, name: &str) -> bool {
    ask(server, &["EXISTS", &format!("redguard:{name}")])
}

/// Blocks until this number of processes waits for a lock.
#[track_caller]
pub(crate) fn await_waiting(node: &Server, key: &str, processes: u32) {
    let channel = format!("redguard:{key}");
    eventually(&format!("{processes} processes wait"), || {
        let (_, listeners): (String, u32) = ask(node, &["PUBSUB", "NUMSUB", &channel]);
        listeners == processes
    });
}
