//! The ear for releases: one thread that hears what releases publish, and wakes who waits here for the lock.
//!
//! What it hears is a hint and never an answer: every wait has another end, too. A waiter registers, is woken when the
//! subscription stands, tries once more, and only then relies on a message. The thread sits on the first node that is
//! connected. It starts with the first waiter; nothing stays subscribed for long when nobody waits.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use log::{Level, debug, info, log};
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::background::release_listener::rests::Rests;
use crate::background::release_listener::subscriptions::Subscriptions;
use crate::background::release_listener::yielding::Courtesies;
use crate::error::{Cause, Error};
use crate::protocol::key::{Channel, Family, Key};
use crate::protocol::lease::{Claim, Lease};
use crate::protocol::token::Token;
use crate::time::clock;
use crate::transport::inbox::Inbox;
use crate::transport::node::traits::{Connector, Ear, Event};
use crate::transport::round::Nodes;
use crate::transport::worker_pool::Helper;
use crate::transport::{pipeline, worker_pool};

/// The thread's name.
const NAME: &str = "redguard-listener";
/// A subscription outlives its last waiter by this, since who waited for a lock is likely to wait for it again.
const LINGER: Duration = Duration::from_millis(500);
/// So long it hears nothing before it asks for a sign of life. As often it looks whether a node before its own can be had.
const PING_EVERY: Duration = Duration::from_secs(1);
/// The first pause of a node after a connection that failed; it is doubled so many times.
pub(crate) const PAUSE: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 500 });
pub(crate) const MOST_DOUBLED: u32 = 6;
/// The number of the SUBSCRIBE to the private channel.
const PRIVATE: u64 = 0;

/// The listening of a `Nodes`.
pub(crate) struct Listener {
    pub(crate) desk: Arc<Desk>,
    connectors: Arc<[Arc<dyn Connector>]>,
    started: AtomicBool,
    thread: Mutex<Option<Helper>>,
}

pub(crate) struct Desk {
    pub(crate) state: Mutex<State>,
    changed: Condvar,
    pub(crate) nodes: Arc<Nodes>,
    /// The private channel on which the thread is told that there is something to do: a read cannot be interrupted.
    private: Arc<Lease>,
    /// How many channels there are, so that who does not wait need not ask.
    channels: AtomicUsize,
    /// How many keys others were seen to listen to.
    pub(crate) courtesies: AtomicUsize,
}

pub(crate) struct State {
    pub(crate) subscriptions: Subscriptions,
    /// Until when others are let pass who were heard to listen.
    pub(crate) courtesies: Courtesies,
    /// Where the thread listens.
    pub(crate) node: Option<usize>,
    /// It has been told, and has not looked since.
    knocked: bool,
    stopping: bool,
}

pub(crate) struct Waiter {
    pub(crate) inbox: Arc<Inbox>,
    /// The greatest of what it has heard since it looked last.
    pub(crate) heard: AtomicU8,
}

/// What a waiter has heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Heard {
    Nothing,
    /// From now on a release is heard; one before may not have been.
    Subscribed,
    /// There was a release.
    Release,
}

/// A waiter's ear at a key. It hears until it is dropped.
pub(crate) struct Listening<'a> {
    desk: &'a Desk,
    channel: Channel,
    waiter: Arc<Waiter>,
}

impl Listener {
    /// # Errors
    /// `System` when there are no random bytes for the name of the private channel.
    pub(crate) fn new(
        prefix: &str,
        nodes: &Arc<Nodes>,
        connectors: Arc<[Arc<dyn Connector>]>,
    ) -> Result<Listener, Error> {
        let token = Token::fresh(None)?;
        let name = format!("listener:{:016x}", token.id());
        let key = Key::parse(prefix, &name, Family::Exclusive)?;
        Ok(Listener {
            desk: Arc::new(Desk {
                state: Mutex::new(State {
                    subscriptions: Subscriptions::new(),
                    courtesies: Courtesies::new(),
                    node: None,
                    knocked: false,
                    stopping: false,
                }),
                changed: Condvar::new(),
                nodes: Arc::clone(nodes),
                private: Arc::new(Lease::new(key, token, Claim::Exclusive)),
                channels: AtomicUsize::new(0),
                courtesies: AtomicUsize::new(0),
            }),
            connectors,
            started: AtomicBool::new(false),
            thread: Mutex::new(None),
        })
    }

