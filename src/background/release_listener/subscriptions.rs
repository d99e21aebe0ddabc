//! The channels of the release listener: which have waiters, and which the server has confirmed.
//!
//! No I/O and no clock: the thread passes the time in and sends the commands that this returns. The
//! only effect outside is that it wakes the inboxes of waiters.
//!
//! - A channel counts as subscribed by its confirmation alone (L4). A message confirms nothing.
//! - A confirmation counts only for the SUBSCRIBE with its id. A confirmation in flight while the
//!   channel was removed and added again confirms nothing.
//! - A channel with a waiter is never removed.
//!
//! Tests: below, such as `message_does_not_confirm_its_channel`; beside `listener.rs`.
//!
//! | stage       | meaning                           | next                               |
//! |-------------|-----------------------------------|------------------------------------|
//! | `Unsent`    | no SUBSCRIBE on this connection   | `Sent`                             |
//! | `Sent(id)`  | SUBSCRIBE sent, no reply          | `Confirmed`; `Refused` or `Unsent` |
//! | `Confirmed` | messages arrive                   | `Unwanted`                         |
//! | `Refused`   | refused alone; waits end by time  |                                    |
//! | `Unwanted`  | UNSUBSCRIBE sent or to be sent    | `Unsent`                           |
//!
//! The end of the connection makes every channel `Unsent`. A channel without waiters is removed
//! after a delay, whatever its stage. A new waiter of a `Refused` channel sends no SUBSCRIBE. A
//! channel is `Unwanted` while its only waiter is far behind in a waiting list.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::protocol::key::Channel;
use crate::random::HashMap;
use crate::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use crate::time::clock;
use crate::transport::inbox::Inbox;

/// The largest number of channels in one SUBSCRIBE or UNSUBSCRIBE.
const MAX_CHANNELS: usize = 1000;

/// The channels of a listener.
pub(super) struct Subscriptions {
    entries: HashMap<Channel, Entry>,
    /// The channels whose last waiter has left, in the order of the times at which it left. An
    /// element is stale if its time is not the entry's `idle_since`.
    idle: VecDeque<(Instant, Channel)>,
    /// The channels without a SUBSCRIBE on this connection; `None` without a connection.
    unsent: Option<Vec<Channel>>,
    /// The channels that have become `Unwanted`, without an UNSUBSCRIBE.
    unwanted: Vec<Channel>,
    /// The id of the last SUBSCRIBE.
    last_command: u64,
    /// The id of the last SUBSCRIBE that was sent before the server first refused one on this
    /// connection; `None` before that. Each later SUBSCRIBE has one channel, because a refusal of
    /// several does not say which channel is denied.
    single_after: Option<u64>,
}

/// The state of one channel.
struct Entry {
    waiters: Vec<Arc<ChannelWaiter>>,
    stage: Stage,
    /// When the last waiter left; `None` while there is a waiter.
    idle_since: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Unsent,
    /// With the id of the SUBSCRIBE.
    Sent(u64),
    Confirmed,
    Refused,
    Unwanted,
}

