//! The messages that a node publishes, and its waiting lists. Fake nodes and simulated servers
//! publish by it, and `store_conformance` compares it with real servers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::protocol::key::{Channel, Key, notice_channel};
use crate::protocol::kind::LeaseKind;
use crate::protocol::reply::Reply;
use crate::protocol::request::{Op, Publish, Request};
use crate::protocol::scripts::NEAR;
use crate::tests::fake_node::store::NodeStore;
use crate::tests::fake_node::stored_lock::{StoredLock, keep_millis};
use crate::transport::node::traits::Event;

/// How long a waiting list is kept after its last change.
pub(crate) const LIST_TTL: Duration = Duration::from_secs(60);

/// The number of processes that a release passes over because they do not listen any more.
const MAX_PASSED_OVER: usize = 16;

/// The waiting list of a lock: the wake channel of each process, with the time since which its
/// caller waits.
#[derive(Clone, Debug, Default)]
pub(crate) struct WaitingList {
    pub(crate) places: Vec<(Instant, Channel)>,
    /// When the list is forgotten.
    pub(crate) end: Option<Instant>,
}

/// Messages to publish, in order, each with its channel.
pub(crate) type Messages = Vec<(Channel, Event)>;

impl NodeStore {
    /// Runs a request. Returns the reply, and the messages that the node publishes. `receivers`
    /// returns how many connections are subscribed to a channel.
    pub(crate) fn run(
        &mut self,
        request: &Request,
        now: Instant,
        receivers: &dyn Fn(&str) -> u64,
    ) -> (Reply, Messages) {
        let key = request.lease.key();
        match request.op {
            Op::TakePlace => return self.take_place(request, now, receivers),
            Op::LeavePlace => {
                let own = Channel::from(request.lease.token().text());
                let left = self.leave_list(key, now, &own);
                let messages = left.unwrap_or_else(|| self.pass_on(key, now, receivers));
                return (Reply::Done, messages);
            }
            Op::Notify => {
                let notice = (notice_channel(key.prefix()), Event::Notice(key.channel()));
                return (Reply::Done, vec![notice]);
            }
            _ => {}
        }
        let channels = self.channels_to_tell(request, now);
        let reply = self.serve(request, now);
        let has_failed = matches!(reply, Reply::Failed(_));
        if channels.is_empty() || has_failed || self.leaves_readers(request, now) {
            return (reply, Messages::new());
        }
        let is_kept = request.op == Op::Release && keep_millis(request, now) > 0;
        let wakes_next = request.op == Op::Release && request.is_single_exclusive() && !is_kept;
        let event = |channel| match (is_kept, wakes_next) {
            (true, _) => Event::Kept(channel),
            (false, true) => Event::NextWoken(channel),
            (false, false) => Event::Message(channel),
        };
        let channels = channels.into_iter();
        let mut messages: Messages = channels.map(|c| (Arc::clone(&c), event(c))).collect();
        let counts = messages.iter().map(|(channel, _)| receivers(channel));
        let most = counts.max().unwrap_or_default();
        let reads_list = wakes_next && (most > 0 || request.lease.was_subscribed());
        let woken = match reads_list {
            true => self.wake_first(key, now, receivers),
            false => Messages::new(),
        };
        let is_told = request.op != Op::WakeListener && reply == Reply::Done;
        let reply = match (is_told, most, woken.is_empty()) {
            (true, _, false) => Reply::DoneWoke(most.max(1)),
            (true, 1.., true) => Reply::DoneNotified(most),
            _ => reply,
        };
        messages.extend(woken);
        (reply, messages)
    }

    /// Returns the channels in which the node publishes a request that it is about to serve.
    fn channels_to_tell(&mut self, request: &Request, now: Instant) -> Vec<Channel> {
        let token = request.lease.token().text();
        let is_told = |key: &&Key| match request.publish {
            Publish::Never => request.op == Op::WakeListener,
            Publish::IfDeleted => has_token(self.stored_lock(key, now), &token),
            Publish::Always => true,
        };
        let keys = request.lease.keys().as_slice().iter();
        keys.filter(is_told).map(Key::channel).collect()
    }

