//! The listener thread: keeps one subscriber connection and wakes the waiters of its channels.
//!
//! The thread connects to the first connected node that votes, while there are channels, or holders
//! with callbacks, to which notices are delivered (`holder_check.rs`). A channel outlives its last
//! waiter by `UNSUBSCRIBE_DELAY`. The thread never waits for a reply: confirmations and messages are
//! handled as they arrive. A PING shows whether the server still replies. A caller never blocks on
//! the connection: it changes the shared state and wakes the thread.
//!
//! A blocking read cannot be interrupted, so the thread also subscribes to a private *wake
//! channel*. A caller wakes the thread by a message that a worker publishes there.
//!
//! | state      | the thread                      | ends by                                     |
//! |------------|---------------------------------|---------------------------------------------|
//! | idle       | sleeps until it is needed       | a waiter; a holder with callbacks; stop     |
//! | searching  | looks for a node to connect to  | a node up and not delayed; not needed; stop |
//! | connecting | receives; the wake channel is   | its confirmation; a failure; not needed; an |
//! |            | not confirmed                   | earlier node; stop                          |
//! | listening  | receives messages               | a failure; not needed; an earlier node;     |
//! |            |                                 | stop                                        |
//!
//! Tests: beside `listener.rs`; in `src/tests/engine/`: `wake_up.rs`, `waiting_list.rs`,
//! `notice.rs`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{Level, debug, info, log};

use crate::background::holder_check::HolderCheck;
use crate::background::release_listener::place_sink::PlaceSink;
use crate::background::release_listener::places::{PlaceRequest, Places};
use crate::background::release_listener::reconnect::{RECONNECT_DELAY, ReconnectDelays};
use crate::background::release_listener::subscriptions::{Signal, Subscriptions};
use crate::background::release_listener::yielding::YieldDeadlines;
use crate::error::node_failure::NodeFailure;
use crate::protocol::encode;
use crate::protocol::key::{Channel, Key};
use crate::protocol::kind::LeaseKind;
use crate::protocol::lease::Lease;
use crate::protocol::node_set::NodeSet;
use crate::protocol::request::{Op, Publish, Request};
use crate::protocol::token::Token;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::primitives::{Condvar, Mutex, MutexGuard};
use crate::sync::threads;
use crate::time::{clock, deadline};
use crate::transport::job::ReplySink;
use crate::transport::node::traits::{Connector, Event, Subscriber};
use crate::transport::node_group::NodeGroup;
use crate::transport::pipeline;

/// The thread's name.
pub(crate) const NAME: &str = "redguard-listener";

/// A channel outlives its last waiter by this time, because callers that waited for a lock often
/// wait for it again.
const UNSUBSCRIBE_DELAY: Duration = Duration::from_millis(500);

/// The thread sends PING after this time without an event. As often it looks whether a node
/// before its own is connected.
const PING_INTERVAL: Duration = Duration::from_secs(1);

/// The part of [`ListenerShared::check_unit`] that does not depend on the network.
const MIN_CHECK_UNIT: Duration = Duration::from_millis(2);

/// The id of the SUBSCRIBE to the wake channel and the notice channel. The ids of all other ones
/// count from 1.
pub(super) const WAKE_COMMAND: u64 = 0;

/// The state that the listener thread shares with its callers.
pub(super) struct ListenerShared {
    pub(super) state: Mutex<ListenerState>,
    changed: Condvar,
    pub(super) nodes: Arc<NodeGroup>,
    /// A lease that is never held; its key names the wake channel.
    pub(super) wake_channel: Arc<Lease>,
    holder_check: HolderCheck,
    /// The number of channels, so that callers that do not wait need not lock `state`.
    pub(super) channel_count: AtomicUsize,
    pub(super) place_sink: Arc<PlaceSink>,
    /// The number of yield deadlines, so that releases need not lock `state`.
    pub(super) yield_count: AtomicUsize,
}

pub(super) struct ListenerState {
    pub(super) subscriptions: Subscriptions,
    pub(super) places: Places,
    pub(super) yields: YieldDeadlines,
    /// The node whose messages the thread receives; `None` until the wake channel is confirmed.
    pub(super) node: Option<usize>,
    /// A caller has woken the thread, which has not handled that yet.
    wake_pending: bool,
    pub(super) stopping: bool,
}

