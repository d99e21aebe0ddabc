//! Constants, configurations and helpers that the tests of the engine share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::api::options::LockOptions;
use crate::api::redis_locker::RedisLocker;
use crate::config::builder::Config;
use crate::engine::params::{AcquireParams, LeaseOptions};
use crate::protocol::key::Key;
use crate::protocol::kind::{LeaseKind, LockKind};
use crate::protocol::lost_lock::LostLock;
use crate::protocol::request::Op;
use crate::protocol::retry::RetryPolicy;
use crate::protocol::ttl::Ttl;
use crate::tests::fake_node::node::{
    FakeNode, Fault, Rendezvous, connected_locker, eventually, on_log_line,
};
use crate::time::clock;

pub(crate) const TTL: Duration = Duration::from_secs(30);
pub(crate) const SHORT: Duration = Duration::from_millis(200);

/// A retry delay that outlasts every test.
const SLOW: Duration = Duration::from_secs(300);

/// Returns a locker with the settings of the tests.
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

/// Sets retry delays that outlast every test, so that only a message or a cancellation ends a wait.
pub(crate) fn slow_retries(config: Config) -> Config {
    config.retry(RetryPolicy {
        initial_delay: SLOW,
        max_delay: SLOW,
        jitter: 0.0,
        ..RetryPolicy::default()
    })
}

/// Sets [`slow_retries`], and at most `max` attempts.
pub(crate) fn slow_retries_at_most(config: Config, max: u32) -> Config {
    config.retry(RetryPolicy {
        max_attempts: Some(max),
        initial_delay: SLOW,
        max_delay: SLOW,
        jitter: 0.0,
        ..RetryPolicy::default()
    })
}

/// Returns a locker with [`slow_retries`].
pub(crate) fn slowly_retrying(fakes: &[Arc<FakeNode>]) -> RedisLocker {
    connected_locker(fakes, slow_retries).expect("a quorum is up")
}

/// Returns options whose callback checks and counts the losses.
pub(crate) fn counted(
    options: LockOptions,
    check: impl Fn(&LostLock) + Send + Sync + 'static,
) -> (LockOptions, Arc<AtomicUsize>) {
    let losses = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&losses);
    let options = options.on_lost(move |lost| {
        check(lost);
        count.fetch_add(1, Ordering::SeqCst);
    });
    (options, losses)
}

/// Returns the key of the exclusive lock `name`.
pub(crate) fn exclusive_key(name: &str) -> Key {
    Key::parse("redguard:", name, LockKind::Exclusive).expect("a good name")
}

/// Returns the parameters of an acquire of the exclusive lock `name`, with default options.
pub(crate) fn exclusive_params(name: &str, ttl: Duration) -> AcquireParams {
    AcquireParams {
        keys: exclusive_key(name).into(),
        kind: LeaseKind::Exclusive,
        ttl: Ttl::parse(ttl, 0.5).expect("a good TTL"),
        fenced: false,
        cancel: None,
        owner_label: None,
        lease_options: LeaseOptions::default(),
    }
}

/// Sets the fault of these nodes.
pub(crate) fn set_faults(fakes: &[Arc<FakeNode>], fault: &Fault) {
    fakes.iter().for_each(|fake| fake.set_fault(fault.clone()));
}

/// Delays this thread after each grant until most of `ttl` has passed: where the verdict is logged,
/// between the last reply and the guard.
pub(crate) fn delay_grants(ttl: Duration) {
    on_log_line(move |line| {
        let came = clock::now();
        if line.contains("Granted") {
            eventually("most of the TTL has passed", || {
                clock::now().duration_since(came) > ttl * 7 / 10
            });
        }
    });
}

/// Makes these nodes delay acquires until [`serve_delayed`].
pub(crate) fn delay_acquires(fakes: &[Arc<FakeNode>]) -> Vec<Rendezvous> {
    fakes.iter().map(|fake| fake.delay(Op::Acquire)).collect()
}

/// Ends the faults of all nodes, and lets them serve the delayed requests.
pub(crate) fn serve_delayed(fakes: &[Arc<FakeNode>], delayed: &[Rendezvous]) {
    set_faults(fakes, &Fault::None);
    delayed.iter().for_each(Rendezvous::go);
}

/// Returns how many nodes have the key of an exclusive lock.
pub(crate) fn holders(fakes: &[Arc<FakeNode>], key: &str) -> usize {
    fakes
        .iter()
        .filter(|fake| fake.token(key).is_some())
        .count()
}

/// Waits until no node has the key of an exclusive lock.
pub(crate) fn all_free(fakes: &[Arc<FakeNode>], key: &str) {
    eventually("all nodes are free", || holders(fakes, key) == 0);
}
