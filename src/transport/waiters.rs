//! The callers that wait for nodes to come up, or for the breaker.
//!
//! It wakes inboxes, and decides nothing: each owner checks its own condition.
//!
//! Tests: in `src/tests/engine/`: `outage.rs`.

use std::sync::Arc;

use crate::sync::primitives::Mutex;
use crate::transport::inbox::Inbox;

/// The callers that wait for nodes to come up, or for the breaker.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    inboxes: Mutex<Vec<Arc<Inbox>>>,
}

/// The registration of one waiter. Dropping it ends the registration.
#[derive(Debug)]
pub(crate) struct Waiter<'a> {
    waiters: &'a Waiters,
    inbox: Arc<Inbox>,
}

impl Waiters {
    /// Registers an inbox. A change after this call wakes it, so the owner checks its condition
    /// after this call, and sleeps then.
    pub(crate) fn join(&self, inbox: &Arc<Inbox>) -> Waiter<'_> {
        self.inboxes.lock().push(Arc::clone(inbox));
        Waiter {
            waiters: self,
            inbox: Arc::clone(inbox),
        }
    }

    /// Wakes all waiters, so that they check their condition again.
    pub(crate) fn wake(&self) {
        let inboxes = self.inboxes.lock().clone(); // unlocked before waking
        inboxes.iter().for_each(|inbox| inbox.wake());
    }

    /// Returns the number of waiters.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn count(&self) -> usize {
        self.inboxes.lock().len()
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut inboxes = self.waiters.inboxes.lock();
        let is_own = |inbox: &Arc<Inbox>| Arc::ptr_eq(inbox, &self.inbox);
        if let Some(index) = inboxes.iter().position(is_own) {
            inboxes.swap_remove(index);
        }
    }
}
