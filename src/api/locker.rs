//! Exclusive locks: the trait `Locker`, and its handles on the nodes and in this process alone.
//!
//! A handle decides nothing about a lock: it passes its arguments on to `acquire.rs` and the engine.
//!
//! Tests: `tests/it/locks/conformance.rs`, `adopt.rs`; `tests/it/nodes/observability.rs` (`holder`,
//! `force_release`).

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;
use std::time::Duration;

use crate::api::acquire;
use crate::api::acquire::{AcquireCall, AcquireFrom};
use crate::api::guard::LockGuard;
use crate::api::lock_token::LockToken;
use crate::api::nodes::Nodes;
use crate::api::options::LockOptions;
use crate::config::builder::Config;
use crate::error::error::Error;
use crate::local::lock_table::LockTable;
use crate::protocol::holder::Holder;
use crate::protocol::key::Key;
use crate::protocol::kind::{LeaseKind, LockKind};

/// Acquires exclusive locks by name, one or several as one. A program written against `&dyn Locker`
/// runs with Redis or without.
///
/// A name is any text of 1 byte to 16 KiB that does not end in `:writer`, `:readers`, `:gate`,
/// `:turn`, `:fence`, `:permits` or `:waiting`. Append a suffix to names that the program does not
/// choose, such as paths.
///
/// Locks are **not re-entrant**: a thread that asks for a lock which it holds waits until the lease
/// of its first guard ends (with `LocalLocker` without end). There is no poisoning:
/// a panic drops the guard, which releases the lock.
///
/// ```
/// use redguard::{Error, Locker, LocalLocker};
/// use std::time::Duration;
///
/// fn nightly(locker: &dyn Locker) -> Result<(), Error> {
///     let Some(guard) = locker.try_lock("nightly", Duration::from_secs(60))? else {
///         return Ok(()); // held by another
///     };
///     // … work …
///     guard.release()
/// }
///
/// nightly(&LocalLocker::new()).unwrap();
/// ```
pub trait Locker: fmt::Debug + Send + Sync {
    /// Acquires the lock of `key`. Waits while another holder has it, within the limits of the
    /// options or else of the retry policy.
    ///
    /// Blocks until the lock is acquired or a limit ends the wait. An attempt that has begun is
    /// finished, so the call may return up to `node_timeout` after its limit. Threads of one
    /// process acquire a key in the order in which they asked.
    ///
    /// # Errors
    /// - [`InvalidKey`](Error::InvalidKey), [`InvalidTtl`](Error::InvalidTtl): the name or the TTL
    ///   cannot be used; no node is asked.
    /// - [`Contended`](Error::Contended): another holder has the lock, and a limit on waiting or
    ///   attempts was reached.
    /// - [`InsufficientQuorum`](Error::InsufficientQuorum): no quorum replied for
    ///   [`max_outage`](crate::RetryPolicy::max_outage), or until the end of the wait. Returned at
    ///   once if the nodes that do not deny access are no quorum
    ///   ([`is_denied`](Error::is_denied)).
    /// - [`CircuitOpen`](Error::CircuitOpen): the circuit breaker is open
    ///   ([`Config::circuit_breaker`]), and the call does not wait.
    /// - [`ValidityExhausted`](Error::ValidityExhausted): the nodes are too slow for the TTL, in
    ///   three attempts in a row or in the only attempt allowed.
    /// - [`Cancelled`](Error::Cancelled): the options' token was cancelled.
    /// - [`Closed`](Error::Closed): the nodes are shut down, or the process is a forked child.
    /// - [`System`](Error::System): the operating system has no random bytes for a token.
    fn acquire(&self, key: &str, options: &LockOptions) -> Result<LockGuard, Error>;

