//! Exclusive locks by name: the trait `Locker`.
//!
//! Its handles are in `redis_locker.rs` (on the nodes) and `local_locker.rs` (in this process
//! alone).
//!
//! Tests: `tests/it/locks/conformance.rs`.

use std::fmt;
use std::time::Duration;

use crate::api::guard::LockGuard;
use crate::api::options::LockOptions;
use crate::error::error::Error;

/// Acquires exclusive locks by name, one or several as one. A program written against `&dyn Locker`
/// runs with Redis or without.
///
/// A name is any text of 1 byte to 16 KiB that does not end in `:writer`, `:readers`, `:gate`,
/// `:turn`, `:fence`, `:permits` or `:waiting`. Append a suffix to names that the program does not
/// choose, such as paths.
///
/// Locks are **not re-entrant**: a thread that asks for a lock which it holds waits until the lease
/// of its first guard ends. That lease does not end if the lock is renewed without
/// [`max_renewal`](LockOptions::max_renewal), or is a local one: such a thread waits for ever,
/// unless the call has a limit or a [`CancelToken`](crate::CancelToken).
///
/// There is no poisoning: a panic drops the guard, which releases the lock.
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
    /// finished, so the call may return up to `node_timeout` and 50 ms after its limit, in rare
    /// cases up to `node_timeout` more ([the guide](crate::guide::waiting#limits) names them).
    /// Threads of one process acquire a key in the order in which they asked.
    ///
    /// # Errors
    /// - [`InvalidKey`](Error::InvalidKey): the name cannot be used; no node is asked.
    /// - [`InvalidTtl`](Error::InvalidTtl): the TTL cannot be used; no node is asked.
    /// - [`InvalidConfig`](Error::InvalidConfig): the options cannot be used; no node is asked. The
    ///   [`owner_label`](LockOptions::owner_label) is not allowed, the margin of
    ///   [`on_endangered`](LockOptions::on_endangered) is above half of the TTL with renewal, or
    ///   [`min_hold`](LockOptions::min_hold) is above the TTL.
    /// - [`Contended`](Error::Contended): another holder has the lock, and a limit on waiting or
    ///   attempts was reached.
    /// - [`InsufficientQuorum`](Error::InsufficientQuorum): no quorum replied for
    ///   [`max_outage`](crate::RetryPolicy::max_outage), or until the end of the wait. Returned at
    ///   once if the nodes that do not deny access are no quorum
    ///   ([`is_denied`](Error::is_denied)).
    /// - [`CircuitOpen`](Error::CircuitOpen): the circuit breaker is open
    ///   ([`Config::circuit_breaker`](crate::Config::circuit_breaker)), and the call does not wait.
    /// - [`ValidityExhausted`](Error::ValidityExhausted): the nodes are too slow for the TTL, in
    ///   three attempts in a row or in the only attempt allowed.
    /// - [`Cancelled`](Error::Cancelled): the options' token was cancelled.
    /// - [`Closed`](Error::Closed): the nodes are shut down, or the process is a forked child.
    /// - [`System`](Error::System): the operating system has no random bytes for a token, or no
    ///   thread for renewals, callbacks or notices; in the second case the lock is released again.
    fn acquire(&self, key: &str, options: &LockOptions) -> Result<LockGuard, Error>;

    /// Acquires the lock of `key` with one attempt, or with the wait in the options. Returns `None`
    /// if another holder has it.
    ///
    /// Without a wait it blocks for at most `node_timeout`, and for up to 50 ms more if other
    /// callers ask for the lock at the same moment. While another thread probes whether an outage
    /// is over, it first waits for that result, for at most `node_timeout`. The nodes are not asked
    /// while another thread of this process holds the lock or is ahead in the queue.
    ///
    /// If several callers ask for a free lock at the same moment, one of them normally acquires it.
    /// The nodes are asked again at most 8 times and for at most 50 ms. With distant nodes (a round
    /// trip near 50 ms) or on a very busy machine that may not suffice: then each of these callers
    /// can get `None`, although nobody holds the lock.
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
    /// release wakes it for one attempt. Each lock is asked for once, one after the other, also if
    /// the wait limit ends meanwhile; so the call may take up to `node_timeout` and 50 ms for each
    /// of them. It has no place in the queues of this process, so threads
    /// that wait for one of the locks get it first.
    ///
    /// # Errors
    /// As [`acquire`](Locker::acquire), and
    /// - [`InvalidKey`](Error::InvalidKey): also an empty list.
    /// - [`Contended`](Error::Contended): names one of the locks.
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
