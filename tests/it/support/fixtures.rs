//! Fixtures of the integration tests: lockers on temporary servers, the clock, and direct commands
//! to nodes.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use redguard::{Config, Endpoint, LockGuard, LockOptions, Locker, RedisLocker, RetryPolicy};
use redis::FromRedisValue;

use crate::support::servers::Server;
use crate::support::{eventually, raw, servers, unique_key};

/// The limit of waits that only a hang exceeds.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);
/// A TTL that outlasts every test, so that no lock becomes free by expiry.
pub(crate) const TTL: Duration = Duration::from_secs(300);
/// A TTL whose renewals and expiry a test can wait for.
pub(crate) const BRIEF: Duration = Duration::from_secs(3);
/// The default prefix of keys.
pub(crate) const PREFIX: &str = "redguard:";

/// Returns three nodes for all tests that do not change them.
pub(crate) fn shared() -> &'static [Server] {
    static NODES: LazyLock<Vec<Server>> = LazyLock::new(|| servers(3));
    &NODES
}

/// Returns settings with long timeouts, for a busy machine, and short retry delays.
pub(crate) fn config(nodes: &[Server]) -> Config {
    at(nodes.iter().map(Server::addr))
}

/// Returns such settings for any addresses. The breaker never opens, so a test controls its
/// outages.
pub(crate) fn at(addresses: impl IntoIterator<Item = impl Into<Endpoint>>) -> Config {
    Config::new(addresses)
        .node_timeout(Duration::from_secs(2))
        .connect_timeout(Duration::from_secs(10))
        .circuit_breaker(u32::MAX, LIMIT)
        .retry(with_short_timeouts())
}

/// Returns a retry policy with short delays.
pub(crate) fn with_short_timeouts() -> RetryPolicy {
    RetryPolicy {
        initial_delay: Duration::from_millis(2),
        max_delay: Duration::from_millis(20),
        ..RetryPolicy::default()
    }
}

/// Returns a retry policy whose delays outlast the test, so that only a message can cause progress.
pub(crate) fn sluggish() -> RetryPolicy {
    RetryPolicy {
        initial_delay: TTL,
        max_delay: TTL,
        jitter: 0.0,
        ..with_short_timeouts()
    }
}

/// Asserts that less time has passed since `began` than any delay of [`sluggish`], so that a
/// message was the cause.
pub(crate) fn assert_no_timeout_elapsed(began: Instant) {
    assert!(began.elapsed() < TTL / 5, "{:?}", began.elapsed());
}

/// Returns the number of subscribers to the channel of a lock.
pub(crate) fn subscribers(node: &Server, key: &str) -> u64 {
    let (_, count): (String, u64) = ask(node, &["PUBSUB", "NUMSUB", &wire(key)]);
    count
}

/// Connects with [`config`], and waits until all nodes are up.
pub(crate) fn connect(nodes: &[Server]) -> RedisLocker {
    connect_by(config(nodes), nodes)
}

/// Connects and waits until all nodes are up: `connect` waits only for a quorum.
pub(crate) fn connect_by(config: Config, nodes: &[Server]) -> RedisLocker {
    let locker = RedisLocker::connect(config).unwrap();
    nodes
        .iter()
        .for_each(|node| wait_until_it_grants(&locker, node));
    locker
}

/// Waits until a node that has just connected grants locks.
pub(crate) fn wait_until_it_grants(locker: &dyn Locker, node: &Server) {
    eventually(LIMIT, "the node grants locks", || {
        let key = unique_key("part");
        let guard = acquire_lock(locker, &key);
        let there = token(node, &key).is_some();
        guard.release().unwrap();
        there
    });
}

/// Acquires a lock that becomes free within [`LIMIT`].
pub(crate) fn acquire_lock(locker: &dyn Locker, key: &str) -> LockGuard {
    let patient = LockOptions::new(TTL).wait_for(LIMIT);
    locker.acquire(key, &patient).unwrap()
}

/// Reads the steady clock.
#[expect(
    clippy::disallowed_methods,
    reason = "a test measures from outside, with a clock of its own"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Sends one command on a connection of its own.
pub(crate) fn ask<T: FromRedisValue>(node: &Server, words: &[&str]) -> T {
    try_ask(node, words).unwrap()
}

/// As [`ask`], and returns the error.
pub(crate) fn try_ask<T: FromRedisValue>(node: &Server, words: &[&str]) -> redis::RedisResult<T> {
    let mut command = redis::Cmd::new();
    for word in words {
        command.arg(word);
    }
    command.query(&mut raw(node))
}

/// Returns the key of a lock on the nodes.
pub(crate) fn wire(key: &str) -> String {
    format!("{PREFIX}{key}")
}

/// Returns the stored value of a lock on a node.
pub(crate) fn token(node: &Server, key: &str) -> Option<String> {
    ask(node, &["GET", &wire(key)])
}

/// Returns whether a stored value is a token: an owner label if there is one, 40 random digits, and
/// the time of the acquire if it is known.
pub(crate) fn is_token(text: &str) -> bool {
    let is_hex = |text: &str| text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let random = text.rsplit_once(':').map_or(text, |(_, random)| random);
    let (random, time) = random.split_once('.').unwrap_or((random, "0"));
    random.len() == 40 && is_hex(random) && !time.is_empty() && is_hex(time)
}

/// Returns the remaining TTL in milliseconds: -1 without expiry, -2 without a key.
pub(crate) fn pttl(node: &Server, key: &str) -> i64 {
    ask(node, &["PTTL", &wire(key)])
}

/// Stores the token of another owner under the key of a free lock.
pub(crate) fn store_foreign_token(node: &Server, key: &str, ttl: Duration) {
    let px = ttl.as_millis().to_string();
    let set = ["SET", &wire(key), STRANGER, "NX", "PX", &px];
    assert_eq!(ask::<Option<String>>(node, &set).as_deref(), Some("OK"));
}

/// The value that [`store_foreign_token`] stores.
pub(crate) const STRANGER: &str = "foreign value";

/// Returns the token that a quorum of nodes stores for a lock.
pub(crate) fn holder(nodes: &[Server], key: &str) -> Option<String> {
    let tokens: Vec<String> = nodes.iter().filter_map(|node| token(node, key)).collect();
    let votes = |token: &String| tokens.iter().filter(|other| *other == token).count();
    tokens
        .iter()
        .find(|token| votes(token) > nodes.len() / 2)
        .cloned()
}

/// Waits until the key of a lock is on all nodes and returns its token. The grant of a node beyond
/// the quorum may arrive later.
pub(crate) fn everywhere(nodes: &[Server], key: &str) -> String {
    let mut tokens = Vec::new();
    eventually(LIMIT, "the key is on every node", || {
        tokens = nodes.iter().filter_map(|node| token(node, key)).collect();
        tokens.len() == nodes.len()
    });
    let first = tokens.remove(0);
    assert!(tokens.iter().all(|token| *token == first), "{tokens:?}");
    first
}

/// Waits until the key of a lock is on no node.
pub(crate) fn nowhere(nodes: &[Server], key: &str) {
    eventually(LIMIT, "the key is on no node", || {
        nodes.iter().all(|node| pttl(node, key) == -2)
    });
}

/// Returns how often a server has executed a command, also from scripts.
pub(crate) fn calls(node: &Server, command: &str) -> u64 {
    let start = format!("cmdstat_{command}:calls=");
    let info: String = ask(node, &["INFO", "commandstats"]);
    let calls = info.lines().find_map(|line| line.strip_prefix(&start));
    calls.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
}
