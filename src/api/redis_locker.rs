//! The handle on exclusive locks of the nodes.
//!
//! It decides nothing about a lock: it passes its arguments on to `acquire.rs` and the engine.
//!
//! Tests: `tests/it/locks/conformance.rs`, `adopt.rs`; `tests/it/nodes/observability.rs` (`holder`,
//! `force_release`).

use std::time::Duration;

use crate::api::acquire;
use crate::api::acquire::{AcquireCall, AcquireFrom};
use crate::api::guard::LockGuard;
use crate::api::lock_token::LockToken;
use crate::api::locker::Locker;
use crate::api::nodes::Nodes;
use crate::api::options::LockOptions;
use crate::config::builder::Config;
use crate::error::error::Error;
use crate::protocol::holder::Holder;
use crate::protocol::key::Key;
use crate::protocol::kind::{LeaseKind, LockKind};

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
    /// - [`InvalidKey`](Error::InvalidKey): a name in the token cannot be used.
    /// - [`InvalidTtl`](Error::InvalidTtl): the TTL cannot be used.
    /// - [`Contended`](Error::Contended): another thread of this process holds the lock or waits
    ///   for it.
    /// - [`LockLost`](Error::LockLost): the lock has expired, was adopted already, or never
    ///   existed.
    /// - [`InsufficientQuorum`](Error::InsufficientQuorum): too few nodes replied.
    /// - [`ValidityExhausted`](Error::ValidityExhausted): the nodes were too slow for the TTL.
    ///   After this error, and after `InsufficientQuorum`, each node that had replaced the former
    ///   token releases the lock. Repeating the call helps only if a quorum still has that token.
    /// - [`Closed`](Error::Closed): the nodes are shut down, or the process is a forked child.
    /// - [`System`](Error::System): as in [`acquire`](Locker::acquire).
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
    /// - [`InvalidConfig`](Error::InvalidConfig): the options cannot be used, as in
    ///   [`acquire`](Locker::acquire).
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
    /// Read-write locks and permits, and locks held in a process alone
    /// ([`Mode::Local`](crate::Mode::Local)), are not found. The tool `redguard status` shows locks
    /// of all kinds.
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

    /// Deletes the exclusive lock of `key` on all nodes that reply, regardless of its holder.
    /// Returns `true` if a node had it. Read-write locks and permits are not deleted; the tool
    /// `redguard break` does that.
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
        self.acquire_all(&[key], options)
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
