//! The public handles for semaphores, and the trait that they share.

use std::fmt;
use std::sync::Arc;

use crate::api::acquire;
use crate::api::guard::SemaphorePermit;
use crate::api::nodes::Nodes;
use crate::api::options::{DefaultWait, LockOptions};
use crate::config::builder::Config;
use crate::error::Error;
use crate::local::lock_table::LockTable;
use crate::protocol::key::Key;
use crate::protocol::key_set::KeySet;
use crate::protocol::kind::{LeaseKind, LockKind};
use crate::protocol::permits::MAX_PERMITS;

/// Gives out a number of permits and never more: so many at a time may do something, in all processes together. Write a
/// program against `&dyn Semaphore`, and run it with Redis or without.
///
/// Permits expire, are renewed and are lost like locks. Among threads that share a handle's nodes they are first come, first
/// served; among processes there is no order. A thread may hold several, but who waits for one while it holds another can wait
/// for ever, if all others do the same.
///
/// There are no short forms that take a TTL, as `lock` and `try_lock` of a [`Locker`](crate::Locker) are: a permit is held by several,
/// nearly always for long, and its options say more often than not that it is renewed, or how long to wait.
///
/// ```
/// use redguard::{Error, LocalSemaphore, LockOptions, Semaphore};
/// use std::time::Duration;
///
/// fn export(semaphore: &dyn Semaphore) -> Result<(), Error> {
///     let permit = semaphore.acquire(&LockOptions::new(Duration::from_secs(30)).auto_renew())?;
///     // … export, beside a few others …
///     permit.release()
/// }
///
/// export(&LocalSemaphore::new(3).unwrap()).unwrap();
/// ```
pub trait Semaphore: fmt::Debug + Send + Sync {
    /// Takes a permit, waiting for it as the options and the retry policy say.
    ///
    /// Blocks until there is one or a limit runs out. Of the threads of a process that wait for one, one asks for all.
    ///
    /// # Errors
    /// [`InvalidTtl`](Error::InvalidTtl); [`InvalidConfig`](Error::InvalidConfig) for options that ask for a fencing token, which
    /// permits do not have, and where others hold permits of a semaphore of that name with another number of them (both
    /// numbers are named);
    /// [`Contended`](Error::Contended) when the limit on waiting or attempts ran out while all permits were held;
    /// [`InsufficientQuorum`](Error::InsufficientQuorum) when too few nodes answered for longer than
    /// `max_outage`, or at the end of the wait, and at once where they deny access; [`ValidityExhausted`](Error::ValidityExhausted) when the nodes are
    /// too slow for the TTL; [`CircuitOpen`](Error::CircuitOpen) without a wait;
    /// [`Cancelled`](Error::Cancelled) by the options' token;
    /// [`Closed`](Error::Closed) after a shutdown; [`System`](Error::System) without random bytes for a token.
    fn acquire(&self, options: &LockOptions) -> Result<SemaphorePermit, Error>;

    /// The same, with one attempt unless the options set a wait, and `None` where a limit ran out.
    ///
    /// Without a wait it blocks for two `node_timeout` at most, and does not ask the nodes while as many threads of this process
    /// as there are permits hold or want one, or one of them waits. Where others take permits in the same moment it can be
    /// `None` although one is left.
    ///
    /// # Errors
    /// As [`acquire`](Semaphore::acquire), but for `Contended`: an error means that it could not be found out.
    ///
    /// ```
    /// # use redguard::{LocalSemaphore, LockOptions, Semaphore};
    /// # use std::time::Duration;
    /// # fn main() -> Result<(), redguard::Error> {
    /// # let semaphore = LocalSemaphore::new(1)?;
    /// let Some(permit) = semaphore.try_acquire(&LockOptions::new(Duration::from_secs(30)))? else {
    ///     return Ok(()); // enough are at it
    /// };
    /// # permit.release()
    /// # }
    /// ```
    fn try_acquire(&self, options: &LockOptions) -> Result<Option<SemaphorePermit>, Error>;

    /// How many permits there are.
    ///
    /// ```
    /// use redguard::{LocalSemaphore, Semaphore};
    ///
    /// assert_eq!(LocalSemaphore::new(3).unwrap().permits(), 3);
    /// ```
    fn permits(&self) -> u32;
}