impl ListenerState {
    /// Wakes the waiter whose place a node has removed; without one, all waiters of the channel.
    fn wake_placed(&mut self, channel: &str, signal: Signal) {
        self.subscriptions.mark_unsent(channel);
        match self.places.take_woken(channel, signal, clock::now()) {
            Some(waiter) => waiter.signal(signal),
            None => (self.subscriptions).signal_all(channel, Signal::Released, None),
        }
    }
}

/// The commands to send before the thread waits for the next event.
struct Commands {
    subscribe: Vec<(u64, Vec<Channel>)>,
    unsubscribe: Vec<Vec<Channel>>,
    checks: Vec<PlaceRequest>,
    /// When the next channel is to be removed, or the next check is due.
    next_due: Option<Instant>,
}

impl ListenerShared {
    pub(super) fn new(
        nodes: &Arc<NodeGroup>,
        wake_channel: Lease,
        holder_check: HolderCheck,
    ) -> ListenerShared {
        ListenerShared {
            state: Mutex::new(ListenerState {
                subscriptions: Subscriptions::new(),
                places: Places::default(),
                yields: YieldDeadlines::new(),
                node: None,
                wake_pending: false,
                stopping: false,
            }),
            changed: Condvar::new(),
            nodes: Arc::clone(nodes),
            wake_channel: Arc::new(wake_channel),
            holder_check,
            channel_count: AtomicUsize::new(0),
            place_sink: Arc::default(),
            yield_count: AtomicUsize::new(0),
        }
    }

    /// Wakes the thread if it sleeps, because a lease with callbacks needs notices from now on.
    pub(super) fn wake_for_holder(&self) {
        let state = self.state.lock();
        let is_connected = state.node.is_some();
        drop(state); // unlock before waking
        if !is_connected {
            self.changed.notify_one();
        }
    }

    /// Returns whether there is a channel, or a lease with callbacks, which needs notices.
    fn is_needed(&self, state: &ListenerState) -> bool {
        !state.subscriptions.is_empty() || self.holder_check.is_wanted()
    }

    /// Wakes the thread, which may sleep on `changed` or block in a read.
    pub(super) fn wake_thread(&self, mut state: MutexGuard<'_, ListenerState>) {
        let is_first = !std::mem::replace(&mut state.wake_pending, true);
        let node = state.node;
        drop(state); // unlock before waking
        self.changed.notify_one();
        if let (true, Some(node)) = (is_first, node) {
            self.nodes.wake_listener(&self.wake_channel, node);
        }
    }

    /// Runs the thread until it is told to end.
    pub(super) fn run(&self, connectors: &[Arc<dyn Connector>]) {
        let mut delays = ReconnectDelays::new(connectors.len());
        // A panic ends one connection only.
        while threads::catch(NAME, || self.run_once(connectors, &mut delays)) != Some(false) {}
    }

    /// Serves one connection until it ends. Returns `false` if the thread is to end.
    fn run_once(&self, connectors: &[Arc<dyn Connector>], delays: &mut ReconnectDelays) -> bool {
        let Some(node) = self.wait_for_work(delays) else {
            return false;
        };
        let start = clock::now();
        let serve = || {
            connectors[node]
                .with_subscriber(&mut |subscriber| self.run_connection(subscriber, node, delays))
        };
        let result = catch_unwind(AssertUnwindSafe(serve));
        let mut state = self.state.lock();
        let was_confirmed = state.node.take().is_some();
        state.subscriptions.record_disconnected();
        state.places.clear();
        self.remove_idle(&mut state, Duration::ZERO);
        let stopping = state.stopping;
        drop(state); // unlock before logging
        let (level, cause) = match result {
            Ok(Ok(())) => return !stopping,
            // A balancer may close connections often, so an end alone gets no info line.
            Ok(Err(cause)) if was_confirmed && cause != NodeFailure::TimedOut => {
                delays.record_end(node, start);
                (Level::Debug, cause)
            }
            // Only the first failure in a row has an info line.
            Ok(Err(cause)) => match delays.record_failure(node, clock::now()) {
                true => (Level::Info, cause),
                false => (Level::Debug, cause),
            },
            Err(_) => {
                delays.record_failure(node, clock::now());
                (Level::Error, pipeline::panic_failure())
            }
        };
        if !stopping {
            let name = self.nodes.name(node);
            log!(level, "{name}: no release notifications: {cause}");
        }
        !stopping
    }

