//! The gate before the nodes: threads of one process queue here for a key, first come, first served, readers together.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::local::entry::{Access, Holder, Refused, Slot, Waiter};
use crate::local::handoff::Offer;
use crate::protocol::key::Key;
use crate::protocol::key_set::Keys;
use crate::protocol::lease::Lease;
use crate::sync::primitives::{Condvar, Mutex, MutexGuard};
use crate::time::clock;
use crate::transport::inbox::Inbox;

/// One slot per key that is held or waited for; keys at rest take no memory.
///
/// A slot is held by one alone, or shared by any number, or by so many at most (permits). Its queue is strict: who comes
/// later waits, also a reader behind a writer that waits while readers hold it, so neither side starves.
///
/// A slot has no clock of its own. The first in the queue may take it from a holder whose lease is lost, and makes
/// the lease lost itself when its expiry has passed (rule S8): so one hung thread cannot block its process for
/// ever. A holder that is still asking for its lease, or whose lock does not expire, cannot be passed over.
pub(crate) struct Gate {
    pub(crate) state: Mutex<State>,
    emptied: Condvar,
    process: u32,
}

pub(crate) struct State {
    pub(crate) slots: HashMap<Key, Slot>,
    last_ticket: u64,
    last_number: u64,
    pub(crate) closed: bool,
}

/// A place in the slot of each of a lock's keys, for as long as it is not dropped and no waiter has taken it over.
pub(crate) struct Pass {
    pub(crate) gate: Arc<Gate>,
    pub(crate) keys: Keys,
    pub(crate) ticket: u64,
    pub(crate) left: AtomicBool,
}

impl Gate {
    pub(crate) fn new() -> Gate {
        Gate {
            state: Mutex::new(State {
                slots: HashMap::new(),
                last_ticket: 0,
                last_number: 0,
                closed: false,
            }),
            emptied: Condvar::new(),
            process: std::process::id(),
        }
    }

    /// Waits for the slots of all keys, at most until `end` (`None`: for ever), in each behind all that came before.
    ///
    /// They are entered one after the other, in the order of their names: who waits for one holds only such as are before it,
    /// so no two wait for each other.
    ///
    /// Leases that this call makes lost go to `settle`: their release and the telling are owed.
    pub(crate) fn enter(
        self: &Arc<Self>,
        keys: &Keys,
        access: Access,
        inbox: &Arc<Inbox>,
        end: Option<Instant>,
        settle: impl Fn(&Arc<Lease>),
    ) -> Result<Pass, Refused> {
        self.enter_offering(keys, access, None, inbox, end, settle)
    }

    /// The same for one who can be handed the lock together with its slot ([`Pass::baton`]).
    pub(crate) fn enter_offering(
        self: &Arc<Self>,
        keys: &Keys,
        access: Access,
        offer: Option<&Offer>,
        inbox: &Arc<Inbox>,
        end: Option<Instant>,
        settle: impl Fn(&Arc<Lease>),
    ) -> Result<Pass, Refused> {
        if self.is_forked() {
            return Err(Refused::Closed);
        }
        let mut state = self.state.lock();
        if state.closed {
            return Err(Refused::Closed);
        }
        state.last_ticket += 1;
        let ticket = state.last_ticket;
        for (entered, key) in keys.all().iter().enumerate() {
            let me = Waiter {
                ticket,
                access,
                inbox: Arc::clone(inbox),
                offer: offer.cloned(),
                looks: None,
            };
            match self.enter_one(state, key, me, end, &settle) {
                Ok(next) => state = next,
                Err(refused) => {
                    let entered = &keys.all()[..entered];
                    entered.iter().for_each(|key| self.leave(key, ticket));
                    return Err(refused);
                }
            }
        }
        drop(state);
        Ok(Pass {
            gate: Arc::clone(self),
            keys: keys.clone(),
            ticket,
            left: AtomicBool::new(false),
        })
    }

