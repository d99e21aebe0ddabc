//! Semaphores: the trait `Semaphore`, and its handles on the nodes and in this process alone.
//!
//! A handle decides nothing about a permit: it passes its arguments on to `acquire.rs`.
//!
//! Tests: `tests/it/locks/semaphore.rs`; `src/tests/engine/permits.rs`.

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;

use crate::api::acquire::{AcquireCall, AcquireFrom, LockNames};
use crate::api::guard::SemaphorePermit;
use crate::api::nodes::Nodes;
use crate::api::options::{DefaultWait, LockOptions};
use crate::config::builder::Config;
use crate::error::error::Error;
use crate::local::lock_table::LockTable;
use crate::protocol::key::Key;
use crate::protocol::kind::{LeaseKind, LockKind};
use crate::protocol::permits::MAX_PERMITS;

/// Acquires the permits of a semaphore: at most n holders at a time, in all processes together. A
/// program written against `&dyn Semaphore` runs with Redis or without.
///
/// Permits expire, are renewed and are lost like locks. Threads that share a handle's nodes acquire
/// them in the order in which they asked; processes have no order. A thread may hold several
/// permits. Threads that wait for one while they hold another can deadlock.
///
/// No method takes a TTL alone, as [`lock`](crate::Locker::lock) does: most permits are held for
/// long, with options for renewal or waiting.
///
/// ```
/// use redguard::{Error, LocalSemaphore, LockOptions, Semaphore};
/// use std::time::Duration;
///
/// fn export(semaphore: &dyn Semaphore) -> Result<(), Error> {
///     let options = LockOptions::new(Duration::from_secs(30)).auto_renew(true);
///     let permit = semaphore.acquire(&options)?;
///     // … export, beside a few others …
///     permit.release()
/// }
///
/// export(&LocalSemaphore::new(3).unwrap()).unwrap();
/// ```
pub trait Semaphore: fmt::Debug + Send + Sync {
    /// Acquires a permit. Waits while all permits are held, within the limits of the options or
    /// else of the retry policy.
    ///
    /// Blocks until a permit is acquired or a limit ends the wait. An attempt that has begun is
    /// finished, so the call may return up to twice `node_timeout` and 50 ms after its limit. Of
    /// several waiting threads of one process only the first asks the nodes.
    ///
    /// # Errors
    /// As [`Locker::acquire`](crate::Locker::acquire), without `InvalidKey`, and
    /// - [`InvalidConfig`](Error::InvalidConfig): also with a fencing token or any
    ///   [`min_hold`](LockOptions::min_hold) in the options, which permits do not have; or if
    ///   others hold permits of a semaphore of this name with another number of permits. The text
    ///   names both numbers.
    /// - [`Contended`](Error::Contended): all permits were held, and a limit on waiting or attempts
    ///   was reached.
    fn acquire(&self, options: &LockOptions) -> Result<SemaphorePermit, Error>;

    /// Acquires a permit with one attempt, or with the wait in the options. Returns `None` if all
    /// permits are held.
    ///
    /// Without a wait it blocks for at most twice `node_timeout` and 50 ms, after the wait for
    /// another thread's probe of an outage ([`Locker::try_acquire`](crate::Locker::try_acquire)).
    /// The nodes are not asked while a thread of this process waits for a permit, or while threads
    /// of this process hold or ask for as many permits as there are. It can return `None` although
    /// a permit is free, if other callers acquire permits at the same moment.
    ///
    /// # Errors
    /// As [`acquire`](Semaphore::acquire), except `Contended`: `None` is returned in its place.
    ///
    /// ```
    /// # use redguard::{LocalSemaphore, LockOptions, Semaphore};
    /// # use std::time::Duration;
    /// # fn main() -> Result<(), redguard::Error> {
    /// # let semaphore = LocalSemaphore::new(1)?;
    /// let Some(permit) = semaphore.try_acquire(&LockOptions::new(Duration::from_secs(30)))? else {
    ///     return Ok(()); // all permits are held
    /// };
    /// # permit.release()
    /// # }
    /// ```
    fn try_acquire(&self, options: &LockOptions) -> Result<Option<SemaphorePermit>, Error>;

