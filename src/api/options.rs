//! Options of a single acquire.
//!
//! Nothing here reads a clock or reaches a node.
//!
//! Tests: `plain_options.rs` (files of settings); each option in the file of its subject in
//! `src/tests/engine/`.

use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::owner_label;
use crate::engine::params::{LeaseOptions, WaitLimit};
use crate::error::error::Error;
use crate::protocol::endangered_lock::{EndangeredLock, OnEndangered};
use crate::protocol::kind::LeaseKind;
use crate::protocol::lost_lock::{LostLock, OnLostCallback};
use crate::protocol::retry::RetryPolicy;
use crate::protocol::token::OwnerLabel;
use crate::time::deadline;
use crate::transport::cancel::CancelToken;

/// Options of an acquire: the TTL, the wait, renewal, fencing, and the reaction to a loss. They can
/// be kept and used again.
///
/// ```
/// use redguard::LockOptions;
/// use std::time::Duration;
///
/// let options = LockOptions::new(Duration::from_secs(30)).wait_for(Duration::from_secs(5));
/// ```
///
/// All options at once:
///
/// ```
/// use redguard::{CancelToken, LockOptions};
/// use std::time::{Duration, Instant};
///
/// let stop = CancelToken::new();
/// let options = LockOptions::new(Duration::from_secs(30))
///     .wait_until(Instant::now() + Duration::from_secs(5))
///     .cancel_on(&stop)
///     .fencing(true)
///     .auto_renew(true)
///     .max_renewal(Duration::from_secs(3600))
///     .min_hold(Duration::from_secs(20))
///     .on_lost(|lost| eprintln!("{} is lost: {}", lost.key(), lost.reason()))
///     .on_endangered(Duration::from_secs(10), |lock| eprintln!("{lock:?}"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "options do nothing until a lock is acquired with them"]
pub struct LockOptions {
    ttl: Duration,
    wait: Option<Wait>,
    cancel: Option<CancelToken>,
    fenced: bool,
    owner_label: Option<OwnerLabel>,
    lease_options: LeaseOptions,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    For(Duration),
    Until(Instant),
}

/// A panic cannot leave them inconsistent: an acquire does not change them, and a callback is only
/// called where its panic is caught.
impl UnwindSafe for LockOptions {}
impl RefUnwindSafe for LockOptions {}

impl LockOptions {
    /// Creates options for a lock that expires `ttl` after it was acquired, unless it is released
    /// or extended before. Fractions of a millisecond are cut off. Without further options an
    /// acquire waits as the configuration's [`RetryPolicy`](crate::RetryPolicy) says.
    pub fn new(ttl: Duration) -> LockOptions {
        LockOptions {
            ttl,
            wait: None,
            cancel: None,
            fenced: false,
            owner_label: None,
            lease_options: LeaseOptions::default(),
        }
    }

    /// Sets the longest wait; zero makes one attempt. Replaces the policy's limits on wait and
    /// attempts, but not the one on outages. An attempt that has begun is finished, so the call may
    /// return up to `node_timeout` and 50 ms later, for a permit up to twice `node_timeout` and 50
    /// ms ([the guide](crate::guide::waiting#limits) has the other cases). Default: the policy's
    /// limits.
    pub fn wait_for(mut self, limit: Duration) -> LockOptions {
        self.wait = Some(Wait::For(limit));
        self
    }

    /// Sets the moment at which the wait ends, as [`wait_for`](LockOptions::wait_for) does; a
    /// moment in the past makes one attempt. Default: the policy's limits.
    pub fn wait_until(mut self, end: Instant) -> LockOptions {
        self.wait = Some(Wait::Until(end));
        self
    }

    /// Lets `token` end the wait with [`Cancelled`](crate::Error::Cancelled): in the queue of this
    /// process, between two attempts, and while the nodes are asked. A token that is already
    /// cancelled ends it before any node is asked.
    ///
    /// An attempt in progress is undone in the background. Once the lock is held the token has no
    /// effect. Default: none.
    pub fn cancel_on(mut self, token: &CancelToken) -> LockOptions {
        self.cancel = Some(token.clone());
        self
    }

    /// Sets whether the lock gets a fencing token
    /// ([`LockGuard::fencing_token`](crate::LockGuard::fencing_token)): a number greater than that
    /// of every earlier holder. Needs a second round where the nodes' counters differ.
    ///
    /// For exclusive locks and write locks. Ignored for read locks; with a semaphore an acquire is
    /// [`InvalidConfig`](crate::Error::InvalidConfig). Default: `false`.
    pub fn fencing(mut self, enabled: bool) -> LockOptions {
        self.fenced = enabled;
        self
    }

