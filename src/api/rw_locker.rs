//! Read-write locks: the trait `RwLocker`, and its handles on the nodes and in this process alone.
//!
//! A handle decides nothing about a lock: it passes its arguments on to `acquire.rs`.
//!
//! Tests: `tests/it/locks/rw_conformance.rs`, `rw_processes.rs`; `src/tests/engine/read_write.rs`.

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;
use std::time::Duration;

use crate::api::acquire::{AcquireCall, AcquireFrom};
use crate::api::guard::{ReadGuard, WriteGuard};
use crate::api::nodes::Nodes;
use crate::api::options::LockOptions;
use crate::config::builder::Config;
use crate::error::error::Error;
use crate::local::lock_table::LockTable;
use crate::protocol::kind::LeaseKind;

/// Acquires read-write locks by name: any number of readers at once, or one writer. A program
/// written against `&dyn RwLocker` runs with Redis or without.
///
/// Use them where reading takes long and writing is rare. An exclusive lock
/// ([`Locker`](crate::Locker)) is cheaper, and fairer where every caller writes. Names are as for
/// `Locker`, but an exclusive lock and a read-write lock of one name are **different locks**.
///
/// # Fairness
///
/// Neither side starves the other. Threads that share a handle's nodes acquire a lock in the order
/// in which they asked; consecutive readers share it. Between processes:
///
/// - While a writer waits, new readers are refused. Readers that hold the lock can still extend it.
/// - After the release of a writer, the readers that wait are admitted for one refresh interval
///   (100 ms by default), in which new writers are refused (a *reader turn*).
/// - Writers of different processes have no order. A `try_` call without a wait refuses no other
///   caller.
///
/// [The guide](crate::guide::read_write_locks) has the bounds.
///
/// # Deadlocks
///
/// Locks are not re-entrant. A thread that asks for a lock which its own guard excludes waits until
/// the lease of that guard ends. That lease does not end if the lock is renewed without
/// [`max_renewal`](LockOptions::max_renewal), or is a local one: such a thread waits for ever,
/// unless the call has a limit or a [`CancelToken`](crate::CancelToken). **A second `read` by a
/// thread that holds a read lock** is such a wait if a writer waits in between: the second `read`
/// waits for the writer, and the writer waits for the first.
///
/// There is no upgrade from reading to writing, because two readers that upgrade would wait for
/// each other. Drop the read lock, acquire the write lock, and **check again**: another writer may
/// have come in between. The reverse is safe: [`WriteGuard::downgrade`].
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
///         // … reload: no other writer has done so in the meantime …
///     }
///     let reading = writing.downgrade()?; // others can read, and no writer can come between
///     // … read …
///     reading.release()
/// }
///
/// reload_if_stale(&LocalRwLocker::new(), || true).unwrap();
/// ```
pub trait RwLocker: fmt::Debug + Send + Sync {
    /// Acquires a read lock of `key`. Waits while a writer holds the lock or waits for it, within
    /// the limits of the options or else of the retry policy.
    ///
    /// Blocks until the lock is acquired or a limit ends the wait. Between two attempts it sleeps
    /// for at most 50 ms, whatever the policy's `max_delay`, so that it does not miss its reader
    /// turn. Of several waiting readers of one process only the first asks the nodes.
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
    /// As [`Locker::acquire`](crate::Locker::acquire), except `Contended`, and
    /// - [`InvalidConfig`](Error::InvalidConfig): also with any
    ///   [`min_hold`](LockOptions::min_hold), which is for exclusive locks.
    /// - [`WriteLockTimeout`](Error::WriteLockTimeout): a writer held the lock or waited for it,
    ///   and a limit on waiting or attempts was reached.
    fn acquire_read(&self, key: &str, options: &LockOptions) -> Result<ReadGuard, Error>;

    /// Acquires a read lock of `key` with one attempt, or with the wait in the options. Returns
    /// `None` if a writer holds the lock or waits for it.
    ///
    /// Blocks as [`Locker::try_acquire`](crate::Locker::try_acquire) does. The nodes are not asked
    /// while a thread of this process excludes the reader.
    ///
    /// # Errors
    /// As [`acquire_read`](RwLocker::acquire_read), except `WriteLockTimeout`: `None` is returned
    /// in its place.
    fn try_acquire_read(
        &self,
        key: &str,
        options: &LockOptions,
    ) -> Result<Option<ReadGuard>, Error>;

