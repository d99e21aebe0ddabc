//! One slot of the gate: who holds a key, who waits for it, and who may come in. Without a lock and without a clock.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::local::handoff::{Handoff, HandoffOffer, HandoffStreak, MAX_STREAK, MAX_STREAK_TIME};
use crate::protocol::lease::{Lease, LeaseState};
use crate::protocol::validity;
use crate::time::deadline;
use crate::transport::inbox::Inbox;

/// How a slot is held, or to be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AccessMode {
    /// By this one and nobody else: exclusive locks, and writers.
    Exclusive,
    /// Together with others who share it: readers.
    Shared,
    /// Together with others, up to so many: permits of a semaphore.
    Limited(u16),
}

/// One key that is held or waited for.
pub(crate) struct KeyEntry {
    /// In the order in which they came in.
    pub(crate) holders: Vec<LocalHolder>,
    pub(crate) queue: VecDeque<LocalWaiter>,
    /// `None` when it was free since it was handed on last.
    pub(crate) row: Option<HandoffStreak>,
}

pub(crate) struct LocalHolder {
    pub(crate) ticket: u64,
    pub(crate) access: AccessMode,
    /// Known once the nodes have granted it.
    pub(crate) lease: Option<Arc<Lease>>,
    /// To wake it while it is still asking.
    pub(crate) inbox: Arc<Inbox>,
    /// It sleeps while another asks for all that share the slot.
    pub(crate) following: bool,
    /// The nodes had nothing for it: it waits for what becomes free, before those that come later.
    pub(crate) refused_by_nodes: bool,
    /// It was handed the lock with the slot, and has not looked yet.
    pub(crate) handoff: Option<Handoff>,
    /// When that lock's lease ends, if it was granted.
    pub(crate) handoff_expiry: Option<Instant>,
}

pub(crate) struct LocalWaiter {
    pub(crate) ticket: u64,
    pub(crate) access: AccessMode,
    pub(crate) inbox: Arc<Inbox>,
    /// Where it can be handed the lock with the slot.
    pub(crate) offer: Option<HandoffOffer>,
    /// When it looks by itself at those who hold it now.
    pub(crate) rechecks_at: Option<Instant>,
}

/// Why a thread did not get the slot.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Its time was over.
    Busy {
        /// How those hold it who stood in the way, or want to that came before.
        by: AccessMode,
        /// When the last of their leases ends, if all have one; the first one's where each is enough.
        remaining: Option<Duration>,
    },
    /// They say that there are so many permits.
    PermitCountMismatch(u16),
    Cancelled,
    Closed,
}

impl KeyEntry {
    pub(crate) fn new() -> KeyEntry {
        KeyEntry {
            holders: Vec::with_capacity(1),
            queue: VecDeque::new(),
            row: None,
        }
    }

    pub(crate) fn admits(&self, access: AccessMode) -> bool {
        let shared = |holder: &LocalHolder| holder.access == AccessMode::Shared;
        match access {
            AccessMode::Exclusive => self.holders.is_empty(),
            AccessMode::Shared => self.holders.iter().all(shared),
            AccessMode::Limited(most) => self.holders.len() < usize::from(most),
        }
    }

    /// The holder with this ticket, if it still is one.
    pub(crate) fn holder(&mut self, ticket: u64) -> Option<&mut LocalHolder> {
        let mut holders = self.holders.iter_mut();
        holders.find(|holder| holder.ticket == ticket)
    }

    /// Lets in from the queue who can be, in order, and answers their inboxes to be woken.
    pub(crate) fn admit(&mut self) -> Vec<Arc<Inbox>> {
        let mut admitted = Vec::new();
        while self.queue.front().is_some_and(|w| self.admits(w.access)) {
            let next = self.queue.pop_front().map(LocalHolder::from);
            admitted.extend(next.as_ref().map(|holder| Arc::clone(&holder.inbox)));
            self.holders.extend(next);
        }
        admitted
    }

    /// Removes the holders whose lease is lost; answers those that this look has made so.
    pub(crate) fn evict(&mut self, now: Instant) -> Vec<Arc<Lease>> {
        let mut lost = Vec::new();
        self.holders.retain(|holder| {
            let look = holder
                .lease
                .as_ref()
                .map(|lease| (lease, lease.expire_if_due(now)));
            if let Some((lease, LeaseState::JustLost)) = look {
                lost.push(Arc::clone(lease));
            }
            !matches!(look, Some((_, LeaseState::JustLost | LeaseState::Lost)))
        });
        lost
    }

    /// When the next of the holders' leases ends.
    pub(crate) fn next_expiry(&self, now: Instant) -> Option<Instant> {
        let ends = self
            .holders
            .iter()
            .filter_map(|holder| holder.expected_end(now));
        ends.min()
    }

    /// The waiter with this ticket is about to sleep: it looks again when the next of the holders' leases ends, as that is known
    /// now. Answers when that is.
    pub(crate) fn schedule_recheck(&mut self, ticket: u64, now: Instant) -> Option<Instant> {
        let looks = self.next_expiry(now);
        // Those that come last look first.
        let mut waiters = self.queue.iter_mut().rev();
        let me = waiters.find(|waiter| waiter.ticket == ticket);
        me.into_iter().for_each(|me| me.rechecks_at = looks);
        looks
    }