    /// Returns the number of permits, held or not.
    ///
    /// ```
    /// use redguard::{LocalSemaphore, Semaphore};
    ///
    /// assert_eq!(LocalSemaphore::new(3).unwrap().permits(), 3);
    /// ```
    fn permits(&self) -> u32;
}

/// A semaphore on a quorum of Redis nodes. A cheap clone; all handles of one name share its
/// permits.
///
/// Each permit is a Redlock of its own: a quorum of nodes grants it to one holder. An attempt asks
/// for one permit, drawn at random, and learns from a refusal which ones are free.
///
/// The nodes store the number of permits while one of them is held. A handle with another number
/// then gets [`InvalidConfig`](Error::InvalidConfig); the nodes are not asked if threads that share
/// its [`Nodes`] hold or wait for permits. The number can be changed when all holders have released
/// their permits, or after the longest TTL.
///
/// ```no_run
/// use redguard::{Config, LockOptions, Nodes, RedisSemaphore, Semaphore};
/// use std::time::Duration;
///
/// # fn main() -> Result<(), redguard::Error> {
/// let nodes = Nodes::connect(Config::new(["10.0.0.1", "10.0.0.2", "10.0.0.3"]))?;
/// let exports = RedisSemaphore::new(&nodes, "exports", 3)?;
/// let permit = exports.acquire(&LockOptions::new(Duration::from_secs(30)).auto_renew(true))?;
/// println!("one of {} {}", exports.permits(), exports.name());
/// permit.release()?;
///
/// // The same nodes for locks of other kinds.
/// let locker = redguard::RedisLocker::new(exports.nodes());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RedisSemaphore {
    nodes: Nodes,
    key: Key,
    permits: u16,
}

impl RedisSemaphore {
    /// Creates the semaphore `name` with 1 to 1024 permits, on connected nodes, which may be
    /// shared. Does not block or ask the nodes. A name is as for [`Locker`](crate::Locker); a
    /// semaphore and a lock of one name are different locks.
    ///
    /// # Errors
    /// - [`InvalidKey`](Error::InvalidKey): the name cannot be used.
    /// - [`InvalidConfig`](Error::InvalidConfig): the number of permits is out of range.
    pub fn new(nodes: &Nodes, name: &str, permits: u32) -> Result<RedisSemaphore, Error> {
        let prefix = &nodes.engine().settings().key_prefix;
        Ok(RedisSemaphore {
            key: Key::parse(prefix, name, LockKind::Semaphore)?,
            permits: validate_permits(permits)?,
            nodes: nodes.clone(),
        })
    }

    /// Connects to the nodes and creates a semaphore on them, for programs that use the nodes for
    /// nothing else. Blocks as [`Nodes::connect`] does.
    ///
    /// # Errors
    /// As [`Nodes::connect`] and [`new`](RedisSemaphore::new).
    pub fn connect(config: Config, name: &str, permits: u32) -> Result<RedisSemaphore, Error> {
        validate_permits(permits)?; // before any I/O
        RedisSemaphore::new(&Nodes::connect(config)?, name, permits)
    }

    /// Returns the nodes of this semaphore.
    pub fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    /// Returns the semaphore's name as it was given.
    pub fn name(&self) -> &str {
        self.key.name()
    }
}

impl Semaphore for RedisSemaphore {
    fn acquire(&self, options: &LockOptions) -> Result<SemaphorePermit, Error> {
        self.nodes
            .acquire_guard(&permit_call(&self.key, self.permits, options)?)
    }

    fn try_acquire(&self, options: &LockOptions) -> Result<Option<SemaphorePermit>, Error> {
        self.nodes
            .try_acquire_guard(&permit_call(&self.key, self.permits, options)?)
    }

