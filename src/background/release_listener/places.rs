//! The places of this process in the waiting lists of locks, as far as the node has told them.
//!
//! The processes that wait for an exclusive lock stand in a list on the node that they listen to. A
//! release wakes the first one and removes it from the list; the others learn only that the lock
//! was released. If the woken process is paused, nobody acquires the lock, so the next ones check
//! after a time whether it is free. Only the first [`NEAR`] hear of releases: a process that is
//! further behind does not listen, and the node tells it when it has come near.
//!
//! Pure: the time is passed in, and the listener sends the requests that this returns.
//!
//! - The list is a hint (L4). It decides when a waiter asks the nodes, never whether it acquires.
//! - Every release wakes a waiter without a confirmed place. Only a `next` message does not wake it
//!   if it yields to others: it checks as soon as it has the place.
//! - A waiter with a near place checks after each release. A waiter that hears of none for the
//!   retry delay checks for news if it is far behind, and else attempts. News is a message of the
//!   node about the waiter's place, or that the lock is free.
//!
//! | state  | stored as            | next                                                        |
//! |--------|----------------------|-------------------------------------------------------------|
//! | asked  | `before` is `None`   | placed; none: woken, the waiter leaves, the connection ends |
//! | placed | `before` is `Some`   | none: as above                                              |

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::background::release_listener::subscriptions::{ChannelWaiter, Signal};
use crate::protocol::key::{Channel, Key};
use crate::protocol::scripts::NEAR;
use crate::random::HashMap;

/// The factor between the delays of a waiter and of the one behind it.
const CHECK_FACTOR: u32 = 4;

/// The delay of the second check of a waiter that has made no attempt, in units.
const SECOND_CHECK: u32 = CHECK_FACTOR.pow(3);

/// The longest delay of a check, in units.
const MAX_CHECK_DELAY: u32 = CHECK_FACTOR.pow(8);

/// The places of this process, at most one for each lock.
#[derive(Default)]
pub(super) struct Places {
    places: HashMap<Channel, Place>,
    /// The checks that are due at a time.
    checks: BTreeSet<(Instant, Channel)>,
}

struct Place {
    key: Key,
    waiter: Arc<ChannelWaiter>,
    /// When the waiter had its entries in the lock table; if it has made no attempt, when it asked
    /// for the place.
    since: Instant,
    /// How often the node has told the place of a waiter that has made no attempt and has heard of
    /// no release; else `None`. The waiter attempts at last, because the end of a lock by time is
    /// not published.
    silent_confirmations: Option<u32>,
    /// The number of processes that are before this one; `None` until the node has told it.
    before: Option<u32>,
    check_at: Option<Instant>,
    /// Whether a check for news is under way, which the node answers by a message.
    awaits_news: bool,
}

/// A request for the place in the list of a key.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PlaceRequest {
    pub(super) key: Key,
    /// Whether the node wakes the waiter if the lock is free.
    pub(super) is_check: bool,
    /// The time that the waiter has waited.
    pub(super) waited: Duration,
}

impl Places {
    /// Adds a place that the node is asked for at `now`. Returns the request to send; `None` if the
    /// node has been asked before. `since` is when the waiter had its entries in the lock table;
    /// `None` if it has made no attempt, so that a check follows the confirmation.
    pub(super) fn ask(
        &mut self,
        key: &Key,
        waiter: &Arc<ChannelWaiter>,
        since: Option<Instant>,
        now: Instant,
    ) -> Option<PlaceRequest> {
        let channel = key.channel();
        if self.places.contains_key(&channel) {
            return None;
        }
        let place = Place {
            key: key.clone(),
            waiter: Arc::clone(waiter),
            since: since.unwrap_or(now),
            before: None,
            silent_confirmations: since.is_none().then_some(0),
            check_at: None,
            awaits_news: false,
        };
        let request = place.request(now, false);
        self.places.insert(channel, place);
        Some(request)
    }

