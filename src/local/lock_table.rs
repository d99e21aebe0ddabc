//! The lock table: threads of one process queue here for a key before the nodes are asked (S8).
//!
//! The table decides which thread may ask; it never asks a node. Its mutex is held for table
//! operations only: never across I/O, a user's callback, the wake-up of an inbox, or a sleep. An
//! operation may lock the mutexes of leases and inboxes, briefly. `local/acquire.rs` acquires,
//! `local/guard.rs` releases, and `local/entry.rs` has the rules for one key.
//!
//! Tests: `src/tests/local/lock_table.rs`, also under loom, such as
//! `waiters_acquire_the_entry_in_fifo_order`,
//! `reader_behind_a_waiting_writer_waits_and_later_readers_acquire_together` (neither side
//! starves), `timed_out_waiter_leaves_the_queue_and_the_next_expires_the_lease` (the first waiter
//! evicts) and `unused_keys_take_no_memory`; `src/tests/local/multi_key.rs`;
//! `src/tests/engine/validity.rs`, `expired_holder_does_not_block_its_process`, which blocks for
//! ever if the table stays locked across `on_lost`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use crate::config::settings::TtlLimits;
use crate::local::entry::KeyEntry;
use crate::local::table_watcher::TableWatcher;
use crate::protocol::key::Key;
use crate::protocol::key_set::KeySet;
use crate::protocol::lease::Lease;
use crate::random::HashMap;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::primitives::{Condvar, Mutex};
use crate::sync::threads;
use crate::time::{clock, deadline};
use crate::transport::inbox::Inbox;

/// The map of entries shrinks only if it has room for more than this.
const MIN_SHRINK_CAPACITY: usize = 64;

/// The map of entries shrinks if less than one in this number is used.
const SHRINK_FRACTION: usize = 8;

/// One entry per key that is held, kept or waited for. An unused key takes no memory.
///
/// A queue is strictly first in, first out. A reader waits behind a writer that waits, even while
/// readers hold the entry, so neither side starves.
///
/// An entry does not end by itself. The first waiter marks a lease lost once its expiry has
/// passed, and evicts a holder whose lease is lost or whose kept time is over. So a hung thread
/// does not block its process (S8). A pending holder, or one whose lease does not end, cannot be
/// evicted.
pub(crate) struct LockTable {
    pub(crate) state: Mutex<LockTableState>,
    /// Written with `state` locked, so a thread that has locked `state` sees the final value.
    closed: AtomicBool,
    /// Notified when the table is empty, and at each release and loss after it was closed.
    idle: Condvar,
    owner_pid: u32,
    /// The limits of the TTLs of locks that are held in this process alone.
    ttl_limits: TtlLimits,
}

pub(crate) struct LockTableState {
    pub(crate) entries: HashMap<Key, Box<KeyEntry>>,
    /// The threads that each release of one of their keys wakes ([`watch`](LockTable::watch)).
    pub(super) watchers: Vec<Arc<TableWatcher>>,
    /// The entries that are kept after a release, by the end of that time.
    kept: BTreeMap<(Instant, u64), Key>,
    last_ticket: u64,
    last_fencing_token: u64,
}

impl LockTableState {
    pub(super) fn next_ticket(&mut self) -> u64 {
        self.last_ticket += 1;
        self.last_ticket
    }

    /// Records the release or loss of a key for each thread that watches it. Returns the inboxes of
    /// these threads.
    pub(super) fn tell_watchers(&self, key: &Key) -> Vec<Arc<Inbox>> {
        let watchers = self.watchers.iter().filter(|one| one.note_release(key));
        watchers.map(|one| Arc::clone(one.inbox())).collect()
    }

    /// Removes the holders whose kept time is over, and the entries that are then unused. Admits no
    /// waiter: the first one wakes at that time by itself.
    pub(super) fn remove_kept(&mut self) {
        if self.kept.is_empty() {
            return;
        }
        let now = clock::now();
        while let Some(first) = self.kept.first_entry()
            && first.key().0 <= now
        {
            let key = first.remove();
            if let Some(entry) = self.entries.get_mut(&key) {
                entry.evict_kept(now);
                if entry.is_unused() {
                    self.entries.remove(&key);
                }
            }
        }
    }
}

impl LockTable {
    pub(crate) fn new() -> LockTable {
        LockTable::with_ttl_limits(TtlLimits::LOCAL)
    }

