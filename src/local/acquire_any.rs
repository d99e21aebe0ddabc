//! Acquires the first of several keys that is free in this process.
//!
//! A thread holds the entry of one key at most, and has a place in no queue: it watches the table,
//! and tries again when a key becomes free.
//!
//! Tests: `src/tests/engine/acquire_any.rs`.

use std::sync::Arc;
use std::time::Instant;

use crate::local::guard::LocalGuard;
use crate::local::lock_table::LockTable;
use crate::local::request::{AccessMode, LocalRequest, Refusal};
use crate::local::table_watcher::TableWatcher;
use crate::protocol::key_set::KeySet;
use crate::time::{clock, deadline};
use crate::transport::inbox::Inbox;

/// Wakes an inbox at each release of one of several keys in this process, until it is dropped. Its
/// drop wakes the others that watch one of the keys.
pub(crate) struct TableWatch<'a> {
    table: &'a LockTable,
    watcher: Arc<TableWatcher>,
}

impl TableWatch<'_> {
    /// Returns whether one of the keys was released or lost since the last reset.
    pub(crate) fn is_released(&self) -> bool {
        self.watcher.is_released()
    }

    /// Returns [`is_released`](TableWatch::is_released), and resets it.
    pub(crate) fn take_released(&self) -> bool {
        self.watcher.take_released()
    }
}

impl LockTable {
    /// Wakes `inbox` from now on when a thread of this process that held one of `keys` releases or
    /// loses it.
    pub(crate) fn watch<'a>(
        &'a self,
        keys: impl Iterator<Item = &'a KeySet>,
        inbox: &Arc<Inbox>,
    ) -> TableWatch<'a> {
        let keys = keys.flat_map(KeySet::as_slice).cloned();
        let watcher = Arc::new(TableWatcher::new(keys.collect(), inbox));
        self.state.lock().watchers.push(Arc::clone(&watcher));
        TableWatch {
            table: self,
            watcher,
        }
    }

    /// Acquires the entry of the first of `choices` that is free, in the order of the list. Blocks
    /// until one is, the inbox is cancelled, or the deadline passes.
    ///
    /// The thread has no place in any queue: threads that wait for one of the keys precede it.
    ///
    /// # Errors
    /// - `Busy` of the last key if the deadline passed.
    /// - `Cancelled` if the inbox was cancelled.
    /// - `Closed` if the table is closed, or in a forked child.
    pub(crate) fn acquire_any(
        self: &Arc<Self>,
        choices: &[KeySet],
        inbox: &Arc<Inbox>,
        end: Option<Instant>,
    ) -> Result<LocalGuard, Refusal> {
        if self.is_forked() {
            return Err(Refusal::Closed);
        }
        let _watch = self.watch(choices.iter(), inbox);
        loop {
            let now = clock::now();
            let (mut next, mut last) = (end, None);
            for keys in choices {
                let request = LocalRequest {
                    keys,
                    mode: AccessMode::Exclusive,
                    offer: None,
                    inbox,
                    deadline: Some(now),
                };
                match self.acquire(&request, |_| ()) {
                    Ok(guard) => return Ok(guard),
                    Err(Refusal::Busy { by, remaining }) => {
                        let free_at = remaining.and_then(|left| deadline::deadline(now, left));
                        next = deadline::earlier(next, free_at);
                        last = Some(Refusal::Busy { by, remaining });
                    }
                    Err(refusal) => return Err(refusal),
                }
            }
            match last {
                Some(refusal) if end.is_some_and(|end| end <= now) => return Err(refusal),
                _ => _ = inbox.sleep(next),
            }
        }
    }
}

impl Drop for TableWatch<'_> {
    fn drop(&mut self) {
        let mut state = self.table.state.lock();
        let watchers = &mut state.watchers;
        watchers.retain(|other| !Arc::ptr_eq(other, &self.watcher));
        // They may have found a lock busy for which this thread asked.
        let keys = self.watcher.keys().iter();
        let others: Vec<_> = keys.flat_map(|key| state.tell_watchers(key)).collect();
        drop(state); // unlock before waking
        others.iter().for_each(|inbox| inbox.wake());
    }
}
