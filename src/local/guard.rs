//! The entries that a thread holds: attaches the lease, releases them or hands them off.
//!
//! A [`LocalGuard`] holds the entries of a lock's keys while its thread asks the nodes and while it
//! holds the lock. It never asks a node: the engine does, and attaches the lease.
//!
//! An uncontended acquire locks the table twice: to enter the entries (`local/acquire.rs`), and to
//! attach the lease.
//!
//! Tests: `src/tests/local/lock_table.rs`, also under loom; `src/tests/engine/handoff.rs`.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use crate::config::settings::TtlLimits;
use crate::local::entry::KeyEntry;
use crate::local::handoff::{FormerRelease, Handoff, HandoffOffer, HandoffTarget};
use crate::local::lock_table::LockTable;
use crate::local::request::AccessMode;
use crate::protocol::key_set::KeySet;
use crate::protocol::lease::Lease;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::time::clock;
use crate::transport::inbox::Inbox;

/// Holds the entry of each of a lock's keys until it is dropped, unless a waiter evicts it.
///
/// `K` has the keys: [`PendingKeys`] while the thread asks the nodes, and then the lease, so that a
/// held lock has its keys once.
pub(crate) struct LocalGuard<K: HasKeys = PendingKeys> {
    table: Arc<LockTable>,
    keys: K,
    /// [`RELEASED`] once the entries were released or handed off.
    ticket: AtomicU64,
}

/// The ticket of no thread.
const RELEASED: u64 = 0;

/// A value from which a guard has its keys.
pub(crate) trait HasKeys {
    fn keys(&self) -> &KeySet;

    /// Returns whether the release of a guard without a lease wakes those that watch the table.
    fn wakes_watchers(&self) -> bool {
        true
    }
}

/// The keys of a guard while its thread asks the nodes.
pub(crate) struct PendingKeys {
    keys: KeySet,
    /// The thread makes a single attempt, and others follow.
    is_one_of_many: AtomicBool,
}

impl HasKeys for PendingKeys {
    fn keys(&self) -> &KeySet {
        &self.keys
    }

    fn wakes_watchers(&self) -> bool {
        !self.is_one_of_many.load(Ordering::Relaxed)
    }
}

impl HasKeys for Arc<Lease> {
    fn keys(&self) -> &KeySet {
        Lease::keys(self)
    }
}

impl LocalGuard {
    pub(super) fn new(table: &Arc<LockTable>, keys: &KeySet, ticket: u64) -> LocalGuard {
        LocalGuard {
            table: Arc::clone(table),
            keys: PendingKeys {
                keys: keys.clone(),
                is_one_of_many: AtomicBool::new(false),
            },
            ticket: AtomicU64::new(ticket),
        }
    }

    /// Lets a release without a lease wake no
    /// [`TableWatch`](crate::local::acquire_any::TableWatch): a thread that asks for several locks
    /// in turn would wake itself, and others like it.
    pub(crate) fn end_unnoticed(&self) {
        self.keys.is_one_of_many.store(true, Ordering::Relaxed);
    }

    /// Returns the guard with the keys of the lease, which is attached.
    pub(crate) fn with_keys_of(self, lease: &Arc<Lease>) -> LocalGuard<Arc<Lease>> {
        LocalGuard {
            table: Arc::clone(&self.table),
            keys: Arc::clone(lease),
            ticket: AtomicU64::new(self.ticket.swap(RELEASED, Ordering::Relaxed)),
        }
    }
}

impl LocalGuard<Arc<Lease>> {
    pub(crate) fn lease(&self) -> &Arc<Lease> {
        &self.keys
    }
}

impl<K: HasKeys> LocalGuard<K> {
    fn ticket(&self) -> u64 {
        self.ticket.load(Ordering::Relaxed)
    }

    /// Returns the ticket for the release of the entries; `None` if they were released before.
    fn take_ticket(&self) -> Option<u64> {
        let ticket = self.ticket.swap(RELEASED, Ordering::Relaxed);
        (ticket != RELEASED).then_some(ticket)
    }

    /// Attaches the lease that the nodes granted. Returns `false` if the table was closed before, or
    /// a key has no entry.
    pub(crate) fn attach_lease(&self, lease: &Arc<Lease>) -> bool {
        let now = clock::now();
        let mut state = self.table.state.lock();
        if self.table.is_closed() {
            return false;
        }
        let mut woken = Vec::new();
        for key in self.keys().as_slice() {
            let Some(entry) = state.entries.get_mut(key) else {
                return false;
            };
            if let Some(holder) = entry.holder(self.ticket()) {
                holder.attach(lease);
            }
            // The first waiter now has an expiry to watch.
            woken.extend(entry.waiter_to_wake(now, lease.expiry(now)));
            woken.extend(followers_to_wake(entry));
        }
        drop(state); // unlock before waking
        woken.iter().for_each(|inbox| inbox.wake());
        true
    }

    /// Returns whether another pending holder asks the nodes for this one, too. If so, the caller
    /// may sleep: it is woken when that holder's lease is attached or its guard released.
    pub(crate) fn follow_leader(&self) -> bool {
        let mut state = self.table.state.lock();
        let Some(entry) = state.entries.get_mut(self.keys().first()) else {
            return false;
        };
        if let Some(holder) = entry.holder(self.ticket()) {
            (holder.following, holder.refused_by_nodes) = (false, true);
        }
        let mut pending = entry.holders.iter_mut().filter(|h| h.lease.is_none());
        let leader = pending.next();
        let follower = pending.find(|h| h.ticket == self.ticket());
        match (leader, follower) {
            (Some(_), Some(follower)) => {
                follower.following = true;
                true
            }
            _ => false,
        }
    }