    fn take_place(
        &mut self,
        request: &Request,
        now: Instant,
        receivers: &dyn Fn(&str) -> u64,
    ) -> (Reply, Messages) {
        let (key, own) = (request.lease.key(), request.lease.token().text());
        let (own, lock) = (Channel::from(own), key.channel());
        let is_free = self.stored_lock(key, now).owner.is_none();
        if is_free && request.publish == Publish::Always {
            let mut messages = self.leave_list(key, now, &own).unwrap_or_default();
            messages.push((own, Event::Free(lock)));
            return (Reply::Absent, messages);
        }
        let list = self.waiting_list(key, now);
        if !list.places.iter().any(|(_, channel)| *channel == own) {
            let since = now.checked_sub(Duration::from_millis(request.ttl));
            list.places.push((since.unwrap_or(now), Arc::clone(&own)));
            list.places.sort(); // equal times by the name, as in a sorted set
        }
        list.end = Some(now + LIST_TTL);
        let places = &mut list.places;
        let before = places.iter().position(|(_, channel)| *channel == own);
        let before = u32::try_from(before.unwrap_or_default()).unwrap_or(u32::MAX);
        if receivers(&own) == 0 {
            places.retain(|(_, channel)| *channel != own);
            return (Reply::Absent, Messages::new());
        }
        (Reply::Done, vec![(own, Event::Placed(lock, before))])
    }

    /// Removes a process from the list. Returns the message to the process that has come near;
    /// `None` without a place.
    fn leave_list(&mut self, key: &Key, now: Instant, own: &Channel) -> Option<Messages> {
        let places = &mut self.waiting_list(key, now).places;
        let count = places.len();
        places.retain(|(_, channel)| channel != own);
        (places.len() < count).then(|| tell_near(places, key, 1))
    }

    /// Wakes the first process of the list, as after a release.
    fn pass_on(&mut self, key: &Key, now: Instant, receivers: &dyn Fn(&str) -> u64) -> Messages {
        let mut messages = vec![(key.channel(), Event::NextWoken(key.channel()))];
        messages.extend(self.wake_first(key, now, receivers));
        messages
    }

    /// Takes the first process that listens from the list. Returns the message that wakes it, and
    /// those to the processes that have come near.
    fn wake_first(&mut self, key: &Key, now: Instant, receivers: &dyn Fn(&str) -> u64) -> Messages {
        let places = &mut self.waiting_list(key, now).places;
        for removed in 1..=MAX_PASSED_OVER.min(places.len()) {
            let (_, channel) = places.remove(0);
            if receivers(&channel) > 0 {
                let mut messages = vec![(channel, Event::Woken(key.channel()))];
                messages.extend(tell_near(places, key, removed));
                return messages;
            }
        }
        Messages::new()
    }

    /// Returns the waiting list of a key as it is at `now`.
    pub(crate) fn waiting_list(&mut self, key: &Key, now: Instant) -> &mut WaitingList {
        let list = self.waiting.entry(key.channel()).or_default();
        if list.end.is_some_and(|end| end <= now) {
            *list = WaitingList::default();
        }
        list
    }

    /// Returns whether other readers remain after a release: only the last reader's is published.
    fn leaves_readers(&mut self, request: &Request, now: Instant) -> bool {
        request.op == Op::Release
            && request.lease.kind() == LeaseKind::Read
            && !self
                .stored_lock(request.lease.key(), now)
                .readers
                .is_empty()
    }
}

/// Returns whether a release of the token deletes something.
fn has_token(stored: &StoredLock, token: &str) -> bool {
    let owner = stored.owner.iter().map(|(owner, _)| owner);
    let permits = stored.permits.values().map(|(owner, _)| owner);
    let mut tokens = owner.chain(permits).chain(stored.readers.keys());
    tokens.any(|stored| stored == token)
}

/// Returns the messages to the processes that have come near, after `removed` have left the list.
fn tell_near(places: &[(Instant, Channel)], key: &Key, removed: usize) -> Messages {
    let near = places.iter().enumerate().take(NEAR as usize);
    let new = near.skip((NEAR as usize).saturating_sub(removed));
    new.map(|(before, (_, channel))| {
        let before = u32::try_from(before).unwrap_or(u32::MAX);
        (Arc::clone(channel), Event::Placed(key.channel(), before))
    })
    .collect()
}
