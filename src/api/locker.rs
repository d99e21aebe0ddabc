//! The public handles for exclusive locks, and the trait that they share.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::api::acquire;
use crate::api::guard::LockGuard;
use crate::api::lock_token::LockToken;
use crate::api::nodes::Nodes;
use crate::api::options::{DefaultWait, LockOptions};
use crate::config::builder::Config;
use crate::error::Error;
use crate::local::lock_table::LockTable;
use crate::protocol::holder::Holder;
use crate::protocol::key::Key;
use crate::protocol::kind::{LeaseKind, LockKind};

/// Takes exclusive locks by name, one or several as one. Write a program against `&dyn Locker`, and run it with Redis or without.
///
/// A name is any text of 1 byte to 16 KiB that does not end in `:writer`, `:readers`, `:gate`, `:turn`, `:fence` or `:permits`: where names
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
    /// `max_outage`, or at the end of the wait, and at once where they deny access;
    /// [`CircuitOpen`](Error::CircuitOpen) only without a wait, once no quorum has replied for
    /// some rounds ([`Config::circuit_breaker`]); [`ValidityExhausted`](Error::ValidityExhausted) when the nodes are
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

    /// Takes the locks of all `keys` as one lock, waiting for it as the options and the retry policy say: all of them or none.
    /// For work that touches several things, such as a transfer between two accounts.
    ///
    /// The order of the names does not matter, and callers whose names overlap never dead-lock, among each other or with those
    /// that take one of the locks alone: they exclude each other, and that is all. Do not take the locks one by one for this.
    ///
    /// One guard holds them all, with one TTL and one fencing token, which is greater than that of every holder before of each of
    /// them. On each node they are taken, extended and released in one step. Where one of them is not ours any more the lock is
    /// lost. It takes one name to 256, none twice; one name makes the lock that [`acquire`](Locker::acquire) takes. Threads of
    /// one process get each key in the order in which they came; while one waits for a key of several, it has those that are
    /// before it in the order of their names.
    ///
    /// A list that is put together is a `Vec<String>`: `names.iter().map(String::as_str).collect::<Vec<_>>()` makes what is asked for
    /// here of it.
    ///
    /// There are `acquire_all` and `try_acquire_all` and no `acquire_all`, since both take options: who locks several things says
    /// more often than not how long to wait.
    ///
    /// # Errors
    /// As [`acquire`](Locker::acquire); [`InvalidKey`](Error::InvalidKey) also without any name, for a name that is given twice,
    /// for more than 256 names, and where a node is a cluster for names of different slots (a hash tag in common, as in
    /// `{orders}:7` and `{orders}:9`, gives them one).
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
    /// assert!(locker.try_acquire_all(&["account:8", "account:9"], &LockOptions::new(Duration::from_secs(30)))?.is_none());
    /// assert!(locker.try_lock("account:7", Duration::from_secs(30))?.is_none());
    /// // … move the money …
    /// guard.release()
    /// # }
    /// ```
    fn acquire_all(&self, keys: &[&str], options: &LockOptions) -> Result<LockGuard, Error>;

    /// The same, with one attempt unless the options set a wait, and `None` where a limit ran out: as
    /// [`try_acquire`](Locker::try_acquire) is to [`acquire`](Locker::acquire).
    ///
    /// # Errors
    /// As [`acquire_all`](Locker::acquire_all), but for `Contended`: an error means that it could not be found out.
    fn try_acquire_all(
        &self,
        keys: &[&str],
        options: &LockOptions,
    ) -> Result<Option<LockGuard>, Error>;

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
/// nodes.shutdown(Duration::from_secs(5));
/// # Ok(())
/// # }
/// ```
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

    /// Takes up a lock that another process, or another part of this one, has handed over with
    /// [`into_token`](LockGuard::into_token): it is held for `ttl` from now on. Without a guard in between nobody else could
    /// have it.
    ///
    /// Of many who adopt one lock one at most gets it. It has a fencing token if it had one before, a new and greater one. The
    /// locker must use the same nodes and key prefix as the one that took it.
    ///
    /// Blocks for `node_timeout` at most. In this process the lock must be free: where another thread holds it, or asks for it,
    /// that is [`Contended`](Error::Contended) at once.
    ///
    /// # Errors
    /// [`LockLost`](Error::LockLost) when it has expired, was adopted already, or was never there;
    /// [`InsufficientQuorum`](Error::InsufficientQuorum) when too few nodes answered, and
    /// [`ValidityExhausted`](Error::ValidityExhausted) when they were too slow: nodes that had swapped the tokens release it, so
    /// trying again helps only if none had. [`InvalidTtl`](Error::InvalidTtl); [`Contended`](Error::Contended);
    /// [`Closed`](Error::Closed) and [`System`](Error::System) as everywhere.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let config = redguard::Config::new(["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
    /// # let locker = redguard::RedisLocker::connect(config)?;
    /// let token = std::env::var("LOCK")?; // from the parent process, which made it of its guard
    /// let guard = locker.adopt(&token.parse()?, std::time::Duration::from_secs(30))?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn adopt(&self, token: &LockToken, ttl: Duration) -> Result<LockGuard, Error> {
        self.adopt_with(token, &LockOptions::new(ttl))
    }

    /// The same with options: to have it renewed, or numbered although it was not before. A wait in them is for the lock's place
    /// in this process alone.
    ///
    /// # Errors
    /// As [`adopt`](RedisLocker::adopt), and [`Cancelled`](Error::Cancelled) by the options' token.
    ///
    /// ```no_run
    /// use redguard::{LockGuard, LockOptions, RedisLocker};
    /// use std::time::Duration;
    ///
    /// fn carry_on(locker: &RedisLocker, token: &str) -> Result<LockGuard, redguard::Error> {
    ///     locker.adopt_with(&token.parse()?, &LockOptions::new(Duration::from_secs(30)).auto_renew())
    /// }
    /// ```
    pub fn adopt_with(&self, token: &LockToken, options: &LockOptions) -> Result<LockGuard, Error> {
        acquire::adopt(&self.nodes, token, options).map(LockGuard::from)
    }

    /// Who holds the lock of `key`, for operators to see: **a look, not a lock**, out of date when it is returned. `None` if no
    /// node that answered has it. A value of another type under the key is told as [`foreign`](Holder::foreign).
    ///
    /// Asks all nodes, the breaker notwithstanding; blocks until those that are connected have answered, for `node_timeout`
    /// at most. Locks that are held in a process alone ([`Mode::Local`](crate::Mode::Local)) and read-write locks are not seen.
    ///
    /// # Errors
    /// [`InvalidKey`](Error::InvalidKey); [`InsufficientQuorum`](Error::InsufficientQuorum) with a cause per node when too few
    /// answered; [`Closed`](Error::Closed) after a shutdown or in a forked child.
    ///
    /// ```no_run
    /// # use redguard::{Config, RedisLocker};
    /// # fn main() -> Result<(), redguard::Error> {
    /// # let locker = RedisLocker::connect(Config::new(["10.0.0.1", "10.0.0.2", "10.0.0.3"]))?;
    /// if let Some(holder) = locker.holder("nightly-report")? {
    ///     let owner = holder.owner_label.as_deref().unwrap_or("somebody");
    ///     println!("held by {owner}, for {:?} unless extended", holder.remaining);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn holder(&self, key: &str) -> Result<Option<Holder>, Error> {
        self.nodes.engine().holder(self.parse(key)?)
    }

    /// Takes the lock of `key` away from whoever holds it, on all nodes that answer: **its holder goes on** until it looks, and
    /// may overlap with the next one. For operators who know that the holder is dead, and cannot wait for the TTL.
    ///
    /// `true` if a node had it. A value of another type is no lock, and left alone. A holder that is alive finds its lock lost when it is renewed, extended or released next, and
    /// whoever waits for it is woken. Blocks as [`holder`](RedisLocker::holder) does. A lock may stay on nodes that did not
    /// answer: a minority, unless it is an error.
    ///
    /// # Errors
    /// As [`holder`](RedisLocker::holder). With [`InsufficientQuorum`](Error::InsufficientQuorum) those that did answer have
    /// deleted it all the same.
    ///
    /// ```no_run
    /// # use redguard::{Config, RedisLocker};
    /// # fn main() -> Result<(), redguard::Error> {
    /// # let locker = RedisLocker::connect(Config::new(["10.0.0.1", "10.0.0.2", "10.0.0.3"]))?;
    /// if !locker.force_release("nightly-report")? {
    ///     println!("nobody had it");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn force_release(&self, key: &str) -> Result<bool, Error> {
        self.nodes.engine().force_release(self.parse(key)?)
    }

    fn parse(&self, key: &str) -> Result<Key, Error> {
        let prefix = &self.nodes.engine().settings().key_prefix;
        Key::parse(prefix, key, LockKind::Exclusive)
    }

    fn take(
        &self,
        keys: &[&str],
        options: &LockOptions,
        how: DefaultWait,
    ) -> Result<LockGuard, Error> {
        acquire::acquire_on_nodes(&self.nodes, keys, LeaseKind::Exclusive, options, how)
            .map(LockGuard::from)
    }
}