    /// Acquires the write lock of `key`. Waits while other holders have the lock, within the limits
    /// of the options or else of the retry policy.
    ///
    /// Blocks until the lock is acquired or a limit ends the wait. From its second attempt on, the
    /// nodes refuse new readers of all processes; readers of its own process queue behind it.
    /// Between two attempts it sleeps for at most 50 ms, whatever the policy's `max_delay`, so that
    /// the nodes continue to refuse readers.
    ///
    /// # Errors
    /// As [`Locker::acquire`](crate::Locker::acquire), except `Contended`, and
    /// - [`InvalidConfig`](Error::InvalidConfig): also with any
    ///   [`min_hold`](LockOptions::min_hold), which is for exclusive locks.
    /// - [`WriteLockHeld`](Error::WriteLockHeld): another writer held the lock, as most of the nodes
    ///   that refused replied, and a limit on waiting or attempts was reached.
    /// - [`ReadersTimeout`](Error::ReadersTimeout): readers held it, or had their turn, as most of
    ///   them replied.
    fn acquire_write(&self, key: &str, options: &LockOptions) -> Result<WriteGuard, Error>;

    /// Acquires the write lock of `key` with one attempt, or with the wait in the options. Returns
    /// `None` if another holder has the lock, or readers have their turn.
    ///
    /// Blocks as [`Locker::try_acquire`](crate::Locker::try_acquire) does; without a wait it keeps
    /// no reader out. The nodes are not asked while a thread of this process excludes the writer.
    ///
    /// # Errors
    /// As [`acquire_write`](RwLocker::acquire_write), except `WriteLockHeld` and `ReadersTimeout`:
    /// `None` is returned in their place.
    fn try_acquire_write(
        &self,
        key: &str,
        options: &LockOptions,
    ) -> Result<Option<WriteGuard>, Error>;

    /// Acquires a read lock of `key` for `ttl`: [`acquire_read`](RwLocker::acquire_read) with the
    /// limits of the retry policy, which are none by default. Blocks as that does.
    ///
    /// # Errors
    /// As [`acquire_read`](RwLocker::acquire_read).
    fn read(&self, key: &str, ttl: Duration) -> Result<ReadGuard, Error> {
        self.acquire_read(key, &LockOptions::new(ttl))
    }

    /// Acquires a read lock of `key` for `ttl` if no writer holds it or waits for it:
    /// [`try_acquire_read`](RwLocker::try_acquire_read) without a wait.
    ///
    /// # Errors
    /// As [`try_acquire_read`](RwLocker::try_acquire_read).
    fn try_read(&self, key: &str, ttl: Duration) -> Result<Option<ReadGuard>, Error> {
        self.try_acquire_read(key, &LockOptions::new(ttl))
    }

    /// Acquires the write lock of `key` for `ttl`: [`acquire_write`](RwLocker::acquire_write) with
    /// the limits of the retry policy, which are none by default. Blocks as that does.
    ///
    /// # Errors
    /// As [`acquire_write`](RwLocker::acquire_write).
    fn write(&self, key: &str, ttl: Duration) -> Result<WriteGuard, Error> {
        self.acquire_write(key, &LockOptions::new(ttl))
    }

    /// Acquires the write lock of `key` for `ttl` if it is free:
    /// [`try_acquire_write`](RwLocker::try_acquire_write) without a wait.
    ///
    /// # Errors
    /// As [`try_acquire_write`](RwLocker::try_acquire_write).
    fn try_write(&self, key: &str, ttl: Duration) -> Result<Option<WriteGuard>, Error> {
        self.try_acquire_write(key, &LockOptions::new(ttl))
    }
}

