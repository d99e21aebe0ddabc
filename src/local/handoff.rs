//! How a lock goes from one thread to the next that waits for it here, without being free in between: the slot and what is
//! asked of the nodes change hands in one step.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::local::entry::{Access, Holder, Slot};
use crate::local::lock_table::{Gate, Pass};
use crate::protocol::key::Key;
use crate::protocol::lease::Lease;
use crate::protocol::request::Request;
use crate::time::clock;
use crate::transport::inbox::Inbox;

/// So often in a row a lock is handed on, and for so long: then it is free for a moment, so that other processes have their turn.
pub(crate) const MOST_IN_A_ROW: u32 = 16;
const LONGEST_ROW: Duration = Duration::from_millis(10);

/// What one who waits in a queue can be handed.
#[derive(Clone, Debug)]
pub(crate) struct Offer {
    /// What is asked of the nodes for it, but for the former lease.
    pub(crate) swap: Request,
    /// When its wait ends.
    pub(crate) end: Option<Instant>,
}

/// What one who holds the slot has been handed with it: a round of its inbox in which the nodes are asked to swap.
#[derive(Debug)]
pub(crate) struct Baton {
    pub(crate) former: Arc<Lease>,
    /// From before anything was sent; with the wall clock's lead at that time.
    pub(crate) start: Instant,
    pub(crate) lead: i64,
    pub(crate) round: u32,
}

/// Whom a slot was handed to, and what is to be asked for that one.
#[derive(Debug)]
pub(crate) struct Handed {
    pub(crate) swap: Request,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) round: u32,
}

/// How often a lock was handed on since it was free.
#[derive(Clone, Copy)]
pub(crate) struct Row {
    count: u32,
    since: Instant,
}

impl Gate {
    /// Whether somebody holds the slot of a key, or wants it. It may be otherwise a moment later.
    pub(crate) fn is_busy(&self, key: &Key) -> bool {
        self.state.lock().slots.contains_key(key)
    }
}

impl Pass {
    /// Gives the slot to the first in the queue if that one can be handed the lock with it, whose lease is `former` and being
    /// released since `start`. What it is handed is a promise: `nodes` nodes are asked right after this, and who is handed it
    /// undoes it where that fails.
    ///
    /// `None` if the slot is not given: nobody waits, or the first cannot be handed it, or is cancelled, or its time is over; or
    /// the gate is closed; or this has gone on for long enough.
    pub(crate) fn hand_on(
        &self,
        former: &Arc<Lease>,
        start: Instant,
        lead: i64,
        nodes: usize,
    ) -> Option<Handed> {
        let mut state = self.gate.state.lock();
        if state.closed {
            return None;
        }
        let slot = state.slots.get_mut(self.keys.only()?)?;
        let handed = slot.hand_on(self.ticket, start, nodes, |round| Baton {
            former: Arc::clone(former),
            start,
            lead,
            round,
        })?;
        self.left.store(true, Ordering::Relaxed);
        drop(state);
        let Offer { mut swap, .. } = handed.offer;
        swap.former = Some(Arc::clone(former));
        Some(Handed {
            swap,
            inbox: handed.inbox,
            round: handed.round,
        })
    }

    /// What this one was handed with the slot, for the first who asks.
    pub(crate) fn baton(&self) -> Option<Baton> {
        let mut state = self.gate.state.lock();
        let slot = state.slots.get_mut(self.keys.only()?)?;
        slot.holder(self.ticket)?.baton.take()
    }
}

/// What a waiter had, who is a holder now.
struct Taken {
    offer: Offer,
    inbox: Arc<Inbox>,
    round: u32,
}

