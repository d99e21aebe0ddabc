//! One slot of the gate: who holds a key, who waits for it, and who may come in. Without a lock and without a clock.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::local::handoff::{Baton, LONGEST_ROW, MOST_IN_A_ROW, Offer, Row};
use crate::protocol::lease::{Lease, Look};
use crate::protocol::validity;
use crate::time::deadline;
use crate::transport::inbox::Inbox;

/// How a slot is held, or to be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// By this one and nobody else: exclusive locks, and writers.
    Alone,
    /// Together with others who share it: readers.
    Shared,
    /// Together with others, up to so many: permits of a semaphore.
    Counted(u16),
}

/// One key that is held or waited for.
pub(crate) struct Slot {
    /// In the order in which they came in.
    pub(crate) holders: Vec<Holder>,
    pub(crate) queue: VecDeque<Waiter>,
    /// `None` when it was free since it was handed on last.
    pub(crate) row: Option<Row>,
}

pub(crate) struct Holder {
    pub(crate) ticket: u64,
    pub(crate) access: Access,
    /// Known once the nodes have granted it.
    pub(crate) lease: Option<Arc<Lease>>,
    /// To wake it while it is still asking.
    pub(crate) inbox: Arc<Inbox>,
    /// It sleeps while another asks for all that share the slot.
    pub(crate) follows: bool,
    /// The nodes had nothing for it: it waits for what becomes free, before those that come later.
    pub(crate) refused: bool,
    /// It was handed the lock with the slot, and has not looked yet.
    pub(crate) baton: Option<Baton>,
    /// When that lock's lease ends, if it was granted.
    pub(crate) handed_until: Option<Instant>,
}

pub(crate) struct Waiter {
    pub(crate) ticket: u64,
    pub(crate) access: Access,
    pub(crate) inbox: Arc<Inbox>,
    /// Where it can be handed the lock with the slot.
    pub(crate) offer: Option<Offer>,
    /// When it looks by itself at those who hold it now.
    pub(crate) looks: Option<Instant>,
}

/// Why a thread did not get the slot.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Its time was over.
    Busy {
        /// How those hold it who stood in the way, or want to that came before.
        by: Access,
        /// When the last of their leases ends, if all have one; the first one's where each is enough.
        remaining: Option<Duration>,
    },
    /// They say that there are so many permits.
    OtherPermits(u16),
    Cancelled,
    Closed,
}

impl Slot {
    pub(crate) fn new() -> Slot {
        Slot {
            holders: Vec::with_capacity(1),
            queue: VecDeque::new(),
            row: None,
        }
    }

    pub(crate) fn admits(&self, access: Access) -> bool {
        let shared = |holder: &Holder| holder.access == Access::Shared;
        match access {
            Access::Alone => self.holders.is_empty(),
            Access::Shared => self.holders.iter().all(shared),
            Access::Counted(most) => self.holders.len() < usize::from(most),
        }
    }

    /// The holder with this ticket, if it still is one.
    pub(crate) fn holder(&mut self, ticket: u64) -> Option<&mut Holder> {
        let mut holders = self.holders.iter_mut();
        holders.find(|holder| holder.ticket == ticket)
    }

    /// Lets in from the queue who can be, in order, and answers their inboxes to be woken.
    pub(crate) fn admit(&mut self) -> Vec<Arc<Inbox>> {
        let mut admitted = Vec::new();
        while self.queue.front().is_some_and(|w| self.admits(w.access)) {
            let next = self.queue.pop_front().map(Holder::from);
            admitted.extend(next.as_ref().map(|holder| Arc::clone(&holder.inbox)));
            self.holders.extend(next);
        }
        admitted
    }

    /// Removes the holders whose lease is lost; answers those that this look has made so.
    pub(crate) fn evict(&mut self, now: Instant) -> Vec<Arc<Lease>> {
        let mut lost = Vec::new();
        self.holders.retain(|holder| {
            let look = holder.lease.as_ref().map(|lease| (lease, lease.look(now)));
            if let Some((lease, Look::JustLost)) = look {
                lost.push(Arc::clone(lease));
            }
            !matches!(look, Some((_, Look::JustLost | Look::Lost)))
        });
        lost
    }

    /// When the next of the holders' leases ends.
    pub(crate) fn next_expiry(&self, now: Instant) -> Option<Instant> {
        let ends = self.holders.iter().filter_map(|holder| holder.end(now));
        ends.min()
    }

    /// The waiter with this ticket is about to sleep: it looks again when the next of the holders' leases ends, as that is known
    /// now. Answers when that is.
    pub(crate) fn look_again(&mut self, ticket: u64, now: Instant) -> Option<Instant> {
        let looks = self.next_expiry(now);
        // Those that come last look first.
        let mut waiters = self.queue.iter_mut().rev();
        let me = waiters.find(|waiter| waiter.ticket == ticket);
        me.into_iter().for_each(|me| me.looks = looks);
        looks
    }

