//! One key of the lock table: its holders, its wait queue, and the rules of admission (S8).
//!
//! No mutex of its own, no clock, no I/O. The lock table calls it with its own mutex locked, so
//! nothing here may block. It locks only the mutexes of leases and inboxes, briefly: `evict` may
//! wake the watches of a lease, `hand_off` calls `handoff`. It wakes no inbox. Methods return the
//! inboxes to wake and the lost leases to report; the caller must do so after it has unlocked the
//! table. The holders and waiters themselves are in `local/holder.rs`.
//!
//! Tests: in this file (handoff); `src/tests/local/lock_table.rs` (else, also under loom); in
//! `src/tests/engine/`: `permits.rs` (permits), `holder_told.rs` (labels), `min_hold.rs`.
//!
//! A thread is admitted only if no thread is before it in the queue, and if the holders allow its
//! mode:
//!
//! | mode           | admitted while             | used by                    |
//! |----------------|----------------------------|----------------------------|
//! | `Exclusive`    | there is no holder         | exclusive locks, writers   |
//! | `Shared`       | all holders share          | readers                    |
//! | `Limited(n)`   | there are fewer than n     | permits of a semaphore     |
//!
//! Each thread has a ticket, which is in one state per entry:
//!
//! | state     | stored as                     | ends by                                        |
//! |-----------|-------------------------------|------------------------------------------------|
//! | queued    | in `queue`                    | `admit`, `hand_off`: pending; `leave_queue`    |
//! | pending   | in `holders`, without `lease` | attach a lease: held; release of the guard     |
//! |           | and `kept_until`              |                                                |
//! | following | pending, with `following`     | `followers`: pending                           |
//! | handed    | pending, with a handoff       | the thread takes the handoff: pending          |
//! | held      | in `holders`, with `lease`    | `evict` after a loss; `hand_off`; release;     |
//! |           |                               | `keep`: kept                                   |
//! | kept      | in `holders`, `kept_until`    | `evict` when that time has passed              |

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::local::handoff::{Handoff, HandoffOffer, HandoffStreak};
use crate::local::holder::{LocalHolder, LocalWaiter};
use crate::local::one_or_many::OneOrMany;
use crate::local::request::{AccessMode, LocalRequest, Refusal};
use crate::protocol::lease::{Lease, LeaseState};
use crate::protocol::validity;
use crate::time::deadline;
use crate::transport::inbox::Inbox;

/// The holders and the wait queue of one key.
pub(crate) struct KeyEntry {
    /// In order of admission.
    pub(super) holders: OneOrMany<LocalHolder>,
    /// `None` until a thread has to wait.
    waiting: Option<Box<Waiting>>,
}

/// The wait queue of a key.
#[derive(Default)]
struct Waiting {
    queue: VecDeque<LocalWaiter>,
    /// The handoffs since the key was last free; `None` if there were none.
    streak: Option<HandoffStreak>,
}

/// The queue of an entry for which no thread has waited.
static NOBODY: VecDeque<LocalWaiter> = VecDeque::new();

impl KeyEntry {
    /// Boxed, because a map of entries has room for twice as many as it holds, or more.
    pub(super) fn new() -> Box<KeyEntry> {
        Box::new(KeyEntry {
            holders: OneOrMany::NONE,
            waiting: None,
        })
    }

    /// Returns the threads that wait, in order.
    pub(super) fn queue(&self) -> &VecDeque<LocalWaiter> {
        self.waiting
            .as_ref()
            .map_or(&NOBODY, |waiting| &waiting.queue)
    }

    /// Makes the thread a holder if no thread waits and the holders allow its mode. Returns `false`
    /// if the thread must queue.
    ///
    /// # Errors
    /// - `PermitCountMismatch` if the semaphore is in use with another number of permits.
    pub(super) fn try_enter(
        &mut self,
        ticket: u64,
        request: &LocalRequest<'_>,
    ) -> Result<bool, Refusal> {
        if let Some(other) = self.conflicting_limit(request.mode) {
            return Err(Refusal::PermitCountMismatch(other));
        }
        if !self.queue().is_empty() || !self.admits(request.mode) {
            return Ok(false);
        }
        let inbox = Arc::clone(request.inbox);
        self.holders
            .push(LocalHolder::pending(ticket, request.mode, inbox));
        Ok(true)
    }

