//! What every integration test may use: real servers, a bad network, witnesses, the log, and patience with a limit.
#![allow(
    dead_code,
    reason = "a toolbox: not every tool is in use at every time"
)]
#![expect(clippy::expect_used, reason = "in a test a panic is the report")]

pub(crate) mod child_process;
pub(crate) mod clock;
#[cfg(feature = "cluster")]
pub(crate) mod clusters;
pub(crate) mod fixtures;
pub(crate) mod hostile;
pub(crate) mod log_capture;
pub(crate) mod proxy;
pub(crate) mod self_test;
#[cfg(feature = "sentinel")]
pub(crate) mod sentinels;
#[cfg(feature = "tls")]
pub(crate) mod tls;
pub(crate) mod witness;

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crate::support::servers::Server;

#[path = "../../../examples/common/servers.rs"]
pub(crate) mod servers;

/// `n` servers of the test's own.
///
/// # Panics
/// If they cannot start; without `redis-server` the message says how to install it.
pub(crate) fn servers(n: usize) -> Vec<Server> {
    (0..n)
        .map(|_| Server::start().unwrap_or_else(|error| panic!("{error}")))
        .collect()
}

/// A server that also listens on a socket in the file system, with this password if it is not empty, and the socket's URL.
pub(crate) fn on_socket(password: &str) -> (Server, String) {
    let options = Server::options().arg("--unixsocket", "redis.sock");
    let options = match password {
        "" => options,
        password => options.arg("--requirepass", password),
    };
    let server = options.start().unwrap_or_else(|error| panic!("{error}"));
    let url = format!("unix://{}", server.dir().join("redis.sock").display());
    (server, url)
}

/// A key that no other call has got, in this or another run.
pub(crate) fn unique_key(name: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!(
        "{name}-{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Relaxed)
    )
}

/// Waits for what will be true sooner or later. The limit bounds a failure, it orders nothing.
///
/// # Panics
/// With `what` if it is not true within the limit.
#[expect(
    clippy::disallowed_methods,
    reason = "what is awaited lies outside this process and cannot wake it"
)]
pub(crate) fn eventually(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A bare connection to look behind the library's back.
pub(crate) fn raw(server: &Server) -> redis::Connection {
    let client = redis::Client::open(server.url()).expect("the server's address is a good one");
    client
        .get_connection_with_timeout(Duration::from_secs(10))
        .expect("the server answers")
}
