//! The gate before the nodes: threads of one process queue here for a key, first come, first served.

use std::collections::VecDeque;
use std::collections::hash_map::{Entry, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::inbox::Inbox;
use crate::key::Key;
use crate::lease::{Lease, Look};
use crate::sync::{Condvar, Mutex};
use crate::time;

/// One slot per key that is held or waited for; keys at rest take no memory.
///
/// A slot has no clock of its own. The first in the queue may take it from a holder whose lease is lost, and makes
/// the lease lost itself when its expiry has passed (rule S8): so one hung thread cannot block its process for
/// ever. A holder that is still asking for its lease, or whose lock does not expire, cannot be passed over.
pub(crate) struct Gate {
    state: Mutex<State>,
    emptied: Condvar,
    process: u32,
}

struct State {
    slots: HashMap<Key, Slot>,
    last_ticket: u64,
    closed: bool,
}

struct Slot {
    holder: Holder,
    queue: VecDeque<Waiter>,
}

struct Holder {
    ticket: u64,
    /// Known once the nodes have granted it.
    lease: Option<Arc<Lease>>,
    /// To wake it while it is still asking.
    inbox: Arc<Inbox>,
}

struct Waiter {
    ticket: u64,
    inbox: Arc<Inbox>,
}

/// The slot of a key, for as long as it is not dropped and no waiter has taken it over.
pub(crate) struct Pass {
    gate: Arc<Gate>,
    key: Key,
    ticket: u64,
}

/// What a thread finds when it gets the slot.
#[derive(Debug)]
pub(crate) struct Entered {
    pub(crate) pass: Pass,
    /// The lease of a holder that this call made lost: its release and the telling are owed.
    pub(crate) expired: Option<Arc<Lease>>,
}

/// Why a thread did not get the slot.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Its time was over. The holder's lease ends then, if it has one.
    Busy(Option<Duration>),
    Closed,
}

impl Gate {
    pub(crate) fn new() -> Gate {
        Gate {
            state: Mutex::new(State {
                slots: HashMap::new(),
                last_ticket: 0,
                closed: false,
            }),
            emptied: Condvar::new(),
            process: std::process::id(),
        }
    }

