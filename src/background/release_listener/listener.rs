//! The release listener as its callers see it: subscribe to a key, and yield to other processes.
//!
//! A signal is a hint and never a verdict (L4): every wait also ends by time. A waiter subscribes,
//! is woken by the confirmation, attempts once more, and only then relies on messages. The thread
//! starts with the first waiter. `release_listener/shared.rs` runs it.
//!
//! - No call blocks on the connection or on a node.
//! - A message never confirms its channel: it may belong to an earlier subscription.
//! - Yielding only delays an acquire; it never refuses one.
//!
//! Tests: below; beside `subscriptions.rs` and `yielding.rs`; `src/tests/engine/wake_up.rs`.

use std::sync::Arc;
use std::time::Instant;

use crate::background::holder_check::HolderCheck;
use crate::background::release_listener::shared::{ListenerShared, NAME};
use crate::background::release_listener::subscription::Subscription;
use crate::background::release_listener::subscriptions::Signal;
use crate::error::error::Error;
use crate::protocol::key::Key;
use crate::protocol::key_set::KeySet;
use crate::protocol::kind::{LeaseKind, LockKind};
use crate::protocol::lease::Lease;
use crate::protocol::reply::Reply;
use crate::protocol::token::Token;
use crate::sync::atomic::Ordering;
use crate::sync::threads::LazyThread;
use crate::time::clock;
use crate::transport::inbox::Inbox;
use crate::transport::job::ReplySink;
use crate::transport::node::traits::Connector;
use crate::transport::node_group::NodeGroup;
use crate::transport::round::RoundOutcome;

/// The release listener of a `Nodes`.
pub(crate) struct ReleaseListener {
    shared: Arc<ListenerShared>,
    connectors: Arc<[Arc<dyn Connector>]>,
    thread: LazyThread,
}

impl ReleaseListener {
    /// Creates a listener without a thread. `prefix` is the key prefix of the wake channel;
    /// `holder_check` handles notices.
    ///
    /// # Errors
    /// - `System` if the operating system has no random bytes for the name of the wake channel.
    pub(crate) fn new(
        prefix: &str,
        nodes: &Arc<NodeGroup>,
        connectors: Arc<[Arc<dyn Connector>]>,
        holder_check: HolderCheck,
    ) -> Result<ReleaseListener, Error> {
        let token = Token::fresh(None)?;
        let name = format!("listener:{:016x}", token.id());
        let key = Key::parse(prefix, &name, LockKind::Exclusive)?;
        let wake_channel = Lease::new(key, token, LeaseKind::Exclusive);
        Ok(ReleaseListener {
            shared: Arc::new(ListenerShared::new(nodes, wake_channel, holder_check)),
            connectors,
            thread: LazyThread::new(NAME),
        })
    }