    fn permits(&self) -> u32 {
        u32::from(self.permits)
    }
}

impl fmt::Debug for RedisSemaphore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisSemaphore")
            .field("name", &self.name())
            .field("permits", &self.permits)
            .field("nodes", &self.nodes)
            .finish()
    }
}

/// A semaphore in this process alone, behind the same trait: for programs that run without Redis,
/// and for tests.
///
/// Threads acquire permits in the order in which they asked. Permits **do not expire**: a TTL is
/// validated and then ignored. Without a limit in the options an acquire blocks until a permit is
/// free. A cheap clone; all clones share its permits. The `key` of each permit is `semaphore`.
///
/// ```
/// use redguard::{LocalSemaphore, LockOptions, Semaphore};
/// use std::time::Duration;
///
/// # fn main() -> Result<(), redguard::Error> {
/// let semaphore = LocalSemaphore::new(1)?;
/// let options = LockOptions::new(Duration::from_secs(30));
/// let permit = semaphore.acquire(&options)?;
/// assert!(semaphore.try_acquire(&options)?.is_none());
/// permit.release()
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct LocalSemaphore {
    lock_table: Arc<LockTable>,
    key: Key,
    permits: u16,
}

impl LocalSemaphore {
    /// Creates a semaphore with 1 to 1024 permits, all free. Clones of a semaphore share its
    /// permits; two semaphores share none.
    ///
    /// # Errors
    /// - [`InvalidConfig`](Error::InvalidConfig): the number of permits is out of range.
    pub fn new(permits: u32) -> Result<LocalSemaphore, Error> {
        Ok(LocalSemaphore {
            lock_table: Arc::new(LockTable::new()),
            key: Key::parse("", "semaphore", LockKind::Semaphore)?,
            permits: validate_permits(permits)?,
        })
    }

    #[cfg(all(test, not(loom)))]
    pub(crate) fn lock_table(&self) -> &LockTable {
        &self.lock_table
    }
}

/// A panic cannot leave it inconsistent: no lock inside it is held across a callback or code of the
/// caller.
impl UnwindSafe for LocalSemaphore {}
impl RefUnwindSafe for LocalSemaphore {}

impl Semaphore for LocalSemaphore {
    fn acquire(&self, options: &LockOptions) -> Result<SemaphorePermit, Error> {
        self.lock_table
            .acquire_guard(&permit_call(&self.key, self.permits, options)?)
    }

    fn try_acquire(&self, options: &LockOptions) -> Result<Option<SemaphorePermit>, Error> {
        self.lock_table
            .try_acquire_guard(&permit_call(&self.key, self.permits, options)?)
    }

    fn permits(&self) -> u32 {
        u32::from(self.permits)
    }
}

/// # Errors
/// `InvalidConfig` for a number of permits that is out of range.
fn validate_permits(permits: u32) -> Result<u16, Error> {
    match u16::try_from(permits) {
        Ok(count @ 1..=MAX_PERMITS) => Ok(count),
        _ => Err(Error::InvalidConfig(format!(
            "{permits} permits are not within 1 to {MAX_PERMITS}"
        ))),
    }
}

/// Returns the call for a permit whose index each attempt sets. It blocks as the retry policy says,
/// without a wait in the options.
///
/// # Errors
/// - `InvalidConfig` if the options ask for a fencing token.
fn permit_call<'a>(
    key: &'a Key,
    total: u16,
    options: &'a LockOptions,
) -> Result<AcquireCall<'a>, Error> {
    if options.is_fenced() {
        return Err(Error::InvalidConfig(
            "fencing is set, but permits have no fencing token: several are held at a time".into(),
        ));
    }
    Ok(AcquireCall {
        names: LockNames::Parsed(key),
        kind: LeaseKind::Permit { index: 0, total },
        options,
        default_wait: DefaultWait::Policy,
    })
}
