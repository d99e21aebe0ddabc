//! Distributed locks on Redis for threaded programs: Redlock over N independent nodes, with RAII
//! guards, renewal and fencing tokens. Synchronous and blocking, no async runtime.
//!
//! ```no_run
//! use redguard::{Config, LockOptions, Locker, RedisLocker};
//! use std::time::Duration;
//!
//! # fn main() -> Result<(), redguard::Error> {
//! let nodes = ["10.0.0.1:6379", "10.0.0.2:6379", "10.0.0.3:6379"];
//! let locker = RedisLocker::connect(Config::new(nodes))?;
//! let options = LockOptions::new(Duration::from_secs(30)).auto_renew(true);
//! let guard = locker.acquire("nightly-report", &options)?; // waits and retries as configured
//! for page in 0..100 {
//!     guard.check()?; // still held?
//!     // … exclusive work …
//! }
//! drop(guard); // or guard.release()? to see how it ended
//! # Ok(())
//! # }
//! ```
//!
//! **A lock can end before its guard is dropped.** A lock of this kind is a lease: it ends with its
//! TTL unless it is renewed or extended, so a program that is paused for longer loses it. Set
//! [`auto_renew`](LockOptions::auto_renew), or [`extend`](LockGuard::extend) the lock in time. Call
//! [`check`](LockGuard::check) before each step that must not overlap with another holder's.
//!
//! # Which lock
//!
//! | lock | for |
//! |---|---|
//! | [`Locker`] | one holder at a time. The cheapest, and compatible with other Redlock clients |
//! | [`RwLocker`] | many readers or one writer, where reading takes long and writing is rare |
//! | [`Semaphore`] | at most n holders |
//!
//! [`RedisLocker`], [`RedisRwLocker`] and [`RedisSemaphore`] hold locks on the nodes,
//! [`LocalLocker`], [`LocalRwLocker`] and [`LocalSemaphore`] in this process alone, behind the same
//! traits. An exclusive lock, a read-write lock and a semaphore of one name are different locks.
//!
//! `lock`, `read` and `write` take a TTL; `acquire…` takes [`LockOptions`]. A `try_` call returns
//! `None` if another holder has the lock, and waits only if its options set a wait.
//!
//! # Errors
//!
//! | error | meaning | reaction |
//! |---|---|---|
//! | [`is_contended`](Error::is_contended) | another holder has the lock, and the wait is over | come back later |
//! | [`is_unavailable`](Error::is_unavailable) | no quorum of nodes replied, or too slowly | come back later; look at the nodes |
//! | [`is_denied`](Error::is_denied) | credentials, rights or certificates | configure; waiting does not help |
//! | [`is_lost`](Error::is_lost) | the lock ended before its guard | stop the work |
//! | others | a name, a setting, a shutdown, a cancellation | see [`Error`] |
//!
//! # The guide
//!
//! | page | about |
//! |---|---|
//! | [`getting_started`](guide::getting_started) | TTLs, renewal, exit codes, signals, tests |
//! | [`guarantees`](guide::guarantees) | the guarantees, their limits, timing, losses, guards, scopes |
//! | [`fencing`](guide::fencing) | tokens, and stores that check them |
//! | [`leader_election`](guide::leader_election) | one leader among many processes |
//! | [`read_write_locks`](guide::read_write_locks), [`semaphores`](guide::semaphores) | their rules and fairness |
//! | [`waiting`](guide::waiting) | queues, wake-ups, limits, several keys, adoption by another process |
//! | [`failures`](guide::failures) | outages, the circuit breaker, degraded mode, quarantine |
//! | [`sentinel_cluster`](guide::sentinel_cluster) | a watched master or a cluster as one node |
//! | [`operations`](guide::operations) | nodes, permissions, changing the list, observing, threads, log levels |
//! | [`migration`](guide::migration) | from and beside other libraries |
//!
//! # Features and versions
//!
//! | feature | adds |
//! |---|---|
//! | `testing` | `FlakyLocker`, which is contended, unavailable or loses its lock when a test says so |
//! | `tls` | `rediss://` addresses, `Config::tls` and `Tls`. By `rustls`; building it needs a C compiler |
//! | `serde` | `Config` and `LockOptions` from files of settings, `RetryPolicy` too; durations such as `1m 30s`. By `serde` and `humantime` |
//! | `sentinel` | `Endpoint::sentinel`: a master that sentinels name, as one node |
//! | `cluster` | `Endpoint::cluster`: a Redis Cluster, as one node |
//!
//! None is on by default. With `tls`, the first connect over TLS installs `ring` as the process's
//! crypto provider for `rustls`, unless the process has installed one.
//!
//! Rust 1.88; Redis 6.2 or Valkey 7.2 and later, of which Valkey below 8.1 is not tested.

