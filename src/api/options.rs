//! Options of a single acquire.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::params::{LeaseOptions, WaitLimit};
use crate::protocol::lost_lock::{LostLock, OnLostCallback};
use crate::protocol::retry::RetryPolicy;
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
///     .on_lost(|lost| eprintln!("{} is lost: {}", lost.key(), lost.reason()));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "options do nothing until a lock is acquired with them"]
pub struct LockOptions {
    ttl: Duration,
    wait: Option<Wait>,
    cancel: Option<CancelToken>,
    fenced: bool,
    lease_options: LeaseOptions,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    For(Duration),
    Until(Instant),
}

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
            lease_options: LeaseOptions::default(),
        }
    }

    /// Sets the longest wait; zero makes one attempt. Replaces the policy's limits on wait and
    /// attempts, but not the one on outages. An attempt that has begun is finished, so the call may
    /// return up to `node_timeout` later. Default: the policy's limits.
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

    /// Sets a callback for the loss of the lock. It is called once: at the moment at which the
    /// lease expires, when a quorum has replied that the lock is not ours, or at a shutdown of the
    /// nodes. It is never called for a released lock or a local lock.
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
    pub fn on_lost(mut self, callback: impl Fn(&LostLock) + Send + Sync + 'static) -> LockOptions {
        self.lease_options.on_lost = Some(OnLostCallback(Arc::new(callback)));
        self
    }

    pub(crate) fn lease_options(&self) -> &LeaseOptions {
        &self.lease_options
    }

    pub(crate) fn is_fenced(&self) -> bool {
        self.fenced
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