    /// Listens at a key if others of this process do, or did a moment ago: then what is released from now on is heard.
    pub(crate) fn join_others(&self, key: &Key, inbox: &Arc<Inbox>) -> Option<Listening<'_>> {
        if self.desk.channels.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut state = self.desk.state.lock();
        let is_heard = state.subscriptions.is_confirmed(key.channel().as_ref());
        is_heard.then(|| self.desk.enter(&mut state, key, inbox).0)
    }

    /// Listens at a key. The inbox is woken when the subscription stands, and with every release that is published.
    ///
    /// # Errors
    /// `System` when there is no thread to be had.
    pub(crate) fn join(&self, key: &Key, inbox: &Arc<Inbox>) -> Result<Listening<'_>, Error> {
        if !self.started.load(Ordering::Acquire) {
            self.start()?;
        }
        let mut state = self.desk.state.lock();
        let (listening, is_new) = self.desk.enter(&mut state, key, inbox);
        if state.subscriptions.is_confirmed(&listening.channel) {
            // What was released before is not heard.
            listening.waiter.hear(Heard::Subscribed);
        }
        let channels = state.subscriptions.len();
        self.desk.channels.store(channels, Ordering::Release);
        if is_new {
            self.desk.knock(state);
        }
        Ok(listening)
    }

    fn start(&self) -> Result<(), Error> {
        let mut thread = self.thread.lock();
        if thread.is_none() {
            let (desk, connectors) = (Arc::clone(&self.desk), Arc::clone(&self.connectors));
            *thread = Some(Helper::start(NAME, move || {
                desk.run(&connectors);
            })?);
            self.started.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// The node that is listened to, where a release is heard of first.
    pub(crate) fn node(&self) -> Option<usize> {
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
        self.desk.knock(state);
    }

    /// Waits until the thread has ended, until `end`. `false` if it has not.
    pub(crate) fn await_end(&self, end: Instant) -> bool {
        let thread = self.thread.lock().take();
        thread.is_none_or(|thread| thread.join(end))
    }
}

impl Listening<'_> {
    pub(crate) fn is_at(&self, key: &Key) -> bool {
        *self.channel == *key.wire()
    }

    /// What there was to hear since this was asked last.
    pub(crate) fn take(&self) -> Heard {
        match self
            .waiter
            .heard
            .swap(Heard::Nothing as u8, Ordering::AcqRel)
        {
            0 => Heard::Nothing,
            1 => Heard::Subscribed,
            _ => Heard::Release,
        }
    }

    /// Whether there was at least this to hear.
    pub(crate) fn has_heard(&self, least: Heard) -> bool {
        self.waiter.heard.load(Ordering::Acquire) >= least as u8
    }
}

impl Waiter {
    pub(crate) fn hear(&self, heard: Heard) {
        self.heard.fetch_max(heard as u8, Ordering::AcqRel);
    }
}

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        let mut state = self.desk.state.lock();
        let subscriptions = &mut state.subscriptions;
        subscriptions.leave(&self.channel, &self.waiter, clock::now());
    }
}

impl Desk {
    /// Adds a waiter, and tells whether its channel is a new one.
    fn enter(&self, state: &mut State, key: &Key, inbox: &Arc<Inbox>) -> (Listening<'_>, bool) {
        let channel = key.channel();
        let waiter = Arc::new(Waiter {
            inbox: Arc::clone(inbox),
            heard: AtomicU8::new(Heard::Nothing as u8),
        });
        let is_new = state.subscriptions.enter(&channel, &waiter);
        let listening = Listening {
            desk: self,
            channel,
            waiter,
        };
        (listening, is_new)
    }

