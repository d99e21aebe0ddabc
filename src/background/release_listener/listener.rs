//! The ear for releases: one thread that hears what releases publish, and wakes who waits here for the lock.
//!
//! What it hears is a hint and never an answer: every wait has another end, too. A waiter registers, is woken when the
//! subscription stands, tries once more, and only then relies on a message. The thread sits on the first node that is
//! connected. It starts with the first waiter; nothing stays subscribed for long when nobody waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::background::release_listener::shared::{
    ListenerShared, ListenerState, NAME, Subscription,
};
use crate::background::release_listener::subscriptions::{Signal, Subscriptions};
use crate::background::release_listener::yielding::Courtesies;
use crate::error::Error;
use crate::protocol::key::Key;
use crate::protocol::key_set::KeySet;
use crate::protocol::kind::{LeaseKind, LockKind};
use crate::protocol::lease::Lease;
use crate::protocol::reply::Reply;
use crate::protocol::token::Token;
use crate::sync::threads::BackgroundThread;
use crate::transport::inbox::Inbox;
use crate::transport::job::ReplySink;
use crate::transport::node::traits::Connector;
use crate::transport::node_group::NodeGroup;

/// The listening of a `Nodes`.
pub(crate) struct ReleaseListener {
    pub(crate) desk: Arc<ListenerShared>,
    connectors: Arc<[Arc<dyn Connector>]>,
    started: AtomicBool,
    thread: Mutex<Option<BackgroundThread>>,
}

impl ReleaseListener {
    /// # Errors
    /// `System` when there are no random bytes for the name of the private channel.
    pub(crate) fn new(
        prefix: &str,
        nodes: &Arc<NodeGroup>,
        connectors: Arc<[Arc<dyn Connector>]>,
    ) -> Result<ReleaseListener, Error> {
        let token = Token::fresh(None)?;
        let name = format!("listener:{:016x}", token.id());
        let key = Key::parse(prefix, &name, LockKind::Exclusive)?;
        Ok(ReleaseListener {
            desk: Arc::new(ListenerShared {
                state: Mutex::new(ListenerState {
                    subscriptions: Subscriptions::new(),
                    courtesies: Courtesies::new(),
                    node: None,
                    wake_pending: false,
                    stopping: false,
                }),
                changed: Condvar::new(),
                nodes: Arc::clone(nodes),
                wake_channel: Arc::new(Lease::new(key, token, LeaseKind::Exclusive)),
                channels: AtomicUsize::new(0),
                courtesies: AtomicUsize::new(0),
            }),
            connectors,
            started: AtomicBool::new(false),
            thread: Mutex::new(None),
        })
    }

    /// Listens at a key if others of this process do, or did a moment ago: then what is released from now on is heard.
    pub(crate) fn subscribe_if_active(
        &self,
        key: &Key,
        inbox: &Arc<Inbox>,
    ) -> Option<Subscription<'_>> {
        if self.desk.channels.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut state = self.desk.state.lock();
        let is_heard = state.subscriptions.is_confirmed(key.channel().as_ref());
        is_heard.then(|| self.desk.add_waiter(&mut state, key, inbox).0)
    }

    /// Listens at a key. The inbox is woken when the subscription stands, and with every release that is published.
    ///
    /// # Errors
    /// `System` when there is no thread to be had.
    pub(crate) fn subscribe(
        &self,
        key: &Key,
        inbox: &Arc<Inbox>,
    ) -> Result<Subscription<'_>, Error> {
        if !self.started.load(Ordering::Acquire) {
            self.start()?;
        }
        let mut state = self.desk.state.lock();
        let (listening, is_new) = self.desk.add_waiter(&mut state, key, inbox);
        if state.subscriptions.is_confirmed(&listening.channel) {
            // What was released before is not heard.
            listening.waiter.signal(Signal::Subscribed);
        }
        let channels = state.subscriptions.len();
        self.desk.channels.store(channels, Ordering::Release);
        if is_new {
            self.desk.wake_thread(state);
        }
        Ok(listening)
    }

    fn start(&self) -> Result<(), Error> {
        let mut thread = self.thread.lock();
        if thread.is_none() {
            let (desk, connectors) = (Arc::clone(&self.desk), Arc::clone(&self.connectors));
            *thread = Some(BackgroundThread::spawn(NAME, move || {
                desk.run(&connectors);
            })?);
            self.started.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// The node that is listened to, where a release is heard of first.
    pub(crate) fn current_node(&self) -> Option<usize> {
        self.desk.state.lock().node
    }

    /// How many channels are subscribed to.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn count(&self) -> usize {
        self.desk.state.lock().subscriptions.len()
    }

    /// Lets the thread end.
    pub(crate) fn stop(&self) {
        let mut state = self.desk.state.lock();
        state.stopping = true;
        self.desk.wake_thread(state);
    }

    /// Waits until the thread has ended, until `end`. `false` if it has not.
    pub(crate) fn join_until(&self, end: Instant) -> bool {
        let thread = self.thread.lock().take();
        thread.is_none_or(|thread| thread.join_until(end))
    }
}

impl ReleaseListener {
    /// A lock of ours is being released. If others are known to listen there, they are let pass from now on.
    pub(crate) fn release_started(&self, keys: &KeySet) {
        if self.desk.courtesies.load(Ordering::Acquire) > 0 {
            let mut state = self.desk.state.lock();
            for key in keys.as_slice() {
                let until = self.desk.new_yield_deadline();
                state.courtesies.prolong(key.channel().as_ref(), until);
            }
        }
    }

    /// So many heard on these nodes that a lock of ours was released.
    pub(crate) fn record_receivers(&self, keys: &KeySet, heard: &[(usize, u64)]) {
        self.desk.record_receivers(keys, heard);
    }