    /// Puts the thread at the end of the queue.
    pub(crate) fn enqueue(&mut self, ticket: u64, request: &LocalRequest<'_>) {
        self.waiting
            .get_or_insert_default()
            .queue
            .push_back(LocalWaiter {
                ticket,
                mode: request.mode,
                inbox: Arc::clone(request.inbox),
                offer: request.offer.cloned(),
                rechecks_at: None,
            });
    }

    fn admits(&self, mode: AccessMode) -> bool {
        let shares = |holder: &LocalHolder| holder.mode == AccessMode::Shared;
        match mode {
            AccessMode::Exclusive => self.holders.is_empty(),
            AccessMode::Shared => self.holders.iter().all(shares),
            AccessMode::Limited(max) => self.holders.len() < usize::from(max),
        }
    }

    /// Returns the holder with this ticket, if it still is one.
    pub(super) fn holder(&mut self, ticket: u64) -> Option<&mut LocalHolder> {
        let mut holders = self.holders.iter_mut();
        holders.find(|holder| holder.ticket == ticket)
    }

    /// Admits waiters from the front of the queue, in order. Returns the inboxes to wake.
    pub(super) fn admit(&mut self) -> Vec<Arc<Inbox>> {
        let mut admitted = Vec::new();
        while self.queue().front().is_some_and(|w| self.admits(w.mode)) {
            let waiting = self.waiting.as_mut();
            let Some(next) = waiting.and_then(|waiting| waiting.queue.pop_front()) else {
                break;
            };
            admitted.push(Arc::clone(&next.inbox));
            self.holders.push(next.into());
        }
        admitted
    }

    /// Removes the holders whose lease is lost or whose kept time is over. Returns the leases that
    /// this call marked lost.
    pub(super) fn evict(&mut self, now: Instant) -> Vec<Arc<Lease>> {
        let mut lost = Vec::new();
        self.evict_kept(now);
        self.holders.retain(|holder| {
            let state = holder
                .lease
                .as_ref()
                .map(|lease| (lease, lease.expire_if_due(now)));
            if let Some((lease, LeaseState::JustLost)) = state {
                lost.push(Arc::clone(lease));
            }
            !matches!(state, Some((_, LeaseState::JustLost | LeaseState::Lost)))
        });
        lost
    }

    /// Removes the holders whose kept time is over.
    pub(super) fn evict_kept(&mut self, now: Instant) {
        self.holders
            .retain(|holder| holder.kept_until().is_none_or(|end| end > now));
    }

    /// Makes the holder with this ticket one without a guard, until `end`. Returns `false` if it
    /// was evicted.
    pub(super) fn keep(&mut self, ticket: u64, end: Instant) -> bool {
        let holder = self.holder(ticket);
        holder.is_some_and(|holder| {
            holder.keep(end);
            true
        })
    }

    /// Gives the holder with this ticket the lowest permit number that no holder of this process
    /// has, and returns it.
    pub(super) fn draw_permit_number(&mut self, ticket: u64) -> u16 {
        let is_free = |number: &u16| {
            let mut holders = self.holders.iter();
            !holders.any(|holder| holder.permit_number() == Some(*number))
        };
        let number = (0..u16::MAX).find(is_free).unwrap_or_default();
        if let Some(holder) = self.holder(ticket) {
            holder.set_permit_number(number);
        }
        number
    }

    /// Returns whether the entry has neither holders nor waiters.
    pub(super) fn is_unused(&self) -> bool {
        self.holders.is_empty() && self.queue().is_empty()
    }

    /// Returns the holders that have a guard or ask the nodes.
    pub(super) fn guarded(&self) -> impl Iterator<Item = &LocalHolder> {
        self.holders
            .iter()
            .filter(|holder| holder.kept_until().is_none())
    }

    /// Returns the owner label of an exclusive holder. The outer `None` is another kind of holder,
    /// or none.
    pub(super) fn exclusive_holder(&self) -> Option<Option<&str>> {
        let holder = self.holders.first()?;
        (holder.mode == AccessMode::Exclusive).then(|| holder.owner_label())
    }