    /// Subscribes to a key whose channel is confirmed already, because another thread waits or
    /// waited a moment ago. Returns `None` otherwise. Does not block.
    pub(crate) fn subscribe_if_active(
        &self,
        key: &Key,
        inbox: &Arc<Inbox>,
    ) -> Option<Subscription<'_>> {
        if self.shared.channel_count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut state = self.shared.state.lock();
        let is_confirmed = state.subscriptions.is_confirmed(key.channel().as_ref());
        is_confirmed.then(|| Subscription::add(&self.shared, &mut state, key, inbox).0)
    }

    /// Subscribes to a key. The inbox is woken by the confirmation and by each published release.
    /// Does not block.
    ///
    /// # Errors
    /// - `System` if the operating system refuses the thread.
    pub(crate) fn subscribe(
        &self,
        key: &Key,
        inbox: &Arc<Inbox>,
    ) -> Result<Subscription<'_>, Error> {
        self.start_thread()?;
        let mut state = self.shared.state.lock();
        let (subscription, is_new) = Subscription::add(&self.shared, &mut state, key, inbox);
        if state.subscriptions.is_confirmed(&subscription.channel) {
            // An attempt before this call may have missed a release.
            subscription.waiter.raise(Signal::Subscribed);
        }
        let channels = state.subscriptions.len();
        self.shared.channel_count.store(channels, Ordering::Release);
        if is_new {
            self.shared.wake_thread(state);
        }
        Ok(subscription)
    }

    /// Keeps the listener connected while a lease has callbacks, so that it receives notices. The
    /// caller has registered a callback before. Does not block.
    ///
    /// # Errors
    /// - `System` if the operating system refuses the thread.
    pub(crate) fn listen_for_holder(&self) -> Result<(), Error> {
        self.start_thread()?;
        self.shared.wake_for_holder();
        Ok(())
    }

    fn start_thread(&self) -> Result<(), Error> {
        self.thread.start(|| {
            let (shared, connectors) = (Arc::clone(&self.shared), Arc::clone(&self.connectors));
            move || shared.run(&connectors)
        })
    }

    /// Returns the node that the listener is connected to. No other node's messages arrive.
    pub(crate) fn current_node(&self) -> Option<usize> {
        self.shared.state.lock().node
    }

    /// Returns the number of channels.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn count(&self) -> usize {
        self.shared.state.lock().subscriptions.len()
    }

    /// Tells the thread to end. Does not block.
    pub(crate) fn stop(&self) {
        let mut state = self.shared.state.lock();
        state.stopping = true;
        self.shared.wake_thread(state);
    }

    /// Blocks until the thread has ended, at most until `end`. Returns `false` if it still runs.
    pub(crate) fn join_until(&self, end: Instant) -> bool {
        self.thread.join_until(end)
    }

    /// Extends the yield deadlines of the keys of a lock whose release begins now. Keys without
    /// other receivers have none.
    pub(crate) fn release_started(&self, keys: &KeySet) {
        if self.shared.yield_count.load(Ordering::Acquire) > 0 {
            let mut state = self.shared.state.lock();
            for key in keys.as_slice() {
                state.yields.extend(key.channel().as_ref(), clock::now());
            }
        }
    }

    /// Records how many subscribers received the message of a release, per node.
    pub(crate) fn record_release(&self, keys: &KeySet, release: &RoundOutcome) {
        self.shared.record_release(keys, release);
    }

    /// Returns a sink for the replies to a release that no caller waits for.
    pub(crate) fn receiver_count_sink(&self, keys: &KeySet) -> Arc<dyn ReplySink> {
        Arc::new(ReceiverCountSink {
            shared: Arc::clone(&self.shared),
            keys: keys.clone(),
        })
    }

    /// Returns until when an acquire of these keys yields to other processes.
    pub(crate) fn yield_deadline(&self, keys: &KeySet) -> Option<Instant> {
        if self.shared.yield_count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let state = self.shared.state.lock();
        let deadline = |key: &Key| state.yields.deadline(key.channel().as_ref());
        keys.as_slice().iter().filter_map(deadline).max()
    }
}

/// Records the receivers of a release that no caller waits for.
struct ReceiverCountSink {
    shared: Arc<ListenerShared>,
    keys: KeySet,
}

