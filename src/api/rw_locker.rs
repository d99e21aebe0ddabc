//! The public handles for read-write locks, and the trait that they share.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::api::acquire;
use crate::api::guard::{ReadGuard, WriteGuard};
use crate::api::nodes::Nodes;
use crate::api::options::{DefaultWait, LockOptions};
use crate::config::builder::Config;
use crate::error::Error;
use crate::local::lock_table::LockTable;
use crate::protocol::kind::LeaseKind;

/// Takes read-write locks by name: any number of readers at once, or one writer. Write a program against
/// `&dyn RwLocker`, and run it with Redis or without.
///
/// Worth it where reading takes long and writing is rare; an exclusive lock ([`Locker`](crate::Locker)) is cheaper,
/// and fairer where everybody writes. Names are as for `Locker`, but an exclusive lock and a read-write lock of one
/// name are **different locks**.
///
/// # Fairness
///
/// Neither side starves the other; writers of different processes have no order among them. Threads of one process that share a handle's nodes get a lock in the order in which they came,
/// readers that come one after another together. Between processes a writer that *waits* turns new readers away until
/// it has had the lock (but not the extensions of those that read), and readers that were refused get a turn when a writer
/// releases: for a refresh interval, 100 ms by default, no new writer gets in. Whoever only tries, without a
/// wait, has no part in this.
///
/// # Dead-locks
///
/// Locks are not re-entrant. A thread that asks for a lock which it holds in a way that excludes the new one waits, like
/// any other, for its own lease to end (`LocalRwLocker`: for ever). **A second `read` by a thread that reads already** is such
/// a wait as soon as a writer waits in between: the reader stands behind the writer, and the writer behind the reader.
///
/// There is no upgrade from reading to writing, because two readers that both wait to be the only one wait for each other.
/// Drop the read lock, take the write lock, and **look again**: another writer may have been there in between. The other way
/// is safe: [`WriteGuard::downgrade`].
///
/// ```
/// use redguard::{Error, LocalRwLocker, RwLocker};
/// use std::time::Duration;
///
/// const TTL: Duration = Duration::from_secs(30);
///
/// fn reload_if_stale(locker: &dyn RwLocker, stale: impl Fn() -> bool) -> Result<(), Error> {
///     let reading = locker.read("catalogue", TTL)?;
///     if !stale() {
///         return reading.release();
///     }
///     drop(reading); // never wait for a write lock while reading
///     let writing = locker.write("catalogue", TTL)?;
///     if stale() {
///         // … reload: nobody else has done so in the meantime …
///     }
///     let reading = writing.downgrade()?; // others may read now, but nobody writes before we have read, too
///     // … read …
///     reading.release()
/// }
///
/// reload_if_stale(&LocalRwLocker::new(), || true).unwrap();
/// ```
pub trait RwLocker: fmt::Debug + Send + Sync {
    /// Takes a read lock of `key`, waiting for it as the options and the retry policy say.
    ///
    /// Blocks until it is taken or a limit runs out. Between two attempts it sleeps for 50 ms at most, whatever the
    /// policy's `max_delay`, so that it does not miss its turn; of the readers of a process that wait for one lock, one asks
    /// for all.
    ///
    /// ```
    /// # use redguard::{LocalRwLocker, LockOptions, RwLocker};
    /// # use std::time::Duration;
    /// # let locker = LocalRwLocker::new();
    /// let options = LockOptions::new(Duration::from_secs(30)).wait_for(Duration::from_millis(5));
    /// let reading = locker.acquire_read("catalogue", &options)?;
    /// assert!(locker.try_acquire_read("catalogue", &options)?.is_some()); // beside it
    /// assert!(locker.try_acquire_write("catalogue", &options)?.is_none()); // after 5 ms
    /// drop(reading);
    /// locker.acquire_write("catalogue", &options)?.release()?;
    /// # Ok::<(), redguard::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`InvalidKey`](Error::InvalidKey) and [`InvalidTtl`](Error::InvalidTtl), before anything else;
    /// [`WriteLockTimeout`](Error::WriteLockTimeout) when the limit on waiting or attempts ran out while a writer held
    /// the lock or waited for it;
    /// [`InsufficientQuorum`](Error::InsufficientQuorum) when too few nodes answered for longer than
    /// `max_outage`, or at the end of the wait, and at once where they deny access;
    /// [`CircuitOpen`](Error::CircuitOpen) only without a wait, once no quorum has replied for
    /// some rounds ([`Config::circuit_breaker`]); [`ValidityExhausted`](Error::ValidityExhausted) when the nodes are
    /// too slow for the TTL; [`Cancelled`](Error::Cancelled) by the options' token; [`Closed`](Error::Closed) after a shutdown; [`System`](Error::System) without random
    /// bytes for a token.
    fn acquire_read(&self, key: &str, options: &LockOptions) -> Result<ReadGuard, Error>;