    /// Sets whether the lock is renewed while its guard lives. One thread renews all locks of a
    /// [`Nodes`](crate::Nodes), each from a third of its TTL on. The TTL is then how long the lock
    /// outlives a process that was killed.
    ///
    /// A renewal that fails is repeated until the lease ends. The lock is lost when the lease ends,
    /// or when a quorum of nodes replies that the lock is not ours. Ignored for local locks, which
    /// do not expire.
    ///
    /// The lock of a guard in a static, or in a thread that hangs, is renewed for as long as the
    /// process lives: [`max_renewal`](LockOptions::max_renewal) bounds that. Default: `false`.
    pub fn auto_renew(mut self, enabled: bool) -> LockOptions {
        self.lease_options.auto_renew = enabled;
        self
    }

    /// Ends the renewal `limit` after the lock was acquired. The lock is then held until the TTL of
    /// its last renewal ends, and is lost after it. Ignored without
    /// [`auto_renew`](LockOptions::auto_renew). Default: no limit.
    pub fn max_renewal(mut self, limit: Duration) -> LockOptions {
        self.lease_options.max_renewal = Some(limit);
        self
    }

    /// Sets the minimum time for which the lock excludes other callers: a release, by
    /// [`release`](crate::LockGuard::release) or by `Drop`, that comes sooner keeps the lock from
    /// other callers until `time` has passed since it was acquired. For jobs that must not run
    /// again on a host whose clock is late.
    ///
    /// `release` returns as soon as a quorum of nodes will free the lock then; the guard and its
    /// renewal have ended by that time, and nothing extends the lock. Callers that wait acquire it
    /// when the time is over. Another process that [adopts](crate::RedisLocker::adopt) the lock
    /// sets a time of its own. An acquire that fails keeps nothing, and
    /// [`force_release`](crate::RedisLocker::force_release) frees the nodes at once.
    ///
    /// For exclusive locks, also of several keys and local ones; with other locks, or above the
    /// TTL, an acquire is [`InvalidConfig`](crate::Error::InvalidConfig). Default: zero.
    ///
    /// ```
    /// use redguard::{LocalLocker, LockOptions, Locker};
    /// use std::time::Duration;
    ///
    /// # fn main() -> Result<(), redguard::Error> {
    /// let locker = LocalLocker::new();
    /// let once_a_minute = LockOptions::new(Duration::from_secs(60)).min_hold(Duration::from_secs(50));
    /// if let Some(guard) = locker.try_acquire("nightly-12:30", &once_a_minute)? {
    ///     // … 50 ms of work …
    ///     guard.release()?;
    /// }
    /// // A host whose clock is 300 ms late finds the lock held.
    /// assert!(locker.try_acquire("nightly-12:30", &once_a_minute)?.is_none());
    /// # Ok(())
    /// # }
    /// ```
    pub fn min_hold(mut self, time: Duration) -> LockOptions {
        self.lease_options.min_hold = time;
        self
    }

    /// Sets the owner label of this lock, in place of that of
    /// [`Config::owner_label`](crate::Config::owner_label): 1 to 64 printable ASCII characters; an
    /// acquire with another one is [`InvalidConfig`](crate::Error::InvalidConfig). Default: that of
    /// the configuration; for local locks none.
    pub fn owner_label(mut self, label: impl Into<String>) -> LockOptions {
        self.owner_label = Some(Arc::new(label.into()));
        self
    }

    /// Sets a callback for the loss of the lock. It is called once: at the moment at which the
    /// lease expires, when a quorum has replied that the lock is not ours, or at a shutdown of the
    /// nodes. It is never called for a released lock or a local lock. A shutdown may cause the call
    /// shortly before the acquire returns its guard.
    ///
    /// All callbacks of a [`Nodes`](crate::Nodes) share a thread. A slow callback delays the
    /// others, but no lock, no renewal and no [`check`](crate::LockGuard::check). A panic in it is
    /// caught and logged. Default: none.
    ///
    /// ```
    /// use redguard::LockOptions;
    /// use std::sync::Arc;
    /// use std::sync::atomic::{AtomicBool, Ordering};
    /// use std::time::Duration;
    ///
    /// let stop = Arc::new(AtomicBool::new(false));
    /// let flag = Arc::clone(&stop);
    /// let options = LockOptions::new(Duration::from_secs(30))
    ///     .auto_renew(true)
    ///     .on_lost(move |_| flag.store(true, Ordering::Relaxed));
    /// ```
    ///
    /// While a lock with this callback or [`on_endangered`](LockOptions::on_endangered) is held,
    /// the process receives notices by one connection to one node: a lock that
    /// [`force_release`](crate::RedisLocker::force_release) removes is then told lost within a few
    /// round trips. Without the rights to subscribe it is told at its next renewal.
    pub fn on_lost(mut self, callback: impl Fn(&LostLock) + Send + Sync + 'static) -> LockOptions {
        self.lease_options.on_lost = Some(OnLostCallback(Arc::new(callback)));
        self
    }