    /// The first in the queue, if it does not look by itself before `expiry`: a lease that ends then was granted.
    pub(crate) fn first_to_look(
        &self,
        now: Instant,
        expiry: Option<Instant>,
    ) -> Option<Arc<Inbox>> {
        let first = self.queue.front()?;
        let looks = first.looks.filter(|looks| *looks > now);
        let in_time = looks.is_some_and(|looks| expiry.is_none_or(|expiry| looks <= expiry));
        (!in_time).then(|| Arc::clone(&first.inbox))
    }

    pub(crate) fn first(&self) -> Option<Arc<Inbox>> {
        self.queue.front().map(|waiter| Arc::clone(&waiter.inbox))
    }

    /// Whether one of the holders has no lease yet.
    pub(crate) fn is_asking(&self) -> bool {
        self.holders.iter().any(|holder| holder.lease.is_none())
    }

    /// How many permits there are to those who hold or want one now, if that is not `most`.
    pub(crate) fn other_count(&self, access: Access) -> Option<u16> {
        let holders = self.holders.iter().map(|holder| holder.access);
        let mut all = holders.chain(self.queue.iter().map(|waiter| waiter.access));
        all.find_map(|other| match other {
            Access::Counted(most) if other != access => Some(most),
            _ => None,
        })
    }

    /// Whether somebody waits for what becomes free on the nodes who came before the holder with this ticket; then that one
    /// follows, and is woken when it is its turn.
    pub(crate) fn follow_refused(&mut self, ticket: u64) -> bool {
        let before = self.holders.iter().take_while(|h| h.ticket != ticket);
        let behind = before.into_iter().any(|h| h.lease.is_none() && h.refused);
        if let Some(me) = self.holder(ticket) {
            me.follows = behind;
        }
        behind
    }

    /// The inboxes of those that follow another; each is to be woken once.
    pub(crate) fn followers(&mut self) -> impl Iterator<Item = Arc<Inbox>> {
        self.holders.iter_mut().filter_map(|holder| {
            std::mem::take(&mut holder.follows).then(|| Arc::clone(&holder.inbox))
        })
    }

    /// What stands in the way of a waiter.
    pub(crate) fn busy(&self, ticket: u64, access: Access, now: Instant) -> Refused {
        let before = |waiter: &&Waiter| waiter.ticket != ticket;
        let mut ahead = self.queue.iter().take_while(before);
        if self.admits(access)
            || access == Access::Shared && ahead.any(|w| w.access == Access::Alone)
        {
            return Refused::Busy {
                by: Access::Alone,
                remaining: None,
            };
        }
        let expiries: Option<Vec<Instant>> = self.holders.iter().map(|h| h.expiry(now)).collect();
        let last = match access {
            Access::Counted(_) => self.next_expiry(now),
            _ => expiries.and_then(|expiries| expiries.into_iter().max()),
        };
        Refused::Busy {
            by: self.holders[0].access,
            remaining: last.map(|last| last.saturating_duration_since(now)),
        }
    }
}

impl Holder {
    /// When its lease ends, if it is held and does end.
    fn expiry(&self, now: Instant) -> Option<Instant> {
        self.lease.as_ref()?.expiry(now)
    }

    /// The same, or when a lease would end that it was handed and has not looked at yet.
    fn end(&self, now: Instant) -> Option<Instant> {
        let handed = self.handed_until.filter(|end| *end > now);
        self.expiry(now).or(handed)
    }
}

impl From<Waiter> for Holder {
    fn from(waiter: Waiter) -> Holder {
        Holder {
            ticket: waiter.ticket,
            access: waiter.access,
            lease: None,
            inbox: waiter.inbox,
            follows: false,
            refused: false,
            baton: None,
            handed_until: None,
        }
    }
}

/// What a waiter had, who is a holder now.
pub(crate) struct Taken {
    pub(crate) offer: Offer,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) round: u32,
}

impl Slot {
    pub(crate) fn hand_on(
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
        next.handed_until = deadline::deadline(now, validity::validity(ttl));
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
    use std::sync::Arc;
    use std::time::Instant;

    use crate::local::entry::{Access, Holder, Slot, Taken, Waiter};
    use crate::local::handoff::{Baton, LONGEST_ROW, MOST_IN_A_ROW, Offer};
    use crate::protocol::lease::tests::lease;
    use crate::protocol::request::{Request, Verb};
    use crate::time::clock;
    use crate::transport::inbox::Inbox;

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