    /// Acquires the lock of `key` with one attempt, or with the wait in the options. Returns `None`
    /// if another holder has it.
    ///
    /// Without a wait it blocks for at most `node_timeout`, and for up to 50 ms more if other
    /// callers ask for the lock at the same moment. While another thread probes whether an outage
    /// is over, it first waits for that result, for at most `node_timeout`. The nodes are not asked
    /// while another thread of this process holds the lock or is ahead in the queue.
    ///
    /// Without a wait an outage is an error at once. With a wait in the options the call waits in
    /// an outage, too, for at most [`max_outage`](crate::RetryPolicy::max_outage).
    ///
    /// # Errors
    /// As [`acquire`](Locker::acquire), except `Contended`: `None` is returned in its place.
    ///
    /// ```
    /// # use redguard::{LocalLocker, LockOptions, Locker};
    /// # use std::time::Duration;
    /// # let locker = LocalLocker::new();
    /// let options = LockOptions::new(Duration::from_secs(30)).wait_for(Duration::from_millis(5));
    /// let guard = locker.acquire("report", &options)?;
    /// assert!(locker.try_acquire("report", &options)?.is_none()); // after 5 ms
    /// guard.release()?;
    /// # Ok::<(), redguard::Error>(())
    /// ```
    fn try_acquire(&self, key: &str, options: &LockOptions) -> Result<Option<LockGuard>, Error>;

    /// Acquires the locks of all `keys` as one lock, all or none. Waits as
    /// [`acquire`](Locker::acquire) does.
    ///
    /// For work that touches several things, such as a transfer between two accounts. The order of
    /// the names does not matter: callers whose names overlap exclude each other and never
    /// deadlock. Locks that are acquired one by one can deadlock.
    ///
    /// One guard holds them, with one TTL and one fencing token, greater than that of every earlier
    /// holder of each key. Each node grants, extends and releases all keys in one step. A node that
    /// has lost one of the keys counts as a node that has lost the lock.
    ///
    /// Takes 1 to 256 different names; a single name is the lock that [`acquire`](Locker::acquire)
    /// acquires. Threads of one process acquire each key in the order in which they asked. A thread
    /// queues for the keys in sorted order: while it waits for a key, other threads of its process
    /// also wait for the keys that sort before it.
    ///
    /// A `Vec<String>` is passed as `&names.iter().map(String::as_str).collect::<Vec<_>>()`.
    ///
    /// # Errors
    /// As [`acquire`](Locker::acquire), and
    /// - [`InvalidKey`](Error::InvalidKey): no name, more than 256 names, a name that occurs twice;
    ///   where a node is a cluster also names of different hash slots. A common hash tag, as in
    ///   `{orders}:7` and `{orders}:9`, gives them one hash slot.
    ///
    /// ```
    /// use redguard::{LocalLocker, LockOptions, Locker};
    /// use std::time::Duration;
    ///
    /// # fn main() -> Result<(), redguard::Error> {
    /// let locker = LocalLocker::new();
    /// let options = LockOptions::new(Duration::from_secs(30)).wait_for(Duration::from_secs(5));
    /// let guard = locker.acquire_all(&["account:9", "account:7"], &options)?;
    /// assert!(guard.keys().eq(["account:7", "account:9"]));
    /// let once = LockOptions::new(Duration::from_secs(30));
    /// assert!(locker.try_acquire_all(&["account:8", "account:9"], &once)?.is_none());
    /// assert!(locker.try_lock("account:7", Duration::from_secs(30))?.is_none());
    /// // … move the money …
    /// guard.release()
    /// # }
    /// ```
    fn acquire_all(&self, keys: &[&str], options: &LockOptions) -> Result<LockGuard, Error>;

    /// Acquires the locks of all `keys` as one lock, with one attempt or with the wait in the
    /// options. Returns `None` if one of them is held by another.
    ///
    /// Blocks as [`try_acquire`](Locker::try_acquire) does.
    ///
    /// # Errors
    /// As [`acquire_all`](Locker::acquire_all), except `Contended`: `None` is returned in its
    /// place.
    fn try_acquire_all(
        &self,
        keys: &[&str],
        options: &LockOptions,
    ) -> Result<Option<LockGuard>, Error>;