    /// Sets an early warning: `callback` is called when less than `margin` is left until the lease
    /// ends, so that work can stop before the next holder begins. With
    /// [`auto_renew`](LockOptions::auto_renew) this means that renewals have failed since a third
    /// of the TTL; without it, that it is time to extend or to finish.
    ///
    /// The callback is called once at the beginning of each danger, by the clock. If a renewal or
    /// [`extend`](crate::LockGuard::extend) succeeds after it, the callback is called again, with
    /// [`is_endangered`](EndangeredLock::is_endangered) `false`. It is called for locks of all
    /// kinds, on the thread of the other callbacks (see [`on_lost`](LockOptions::on_lost)); never
    /// for local locks, which do not expire.
    ///
    /// The margin also sets [`is_endangered`](crate::LockGuard::is_endangered) of the guard, and
    /// the outcomes [`Endangered`](crate::WatchOutcome::Endangered) and
    /// [`Safe`](crate::WatchOutcome::Safe) of its watches. With `auto_renew` it is at most half of
    /// the TTL, because renewals begin after a third; a longer one is
    /// [`InvalidConfig`](crate::Error::InvalidConfig). Without renewal a margin beyond the validity
    /// warns at once. Default: none.
    ///
    /// ```
    /// use redguard::LockOptions;
    /// use std::sync::Arc;
    /// use std::sync::atomic::{AtomicBool, Ordering};
    /// use std::time::Duration;
    ///
    /// let paused = Arc::new(AtomicBool::new(false));
    /// let flag = Arc::clone(&paused);
    /// let options = LockOptions::new(Duration::from_secs(30))
    ///     .auto_renew(true)
    ///     .on_endangered(Duration::from_secs(10), move |lock| {
    ///         flag.store(lock.is_endangered(), Ordering::Relaxed); // start nothing new meanwhile
    ///     });
    /// ```
    pub fn on_endangered(
        mut self,
        margin: Duration,
        callback: impl Fn(&EndangeredLock) + Send + Sync + 'static,
    ) -> LockOptions {
        self.lease_options.on_endangered = Some(OnEndangered {
            margin,
            callback: Arc::new(callback),
        });
        self
    }

    /// Validates the options against each other.
    ///
    /// # Errors
    /// - `InvalidConfig`, which names the values.
    pub(crate) fn validate(&self, kind: LeaseKind) -> Result<(), Error> {
        let (ttl, min_hold) = (self.ttl, self.lease_options.min_hold);
        if let Some(label) = &self.owner_label {
            owner_label::validate(label).map_err(Error::InvalidConfig)?;
        }
        let margin = self.lease_options.on_endangered.as_ref();
        let margin = margin.map_or(Duration::ZERO, |on_endangered| on_endangered.margin);
        if self.lease_options.auto_renew && margin > ttl / 2 {
            return Err(Error::InvalidConfig(format!(
                "on_endangered margin {margin:?} is over half of the TTL {ttl:?}: renewals begin after a third"
            )));
        }
        if min_hold > ttl {
            return Err(Error::InvalidConfig(format!(
                "min_hold {min_hold:?} is over the TTL {ttl:?}"
            )));
        }
        match kind {
            LeaseKind::Exclusive => Ok(()),
            _ if min_hold.is_zero() => Ok(()),
            _ => Err(Error::InvalidConfig(format!(
                "min_hold {min_hold:?} is for exclusive locks only"
            ))),
        }
    }

    pub(crate) fn lease_options(&self) -> &LeaseOptions {
        &self.lease_options
    }

    pub(crate) fn is_fenced(&self) -> bool {
        self.fenced
    }

    #[cfg(feature = "serde")]
    pub(super) fn wait(&self) -> Option<Wait> {
        self.wait
    }

    pub(crate) fn label(&self) -> Option<&OwnerLabel> {
        self.owner_label.as_ref()
    }

    pub(crate) fn cancel(&self) -> Option<&CancelToken> {
        self.cancel.as_ref()
    }

    pub(crate) fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Returns the limits of a call that begins at `start`, by the options or else `default_wait`.
    pub(crate) fn wait_limit(
        &self,
        default_wait: DefaultWait,
        retry: &RetryPolicy,
        start: Instant,
    ) -> WaitLimit {
        let tells_holder = default_wait == DefaultWait::Policy;
        let (deadline, max_attempts) = match (self.wait, default_wait) {
            (Some(Wait::For(limit)), _) => (deadline::deadline(start, limit), None),
            (Some(Wait::Until(end)), _) => (Some(end), None),
            (None, DefaultWait::NoWait) => (Some(start), None),
            (None, DefaultWait::Policy) => {
                let max_wait = retry.max_wait;
                let deadline = max_wait.and_then(|wait| deadline::deadline(start, wait));
                (deadline, retry.max_attempts)
            }
        };
        WaitLimit {
            deadline,
            max_attempts,
            tells_holder,
        }
    }
}

/// The wait of a call whose options set none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DefaultWait {
    /// `acquire…`: as the retry policy says.
    Policy,
    /// `try_…`: one attempt.
    NoWait,
}