    /// The same, with one attempt unless the options set a wait, and `None` where a limit ran out.
    ///
    /// Without a wait it blocks for `node_timeout` at most (for two of them where it first waits for another thread that finds
    /// out whether the nodes are back from an outage), and does not ask the nodes while a thread of this process stands in the
    /// way.
    ///
    /// # Errors
    /// As [`acquire_read`](RwLocker::acquire_read), but for `WriteLockTimeout`: an error means that it could not be found
    /// out.
    fn try_acquire_read(
        &self,
        key: &str,
        options: &LockOptions,
    ) -> Result<Option<ReadGuard>, Error>;

    /// Takes the write lock of `key`, waiting for it as the options and the retry policy say. While it waits, from its second
    /// attempt on, new readers of all processes are turned away; in its own process's queue they stand behind it.
    ///
    /// Blocks until it is taken or a limit runs out. Between two attempts it sleeps for 50 ms at most, whatever the
    /// policy's `max_delay`, so that readers are turned away all the time.
    ///
    /// # Errors
    /// As [`acquire_read`](RwLocker::acquire_read), but a limit that ran out is
    /// [`WriteLockHeld`](Error::WriteLockHeld) where another writer held the lock, and
    /// [`ReadersTimeout`](Error::ReadersTimeout) where readers did; where the nodes differ, what most of them say.
    fn acquire_write(&self, key: &str, options: &LockOptions) -> Result<WriteGuard, Error>;

    /// The same, with one attempt unless the options set a wait, and `None` where a limit ran out.
    ///
    /// Without a wait it turns no reader away, blocks as [`try_acquire_read`](RwLocker::try_acquire_read) does, and does not ask
    /// the nodes while a thread of this process stands in the way.
    ///
    /// # Errors
    /// As [`acquire_write`](RwLocker::acquire_write), but for `WriteLockHeld` and `ReadersTimeout`: an error means that it
    /// could not be found out.
    fn try_acquire_write(
        &self,
        key: &str,
        options: &LockOptions,
    ) -> Result<Option<WriteGuard>, Error>;

    /// Takes a read lock of `key` for `ttl`: [`acquire_read`](RwLocker::acquire_read) with the policy's patience, by
    /// default as long as it takes.
    ///
    /// # Errors
    /// As [`acquire_read`](RwLocker::acquire_read).
    fn read(&self, key: &str, ttl: Duration) -> Result<ReadGuard, Error> {
        self.acquire_read(key, &LockOptions::new(ttl))
    }

    /// Takes a read lock of `key` for `ttl` if no writer stands in the way:
    /// [`try_acquire_read`](RwLocker::try_acquire_read) without a wait.
    ///
    /// # Errors
    /// As [`try_acquire_read`](RwLocker::try_acquire_read).
    fn try_read(&self, key: &str, ttl: Duration) -> Result<Option<ReadGuard>, Error> {
        self.try_acquire_read(key, &LockOptions::new(ttl))
    }

    /// Takes the write lock of `key` for `ttl`: [`acquire_write`](RwLocker::acquire_write) with the policy's patience, by
    /// default as long as it takes.
    ///
    /// # Errors
    /// As [`acquire_write`](RwLocker::acquire_write).
    fn write(&self, key: &str, ttl: Duration) -> Result<WriteGuard, Error> {
        self.acquire_write(key, &LockOptions::new(ttl))
    }

    /// Takes the write lock of `key` for `ttl` if it is free:
    /// [`try_acquire_write`](RwLocker::try_acquire_write) without a wait.
    ///
    /// # Errors
    /// As [`try_acquire_write`](RwLocker::try_acquire_write).
    fn try_write(&self, key: &str, ttl: Duration) -> Result<Option<WriteGuard>, Error> {
        self.try_acquire_write(key, &LockOptions::new(ttl))
    }
}