    /// Acquires the lock of the first of these names that is free; of several that are, the first
    /// in the list. [`LockGuard::key`] returns which one it is.
    ///
    /// Blocks as [`acquire`](Locker::acquire) does, and waits for all of them at once: a published
    /// release wakes it for one attempt. It has no place in the queues of this process, so threads
    /// that wait for one of the locks get it first.
    ///
    /// # Errors
    /// As [`acquire`](Locker::acquire); [`Contended`](Error::Contended) names one of the locks.
    ///
    /// ```
    /// use redguard::{LocalLocker, LockOptions, Locker};
    /// use std::time::Duration;
    ///
    /// # fn main() -> Result<(), redguard::Error> {
    /// let locker = LocalLocker::new();
    /// let options = LockOptions::new(Duration::from_secs(30));
    /// let first = locker.acquire_any(&["gpu-0", "gpu-1"], &options)?;
    /// let second = locker.acquire_any(&["gpu-0", "gpu-1"], &options)?;
    /// assert_eq!((first.key(), second.key()), ("gpu-0", "gpu-1"));
    /// # Ok(())
    /// # }
    /// ```
    fn acquire_any(&self, keys: &[&str], options: &LockOptions) -> Result<LockGuard, Error>;

    /// Acquires the lock of `key` for `ttl`: [`acquire`](Locker::acquire) with the limits of the
    /// retry policy, which are none by default. Blocks as [`acquire`](Locker::acquire) does.
    ///
    /// # Errors
    /// As [`acquire`](Locker::acquire).
    fn lock(&self, key: &str, ttl: Duration) -> Result<LockGuard, Error> {
        self.acquire(key, &LockOptions::new(ttl))
    }

    /// Acquires the lock of `key` for `ttl` if it is free: [`try_acquire`](Locker::try_acquire)
    /// without a wait.
    ///
    /// # Errors
    /// As [`try_acquire`](Locker::try_acquire).
    fn try_lock(&self, key: &str, ttl: Duration) -> Result<Option<LockGuard>, Error> {
        self.try_acquire(key, &LockOptions::new(ttl))
    }
}

/// Exclusive locks on a quorum of Redis nodes by Redlock (*Distributed Locks with Redis*), as [the
/// guide](crate::guide::guarantees) describes. A cheap clone; all clones share their nodes.
///
/// ```no_run
/// use redguard::{Config, Locker, Nodes, RedisLocker};
/// use std::time::Duration;
///
/// # fn main() -> Result<(), redguard::Error> {
/// let locker = RedisLocker::connect(Config::new(["10.0.0.1", "10.0.0.2", "10.0.0.3"]))?;
/// let guard = locker.lock("report", Duration::from_secs(30))?;
/// // … work …
/// guard.release()?;
///
/// // The same nodes for locks of other kinds, and an orderly end.
/// let nodes: &Nodes = locker.nodes();
/// let another = RedisLocker::new(nodes);
/// assert!(nodes.shutdown(Duration::from_secs(5)), "no guard is left");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct RedisLocker {
    nodes: Nodes,
}

impl RedisLocker {
    /// Creates a locker on connected nodes, which may be shared. Does not block.
    pub fn new(nodes: &Nodes) -> RedisLocker {
        RedisLocker {
            nodes: nodes.clone(),
        }
    }

    /// Connects to the nodes and creates a locker on them, for programs that use the nodes for
    /// nothing else. Blocks as [`Nodes::connect`] does.
    ///
    /// # Errors
    /// As [`Nodes::connect`].
    pub fn connect(config: Config) -> Result<RedisLocker, Error> {
        Nodes::connect(config).map(|nodes| RedisLocker { nodes })
    }

