//! The messages that a node publishes, and its waiting lists. Fake nodes and simulated servers
//! publish by it, and `store_conformance` compares it with real servers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::protocol::key::{Channel, Key, notice_channel};
use crate::protocol::kind::LeaseKind;
use crate::protocol::reply::Reply;
use crate::protocol::request::{Op, Request};
use crate::tests::fake_node::store::NodeStore;
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
                let own = request.lease.token().text();
                let list = self.waiting_list(key, now);
                list.places.retain(|(_, channel)| **channel != *own);
                return (Reply::Done, Messages::new());
            }
            Op::Notify => {
                let notice = (notice_channel(key.prefix()), Event::Check(key.channel()));
                return (Reply::Done, vec![notice]);
            }
            _ => {}
        }
        let reply = self.serve(request, now);
        let publishes = request.publish || request.op == Op::WakeListener;
        let has_failed = matches!(reply, Reply::Failed(_));
        if !publishes || has_failed || self.leaves_readers(request, now) {
            return (reply, Messages::new());
        }
        let wakes_next = request.op == Op::Release
            && request.is_single_exclusive()
            && request.keep_millis(now) == 0;
        let event = |channel| match wakes_next {
            true => Event::NextWoken(channel),
            false => Event::Message(channel),
        };
        let channels = request.lease.keys().as_slice().iter().map(Key::channel);
        let mut messages: Messages = channels.map(|c| (Arc::clone(&c), event(c))).collect();
        let counts = messages.iter().map(|(channel, _)| receivers(channel));
        let most = counts.max().unwrap_or_default();
        let woken = (wakes_next && most > 0).then(|| self.wake_first(key, now, receivers));
        let woken = woken.flatten();
        let is_told = request.publish && most > 0 && reply == Reply::Done;
        let reply = match (is_told, &woken) {
            (true, Some(_)) => Reply::DoneWoke(most),
            (true, None) => Reply::DoneNotified(most),
            (false, _) => reply,
        };
        messages.extend(woken);
        (reply, messages)
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
        let list = self.waiting_list(key, now);
        if is_free && request.publish {
            list.places.retain(|(_, channel)| *channel != own);
            return (Reply::Absent, vec![(own, Event::Free(lock))]);
        }
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

    /// Takes the first process that listens from the list. Returns the message that wakes it.
    fn wake_first(
        &mut self,
        key: &Key,
        now: Instant,
        receivers: &dyn Fn(&str) -> u64,
    ) -> Option<(Channel, Event)> {
        let places = &mut self.waiting_list(key, now).places;
        for _ in 0..MAX_PASSED_OVER.min(places.len()) {
            let (_, channel) = places.remove(0);
            if receivers(&channel) > 0 {
                return Some((channel, Event::Woken(key.channel())));
            }
        }
        None
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
