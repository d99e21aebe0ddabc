//! The gate before the nodes: threads of one process queue here for a key, first come, first served, readers together.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use crate::local::entry::KeyEntry;
use crate::protocol::key::Key;
use crate::protocol::key_set::KeySet;
use crate::protocol::lease::Lease;
use crate::sync::primitives::{Condvar, Mutex};
use crate::time::{clock, deadline};

/// One slot per key that is held or waited for; keys at rest take no memory.
///
/// A slot is held by one alone, or shared by any number, or by so many at most (permits). Its queue is strict: who comes
/// later waits, also a reader behind a writer that waits while readers hold it, so neither side starves.
///
/// A slot has no clock of its own. The first in the queue may take it from a holder whose lease is lost, and makes
/// the lease lost itself when its expiry has passed (rule S8): so one hung thread cannot block its process for
/// ever. A holder that is still asking for its lease, or whose lock does not expire, cannot be passed over.
pub(crate) struct LockTable {
    pub(crate) state: Mutex<LockTableState>,
    idle: Condvar,
    owner_pid: u32,
}

pub(crate) struct LockTableState {
    pub(crate) slots: HashMap<Key, KeyEntry>,
    pub(crate) last_ticket: u64,
    last_number: u64,
    pub(crate) closed: bool,
}

impl LockTable {
    pub(crate) fn new() -> LockTable {
        LockTable {
            state: Mutex::new(LockTableState {
                slots: HashMap::new(),
                last_ticket: 0,
                last_number: 0,
                closed: false,
            }),
            idle: Condvar::new(),
            owner_pid: std::process::id(),
        }
    }

    /// One more than before: the fencing token of one who holds a slot alone.
    pub(crate) fn next_fencing_token(&self) -> u64 {
        let mut state = self.state.lock();
        state.last_number += 1;
        state.last_number
    }

    /// Something about a holder's lease has changed: lets the first in the queue of each of its keys look.
    pub(crate) fn recheck(&self, keys: &KeySet) {
        let state = self.state.lock();
        let slots = keys
            .as_slice()
            .iter()
            .filter_map(|key| state.slots.get(key));
        let first: Vec<_> = slots.filter_map(KeyEntry::first).collect();
        if state.closed {
            self.idle.notify_all(); // a lease that is lost need not be waited for
        }
        drop(state); // let go before waking
        first.iter().for_each(|inbox| inbox.wake());
    }

    /// From now on nobody gets in; who waits or is still asking is woken to see that.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let mut inboxes = Vec::new();
        for slot in state.slots.values() {
            inboxes.extend(slot.holders.iter().map(|holder| Arc::clone(&holder.inbox)));
            inboxes.extend(slot.queue.iter().map(|waiter| Arc::clone(&waiter.inbox)));
        }
        drop(state); // let go before waking
        inboxes.iter().for_each(|inbox| inbox.wake());
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Whether this process is a child that was forked off the one with the gate's threads.
    pub(crate) fn is_forked(&self) -> bool {
        self.owner_pid != std::process::id()
    }

    /// Waits until nobody is still asking for a lease, at most until `end`. `false` if somebody is.
    pub(crate) fn wait_no_pending(&self, end: Instant) -> bool {
        let asking = |state: &LockTableState| state.slots.values().any(KeyEntry::has_pending);
        let mut state = self.state.lock();
        while asking(&state) {
            if self.idle.wait_until(&mut state, end).timed_out() {
                return !asking(&state);
            }
        }
        true
    }

    /// Waits until no slot is held, at most until `end`; answers the leases of those that still are. Who has lost its lease is
    /// not waited for. `settle` as for [`acquire`](Gate::acquire).
    pub(crate) fn wait_idle(
        &self,
        end: Option<Instant>,
        settle: impl Fn(&Arc<Lease>),
    ) -> Vec<Arc<Lease>> {
        let mut state = self.state.lock();
        loop {
            let now = clock::now();
            let slots = state.slots.values_mut();
            let lost: Vec<Arc<Lease>> = slots.flat_map(|slot| slot.evict(now)).collect();
            if !lost.is_empty() {
                drop(state); // let go before telling
                lost.iter().for_each(&settle);
                state = self.state.lock();
                continue;
            }
            let holders = || state.slots.values().flat_map(|slot| &slot.holders);
            if holders().next().is_none() || end.is_some_and(|end| end <= now) {
                return holders().filter_map(|one| one.lease.clone()).collect();
            }
            let expiries = state
                .slots
                .values()
                .filter_map(|slot| slot.next_expiry(now));
            match deadline::earlier(end, expiries.min()) {
                None => self.idle.wait(&mut state),
                Some(end) => _ = self.idle.wait_until(&mut state, end),
            }
        }
    }

    /// How many threads queue for a key.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn waiting(&self, key: &Key) -> usize {
        let state = self.state.lock();
        state.slots.get(key).map_or(0, |slot| slot.queue.len())
    }

    /// How many follow another at a key, and how many queue for it.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn follower_counts(&self, key: &Key) -> (usize, usize) {
        let state = self.state.lock();
        state.slots.get(key).map_or((0, 0), |slot| {
            let following = slot.holders.iter().filter(|holder| holder.following);
            (following.count(), slot.queue.len())
        })
    }

    pub(crate) fn release(&self, key: &Key, ticket: u64) {
        if self.is_forked() {
            return; // a forked child has a copy of the lock, perhaps one that was held by another thread
        }
        let mut state = self.state.lock();
        let closed = state.closed;
        let Some(slot) = state.slots.get_mut(key) else {
            return;
        };
        let Some(place) = slot.holders.iter().position(|h| h.ticket == ticket) else {
            return; // a waiter took it over when our lease was lost
        };
        let asked = slot.holders.remove(place).lease.is_none();
        let mut woken = slot.admit();
        if asked {
            woken.extend(slot.followers().next()); // from now on it asks for all
        }
        if slot.holders.is_empty() {
            state.slots.remove(key);
            let (held, room) = (state.slots.len(), state.slots.capacity());
            if room > 64 && held < room / 8 {
                state.slots.shrink_to(held * 2);
            }
        }
        if closed || state.slots.is_empty() {
            self.idle.notify_all();
        }
        drop(state); // let go before waking
        woken.iter().for_each(|inbox| inbox.wake());
    }
}

impl fmt::Debug for LockTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gate(..)")
    }
}

impl LockTable {
    /// Whether somebody holds the slot of a key, or wants it. It may be otherwise a moment later.
    pub(crate) fn is_busy(&self, key: &Key) -> bool {
        self.state.lock().slots.contains_key(key)
    }
}