impl Slot {
    fn hand_on(
        &mut self,
        ticket: u64,
        now: Instant,
        nodes: usize,
        baton: impl FnOnce(u32) -> Baton,
    ) -> Option<Taken> {
        let row = self.row.take().unwrap_or(Row {
            count: 0,
            since: now,
        });
        let is_over = row.count == MOST_IN_A_ROW || now >= row.since + LONGEST_ROW;
        let first = self.queue.front()?;
        let is_alone = self.holders.iter().all(|holder| holder.ticket == ticket);
        let waits = |offer: &Offer| offer.end.is_none_or(|end| end > now);
        let can = first.offer.as_ref().is_some_and(waits) && !first.inbox.is_cancelled();
        if is_over || !is_alone || !can || self.holders.is_empty() || first.access != Access::Alone
        {
            return None;
        }
        let mut next = self.queue.pop_front()?;
        let offer = next.offer.take()?;
        let inbox = Arc::clone(&next.inbox);
        let round = inbox.open_round(nodes);
        let mut next = Holder::from(next);
        next.baton = Some(baton(round));
        let ttl = Duration::from_millis(offer.swap.ttl);
        next.handed_until = clock::deadline(now, clock::validity(ttl));
        self.holders.clear();
        self.holders.push(next);
        self.row = Some(Row {
            count: row.count + 1,
            ..row
        });
        Some(Taken {
            offer,
            inbox,
            round,
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::local::entry::Waiter;
    use crate::protocol::lease::tests::lease;
    use crate::protocol::request::Verb;
    use crate::time::clock;

    const HOLDER: u64 = 1;

    fn waiter(ticket: u64, access: Access, end: Option<Option<Instant>>) -> Waiter {
        let offer = |end| Offer {
            swap: Request::new(Verb::Swap, &lease("x"), 1),
            end,
        };
        Waiter {
            ticket,
            access,
            inbox: Arc::new(Inbox::new()),
            offer: end.map(offer),
            looks: None,
        }
    }

    /// A slot that is held, with these in the queue.
    fn slot(access: Access, queue: impl IntoIterator<Item = Waiter>) -> Slot {
        let mut slot = Slot::new();
        slot.holders
            .push(Holder::from(waiter(HOLDER, access, None)));
        slot.queue.extend(queue);
        slot
    }

    fn hand_on(slot: &mut Slot, ticket: u64, now: Instant) -> Option<Taken> {
        slot.hand_on(ticket, now, 3, |round| Baton {
            former: lease("x"),
            start: now,
            lead: 0,
            round,
        })
    }

    #[test]
    fn the_first_is_handed_it_if_it_waits_for_that_lock_alone_and_may_wait() {
        let now = clock::now();
        let alone = Access::Alone;
        let cancelled = waiter(2, alone, Some(None));
        cancelled.inbox.cancel();
        for (handed, held, first) in [
            (true, alone, waiter(2, alone, Some(None))),
            (true, alone, waiter(2, alone, Some(Some(now + LONGEST_ROW)))),
            (false, alone, waiter(2, alone, Some(Some(now)))),
            (false, alone, waiter(2, alone, None)),
            (false, alone, cancelled),
            (false, Access::Shared, waiter(2, Access::Shared, Some(None))),
        ] {
            let what = format!("{first_end:?}", first_end = first.offer);
            let mut slot = slot(held, [first, waiter(3, alone, Some(None))]);
            let taken = hand_on(&mut slot, HOLDER, now);
            assert_eq!(taken.is_some(), handed, "{what}");
            let (holder, waiting) = if handed { (2, 1) } else { (HOLDER, 2) };
            let tickets: Vec<u64> = slot.holders.iter().map(|h| h.ticket).collect();
            assert_eq!((tickets, slot.queue.len()), (vec![holder], waiting));
            let asked = taken.map(|taken| taken.offer.swap.lease.asked());
            assert!(asked.is_none_or(|asked| asked.len() == 0), "not yet");
        }
    }

    #[test]
    fn who_does_not_hold_it_hands_nothing_on() {
        let mut slot = slot(Access::Alone, [waiter(2, Access::Alone, Some(None))]);
        assert!(hand_on(&mut slot, 7, clock::now()).is_none(), "passed over");
        slot.holders.clear();
        assert!(hand_on(&mut slot, HOLDER, clock::now()).is_none());
    }

    #[test]
    fn a_row_ends_by_its_length_and_by_its_time() {
        let now = clock::now();
        let queue = || (2..40).map(|ticket| waiter(ticket, Access::Alone, Some(None)));
        let mut long = slot(Access::Alone, queue());
        for holder in 1..=u64::from(MOST_IN_A_ROW) {
            assert!(hand_on(&mut long, holder, now).is_some(), "{holder}");
        }
        let last = u64::from(MOST_IN_A_ROW) + 1;
        assert!(hand_on(&mut long, last, now).is_none());
        assert!(hand_on(&mut long, last, now).is_some(), "a new row");
        let mut slow = slot(Access::Alone, queue());
        let later = now + LONGEST_ROW;
        assert!(hand_on(&mut slow, 1, now).is_some());
        assert!(hand_on(&mut slow, 2, later).is_none());
        assert!(hand_on(&mut slow, 2, later).is_some(), "a new row");
    }
}