impl Subscriptions {
    pub(super) fn new() -> Subscriptions {
        Subscriptions {
            entries: HashMap::default(),
            idle: VecDeque::new(),
            unsent: None,
            unwanted: Vec::new(),
            last_command: 0,
            single_after: None,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn is_confirmed(&self, channel: &str) -> bool {
        let entry = self.entries.get(channel);
        entry.is_some_and(|entry| entry.stage == Stage::Confirmed)
    }

    /// Adds a waiter. Returns whether its channel is new, so that a SUBSCRIBE has to be sent.
    pub(super) fn add_waiter(&mut self, channel: &Channel, waiter: &Arc<ChannelWaiter>) -> bool {
        let mut is_new = false;
        let entry = self.entries.entry(Arc::clone(channel)).or_insert_with(|| {
            is_new = true;
            Entry {
                waiters: Vec::new(),
                stage: Stage::Unsent,
                idle_since: None,
            }
        });
        entry.waiters.push(Arc::clone(waiter));
        entry.idle_since = None;
        if let (true, Some(unsent)) = (is_new, &mut self.unsent) {
            unsent.push(Arc::clone(channel));
        }
        is_new || self.mark_unsent(channel)
    }

    /// Makes a confirmed channel `Unwanted` unless it has several waiters. Its waiter has a place
    /// far behind in the waiting list, and the node tells it when that place is near.
    pub(super) fn mark_unwanted(&mut self, channel: &Channel) {
        if let Some(entry) = self.entries.get_mut(channel)
            && entry.stage == Stage::Confirmed
            && entry.waiters.len() == 1
        {
            entry.stage = Stage::Unwanted;
            self.unwanted.push(Arc::clone(channel));
        }
    }

    /// Makes an `Unwanted` channel unsent, because its waiter is near or has no place any more, or
    /// another one has come. Returns whether a SUBSCRIBE has to be sent.
    pub(super) fn mark_unsent(&mut self, channel: &str) -> bool {
        let entry = self.entries.get_key_value(channel);
        let Some((channel, _)) = entry.filter(|(_, entry)| entry.stage == Stage::Unwanted) else {
            return false;
        };
        let channel = Arc::clone(channel);
        if let Some(entry) = self.entries.get_mut(&channel) {
            entry.stage = Stage::Unsent;
        }
        self.unsent
            .iter_mut()
            .for_each(|unsent| unsent.push(Arc::clone(&channel)));
        true
    }

    /// Returns the channels of each UNSUBSCRIBE to send for channels that have become `Unwanted`. A
    /// channel that is unsent again is among them: its SUBSCRIBE follows.
    pub(super) fn take_unwanted(&mut self) -> Vec<Vec<Channel>> {
        let unwanted = std::mem::take(&mut self.unwanted);
        let chunks = unwanted.chunks(MAX_CHANNELS);
        chunks.map(<[Channel]>::to_vec).collect()
    }

    /// Removes a waiter. Its channel stays until [`remove_idle`](Subscriptions::remove_idle).
    pub(super) fn remove_waiter(
        &mut self,
        channel: &Channel,
        waiter: &Arc<ChannelWaiter>,
        now: Instant,
    ) {
        let Some(entry) = self.entries.get_mut(channel) else {
            return;
        };
        entry.waiters.retain(|other| !Arc::ptr_eq(other, waiter));
        if entry.waiters.is_empty() {
            entry.idle_since = Some(now);
            self.idle.push_back((now, Arc::clone(channel)));
        }
    }

    /// Records a new connection, on which every channel is unsent.
    pub(super) fn record_connected(&mut self) {
        self.unsent = Some(self.entries.keys().cloned().collect());
        self.single_after = None;
    }

    /// Records the end of the connection, and with it of all subscriptions.
    pub(super) fn record_disconnected(&mut self) {
        self.unsent = None;
        self.unwanted.clear();
        for entry in self.entries.values_mut() {
            entry.stage = Stage::Unsent;
        }
    }

    /// Returns the SUBSCRIBE commands to send, each with its id, and marks their channels as sent.
    pub(super) fn take_unsent(&mut self) -> Vec<(u64, Vec<Channel>)> {
        let Some(unsent) = self.unsent.as_mut().filter(|unsent| !unsent.is_empty()) else {
            return Vec::new();
        };
        let max = self.single_after.map_or(MAX_CHANNELS, |_| 1);
        let mut commands: Vec<(u64, Vec<Channel>)> = Vec::new();
        for channel in unsent.drain(..) {
            // A channel that was removed and added again is in `unsent` twice.
            let entry = self.entries.get_mut(&channel);
            let Some(entry) = entry.filter(|entry| entry.stage == Stage::Unsent) else {
                continue;
            };
            match commands.last_mut() {
                Some((_, channels)) if channels.len() < max => channels.push(channel),
                _ => {
                    self.last_command += 1;
                    commands.push((self.last_command, vec![channel]));
                }
            }
            entry.stage = Stage::Sent(self.last_command);
        }
        commands
    }

    /// Removes the channels that had no waiter for `delay`. Returns the channels of each
    /// UNSUBSCRIBE to send.
    pub(super) fn remove_idle(&mut self, now: Instant, delay: Duration) -> Vec<Vec<Channel>> {
        let mut subscribed = Vec::new();
        while self.next_removal(delay).is_some_and(|due| due <= now) {
            let Some((since, channel)) = self.idle.pop_front() else {
                break;
            };
            // Another waiter may have been added since then, and may have left again.
            let entry = self.entries.get(&channel);
            let Some(entry) = entry.filter(|entry| entry.idle_since == Some(since)) else {
                continue;
            };
            let is_subscribed = matches!(entry.stage, Stage::Sent(_) | Stage::Confirmed);
            self.entries.remove(&channel);
            if is_subscribed {
                subscribed.push(channel);
            }
        }
        let chunks = subscribed.chunks(MAX_CHANNELS);
        chunks.map(<[Channel]>::to_vec).collect()
    }

    /// Returns when [`remove_idle`](Subscriptions::remove_idle) is to be called next.
    pub(super) fn next_removal(&self, delay: Duration) -> Option<Instant> {
        self.idle.front().map(|(since, _)| *since + delay)
    }

    /// Records that the server has confirmed a channel of the SUBSCRIBE `command`, and wakes its
    /// waiters without a place in the waiting list. Without effect if the channel is not in that
    /// SUBSCRIBE any more.
    pub(super) fn confirm(&mut self, command: u64, channel: &str) {
        if let Some(entry) = self.entries.get_mut(channel)
            && entry.stage == Stage::Sent(command)
        {
            entry.stage = Stage::Confirmed;
            let waiters = entry.waiters.iter();
            let unplaced = waiters.filter(|waiter| !waiter.is_placed());
            unplaced.for_each(|waiter| waiter.signal(Signal::Subscribed));
        }
    }

    /// Records that the server has refused the SUBSCRIBE `command`.
    ///
    /// A command that was sent after the first refusal has one channel, which becomes `Refused` and
    /// is returned. The channels of an earlier command, even a single one, become `Unsent`, to be
    /// sent one by one.
    pub(super) fn refuse(&mut self, command: u64) -> Option<Channel> {
        let was_single = self.single_after.is_some_and(|last| command > last);
        self.single_after.get_or_insert(self.last_command);
        let stage = match was_single {
            true => Stage::Refused,
            false => Stage::Unsent,
        };
        let mut refused = Vec::new();
        for (channel, entry) in &mut self.entries {
            if entry.stage == Stage::Sent(command) {
                entry.stage = stage;
                refused.push(Arc::clone(channel));
            }
        }
        if was_single {
            return refused.into_iter().next();
        }
        if let Some(unsent) = &mut self.unsent {
            unsent.extend(refused);
        }
        None
    }

    /// Wakes the waiters of a channel on which a release was published, without `except`. Does not
    /// confirm the channel, because the message may belong to an earlier subscription.
    pub(super) fn signal_all(
        &self,
        channel: &str,
        signal: Signal,
        except: Option<&Arc<ChannelWaiter>>,
    ) {
        let entry = self.entries.get(channel);
        let waiters = entry.map_or(&[][..], |entry| &entry.waiters);
        let is_excepted =
            |waiter: &Arc<ChannelWaiter>| except.is_some_and(|e| Arc::ptr_eq(e, waiter));
        for waiter in waiters.iter().filter(|waiter| !is_excepted(waiter)) {
            waiter.signal(signal);
        }
    }
}

/// A caller that waits for a release on one channel.
pub(super) struct ChannelWaiter {
    inbox: Arc<Inbox>,
    /// The greatest [`Signal`] since the caller last took the signal.
    signal: AtomicU8,
    /// Whether it has a place in the waiting list of its lock.
    is_placed: AtomicBool,
    /// When the retry delay of a placed waiter began: at its last release, wake-up or check for a
    /// release that it has missed. In µs of the steady clock.
    heard_at: AtomicU64,
}

/// Why a waiter was woken. A greater signal replaces a lesser one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Signal {
    /// The waiter was not woken.
    None,
    /// The waiter is to attempt once more. The channel is confirmed, and a release before that may
    /// have been missed. Or two checks found the lock held, without a release between them.
    Subscribed,
    /// A release was published, or a check found the lock free.
    Released,
    /// A release was published of a lock that is kept for a time, after which no message follows.
    Kept,
    /// A release was published, and the node has woken this waiter alone.
    Woken,
}

impl ChannelWaiter {
    pub(super) fn new(inbox: &Arc<Inbox>) -> ChannelWaiter {
        ChannelWaiter {
            inbox: Arc::clone(inbox),
            signal: AtomicU8::new(Signal::None as u8),
            is_placed: AtomicBool::new(false),
            heard_at: AtomicU64::new(0),
        }
    }

