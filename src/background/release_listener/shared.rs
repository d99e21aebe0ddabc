//! Channels, their waiters, and the thread that listens.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use log::{Level, debug, info, log};
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::background::release_listener::rests::{RECONNECT_DELAY, Rests};
use crate::background::release_listener::subscriptions::{ChannelWaiter, Signal, Subscriptions};
use crate::background::release_listener::yielding::Courtesies;
use crate::error::NodeFailure;
use crate::protocol::key::{Channel, Key};
use crate::protocol::key_set::KeySet;
use crate::protocol::lease::Lease;
use crate::random;
use crate::sync::threads;
use crate::time::clock;
use crate::transport::inbox::Inbox;
use crate::transport::node::traits::{Connector, Event, Subscriber};
use crate::transport::node_group::NodeGroup;
use crate::transport::pipeline;

/// The thread's name.
pub(crate) const NAME: &str = "redguard-listener";

/// A subscription outlives its last waiter by this, since who waited for a lock is likely to wait for it again.
const UNSUBSCRIBE_DELAY: Duration = Duration::from_millis(500);

/// So long it hears nothing before it asks for a sign of life. As often it looks whether a node before its own can be had.
const PING_INTERVAL: Duration = Duration::from_secs(1);

/// The number of the SUBSCRIBE to the private channel.
pub(crate) const PRIVATE: u64 = 0;

pub(crate) struct ListenerShared {
    pub(crate) state: Mutex<ListenerState>,
    pub(crate) changed: Condvar,
    pub(crate) nodes: Arc<NodeGroup>,
    /// The private channel on which the thread is told that there is something to do: a read cannot be interrupted.
    pub(crate) wake_channel: Arc<Lease>,
    /// How many channels there are, so that who does not wait need not ask.
    pub(crate) channels: AtomicUsize,
    /// How many keys others were seen to listen to.
    pub(crate) courtesies: AtomicUsize,
}

pub(crate) struct ListenerState {
    pub(crate) subscriptions: Subscriptions,
    /// Until when others are let pass who were heard to listen.
    pub(crate) courtesies: Courtesies,
    /// Where the thread listens.
    pub(crate) node: Option<usize>,
    /// It has been told, and has not looked since.
    pub(crate) wake_pending: bool,
    pub(crate) stopping: bool,
}

/// A waiter's ear at a key. It hears until it is dropped.
pub(crate) struct Subscription<'a> {
    desk: &'a ListenerShared,
    pub(crate) channel: Channel,
    pub(crate) waiter: Arc<ChannelWaiter>,
}

impl Subscription<'_> {
    pub(crate) fn is_at(&self, key: &Key) -> bool {
        *self.channel == *key.as_str()
    }

    /// What there was to hear since this was asked last.
    pub(crate) fn take_signal(&self) -> Signal {
        match self.waiter.heard.swap(Signal::None as u8, Ordering::AcqRel) {
            0 => Signal::None,
            1 => Signal::Subscribed,
            _ => Signal::Released,
        }
    }

    /// Whether there was at least this to hear.
    pub(crate) fn has_signal(&self, least: Signal) -> bool {
        self.waiter.heard.load(Ordering::Acquire) >= least as u8
    }
}

impl Drop for Subscription<'_> {
    fn drop(&mut self) {
        let mut state = self.desk.state.lock();
        let subscriptions = &mut state.subscriptions;
        subscriptions.leave(&self.channel, &self.waiter, clock::now());
    }
}

impl ListenerShared {
    /// Adds a waiter, and tells whether its channel is a new one.
    pub(crate) fn add_waiter(
        &self,
        state: &mut ListenerState,
        key: &Key,
        inbox: &Arc<Inbox>,
    ) -> (Subscription<'_>, bool) {
        let channel = key.channel();
        let waiter = Arc::new(ChannelWaiter {
            inbox: Arc::clone(inbox),
            heard: AtomicU8::new(Signal::None as u8),
        });
        let is_new = state.subscriptions.enter(&channel, &waiter);
        let listening = Subscription {
            desk: self,
            channel,
            waiter,
        };
        (listening, is_new)
    }

    /// Lets the thread look at what is to be done.
    pub(crate) fn wake_thread(&self, mut state: MutexGuard<'_, ListenerState>) {
        let knocks = !std::mem::replace(&mut state.wake_pending, true);
        let node = state.node;
        drop(state);
        self.changed.notify_one();
        if let (true, Some(node)) = (knocks, node) {
            self.nodes.wake_listener(&self.wake_channel, node);
        }
    }

    pub(crate) fn run(&self, connectors: &[Arc<dyn Connector>]) {
        let mut rests = Rests::new(connectors.len());
        // After a panic it goes on with the next node.
        while threads::catch(NAME, || self.turn(connectors, &mut rests)) != Some(false) {}
    }

    /// Listens to one node until that ends. `false` when the thread is to end.
    fn turn(&self, connectors: &[Arc<dyn Connector>], rests: &mut Rests) -> bool {
        let Some(node) = self.wait_for_work(rests) else {
            return false;
        };
        let began = clock::now();
        let listen =
            || connectors[node].with_subscriber(&mut |ear| self.run_connection(ear, node, rests));
        let ended = catch_unwind(AssertUnwindSafe(listen));
        let now = clock::now();
        let mut state = self.state.lock();
        state.node = None;
        state.subscriptions.end();
        self.remove_idle(&mut state, Duration::ZERO);
        let stopping = state.stopping;
        drop(state);
        let level = match ended {
            Ok(Err(_)) if !rests.fail(node, began, now) => Level::Debug,
            Ok(Err(_)) => Level::Info,
            Ok(Ok(())) => return !stopping,
            Err(_) => {
                rests.fail(node, began, now);
                Level::Error
            }
        };
        let cause = ended.unwrap_or_else(|_| Err(pipeline::panic_failure()));
        if let (Err(cause), false) = (cause, stopping) {
            let name = self.nodes.name(node);
            log!(level, "{name}: no wake-ups from it: {cause}");
        }
        !stopping
    }

