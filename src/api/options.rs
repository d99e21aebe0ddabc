//! How a lock is to be taken, in a caller's words.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::params::{LeaseOptions, WaitLimit};
use crate::protocol::lost_lock::{LostLock, OnLostCallback};
use crate::protocol::retry::RetryPolicy;
use crate::time::deadline;
use crate::transport::cancel::CancelToken;

/// How a lock is to be taken. Can be kept and used again.
///
/// ```
/// use redguard::LockOptions;
/// use std::time::Duration;
///
/// let options = LockOptions::new(Duration::from_secs(30)).wait_for(Duration::from_secs(5));
/// ```
///
/// All of it at once:
///
/// ```
/// use redguard::{CancelToken, LockOptions};
/// use std::time::{Duration, Instant};
///
/// let stop = CancelToken::new();
/// let options = LockOptions::new(Duration::from_secs(30))
///     .wait_until(Instant::now() + Duration::from_secs(5))
///     .cancel_on(&stop)
///     .fenced()
///     .auto_renew()
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
    /// A lock that ends after `ttl` unless it is released or extended before; in whole milliseconds, parts are cut
    /// off. Default for all else: wait as the configuration's [`RetryPolicy`](crate::RetryPolicy) says.
    pub fn new(ttl: Duration) -> LockOptions {
        LockOptions {
            ttl,
            wait: None,
            cancel: None,
            fenced: false,
            lease_options: LeaseOptions::default(),
        }
    }

    /// Waits for the lock no longer than `limit`; zero makes one attempt. Replaces the policy's limits on wait and
    /// attempts, but not the one on outages. An attempt that has begun is finished, so the call may return up to
    /// `node_timeout` later. Default: the policy's limits.
    pub fn wait_for(mut self, limit: Duration) -> LockOptions {
        self.wait = Some(Wait::For(limit));
        self
    }

    /// The same until a moment; one in the past makes one attempt. Default: the policy's limits.
    pub fn wait_until(mut self, end: Instant) -> LockOptions {
        self.wait = Some(Wait::Until(end));
        self
    }

    /// Lets `token` end the wait, with [`Cancelled`](crate::Error::Cancelled): in the queue of this process, between two
    /// attempts, and while nodes are asked. A token that is cancelled already ends it before anything is asked. What an
    /// attempt may have been granted is undone behind the caller's back. Once a lock is held the token has no say.
    /// Default: none.
    pub fn cancel_on(mut self, token: &CancelToken) -> LockOptions {
        self.cancel = Some(token.clone());
        self
    }

    /// Gives the lock a fencing token (see [`LockGuard::fencing_token`](crate::LockGuard::fencing_token)): a number that is
    /// greater than that of every holder before. Where nodes differ in their counts it takes a second round. For exclusive
    /// locks and write locks; read locks have none. Default: no token.
    pub fn fenced(mut self) -> LockOptions {
        self.fenced = true;
        self
    }

    /// Renews the lock while its guard lives: from a third of the TTL on it is extended again and again, by one thread for
    /// all guards of a [`Nodes`](crate::Nodes). The TTL is then how long the lock outlives a process that was killed. Where
    /// a renewal fails it is tried again until the lease ends; after that, or when a quorum of nodes says that the lock is not
    /// ours, it is lost, which is told once and never mended. Without meaning for local locks, which do not expire.
    ///
    /// A guard that is forgotten, in a static or by a thread that hangs, is renewed for as long as its process lives: set
    /// [`max_renewal`](LockOptions::max_renewal) where that could happen. Default: no renewal.
    pub fn auto_renew(mut self) -> LockOptions {
        self.lease_options.auto_renew = true;
        self
    }

    /// Ends the renewal `limit` after the lock was taken: it is then held until the TTL of its last renewal is over, and
    /// lost. Without [`auto_renew`](LockOptions::auto_renew) it has no meaning. Default: no limit.
    pub fn max_renewal(mut self, limit: Duration) -> LockOptions {
        self.lease_options.max_renewal = Some(limit);
        self
    }

    /// Calls `f` when the lock is lost, once: because its lease ended, by the clock and whether anybody looks or not, or
    /// because nodes said that it is not ours. Never for a lock that was released.
    ///
    /// It runs on a thread that all callbacks of a [`Nodes`](crate::Nodes) share: one that takes its time delays the other
    /// callbacks, but no lock, no renewal and no [`check`](crate::LockGuard::check). A panic in it is caught and logged. Never
    /// called for local locks, which do not expire. Default: none.
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
    ///     .auto_renew()
    ///     .on_lost(move |_| flag.store(true, Ordering::Relaxed));
    /// ```
    pub fn on_lost(mut self, f: impl Fn(&LostLock) + Send + Sync + 'static) -> LockOptions {
        self.lease_options.on_lost = Some(OnLostCallback(Arc::new(f)));
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

    /// How long a call that begins at `start` is ready to try; without a wait in the options as the policy says, or
    /// once.
    pub(crate) fn wait_limit(
        &self,
        strength: DefaultWait,
        retry: &RetryPolicy,
        start: Instant,
    ) -> WaitLimit {
        let (end, attempts) = match (self.wait, strength) {
            (Some(Wait::For(limit)), _) => (deadline::deadline(start, limit), None),
            (Some(Wait::Until(end)), _) => (Some(end), None),
            (None, DefaultWait::NoWait) => (Some(start), None),
            (None, DefaultWait::Policy) => {
                let end = retry
                    .max_wait
                    .and_then(|wait| deadline::deadline(start, wait));
                (end, retry.max_attempts)
            }
        };
        WaitLimit {
            deadline: end,
            max_attempts: attempts,
        }
    }
}

/// What a verb does without a wait in the options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DefaultWait {
    /// `acquire_…`: tries as long as the policy says.
    Policy,
    /// `try_…`: tries once.
    NoWait,
}