    /// Returns when the first of the holders' leases ends.
    pub(super) fn next_expiry(&self, now: Instant) -> Option<Instant> {
        let holders = self.holders.iter();
        holders.filter_map(|holder| holder.expected_end(now)).min()
    }

    /// Sets when the waiter rechecks the holders, just before it sleeps: at their next expiry.
    /// Returns that time.
    pub(super) fn schedule_recheck(&mut self, ticket: u64, now: Instant) -> Option<Instant> {
        let expiry = self.next_expiry(now);
        // A thread calls this first right after it queued, so its waiter is most likely the last.
        let waiting = self.waiting.as_mut().into_iter();
        let mut waiters = waiting.flat_map(|waiting| waiting.queue.iter_mut().rev());
        if let Some(waiter) = waiters.find(|waiter| waiter.ticket == ticket) {
            waiter.rechecks_at = expiry;
        }
        expiry
    }

    /// Returns the inbox of the first waiter if it must be woken, because a holder has attached a
    /// lease, or is kept, and that ends at `expiry` (`None`: never): it has no recheck ahead, or
    /// only one after `expiry`.
    pub(super) fn waiter_to_wake(
        &self,
        now: Instant,
        expiry: Option<Instant>,
    ) -> Option<Arc<Inbox>> {
        let first = self.queue().front()?;
        let recheck = first.rechecks_at.filter(|recheck| *recheck > now);
        let in_time = recheck.is_some_and(|recheck| expiry.is_none_or(|expiry| recheck <= expiry));
        (!in_time).then(|| Arc::clone(&first.inbox))
    }

    /// Returns whether the waiter with this ticket is the first in the queue.
    pub(super) fn is_first(&self, ticket: u64) -> bool {
        self.queue().front().is_some_and(|w| w.ticket == ticket)
    }

    /// Returns the inbox of the first waiter.
    pub(super) fn first_waiter(&self) -> Option<Arc<Inbox>> {
        let first = self.queue().front();
        first.map(|waiter| Arc::clone(&waiter.inbox))
    }

    /// Returns whether a holder has no lease yet.
    pub(super) fn has_pending(&self) -> bool {
        self.guarded().any(|holder| holder.lease.is_none())
    }

    /// Returns the total number of permits that a holder or waiter asked for, if it differs from
    /// that of `mode`. `None` for a mode without permits.
    fn conflicting_limit(&self, mode: AccessMode) -> Option<u16> {
        if !matches!(mode, AccessMode::Limited(_)) {
            return None;
        }
        let holders = self.holders.iter().map(|holder| holder.mode);
        let mut all = holders.chain(self.queue().iter().map(|waiter| waiter.mode));
        all.find_map(|other| match other {
            AccessMode::Limited(limit) if other != mode => Some(limit),
            _ => None,
        })
    }

    /// Returns whether the nodes refused an earlier pending holder. If so, the holder with this
    /// ticket follows it: it sleeps until [`followers`](KeyEntry::followers) returns its inbox.
    pub(super) fn follow_earlier_waiter(&mut self, ticket: u64) -> bool {
        let mut earlier = self.holders.iter().take_while(|h| h.ticket != ticket);
        let follows = earlier.any(|h| h.lease.is_none() && h.refused_by_nodes);
        if let Some(holder) = self.holder(ticket) {
            holder.following = follows;
        }
        follows
    }

    /// Returns an iterator over the inboxes of the followers, in order. A yielded follower no
    /// longer follows, and must be woken.
    pub(super) fn followers(&mut self) -> impl Iterator<Item = Arc<Inbox>> {
        self.holders.iter_mut().filter_map(|holder| {
            let followed = std::mem::take(&mut holder.following);
            holder.inbox.clone().filter(|_| followed)
        })
    }