    /// Waits for the slot of one key.
    fn enter_one<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        key: &Key,
        me: Waiter,
        end: Option<Instant>,
        settle: &impl Fn(&Arc<Lease>),
    ) -> Result<MutexGuard<'a, State>, Refused> {
        let (ticket, access, inbox) = (me.ticket, me.access, Arc::clone(&me.inbox));
        let slot = state.slots.entry(key.clone()).or_insert_with(Slot::new);
        if let (Access::Counted(_), Some(other)) = (access, slot.other_count(access)) {
            return Err(Refused::OtherPermits(other));
        }
        if slot.queue.is_empty() && slot.admits(access) {
            slot.holders.push(Holder::from(me));
            return Ok(state);
        }
        slot.queue.push_back(me);
        loop {
            let now = clock::now();
            let (closed, cancelled) = (state.closed, inbox.is_cancelled());
            // While we are in the queue or hold it, the slot is there.
            let Some(slot) = state.slots.get_mut(key) else {
                return Err(Refused::Closed);
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
                    (true, _) => Refused::Closed,
                    (false, true) => Refused::Cancelled,
                    (false, false) => slot.busy(ticket, access, now),
                };
                slot.queue.retain(|waiter| waiter.ticket != ticket);
                let first = slot.first();
                drop(state); // let go before waking
                if let Some(first) = first {
                    first.wake(); // it may get in now, as a reader behind a writer, or has the holders' leases to watch
                }
                return Err(refused);
            }
            let wake = clock::earlier(end, slot.look_again(ticket, now));
            drop(state); // let go while asleep
            inbox.sleep(wake);
            state = self.state.lock();
        }
    }

    /// One more than before: the fencing token of one who holds a slot alone.
    pub(crate) fn next_number(&self) -> u64 {
        let mut state = self.state.lock();
        state.last_number += 1;
        state.last_number
    }

    /// Something about a holder's lease has changed: lets the first in the queue of each of its keys look.
    pub(crate) fn poke(&self, keys: &Keys) {
        let state = self.state.lock();
        let slots = keys.all().iter().filter_map(|key| state.slots.get(key));
        let first: Vec<_> = slots.filter_map(Slot::first).collect();
        if state.closed {
            self.emptied.notify_all(); // a lease that is lost need not be waited for
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
        self.process != std::process::id()
    }

    /// Waits until nobody is still asking for a lease, at most until `end`. `false` if somebody is.
    pub(crate) fn wait_settled(&self, end: Instant) -> bool {
        let asking = |state: &State| state.slots.values().any(Slot::is_asking);
        let mut state = self.state.lock();
        while asking(&state) {
            if self.emptied.wait_until(&mut state, end).timed_out() {
                return !asking(&state);
            }
        }
        true
    }

    /// Waits until no slot is held, at most until `end`; answers the leases of those that still are. Who has lost its lease is
    /// not waited for. `settle` as for [`enter`](Gate::enter).
    pub(crate) fn wait_empty(
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
            match clock::earlier(end, expiries.min()) {
                None => self.emptied.wait(&mut state),
                Some(end) => _ = self.emptied.wait_until(&mut state, end),
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
    pub(crate) fn behind(&self, key: &Key) -> (usize, usize) {
        let state = self.state.lock();
        state.slots.get(key).map_or((0, 0), |slot| {
            let following = slot.holders.iter().filter(|holder| holder.follows);
            (following.count(), slot.queue.len())
        })
    }

    fn leave(&self, key: &Key, ticket: u64) {
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
            self.emptied.notify_all();
        }
        drop(state); // let go before waking
        woken.iter().for_each(|inbox| inbox.wake());
    }
}

impl Pass {
    /// The nodes granted this lease for the slots; `false` if the gate has been closed meanwhile.
    pub(crate) fn bind(&self, lease: &Arc<Lease>) -> bool {
        let now = clock::now();
        let mut state = self.gate.state.lock();
        if state.closed {
            return false;
        }
        let mut woken = Vec::new();
        for key in self.keys.all() {
            let Some(slot) = state.slots.get_mut(key) else {
                return false;
            };
            if let Some(me) = slot.holder(self.ticket) {
                me.lease = Some(Arc::clone(lease));
            }
            // It has an expiry to watch now.
            woken.extend(slot.first_to_look(now, lease.expiry(now)));
            let is_counted = slot
                .holders
                .iter()
                .any(|holder| matches!(holder.access, Access::Counted(_)));
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
    pub(crate) fn follow(&self) -> bool {
        let mut state = self.gate.state.lock();
        let Some(slot) = state.slots.get_mut(self.keys.first()) else {
            return false;
        };
        if let Some(me) = slot.holder(self.ticket) {
            (me.follows, me.refused) = (false, true);
        }
        let mut asking = slot.holders.iter_mut().filter(|h| h.lease.is_none());
        let (first, me) = (asking.next(), asking.find(|h| h.ticket == self.ticket));
        match (first, me) {
            (Some(_), Some(me)) => {
                me.follows = true;
                true
            }
            _ => false,
        }
    }

    /// Whether others came before who were refused and wait for a permit. Then this one may sleep, as with
    /// [`follow`](Pass::follow).
    pub(crate) fn is_behind(&self) -> bool {
        let mut state = self.gate.state.lock();
        let slot = state.slots.get_mut(self.keys.first());
        slot.is_some_and(|slot| slot.follow_refused(self.ticket))
    }

    /// Shares from now on what it held alone.
    pub(crate) fn share(&self) {
        let mut state = self.gate.state.lock();
        let Some(slot) = state.slots.get_mut(self.keys.first()) else {
            return;
        };
        if let Some(me) = slot.holder(self.ticket) {
            me.access = Access::Shared;
        }
        let woken = slot.admit();
        drop(state); // let go before waking
        woken.iter().for_each(|inbox| inbox.wake());
    }

    pub(crate) fn keys(&self) -> &Keys {
        &self.keys
    }

    pub(crate) fn is_forked(&self) -> bool {
        self.gate.is_forked()
    }

    /// Hands the slots on before the pass is dropped.
    pub(crate) fn leave(&self) {
        if !self.left.swap(true, Ordering::Relaxed) {
            let keys = self.keys.all().iter();
            keys.for_each(|key| self.gate.leave(key, self.ticket));
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.leave();
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gate(..)")
    }
}

impl fmt::Debug for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pass({:?})", self.keys)
    }
}