    /// Blocks until the connection is needed and there is a node to connect to, and returns the
    /// node. Returns `None` if the thread is to end.
    fn wait_for_work(&self, delays: &ReconnectDelays) -> Option<usize> {
        let mut state = self.state.lock();
        loop {
            state.wake_pending = false;
            if state.stopping {
                return None;
            }
            if !self.is_needed(&state) {
                self.changed.wait(&mut state);
                continue;
            }
            let now = clock::now();
            let is_ready = |node| !delays.is_delayed(node, now);
            if let Some(node) = self.nodes.first_up_of(is_ready) {
                return Some(node);
            }
            self.changed.wait_until(&mut state, now + RECONNECT_DELAY);
            self.remove_idle(&mut state, UNSUBSCRIBE_DELAY);
        }
    }

    /// Removes the channels that had no waiter for `delay`. Returns the channels of each
    /// UNSUBSCRIBE to send, also those of waiters that are far behind in a waiting list.
    fn remove_idle(&self, state: &mut ListenerState, delay: Duration) -> Vec<Vec<Channel>> {
        let mut unsubscribe = state.subscriptions.remove_idle(clock::now(), delay);
        unsubscribe.extend(state.subscriptions.take_unwanted());
        // A lock may have the name of the notice channel, which stays subscribed.
        for channels in &mut unsubscribe {
            channels.retain(|channel| channel != self.holder_check.channel());
        }
        unsubscribe.retain(|channels| !channels.is_empty());
        let channels = state.subscriptions.len();
        self.channel_count.store(channels, Ordering::Release);
        unsubscribe
    }

    /// Serves a connection until it is not needed, the thread is to end, or a node before `node` is
    /// connected. All listeners connect to the first connected node that votes, which therefore
    /// counts the receivers of a release in all processes.
    ///
    /// # Errors
    /// Any failure of the connection, also if the server refuses the SUBSCRIBE to the wake and
    /// notice channels.
    pub(super) fn run_connection(
        &self,
        subscriber: &mut dyn Subscriber,
        node: usize,
        delays: &ReconnectDelays,
    ) -> Result<(), NodeFailure> {
        let wake_channel = self.wake_channel.key().channel();
        let notice_channel = Arc::clone(self.holder_check.channel());
        subscriber.subscribe(WAKE_COMMAND, &[wake_channel, notice_channel])?;
        self.state.lock().subscriptions.record_connected();
        let mut last_event = clock::now();
        let mut next_node_check = last_event + PING_INTERVAL;
        while let Some(commands) = self.next_commands() {
            for channels in &commands.unsubscribe {
                subscriber.unsubscribe(channels)?;
            }
            for (command, channels) in &commands.subscribe {
                subscriber.subscribe(*command, channels)?;
            }
            for check in &commands.checks {
                self.take_place(check, node);
            }
            let now = clock::now();
            if now >= next_node_check {
                next_node_check = now + PING_INTERVAL;
                if self.is_earlier_node_up(node, delays, now) {
                    return Ok(());
                }
            }
            if now >= last_event + PING_INTERVAL {
                subscriber.ping()?;
                last_event = now;
            }
            let wake_at = next_node_check.min(last_event + PING_INTERVAL);
            let wake_at = commands.next_due.map_or(wake_at, |at| at.min(wake_at));
            let wait = wake_at.saturating_duration_since(now);
            if let Some(event) = subscriber.next_message(wait)? {
                last_event = clock::now();
                self.handle_event(event, node)?;
            }
        }
        Ok(())
    }

    /// Returns the commands to send. Returns `None` if the connection is not needed or the thread
    /// is to end.
    fn next_commands(&self) -> Option<Commands> {
        let mut state = self.state.lock();
        state.wake_pending = false;
        let unsubscribe = self.remove_idle(&mut state, UNSUBSCRIBE_DELAY);
        if state.stopping || !self.is_needed(&state) {
            return None;
        }
        let checks = state.places.take_due(clock::now());
        let next_removal = state.subscriptions.next_removal(UNSUBSCRIBE_DELAY);
        Some(Commands {
            unsubscribe,
            subscribe: state.subscriptions.take_unsent(),
            checks,
            next_due: deadline::earlier(next_removal, state.places.next_check()),
        })
    }

