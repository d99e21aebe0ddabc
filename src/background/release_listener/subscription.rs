//! A caller's subscription: it reads the signals of one channel, and asks for a place in its
//! waiting list. It never blocks on the listener's connection. Its drop gives up the place; the
//! channel stays subscribed for `UNSUBSCRIBE_DELAY`.
//!
//! Tests: beside `listener.rs`; `src/tests/engine/wake_up.rs`, `src/tests/engine/waiting_list.rs`.

use std::sync::Arc;
use std::time::Instant;

use crate::background::release_listener::shared::{ListenerShared, ListenerState};
use crate::background::release_listener::subscriptions::{ChannelWaiter, Signal};
use crate::protocol::key::{Channel, Key};
use crate::time::clock;
use crate::transport::inbox::Inbox;

/// A caller's subscription to the channel of one key. Its drop ends the subscription and gives up
/// the caller's place.
pub(crate) struct Subscription<'a> {
    shared: &'a ListenerShared,
    key: Key,
    pub(super) channel: Channel,
    pub(super) waiter: Arc<ChannelWaiter>,
}

impl<'a> Subscription<'a> {
    /// Adds a waiter to the channel of a key. Returns its subscription, and whether the channel is
    /// new.
    pub(super) fn add(
        shared: &'a ListenerShared,
        state: &mut ListenerState,
        key: &Key,
        inbox: &Arc<Inbox>,
    ) -> (Subscription<'a>, bool) {
        let channel = key.channel();
        let waiter = Arc::new(ChannelWaiter::new(inbox));
        let is_new = state.subscriptions.add_waiter(&channel, &waiter);
        let subscription = Subscription {
            shared,
            key: key.clone(),
            channel,
            waiter,
        };
        (subscription, is_new)
    }

    /// Returns whether this is the subscription of `key`.
    pub(crate) fn is_at(&self, key: &Key) -> bool {
        *self.channel == *key.as_str()
    }

    /// Returns the signal since the last call, and resets it.
    pub(crate) fn take_signal(&self) -> Signal {
        self.waiter.take_signal()
    }

    /// Asks for a place in the waiting list of the lock. Returns whether the node was asked, now or
    /// before. Does not block.
    ///
    /// `since` is when the caller had its entries in the lock table. It is `None` if the caller has
    /// made no attempt, because its process released the lock a moment ago and yields to others.
    /// Such a caller sleeps through a `next` message until the node has told the place; any other
    /// caller is woken by every release until then.
    pub(crate) fn ask_place(&self, since: Option<Instant>) -> bool {
        let now = clock::now();
        let mut state = self.shared.state.lock();
        let Some(node) = state.node.filter(|_| {
            state.subscriptions.is_confirmed(&self.channel)
                && !self.shared.place_sink.has_refused(now)
        }) else {
            return false;
        };
        if since.is_none() {
            self.waiter.take_signal(); // of the release of its own process
        }
        let request = state.places.ask(&self.key, &self.waiter, since, now);
        drop(state); // unlock before sending
        if let Some(request) = request {
            self.shared.take_place(&request, node);
        }
        true
    }

    /// Checks whether the lock is free, if the caller has a place far behind and has heard of no
    /// release for its retry delay. Does not block. Returns whether the node was asked.
    pub(crate) fn ask_for_news(&self) -> bool {
        let now = clock::now();
        let mut state = self.shared.state.lock();
        let node = state.node;
        let places = &mut state.places;
        let request = places.ask_for_news(&self.channel, &self.waiter, now);
        drop(state); // unlock before sending
        let (Some(request), Some(node)) = (request, node) else {
            return false;
        };
        self.shared.take_place(&request, node);
        true
    }

    /// Returns when the retry delay of a placed caller began: at its last release, wake-up or check
    /// for a release that it has missed.
    pub(crate) fn heard_at(&self) -> Option<Instant> {
        self.waiter.heard_at()
    }

    /// Returns whether the caller has a place in the waiting list of the lock.
    pub(crate) fn is_placed(&self) -> bool {
        self.waiter.is_placed()
    }

    /// Returns whether there is a signal of at least `min`. Does not reset it.
    pub(crate) fn has_signal(&self, min: Signal) -> bool {
        self.waiter.has_signal(min)
    }
}

impl Drop for Subscription<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        let subscriptions = &mut state.subscriptions;
        subscriptions.remove_waiter(&self.channel, &self.waiter, clock::now());
        // The wake-up of a waiter that leaves goes to the next process of the list.
        let had_place = state.places.remove(&self.channel, &self.waiter)
            || self.waiter.has_signal(Signal::Woken);
        let node = state.node.filter(|_| had_place);
        drop(state); // unlock before sending
        if let Some(node) = node {
            self.shared.leave_place(&self.key, node);
        }
    }
}