    /// The first in the queue, if it does not look by itself before `expiry`: a lease that ends then was granted.
    pub(crate) fn waiter_to_wake(
        &self,
        now: Instant,
        expiry: Option<Instant>,
    ) -> Option<Arc<Inbox>> {
        let first = self.queue.front()?;
        let looks = first.rechecks_at.filter(|looks| *looks > now);
        let in_time = looks.is_some_and(|looks| expiry.is_none_or(|expiry| looks <= expiry));
        (!in_time).then(|| Arc::clone(&first.inbox))
    }

    pub(crate) fn first(&self) -> Option<Arc<Inbox>> {
        self.queue.front().map(|waiter| Arc::clone(&waiter.inbox))
    }

    /// Whether one of the holders has no lease yet.
    pub(crate) fn has_pending(&self) -> bool {
        self.holders.iter().any(|holder| holder.lease.is_none())
    }

    /// How many permits there are to those who hold or want one now, if that is not `most`.
    pub(crate) fn conflicting_limit(&self, access: AccessMode) -> Option<u16> {
        let holders = self.holders.iter().map(|holder| holder.access);
        let mut all = holders.chain(self.queue.iter().map(|waiter| waiter.access));
        all.find_map(|other| match other {
            AccessMode::Limited(most) if other != access => Some(most),
            _ => None,
        })
    }

    /// Whether somebody waits for what becomes free on the nodes who came before the holder with this ticket; then that one
    /// follows, and is woken when it is its turn.
    pub(crate) fn follow_earlier_waiter(&mut self, ticket: u64) -> bool {
        let before = self.holders.iter().take_while(|h| h.ticket != ticket);
        let behind = before
            .into_iter()
            .any(|h| h.lease.is_none() && h.refused_by_nodes);
        if let Some(me) = self.holder(ticket) {
            me.following = behind;
        }
        behind
    }

    /// The inboxes of those that follow another; each is to be woken once.
    pub(crate) fn followers(&mut self) -> impl Iterator<Item = Arc<Inbox>> {
        self.holders.iter_mut().filter_map(|holder| {
            std::mem::take(&mut holder.following).then(|| Arc::clone(&holder.inbox))
        })
    }

    /// What stands in the way of a waiter.
    pub(crate) fn busy_refusal(&self, ticket: u64, access: AccessMode, now: Instant) -> Refusal {
        let before = |waiter: &&LocalWaiter| waiter.ticket != ticket;
        let mut ahead = self.queue.iter().take_while(before);
        if self.admits(access)
            || access == AccessMode::Shared && ahead.any(|w| w.access == AccessMode::Exclusive)
        {
            return Refusal::Busy {
                by: AccessMode::Exclusive,
                remaining: None,
            };
        }
        let expiries: Option<Vec<Instant>> = self.holders.iter().map(|h| h.expiry(now)).collect();
        let last = match access {
            AccessMode::Limited(_) => self.next_expiry(now),
            _ => expiries.and_then(|expiries| expiries.into_iter().max()),
        };
        Refusal::Busy {
            by: self.holders[0].access,
            remaining: last.map(|last| last.saturating_duration_since(now)),
        }
    }
}

impl LocalHolder {
    /// When its lease ends, if it is held and does end.
    fn expiry(&self, now: Instant) -> Option<Instant> {
        self.lease.as_ref()?.expiry(now)
    }

    /// The same, or when a lease would end that it was handed and has not looked at yet.
    fn expected_end(&self, now: Instant) -> Option<Instant> {
        let handed = self.handoff_expiry.filter(|end| *end > now);
        self.expiry(now).or(handed)
    }
}

impl From<LocalWaiter> for LocalHolder {
    fn from(waiter: LocalWaiter) -> LocalHolder {
        LocalHolder {
            ticket: waiter.ticket,
            access: waiter.access,
            lease: None,
            inbox: waiter.inbox,
            following: false,
            refused_by_nodes: false,
            handoff: None,
            handoff_expiry: None,
        }
    }
}

/// What a waiter had, who is a holder now.
pub(crate) struct AcceptedOffer {
    pub(crate) offer: HandoffOffer,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) round: u32,
}