impl ReplySink for ReceiverCountSink {
    fn deliver(&self, _: u32, node: usize, reply: Reply) {
        match reply {
            Reply::DoneNotified(count) => {
                self.shared
                    .record_receivers(&self.keys, &[(node, count)], false);
            }
            Reply::DoneWoke(count) => {
                self.shared
                    .record_receivers(&self.keys, &[(node, count)], true);
            }
            Reply::Done => self.shared.record_no_receivers(&self.keys, node),
            _ => {}
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    #![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

    use std::cell::RefCell;
    use std::collections::VecDeque;
    use std::time::Duration;

    use super::*;
    use crate::background::loss_handler::LossHandler;
    use crate::background::release_listener::reconnect::ReconnectDelays;
    use crate::background::release_listener::shared::WAKE_COMMAND;
    use crate::background::renewal::service::RenewalService;
    use crate::error::node_failure::NodeFailure;
    use crate::local::lock_table::LockTable;
    use crate::protocol::key::Channel;
    use crate::telemetry::stats::LockCounters;
    use crate::tests::fake_node::node;
    use crate::tests::fake_node::node::FakeNode;
    use crate::transport::node::traits::{Event, Subscriber};
    use crate::transport::worker_pool::WorkerPool;

    /// A connection whose server follows a script. Records the commands that it is sent.
    struct ScriptedSubscriber<'a> {
        sent: Vec<(u64, usize)>,
        steps: VecDeque<Step<'a>>,
    }

    /// Returns the next event from the server, given the commands that were sent to it.
    type Step<'a> = Box<dyn FnOnce(&[(u64, usize)]) -> Option<Event> + 'a>;

    impl Subscriber for ScriptedSubscriber<'_> {
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
            let step = self.steps.pop_front().ok_or(NodeFailure::TimedOut)?;
            Ok(step(&self.sent))
        }
    }

    /// Returns a listener whose thread ends at once: the test runs the connection itself.
    fn listener() -> ReleaseListener {
        let fake = FakeNode::new("a");
        let settings = node::settings(|config| config);
        let (pool, _) = WorkerPool::spawn(&[fake.node_config(&settings)], 1).unwrap();
        let nodes = NodeGroup::new(pool, vec!["a".to_owned()], 1, LockCounters::new(None));
        let (nodes, lock_table) = (Arc::new(nodes), Arc::new(LockTable::new()));
        let losses = LossHandler::new(&lock_table, &nodes);
        let watched = Arc::clone(losses.notifier().watched());
        let renewal = RenewalService::new(&nodes, Duration::from_secs(1), Arc::new(losses));
        let check = HolderCheck::new("", &lock_table, &Arc::new(renewal), &watched);
        let listener = ReleaseListener::new("", &nodes, Arc::from([]), check).unwrap();
        listener.thread.start(|| || {}).unwrap();
        listener
    }

    #[test]
    fn subscribe_waits_for_no_reply_and_only_its_confirmation_counts() {
        let listener = listener();
        let parse = |name| Key::parse("", name, LockKind::Exclusive).unwrap();
        let (keys, inbox) = (["x", "y", "z"].map(parse), Arc::new(Inbox::new()));
        let first = [0, 1].map(|key: usize| listener.subscribe(&keys[key], &inbox).unwrap());
        let late = RefCell::new(None);
        let shared = &listener.shared;
        let wake_channel = shared.wake_channel.key().channel();
        let is_confirmed = |name: &str| shared.state.lock().subscriptions.is_confirmed(name);
        let steps: [Step<'_>; 6] = [
            Box::new(|sent| {
                assert_eq!(sent, [(WAKE_COMMAND, 2), (1, 2)], "both at once");
                *late.borrow_mut() = listener.subscribe(&keys[2], &inbox).ok();
                // Of an earlier subscription.
                Some(Event::Message("x".into()))
            }),
            Box::new(|sent| {
                assert_eq!(sent.last(), Some(&(2, 1)), "behind it, unconfirmed");
                assert_eq!(first[0].take_signal(), Signal::Released);
                assert!(!is_confirmed("x") && shared.state.lock().node.is_none());
                Some(Event::Subscribed(WAKE_COMMAND, wake_channel))
            }),
            Box::new(|_| {
                assert_eq!(shared.state.lock().node, Some(0));
                Some(Event::Subscribed(1, "x".into()))
            }),
            Box::new(|_| {
                assert!(is_confirmed("x") && !is_confirmed("y"));
                assert_eq!(first[0].take_signal(), Signal::Subscribed);
                Some(Event::Subscribed(2, "z".into()))
            }),
            Box::new(|_| {
                assert!(is_confirmed("z") && !is_confirmed("y"));
                Some(Event::Refused(1, NodeFailure::AccessDenied("no".into())))
            }),
            Box::new(|sent| {
                assert_eq!(sent.last(), Some(&(3, 1)), "the unconfirmed channel");
                None
            }),
        ];
        let mut script = ScriptedSubscriber {
            sent: Vec::new(),
            steps: steps.into(),
        };
        assert_eq!(
            shared.run_connection(&mut script, 0, &ReconnectDelays::new(1)),
            Err(NodeFailure::TimedOut)
        );
        assert!(script.steps.is_empty());
    }
}