    /// Returns whether a node before `node` is up and may be connected to.
    fn is_earlier_node_up(&self, node: usize, delays: &ReconnectDelays, now: Instant) -> bool {
        let is_ready = |other| other == node || !delays.is_delayed(other, now);
        let first = self.nodes.first_up_of(is_ready);
        first.is_some_and(|first| first < node)
    }

    /// Handles an event from the server.
    ///
    /// # Errors
    /// The cause if the server refuses the SUBSCRIBE to the wake and notice channels: without the
    /// wake channel the connection is useless.
    fn handle_event(&self, event: Event, node: usize) -> Result<(), NodeFailure> {
        let mut state = self.state.lock();
        match event {
            Event::Message(channel) => {
                state
                    .subscriptions
                    .signal_all(&channel, Signal::Released, None);
            }
            Event::Kept(channel) => state.subscriptions.signal_all(&channel, Signal::Kept, None),
            Event::Notice(lock) => {
                drop(state); // unlock before the lock table is locked
                self.holder_check.check(&lock);
            }
            Event::NextWoken(channel) => {
                let unit = self.check_unit();
                let placed = state.places.note_release(&channel, clock::now(), unit);
                let waiter = placed.as_ref().map(|(waiter, _)| waiter);
                let subscriptions = &state.subscriptions;
                subscriptions.signal_all(&channel, Signal::Released, waiter);
                if placed.is_some_and(|(_, is_near)| !is_near) {
                    state.subscriptions.mark_unwanted(&channel);
                }
            }
            Event::Woken(channel) => state.wake_placed(&channel, Signal::Woken),
            // The first process of the list may be slow, so another may ask at this moment, too:
            // `Released` makes the waiter ask this node first.
            Event::Free(channel) => state.wake_placed(&channel, Signal::Released),
            Event::Placed(channel, before) => {
                let unit = self.check_unit();
                if state.places.confirm(&channel, before, clock::now(), unit) {
                    state.subscriptions.mark_unsent(&channel);
                }
            }
            Event::Subscribed(WAKE_COMMAND, _) => {
                state.node = Some(node);
                drop(state); // unlock before logging
                debug!("{}: receiving release notifications", self.nodes.name(node));
            }
            Event::Subscribed(command, channel) => state.subscriptions.confirm(command, &channel),
            Event::Refused(WAKE_COMMAND, cause) => return Err(cause),
            Event::Refused(command, cause) => {
                let refused = state.subscriptions.refuse(command);
                drop(state); // unlock before logging
                if let Some(channel) = refused {
                    let name = self.nodes.name(node);
                    info!("{name}: no release notifications on channel {channel:?}: {cause}");
                }
            }
            Event::Other => {}
        }
        Ok(())
    }

    /// Asks for a place in a waiting list on `node`, or checks whether the lock is free. Does not
    /// block.
    pub(super) fn take_place(&self, place: &PlaceRequest, node: usize) {
        let mut request = self.request(Op::TakePlace, &place.key, place.waited);
        if place.is_check {
            request.publish = Publish::Always;
        }
        let sink: Arc<dyn ReplySink> = Arc::clone(&self.place_sink) as _;
        let node = NodeSet::single(node);
        self.nodes
            .send_unawaited_with_sink(&request, node, Some(&sink));
    }

    /// Gives up a place in a waiting list on `node`. Does not block.
    pub(super) fn leave_place(&self, key: &Key, node: usize) {
        let request = self.request(Op::LeavePlace, key, Duration::ZERO);
        self.nodes.send_unawaited(&request, NodeSet::single(node));
    }

    /// Returns a request for the waiting list of a key. Its token is our wake channel.
    fn request(&self, op: Op, key: &Key, waited: Duration) -> Request {
        let token = Token::existing(self.wake_channel.key().as_str());
        let place = Lease::new(key.clone(), token, LeaseKind::Exclusive);
        Request::new(op, &Arc::new(place), encode::millis(waited))
    }

    /// Returns the time that a woken process has to acquire before the next one checks: some round
    /// trips, and time for the system to run it.
    pub(super) fn check_unit(&self) -> Duration {
        4 * self.nodes.rtt_estimate() + MIN_CHECK_UNIT
    }
}
