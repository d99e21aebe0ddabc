//! Which channels are wanted, and which of them the server has confirmed: a state machine without I/O.
//!
//! The replies to a SUBSCRIBE are matched to that very command. So what was on its way before a channel was dropped and wanted
//! again, a message or a confirmation, does not make it confirmed.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use crate::protocol::key::Channel;
use crate::transport::inbox::Inbox;

/// The most channels of one SUBSCRIBE or UNSUBSCRIBE.
const MAX_CHANNELS: usize = 1000;

/// The channels of a listener.
pub(crate) struct Subscriptions {
    entries: HashMap<Channel, Entry>,
    /// The channels whose last waiter has left, each with the time of that, in its order.
    idle: VecDeque<(Instant, Channel)>,
    /// The channels that the connection has not been asked for; `None` without a connection, where that is all of them.
    unsent: Option<Vec<Channel>>,
    /// The number of the last SUBSCRIBE.
    last: u64,
    /// The server has refused several channels together, one of which may be denied: SUBSCRIBEs after that of this number are of
    /// one channel each.
    one_by_one: Option<u64>,
}

struct Entry {
    waiters: Vec<Arc<ChannelWaiter>>,
    stage: Stage,
    /// Since when nobody waits.
    idle: Option<Instant>,
}

/// `Unsent → Sent → Confirmed | Refused`; the end of the connection makes it `Unsent` again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Unsent,
    /// With the SUBSCRIBE of this number.
    Sent(u64),
    Confirmed,
    Refused,
}

