//! The ear for releases: one thread that hears what releases publish, and wakes who waits here for the lock.
//!
//! What it hears is a hint and never an answer: every wait has another end, too. A waiter registers, is woken when the
//! subscription stands, tries once more, and only then relies on a message. The thread sits on the first node that is
//! connected. It starts with the first waiter; nothing stays subscribed for long when nobody waits.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use log::{debug, info};
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::crew::Helper;
use crate::error::{Cause, Error};
use crate::inbox::Inbox;
use crate::key::{Channel, Family, Key, Token};
use crate::lease::{Claim, Lease};
use crate::node::{Connector, Ear};
use crate::round::Nodes;
use crate::time;

mod courtesy;

/// A subscription outlives its last waiter by this, since who waited for a lock is likely to wait for it again.
const LINGER: Duration = Duration::from_millis(500);
/// So long it hears nothing before it asks for a sign of life.
const PING_EVERY: Duration = Duration::from_secs(1);
/// The first pause after a connection that failed; it is doubled so many times.
const PAUSE: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 500 });
const MOST_DOUBLED: u32 = 6;
/// The listening of a `Nodes`.
pub(crate) struct Listener {
    desk: Arc<Desk>,
    connectors: Arc<[Arc<dyn Connector>]>,
    started: AtomicBool,
    thread: Mutex<Option<Helper>>,
}

struct Desk {
    state: Mutex<State>,
    changed: Condvar,
    nodes: Arc<Nodes>,
    /// The private channel on which the thread is told that there is something to do: a read cannot be interrupted.
    private: Arc<Lease>,
    /// How many channels there are, so that who does not wait need not ask.
    channels: AtomicUsize,
    /// How many keys others were seen to listen to.
    courtesies: AtomicUsize,
}

struct State {
    channels: HashMap<Channel, Post>,
    /// Until when others are let pass who were heard to listen.
    courtesies: HashMap<Channel, Instant>,
    /// Where the thread listens.
    node: Option<usize>,
    /// It has been told, and has not looked since.
    knocked: bool,
    stopping: bool,
}

/// A channel that somebody waits at, or waited at a moment ago.
#[derive(Default)]
struct Post {
    waiters: Vec<Arc<Waiter>>,
    subscribed: bool,
    /// Since when nobody waits.
    idle: Option<Instant>,
}

