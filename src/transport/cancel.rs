//! A way for another thread to end a wait.

use std::fmt;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::error::Error;
use crate::transport::inbox::Inbox;

/// Ends waits for locks from another thread: give it to [`LockOptions::cancel_on`](crate::LockOptions::cancel_on), keep a
/// clone, and call [`cancel`](CancelToken::cancel) on it.
///
/// A cheap clone of one flag, which is raised once and for all. Any number of waits can have the same token.
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

#[derive(Default)]
struct CancelState {
    cancelled: bool,
    /// Where those wait who have the token. Swept when it has doubled.
    waiting: Vec<Weak<Inbox>>,
    prune_at: usize,
}

impl CancelToken {
    /// A token that is not cancelled. Two of them have nothing to do with each other; clones are the same.
    pub fn new() -> CancelToken {
        CancelToken::default()
    }

    /// Ends all waits that have this token, also those that begin later: with [`Cancelled`](crate::Error::Cancelled),
    /// within milliseconds. Locks that are held are not touched. A second call finds nothing left to do. Does not block.
    pub fn cancel(&self) {
        let mut state = self.0.lock();
        state.cancelled = true;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state); // let go before waking
        let alive = waiting.iter().filter_map(Weak::upgrade);
        alive.for_each(|inbox| inbox.cancel());
    }

    /// Whether [`cancel`](CancelToken::cancel) was called on it or on a clone.
    pub fn is_cancelled(&self) -> bool {
        self.0.lock().cancelled
    }

    /// Lets it end the waits in an inbox, for as long as that is there; at once if it is cancelled.
    pub(crate) fn register(&self, inbox: &Arc<Inbox>) {
        let mut state = self.0.lock();
        if state.cancelled {
            drop(state); // let go before waking
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

/// Where a caller waits whom a token, if there is one, can cancel.
///
/// # Errors
/// `Cancelled` if it has been cancelled already.
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

/// Equal are clones of one token.
impl PartialEq for CancelToken {
    fn eq(&self, other: &CancelToken) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for CancelToken {}

impl fmt::Debug for CancelToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("CancelToken");
        // Not by waiting for a thread that has the lock.
        let cancelled = self.0.try_lock().map(|state| state.cancelled);
        shown.field("cancelled", &cancelled).finish()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn clones_are_one_token_and_others_are_not() {
        let [token, other] = [CancelToken::new(), CancelToken::new()];
        let clone = token.clone();
        assert!(token == clone && token != other);
        clone.cancel();
        clone.cancel();
        assert!(token.is_cancelled() && !other.is_cancelled());
    }

    #[test]
    fn it_reaches_who_waits_and_who_comes_later_and_keeps_nobody() {
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
