//! The argument of an `on_lost` callback (S11).
//!
//! Plain data: it does not change the lock.
//!
//! Tests: `src/tests/engine/loss.rs`.

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;

use crate::error::loss_reason::LossReason;
use crate::protocol::key::Key;
use crate::protocol::lease::Lease;
use crate::time::clock;

/// A lost lock, as a callback receives it ([`LockOptions::on_lost`](crate::LockOptions::on_lost)).
///
/// ```
/// use redguard::{LockOptions, LossReason, LostLock};
/// use std::time::Duration;
///
/// fn alarm(lost: &LostLock) {
///     let names: Vec<&str> = lost.keys().collect();
///     eprintln!("lost {names:?}: {}", lost.reason());
///     if let (LossReason::NotOurs, Some(token)) = (lost.reason(), lost.fencing_token()) {
///         eprintln!("{}: the store refuses {token} from now on", lost.key());
///     }
/// }
///
/// let options = LockOptions::new(Duration::from_secs(30)).on_lost(alarm);
/// ```
pub struct LostLock {
    pub(crate) lease: Arc<Lease>,
}

/// A panic cannot leave it inconsistent: no lock inside it is held across a callback or code of the
/// caller.
impl UnwindSafe for LostLock {}
impl RefUnwindSafe for LostLock {}

impl LostLock {
    #[cfg(feature = "testing")]
    pub(crate) fn of(lease: Arc<Lease>) -> LostLock {
        LostLock { lease }
    }

    /// Returns the lock's name as the caller gave it; of several names the first in sorted order.
    pub fn key(&self) -> &str {
        self.lease.key().name()
    }

    /// Returns all names of the lock, in sorted order.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &str> {
        self.lease.keys().as_slice().iter().map(Key::name)
    }

    /// Returns the reason of the loss.
    pub fn reason(&self) -> LossReason {
        // The callback runs after the loss, so a reason is stored.
        self.lease
            .loss_reason(clock::now())
            .unwrap_or(LossReason::Expired)
    }

    /// Returns the fencing token of the lock, if it was acquired with one.
    pub fn fencing_token(&self) -> Option<u64> {
        self.lease.fencing_token()
    }
}

impl fmt::Debug for LostLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("LostLock");
        shown
            .field("key", &self.key())
            .field("reason", &self.reason())
            .finish_non_exhaustive()
    }
}

/// An `on_lost` callback. Clones of one callback are equal.
#[derive(Clone)]
pub(crate) struct OnLostCallback(pub(crate) Arc<dyn Fn(&LostLock) + Send + Sync>);

impl PartialEq for OnLostCallback {
    fn eq(&self, other: &OnLostCallback) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for OnLostCallback {}

impl fmt::Debug for OnLostCallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnLost(..)")
    }
}
