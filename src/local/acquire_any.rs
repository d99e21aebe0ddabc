//! Acquires the first of several keys that is free in this process.

use std::sync::Arc;
use std::time::Instant;

use crate::local::entry::{AccessMode, LocalRequest, Refusal};
use crate::local::guard::LocalGuard;
use crate::local::lock_table::LockTable;
use crate::protocol::key_set::KeySet;
use crate::time::{clock, deadline};
use crate::transport::inbox::Inbox;

/// Wakes an inbox at each release in this process until it is dropped. Its drop wakes the others.
pub(crate) struct TableWatch<'a> {
    table: &'a LockTable,
    inbox: &'a Arc<Inbox>,
}

impl LockTable {
    /// Wakes `inbox` from now on at each release and loss in this process, whatever its key.
    pub(crate) fn watch<'a>(&'a self, inbox: &'a Arc<Inbox>) -> TableWatch<'a> {
        self.state.lock().watchers.push(Arc::clone(inbox));
        TableWatch { table: self, inbox }
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
        let _watch = self.watch(inbox);
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
        state
            .watchers
            .retain(|other| !Arc::ptr_eq(other, self.inbox));
        let others = state.watchers.clone();
        drop(state); // unlock before waking
        // They may have found a lock busy for which this thread asked.
        others.iter().for_each(|inbox| inbox.wake());
    }
}