struct Waiter {
    inbox: Arc<Inbox>,
    /// The greatest of what it has heard since it looked last.
    heard: AtomicU8,
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
                    channels: HashMap::new(),
                    courtesies: HashMap::new(),
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
        let post = state.channels.get_mut(key.channel().as_ref())?;
        post.subscribed
            .then(|| self.desk.enter(post, key.channel(), inbox))
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
        let post = state.channels.entry(key.channel()).or_default();
        let listening = self.desk.enter(post, key.channel(), inbox);
        if post.subscribed {
            // What was released before is not heard.
            listening.waiter.hear(Heard::Subscribed);
        }
        let new = !post.subscribed && post.waiters.len() == 1;
        let channels = state.channels.len();
        self.desk.channels.store(channels, Ordering::Release);
        if new {
            self.desk.knock(state);
        }
        Ok(listening)
    }

    fn start(&self) -> Result<(), Error> {
        let mut thread = self.thread.lock();
        if thread.is_none() {
            let (desk, connectors) = (Arc::clone(&self.desk), Arc::clone(&self.connectors));
            *thread = Some(Helper::start("redguard-listener", move || {
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
        self.desk.state.lock().channels.len()
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
    fn hear(&self, heard: Heard) {
        self.heard.fetch_max(heard as u8, Ordering::AcqRel);
    }
}

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        let mut state = self.desk.state.lock();
        if let Some(post) = state.channels.get_mut(&self.channel) {
            post.waiters.retain(|w| !Arc::ptr_eq(w, &self.waiter));
            if post.waiters.is_empty() {
                post.idle = Some(time::now());
            }
        }
    }
}

impl Desk {
    fn enter(&self, post: &mut Post, channel: Channel, inbox: &Arc<Inbox>) -> Listening<'_> {
        let waiter = Arc::new(Waiter {
            inbox: Arc::clone(inbox),
            heard: AtomicU8::new(Heard::Nothing as u8),
        });
        post.waiters.push(Arc::clone(&waiter));
        post.idle = None;
        Listening {
            desk: self,
            channel,
            waiter,
        }
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
        let mut failures = 0_u32;
        while let Some(node) = self.wait_for_work() {
            let heard = connectors[node].listen(&mut |ear| self.serve(ear, node));
            let mut state = self.state.lock();
            if state.node.take().is_some() {
                failures = 0;
            }
            state
                .channels
                .values_mut()
                .for_each(|p| p.subscribed = false);
            self.sweep(&mut state, Duration::ZERO);
            if state.stopping {
                return;
            }
            if let Err(cause) = heard {
                let name = self.nodes.name(node);
                match failures {
                    0 => info!("{name}: no wake-ups from it: {cause}"),
                    _ => debug!("{name}: no wake-ups from it: {cause}"),
                }
                let end = time::now() + PAUSE * (1 << failures.min(MOST_DOUBLED));
                failures += 1;
                while !state.stopping && time::now() < end {
                    self.changed.wait_until(&mut state, end);
                }
            }
        }
    }

    /// Waits until somebody waits and a node is connected; `None` when the thread is to end.
    fn wait_for_work(&self) -> Option<usize> {
        let mut state = self.state.lock();
        loop {
            state.knocked = false;
            if state.stopping {
                return None;
            }
            if state.channels.is_empty() {
                self.changed.wait(&mut state);
                continue;
            }
            if let Some(node) = self.nodes.first_up() {
                return Some(node);
            }
            self.changed.wait_until(&mut state, time::now() + PAUSE);
            self.sweep(&mut state, LINGER);
        }
    }

    /// Forgets the channels at which nobody has waited for so long; answers those that were subscribed to.
    fn sweep(&self, state: &mut State, linger: Duration) -> Vec<Channel> {
        let now = time::now();
        let mut swept = Vec::new();
        let old = |post: &mut Post| post.idle.is_some_and(|since| since + linger <= now);
        for (channel, post) in state.channels.extract_if(|_, post| old(post)) {
            if post.subscribed {
                swept.push(channel);
            }
        }
        self.channels.store(state.channels.len(), Ordering::Release);
        swept
    }

    /// Hears what one connection brings, until it fails or nobody waits any more.
    fn serve(&self, ear: &mut dyn Ear, node: usize) -> Result<(), Cause> {
        let private = self.private.key().channel();
        ear.subscribe(&private)?;
        self.state.lock().node = Some(node);
        debug!("{}: listening", self.nodes.name(node));
        let mut heard_of = time::now();
        loop {
            let (new, gone, wait) = {
                let mut state = self.state.lock();
                state.knocked = false;
                let gone = self.sweep(&mut state, LINGER);
                if state.stopping || state.channels.is_empty() {
                    return Ok(());
                }
                let new = state.channels.iter().filter(|(_, post)| !post.subscribed);
                let new: Vec<Channel> = new.map(|(channel, _)| channel.clone()).collect();
                let idle = state.channels.values().any(|post| post.idle.is_some());
                (new, gone, if idle { LINGER } else { PING_EVERY })
            };
            for channel in &gone {
                ear.unsubscribe(channel)?;
            }
            for channel in &new {
                ear.subscribe(channel)?;
                self.wake(channel, Heard::Subscribed);
            }
            match ear.hear(wait)? {
                Some(channel) => {
                    heard_of = time::now();
                    self.wake(&channel, Heard::Release);
                }
                None if time::now() >= heard_of + PING_EVERY => {
                    ear.ping()?;
                    heard_of = time::now();
                    if self.nodes.first_up().is_some_and(|first| first < node) {
                        return Ok(()); // back to where all others listen
                    }
                }
                None => {}
            }
        }
    }

    /// Wakes who waits at a channel.
    fn wake(&self, channel: &str, heard: Heard) {
        let mut state = self.state.lock();
        let Some(post) = state.channels.get_mut(channel) else {
            return; // the private one, or nobody waits any more
        };
        post.subscribed = true;
        for waiter in &post.waiters {
            waiter.hear(heard);
            waiter.inbox.wake();
        }
    }
}