    /// Returns the nodes of this locker.
    pub fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    /// Adopts a lock that another process, or another part of this one, has detached with
    /// [`into_token`](LockGuard::into_token), and holds it for `ttl` from now on. No other
    /// caller can acquire the lock in between.
    ///
    /// Of several callers that adopt one lock at most one succeeds. If the former guard had a
    /// fencing token, the new guard has a greater one. The locker must use the nodes and the key
    /// prefix with which the lock was acquired.
    ///
    /// Blocks for at most `node_timeout`. Returns `Contended` at once if another thread of this
    /// process holds the lock or waits for it.
    ///
    /// # Errors
    /// - [`LockLost`](Error::LockLost): the lock has expired, was adopted already, or never
    ///   existed.
    /// - [`InsufficientQuorum`](Error::InsufficientQuorum): too few nodes replied.
    /// - [`ValidityExhausted`](Error::ValidityExhausted): the nodes were too slow for the TTL.
    ///   After this error, and after `InsufficientQuorum`, each node that had replaced the former
    ///   token releases the lock. Repeating the call helps only if a quorum still has that token.
    /// - [`InvalidTtl`](Error::InvalidTtl), [`Contended`](Error::Contended),
    ///   [`Closed`](Error::Closed) and [`System`](Error::System) as in
    ///   [`acquire`](Locker::acquire).
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let config = redguard::Config::new(["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
    /// # let locker = redguard::RedisLocker::connect(config)?;
    /// let token = std::env::var("LOCK")?; // set by the parent process, from its guard
    /// let guard = locker.adopt(&token.parse()?, std::time::Duration::from_secs(30))?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn adopt(&self, token: &LockToken, ttl: Duration) -> Result<LockGuard, Error> {
        self.adopt_with(token, &LockOptions::new(ttl))
    }

    /// Adopts a lock as [`adopt`](RedisLocker::adopt) does, with options: to renew it, or to add a
    /// fencing token. A wait in the options is for the queue of this process alone.
    ///
    /// # Errors
    /// As [`adopt`](RedisLocker::adopt), and
    /// - [`Cancelled`](Error::Cancelled): the options' token was cancelled.
    ///
    /// ```no_run
    /// use redguard::{LockGuard, LockOptions, RedisLocker};
    /// use std::time::Duration;
    ///
    /// fn carry_on(locker: &RedisLocker, token: &str) -> Result<LockGuard, redguard::Error> {
    ///     let options = LockOptions::new(Duration::from_secs(30)).auto_renew(true);
    ///     locker.adopt_with(&token.parse()?, &options)
    /// }
    /// ```
    pub fn adopt_with(&self, token: &LockToken, options: &LockOptions) -> Result<LockGuard, Error> {
        acquire::adopt(&self.nodes, token, options).map(LockGuard::from)
    }

    /// Asks the nodes for the holder of the lock of `key`, for operators. **The result may be out
    /// of date when it is returned.** Returns `None` if no node that replied has the key.
    ///
    /// A value of another type under the key is reported as [`foreign`](Holder::foreign).
    /// Read-write locks, and locks held in a process alone ([`Mode::Local`](crate::Mode::Local)),
    /// are not found.
    ///
    /// Asks all nodes, also through an open circuit breaker. Blocks until the connected ones have
    /// replied, for at most `node_timeout`.
    ///
    /// # Errors
    /// - [`InvalidKey`](Error::InvalidKey): the name cannot be used.
    /// - [`InsufficientQuorum`](Error::InsufficientQuorum): too few nodes replied, with a cause
    ///   for each.
    /// - [`Closed`](Error::Closed): the nodes are shut down, or the process is a forked child.
    ///
    /// ```no_run
    /// # use redguard::{Config, RedisLocker};
    /// # fn main() -> Result<(), redguard::Error> {
    /// # let locker = RedisLocker::connect(Config::new(["10.0.0.1", "10.0.0.2", "10.0.0.3"]))?;
    /// if let Some(holder) = locker.holder("nightly-report")? {
    ///     let owner = holder.owner_label.as_deref().unwrap_or("an unnamed holder");
    ///     println!("held by {owner}, for {:?} unless extended", holder.remaining);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn holder(&self, key: &str) -> Result<Option<Holder>, Error> {
        self.nodes.engine().holder(self.parse_key(key)?)
    }

    /// Deletes the lock of `key` on all nodes that reply, regardless of its holder. Returns `true`
    /// if a node had it.
    ///
    /// **Its holder continues** until it is told, and may overlap with the next holder. Use it if
    /// the holder is known to be dead and the TTL is too long to wait for. A holder with
    /// [`on_lost`](LockOptions::on_lost) or [`on_endangered`](LockOptions::on_endangered) is told
    /// within a few round trips, if its process receives messages; any other at its next renewal,
    /// extension or release. Waiting callers are woken. A value of another type is not a lock, and
    /// is left untouched.
    ///
    /// Blocks as [`holder`](RedisLocker::holder) does. The lock may stay on nodes that did not
    /// reply. Unless an error is returned, these are fewer than a quorum.
    ///
    /// # Errors
    /// As [`holder`](RedisLocker::holder). With [`InsufficientQuorum`](Error::InsufficientQuorum)
    /// the nodes that did reply have deleted the lock all the same.
    ///
    /// ```no_run
    /// # use redguard::{Config, RedisLocker};
    /// # fn main() -> Result<(), redguard::Error> {
    /// # let locker = RedisLocker::connect(Config::new(["10.0.0.1", "10.0.0.2", "10.0.0.3"]))?;
    /// if !locker.force_release("nightly-report")? {
    ///     println!("it was free");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn force_release(&self, key: &str) -> Result<bool, Error> {
        self.nodes.engine().force_release(self.parse_key(key)?)
    }

    fn parse_key(&self, key: &str) -> Result<Key, Error> {
        let prefix = &self.nodes.engine().settings().key_prefix;
        Key::parse(prefix, key, LockKind::Exclusive)
    }
}

