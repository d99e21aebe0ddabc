//! Cancellation of waits from another thread.
//!
//! A cancelled token ends waits only: a lock that is held stays held, and an attempt that was
//! granted in the moment of a cancellation stays granted.

use std::fmt;
use std::sync::{Arc, Weak};

use crate::error::error::Error;
use crate::sync::primitives::Mutex;
use crate::transport::inbox::Inbox;

/// Ends waits for locks from another thread.
///
/// Pass it to [`LockOptions::cancel_on`](crate::LockOptions::cancel_on), keep a clone, and call
/// [`cancel`](CancelToken::cancel) on the clone. Clones share one flag, which is never reset. Any
/// number of waits can share a token.
///
/// ```
/// use redguard::{CancelToken, Error, LocalLocker, LockOptions, Locker};
/// use std::time::Duration;
///
/// # fn main() -> Result<(), Error> {
/// let locker = LocalLocker::new();
/// let held = locker.lock("report", Duration::from_secs(30))?;
/// let stop = CancelToken::new();
/// let options = LockOptions::new(Duration::from_secs(30)).cancel_on(&stop);
/// std::thread::scope(|scope| {
///     let waiting = scope.spawn(|| locker.acquire("report", &options));
///     stop.cancel();
///     assert!(stop.is_cancelled());
///     assert_eq!(waiting.join().unwrap().err(), Some(Error::Cancelled));
/// });
/// assert!(held.is_held());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct CancelToken(Arc<Mutex<CancelState>>);

/// A panic cannot leave it inconsistent: no lock inside it is held across a callback or code of the
/// caller.
impl std::panic::UnwindSafe for CancelToken {}
impl std::panic::RefUnwindSafe for CancelToken {}

#[derive(Default)]
struct CancelState {
    cancelled: bool,
    /// The inboxes of the waits that have the token.
    waiting: Vec<Weak<Inbox>>,
    /// The length of `waiting` at which the inboxes of ended waits are removed.
    prune_at: usize,
}

impl CancelToken {
    /// Returns a new token that is not cancelled. It is independent of every other token.
    pub fn new() -> CancelToken {
        CancelToken::default()
    }

    /// Ends all present and later waits that have this token, within milliseconds.
    ///
    /// They return [`Cancelled`](crate::Error::Cancelled). Locks that are held are not affected. A
    /// second call has no effect. Does not block.
    pub fn cancel(&self) {
        let mut state = self.0.lock();
        state.cancelled = true;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state); // unlock before waking
        let alive = waiting.iter().filter_map(Weak::upgrade);
        alive.for_each(|inbox| inbox.cancel());
    }

    /// Returns whether [`cancel`](CancelToken::cancel) was called on this token or on a clone.
    pub fn is_cancelled(&self) -> bool {
        self.0.lock().cancelled
    }

    /// Registers an inbox, so that a cancellation ends its waits. Cancels it at once if the token
    /// is cancelled.
    pub(crate) fn register(&self, inbox: &Arc<Inbox>) {
        let mut state = self.0.lock();
        if state.cancelled {
            drop(state); // unlock before waking
            inbox.cancel();
            return;
        }
        if state.waiting.len() >= state.prune_at {
            state.waiting.retain(|inbox| inbox.strong_count() > 0);
            state.prune_at = 2 * state.waiting.len().max(8);
        }
        state.waiting.push(Arc::downgrade(inbox));
    }
}

/// Returns an inbox for a caller, registered at its token if there is one.
///
/// # Errors
/// - `Cancelled` if the token has been cancelled already.
pub(crate) fn cancellable_inbox(token: Option<&CancelToken>) -> Result<Arc<Inbox>, Error> {
    let inbox = Arc::new(Inbox::new());
    if let Some(token) = token {
        token.register(&inbox);
    }
    match inbox.is_cancelled() {
        true => Err(Error::Cancelled),
        false => Ok(inbox),
    }
}

/// Clones of one token are equal; other tokens are not.
impl PartialEq for CancelToken {
    fn eq(&self, other: &CancelToken) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for CancelToken {}

impl fmt::Debug for CancelToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("CancelToken");
        // `Debug` must not block, so the field is `None` while another thread holds the lock.
        let cancelled = self.0.try_lock().map(|state| state.cancelled);
        shown.field("cancelled", &cancelled).finish()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn cancel_token_cloned_is_one_token() {
        let [token, other] = [CancelToken::new(), CancelToken::new()];
        let clone = token.clone();
        assert!(token == clone && token != other);
        clone.cancel();
        clone.cancel();
        assert!(token.is_cancelled() && !other.is_cancelled());
    }

    #[test]
    fn cancel_token_cancelled_reaches_present_and_later_waits_and_keeps_no_ended_one() {
        let token = CancelToken::new();
        let inboxes = [0; 100].map(|_| Arc::new(Inbox::new()));
        for inbox in &inboxes {
            token.register(inbox);
        }
        for _ in 0..10_000 {
            token.register(&Arc::new(Inbox::new()));
        }
        assert!(token.0.lock().waiting.len() < 1_000);
        assert!(!inboxes[0].is_cancelled());
        token.cancel();
        assert!(inboxes.iter().all(|inbox| inbox.is_cancelled()));
        let late = Arc::new(Inbox::new());
        token.register(&late);
        assert!(late.is_cancelled());
    }
}