impl KeyEntry {
    pub(crate) fn hand_off(
        &mut self,
        ticket: u64,
        now: Instant,
        nodes: usize,
        baton: impl FnOnce(u32) -> Handoff,
    ) -> Option<AcceptedOffer> {
        let row = self.row.take().unwrap_or(HandoffStreak {
            count: 0,
            since: now,
        });
        let is_over = row.count == MAX_STREAK || now >= row.since + MAX_STREAK_TIME;
        let first = self.queue.front()?;
        let is_alone = self.holders.iter().all(|holder| holder.ticket == ticket);
        let waits = |offer: &HandoffOffer| offer.end.is_none_or(|end| end > now);
        let can = first.offer.as_ref().is_some_and(waits) && !first.inbox.is_cancelled();
        if is_over
            || !is_alone
            || !can
            || self.holders.is_empty()
            || first.access != AccessMode::Exclusive
        {
            return None;
        }
        let mut next = self.queue.pop_front()?;
        let offer = next.offer.take()?;
        let inbox = Arc::clone(&next.inbox);
        let round = inbox.open_round(nodes);
        let mut next = LocalHolder::from(next);
        next.handoff = Some(baton(round));
        let ttl = Duration::from_millis(offer.swap.ttl);
        next.handoff_expiry = deadline::deadline(now, validity::validity(ttl));
        self.holders.clear();
        self.holders.push(next);
        self.row = Some(HandoffStreak {
            count: row.count + 1,
            ..row
        });
        Some(AcceptedOffer {
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

    use crate::local::entry::{AcceptedOffer, AccessMode, KeyEntry, LocalHolder, LocalWaiter};
    use crate::local::handoff::{Handoff, HandoffOffer, MAX_STREAK, MAX_STREAK_TIME};
    use crate::protocol::lease::tests::lease;
    use crate::protocol::request::{Op, Request};
    use crate::time::clock;
    use crate::transport::inbox::Inbox;

    const HOLDER: u64 = 1;

    fn waiter(ticket: u64, access: AccessMode, end: Option<Option<Instant>>) -> LocalWaiter {
        let offer = |end| HandoffOffer {
            swap: Request::new(Op::Swap, &lease("x"), 1),
            end,
        };
        LocalWaiter {
            ticket,
            access,
            inbox: Arc::new(Inbox::new()),
            offer: end.map(offer),
            rechecks_at: None,
        }
    }

    /// A slot that is held, with these in the queue.
    fn slot(access: AccessMode, queue: impl IntoIterator<Item = LocalWaiter>) -> KeyEntry {
        let mut slot = KeyEntry::new();
        slot.holders
            .push(LocalHolder::from(waiter(HOLDER, access, None)));
        slot.queue.extend(queue);
        slot
    }

    fn hand_on(slot: &mut KeyEntry, ticket: u64, now: Instant) -> Option<AcceptedOffer> {
        slot.hand_off(ticket, now, 3, |round| Handoff {
            former: lease("x"),
            start: now,
            lead: 0,
            round,
        })
    }

    #[test]
    fn the_first_is_handed_it_if_it_waits_for_that_lock_alone_and_may_wait() {
        let now = clock::now();
        let alone = AccessMode::Exclusive;
        let cancelled = waiter(2, alone, Some(None));
        cancelled.inbox.cancel();
        for (handed, held, first) in [
            (true, alone, waiter(2, alone, Some(None))),
            (
                true,
                alone,
                waiter(2, alone, Some(Some(now + MAX_STREAK_TIME))),
            ),
            (false, alone, waiter(2, alone, Some(Some(now)))),
            (false, alone, waiter(2, alone, None)),
            (false, alone, cancelled),
            (
                false,
                AccessMode::Shared,
                waiter(2, AccessMode::Shared, Some(None)),
            ),
        ] {
            let what = format!("{first_end:?}", first_end = first.offer);
            let mut slot = slot(held, [first, waiter(3, alone, Some(None))]);
            let taken = hand_on(&mut slot, HOLDER, now);
            assert_eq!(taken.is_some(), handed, "{what}");
            let (holder, waiting) = if handed { (2, 1) } else { (HOLDER, 2) };
            let tickets: Vec<u64> = slot.holders.iter().map(|h| h.ticket).collect();
            assert_eq!((tickets, slot.queue.len()), (vec![holder], waiting));
            let asked = taken.map(|taken| taken.offer.swap.lease.contacted());
            assert!(asked.is_none_or(|asked| asked.len() == 0), "not yet");
        }
    }

    #[test]
    fn who_does_not_hold_it_hands_nothing_on() {
        let mut slot = slot(
            AccessMode::Exclusive,
            [waiter(2, AccessMode::Exclusive, Some(None))],
        );
        assert!(hand_on(&mut slot, 7, clock::now()).is_none(), "passed over");
        slot.holders.clear();
        assert!(hand_on(&mut slot, HOLDER, clock::now()).is_none());
    }

    #[test]
    fn a_row_ends_by_its_length_and_by_its_time() {
        let now = clock::now();
        let queue = || (2..40).map(|ticket| waiter(ticket, AccessMode::Exclusive, Some(None)));
        let mut long = slot(AccessMode::Exclusive, queue());
        for holder in 1..=u64::from(MAX_STREAK) {
            assert!(hand_on(&mut long, holder, now).is_some(), "{holder}");
        }
        let last = u64::from(MAX_STREAK) + 1;
        assert!(hand_on(&mut long, last, now).is_none());
        assert!(hand_on(&mut long, last, now).is_some(), "a new row");
        let mut slow = slot(AccessMode::Exclusive, queue());
        let later = now + MAX_STREAK_TIME;
        assert!(hand_on(&mut slow, 1, now).is_some());
        assert!(hand_on(&mut slow, 2, later).is_none());
        assert!(hand_on(&mut slow, 2, later).is_some(), "a new row");
    }
}