    /// Returns whether an earlier thread waits for a permit that the nodes refused. If so, the
    /// caller may sleep as with [`follow_leader`](LocalGuard::follow_leader).
    pub(crate) fn has_earlier_waiter(&self) -> bool {
        let mut state = self.table.state.lock();
        let entry = state.entries.get_mut(self.keys().first());
        entry.is_some_and(|entry| entry.follow_earlier_waiter(self.ticket()))
    }

    /// Gives the holder of a local permit the lowest number that no other holder has, and returns
    /// it.
    pub(crate) fn draw_permit_number(&self) -> u16 {
        let mut state = self.table.state.lock();
        let entry = state.entries.get_mut(self.keys().first());
        entry.map_or(0, |entry| entry.draw_permit_number(self.ticket()))
    }

    /// Changes an exclusive hold into a shared one and admits the readers that wait.
    pub(crate) fn downgrade(&self) {
        let mut state = self.table.state.lock();
        let Some(entry) = state.entries.get_mut(self.keys().first()) else {
            return;
        };
        if let Some(holder) = entry.holder(self.ticket()) {
            holder.mode = AccessMode::Shared;
        }
        let admitted = entry.admit();
        drop(state); // unlock before waking
        admitted.iter().for_each(|inbox| inbox.wake());
    }

    pub(crate) fn keys(&self) -> &KeySet {
        self.keys.keys()
    }

    /// Returns the limits of the TTL if the lock is held in this process alone.
    pub(crate) fn ttl_limits(&self) -> TtlLimits {
        self.table.ttl_limits()
    }

    /// Returns whether this process was forked after the keys were acquired.
    pub(crate) fn is_forked(&self) -> bool {
        self.table.is_forked()
    }

    /// Releases the entries before the guard is dropped. A second call does nothing.
    pub(crate) fn release(&self) {
        if let Some(ticket) = self.take_ticket() {
            let (keys, wakes_watchers) = (self.keys().as_slice(), self.keys.wakes_watchers());
            keys.iter()
                .for_each(|key| self.table.release(key, ticket, wakes_watchers));
        }
    }

    /// Releases the entries as [`release`](LocalGuard::release) does, but keeps other threads out
    /// until `end`, if there is one.
    pub(crate) fn release_at(&self, end: Option<Instant>) {
        let Some(end) = end else {
            return self.release();
        };
        if let Some(ticket) = self.take_ticket() {
            self.table.keep(self.keys(), ticket, end);
        }
    }

    /// Hands the entry off to the first waiter, together with the lease that this thread releases
    /// on `nodes` nodes since `start`. `former` describes that release; it is called only for a
    /// waiter that accepts, with the table locked.
    ///
    /// The handoff is a promise: the caller must send the returned swap at once. The new holder
    /// undoes it if the nodes do not grant it.
    ///
    /// Returns `None` if the caller must release instead: the lock has several keys, the table is
    /// closed, or the entry does not hand off ([`KeyEntry::hand_off`]).
    pub(crate) fn hand_off(
        &self,
        start: Instant,
        nodes: usize,
        former: impl FnOnce() -> FormerRelease,
    ) -> Option<HandoffTarget> {
        let mut state = self.table.state.lock();
        if self.table.is_closed() {
            return None;
        }
        let entry = state.entries.get_mut(self.keys().single()?)?;
        let mut former_lease = None;
        let accepted = entry.hand_off(self.ticket(), start, nodes, |round| {
            let former = former();
            former_lease = Some(Arc::clone(&former.lease));
            Handoff { former, round }
        })?;
        self.ticket.store(RELEASED, Ordering::Relaxed);
        drop(state); // unlock before the swap is sent
        let HandoffOffer { mut swap, .. } = accepted.offer;
        swap.former_lease = former_lease;
        Some(HandoffTarget {
            swap,
            inbox: accepted.inbox,
            round: accepted.round,
        })
    }

    /// Takes the handoff that came with the entry, if there is one. A second call returns `None`.
    pub(crate) fn take_handoff(&self) -> Option<Handoff> {
        let mut state = self.table.state.lock();
        let entry = state.entries.get_mut(self.keys().single()?)?;
        entry.holder(self.ticket())?.take_handoff()
    }
}

/// Ends the following of the holders that may get a lease after this grant. Returns their inboxes.
///
/// A lock that is granted to one reader is likely to be granted to all. Permits are granted one by
/// one, so only the next follower of a semaphore asks.
fn followers_to_wake(entry: &mut KeyEntry) -> impl Iterator<Item = Arc<Inbox>> {
    let is_limited = |mode| matches!(mode, AccessMode::Limited(_));
    let counts_permits = entry.holders.iter().any(|holder| is_limited(holder.mode));
    let max = if counts_permits { 1 } else { usize::MAX };
    entry.followers().take(max)
}

impl<K: HasKeys> Drop for LocalGuard<K> {
    fn drop(&mut self) {
        self.release();
    }
}

impl<K: HasKeys> fmt::Debug for LocalGuard<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LocalGuard({:?})", self.keys())
    }
}
