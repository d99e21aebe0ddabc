//! The public handles for exclusive locks, and the trait that they share.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::config::Config;
use crate::error::Error;
use crate::guard::LockGuard;
use crate::lease::Claim;
use crate::local::Gate;
use crate::nodes::Nodes;
use crate::options::{LockOptions, Strength};
use crate::take;

/// Takes exclusive locks by name. Write a program against `&dyn Locker`, and run it with Redis or without.
///
/// A name is any text of 1 byte to 16 KiB that does not end in `:writer`, `:readers`, `:gate`, `:turn` or `:fence`: where names
/// come from outside, such as paths, put something of your own behind them.
///
/// Locks are **not re-entrant**: a thread that asks for a lock which it holds waits like any other, until the lease
/// of its first guard ends (`LocalLocker`: for ever). There is no poisoning: a guard that is dropped by a panic
/// releases its lock.
///
/// ```
/// use redguard::{Error, Locker, LocalLocker};
/// use std::time::Duration;
///
/// fn nightly(locker: &dyn Locker) -> Result<(), Error> {
///     let Some(guard) = locker.try_lock("nightly", Duration::from_secs(60))? else {
///         return Ok(()); // another one is at it
///     };
///     // … work …
///     guard.release()
/// }
///
/// nightly(&LocalLocker::new()).unwrap();
/// ```
pub trait Locker: fmt::Debug + Send + Sync {
    /// Takes the lock of `key`, waiting for it as the options and the retry policy say.
    ///
    /// Blocks until it is taken or a limit runs out. Threads of one process get it in the order in which they came.
    ///
    /// # Errors
    /// [`InvalidKey`](Error::InvalidKey) and [`InvalidTtl`](Error::InvalidTtl), before anything else;
    /// [`Contended`](Error::Contended) when the limit on waiting or attempts ran out;
    /// [`InsufficientQuorum`](Error::InsufficientQuorum) when too few nodes answered for longer than
    /// `max_outage`, or at the end of the wait; [`CircuitOpen`](Error::CircuitOpen) instead of it once no quorum has answered for
    /// some rounds ([`Config::breaker`]); [`ValidityExhausted`](Error::ValidityExhausted) when the nodes are
    /// too slow for the TTL; [`Cancelled`](Error::Cancelled) by the options' token; [`Closed`](Error::Closed) after a shutdown; [`System`](Error::System) without random
    /// bytes for a token.
    fn acquire(&self, key: &str, options: &LockOptions) -> Result<LockGuard, Error>;

    /// The same, with one attempt unless the options set a wait, and `None` where a limit ran out.
    ///
    /// Without a wait it blocks for `node_timeout` at most; for two of them where it first waits for another thread that finds out
    /// whether the nodes are back from an outage. While another thread of the process has the lock, or is
    /// before this one in the queue for it, the nodes are not asked. It does not bear with an outage, as `acquire`
    /// does: with a wait in the options it does, for as long.
    ///
    /// # Errors
    /// As [`acquire`](Locker::acquire), but for `Contended`: an error means that it could not be found out.
    fn try_acquire(&self, key: &str, options: &LockOptions) -> Result<Option<LockGuard>, Error>;

    /// Takes the lock of `key` for `ttl`: [`acquire`](Locker::acquire) with the policy's patience, by default as
    /// long as it takes.
    ///
    /// # Errors
    /// As [`acquire`](Locker::acquire).
    fn lock(&self, key: &str, ttl: Duration) -> Result<LockGuard, Error> {
        self.acquire(key, &LockOptions::new(ttl))
    }

    /// Takes the lock of `key` for `ttl` if it is free: [`try_acquire`](Locker::try_acquire) without a wait.
    ///
    /// # Errors
    /// As [`try_acquire`](Locker::try_acquire).
    fn try_lock(&self, key: &str, ttl: Duration) -> Result<Option<LockGuard>, Error> {
        self.try_acquire(key, &LockOptions::new(ttl))
    }
}

/// Exclusive locks on a quorum of Redis nodes: Redlock (*Distributed Locks with Redis*) with the rules that
/// the crate's documentation gives. A cheap clone; all clones share their nodes.
#[derive(Debug, Clone)]
pub struct RedisLocker {
    nodes: Nodes,
}

impl RedisLocker {
    /// Locks on nodes that are connected already, and perhaps shared. Does not block.
    pub fn new(nodes: &Nodes) -> RedisLocker {
        RedisLocker {
            nodes: nodes.clone(),
        }
    }

    /// The short form where nothing else uses the nodes: [`Nodes::connect`], and a locker on them.
    ///
    /// # Errors
    /// As [`Nodes::connect`].
    pub fn connect(config: Config) -> Result<RedisLocker, Error> {
        Nodes::connect(config).map(|nodes| RedisLocker { nodes })
    }

    /// The nodes that it locks on.
    pub fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    fn take(&self, key: &str, options: &LockOptions, how: Strength) -> Result<LockGuard, Error> {
        take::on_nodes(&self.nodes, key, Claim::Exclusive, options, how).map(LockGuard::from)
    }
}

impl Locker for RedisLocker {
    fn acquire(&self, key: &str, options: &LockOptions) -> Result<LockGuard, Error> {
        self.take(key, options, Strength::Policy)
    }

    fn try_acquire(&self, key: &str, options: &LockOptions) -> Result<Option<LockGuard>, Error> {
        take::unless_contended(self.take(key, options, Strength::Once))
    }
}

/// Exclusive locks in this process alone, behind the same trait: for programs that run without Redis, and for tests.
///
/// Its locks are first come, first served, and **do not expire**: a TTL is checked and then ignored, and
/// [`mode`](LockGuard::mode) says [`Mode::Local`](crate::Mode::Local). Without a limit in the options it waits as
/// long as it takes. A cheap clone; all clones share their locks.
///
/// ```
/// use redguard::{Locker, LocalLocker, Mode};
/// use std::time::Duration;
///
/// # fn main() -> Result<(), redguard::Error> {
/// let locker = LocalLocker::new();
/// let guard = locker.lock("a", Duration::from_secs(1))?;
/// assert_eq!(guard.mode(), Mode::Local);
/// assert!(locker.try_lock("a", Duration::from_secs(1))?.is_none());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct LocalLocker {
    gate: Arc<Gate>,
}

impl LocalLocker {
    /// No locks are held. Two of them do not exclude each other; clones of one do.
    pub fn new() -> LocalLocker {
        LocalLocker {
            gate: Arc::new(Gate::new()),
        }
    }

    fn take(&self, key: &str, options: &LockOptions, how: Strength) -> Result<LockGuard, Error> {
        take::in_process(&self.gate, key, Claim::Exclusive, options, how).map(LockGuard::from)
    }
}

impl Default for LocalLocker {
    fn default() -> LocalLocker {
        LocalLocker::new()
    }
}

impl Locker for LocalLocker {
    fn acquire(&self, key: &str, options: &LockOptions) -> Result<LockGuard, Error> {
        self.take(key, options, Strength::Policy)
    }

    fn try_acquire(&self, key: &str, options: &LockOptions) -> Result<Option<LockGuard>, Error> {
        take::unless_contended(self.take(key, options, Strength::Once))
    }
}

/// Everything public goes to any thread and is used by many at once.
const _: () = {
    const fn shared<T: Send + Sync + ?Sized>() {}
    shared::<Config>();
    shared::<Nodes>();
    shared::<LockOptions>();
    shared::<RedisLocker>();
    shared::<LocalLocker>();
    shared::<dyn Locker>();
    shared::<LockGuard>();
    shared::<Error>();
};