/// Read-write locks on a quorum of Redis nodes, with a lease of its own for every reader. A cheap
/// clone; all clones share their nodes.
///
/// On each node an atomic script grants a reader if no writer holds the lock there, and a writer if
/// neither a reader nor a writer does. Two quorums share a node, so a writer never overlaps with a
/// reader or another writer.
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
/// // Exclusive locks on the same nodes; or vice versa `RedisRwLocker::new(exclusive.nodes())`.
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
    /// Creates a locker on connected nodes, which may be shared. Does not block.
    pub fn new(nodes: &Nodes) -> RedisRwLocker {
        RedisRwLocker {
            nodes: nodes.clone(),
        }
    }

    /// Connects to the nodes and creates a locker on them, for programs that use the nodes for
    /// nothing else. Blocks as [`Nodes::connect`] does.
    ///
    /// # Errors
    /// As [`Nodes::connect`].
    pub fn connect(config: Config) -> Result<RedisRwLocker, Error> {
        Nodes::connect(config).map(|nodes| RedisRwLocker { nodes })
    }

    /// Returns the nodes of this locker.
    pub fn nodes(&self) -> &Nodes {
        &self.nodes
    }
}

impl RwLocker for RedisRwLocker {
    fn acquire_read(&self, key: &str, options: &LockOptions) -> Result<ReadGuard, Error> {
        self.nodes
            .acquire_guard(&AcquireCall::new(&[key], LeaseKind::Read, options))
    }

    fn try_acquire_read(
        &self,
        key: &str,
        options: &LockOptions,
    ) -> Result<Option<ReadGuard>, Error> {
        self.nodes
            .try_acquire_guard(&AcquireCall::new(&[key], LeaseKind::Read, options))
    }

    fn acquire_write(&self, key: &str, options: &LockOptions) -> Result<WriteGuard, Error> {
        self.nodes
            .acquire_guard(&AcquireCall::new(&[key], LeaseKind::Write, options))
    }

    fn try_acquire_write(
        &self,
        key: &str,
        options: &LockOptions,
    ) -> Result<Option<WriteGuard>, Error> {
        self.nodes
            .try_acquire_guard(&AcquireCall::new(&[key], LeaseKind::Write, options))
    }
}

/// Read-write locks in this process alone, behind the same trait: for programs that run without
/// Redis, and for tests.
///
/// Threads acquire a lock in the order in which they asked; consecutive readers share it. Locks
/// **do not expire**: a TTL is validated and then ignored. Without a limit in the options an
/// acquire blocks until the lock is free. A cheap clone; all clones share their locks.
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
    lock_table: Arc<LockTable>,
}

impl LocalRwLocker {
    /// Creates a locker whose locks are all free. Clones of a locker share its locks; two lockers
    /// share none.
    pub fn new() -> LocalRwLocker {
        LocalRwLocker {
            lock_table: Arc::new(LockTable::new()),
        }
    }
}

/// A panic cannot leave it inconsistent: no lock inside it is held across a callback or code of the
/// caller.
impl UnwindSafe for LocalRwLocker {}
impl RefUnwindSafe for LocalRwLocker {}

impl Default for LocalRwLocker {
    fn default() -> LocalRwLocker {
        LocalRwLocker::new()
    }
}

impl RwLocker for LocalRwLocker {
    fn acquire_read(&self, key: &str, options: &LockOptions) -> Result<ReadGuard, Error> {
        self.lock_table
            .acquire_guard(&AcquireCall::new(&[key], LeaseKind::Read, options))
    }

    fn try_acquire_read(
        &self,
        key: &str,
        options: &LockOptions,
    ) -> Result<Option<ReadGuard>, Error> {
        self.lock_table
            .try_acquire_guard(&AcquireCall::new(&[key], LeaseKind::Read, options))
    }

    fn acquire_write(&self, key: &str, options: &LockOptions) -> Result<WriteGuard, Error> {
        self.lock_table
            .acquire_guard(&AcquireCall::new(&[key], LeaseKind::Write, options))
    }

    fn try_acquire_write(
        &self,
        key: &str,
        options: &LockOptions,
    ) -> Result<Option<WriteGuard>, Error> {
        self.lock_table
            .try_acquire_guard(&AcquireCall::new(&[key], LeaseKind::Write, options))
    }
}