    /// Records at `now` that the node has told the place. Without effect if no waiter has it any
    /// more. Returns whether the place is near.
    ///
    /// A waiter that has made no attempt then checks whether the lock is free, as after a release.
    /// If it is the first in the list, and two checks find the lock held without a release between
    /// them, it attempts, and so learns when the lock ends.
    ///
    /// Any other waiter checks once if it is the first in the list when it gets its place. It may
    /// have been refused by an attempt whose undo is not published, because its call goes on. Or
    /// this node woke it before the release had run on the others. The delay of this check grows
    /// with the time since the waiter was last woken, because the node may lack the key of a lock
    /// that is held.
    pub(super) fn confirm(
        &mut self,
        channel: &Channel,
        before: u32,
        now: Instant,
        unit: Duration,
    ) -> bool {
        let Some(place) = self.places.get_mut(channel) else {
            return false;
        };
        let is_first = place.before.replace(before).is_none() && before == 0;
        place.waiter.set_placed(true);
        place.awaits_news = false;
        let told = place.silent_confirmations;
        if before == 0 || told == Some(0) {
            place.silent_confirmations = told.map(|told| told + 1);
        }
        match told {
            Some(0) => self.set_check(channel, now + check_delay(before, unit)),
            Some(1) if before == 0 => self.set_check(channel, now + SECOND_CHECK * unit),
            Some(2) if before == 0 => place.waiter.signal(Signal::Subscribed),
            None if is_first => {
                let check_at = now + unit;
                let heard_at = place.waiter.heard_at().unwrap_or(place.since);
                let waited = check_at.saturating_duration_since(heard_at.max(place.since));
                self.set_check(channel, check_at + waited / 2);
            }
            _ => {}
        }
        before < NEAR
    }

    /// Returns the check for news of a waiter that is far behind, to be sent at `now`.
    /// Returns `None` if its place is near or not confirmed, or the node has not answered the last
    /// one.
    pub(super) fn ask_for_news(
        &mut self,
        channel: &Channel,
        waiter: &Arc<ChannelWaiter>,
        now: Instant,
    ) -> Option<PlaceRequest> {
        let place = self.places.get_mut(channel)?;
        let is_far = place.before.is_some_and(|before| before >= NEAR);
        if !is_far || place.awaits_news || !Arc::ptr_eq(&place.waiter, waiter) {
            return None;
        }
        place.awaits_news = true;
        waiter.note_heard(now);
        Some(place.request(now, true))
    }

    /// Records that the lock was released and that the node wakes the first process of the list.
    /// Returns the waiter that this release does not wake, and whether its channel stays subscribed:
    /// if its place is near, or not confirmed.
    ///
    /// It does not wake a waiter with a confirmed place: that one checks after `unit`, or after a
    /// multiple that grows with the number of processes before it. Nor does it wake a waiter that
    /// has made no attempt, because the release is mostly that of its own process. Such a waiter
    /// checks as soon as it has its place.
    pub(super) fn note_release(
        &mut self,
        channel: &Channel,
        now: Instant,
        unit: Duration,
    ) -> Option<(Arc<ChannelWaiter>, bool)> {
        let place = self.places.get_mut(channel)?;
        let waiter = Arc::clone(&place.waiter);
        let Some(before) = place.before else {
            return place
                .silent_confirmations
                .is_some()
                .then_some((waiter, true));
        };
        place.silent_confirmations = None;
        let before = before.saturating_sub(1);
        place.before = Some(before);
        waiter.note_heard(now);
        self.set_check(channel, now + check_delay(before, unit));
        Some((waiter, before < NEAR))
    }

    fn set_check(&mut self, channel: &Channel, check_at: Instant) {
        let Some(place) = self.places.get_mut(channel) else {
            return;
        };
        if let Some(former) = place.check_at.replace(check_at) {
            self.checks.remove(&(former, Arc::clone(channel)));
        }
        self.checks.insert((check_at, Arc::clone(channel)));
    }

    /// Removes the place of a process to which the node sends `signal`: it has taken it from the
    /// list. Returns its waiter.
    pub(super) fn take_woken(
        &mut self,
        channel: &str,
        signal: Signal,
        now: Instant,
    ) -> Option<Arc<ChannelWaiter>> {
        let waiter = self.remove_place(channel)?.waiter;
        // A check hears of no release.
        if signal == Signal::Woken {
            waiter.note_heard(now);
        }
        Some(waiter)
    }

    /// Removes the place of a waiter that leaves, or whose request failed. Returns whether it had
    /// one, which is to be given up.
    pub(super) fn remove(&mut self, channel: &str, waiter: &Arc<ChannelWaiter>) -> bool {
        let place = self.places.get(channel);
        let is_its = place.is_some_and(|place| Arc::ptr_eq(&place.waiter, waiter));
        is_its && self.remove_place(channel).is_some()
    }

    fn remove_place(&mut self, channel: &str) -> Option<Place> {
        let (channel, place) = self.places.remove_entry(channel)?;
        place.waiter.set_placed(false);
        if let Some(check_at) = place.check_at {
            self.checks.remove(&(check_at, channel));
        }
        Some(place)
    }

    /// Removes all places, because the connection to their node has ended.
    pub(super) fn clear(&mut self) {
        self.checks.clear();
        for (_, place) in self.places.drain() {
            place.waiter.set_placed(false);
        }
    }

    /// Returns when [`take_due`](Places::take_due) is to be called next.
    pub(super) fn next_check(&self) -> Option<Instant> {
        self.checks.first().map(|(at, _)| *at)
    }

