//! The gate before the nodes: threads of one process queue here for a key, first come, first served.

use std::collections::VecDeque;
use std::collections::hash_map::{Entry, HashMap};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
    left: AtomicBool,
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
        if self.is_forked() {
            return Err(Refused::Closed);
        }
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
            left: AtomicBool::new(false),
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

    /// Whether this process is a child that was forked off the one with the gate's threads.
    pub(crate) fn is_forked(&self) -> bool {
        self.process != std::process::id()
    }

    /// Waits until nobody is still asking for a lease, at most until `end`. `false` if somebody is.
    pub(crate) fn wait_settled(&self, end: Instant) -> bool {
        let asking = |state: &State| state.slots.values().any(|slot| slot.holder.lease.is_none());
        let mut state = self.state.lock();
        while asking(&state) {
            if self.emptied.wait_until(&mut state, end).timed_out() {
                return !asking(&state);
            }
        }
        true
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

    /// How many threads queue for a key.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn waiting(&self, key: &Key) -> usize {
        let state = self.state.lock();
        state.slots.get(key).map_or(0, |slot| slot.queue.len())
    }

    fn leave(&self, key: &Key, ticket: u64) {
        if self.is_forked() {
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
        if held == 0 || state.closed {
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

    pub(crate) fn is_forked(&self) -> bool {
        self.gate.is_forked()
    }

    /// Hands the slot on before the pass is dropped.
    pub(crate) fn leave(&self) {
        if !self.left.swap(true, Ordering::Relaxed) {
            self.gate.leave(&self.key, self.ticket);
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::tests::lease;

    fn key() -> Key {
        Key::parse("test:", "x").unwrap()
    }

    fn enter(gate: &Arc<Gate>, end: Option<Instant>) -> Result<Entered, Refused> {
        gate.enter(&key(), &Arc::new(Inbox::new()), end)
    }

    #[cfg(not(loom))]
    mod table {
        use super::*;
        use crate::fake::eventually;
        use std::sync::atomic::{AtomicU64, Ordering};
        use std::thread;

        #[test]
        fn threads_get_the_slot_in_the_order_in_which_they_came() {
            let gate = Arc::new(Gate::new());
            let first = enter(&gate, None).unwrap();
            let order = Mutex::new(Vec::new());
            thread::scope(|scope| {
                for number in 0..8 {
                    let (gate, order) = (&gate, &order);
                    scope.spawn(move || {
                        let entered = enter(gate, None).unwrap();
                        order.lock().push(number);
                        drop(entered);
                    });
                    eventually("it queues", || gate.waiting(&key()) == number + 1);
                }
                drop(first);
            });
            assert_eq!(*order.lock(), (0..8).collect::<Vec<_>>());
            assert!(gate.state.lock().slots.is_empty());
        }

        #[test]
        fn one_inside_at_a_time() {
            let gate = Arc::new(Gate::new());
            let inside = AtomicU64::new(0);
            thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| {
                        for _ in 0..2_000 {
                            let entered = enter(&gate, None).unwrap();
                            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                            inside.fetch_sub(1, Ordering::SeqCst);
                            drop(entered);
                        }
                    });
                }
            });
            assert!(gate.state.lock().slots.is_empty());
        }

        #[test]
        fn keys_at_rest_take_no_memory() {
            let gate = Arc::new(Gate::new());
            let mut passes = Vec::new();
            for n in 0..10_000 {
                let key = Key::parse("", &n.to_string()).unwrap();
                let inbox = Arc::new(Inbox::new());
                passes.push(gate.enter(&key, &inbox, None).unwrap());
            }
            drop(passes);
            let state = gate.state.lock();
            assert!(state.slots.is_empty() && state.slots.capacity() < 1_000);
        }

        #[test]
        fn a_time_out_leaves_the_queue_and_the_next_watches_the_lease() {
            let gate = Arc::new(Gate::new());
            let entered = enter(&gate, None).unwrap();
            let lease = lease("x");
            let soon = time::now() + Duration::from_millis(500);
            let end = time::now() + Duration::from_secs(2);
            lease.hold(end);
            entered.pass.bind(&lease);
            thread::scope(|scope| {
                let first = scope.spawn(|| enter(&gate, Some(soon)).err());
                eventually("it queues", || gate.waiting(&key()) > 0);
                let second = scope.spawn(|| enter(&gate, None).unwrap());
                let refused = first.join().unwrap();
                assert!(matches!(refused, Some(Refused::Busy(Some(_)))));
                // Nobody leaves: the second gets in because it has made the lease lost.
                let second = second.join().unwrap();
                assert!(time::now() >= lease_end(end));
                assert!(
                    second
                        .expired
                        .is_some_and(|lost| Arc::ptr_eq(&lost, &lease))
                );
                drop(entered);
                assert!(
                    enter(&gate, Some(time::now())).is_err(),
                    "still the second's"
                );
                drop(second.pass);
                assert!(enter(&gate, Some(time::now())).is_ok());
            });
        }

        /// A lease's expiry is kept in whole microseconds.
        fn lease_end(end: Instant) -> Instant {
            time::instant(time::micros(end)).unwrap()
        }

        #[test]
        fn who_is_behind_another_does_not_pass_it() {
            let gate = Arc::new(Gate::new());
            let entered = enter(&gate, None).unwrap();
            let lease = lease("x");
            lease.hold(time::now() + Duration::from_secs(60));
            entered.pass.bind(&lease);
            thread::scope(|scope| {
                let first = scope.spawn(|| enter(&gate, None).unwrap());
                eventually("it queues", || gate.waiting(&key()) > 0);
                lease.lose();
                // The lease is lost, but the slot is for the one who came first.
                let busy = enter(&gate, Some(time::now())).unwrap_err();
                assert_eq!(busy, Refused::Busy(None));
                gate.poke(&key());
                let first = first.join().unwrap();
                assert!(first.expired.is_none(), "the loss was another's to tell");
            });
        }
    }

    /// All interleavings, by the model checker. Time does not pass in it: a wake-up that is lost is a dead-lock.
    #[cfg(loom)]
    mod loom_gate {
        use super::*;
        use loom::sync::atomic::AtomicU64;
        use std::sync::atomic::Ordering;

        #[test]
        fn loom_one_inside_and_no_wake_up_is_lost() {
            loom::model(|| {
                let gate = Arc::new(Gate::new());
                let inside = Arc::new(AtomicU64::new(0));
                let visit = |gate: &Arc<Gate>, inside: &AtomicU64| {
                    let entered = enter(gate, None).unwrap();
                    assert_eq!(inside.fetch_add(1, Ordering::Relaxed), 0, "two inside");
                    inside.fetch_sub(1, Ordering::Relaxed);
                    drop(entered);
                };
                let threads = [0; 2].map(|_| {
                    let (gate, inside) = (Arc::clone(&gate), Arc::clone(&inside));
                    loom::thread::spawn(move || visit(&gate, &inside))
                });
                visit(&gate, &inside);
                for thread in threads {
                    thread.join().unwrap();
                }
                assert!(gate.state.lock().slots.is_empty());
            });
        }

        #[test]
        fn loom_a_waiter_passes_a_holder_that_lost_its_lease() {
            let start = time::now();
            loom::model(move || {
                let gate = Arc::new(Gate::new());
                let holder = enter(&gate, None).unwrap();
                let waiter = {
                    let gate = Arc::clone(&gate);
                    loom::thread::spawn(move || drop(enter(&gate, None).unwrap()))
                };
                let lease = lease("x");
                assert!(lease.hold(start + Duration::from_secs(3600)));
                assert!(holder.pass.bind(&lease));
                // As a reply does that says the lock is not ours: the holder itself hangs and never leaves.
                assert!(lease.lose());
                gate.poke(&key());
                waiter.join().unwrap();
                drop(holder);
                assert!(gate.state.lock().slots.is_empty());
            });
        }

        #[test]
        fn loom_closing_reaches_every_waiter() {
            loom::model(|| {
                let gate = Arc::new(Gate::new());
                let holder = enter(&gate, None).unwrap();
                let waiter = {
                    let gate = Arc::clone(&gate);
                    loom::thread::spawn(move || enter(&gate, None).map(drop))
                };
                gate.close();
                assert_eq!(waiter.join().unwrap(), Err(Refused::Closed));
                drop(holder);
            });
        }
    }
}