/// A semaphore on a quorum of Redis nodes. A cheap clone; all handles with one name share its permits.
///
/// Each permit is a Redlock of its own: a quorum of nodes grants this one to one holder. (To count the holders on each node would
/// not do: three holders of two permits can each have two of three nodes.) The permits of a semaphore stand under one key
/// of each node, so an attempt asks for one, drawn at random, and learns which are free if it is not.
///
/// How many there are is kept with them on each node, for as long as one of them is held: who says otherwise meanwhile is told
/// so by [`InvalidConfig`](Error::InvalidConfig). To change the number, let all holders end, or wait the longest TTL. Threads
/// that share a [`Nodes`] are told at once, by the number with which others hold or want permits.
///
/// ```no_run
/// use redguard::{Config, LockOptions, Nodes, RedisSemaphore, Semaphore};
/// use std::time::Duration;
///
/// # fn main() -> Result<(), redguard::Error> {
/// let nodes = Nodes::connect(Config::new(["10.0.0.1", "10.0.0.2", "10.0.0.3"]))?;
/// let exports = RedisSemaphore::new(&nodes, "exports", 3)?;
/// let permit = exports.acquire(&LockOptions::new(Duration::from_secs(30)).auto_renew())?;
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
    /// The semaphore `name` with so many permits, 1 to 1024, on nodes that are connected already, and perhaps shared. Does not
    /// block, and asks nobody. A name is as for [`Locker`](crate::Locker); a semaphore and a lock of one name have nothing to
    /// do with each other.
    ///
    /// # Errors
    /// [`InvalidKey`](Error::InvalidKey) for the name, [`InvalidConfig`](Error::InvalidConfig) for the number.
    pub fn new(nodes: &Nodes, name: &str, permits: u32) -> Result<RedisSemaphore, Error> {
        let prefix = &nodes.engine().settings().key_prefix;
        Ok(RedisSemaphore {
            key: Key::parse(prefix, name, LockKind::Semaphore)?,
            permits: count(permits)?,
            nodes: nodes.clone(),
        })
    }

    /// The short form where nothing else uses the nodes: [`Nodes::connect`], and a semaphore on them.
    ///
    /// # Errors
    /// As [`Nodes::connect`] and [`new`](RedisSemaphore::new).
    pub fn connect(config: Config, name: &str, permits: u32) -> Result<RedisSemaphore, Error> {
        // What is wrong with the number is told before anything is connected to.
        count(permits)?;
        RedisSemaphore::new(&Nodes::connect(config)?, name, permits)
    }

    /// The nodes that keep its permits.
    pub fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    /// Its name, as it was given.
    pub fn name(&self) -> &str {
        self.key.name()
    }

    fn take(&self, options: &LockOptions, how: DefaultWait) -> Result<SemaphorePermit, Error> {
        let claim = claim(self.permits, options)?;
        let keys = KeySet::from(self.key.clone());
        acquire::acquire_parsed_on_nodes(&self.nodes, keys, claim, options, how)
            .map(SemaphorePermit::from)
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

/// A semaphore in this process alone, behind the same trait: for programs that run without Redis, and for tests.
///
/// Its permits are first come, first served, and **do not expire**: a TTL is checked and then ignored. Without a limit in the
/// options it waits as long as it takes. A cheap clone; all clones share its permits, whose `key()` is `semaphore`.
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
    gate: Arc<LockTable>,
    key: Key,
    permits: u16,
}

impl LocalSemaphore {
    /// So many permits, 1 to 1024, of which none is held. Two of them have nothing to do with each other; clones of one share
    /// theirs.
    ///
    /// # Errors
    /// [`InvalidConfig`](Error::InvalidConfig) for the number.
    pub fn new(permits: u32) -> Result<LocalSemaphore, Error> {
        Ok(LocalSemaphore {
            gate: Arc::new(LockTable::new()),
            key: Key::parse("", "semaphore", LockKind::Semaphore)?,
            permits: count(permits)?,
        })
    }

    #[cfg(all(test, not(loom)))]
    pub(crate) fn gate(&self) -> &LockTable {
        &self.gate
    }

    fn take(&self, options: &LockOptions, how: DefaultWait) -> Result<SemaphorePermit, Error> {
        let claim = claim(self.permits, options)?;
        let keys = KeySet::from(self.key.clone());
        acquire::acquire_parsed_local(&self.gate, &keys, claim, options, how)
            .map(SemaphorePermit::from)
    }
}

/// The verbs of a handle over its `take`.
macro_rules! semaphore {
    ($semaphore:ident) => {
        impl Semaphore for $semaphore {
            fn acquire(&self, options: &LockOptions) -> Result<SemaphorePermit, Error> {
                self.take(options, DefaultWait::Policy)
            }

            fn try_acquire(&self, options: &LockOptions) -> Result<Option<SemaphorePermit>, Error> {
                acquire::none_if_contended(self.take(options, DefaultWait::NoWait))
            }

            fn permits(&self) -> u32 {
                u32::from(self.permits)
            }
        }
    };
}

semaphore!(RedisSemaphore);
semaphore!(LocalSemaphore);

fn count(permits: u32) -> Result<u16, Error> {
    match u16::try_from(permits) {
        Ok(count @ 1..=MAX_PERMITS) => Ok(count),
        _ => Err(Error::InvalidConfig(format!(
            "{permits} permits are not within 1 to {MAX_PERMITS}"
        ))),
    }
}

/// A claim of one permit, of which each attempt says which one it is.
fn claim(of: u16, options: &LockOptions) -> Result<LeaseKind, Error> {
    match options.is_fenced() {
        false => Ok(LeaseKind::Permit { index: 0, total: of }),
        true => Err(Error::InvalidConfig(
            "a permit has no fencing token: several are held at a time, and none is after the other".into(),
        )),
    }
}

/// Everything public goes to any thread and is used by many at once.
const _: () = {
    const fn shared<T: Send + Sync + ?Sized>() {}
    shared::<RedisSemaphore>();
    shared::<LocalSemaphore>();
    shared::<dyn Semaphore>();
    shared::<SemaphorePermit>();
};