    /// Returns the refusal of a waiter whose deadline has passed. If earlier waiters alone, or a
    /// writer before a reader, are in its way, they count as exclusive, with an unknown lease.
    pub(super) fn busy_refusal(&self, ticket: u64, mode: AccessMode, now: Instant) -> Refusal {
        let mut ahead = self.queue().iter().take_while(|w| w.ticket != ticket);
        if self.admits(mode)
            || mode == AccessMode::Shared && ahead.any(|w| w.mode == AccessMode::Exclusive)
        {
            return Refusal::Busy {
                by: AccessMode::Exclusive,
                remaining: None,
            };
        }
        let expiries: Option<Vec<Instant>> = self.holders.iter().map(|h| h.expiry(now)).collect();
        let end = match mode {
            AccessMode::Limited(_) => self.next_expiry(now),
            _ => expiries.and_then(|expiries| expiries.into_iter().max()),
        };
        Refusal::Busy {
            by: self.holders.first().map_or(mode, |holder| holder.mode),
            remaining: end.map(|end| end.saturating_duration_since(now)),
        }
    }

    /// Removes a waiter. Returns the inbox of the waiter that is first now, to be woken. The
    /// holders may allow it, for example a reader behind the writer that left; else it must watch
    /// the holders' leases from now on.
    pub(super) fn leave_queue(&mut self, ticket: u64) -> Option<Arc<Inbox>> {
        if let Some(waiting) = &mut self.waiting {
            waiting.queue.retain(|waiter| waiter.ticket != ticket);
        }
        self.first_waiter()
    }

    /// Makes the first waiter the holder in place of the only holder, whose release began at `now`.
    /// `handoff` returns the handoff for a round that is opened in the waiter's inbox.
    ///
    /// Returns `None` and changes only the streak if one of these holds:
    /// - no thread waits;
    /// - the holder with this ticket is not the only holder;
    /// - the first waiter made no offer, is not exclusive, was cancelled, or its wait is over;
    /// - the streak is over.
    pub(super) fn hand_off(
        &mut self,
        ticket: u64,
        now: Instant,
        nodes: usize,
        handoff: impl FnOnce(u32) -> Handoff,
    ) -> Option<AcceptedOffer> {
        let waiting = self.waiting.as_mut()?;
        let streak = waiting.streak.take().unwrap_or(HandoffStreak {
            count: 0,
            since: now,
        });
        let is_only_holder =
            !self.holders.is_empty() && self.holders.iter().all(|holder| holder.ticket == ticket);
        let accepts = waiting.queue.front()?.accepts_handoff(now);
        if streak.is_over(now) || !is_only_holder || !accepts {
            return None;
        }
        let mut next = waiting.queue.pop_front()?;
        let offer = next.offer.take()?;
        let inbox = Arc::clone(&next.inbox);
        let round = inbox.open_round(nodes);
        let mut next = LocalHolder::from(next);
        let ttl = Duration::from_millis(offer.swap.ttl);
        let expiry = deadline::deadline(now, validity::validity(ttl));
        next.put_handoff(handoff(round), expiry);
        self.holders = OneOrMany::One(next);
        waiting.streak = Some(HandoffStreak {
            count: streak.count + 1,
            ..streak
        });
        Some(AcceptedOffer {
            offer,
            inbox,
            round,
        })
    }
}

/// The offer of a waiter that is now a holder, and the destination of the replies to its swap.
pub(super) struct AcceptedOffer {
    pub(super) offer: HandoffOffer,
    pub(super) inbox: Arc<Inbox>,
    pub(super) round: u32,
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use crate::local::entry::{AcceptedOffer, KeyEntry};
    use crate::local::handoff::{
        FormerRelease, Handoff, HandoffOffer, MAX_STREAK, MAX_STREAK_TIME,
    };
    use crate::local::holder::{LocalHolder, LocalWaiter};
    use crate::local::request::AccessMode;
    use crate::protocol::request::{Op, Request};
    use crate::tests::fixtures::lease;
    use crate::time::clock;
    use crate::transport::inbox::Inbox;

    const HOLDER: u64 = 1;

    fn waiter(ticket: u64, mode: AccessMode, deadline: Option<Option<Instant>>) -> LocalWaiter {
        let offer = |deadline| HandoffOffer {
            swap: Request::new(Op::Swap, &lease("x"), 1),
            deadline,
        };
        LocalWaiter {
            ticket,
            mode,
            inbox: Arc::new(Inbox::new()),
            offer: deadline.map(offer),
            rechecks_at: None,
        }
    }