    /// Hears how many heard of a release that nobody waits for.
    pub(crate) fn receiver_count_sink(&self, keys: &KeySet) -> Arc<dyn ReplySink> {
        Arc::new(ReceiverCountSink {
            desk: Arc::clone(&self.desk),
            keys: keys.clone(),
        })
    }

    /// Until when others are let pass at one of these keys.
    pub(crate) fn yield_deadline(&self, keys: &KeySet) -> Option<Instant> {
        if self.desk.courtesies.load(Ordering::Acquire) == 0 {
            return None;
        }
        let state = self.desk.state.lock();
        let until = |key: &Key| state.courtesies.until(key.channel().as_ref());
        keys.as_slice().iter().filter_map(until).max()
    }
}

/// Where the answers to a release go that nobody waits for.
struct ReceiverCountSink {
    desk: Arc<ListenerShared>,
    keys: KeySet,
}

impl ReplySink for ReceiverCountSink {
    fn deliver(&self, _: u32, node: usize, answer: Reply) {
        match answer {
            Reply::DoneNotified(count) => self.desk.record_receivers(&self.keys, &[(node, count)]),
            Reply::Done => self.desk.record_no_receivers(&self.keys, node),
            _ => {}
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    #![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

    use std::collections::VecDeque;
    use std::time::Duration;

    use super::*;
    use crate::background::release_listener::rests::Rests;
    use crate::background::release_listener::shared::PRIVATE;
    use crate::background::release_listener::subscriptions::Signal;
    use crate::error::NodeFailure;
    use crate::protocol::key::Channel;
    use crate::telemetry::stats::LockCounters;
    use crate::tests::fake_node::node;
    use crate::tests::fake_node::node::FakeNode;
    use crate::transport::node::traits::{Event, Subscriber};
    use crate::transport::worker_pool::WorkerPool;

    /// A connection whose server says what the test wants, and which writes down what it is sent.
    struct Script<'a> {
        sent: Vec<(u64, usize)>,
        says: VecDeque<Step<'a>>,
    }

    /// What the server sends next, given what it was sent.
    type Step<'a> = Box<dyn FnOnce(&[(u64, usize)]) -> Option<Event> + 'a>;

    impl Subscriber for Script<'_> {
        fn subscribe(&mut self, command: u64, channels: &[Channel]) -> Result<(), NodeFailure> {
            self.sent.push((command, channels.len()));
            Ok(())
        }

        fn unsubscribe(&mut self, _: &[Channel]) -> Result<(), NodeFailure> {
            Ok(())
        }

        fn ping(&mut self) -> Result<(), NodeFailure> {
            Ok(())
        }

        fn next_message(&mut self, _: Duration) -> Result<Option<Event>, NodeFailure> {
            let step = self.says.pop_front().ok_or(NodeFailure::TimedOut)?;
            Ok(step(&self.sent))
        }
    }

    fn listener() -> ReleaseListener {
        let fake = FakeNode::new("a");
        let settings = node::settings(|config| config);
        let (crew, _) = WorkerPool::spawn(&[fake.node_config(&settings)], 1).unwrap();
        let nodes = NodeGroup::new(crew, vec!["a".to_owned()], 1, LockCounters::new(None));
        let listener = ReleaseListener::new("", &Arc::new(nodes), Arc::from([])).unwrap();
        // No thread of its own is to listen.
        listener.started.store(true, Ordering::Release);
        listener
    }

    #[test]
    fn a_subscribe_waits_for_no_reply_and_only_its_confirmation_counts() {
        let listener = listener();
        let parse = |name| Key::parse("", name, LockKind::Exclusive).unwrap();
        let (keys, inbox) = (["x", "y", "z"].map(parse), Arc::new(Inbox::new()));
        let ears = [0, 1].map(|key: usize| listener.subscribe(&keys[key], &inbox).unwrap());
        let late = std::cell::RefCell::new(None);
        let desk = &listener.desk;
        let private = desk.wake_channel.key().channel();
        let is_confirmed = |name: &str| desk.state.lock().subscriptions.is_confirmed(name);
        let says: [Step<'_>; 6] = [
            Box::new(|sent| {
                assert_eq!(sent, [(PRIVATE, 1), (1, 2)], "both at once");
                *late.borrow_mut() = listener.subscribe(&keys[2], &inbox).ok();
                // One of a subscription before.
                Some(Event::Message("x".into()))
            }),
            Box::new(|sent| {
                assert_eq!(sent.last(), Some(&(2, 1)), "behind it, unconfirmed");
                assert_eq!(ears[0].take_signal(), Signal::Released);
                assert!(!is_confirmed("x") && desk.state.lock().node.is_none());
                Some(Event::Subscribed(PRIVATE, private))
            }),
            Box::new(|_| {
                assert_eq!(desk.state.lock().node, Some(0));
                Some(Event::Subscribed(1, "x".into()))
            }),
            Box::new(|_| {
                assert!(is_confirmed("x") && !is_confirmed("y"));
                assert_eq!(ears[0].take_signal(), Signal::Subscribed);
                Some(Event::Subscribed(2, "z".into()))
            }),
            Box::new(|_| {
                assert!(is_confirmed("z") && !is_confirmed("y"));
                Some(Event::Refused(1, NodeFailure::AccessDenied("no".into())))
            }),
            Box::new(|sent| {
                assert_eq!(sent.last(), Some(&(3, 1)), "what was not confirmed");
                None
            }),
        ];
        let mut script = Script {
            sent: Vec::new(),
            says: says.into(),
        };
        assert_eq!(
            desk.run_connection(&mut script, 0, &Rests::new(1)),
            Err(NodeFailure::TimedOut)
        );
        assert!(script.says.is_empty());
    }
}
