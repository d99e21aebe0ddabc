//! A thread that watches several keys of the lock table, as the table sees it.
//!
//! Tests: `src/tests/engine/acquire_any.rs`.

use std::sync::Arc;

use crate::protocol::key::Key;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::transport::inbox::Inbox;

/// A thread that waits for the first of several keys, without a place in their queues.
pub(super) struct TableWatcher {
    keys: Vec<Key>,
    inbox: Arc<Inbox>,
    /// Whether one of the keys was released or lost since the thread last asked.
    is_released: AtomicBool,
}

impl TableWatcher {
    pub(super) fn new(keys: Vec<Key>, inbox: &Arc<Inbox>) -> TableWatcher {
        TableWatcher {
            keys,
            inbox: Arc::clone(inbox),
            is_released: AtomicBool::new(false),
        }
    }

    pub(super) fn keys(&self) -> &[Key] {
        &self.keys
    }

    pub(super) fn inbox(&self) -> &Arc<Inbox> {
        &self.inbox
    }

    /// Notes the release of a key. Returns whether the thread is to be woken, because it watches
    /// it.
    pub(super) fn note_release(&self, key: &Key) -> bool {
        let is_watched = self.keys.contains(key);
        if is_watched {
            self.is_released.store(true, Ordering::Release);
        }
        is_watched
    }

    /// Returns whether one of the keys was released or lost since the last reset.
    pub(super) fn is_released(&self) -> bool {
        self.is_released.load(Ordering::Acquire)
    }

    /// Returns [`is_released`](TableWatcher::is_released), and resets it.
    pub(super) fn take_released(&self) -> bool {
        self.is_released.swap(false, Ordering::AcqRel)
    }
}
