//! The public handles for exclusive locks, and the trait that they share.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::{Config, MIN_VALIDITY};
use crate::engine::Patience;
use crate::error::Error;
use crate::guard::LockGuard;
use crate::inbox::Inbox;
use crate::key::{Key, Ttl};
use crate::local::{Gate, Refused};
use crate::nodes::Nodes;
use crate::time;

/// How a lock is to be taken. Can be kept and used again.
///
/// ```
/// use redguard::LockOptions;
/// use std::time::Duration;
///
/// let options = LockOptions::new(Duration::from_secs(30)).wait_for(Duration::from_secs(5));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "options do nothing until a lock is acquired with them"]
pub struct LockOptions {
    ttl: Duration,
    wait: Option<Wait>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    For(Duration),
    Until(Instant),
}

impl LockOptions {
    /// A lock that ends after `ttl` unless it is released or extended before; in whole milliseconds, parts are cut
    /// off. Default for all else: wait as the configuration's [`RetryPolicy`](crate::RetryPolicy) says.
    pub fn new(ttl: Duration) -> LockOptions {
        LockOptions { ttl, wait: None }
    }

    /// Waits for the lock no longer than `limit`; zero makes one attempt. Replaces the policy's limits on wait and
    /// attempts, but not the one on outages. An attempt that has begun is finished, so the call may return up to
    /// `node_timeout` later. Default: the policy's limits.
    pub fn wait_for(mut self, limit: Duration) -> LockOptions {
        self.wait = Some(Wait::For(limit));
        self
    }

    /// The same until a moment; one in the past makes one attempt. Default: the policy's limits.
    pub fn wait_until(mut self, end: Instant) -> LockOptions {
        self.wait = Some(Wait::Until(end));
        self
    }

    /// The end of the caller's wait, if these options set one.
    fn end(&self, start: Instant) -> Option<Option<Instant>> {
        self.wait.map(|wait| match wait {
            Wait::For(limit) => time::deadline(start, limit),
            Wait::Until(end) => Some(end),
        })
    }
}

/// Takes exclusive locks by name. Write a program against `&dyn Locker`, and run it with Redis or without.
///
/// A name is any text of 1 byte to 16 KiB that does not end in `:writer`, `:readers`, `:gate` or `:fence`: where names
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
    /// `max_outage`, or at the end of the wait; [`ValidityExhausted`](Error::ValidityExhausted) when the nodes are
    /// too slow for the TTL; [`Closed`](Error::Closed) after a shutdown; [`System`](Error::System) without random
    /// bytes for a token.
    fn acquire(&self, key: &str, options: &LockOptions) -> Result<LockGuard, Error>;

    /// The same, with one attempt unless the options set a wait, and `None` where a limit ran out.
    ///
    /// Without a wait it blocks for `node_timeout` at most. While another thread of the process has the lock, or is
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

/// What `try_acquire` makes of what `acquire` answers.
fn unless_contended(acquired: Result<LockGuard, Error>) -> Result<Option<LockGuard>, Error> {
    match acquired {
        Ok(guard) => Ok(Some(guard)),
        Err(error) if error.is_contended() => Ok(None),
        Err(error) => Err(error),
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

    fn take(
        &self,
        key: &str,
        options: &LockOptions,
        default: impl FnOnce(Instant) -> Patience,
    ) -> Result<LockGuard, Error> {
        let engine = self.nodes.engine();
        let settings = engine.settings();
        let key = Key::parse(&settings.key_prefix, key)?;
        let ttl = Ttl::parse(options.ttl, settings.min_validity)?;
        let start = time::now();
        let patience = match options.end(start) {
            Some(end) => Patience {
                end,
                attempts: None,
            },
            None => default(start),
        };
        let (lease, pass) = engine.acquire(&key, ttl, patience)?;
        Ok(LockGuard::quorum(Arc::clone(engine), lease, pass))
    }
}

impl Locker for RedisLocker {
    fn acquire(&self, key: &str, options: &LockOptions) -> Result<LockGuard, Error> {
        let retry = &self.nodes.engine().settings().retry;
        self.take(key, options, |start| Patience {
            end: retry.max_wait.and_then(|wait| time::deadline(start, wait)),
            attempts: retry.max_attempts,
        })
    }

    fn try_acquire(&self, key: &str, options: &LockOptions) -> Result<Option<LockGuard>, Error> {
        unless_contended(self.take(key, options, |start| Patience {
            end: Some(start),
            attempts: None,
        }))
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

    fn take(
        &self,
        key: &str,
        options: &LockOptions,
        default: Option<Instant>,
        start: Instant,
    ) -> Result<LockGuard, Error> {
        let key = Key::parse("", key)?;
        Ttl::parse(options.ttl, MIN_VALIDITY)?;
        let inbox = Arc::new(Inbox::new());
        let end = options.end(start).unwrap_or(default);
        match self.gate.enter(&key, &inbox, end) {
            Ok(entered) => Ok(LockGuard::local(entered.pass)),
            Err(Refused::Closed) => Err(Error::Closed),
            Err(Refused::Busy(remaining)) => Err(Error::Contended {
                attempts: 1,
                waited: time::now().saturating_duration_since(start),
                remaining,
            }),
        }
    }
}

impl Default for LocalLocker {
    fn default() -> LocalLocker {
        LocalLocker::new()
    }
}

impl Locker for LocalLocker {
    fn acquire(&self, key: &str, options: &LockOptions) -> Result<LockGuard, Error> {
        self.take(key, options, None, time::now())
    }

    fn try_acquire(&self, key: &str, options: &LockOptions) -> Result<Option<LockGuard>, Error> {
        let start = time::now();
        unless_contended(self.take(key, options, Some(start), start))
    }
}

/// Everything public goes to any thread and is used by many at once.
const _: () = {
    const fn shared<T: Send + Sync + ?Sized>() {}
    shared::<Config>();
    shared::<Nodes>();
    shared::<RedisLocker>();
    shared::<LocalLocker>();
    shared::<LockOptions>();
    shared::<LockGuard>();
    shared::<Error>();
    shared::<dyn Locker>();
};