    /// Waits for the slot of `key`, at most until `end` (`None`: for ever), behind all that came before.
    pub(crate) fn enter(
        self: &Arc<Self>,
        key: &Key,
        inbox: &Arc<Inbox>,
        end: Option<Instant>,
    ) -> Result<Entered, Refused> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(Refused::Closed);
        }
        state.last_ticket += 1;
        let ticket = state.last_ticket;
        let me = |lease| Holder {
            ticket,
            lease,
            inbox: Arc::clone(inbox),
        };
        let pass = || Pass {
            gate: Arc::clone(self),
            key: key.clone(),
            ticket,
        };
        let slot = match state.slots.entry(key.clone()) {
            Entry::Occupied(slot) => slot.into_mut(),
            Entry::Vacant(vacant) => {
                vacant.insert(Slot {
                    holder: me(None),
                    queue: VecDeque::new(),
                });
                return Ok(Entered {
                    pass: pass(),
                    expired: None,
                });
            }
        };
        slot.queue.push_back(Waiter {
            ticket,
            inbox: Arc::clone(inbox),
        });
        loop {
            let now = time::now();
            let closed = state.closed;
            // While we are in the queue or hold it, the slot is there.
            let Some(slot) = state.slots.get_mut(key) else {
                return Err(Refused::Closed);
            };
            if slot.holder.ticket == ticket {
                return Ok(Entered {
                    pass: pass(),
                    expired: None,
                });
            }
            let first = slot.queue.front().is_some_and(|w| w.ticket == ticket);
            let look = match &slot.holder.lease {
                Some(lease) if first => lease.look(now),
                _ => Look::Trying,
            };
            if let Look::JustLost | Look::Lost = look {
                slot.queue.pop_front();
                let former = std::mem::replace(&mut slot.holder, me(None));
                return Ok(Entered {
                    pass: pass(),
                    expired: former.lease.filter(|_| look == Look::JustLost),
                });
            }
            let over = end.is_some_and(|end| end <= now);
            if over || closed {
                let refused = match (closed, &slot.holder.lease) {
                    (true, _) => Refused::Closed,
                    (false, lease) => Refused::Busy(lease.as_ref().and_then(|l| left(l, now))),
                };
                slot.queue.retain(|waiter| waiter.ticket != ticket);
                let next = slot.queue.front().filter(|_| first);
                let next = next.map(|waiter| Arc::clone(&waiter.inbox));
                drop(state); // let go before waking
                if let Some(next) = next {
                    next.wake(); // it is first now, and has the holder's lease to watch
                }
                return Err(refused);
            }
            let wake = match look {
                Look::Held(expiry) => time::earlier(end, Some(expiry)),
                _ => end,
            };
            drop(state); // let go while asleep
            inbox.sleep(wake);
            state = self.state.lock();
        }
    }

    /// Something about the holder's lease has changed: lets the first in the queue look.
    pub(crate) fn poke(&self, key: &Key) {
        let state = self.state.lock();
        let first = state.slots.get(key).and_then(|slot| slot.queue.front());
        let first = first.map(|waiter| Arc::clone(&waiter.inbox));
        drop(state); // let go before waking
        if let Some(first) = first {
            first.wake();
        }
    }

    /// From now on nobody gets in; who waits or is still asking is woken to see that.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let mut inboxes = Vec::new();
        for slot in state.slots.values() {
            inboxes.push(Arc::clone(&slot.holder.inbox));
            inboxes.extend(slot.queue.iter().map(|waiter| Arc::clone(&waiter.inbox)));
        }
        drop(state); // let go before waking
        inboxes.iter().for_each(|inbox| inbox.wake());
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Waits until no slot is held, at most until `end`; answers the leases of those that still are.
    pub(crate) fn wait_empty(&self, end: Option<Instant>) -> Vec<Arc<Lease>> {
        let mut state = self.state.lock();
        while !state.slots.is_empty() {
            match end {
                None => self.emptied.wait(&mut state),
                Some(end) if self.emptied.wait_until(&mut state, end).timed_out() => break,
                Some(_) => {}
            }
        }
        let leases = state.slots.values().map(|slot| slot.holder.lease.clone());
        leases.flatten().collect()
    }

    fn leave(&self, key: &Key, ticket: u64) {
        if self.process != std::process::id() {
            return; // a forked child has a copy of the lock, perhaps one that was held by another thread
        }
        let mut state = self.state.lock();
        let Some(slot) = state.slots.get_mut(key) else {
            return;
        };
        if slot.holder.ticket != ticket {
            return; // a waiter took it over when our lease was lost
        }
        if let Some(next) = slot.queue.pop_front() {
            slot.holder = Holder {
                ticket: next.ticket,
                lease: None,
                inbox: Arc::clone(&next.inbox),
            };
            drop(state); // let go before waking
            next.inbox.wake();
            return;
        }
        state.slots.remove(key);
        let (held, room) = (state.slots.len(), state.slots.capacity());
        if room > 64 && held < room / 8 {
            state.slots.shrink_to(held * 2);
        }
        if held == 0 {
            self.emptied.notify_all();
        }
    }
}

impl Pass {
    /// The nodes granted this lease for the slot; `false` if the gate has been closed meanwhile.
    pub(crate) fn bind(&self, lease: &Arc<Lease>) -> bool {
        let mut state = self.gate.state.lock();
        if state.closed {
            return false;
        }
        let Some(slot) = state.slots.get_mut(&self.key) else {
            return false;
        };
        slot.holder.lease = Some(Arc::clone(lease));
        let first = slot.queue.front().map(|waiter| Arc::clone(&waiter.inbox));
        drop(state); // let go before waking
        if let Some(first) = first {
            first.wake(); // it has an expiry to watch now
        }
        true
    }

    pub(crate) fn key(&self) -> &Key {
        &self.key
    }

    /// Hands the slot on before the pass is dropped. Doing so twice does no harm: a ticket is drawn once.
    pub(crate) fn leave(&self) {
        self.gate.leave(&self.key, self.ticket);
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.leave();
    }
}

/// What a holder's lease has left.
fn left(lease: &Lease, now: Instant) -> Option<Duration> {
    match lease.peek(now) {
        Look::Held(expiry) => Some(expiry.saturating_duration_since(now)),
        _ => None,
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gate(..)")
    }
}

impl fmt::Debug for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pass({:?})", self.key)
    }
}
