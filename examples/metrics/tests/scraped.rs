//! The exporter, scraped over a real connection, for locks on real nodes.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "in a test a panic is the report; what it waits for cannot wake it"
)]

use redguard::{Config, Locker, Nodes, RedisLocker};
use redguard_metrics::{Exporter, Histograms};
use redguard_servers::Server;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// Only a hang takes this long.
const LIMIT: Duration = Duration::from_secs(20);
const TTL: Duration = Duration::from_secs(300);

/// Status line, headers and body, as they come.
fn scrape(addr: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn metrics_count_acquires_refusals_and_replies() {
    let servers: Vec<Server> = (0..3).map(|_| Server::start().unwrap()).collect();
    let histograms = Histograms::new();
    let nodes = {
        let config = Config::new(servers.iter().map(Server::addr))
            .node_timeout(LIMIT / 10)
            .connect_timeout(LIMIT);
        Nodes::connect(config.observer(histograms.clone())).unwrap()
    };
    let exporter = Exporter::serve(&nodes, &histograms, "127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = exporter.addr().unwrap();
    let before = scrape(addr, "/metrics");
    assert!(before.contains("\nredguard_acquired_total 0\n"), "{before}");

    let locker = RedisLocker::new(&nodes);
    let key = "scraped";
    locker.lock(key, TTL).unwrap().release().unwrap();
    let guard = locker.lock(key, TTL).unwrap();
    assert!(locker.try_lock(key, TTL).unwrap().is_none());
    for line in [
        "redguard_acquired_total 2",
        "redguard_contended_total 1",
        "redguard_unavailable_total 0",
        "redguard_lost_total 0",
        "redguard_breaker_open 0",
        "redguard_wait_seconds_count 2",
        "redguard_hold_seconds_count 1",
    ] {
        let after = scrape(addr, "/metrics");
        assert!(after.lines().any(|l| l == line), "{line} in {after}");
    }
    for server in &servers {
        let node = server.addr();
        let up = format!("redguard_node_up{{node=\"{node}\"}} 1");
        let replies = format!("redguard_reply_seconds_count{{node=\"{node}\",reply=\"done\"}}");
        let began = Instant::now();
        loop {
            let after = scrape(addr, "/metrics");
            if after.lines().any(|l| l == up) && after.contains(&replies) {
                break;
            }
            assert!(began.elapsed() < LIMIT, "{node}: {after}");
            thread::sleep(Duration::from_millis(2));
        }
    }
    assert!(scrape(addr, "/").starts_with("HTTP/1.1 404"));
    assert!(before.starts_with("HTTP/1.1 200") && before.contains("openmetrics-text"));
    assert!(scrape(addr, "/metrics").contains("# EOF\n"));
    drop(guard);
    drop(exporter); // its thread ends
}
