//! The argument of an `on_endangered` callback (L5).
//!
//! Plain data: it does not change the lock.
//!
//! Tests: `src/tests/engine/danger.rs`.

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::protocol::key::Key;
use crate::protocol::lease::Lease;
use crate::time::clock;

/// A held lock at the beginning or the end of a danger, as a callback receives it
/// ([`LockOptions::on_endangered`](crate::LockOptions::on_endangered)).
///
/// ```
/// use redguard::{EndangeredLock, LockOptions};
/// use std::time::Duration;
///
/// fn warn(lock: &EndangeredLock) {
///     match lock.is_endangered() {
///         true => eprintln!("{}: {:.0?} left, finish the work", lock.key(), lock.remaining()),
///         false => eprintln!("{}: renewed, carry on", lock.key()),
///     }
/// }
///
/// let options = LockOptions::new(Duration::from_secs(30))
///     .auto_renew(true)
///     .on_endangered(Duration::from_secs(10), warn);
/// ```
pub struct EndangeredLock {
    lease: Arc<Lease>,
    expiry: Instant,
    is_endangered: bool,
}

/// A panic cannot leave it inconsistent: no lock inside it is held across a callback or code of the
/// caller.
impl UnwindSafe for EndangeredLock {}
impl RefUnwindSafe for EndangeredLock {}

impl EndangeredLock {
    pub(crate) fn new(lease: &Arc<Lease>, expiry: Instant, is_endangered: bool) -> EndangeredLock {
        EndangeredLock {
            lease: Arc::clone(lease),
            expiry,
            is_endangered,
        }
    }

    /// Returns the lock's name as the caller gave it; of several names the first in sorted order.
    pub fn key(&self) -> &str {
        self.lease.key().name()
    }

    /// Returns all names of the lock, in sorted order.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &str> {
        self.lease.keys().as_slice().iter().map(Key::name)
    }

    /// Returns `true` at the beginning of a danger; `false` at its end, after an extension.
    pub fn is_endangered(&self) -> bool {
        self.is_endangered
    }

    /// Returns the time until the end of the lease that this call reports.
    pub fn remaining(&self) -> Duration {
        self.expiry.saturating_duration_since(clock::now())
    }

    /// Returns the fencing token of the lock, if it was acquired with one.
    pub fn fencing_token(&self) -> Option<u64> {
        self.lease.fencing_token()
    }
}

impl fmt::Debug for EndangeredLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndangeredLock")
            .field("key", &self.key())
            .field("is_endangered", &self.is_endangered)
            .field("remaining", &self.remaining())
            .finish_non_exhaustive()
    }
}

/// The early warning of a lock: how long before its end, and the callback. Clones are equal.
#[derive(Clone)]
pub(crate) struct OnEndangered {
    pub(crate) margin: Duration,
    pub(crate) callback: Arc<dyn Fn(&EndangeredLock) + Send + Sync>,
}

impl PartialEq for OnEndangered {
    fn eq(&self, other: &OnEndangered) -> bool {
        self.margin == other.margin && Arc::ptr_eq(&self.callback, &other.callback)
    }
}

impl Eq for OnEndangered {}

impl fmt::Debug for OnEndangered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OnEndangered({:?}, ..)", self.margin)
    }
}