    pub(super) fn set_placed(&self, is_placed: bool) {
        self.is_placed.store(is_placed, Ordering::Release);
    }

    pub(super) fn is_placed(&self) -> bool {
        self.is_placed.load(Ordering::Acquire)
    }

    pub(super) fn note_heard(&self, now: Instant) {
        self.heard_at
            .store(clock::to_micros(now), Ordering::Release);
    }

    /// Returns when the retry delay of a placed waiter began: at its last release, wake-up or check
    /// for a release that it has missed.
    pub(super) fn heard_at(&self) -> Option<Instant> {
        clock::from_micros(self.heard_at.load(Ordering::Acquire))
    }

    /// Raises the signal and wakes the waiter.
    pub(super) fn signal(&self, signal: Signal) {
        self.raise(signal);
        self.inbox.wake();
    }

    /// Raises the signal to `signal`, unless it is greater already. Does not wake the waiter.
    pub(super) fn raise(&self, signal: Signal) {
        self.signal.fetch_max(signal as u8, Ordering::AcqRel);
    }

    /// Returns the signal and resets it to `None`.
    pub(super) fn take_signal(&self) -> Signal {
        match self.signal.swap(Signal::None as u8, Ordering::AcqRel) {
            0 => Signal::None,
            1 => Signal::Subscribed,
            2 => Signal::Released,
            3 => Signal::Kept,
            _ => Signal::Woken,
        }
    }

