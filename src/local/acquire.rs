//! Acquires the entries of a lock's keys: at once where they are free, else in their queues (S8).
//!
//! A thread sleeps in its inbox with the table unlocked. It never asks a node: the engine does that
//! once the thread holds all entries.
//!
//! Tests: `src/tests/local/lock_table.rs`, `multi_key.rs`.

use std::sync::Arc;
use std::time::Instant;

use crate::local::entry::KeyEntry;
use crate::local::guard::LocalGuard;
use crate::local::lock_table::{LockTable, LockTableState};
use crate::local::request::{LocalRequest, Refusal};
use crate::protocol::key::Key;
use crate::protocol::lease::Lease;
use crate::sync::primitives::MutexGuard;
use crate::time::{clock, deadline};

impl LockTable {
    /// Acquires the entry of a single key without queueing. Returns `None` if the thread must
    /// queue, or if there are several keys; then the caller calls [`acquire`](LockTable::acquire).
    ///
    /// Never blocks on another holder. Ignores the offer and the deadline.
    ///
    /// # Errors
    /// - `Closed` if the table is closed, or in a forked child.
    /// - `PermitCountMismatch` if the semaphore is in use with another number of permits.
    pub(crate) fn try_acquire(
        self: &Arc<Self>,
        request: &LocalRequest<'_>,
    ) -> Result<Option<LocalGuard>, Refusal> {
        let Some(key) = request.keys.single() else {
            return Ok(None);
        };
        let mut state = self.lock_open()?;
        let ticket = state.next_ticket();
        let entry = state.entries.entry(key.clone());
        let entry = entry.or_insert_with(KeyEntry::new);
        let is_entered = entry.try_enter(ticket, request)?;
        drop(state);
        Ok(is_entered.then(|| LocalGuard::new(self, request.keys, ticket)))
    }

    /// Acquires the entries of all keys. Blocks until the thread holds them, is cancelled, or the
    /// deadline passes. Threads are admitted per key in FIFO order.
    ///
    /// The keys are acquired in sorted order. A thread that waits for a key holds only keys that
    /// sort before it, which rules out deadlock.
    ///
    /// `on_lost` is called for each lease that this call marked lost, with the table unlocked. It
    /// must release the token and report the loss (S7).
    ///
    /// # Errors
    /// - `Busy` if the deadline passed.
    /// - `Cancelled` if the inbox was cancelled.
    /// - `Closed` if the table is closed, or in a forked child.
    /// - `PermitCountMismatch` if the semaphore is in use with another number of permits.
    pub(crate) fn acquire(
        self: &Arc<Self>,
        request: &LocalRequest<'_>,
        on_lost: impl Fn(&Arc<Lease>),
    ) -> Result<LocalGuard, Refusal> {
        let mut state = self.lock_open()?;
        let waiting = QueuedAcquire {
            table: self,
            request,
            ticket: state.next_ticket(),
            on_lost,
        };
        for (acquired, key) in request.keys.as_slice().iter().enumerate() {
            match waiting.acquire_key(state, key) {
                Ok(locked) => state = locked,
                Err(refusal) => {
                    let acquired = request.keys.as_slice()[..acquired].iter();
                    acquired.for_each(|key| self.release(key, waiting.ticket, true));
                    return Err(refusal);
                }
            }
        }
        drop(state);
        Ok(LocalGuard::new(self, request.keys, waiting.ticket))
    }

    /// Locks the table, unless it is closed or belongs to the parent process.
    fn lock_open(&self) -> Result<MutexGuard<'_, LockTableState>, Refusal> {
        // First: in a forked child the mutex may never be unlocked.
        if self.is_forked() {
            return Err(Refusal::Closed);
        }
        let mut state = self.state.lock();
        if self.is_closed() {
            return Err(Refusal::Closed);
        }
        state.remove_kept();
        Ok(state)
    }
}

/// An acquire that queues where it must, key after key.
struct QueuedAcquire<'a, F> {
    table: &'a LockTable,
    request: &'a LocalRequest<'a>,
    ticket: u64,
    on_lost: F,
}

impl<'a, F: Fn(&Arc<Lease>)> QueuedAcquire<'a, F> {
    /// Acquires the entry of one key, and blocks in its queue if need be.
    fn acquire_key(
        &self,
        mut state: MutexGuard<'a, LockTableState>,
        key: &Key,
    ) -> Result<MutexGuard<'a, LockTableState>, Refusal> {
        let entry = state.entries.entry(key.clone());
        let entry = entry.or_insert_with(KeyEntry::new);
        if entry.try_enter(self.ticket, self.request)? {
            return Ok(state);
        }
        entry.enqueue(self.ticket, self.request);
        self.wait_in_queue(state, key)
    }

    fn wait_in_queue(
        &self,
        mut state: MutexGuard<'a, LockTableState>,
        key: &Key,
    ) -> Result<MutexGuard<'a, LockTableState>, Refusal> {
        let inbox = self.request.inbox;
        loop {
            let now = clock::now();
            // An entry exists as long as a thread queues for it or holds it.
            let Some(entry) = state.entries.get_mut(key) else {
                return Err(Refusal::Closed);
            };
            if entry.holder(self.ticket).is_some() {
                return Ok(state);
            }
            if entry.is_first(self.ticket) {
                let (lost, admitted) = (entry.evict(now), entry.admit());
                if !lost.is_empty() || !admitted.is_empty() {
                    drop(state); // unlock before waking and `on_lost`
                    let others = admitted.iter().filter(|other| !Arc::ptr_eq(other, inbox));
                    others.for_each(|inbox| inbox.wake());
                    lost.iter().for_each(&self.on_lost);
                    state = self.table.state.lock();
                    continue;
                }
            }
            if let Some(refusal) = self.refusal(entry, now) {
                let first = entry.leave_queue(self.ticket);
                drop(state); // unlock before waking
                first.iter().for_each(|inbox| inbox.wake());
                return Err(refusal);
            }
            let recheck = entry.schedule_recheck(self.ticket, now);
            let wake_at = deadline::earlier(self.request.deadline, recheck);
            drop(state); // unlock while asleep
            inbox.sleep(wake_at);
            state = self.table.state.lock();
        }
    }

    /// Returns why the wait in the queue is over, if it is.
    fn refusal(&self, entry: &KeyEntry, now: Instant) -> Option<Refusal> {
        let LocalRequest {
            mode,
            inbox,
            deadline,
            ..
        } = *self.request;
        if self.table.is_closed() {
            return Some(Refusal::Closed);
        }
        if inbox.is_cancelled() {
            return Some(Refusal::Cancelled);
        }
        let is_over = deadline.is_some_and(|deadline| deadline <= now);
        is_over.then(|| entry.busy_refusal(self.ticket, mode, now))
    }
}