    /// Lets the thread look at what is to be done.
    fn knock(&self, mut state: MutexGuard<'_, State>) {
        let knocks = !std::mem::replace(&mut state.knocked, true);
        let node = state.node;
        drop(state);
        self.changed.notify_one();
        if let (true, Some(node)) = (knocks, node) {
            self.nodes.knock(&self.private, node);
        }
    }

    fn run(&self, connectors: &[Arc<dyn Connector>]) {
        let mut rests = Rests::new(connectors.len());
        // After a panic it goes on with the next node.
        while worker_pool::catch(NAME, || self.turn(connectors, &mut rests)) != Some(false) {}
    }

    /// Listens to one node until that ends. `false` when the thread is to end.
    fn turn(&self, connectors: &[Arc<dyn Connector>], rests: &mut Rests) -> bool {
        let Some(node) = self.wait_for_work(rests) else {
            return false;
        };
        let began = clock::now();
        let listen = || connectors[node].listen(&mut |ear| self.serve(ear, node, rests));
        let ended = catch_unwind(AssertUnwindSafe(listen));
        let now = clock::now();
        let mut state = self.state.lock();
        state.node = None;
        state.subscriptions.end();
        self.sweep(&mut state, Duration::ZERO);
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
        let cause = ended.unwrap_or_else(|_| Err(pipeline::panicked()));
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
            state.knocked = false;
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
            self.changed.wait_until(&mut state, now + PAUSE);
            self.sweep(&mut state, LINGER);
        }
    }

    /// Forgets the channels at which nobody has waited for so long. Returns the UNSUBSCRIBE commands that are to be sent.
    fn sweep(&self, state: &mut State, linger: Duration) -> Vec<Vec<Channel>> {
        let swept = state.subscriptions.sweep(clock::now(), linger);
        let channels = state.subscriptions.len();
        self.channels.store(channels, Ordering::Release);
        swept
    }

    /// Hears what one connection brings, until it fails or nobody waits any more. Nothing that is sent is waited for: replies
    /// and messages are taken as they come.
    fn serve(&self, ear: &mut dyn Ear, node: usize, rests: &Rests) -> Result<(), Cause> {
        ear.subscribe(PRIVATE, &[self.private.key().channel()])?;
        self.state.lock().subscriptions.begin();
        let mut heard_at = clock::now();
        let mut look_at = heard_at + PING_EVERY;
        loop {
            let (new, gone, due) = {
                let mut state = self.state.lock();
                state.knocked = false;
                let gone = self.sweep(&mut state, LINGER);
                if state.stopping || state.subscriptions.is_empty() {
                    return Ok(());
                }
                let new = state.subscriptions.take_unsent();
                (new, gone, state.subscriptions.next_sweep(LINGER))
            };
            for channels in &gone {
                ear.unsubscribe(channels)?;
            }
            for (command, channels) in &new {
                ear.subscribe(*command, channels)?;
            }
            let now = clock::now();
            if now >= look_at {
                look_at = now + PING_EVERY;
                let suits = |other| other == node || !rests.is_resting(other, now);
                if self
                    .nodes
                    .first_up_of(suits)
                    .is_some_and(|first| first < node)
                {
                    return Ok(()); // back to where all others listen
                }
            }
            if now >= heard_at + PING_EVERY {
                ear.ping()?;
                heard_at = now;
            }
            let next = look_at.min(heard_at + PING_EVERY);
            let next = due.map_or(next, |due| due.min(next));
            if let Some(event) = ear.hear(next.saturating_duration_since(now))? {
                heard_at = clock::now();
                self.take(event, node)?;
            }
        }
    }

    /// Takes in what the server has sent. The error is why it is of no use.
    fn take(&self, event: Event, node: usize) -> Result<(), Cause> {
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

#[cfg(all(test, not(loom)))]
mod tests {
    #![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

    use std::collections::VecDeque;

    use super::*;
    use crate::telemetry::stats::Meter;
    use crate::tests::fake_node::node;
    use crate::tests::fake_node::node::Fake;
    use crate::transport::worker_pool::Crew;

    /// A connection whose server says what the test wants, and which writes down what it is sent.
    struct Script<'a> {
        sent: Vec<(u64, usize)>,
        says: VecDeque<Step<'a>>,
    }

    /// What the server sends next, given what it was sent.
    type Step<'a> = Box<dyn FnOnce(&[(u64, usize)]) -> Option<Event> + 'a>;

    impl Ear for Script<'_> {
        fn subscribe(&mut self, command: u64, channels: &[Channel]) -> Result<(), Cause> {
            self.sent.push((command, channels.len()));
            Ok(())
        }

        fn unsubscribe(&mut self, _: &[Channel]) -> Result<(), Cause> {
            Ok(())
        }

        fn ping(&mut self) -> Result<(), Cause> {
            Ok(())
        }

        fn hear(&mut self, _: Duration) -> Result<Option<Event>, Cause> {
            let step = self.says.pop_front().ok_or(Cause::TimedOut)?;
            Ok(step(&self.sent))
        }
    }

    fn listener() -> Listener {
        let fake = Fake::new("a");
        let settings = node::settings(|config| config);
        let (crew, _) = Crew::build(&[fake.post(&settings)], 1).unwrap();
        let nodes = Nodes::new(crew, vec!["a".to_owned()], 1, Meter::new(None));
        let listener = Listener::new("", &Arc::new(nodes), Arc::from([])).unwrap();
        // No thread of its own is to listen.
        listener.started.store(true, Ordering::Release);
        listener
    }

    #[test]
    fn a_subscribe_waits_for_no_reply_and_only_its_confirmation_counts() {
        let listener = listener();
        let parse = |name| Key::parse("", name, Family::Exclusive).unwrap();
        let (keys, inbox) = (["x", "y", "z"].map(parse), Arc::new(Inbox::new()));
        let ears = [0, 1].map(|key: usize| listener.join(&keys[key], &inbox).unwrap());
        let late = std::cell::RefCell::new(None);
        let desk = &listener.desk;
        let private = desk.private.key().channel();
        let is_confirmed = |name: &str| desk.state.lock().subscriptions.is_confirmed(name);
        let says: [Step<'_>; 6] = [
            Box::new(|sent| {
                assert_eq!(sent, [(PRIVATE, 1), (1, 2)], "both at once");
                *late.borrow_mut() = listener.join(&keys[2], &inbox).ok();
                // One of a subscription before.
                Some(Event::Message("x".into()))
            }),
            Box::new(|sent| {
                assert_eq!(sent.last(), Some(&(2, 1)), "behind it, unconfirmed");
                assert_eq!(ears[0].take(), Heard::Release);
                assert!(!is_confirmed("x") && desk.state.lock().node.is_none());
                Some(Event::Subscribed(PRIVATE, private))
            }),
            Box::new(|_| {
                assert_eq!(desk.state.lock().node, Some(0));
                Some(Event::Subscribed(1, "x".into()))
            }),
            Box::new(|_| {
                assert!(is_confirmed("x") && !is_confirmed("y"));
                assert_eq!(ears[0].take(), Heard::Subscribed);
                Some(Event::Subscribed(2, "z".into()))
            }),
            Box::new(|_| {
                assert!(is_confirmed("z") && !is_confirmed("y"));
                Some(Event::Refused(1, Cause::Denied("no".into())))
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
            desk.serve(&mut script, 0, &Rests::new(1)),
            Err(Cause::TimedOut)
        );
        assert!(script.says.is_empty());
    }
}