    /// Returns whether the signal is at least `min`.
    pub(super) fn has_signal(&self, min: Signal) -> bool {
        self.signal.load(Ordering::Acquire) >= min as u8
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const DELAY: Duration = Duration::from_millis(500);

    fn waiter() -> Arc<ChannelWaiter> {
        Arc::new(ChannelWaiter::new(&Arc::new(Inbox::new())))
    }

    /// Returns channels that wait for their SUBSCRIBE on a new connection.
    fn unsent(names: &[&str]) -> (Subscriptions, Vec<Channel>) {
        let mut all = Subscriptions::new();
        let channels: Vec<Channel> = names.iter().map(|name| Channel::from(*name)).collect();
        for channel in &channels {
            assert!(all.add_waiter(channel, &waiter()));
        }
        all.record_connected();
        (all, channels)
    }

    /// Takes the only SUBSCRIBE to send, and returns its id.
    fn send(all: &mut Subscriptions) -> u64 {
        let commands = all.take_unsent();
        assert_eq!(commands.len(), 1);
        commands[0].0
    }

    #[test]
    fn message_does_not_confirm_its_channel() {
        let mut all = Subscriptions::new();
        let (x, waiter): (Channel, _) = ("x".into(), waiter());
        all.record_connected();
        assert!(all.add_waiter(&x, &waiter));
        let first = send(&mut all);
        all.confirm(first, "x");
        assert_eq!(waiter.take_signal(), Signal::Subscribed);
        all.remove_waiter(&x, &waiter, clock::now());
        let now = clock::now() + DELAY;
        assert_eq!(all.remove_idle(now, DELAY), [vec![Arc::clone(&x)]]);
        // A release is published before the server reads the UNSUBSCRIBE, and a waiter comes again.
        assert!(all.add_waiter(&x, &waiter));
        all.signal_all("x", Signal::Kept, None);
        all.signal_all("x", Signal::Released, None);
        assert!(!all.is_confirmed("x"));
        assert_eq!(waiter.take_signal(), Signal::Kept);
        let second = send(&mut all);
        all.signal_all("x", Signal::Released, None);
        assert!(!all.is_confirmed("x"));
        all.confirm(second, "x");
        assert!(all.is_confirmed("x"));
        assert_eq!(waiter.take_signal(), Signal::Released);
    }

    #[test]
    fn channel_of_a_far_waiter_is_subscribed_again_without_waking_it() {
        let mut all = Subscriptions::new();
        let (x, far): (Channel, _) = ("x".into(), waiter());
        all.record_connected();
        all.add_waiter(&x, &far);
        all.mark_unwanted(&x);
        assert!(all.take_unwanted().is_empty(), "not confirmed");
        let first = send(&mut all);
        all.confirm(first, "x");
        far.take_signal();
        far.set_placed(true);
        all.mark_unwanted(&x);
        assert_eq!(all.take_unwanted(), [vec![Arc::clone(&x)]]);
        assert!(!all.is_confirmed("x") && all.take_unsent().is_empty());
        assert!(all.mark_unsent("x") && !all.mark_unsent("x"));
        let second = send(&mut all);
        all.confirm(second, "x");
        assert!(all.is_confirmed("x"));
        assert_eq!(far.take_signal(), Signal::None, "its node wakes it");
    }

    #[test]
    fn unwanted_channel_is_subscribed_for_another_waiter_and_on_a_new_connection() {
        let mut all = Subscriptions::new();
        let (x, far, other): (Channel, _, _) = ("x".into(), waiter(), waiter());
        all.record_connected();
        all.add_waiter(&x, &far);
        let first = send(&mut all);
        all.confirm(first, "x");
        all.mark_unwanted(&x);
        assert!(all.add_waiter(&x, &other), "a SUBSCRIBE is to be sent");
        let second = send(&mut all);
        all.confirm(second, "x");
        all.mark_unwanted(&x);
        assert!(all.is_confirmed("x"), "the other one has no place");
        all.remove_waiter(&x, &other, clock::now());
        all.mark_unwanted(&x);
        all.record_disconnected();
        all.record_connected();
        send(&mut all);
        assert!(all.take_unwanted().is_empty(), "of the former connection");
    }

    #[test]
    fn confirmation_of_an_earlier_subscribe_does_not_confirm_its_channel() {
        let mut all = Subscriptions::new();
        let (x, waiter): (Channel, _) = ("x".into(), waiter());
        all.record_connected();
        all.add_waiter(&x, &waiter);
        let first = send(&mut all);
        // The server is slow: the waiter leaves and comes again before the confirmation.
        all.remove_waiter(&x, &waiter, clock::now());
        assert_eq!(all.remove_idle(clock::now() + DELAY, DELAY).len(), 1);
        all.add_waiter(&x, &waiter);
        let second = send(&mut all);
        all.confirm(first, "x");
        assert!(!all.is_confirmed("x"), "an UNSUBSCRIBE follows it");
        all.confirm(second, "x");
        assert!(all.is_confirmed("x"));
    }

    #[test]
    fn channels_that_are_new_together_are_sent_in_one_command_and_once() {
        let names: Vec<String> = (0..MAX_CHANNELS + 1).map(|n| format!("x{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let (mut all, channels) = unsent(&names);
        let commands = all.take_unsent();
        let sizes = commands.iter().map(|(_, channels)| channels.len());
        assert_eq!(sizes.collect::<Vec<_>>(), [MAX_CHANNELS, 1]);
        assert!(all.take_unsent().is_empty() && all.len() == channels.len());
        all.record_disconnected();
        assert!(all.take_unsent().is_empty(), "there is no connection");
        all.record_connected();
        assert_eq!(all.take_unsent().len(), 2);
    }

    #[test]
    fn denied_channel_is_refused_alone_and_the_others_are_subscribed() {
        let (mut all, _) = unsent(&["a", "b", "c"]);
        let together = send(&mut all);
        assert_eq!(all.refuse(together), None);
        let single = all.take_unsent();
        assert_eq!(single.len(), 3);
        for (command, channels) in single {
            match &*channels[0] {
                "b" => assert_eq!(all.refuse(command).as_deref(), Some("b")),
                other => all.confirm(command, other),
            }
        }
        assert!(all.is_confirmed("a") && all.is_confirmed("c") && !all.is_confirmed("b"));
        assert!(all.take_unsent().is_empty(), "no second SUBSCRIBE");
    }

    #[test]
    fn channel_without_waiters_is_removed_only_after_the_delay() {
        let mut all = Subscriptions::new();
        let channels: Vec<Channel> = ["a", "b", "c"].map(Channel::from).into();
        let waiters: Vec<_> = channels.iter().map(|_| waiter()).collect();
        let start = clock::now();
        all.record_connected();
        for (channel, waiter) in channels.iter().zip(&waiters) {
            all.add_waiter(channel, waiter);
        }
        let command = send(&mut all);
        all.confirm(command, "a");
        all.remove_waiter(&channels[0], &waiters[0], start);
        all.remove_waiter(&channels[1], &waiters[1], start + DELAY / 2);
        assert_eq!(all.next_removal(DELAY), Some(start + DELAY));
        // A waiter of the first channel comes again, and leaves a little later.
        all.add_waiter(&channels[0], &waiters[0]);
        assert!(all.remove_idle(start + DELAY, DELAY).is_empty());
        all.remove_waiter(&channels[0], &waiters[0], start + DELAY);
        let removed = all.remove_idle(start + 2 * DELAY, DELAY);
        assert_eq!(
            removed,
            [vec![Arc::clone(&channels[1]), Arc::clone(&channels[0])]]
        );
        assert!(all.len() == 1 && all.next_removal(DELAY).is_none());
    }
}