/// Read-write locks on a quorum of Redis nodes, with a lease of its own for every reader. A cheap clone; all clones share
/// their nodes.
///
/// On each node one atomic script grants a reader if no writer holds the lock there, and a writer if nobody does; two
/// quorums share a node, so no reader ever overlaps with a writer, nor two writers.
///
/// ```no_run
/// use redguard::{Config, RedisLocker, RedisRwLocker, RwLocker};
/// use std::time::Duration;
///
/// # fn main() -> Result<(), redguard::Error> {
/// let locker = RedisRwLocker::connect(Config::new(["10.0.0.1", "10.0.0.2", "10.0.0.3"]))?;
/// let reading = locker.read("catalogue", Duration::from_secs(30))?;
/// // … read …
/// reading.release()?;
///
/// // Exclusive locks on the same nodes; the other way round `RedisRwLocker::new(exclusive.nodes())`.
/// let exclusive = RedisLocker::new(locker.nodes());
/// # let _ = RedisRwLocker::new(exclusive.nodes());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct RedisRwLocker {
    nodes: Nodes,
}

impl RedisRwLocker {
    /// Locks on nodes that are connected already, and perhaps shared. Does not block.
    pub fn new(nodes: &Nodes) -> RedisRwLocker {
        RedisRwLocker {
            nodes: nodes.clone(),
        }
    }

    /// The short form where nothing else uses the nodes: [`Nodes::connect`], and a locker on them.
    ///
    /// # Errors
    /// As [`Nodes::connect`].
    pub fn connect(config: Config) -> Result<RedisRwLocker, Error> {
        Nodes::connect(config).map(|nodes| RedisRwLocker { nodes })
    }

    /// The nodes that it locks on.
    pub fn nodes(&self) -> &Nodes {
        &self.nodes
    }
}

/// Read-write locks in this process alone, behind the same trait: for programs that run without Redis, and for tests.
///
/// Its locks are first come, first served (readers that come one after another together), and **do not expire**: a TTL is
/// checked and then ignored. Without a limit in the options it waits as long as it takes. A cheap clone; all clones share
/// their locks.
///
/// ```
/// use redguard::{LocalRwLocker, RwLocker};
/// use std::time::Duration;
///
/// # fn main() -> Result<(), redguard::Error> {
/// let ttl = Duration::from_secs(1);
/// let locker = LocalRwLocker::new();
/// let readers = (locker.read("a", ttl)?, locker.read("a", ttl)?);
/// assert!(locker.try_write("a", ttl)?.is_none());
/// drop(readers);
/// assert!(locker.try_write("a", ttl)?.is_some());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct LocalRwLocker {
    gate: Arc<LockTable>,
}

impl LocalRwLocker {
    /// No locks are held. Two of them do not exclude each other; clones of one do.
    pub fn new() -> LocalRwLocker {
        LocalRwLocker {
            gate: Arc::new(LockTable::new()),
        }
    }
}

impl Default for LocalRwLocker {
    fn default() -> LocalRwLocker {
        LocalRwLocker::new()
    }
}

/// The four verbs of a handle over one function that takes a lock from where it has them.
macro_rules! rw_locker {
    ($locker:ident: $take:path, $from:ident) => {
        impl RwLocker for $locker {
            fn acquire_read(&self, key: &str, options: &LockOptions) -> Result<ReadGuard, Error> {
                $take(
                    &self.$from,
                    &[key],
                    LeaseKind::Read,
                    options,
                    DefaultWait::Policy,
                )
                .map(ReadGuard::from)
            }

            fn try_acquire_read(
                &self,
                key: &str,
                options: &LockOptions,
            ) -> Result<Option<ReadGuard>, Error> {
                let taken = $take(
                    &self.$from,
                    &[key],
                    LeaseKind::Read,
                    options,
                    DefaultWait::NoWait,
                );
                acquire::none_if_contended(taken.map(ReadGuard::from))
            }

            fn acquire_write(&self, key: &str, options: &LockOptions) -> Result<WriteGuard, Error> {
                $take(
                    &self.$from,
                    &[key],
                    LeaseKind::Write,
                    options,
                    DefaultWait::Policy,
                )
                .map(WriteGuard::from)
            }

            fn try_acquire_write(
                &self,
                key: &str,
                options: &LockOptions,
            ) -> Result<Option<WriteGuard>, Error> {
                let taken = $take(
                    &self.$from,
                    &[key],
                    LeaseKind::Write,
                    options,
                    DefaultWait::NoWait,
                );
                acquire::none_if_contended(taken.map(WriteGuard::from))
            }
        }
    };
}

rw_locker!(RedisRwLocker: acquire::acquire_on_nodes, nodes);
rw_locker!(LocalRwLocker: acquire::acquire_local, gate);

/// Everything public goes to any thread and is used by many at once.
const _: () = {
    const fn shared<T: Send + Sync + ?Sized>() {}
    shared::<RedisRwLocker>();
    shared::<LocalRwLocker>();
    shared::<dyn RwLocker>();
    shared::<ReadGuard>();
    shared::<WriteGuard>();
};