    /// Creates the table of threads that share nodes with these limits.
    pub(crate) fn with_ttl_limits(ttl_limits: TtlLimits) -> LockTable {
        LockTable {
            state: Mutex::new(LockTableState {
                entries: HashMap::default(),
                watchers: Vec::new(),
                kept: BTreeMap::new(),
                last_ticket: 0,
                last_fencing_token: 0,
            }),
            closed: AtomicBool::new(false),
            idle: Condvar::new(),
            owner_pid: threads::process_id(),
            ttl_limits,
        }
    }

    /// Returns the limits of the TTLs of locks that are held in this process alone.
    pub(crate) fn ttl_limits(&self) -> TtlLimits {
        self.ttl_limits
    }

    /// Returns the next fencing token of a lock that is held in this process alone.
    pub(crate) fn next_fencing_token(&self) -> u64 {
        let mut state = self.state.lock();
        state.last_fencing_token += 1;
        state.last_fencing_token
    }

    /// Wakes the first waiter and the watching threads of each key, because the lease of a holder
    /// was lost.
    pub(crate) fn recheck(&self, keys: &KeySet) {
        let state = self.state.lock();
        let keys = keys.as_slice();
        let entries = keys.iter().filter_map(|key| state.entries.get(key));
        let mut first: Vec<_> = entries.filter_map(|entry| entry.first_waiter()).collect();
        first.extend(keys.iter().flat_map(|key| state.tell_watchers(key)));
        if self.is_closed() {
            self.idle.notify_all(); // `wait_idle` does not wait for a lost lease
        }
        drop(state); // unlock before waking
        first.iter().for_each(|inbox| inbox.wake());
    }

    /// Refuses all threads from now on. Wakes waiters, watching threads and pending holders, so
    /// that they return.
    pub(crate) fn close(&self) {
        let state = self.state.lock();
        self.closed.store(true, Ordering::Release);
        let watchers = state.watchers.iter();
        let mut inboxes: Vec<_> = watchers.map(|one| Arc::clone(one.inbox())).collect();
        for entry in state.entries.values() {
            inboxes.extend(
                entry
                    .holders
                    .iter()
                    .filter_map(|holder| holder.inbox.clone()),
            );
            inboxes.extend(entry.queue().iter().map(|waiter| Arc::clone(&waiter.inbox)));
        }
        drop(state); // unlock before waking
        inboxes.iter().for_each(|inbox| inbox.wake());
    }

    /// Returns whether the table was closed. Does not lock.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Returns whether this process was forked after the table was created.
    pub(crate) fn is_forked(&self) -> bool {
        self.owner_pid != threads::process_id()
    }

    /// Blocks until no holder is pending, at most until `end`. Returns the keys that have a pending
    /// holder then, in order.
    pub(crate) fn wait_no_pending(&self, end: Instant) -> Vec<Key> {
        let mut state = self.state.lock();
        let mut timed_out = false;
        loop {
            let entries = state.entries.iter();
            let pending = entries.filter(|(_, entry)| entry.has_pending());
            let mut pending: Vec<Key> = pending.map(|(key, _)| key.clone()).collect();
            if pending.is_empty() || timed_out {
                pending.sort_unstable_by(|a, b| a.name().cmp(b.name()));
                return pending;
            }
            timed_out = self.idle.wait_until(&mut state, end).timed_out();
        }
    }

    /// Blocks until no entry is held, at most until `end` (`None`: no limit). Returns the leases
    /// that are still held then.
    ///
    /// Evicts holders whose lease is lost. `on_lost` is called as in
    /// [`acquire`](LockTable::acquire).
    pub(crate) fn wait_idle(
        &self,
        end: Option<Instant>,
        on_lost: impl Fn(&Arc<Lease>),
    ) -> Vec<Arc<Lease>> {
        let mut state = self.state.lock();
        loop {
            let now = clock::now();
            let entries = state.entries.values_mut();
            let lost: Vec<Arc<Lease>> = entries.flat_map(|entry| entry.evict(now)).collect();
            if !lost.is_empty() {
                drop(state); // unlock before `on_lost`
                lost.iter().for_each(&on_lost);
                state = self.state.lock();
                continue;
            }
            let holders = || state.entries.values().flat_map(|entry| entry.guarded());
            if holders().next().is_none() || end.is_some_and(|end| end <= now) {
                return holders().filter_map(|one| one.lease.clone()).collect();
            }
            let entries = state.entries.values();
            let expiries = entries.filter_map(|entry| entry.next_expiry(now));
            match deadline::earlier(end, expiries.min()) {
                None => self.idle.wait(&mut state),
                Some(end) => _ = self.idle.wait_until(&mut state, end),
            }
        }
    }

