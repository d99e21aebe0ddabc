//! What the suites share: lockers on throw-away servers, the clock, and a look behind the library's back.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use redguard::{Config, Endpoint, LockGuard, LockOptions, Locker, RedisLocker, RetryPolicy};
use redis::FromRedisValue;

use crate::support::servers::Server;
use crate::support::{eventually, raw, servers, unique_key};

/// Wide: only a hang takes this long.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);
/// Outlasts every test, so that nothing is ever free because it expired.
pub(crate) const TTL: Duration = Duration::from_secs(300);
/// Renewed every second or so, and short enough to be waited for.
pub(crate) const BRIEF: Duration = Duration::from_secs(3);
/// What stands before a lock's name unless another prefix is set.
pub(crate) const PREFIX: &str = "redguard:";

/// Three nodes for all tests that leave them as they are.
pub(crate) fn shared() -> &'static [Server] {
    static NODES: LazyLock<Vec<Server>> = LazyLock::new(|| servers(3));
    &NODES
}

/// Patient with nodes on a busy machine, hasty between two attempts.
pub(crate) fn config(nodes: &[Server]) -> Config {
    at(nodes.iter().map(Server::addr))
}

/// The same for any addresses. The breaker never opens: an outage lasts for as long as the test wants.
pub(crate) fn at(addresses: impl IntoIterator<Item = impl Into<Endpoint>>) -> Config {
    Config::new(addresses)
        .node_timeout(Duration::from_secs(2))
        .connect_timeout(Duration::from_secs(10))
        .circuit_breaker(u32::MAX, LIMIT)
        .retry(hasty())
}

pub(crate) fn hasty() -> RetryPolicy {
    RetryPolicy {
        initial_delay: Duration::from_millis(2),
        max_delay: Duration::from_millis(20),
        ..RetryPolicy::default()
    }
}

/// Only a message explains progress.
pub(crate) fn sluggish() -> RetryPolicy {
    RetryPolicy {
        initial_delay: TTL,
        max_delay: TTL,
        jitter: 0.0,
        ..hasty()
    }
}

/// What began then has been brought about by messages, with the policy above: all clocks are slower.
pub(crate) fn by_no_clock(began: Instant) {
    assert!(began.elapsed() < TTL / 5, "{:?}", began.elapsed());
}

/// How many listen for the release of a lock.
pub(crate) fn subscribers(node: &Server, key: &str) -> u64 {
    let (_, count): (String, u64) = ask(node, &["PUBSUB", "NUMSUB", &wire(key)]);
    count
}

pub(crate) fn connect(nodes: &[Server]) -> RedisLocker {
    connect_by(config(nodes), nodes)
}

/// Connects, and waits until all nodes take part: a quorum of them would do for `connect`.
pub(crate) fn connect_by(config: Config, nodes: &[Server]) -> RedisLocker {
    let locker = RedisLocker::connect(config).unwrap();
    nodes.iter().for_each(|node| takes_part(&locker, node));
    locker
}

/// Waits until what is locked is locked on a node, too, that has just come or come back.
pub(crate) fn takes_part(locker: &dyn Locker, node: &Server) {
    eventually(LIMIT, "the node takes part", || {
        let key = unique_key("part");
        let guard = take(locker, &key);
        let there = token(node, &key).is_some();
        guard.release().unwrap();
        there
    });
}

/// Waits for a lock that must become free.
pub(crate) fn take(locker: &dyn Locker, key: &str) -> LockGuard {
    let patient = LockOptions::new(TTL).wait_for(LIMIT);
    locker.acquire(key, &patient).unwrap()
}

#[expect(
    clippy::disallowed_methods,
    reason = "a test measures from outside, with a clock of its own"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// One command on a connection of its own.
pub(crate) fn ask<T: FromRedisValue>(node: &Server, words: &[&str]) -> T {
    try_ask(node, words).unwrap()
}

pub(crate) fn try_ask<T: FromRedisValue>(node: &Server, words: &[&str]) -> redis::RedisResult<T> {
    let mut command = redis::Cmd::new();
    for word in words {
        command.arg(word);
    }
    command.query(&mut raw(node))
}

/// A lock's key as it stands on the nodes.
pub(crate) fn wire(key: &str) -> String {
    format!("{PREFIX}{key}")
}

/// What is stored for a lock on a node.
pub(crate) fn token(node: &Server, key: &str) -> Option<String> {
    ask(node, &["GET", &wire(key)])
}

/// As the server counts: -1 without an end, -2 without a key.
pub(crate) fn pttl(node: &Server, key: &str) -> i64 {
    ask(node, &["PTTL", &wire(key)])
}

/// Somebody else, who shares nothing with the library but the key, takes a lock.
pub(crate) fn seize(node: &Server, key: &str, ttl: Duration) {
    let px = ttl.as_millis().to_string();
    let set = ["SET", &wire(key), STRANGER, "NX", "PX", &px];
    assert_eq!(ask::<Option<String>>(node, &set).as_deref(), Some("OK"));
}

pub(crate) const STRANGER: &str = "a stranger";

/// The token that a quorum of nodes has for a lock: who took it when another's lease ended need not have all of them.
pub(crate) fn holder(nodes: &[Server], key: &str) -> Option<String> {
    let tokens: Vec<String> = nodes.iter().filter_map(|node| token(node, key)).collect();
    let votes = |token: &String| tokens.iter().filter(|other| *other == token).count();
    tokens
        .iter()
        .find(|token| votes(token) > nodes.len() / 2)
        .cloned()
}

/// Waits until the key of a lock that was free is on all nodes, and answers its token there: the grant of a node that
/// was not needed for the quorum may still be on its way.
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

/// Waits until a lock's key is on no node any more: no undo of ours may be outstanding for ever.
pub(crate) fn nowhere(nodes: &[Server], key: &str) {
    eventually(LIMIT, "the key is on no node", || {
        nodes.iter().all(|node| pttl(node, key) == -2)
    });
}

/// How often a server has run a command, also from within scripts.
pub(crate) fn calls(node: &Server, command: &str) -> u64 {
    let start = format!("cmdstat_{command}:calls=");
    let info: String = ask(node, &["INFO", "commandstats"]);
    let calls = info.lines().find_map(|line| line.strip_prefix(&start));
    calls.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
}
