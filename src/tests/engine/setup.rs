//! Constants and helpers that the tests of quorum, validity, leftovers and shutdown share.

use std::sync::Arc;
use std::time::Duration;

use crate::api::locker::RedisLocker;
use crate::config::builder::Config;
use crate::protocol::retry::RetryPolicy;
use crate::tests::fake_node::node::{FakeNode, connected_locker, eventually};

pub(crate) const TTL: Duration = Duration::from_secs(30);
pub(crate) const SHORT: Duration = Duration::from_millis(200);

pub(crate) fn healthy(fakes: &[Arc<FakeNode>]) -> RedisLocker {
    connected_locker(fakes, |config| config).expect("a quorum is up")
}

/// Sets a node timeout so short that only the first round waits for a hung node, which is suspect
/// afterwards.
pub(crate) fn impatient(config: Config) -> Config {
    config.node_timeout(SHORT)
}

/// Sets at most `max` attempts, with 1 ms between them.
pub(crate) fn attempts(config: Config, max: u32) -> Config {
    config.retry(RetryPolicy {
        max_attempts: Some(max),
        initial_delay: Duration::from_millis(1),
        max_delay: Duration::from_millis(1),
        ..RetryPolicy::default()
    })
}

pub(crate) fn holders(fakes: &[Arc<FakeNode>], key: &str) -> usize {
    fakes
        .iter()
        .filter(|fake| fake.token(key).is_some())
        .count()
}

pub(crate) fn all_free(fakes: &[Arc<FakeNode>], key: &str) {
    eventually("all nodes are free", || holders(fakes, key) == 0);
}