    /// Returns an entry with one holder and these waiters.
    fn entry(mode: AccessMode, queue: impl IntoIterator<Item = LocalWaiter>) -> Box<KeyEntry> {
        let mut entry = KeyEntry::new();
        let holder = LocalHolder::from(waiter(HOLDER, mode, None));
        entry.holders.push(holder);
        entry.waiting.get_or_insert_default().queue.extend(queue);
        entry
    }

    fn hand_off(entry: &mut KeyEntry, ticket: u64, now: Instant) -> Option<AcceptedOffer> {
        let former = FormerRelease::of(&lease("x"));
        entry.hand_off(ticket, now, 3, |round| Handoff { former, round })
    }

    #[test]
    fn first_waiter_with_a_valid_offer_for_an_exclusive_lock_is_handed_it() {
        let now = clock::now();
        let (exclusive, shared) = (AccessMode::Exclusive, AccessMode::Shared);
        let cancelled = waiter(2, exclusive, Some(None));
        cancelled.inbox.cancel();
        let waits = waiter(2, exclusive, Some(Some(now + MAX_STREAK_TIME)));
        for (handed, held, first) in [
            (true, exclusive, waiter(2, exclusive, Some(None))),
            (true, exclusive, waits),
            (false, exclusive, waiter(2, exclusive, Some(Some(now)))),
            (false, exclusive, waiter(2, exclusive, None)),
            (false, exclusive, cancelled),
            (false, shared, waiter(2, shared, Some(None))),
        ] {
            let case = format!("{offer:?}", offer = first.offer);
            let mut entry = entry(held, [first, waiter(3, exclusive, Some(None))]);
            let accepted = hand_off(&mut entry, HOLDER, now);
            assert_eq!(accepted.is_some(), handed, "{case}");
            let (holder, waiting) = if handed { (2, 1) } else { (HOLDER, 2) };
            let tickets: Vec<u64> = entry.holders.iter().map(|h| h.ticket).collect();
            assert_eq!((tickets, entry.queue().len()), (vec![holder], waiting));
            let contacted = accepted.map(|accepted| accepted.offer.swap.lease.contacted());
            assert!(contacted.is_none_or(|nodes| nodes.len() == 0), "not yet");
        }
    }

    #[test]
    fn waiter_behind_the_first_sleeps_when_the_kept_time_is_over() {
        let (now, exclusive) = (clock::now(), AccessMode::Exclusive);
        let queue = [2, 3].map(|ticket| waiter(ticket, exclusive, None));
        let mut entry = entry(exclusive, queue);
        let end = now + MAX_STREAK_TIME;
        assert!(entry.keep(HOLDER, end));
        assert_eq!(entry.schedule_recheck(3, now), Some(end));
        // The first waiter evicts the holder; until then the second would wake again and again.
        assert_eq!(entry.schedule_recheck(3, end), None);
        assert!(entry.evict(end).is_empty() && entry.admit().len() == 1);
    }

    #[test]
    fn thread_that_is_no_holder_hands_nothing_off() {
        let mut entry = entry(
            AccessMode::Exclusive,
            [waiter(2, AccessMode::Exclusive, Some(None))],
        );
        assert!(hand_off(&mut entry, 7, clock::now()).is_none(), "evicted");
        entry.holders.retain(|_| false);
        assert!(hand_off(&mut entry, HOLDER, clock::now()).is_none());
    }

    #[test]
    fn streak_ends_by_its_length_and_by_its_time() {
        let now = clock::now();
        let queue = || (2..40).map(|ticket| waiter(ticket, AccessMode::Exclusive, Some(None)));
        let mut long = entry(AccessMode::Exclusive, queue());
        for holder in 1..=u64::from(MAX_STREAK) {
            assert!(hand_off(&mut long, holder, now).is_some(), "{holder}");
        }
        let last = u64::from(MAX_STREAK) + 1;
        assert!(hand_off(&mut long, last, now).is_none());
        assert!(hand_off(&mut long, last, now).is_some(), "a new streak");
        let mut slow = entry(AccessMode::Exclusive, queue());
        let later = now + MAX_STREAK_TIME;
        assert!(hand_off(&mut slow, 1, now).is_some());
        assert!(hand_off(&mut slow, 2, later).is_none());
        assert!(hand_off(&mut slow, 2, later).is_some(), "a new streak");
    }
}
