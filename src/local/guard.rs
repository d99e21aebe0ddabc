//! Acquires keys in this process, and releases or hands them off.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::local::entry::{AccessMode, KeyEntry, LocalHolder, LocalWaiter, Refusal};
use crate::local::handoff::{Handoff, HandoffOffer, HandoffTarget};
use crate::local::lock_table::{LockTable, LockTableState};
use crate::protocol::key::Key;
use crate::protocol::key_set::KeySet;
use crate::protocol::lease::Lease;
use crate::sync::primitives::MutexGuard;
use crate::time::{clock, deadline};
use crate::transport::inbox::Inbox;

/// A place in the slot of each of a lock's keys, for as long as it is not dropped and no waiter has taken it over.
pub(crate) struct LocalGuard {
    pub(crate) gate: Arc<LockTable>,
    pub(crate) keys: KeySet,
    pub(crate) ticket: u64,
    pub(crate) released: AtomicBool,
}

impl LockTable {
    /// Waits for the slots of all keys, at most until `end` (`None`: for ever), in each behind all that came before.
    ///
    /// They are entered one after the other, in the order of their names: who waits for one holds only such as are before it,
    /// so no two wait for each other.
    ///
    /// Leases that this call makes lost go to `settle`: their release and the telling are owed.
    pub(crate) fn acquire(
        self: &Arc<Self>,
        keys: &KeySet,
        access: AccessMode,
        inbox: &Arc<Inbox>,
        end: Option<Instant>,
        settle: impl Fn(&Arc<Lease>),
    ) -> Result<LocalGuard, Refusal> {
        self.acquire_offering(keys, access, None, inbox, end, settle)
    }

    /// The same for one who can be handed the lock together with its slot ([`LocalGuard::take_handoff`]).
    pub(crate) fn acquire_offering(
        self: &Arc<Self>,
        keys: &KeySet,
        access: AccessMode,
        offer: Option<&HandoffOffer>,
        inbox: &Arc<Inbox>,
        end: Option<Instant>,
        settle: impl Fn(&Arc<Lease>),
    ) -> Result<LocalGuard, Refusal> {
        if self.is_forked() {
            return Err(Refusal::Closed);
        }
        let mut state = self.state.lock();
        if state.closed {
            return Err(Refusal::Closed);
        }
        state.last_ticket += 1;
        let ticket = state.last_ticket;
        for (entered, key) in keys.as_slice().iter().enumerate() {
            let me = LocalWaiter {
                ticket,
                access,
                inbox: Arc::clone(inbox),
                offer: offer.cloned(),
                rechecks_at: None,
            };
            match self.acquire_key(state, key, me, end, &settle) {
                Ok(next) => state = next,
                Err(refused) => {
                    let entered = &keys.as_slice()[..entered];
                    entered.iter().for_each(|key| self.release(key, ticket));
                    return Err(refused);
                }
            }
        }
        drop(state);
        Ok(LocalGuard {
            gate: Arc::clone(self),
            keys: keys.clone(),
            ticket,
            released: AtomicBool::new(false),
        })
    }

    /// Waits for the slot of one key.
    fn acquire_key<'a>(
        &'a self,
        mut state: MutexGuard<'a, LockTableState>,
        key: &Key,
        me: LocalWaiter,
        end: Option<Instant>,
        settle: &impl Fn(&Arc<Lease>),
    ) -> Result<MutexGuard<'a, LockTableState>, Refusal> {
        let (ticket, access, inbox) = (me.ticket, me.access, Arc::clone(&me.inbox));
        let slot = state.slots.entry(key.clone()).or_insert_with(KeyEntry::new);
        if let (AccessMode::Limited(_), Some(other)) = (access, slot.conflicting_limit(access)) {
            return Err(Refusal::PermitCountMismatch(other));
        }
        if slot.queue.is_empty() && slot.admits(access) {
            slot.holders.push(LocalHolder::from(me));
            return Ok(state);
        }
        slot.queue.push_back(me);
        loop {
            let now = clock::now();
            let (closed, cancelled) = (state.closed, inbox.is_cancelled());
            // While we are in the queue or hold it, the slot is there.
            let Some(slot) = state.slots.get_mut(key) else {
                return Err(Refusal::Closed);
            };
            if slot.holder(ticket).is_some() {
                return Ok(state);
            }
            let first = slot.queue.front().is_some_and(|w| w.ticket == ticket);
            if first {
                let lost = slot.evict(now);
                let admitted = slot.admit();
                if !lost.is_empty() || !admitted.is_empty() {
                    drop(state); // let go before waking and telling
                    let others = admitted.iter().filter(|other| !Arc::ptr_eq(other, &inbox));
                    others.for_each(|inbox| inbox.wake());
                    lost.iter().for_each(settle);
                    state = self.state.lock();
                    continue;
                }
            }
            let over = end.is_some_and(|end| end <= now);
            if over || closed || cancelled {
                let refused = match (closed, cancelled) {
                    (true, _) => Refusal::Closed,
                    (false, true) => Refusal::Cancelled,
                    (false, false) => slot.busy_refusal(ticket, access, now),
                };
                slot.queue.retain(|waiter| waiter.ticket != ticket);
                let first = slot.first();
                drop(state); // let go before waking
                if let Some(first) = first {
                    first.wake(); // it may get in now, as a reader behind a writer, or has the holders' leases to watch
                }
                return Err(refused);
            }
            let wake = deadline::earlier(end, slot.schedule_recheck(ticket, now));
            drop(state); // let go while asleep
            inbox.sleep(wake);
            state = self.state.lock();
        }
    }
}