impl Subscriptions {
    pub(crate) fn new() -> Subscriptions {
        Subscriptions {
            entries: HashMap::new(),
            idle: VecDeque::new(),
            unsent: None,
            last: 0,
            one_by_one: None,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn is_confirmed(&self, channel: &str) -> bool {
        let entry = self.entries.get(channel);
        entry.is_some_and(|entry| entry.stage == Stage::Confirmed)
    }

    /// Adds a waiter. Returns whether the channel is a new one, which is to be subscribed.
    pub(crate) fn enter(&mut self, channel: &Channel, waiter: &Arc<ChannelWaiter>) -> bool {
        let mut is_new = false;
        let entry = self.entries.entry(Arc::clone(channel)).or_insert_with(|| {
            is_new = true;
            Entry {
                waiters: Vec::new(),
                stage: Stage::Unsent,
                idle: None,
            }
        });
        entry.waiters.push(Arc::clone(waiter));
        entry.idle = None;
        if let (true, Some(unsent)) = (is_new, &mut self.unsent) {
            unsent.push(Arc::clone(channel));
        }
        is_new
    }

    /// Removes a waiter.
    pub(crate) fn leave(&mut self, channel: &Channel, waiter: &Arc<ChannelWaiter>, now: Instant) {
        let Some(entry) = self.entries.get_mut(channel) else {
            return;
        };
        entry.waiters.retain(|other| !Arc::ptr_eq(other, waiter));
        if entry.waiters.is_empty() {
            entry.idle = Some(now);
            self.idle.push_back((now, Arc::clone(channel)));
        }
    }

    /// A connection stands, and has been asked for nothing.
    pub(crate) fn begin(&mut self) {
        self.unsent = Some(self.entries.keys().cloned().collect());
        self.one_by_one = None;
    }

    /// The connection has ended, and with it all subscriptions.
    pub(crate) fn end(&mut self) {
        self.unsent = None;
        for entry in self.entries.values_mut() {
            entry.stage = Stage::Unsent;
        }
    }

    /// Returns the SUBSCRIBE commands that are to be sent, each with its number.
    pub(crate) fn take_unsent(&mut self) -> Vec<(u64, Vec<Channel>)> {
        let Some(unsent) = self.unsent.as_mut().filter(|unsent| !unsent.is_empty()) else {
            return Vec::new();
        };
        let together = self.one_by_one.map_or(MAX_CHANNELS, |_| 1);
        let mut commands: Vec<(u64, Vec<Channel>)> = Vec::new();
        for channel in unsent.drain(..) {
            // It may have been swept meanwhile, and be there again.
            let entry = self.entries.get_mut(&channel);
            let Some(entry) = entry.filter(|entry| entry.stage == Stage::Unsent) else {
                continue;
            };
            match commands.last_mut() {
                Some((_, channels)) if channels.len() < together => channels.push(channel),
                _ => {
                    self.last += 1;
                    commands.push((self.last, vec![channel]));
                }
            }
            entry.stage = Stage::Sent(self.last);
        }
        commands
    }

    /// Forgets the channels at which nobody has waited for `linger`. Returns the UNSUBSCRIBE commands that are to be sent.
    pub(crate) fn sweep(&mut self, now: Instant, linger: Duration) -> Vec<Vec<Channel>> {
        let mut swept = Vec::new();
        while self.next_sweep(linger).is_some_and(|due| due <= now) {
            let Some((since, channel)) = self.idle.pop_front() else {
                break;
            };
            // Somebody may have waited there since then.
            let entry = self.entries.get(&channel);
            let Some(entry) = entry.filter(|entry| entry.idle == Some(since)) else {
                continue;
            };
            let is_subscribed = matches!(entry.stage, Stage::Sent(_) | Stage::Confirmed);
            self.entries.remove(&channel);
            if is_subscribed {
                swept.push(channel);
            }
        }
        let chunks = swept.chunks(MAX_CHANNELS);
        chunks.map(<[Channel]>::to_vec).collect()
    }

    /// Returns when there is something to sweep.
    pub(crate) fn next_sweep(&self, linger: Duration) -> Option<Instant> {
        self.idle.front().map(|(since, _)| *since + linger)
    }

    /// The server has confirmed a channel of a SUBSCRIBE.
    pub(crate) fn confirm(&mut self, command: u64, channel: &str) {
        if let Some(entry) = self.entries.get_mut(channel)
            && entry.stage == Stage::Sent(command)
        {
            entry.stage = Stage::Confirmed;
            entry.wake(Signal::Subscribed);
        }
    }

    /// The server has refused a SUBSCRIBE. Returns the channel that it refuses, if it was asked for one alone; of several each is
    /// to be sent again.
    pub(crate) fn refuse(&mut self, command: u64) -> Option<Channel> {
        let is_of = |entry: &Entry| entry.stage == Stage::Sent(command);
        let of_it: Vec<Channel> = self
            .entries
            .iter()
            .filter(|(_, entry)| is_of(entry))
            .map(|(channel, _)| Arc::clone(channel))
            .collect();
        let was_alone = self.one_by_one.is_some_and(|last| command > last);
        self.one_by_one.get_or_insert(self.last);
        for channel in &of_it {
            if let Some(entry) = self.entries.get_mut(channel) {
                entry.stage = if was_alone {
                    Stage::Refused
                } else {
                    Stage::Unsent
                };
            }
        }
        match (was_alone, &mut self.unsent) {
            (true, _) => of_it.into_iter().next(),
            (false, Some(unsent)) => {
                unsent.extend(of_it);
                None
            }
            (false, None) => None,
        }
    }

    /// A message has come. Whether the channel is subscribed it does not say: it may be one of before.
    pub(crate) fn message(&self, channel: &str) {
        if let Some(entry) = self.entries.get(channel) {
            entry.wake(Signal::Released);
        }
    }
}

impl Entry {
    fn wake(&self, heard: Signal) {
        for waiter in &self.waiters {
            waiter.signal(heard);
            waiter.inbox.wake();
        }
    }
}

pub(crate) struct ChannelWaiter {
    pub(crate) inbox: Arc<Inbox>,
    /// The greatest of what it has heard since it looked last.
    pub(crate) heard: AtomicU8,
}

/// What a waiter has heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Signal {
    None,
    /// From now on a release is heard; one before may not have been.
    Subscribed,
    /// There was a release.
    Released,
}

impl ChannelWaiter {
    pub(crate) fn signal(&self, heard: Signal) {
        self.heard.fetch_max(heard as u8, Ordering::AcqRel);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::*;
    use crate::background::release_listener::subscriptions::{ChannelWaiter, Signal};
    use crate::time::clock;
    use crate::transport::inbox::Inbox;

    const LINGER: Duration = Duration::from_millis(500);

    fn waiter() -> Arc<ChannelWaiter> {
        Arc::new(ChannelWaiter {
            inbox: Arc::new(Inbox::new()),
            heard: AtomicU8::new(Signal::None as u8),
        })
    }

    fn heard(waiter: &ChannelWaiter) -> u8 {
        waiter.heard.swap(Signal::None as u8, Ordering::SeqCst)
    }

    fn wanted(names: &[&str]) -> (Subscriptions, Vec<Channel>) {
        let mut all = Subscriptions::new();
        let channels: Vec<Channel> = names.iter().map(|name| Channel::from(*name)).collect();
        for channel in &channels {
            assert!(all.enter(channel, &waiter()));
        }
        all.begin();
        (all, channels)
    }

    /// Sends what is to be sent as one SUBSCRIBE, and returns its number.
    fn send(all: &mut Subscriptions) -> u64 {
        let commands = all.take_unsent();
        assert_eq!(commands.len(), 1);
        commands[0].0
    }

    #[test]
    fn a_message_does_not_confirm_its_channel() {
        let mut all = Subscriptions::new();
        let (x, waits): (Channel, _) = ("x".into(), waiter());
        all.begin();
        assert!(all.enter(&x, &waits));
        let first = send(&mut all);
        all.confirm(first, "x");
        assert_eq!(heard(&waits), Signal::Subscribed as u8);
        all.leave(&x, &waits, clock::now());
        let now = clock::now() + LINGER;
        assert_eq!(all.sweep(now, LINGER), [vec![Arc::clone(&x)]]);
        // A release was published before the server has read the UNSUBSCRIBE, and somebody waits again.
        assert!(all.enter(&x, &waits));
        all.message("x");
        assert!(!all.is_confirmed("x"));
        assert_eq!(heard(&waits), Signal::Released as u8);
        let second = send(&mut all);
        all.message("x");
        assert!(!all.is_confirmed("x"));
        all.confirm(second, "x");
        assert!(all.is_confirmed("x"));
        assert_eq!(heard(&waits), Signal::Released as u8);
    }

    #[test]
    fn a_confirmation_of_an_earlier_subscribe_does_not_confirm_its_channel() {
        let mut all = Subscriptions::new();
        let (x, waits): (Channel, _) = ("x".into(), waiter());
        all.begin();
        all.enter(&x, &waits);
        let first = send(&mut all);
        // A slow server: nobody waits any more before it has confirmed, and then somebody does.
        all.leave(&x, &waits, clock::now());
        assert_eq!(all.sweep(clock::now() + LINGER, LINGER).len(), 1);
        all.enter(&x, &waits);
        let second = send(&mut all);
        all.confirm(first, "x");
        assert!(!all.is_confirmed("x"), "an UNSUBSCRIBE comes behind it");
        all.confirm(second, "x");
        assert!(all.is_confirmed("x"));
    }

    #[test]
    fn channels_that_are_new_together_are_sent_in_one_command_and_once() {
        let names: Vec<String> = (0..MAX_CHANNELS + 1).map(|n| format!("x{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let (mut all, channels) = wanted(&names);
        let commands = all.take_unsent();
        let sizes = commands.iter().map(|(_, channels)| channels.len());
        assert_eq!(sizes.collect::<Vec<_>>(), [MAX_CHANNELS, 1]);
        assert!(all.take_unsent().is_empty() && all.len() == channels.len());
        all.end();
        assert!(all.take_unsent().is_empty(), "there is no connection");
        all.begin();
        assert_eq!(all.take_unsent().len(), 2);
    }

    #[test]
    fn a_denied_channel_is_refused_alone_and_the_others_are_subscribed() {
        let (mut all, _) = wanted(&["a", "b", "c"]);
        let together = send(&mut all);
        assert_eq!(all.refuse(together), None);
        let each = all.take_unsent();
        assert_eq!(each.len(), 3);
        for (command, channels) in each {
            match &*channels[0] {
                "b" => assert_eq!(all.refuse(command).as_deref(), Some("b")),
                other => all.confirm(command, other),
            }
        }
        assert!(all.is_confirmed("a") && all.is_confirmed("c") && !all.is_confirmed("b"));
        assert!(all.take_unsent().is_empty(), "it is not asked for again");
    }

    #[test]
    fn a_sweep_drops_only_what_nobody_waits_for_and_only_when_it_is_due() {
        let mut all = Subscriptions::new();
        let channels: Vec<Channel> = ["a", "b", "c"].map(Channel::from).into();
        let waiters: Vec<_> = channels.iter().map(|_| waiter()).collect();
        let start = clock::now();
        all.begin();
        for (channel, waiter) in channels.iter().zip(&waiters) {
            all.enter(channel, waiter);
        }
        let command = send(&mut all);
        all.confirm(command, "a");
        all.leave(&channels[0], &waiters[0], start);
        all.leave(&channels[1], &waiters[1], start + LINGER / 2);
        assert_eq!(all.next_sweep(LINGER), Some(start + LINGER));
        // Somebody waits for the first one again, and no more a little later.
        all.enter(&channels[0], &waiters[0]);
        assert!(all.sweep(start + LINGER, LINGER).is_empty());
        all.leave(&channels[0], &waiters[0], start + LINGER);
        let swept = all.sweep(start + 2 * LINGER, LINGER);
        assert_eq!(
            swept,
            [vec![Arc::clone(&channels[1]), Arc::clone(&channels[0])]]
        );
        assert!(all.len() == 1 && all.next_sweep(LINGER).is_none());
    }
}