    /// Ends the hold of a ticket on one key, admits the next waiters, and wakes the threads that
    /// watch the key. Without `wakes_watchers` a pending holder wakes no watching thread.
    ///
    /// Does nothing if the ticket was evicted. Does nothing in a forked child either: there the
    /// mutex may have been copied while another thread held it.
    pub(super) fn release(&self, key: &Key, ticket: u64, wakes_watchers: bool) {
        if self.is_forked() {
            return;
        }
        let mut state = self.state.lock();
        let Some(entry) = state.entries.get_mut(key) else {
            return;
        };
        let Some(removed) = entry.holders.remove(|holder| holder.ticket == ticket) else {
            return;
        };
        let was_pending = removed.lease.is_none();
        let mut woken = entry.admit();
        if was_pending {
            woken.extend(entry.followers().next()); // the next leader
        }
        if entry.holders.is_empty() {
            state.entries.remove(key);
            let (used, capacity) = (state.entries.len(), state.entries.capacity());
            if capacity > MIN_SHRINK_CAPACITY && used < capacity / SHRINK_FRACTION {
                state.entries.shrink_to(used * 2);
            }
        }
        if self.is_closed() || state.entries.is_empty() {
            self.idle.notify_all();
        }
        if wakes_watchers || !was_pending {
            woken.extend(state.tell_watchers(key));
        }
        drop(state); // unlock before waking
        woken.iter().for_each(|inbox| inbox.wake());
    }

    /// Ends the hold of a ticket on its keys, and keeps other threads out until `end`.
    ///
    /// Does nothing in a forked child, or for a key from which the ticket was evicted.
    pub(super) fn keep(&self, keys: &KeySet, ticket: u64, end: Instant) {
        if self.is_forked() {
            return;
        }
        let now = clock::now();
        let mut state = self.state.lock();
        let mut woken = Vec::new();
        for key in keys.as_slice() {
            let Some(entry) = state.entries.get_mut(key) else {
                continue;
            };
            if !entry.keep(ticket, end) {
                continue;
            }
            woken.extend(entry.waiter_to_wake(now, Some(end)));
            woken.extend(state.tell_watchers(key));
            let number = state.next_ticket();
            state.kept.insert((end, number), key.clone());
        }
        if self.is_closed() {
            self.idle.notify_all();
        }
        drop(state); // unlock before waking
        woken.iter().for_each(|inbox| inbox.wake());
    }

    /// Returns the leases on a key that threads of this process hold.
    pub(crate) fn leases(&self, key: &Key) -> Vec<Arc<Lease>> {
        let state = self.state.lock();
        let holders = state.entries.get(key).map(|entry| entry.guarded());
        let leases = holders.into_iter().flatten();
        leases.filter_map(|holder| holder.lease.clone()).collect()
    }

    /// Returns the number of keys with an entry.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn entry_count(&self) -> usize {
        self.state.lock().entries.len()
    }

    /// Returns the position of the first of these keys that has an exclusive holder, and the owner
    /// label of its lease. Returns position 0 and no label if there is no such key, and in a forked
    /// child.
    pub(crate) fn holder(&self, keys: &KeySet) -> (usize, Option<Box<str>>) {
        if self.is_forked() {
            return (0, None);
        }
        let state = self.state.lock();
        let mut keys = keys.as_slice().iter().enumerate();
        let held = keys.find_map(|(position, key)| {
            let entry = state.entries.get(key)?;
            Some((position, entry.exclusive_holder()?.map(Box::from)))
        });
        held.unwrap_or_default()
    }

    /// Returns the number of threads that queue for a key.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn waiting(&self, key: &Key) -> usize {
        let state = self.state.lock();
        state
            .entries
            .get(key)
            .map_or(0, |entry| entry.queue().len())
    }

    /// Returns the number of threads that watch keys without a place in their queues.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn watching(&self) -> usize {
        self.state.lock().watchers.len()
    }

    /// Returns for a key the number of holders that follow another one, and the number of waiters.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn follower_counts(&self, key: &Key) -> (usize, usize) {
        let state = self.state.lock();
        state.entries.get(key).map_or((0, 0), |entry| {
            let following = entry.holders.iter().filter(|holder| holder.following);
            (following.count(), entry.queue().len())
        })
    }
}

impl fmt::Debug for LockTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LockTable(..)")
    }
}