impl LocalGuard {
    /// The nodes granted this lease for the slots; `false` if the gate has been closed meanwhile.
    pub(crate) fn attach_lease(&self, lease: &Arc<Lease>) -> bool {
        let now = clock::now();
        let mut state = self.gate.state.lock();
        if state.closed {
            return false;
        }
        let mut woken = Vec::new();
        for key in self.keys.as_slice() {
            let Some(slot) = state.slots.get_mut(key) else {
                return false;
            };
            if let Some(me) = slot.holder(self.ticket) {
                me.lease = Some(Arc::clone(lease));
            }
            // It has an expiry to watch now.
            woken.extend(slot.waiter_to_wake(now, lease.expiry(now)));
            let is_counted = slot
                .holders
                .iter()
                .any(|holder| matches!(holder.access, AccessMode::Limited(_)));
            // What was granted to one who shares is likely to be granted to the others. A permit is not: they come one by one.
            woken.extend(
                slot.followers()
                    .take(if is_counted { 1 } else { usize::MAX }),
            );
        }
        drop(state); // let go before waking
        woken.iter().for_each(|inbox| inbox.wake());
        true
    }

    /// Of those that share the slot and wait for a lease one asks the nodes again and again. `true` where that is
    /// another: then this one may sleep, and is woken when that one is granted a lease or leaves.
    pub(crate) fn follow_leader(&self) -> bool {
        let mut state = self.gate.state.lock();
        let Some(slot) = state.slots.get_mut(self.keys.first()) else {
            return false;
        };
        if let Some(me) = slot.holder(self.ticket) {
            (me.following, me.refused_by_nodes) = (false, true);
        }
        let mut asking = slot.holders.iter_mut().filter(|h| h.lease.is_none());
        let (first, me) = (asking.next(), asking.find(|h| h.ticket == self.ticket));
        match (first, me) {
            (Some(_), Some(me)) => {
                me.following = true;
                true
            }
            _ => false,
        }
    }

    /// Whether others came before who were refused and wait for a permit. Then this one may sleep, as with
    /// [`follow_leader`](LocalGuard::follow_leader).
    pub(crate) fn has_earlier_waiter(&self) -> bool {
        let mut state = self.gate.state.lock();
        let slot = state.slots.get_mut(self.keys.first());
        slot.is_some_and(|slot| slot.follow_earlier_waiter(self.ticket))
    }

    /// Shares from now on what it held alone.
    pub(crate) fn downgrade(&self) {
        let mut state = self.gate.state.lock();
        let Some(slot) = state.slots.get_mut(self.keys.first()) else {
            return;
        };
        if let Some(me) = slot.holder(self.ticket) {
            me.access = AccessMode::Shared;
        }
        let woken = slot.admit();
        drop(state); // let go before waking
        woken.iter().for_each(|inbox| inbox.wake());
    }

    pub(crate) fn keys(&self) -> &KeySet {
        &self.keys
    }

    pub(crate) fn is_forked(&self) -> bool {
        self.gate.is_forked()
    }

    /// Hands the slots on before the pass is dropped.
    pub(crate) fn release(&self) {
        if !self.released.swap(true, Ordering::Relaxed) {
            let keys = self.keys.as_slice().iter();
            keys.for_each(|key| self.gate.release(key, self.ticket));
        }
    }
}

impl Drop for LocalGuard {
    fn drop(&mut self) {
        self.release();
    }
}

impl fmt::Debug for LocalGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pass({:?})", self.keys)
    }
}

impl LocalGuard {
    /// Gives the slot to the first in the queue if that one can be handed the lock with it, whose lease is `former` and being
    /// released since `start`. What it is handed is a promise: `nodes` nodes are asked right after this, and who is handed it
    /// undoes it where that fails.
    ///
    /// `None` if the slot is not given: nobody waits, or the first cannot be handed it, or is cancelled, or its time is over; or
    /// the gate is closed; or this has gone on for long enough.
    pub(crate) fn hand_off(
        &self,
        former: &Arc<Lease>,
        start: Instant,
        lead: i64,
        nodes: usize,
    ) -> Option<HandoffTarget> {
        let mut state = self.gate.state.lock();
        if state.closed {
            return None;
        }
        let slot = state.slots.get_mut(self.keys.single()?)?;
        let handed = slot.hand_off(self.ticket, start, nodes, |round| Handoff {
            former: Arc::clone(former),
            start,
            lead,
            round,
        })?;
        self.released.store(true, Ordering::Relaxed);
        drop(state);
        let HandoffOffer { mut swap, .. } = handed.offer;
        swap.former_lease = Some(Arc::clone(former));
        Some(HandoffTarget {
            swap,
            inbox: handed.inbox,
            round: handed.round,
        })
    }

    /// What this one was handed with the slot, for the first who asks.
    pub(crate) fn take_handoff(&self) -> Option<Handoff> {
        let mut state = self.gate.state.lock();
        let slot = state.slots.get_mut(self.keys.single()?)?;
        slot.holder(self.ticket)?.handoff.take()
    }
}