#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]

mod api;
mod background;
mod config;
mod engine;
mod error;
pub mod guide;
mod local;
mod protocol;
mod random;
mod sync;
mod telemetry;
#[cfg(test)]
mod tests;
mod time;
mod transport;

pub use crate::api::ext::LockerExt;
#[cfg(feature = "testing")]
pub use crate::api::flaky::FlakyLocker;
pub use crate::api::guard::{LockGuard, ReadGuard, SemaphorePermit, WriteGuard};
pub use crate::api::local_locker::LocalLocker;
pub use crate::api::lock_token::LockToken;
pub use crate::api::locker::Locker;
pub use crate::api::nodes::Nodes;
pub use crate::api::options::LockOptions;
pub use crate::api::redis_locker::RedisLocker;
pub use crate::api::rw_locker::{LocalRwLocker, RedisRwLocker, RwLocker};
pub use crate::api::semaphore::{LocalSemaphore, RedisSemaphore, Semaphore};
pub use crate::api::watch::{LockWatch, WatchOutcome};
pub use crate::config::builder::Config;
pub use crate::config::credentials::Credentials;
pub use crate::config::endpoint::{Endpoint, IntoEndpoints};
pub use crate::config::on_drop::OnDrop;
#[cfg(feature = "tls")]
pub use crate::config::tls::Tls;
pub use crate::error::contended_lock::ContendedLock;
pub use crate::error::error::{Error, Result};
pub use crate::error::failed_node::FailedNode;
pub use crate::error::loss_reason::LossReason;
pub use crate::error::node_failure::NodeFailure;
pub use crate::error::operation::Operation;
pub use crate::protocol::endangered_lock::EndangeredLock;
pub use crate::protocol::holder::Holder;
pub use crate::protocol::lost_lock::LostLock;
pub use crate::protocol::mode::Mode;
pub use crate::protocol::retry::RetryPolicy;
pub use crate::protocol::server_info::{ClockOffset, Role};
pub use crate::telemetry::health::{BreakerState, Health, NodeHealth, NodeState};
pub use crate::telemetry::observer::{NodeReply, Observer};
pub use crate::telemetry::stats::{DurationSummary, NodeStats, Stats};
pub use crate::transport::cancel::CancelToken;

/// The README's examples, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(test)]
mod send_sync_tests {
    use std::panic::{RefUnwindSafe, UnwindSafe};

    use super::*;

    const fn assert_shared<T: Send + Sync + ?Sized>() {}
    const fn assert_unwind_safe<T: Send + Sync + UnwindSafe + RefUnwindSafe>() {}

    /// Every public type that has threads, callbacks or a lock behind it moves to any thread, is
    /// used by several at once, and crosses `catch_unwind`.
    const _: () = {
        assert_shared::<dyn Locker>();
        assert_shared::<dyn RwLocker>();
        assert_shared::<dyn Semaphore>();
        assert_unwind_safe::<Config>();
        assert_unwind_safe::<Credentials>();
        assert_unwind_safe::<Endpoint>();
        assert_unwind_safe::<RetryPolicy>();
        assert_unwind_safe::<LockOptions>();
        assert_unwind_safe::<LostLock>();
        assert_unwind_safe::<EndangeredLock>();
        assert_unwind_safe::<Nodes>();
        assert_unwind_safe::<RedisLocker>();
        assert_unwind_safe::<RedisRwLocker>();
        assert_unwind_safe::<RedisSemaphore>();
        assert_unwind_safe::<LocalLocker>();
        assert_unwind_safe::<LocalRwLocker>();
        assert_unwind_safe::<LocalSemaphore>();
        assert_unwind_safe::<LockGuard>();
        assert_unwind_safe::<ReadGuard>();
        assert_unwind_safe::<WriteGuard>();
        assert_unwind_safe::<SemaphorePermit>();
        assert_unwind_safe::<LockWatch>();
        assert_unwind_safe::<LockToken>();
        assert_unwind_safe::<CancelToken>();
        assert_unwind_safe::<Error>();
    };
    #[cfg(feature = "testing")]
    const _: () = assert_unwind_safe::<FlakyLocker>();
    #[cfg(feature = "tls")]
    const _: () = assert_unwind_safe::<Tls>();

    /// Compiled only: an acquire with borrowed options crosses `catch_unwind` as it is.
    #[expect(dead_code, reason = "it is checked by the compiler")]
    fn acquire_crosses_catch_unwind(locker: &RedisLocker, options: &LockOptions) {
        let acquired = std::panic::catch_unwind(|| locker.acquire("k", options));
        drop(acquired);
    }
}