    /// Returns the checks that are due, to be sent.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<PlaceRequest> {
        let mut due = Vec::new();
        while self.next_check().is_some_and(|at| at <= now) {
            let check = self.checks.pop_first();
            let place = check.and_then(|(_, channel)| self.places.get_mut(&channel));
            if let Some(place) = place {
                place.check_at = None;
                due.push(place.request(now, true));
            }
        }
        due
    }
}

/// Returns how long after a release a waiter checks that has this number of others before it.
fn check_delay(before: u32, unit: Duration) -> Duration {
    unit * CHECK_FACTOR.saturating_pow(before).min(MAX_CHECK_DELAY)
}

impl Place {
    fn request(&self, now: Instant, is_check: bool) -> PlaceRequest {
        PlaceRequest {
            key: self.key.clone(),
            is_check,
            waited: now.saturating_duration_since(self.since),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    #![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

    use super::*;
    use crate::protocol::kind::LockKind;
    use crate::time::clock;
    use crate::transport::inbox::Inbox;

    const UNIT: Duration = Duration::from_millis(2);

    /// Returns places of which one was asked for, its channel and its waiter.
    fn asked(now: Instant) -> (Places, Channel, Arc<ChannelWaiter>) {
        let mut places = Places::default();
        let key = Key::parse("", "x", LockKind::Exclusive).unwrap();
        let waiter = Arc::new(ChannelWaiter::new(&Arc::new(Inbox::new())));
        let request = places.ask(&key, &waiter, Some(now - UNIT), now);
        assert_eq!(request.unwrap().waited, UNIT);
        assert_eq!(places.ask(&key, &waiter, None, now), None, "asked before");
        (places, key.channel(), waiter)
    }

    #[test]
    fn waiter_without_a_confirmed_place_heeds_every_release() {
        let now = clock::now();
        let (mut places, channel, waiter) = asked(now);
        assert!(places.note_release(&channel, now, UNIT).is_none());
        assert!(!waiter.is_placed() && places.next_check().is_none());
        places.confirm(&channel, 3, now, UNIT);
        assert!(waiter.is_placed());
        assert!(places.note_release(&channel, now, UNIT).is_some());
    }

    #[test]
    fn check_comes_later_for_each_process_that_is_before() {
        let now = clock::now();
        for (before, units) in [(0, 1), (1, 1), (2, 4), (3, 16), (100, MAX_CHECK_DELAY)] {
            let (mut places, channel, _) = asked(now);
            places.confirm(&channel, before, now, UNIT);
            places.note_release(&channel, now, UNIT);
            let due = now + units * UNIT;
            assert_eq!(places.next_check(), Some(due), "{before} before");
            assert!(places.take_due(due - Duration::from_micros(1)).is_empty());
            assert_eq!(places.take_due(due).len(), 1);
            assert!(places.take_due(due + UNIT).is_empty(), "once per release");
        }
    }

    #[test]
    fn first_process_of_the_list_checks_once() {
        let now = clock::now();
        for before in [0, 1] {
            let (mut places, channel, _) = asked(now);
            places.confirm(&channel, before, now, UNIT);
            // It has waited for two units then, and checks a half of that later.
            let due = (before == 0).then_some(now + 2 * UNIT);
            assert_eq!(places.next_check(), due);
            assert_eq!(places.take_due(now + 2 * UNIT).len(), 1 - before as usize);
            places.confirm(&channel, 0, now + 2 * UNIT, UNIT);
            assert!(places.next_check().is_none(), "it has been told before");
        }
    }

    #[test]
    fn first_process_that_was_woken_in_vain_checks_soon_however_long_it_has_waited() {
        let now = clock::now();
        let since = now - 1_000 * UNIT;
        for (signal, is_soon) in [(Signal::Woken, true), (Signal::Released, false)] {
            let mut places = Places::default();
            let key = Key::parse("", "x", LockKind::Exclusive).unwrap();
            let (channel, waiter) = (key.channel(), ChannelWaiter::new(&Arc::new(Inbox::new())));
            let waiter = Arc::new(waiter);
            places.ask(&key, &waiter, Some(since), now).unwrap();
            places.confirm(&channel, 0, now, UNIT);
            places.take_woken(&channel, signal, now).unwrap();
            let request = places.ask(&key, &waiter, Some(since), now).unwrap();
            assert_eq!(request.waited, 1_000 * UNIT, "in front again");
            places.confirm(&channel, 0, now + UNIT, UNIT);
            let due = places.next_check().unwrap();
            assert_eq!(due <= now + 4 * UNIT, is_soon, "{signal:?}");
        }
    }

    #[test]
    fn waiter_that_yields_heeds_no_release_and_checks_as_soon_as_it_has_its_place() {
        let now = clock::now();
        for (before, units) in [(0, 1), (2, 16)] {
            let mut places = Places::default();
            let key = Key::parse("", "x", LockKind::Exclusive).unwrap();
            let waiter = Arc::new(ChannelWaiter::new(&Arc::new(Inbox::new())));
            assert!(places.ask(&key, &waiter, None, now).is_some());
            assert!(places.note_release(&key.channel(), now, UNIT).is_some());
            assert!(!waiter.is_placed() && places.next_check().is_none());
            places.confirm(&key.channel(), before, now, UNIT);
            assert_eq!(places.next_check(), Some(now + units * UNIT));
        }
    }

    #[test]
    fn first_waiter_that_has_not_asked_attempts_after_two_checks_without_a_release() {
        let now = clock::now();
        for (hears, befores, attempts) in [
            (false, [0, 0, 0], true),
            (false, [1, 0, 0], true),
            (false, [0, 1, 0], false),
            (true, [0, 0, 0], false),
        ] {
            let mut places = Places::default();
            let key = Key::parse("", "x", LockKind::Exclusive).unwrap();
            let waiter = Arc::new(ChannelWaiter::new(&Arc::new(Inbox::new())));
            places.ask(&key, &waiter, None, now).unwrap();
            for (told, before) in befores.into_iter().enumerate() {
                assert!(!waiter.has_signal(Signal::Subscribed), "{befores:?}");
                if hears && told == 2 {
                    places.note_release(&key.channel(), now, UNIT).unwrap();
                }
                places.confirm(&key.channel(), before, now, UNIT);
                if (told, befores) == (1, [0; 3]) {
                    assert_eq!(places.next_check(), Some(now + SECOND_CHECK * UNIT));
                }
            }
            assert_eq!(
                waiter.has_signal(Signal::Subscribed),
                attempts,
                "{befores:?}"
            );
        }
    }

    #[test]
    fn process_far_behind_asks_once_for_news_until_the_node_answers() {
        let now = clock::now();
        let (mut places, channel, waiter) = asked(now);
        assert_eq!(
            places.ask_for_news(&channel, &waiter, now),
            None,
            "no place"
        );
        for before in 0..NEAR {
            assert!(places.confirm(&channel, before, now, UNIT), "near");
            assert_eq!(places.ask_for_news(&channel, &waiter, now), None);
        }
        for _ in 0..2 {
            assert!(!places.confirm(&channel, NEAR, now, UNIT), "far");
            let asks = places.ask_for_news(&channel, &waiter, now).unwrap();
            assert!(asks.is_check && waiter.heard_at() >= Some(now - UNIT));
            assert_eq!(places.ask_for_news(&channel, &waiter, now), None);
        }
    }

    #[test]
    fn release_tells_whether_the_place_is_near_now() {
        let now = clock::now();
        let (mut places, channel, _) = asked(now);
        places.confirm(&channel, NEAR + 1, now, UNIT);
        for is_near in [false, true] {
            let released = places.note_release(&channel, now, UNIT);
            assert_eq!(released.map(|(_, is_near)| is_near), Some(is_near));
        }
    }

    #[test]
    fn release_counts_one_process_less_and_replaces_the_check() {
        let now = clock::now();
        let (mut places, channel, _) = asked(now);
        places.confirm(&channel, 3, now, UNIT);
        for units in [16, 4, 1, 1] {
            places.note_release(&channel, now, UNIT);
            assert_eq!(places.next_check(), Some(now + units * UNIT));
            assert_eq!(places.checks.len(), 1);
        }
    }

    #[test]
    fn place_ends_when_its_process_is_woken_or_its_waiter_leaves() {
        let now = clock::now();
        let ends: [fn(&mut Places, &Channel, &Arc<ChannelWaiter>); 3] = [
            |places, channel, waiter| {
                let woken = places.take_woken(channel, Signal::Woken, clock::now());
                let woken = woken.unwrap();
                assert!(Arc::ptr_eq(&woken, waiter));
            },
            |places, channel, waiter| {
                let other = Arc::new(ChannelWaiter::new(&Arc::new(Inbox::new())));
                assert!(!places.remove(channel, &other), "of another waiter");
                assert!(places.remove(channel, waiter));
            },
            |places, _, _| places.clear(),
        ];
        for end in ends {
            let (mut places, channel, waiter) = asked(now);
            places.confirm(&channel, 0, now, UNIT);
            places.note_release(&channel, now, UNIT);
            end(&mut places, &channel, &waiter);
            assert!(!waiter.is_placed() && places.next_check().is_none());
            assert!(!places.remove(&channel, &waiter));
            assert!(places.take_woken(&channel, Signal::Woken, now).is_none());
            places.confirm(&channel, 0, now, UNIT);
            assert!(!waiter.is_placed(), "a late message places nobody");
        }
    }
}
