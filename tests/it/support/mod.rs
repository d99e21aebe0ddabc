//! Tools of the integration tests: real servers, proxies, checks for overlaps, the log, and bounded
//! waits.
#![allow(dead_code, reason = "not every build uses every tool")]
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

pub(crate) use redguard_servers as servers;

/// Starts `n` servers for one test.
///
/// # Panics
/// If they cannot start. Without `redis-server` the message says how to install it.
pub(crate) fn servers(n: usize) -> Vec<Server> {
    (0..n)
        .map(|_| Server::start().unwrap_or_else(|error| panic!("{error}")))
        .collect()
}

/// Starts a server that also listens on a Unix socket, and returns the URL of the socket. An empty
/// password means none.
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

/// Returns how many callers acquire a lock that they try once at the same moment. `try_once` takes
/// a new key for each call.
///
/// On a busy machine no split vote may be settled within its 50 ms (L1), but not twice in a row.
pub(crate) fn wins_of_a_settled_vote(try_once: impl Fn() -> usize) -> usize {
    match try_once() {
        0 => try_once(),
        wins => wins,
    }
}

/// Returns a unique key, also among other runs.
pub(crate) fn unique_key(name: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!(
        "{name}-{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Relaxed)
    )
}

/// Blocks until `holds` returns true. The limit only bounds a failure.
///
/// # Panics
/// With `what` if `holds` does not return true within the limit.
#[expect(
    clippy::disallowed_methods,
    reason = "the awaited event is in another process and cannot wake this one"
)]
pub(crate) fn eventually(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Opens a connection that bypasses the library.
pub(crate) fn raw(server: &Server) -> redis::Connection {
    let client = redis::Client::open(server.url()).expect("the server's address is a good one");
    client
        .get_connection_with_timeout(Duration::from_secs(10))
        .expect("the server answers")
}