/// The verbs of a handle over its `take`.
macro_rules! locker {
    ($locker:ident) => {
        impl Locker for $locker {
            fn acquire(&self, key: &str, options: &LockOptions) -> Result<LockGuard, Error> {
                self.take(&[key], options, DefaultWait::Policy)
            }

            fn try_acquire(
                &self,
                key: &str,
                options: &LockOptions,
            ) -> Result<Option<LockGuard>, Error> {
                acquire::none_if_contended(self.take(&[key], options, DefaultWait::NoWait))
            }

            fn acquire_all(
                &self,
                keys: &[&str],
                options: &LockOptions,
            ) -> Result<LockGuard, Error> {
                self.take(keys, options, DefaultWait::Policy)
            }

            fn try_acquire_all(
                &self,
                keys: &[&str],
                options: &LockOptions,
            ) -> Result<Option<LockGuard>, Error> {
                acquire::none_if_contended(self.take(keys, options, DefaultWait::NoWait))
            }
        }
    };
}

#[cfg(feature = "testing")]
pub(crate) use locker;

locker!(RedisLocker);
locker!(LocalLocker);

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
    gate: Arc<LockTable>,
}

impl LocalLocker {
    /// No locks are held. Two of them do not exclude each other; clones of one do.
    pub fn new() -> LocalLocker {
        LocalLocker {
            gate: Arc::new(LockTable::new()),
        }
    }

    fn take(
        &self,
        keys: &[&str],
        options: &LockOptions,
        how: DefaultWait,
    ) -> Result<LockGuard, Error> {
        acquire::acquire_local(&self.gate, keys, LeaseKind::Exclusive, options, how)
            .map(LockGuard::from)
    }
}

impl Default for LocalLocker {
    fn default() -> LocalLocker {
        LocalLocker::new()
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