    /// Waits until somebody waits and a node is connected that can be listened to; `None` when the thread is to end.
    fn wait_for_work(&self, rests: &Rests) -> Option<usize> {
        let mut state = self.state.lock();
        loop {
            state.wake_pending = false;
            if state.stopping {
                return None;
            }
            if state.subscriptions.is_empty() {
                self.changed.wait(&mut state);
                continue;
            }
            let now = clock::now();
            if let Some(node) = self.nodes.first_up_of(|node| !rests.is_resting(node, now)) {
                return Some(node);
            }
            self.changed.wait_until(&mut state, now + RECONNECT_DELAY);
            self.remove_idle(&mut state, UNSUBSCRIBE_DELAY);
        }
    }

    /// Forgets the channels at which nobody has waited for so long. Returns the UNSUBSCRIBE commands that are to be sent.
    fn remove_idle(&self, state: &mut ListenerState, linger: Duration) -> Vec<Vec<Channel>> {
        let swept = state.subscriptions.sweep(clock::now(), linger);
        let channels = state.subscriptions.len();
        self.channels.store(channels, Ordering::Release);
        swept
    }

    /// Hears what one connection brings, until it fails or nobody waits any more. Nothing that is sent is waited for: replies
    /// and messages are taken as they come.
    pub(crate) fn run_connection(
        &self,
        ear: &mut dyn Subscriber,
        node: usize,
        rests: &Rests,
    ) -> Result<(), NodeFailure> {
        ear.subscribe(PRIVATE, &[self.wake_channel.key().channel()])?;
        self.state.lock().subscriptions.begin();
        let mut heard_at = clock::now();
        let mut look_at = heard_at + PING_INTERVAL;
        loop {
            let (new, gone, due) = {
                let mut state = self.state.lock();
                state.wake_pending = false;
                let gone = self.remove_idle(&mut state, UNSUBSCRIBE_DELAY);
                if state.stopping || state.subscriptions.is_empty() {
                    return Ok(());
                }
                let new = state.subscriptions.take_unsent();
                (new, gone, state.subscriptions.next_sweep(UNSUBSCRIBE_DELAY))
            };
            for channels in &gone {
                ear.unsubscribe(channels)?;
            }
            for (command, channels) in &new {
                ear.subscribe(*command, channels)?;
            }
            let now = clock::now();
            if now >= look_at {
                look_at = now + PING_INTERVAL;
                let suits = |other| other == node || !rests.is_resting(other, now);
                if self
                    .nodes
                    .first_up_of(suits)
                    .is_some_and(|first| first < node)
                {
                    return Ok(()); // back to where all others listen
                }
            }
            if now >= heard_at + PING_INTERVAL {
                ear.ping()?;
                heard_at = now;
            }
            let next = look_at.min(heard_at + PING_INTERVAL);
            let next = due.map_or(next, |due| due.min(next));
            if let Some(event) = ear.next_message(next.saturating_duration_since(now))? {
                heard_at = clock::now();
                self.take(event, node)?;
            }
        }
    }

    /// Takes in what the server has sent. The error is why it is of no use.
    fn take(&self, event: Event, node: usize) -> Result<(), NodeFailure> {
        let mut state = self.state.lock();
        match event {
            Event::Message(channel) => state.subscriptions.message(&channel),
            Event::Subscribed(PRIVATE, _) => {
                state.node = Some(node);
                drop(state); // let go before telling
                debug!("{}: listening", self.nodes.name(node));
            }
            Event::Subscribed(command, channel) => state.subscriptions.confirm(command, &channel),
            Event::Refused(PRIVATE, cause) => return Err(cause),
            Event::Refused(command, cause) => {
                let refused = state.subscriptions.refuse(command);
                drop(state); // let go before telling
                if let Some(channel) = refused {
                    let name = self.nodes.name(node);
                    info!("{name}: no wake-ups from its channel {channel:?}: {cause}");
                }
            }
            Event::Other => {}
        }
        Ok(())
    }
}

impl ListenerShared {
    /// Of a lock with several keys a node says how many heard of the one that most heard of: those who listen to the others
    /// are let pass as well.
    pub(crate) fn record_receivers(&self, keys: &KeySet, heard: &[(usize, u64)]) {
        let known = self.courtesies.load(Ordering::Acquire) > 0;
        if heard.is_empty() && !known {
            return;
        }
        let mut state = self.state.lock();
        for key in keys.as_slice() {
            let channel = key.channel();
            let is_ours = state.subscriptions.is_confirmed(&channel);
            let ours = state.node.filter(|_| is_ours);
            let others = heard
                .iter()
                .any(|(node, count)| *count > u64::from(ours == Some(*node)));
            if others {
                let until = self.new_yield_deadline();
                state.courtesies.put(&channel, until, clock::now());
            } else {
                state.courtesies.remove(&channel);
            }
        }
        let count = state.courtesies.count();
        self.courtesies.store(count, Ordering::Release);
    }

    /// Nobody heard of it on this node. Where others listen they do so on the first one.
    pub(crate) fn record_no_receivers(&self, keys: &KeySet, node: usize) {
        if self.nodes.first_voting_node() == Some(node) {
            self.record_receivers(keys, &[]);
        }
    }

    /// Two round trips and as much again, more or less, from now on.
    pub(crate) fn new_yield_deadline(&self) -> Instant {
        clock::now() + (2 * self.nodes.rtt_estimate()).mul_f64(1.0 + random::unit())
    }
}