impl Locker for RedisLocker {
    fn acquire(&self, key: &str, options: &LockOptions) -> Result<LockGuard, Error> {
        self.nodes
            .acquire_guard(&AcquireCall::new(&[key], LeaseKind::Exclusive, options))
    }

    fn try_acquire(&self, key: &str, options: &LockOptions) -> Result<Option<LockGuard>, Error> {
        self.try_acquire_all(&[key], options)
    }

    fn acquire_all(&self, keys: &[&str], options: &LockOptions) -> Result<LockGuard, Error> {
        self.nodes
            .acquire_guard(&AcquireCall::new(keys, LeaseKind::Exclusive, options))
    }

    fn try_acquire_all(
        &self,
        keys: &[&str],
        options: &LockOptions,
    ) -> Result<Option<LockGuard>, Error> {
        self.nodes
            .try_acquire_guard(&AcquireCall::new(keys, LeaseKind::Exclusive, options))
    }

    fn acquire_any(&self, keys: &[&str], options: &LockOptions) -> Result<LockGuard, Error> {
        self.nodes
            .acquire_any_guard(&AcquireCall::new(keys, LeaseKind::Exclusive, options))
    }
}

/// Exclusive locks in this process alone, behind the same trait: for programs that run without
/// Redis, and for tests.
///
/// Threads acquire a lock in the order in which they asked. Locks **do not expire**: a TTL is
/// validated and then ignored, and [`mode`](LockGuard::mode) is
/// [`Mode::Local`](crate::Mode::Local). Without a limit in the options an acquire blocks until the
/// lock is free. A cheap clone; all clones share their locks.
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
    lock_table: Arc<LockTable>,
}

impl LocalLocker {
    /// Creates a locker whose locks are all free. Clones of a locker share its locks; two lockers
    /// share none.
    pub fn new() -> LocalLocker {
        LocalLocker {
            lock_table: Arc::new(LockTable::new()),
        }
    }

    #[cfg(all(test, not(loom)))]
    pub(crate) fn lock_table(&self) -> &LockTable {
        &self.lock_table
    }
}

impl Locker for LocalLocker {
    fn acquire(&self, key: &str, options: &LockOptions) -> Result<LockGuard, Error> {
        self.acquire_all(&[key], options)
    }

    fn try_acquire(&self, key: &str, options: &LockOptions) -> Result<Option<LockGuard>, Error> {
        self.try_acquire_all(&[key], options)
    }

    fn acquire_all(&self, keys: &[&str], options: &LockOptions) -> Result<LockGuard, Error> {
        self.lock_table
            .acquire_guard(&AcquireCall::new(keys, LeaseKind::Exclusive, options))
    }

    fn try_acquire_all(
        &self,
        keys: &[&str],
        options: &LockOptions,
    ) -> Result<Option<LockGuard>, Error> {
        self.lock_table
            .try_acquire_guard(&AcquireCall::new(keys, LeaseKind::Exclusive, options))
    }

    fn acquire_any(&self, keys: &[&str], options: &LockOptions) -> Result<LockGuard, Error> {
        self.lock_table
            .acquire_any_guard(&AcquireCall::new(keys, LeaseKind::Exclusive, options))
    }
}

/// A panic cannot leave it inconsistent: no lock inside it is held across a callback or code of the
/// caller.
impl UnwindSafe for LocalLocker {}
impl RefUnwindSafe for LocalLocker {}

impl Default for LocalLocker {
    fn default() -> LocalLocker {
        LocalLocker::new()
    }
}
