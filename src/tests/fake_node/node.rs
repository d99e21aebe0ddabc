//! Fake nodes for tests, with faults that a test selects. They replace a server at the seam
//! `transport::node`.

use std::cell::RefCell;
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, unbounded};
use parking_lot::Mutex;

use crate::api::nodes::Nodes;
use crate::api::redis_locker::RedisLocker;
use crate::config::builder::Config;
use crate::config::settings::Settings;
use crate::error::error::Error;
use crate::error::node_failure::NodeFailure;
use crate::protocol::key::{Channel, Key};
use crate::protocol::kind::LockKind;
use crate::protocol::reply::{Blocker, Reply};
use crate::protocol::request::{Op, Publish, Request};
use crate::protocol::server_info::ServerInfo;
use crate::tests::fake_node::store::NodeStore;
use crate::tests::fake_node::stored_lock::StoredLock;
use crate::time::clock;
use crate::transport::messages::NodeConfig;
use crate::transport::node::traits::{
    Connector, DirectIo, Event, Handshake, InFlight, Session, Subscriber,
};

/// A fault of a node. `Op` limits it to requests of this operation.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// The node works.
    None,
    /// The node refuses connections.
    Down,
    /// The node denies access at connect and to each request.
    DeniesAccess,
    /// The node denies subscriptions.
    DeniesSubscribers,
    /// The node denies these requests.
    DeniesOp(Op),
    /// The node reports the arrival of these requests to the test and serves them only on its
    /// signal.
    Delays(Op, Sender<()>, Receiver<()>),
    /// The node delays its reply to a ping until the signal of the test.
    LatePing(Sender<()>, Receiver<()>),
    /// The node delays a connect until the signal of the test.
    LateConnect(Sender<()>, Receiver<()>),
    /// The node serves these requests and returns an error.
    FailsAfterApplying(Op),
    /// The node returns an error to these requests and does not serve them.
    Fails(Op),
    /// The node returns `LOADING` to these requests.
    Loads(Op),
    /// The node serves one of these requests and goes down before the reply.
    GoesDownAfter(Op),
    /// The node serves one of these requests; the connection breaks before the reply.
    DisconnectsAfter(Op),
    /// The node restarts without its data at one of these requests.
    RestartsAt(Op),
    /// The connection breaks at each of these requests, unserved; a reconnect works at once.
    Breaks(Op),
    /// The node accepts connections, and closes each one before the first request.
    Closes,
    /// The node returns an error to acquires of the exclusive lock of this name.
    ErrsOn(&'static str),
    /// The node refuses all acquires, as if another owner held the lock.
    Refuses,
    /// The node refuses acquires, as if a holder's lease had just ended.
    RefusesLate,
    /// One of these requests makes the worker panic.
    Panics(Op),
}

/// A node in memory that stores keys as the scripts do, with a log of the served requests.
#[derive(Debug)]
pub(crate) struct FakeNode {
    fault: Mutex<Fault>,
    memory: Mutex<NodeStore>,
    served: Mutex<Vec<(Op, String)>>,
    connects: Mutex<Vec<Option<Handshake>>>,
    /// The number of connections that the node has closed.
    closed: AtomicUsize,
    no_kill: Mutex<Option<NodeFailure>>,
    refused: AtomicUsize,
    /// Number of acquires that asked for the owner label.
    labels_asked: AtomicUsize,
    published: AtomicUsize,
    run_id: Mutex<String>,
    server_info: Mutex<ServerInfo>,
    subscriptions: Mutex<Vec<(Channel, Sender<Event>)>>,
}

/// The test's side of a [`Fault::Delays`].
pub(crate) struct Rendezvous {
    arrived: Receiver<()>,
    go: Sender<()>,
}

impl Rendezvous {
    /// Blocks until a request has arrived at the node.
    pub(crate) fn arrived(&self) {
        self.arrived
            .recv_timeout(Duration::from_secs(20))
            .expect("no request came");
    }

    /// Returns whether another request has arrived at the node.
    pub(crate) fn has_arrived(&self) -> bool {
        self.arrived.try_recv().is_ok()
    }

    /// Lets the node serve the request.
    pub(crate) fn go(&self) {
        self.go.send(()).expect("the node is gone");
    }
}

impl FakeNode {
    pub(crate) fn new(name: &str) -> Arc<FakeNode> {
        Arc::new(FakeNode {
            fault: Mutex::new(Fault::None),
            memory: Mutex::new(NodeStore::default()),
            served: Mutex::new(Vec::new()),
            connects: Mutex::new(Vec::new()),
            closed: AtomicUsize::new(0),
            no_kill: Mutex::new(None),
            refused: AtomicUsize::new(0),
            labels_asked: AtomicUsize::new(0),
            published: AtomicUsize::new(0),
            run_id: Mutex::new(name.to_owned()),
            server_info: Mutex::new(ServerInfo::default()),
            subscriptions: Mutex::new(Vec::new()),
        })
    }

    /// Returns the configuration of the node connection.
    pub(crate) fn node_config(self: &Arc<FakeNode>, settings: &Settings) -> NodeConfig {
        NodeConfig {
            name: self.run_id.lock().clone(),
            connector: Arc::new(Arc::clone(self)),
            node_timeout: settings.node_timeout,
            // So short that tests of idle connections wait briefly.
            ping_interval: Duration::from_millis(50),
            restart_quarantine: settings.restart_quarantine,
            reject_evicting: settings.reject_evicting_servers,
            is_one_server: true,
            observer: settings.observer.clone(),
        }
    }

    pub(crate) fn fakes(count: usize) -> Vec<Arc<FakeNode>> {
        (0..count)
            .map(|n| FakeNode::new(&format!("fake-{n}")))
            .collect()
    }

    pub(crate) fn set_fault(&self, fault: Fault) {
        *self.fault.lock() = fault;
    }

    /// Replaces the server behind the address of the node.
    pub(crate) fn set_run_id(&self, name: &str) {
        name.clone_into(&mut self.run_id.lock());
    }

    /// Closes all connections of the node.
    pub(crate) fn close_connections(&self) {
        let connects = self.connects.lock().len();
        self.closed.store(connects, Ordering::Release);
    }

    /// Sets the failure of CLIENT KILL from the next connect on.
    pub(crate) fn set_kill_failure(&self, cause: Option<NodeFailure>) {
        *self.no_kill.lock() = cause;
    }

    /// Sets the server info from the next connect on.
    pub(crate) fn set_server_info(&self, server_info: ServerInfo) {
        *self.server_info.lock() = server_info;
    }

    pub(crate) fn delay(&self, op: Op) -> Rendezvous {
        let (tell, arrived) = unbounded();
        let (go, wait) = unbounded();
        self.set_fault(Fault::Delays(op, tell, wait));
        Rendezvous { arrived, go }
    }

    pub(crate) fn delay_ping(&self) -> Rendezvous {
        let (tell, arrived) = unbounded();
        let (go, wait) = unbounded();
        self.set_fault(Fault::LatePing(tell, wait));
        Rendezvous { arrived, go }
    }

    pub(crate) fn delay_connect(&self) -> Rendezvous {
        let (tell, arrived) = unbounded();
        let (go, wait) = unbounded();
        self.set_fault(Fault::LateConnect(tell, wait));
        Rendezvous { arrived, go }
    }

    /// Returns the token of an exclusive lock, if it has not expired.
    pub(crate) fn token(&self, name: &str) -> Option<String> {
        let (token, _) = self.stored_lock(name, LockKind::Exclusive).owner?;
        Some(token)
    }

    /// Returns the stored state of a lock.
    pub(crate) fn stored_lock(&self, name: &str, family: LockKind) -> StoredLock {
        let mut memory = self.memory.lock();
        memory.stored_lock(&key(name, family), clock::now()).clone()
    }

    /// Changes the stored state of a lock.
    pub(crate) fn modify(&self, name: &str, family: LockKind, act: impl FnOnce(&mut StoredLock)) {
        act(self
            .memory
            .lock()
            .stored_lock(&key(name, family), clock::now()));
    }

    /// Stores the token of another owner under the key of an exclusive lock.
    pub(crate) fn seize(&self, name: &str, ttl: Duration) {
        let value = ("stranger".to_owned(), clock::now() + ttl);
        self.modify(name, LockKind::Exclusive, |stored| {
            stored.owner = Some(value)
        });
    }

    /// Lets reader markers and reader turns live for at least `least`, so that no expiry decides a
    /// test.
    pub(crate) fn keep_markers(&self, least: Duration) {
        self.memory.lock().min_marker_ttl = least;
    }

    pub(crate) fn wipe(&self) {
        self.memory.lock().clear();
    }

    /// Returns the number of served requests of an operation.
    pub(crate) fn count(&self, op: Op) -> usize {
        let served = self.served.lock();
        served.iter().filter(|(v, _)| *v == op).count()
    }

    /// Returns the operations of the served requests, in order.
    pub(crate) fn ops(&self) -> Vec<Op> {
        self.served.lock().iter().map(|(op, _)| *op).collect()
    }

    /// Returns the number of served extensions of a token.
    pub(crate) fn extensions(&self, token: &str) -> usize {
        let served = self.served.lock();
        let of_it = |(op, of): &&(Op, String)| *op == Op::Extend && of == token;
        served.iter().filter(of_it).count()
    }

    /// Returns the tokens of the served acquires, in order.
    pub(crate) fn acquire_tokens(&self) -> Vec<String> {
        let served = self.served.lock();
        let takes = served.iter().filter(|(op, _)| *op == Op::Acquire);
        takes.map(|(_, token)| token.clone()).collect()
    }

    /// Returns how many of the served acquires asked for the owner label.
    pub(crate) fn labels_asked(&self) -> usize {
        self.labels_asked.load(Ordering::SeqCst)
    }

    /// Returns the former session of each successful connect.
    pub(crate) fn connects(&self) -> Vec<Option<Handshake>> {
        self.connects.lock().clone()
    }

    /// Returns the number of published releases, with or without receivers.
    pub(crate) fn published(&self) -> usize {
        self.published.load(Ordering::Relaxed)
    }

    /// Returns the number of refused connects.
    pub(crate) fn refused(&self) -> usize {
        self.refused.load(Ordering::Relaxed)
    }

    fn serve(&self, request: &Request) -> Reply {
        let token = request.lease.token().text();
        // Held to the end, so that a request that is counted has published its messages.
        let mut served = self.served.lock();
        served.push((request.op, token));
        if request.wants_owner {
            self.labels_asked.fetch_add(1, Ordering::SeqCst);
        }
        let subscriptions = self.subscriptions.lock();
        let subscribed = |channel: &str| {
            let each = subscriptions.iter();
            each.filter(|(name, _)| **name == *channel).count() as u64
        };
        let (answer, messages) = self.memory.lock().run(request, clock::now(), &subscribed);
        if request.publish != Publish::Never && !messages.is_empty() {
            self.published.fetch_add(1, Ordering::Relaxed);
        }
        for (channel, event) in messages {
            deliver(&subscriptions, &channel, &event);
        }
        answer
    }

    /// Publishes a text.
    pub(crate) fn publish_text(&self, channel: &Channel, text: &str) {
        let event = Event::from_message(channel, text.as_bytes());
        deliver(&self.subscriptions.lock(), channel, &event);
    }

    /// Publishes a plain release.
    pub(crate) fn publish(&self, channel: &Channel) {
        let event = Event::Message(Arc::clone(channel));
        deliver(&self.subscriptions.lock(), channel, &event);
    }

    /// Returns the wake channels in the waiting list of a lock, in order.
    pub(crate) fn places(&self, name: &str) -> Vec<Channel> {
        self.with_places(name, |places| {
            places
                .iter()
                .map(|(_, channel)| Arc::clone(channel))
                .collect()
        })
    }

    /// Puts a process in front of the waiting list of a lock that listens and never acts.
    pub(crate) fn add_paused(&self, name: &str, channel: &str) {
        let (never_read, _) = unbounded();
        self.subscriptions.lock().push((channel.into(), never_read));
        self.with_places(name, |places| {
            let first = places.first().map_or_else(clock::now, |(since, _)| *since);
            places.insert(0, (first, channel.into()));
        });
    }

    /// Removes the first process of the waiting list of a lock, without a message.
    pub(crate) fn remove_first_place(&self, name: &str) {
        self.with_places(name, |places| _ = places.remove(0));
    }

    /// Removes the waiting list of a lock.
    pub(crate) fn clear_places(&self, name: &str) {
        self.with_places(name, Vec::clear);
    }

    fn with_places<T>(&self, name: &str, act: impl FnOnce(&mut Vec<(Instant, Channel)>) -> T) -> T {
        let key = key(name, LockKind::Exclusive);
        act(&mut self.memory.lock().waiting_list(&key, clock::now()).places)
    }

    /// Removes an exclusive lock, without a message.
    pub(crate) fn free(&self, name: &str) {
        self.modify(name, LockKind::Exclusive, |lock| lock.owner = None);
    }

    /// Returns the number of subscriptions to the channel of a lock.
    pub(crate) fn subscribed(&self, name: &str) -> usize {
        self.subscribers(&key(name, LockKind::Exclusive).channel())
    }

    /// Returns whether the process with this wake channel is subscribed to the channel of a lock.
    pub(crate) fn listens(&self, name: &str, wake_channel: &Channel) -> bool {
        let lock = key(name, LockKind::Exclusive).channel();
        let subscriptions = self.subscriptions.lock();
        let of = |channel: &Channel| {
            let channel = Arc::clone(channel);
            let each = subscriptions.iter();
            each.filter_map(move |(name, sender)| (*name == channel).then_some(sender))
        };
        of(wake_channel).any(|own| of(&lock).any(|sender| sender.same_channel(own)))
    }

    /// Ends all subscriptions to the channel of a lock. Their processes do not learn of it.
    pub(crate) fn unsubscribe_all(&self, name: &str) {
        let lock = key(name, LockKind::Exclusive).channel();
        let mut subscriptions = self.subscriptions.lock();
        subscriptions.retain(|(channel, _)| *channel != lock);
    }

    /// Returns the number of subscriptions to a channel.
    pub(crate) fn subscribers(&self, channel: &Channel) -> usize {
        let subscriptions = self.subscriptions.lock();
        let each = subscriptions.iter();
        each.filter(|(name, _)| name == channel).count()
    }
}

/// Sends an event to the subscribers of a channel. A subscriber that has gone receives nothing.
fn deliver(subscriptions: &[(Channel, Sender<Event>)], channel: &Channel, event: &Event) {
    let subscribed = subscriptions.iter().filter(|(name, _)| name == channel);
    subscribed.for_each(|(_, sender)| _ = sender.send(event.clone()));
}

struct FakeSubscriber<'a> {
    fake: &'a FakeNode,
    tell: Sender<Event>,
    told: Receiver<Event>,
}

impl Subscriber for FakeSubscriber<'_> {
    fn subscribe(&mut self, command: u64, channels: &[Channel]) -> Result<(), NodeFailure> {
        self.fake.up()?;
        if matches!(*self.fake.fault.lock(), Fault::DeniesSubscribers) {
            _ = self.tell.send(Event::Refused(command, denied()));
            return Ok(());
        }
        let mut subscriptions = self.fake.subscriptions.lock();
        for channel in channels {
            subscriptions.push((Arc::clone(channel), self.tell.clone()));
            let confirmed = Event::Subscribed(command, Arc::clone(channel));
            _ = self.tell.send(confirmed);
        }
        Ok(())
    }

    fn unsubscribe(&mut self, channels: &[Channel]) -> Result<(), NodeFailure> {
        let tell = &self.tell;
        let mut subscriptions = self.fake.subscriptions.lock();
        subscriptions
            .retain(|(name, sender)| !(channels.contains(name) && sender.same_channel(tell)));
        self.fake.up()
    }

    fn ping(&mut self) -> Result<(), NodeFailure> {
        self.fake.up()
    }

    fn next_message(&mut self, wait: Duration) -> Result<Option<Event>, NodeFailure> {
        let event = self.told.recv_timeout(wait).ok();
        self.fake.up().map(|()| event)
    }
}

impl Drop for FakeSubscriber<'_> {
    fn drop(&mut self) {
        let tell = &self.tell;
        let mut subscriptions = self.fake.subscriptions.lock();
        subscriptions.retain(|(_, sender)| !sender.same_channel(tell));
    }
}

impl FakeNode {
    fn up(&self) -> Result<(), NodeFailure> {
        match *self.fault.lock() {
            Fault::Down => Err(NodeFailure::Unreachable("down".into())),
            _ => Ok(()),
        }
    }
}

impl Connector for Arc<FakeNode> {
    fn connect(
        &self,
        former: Option<&Handshake>,
    ) -> Result<(Box<dyn Session>, Handshake), NodeFailure> {
        if matches!(*self.fault.lock(), Fault::Down) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Err(NodeFailure::Unreachable("down".into()));
        }
        if matches!(*self.fault.lock(), Fault::DeniesAccess) {
            return Err(denied());
        }
        let fault = self.fault.lock().clone();
        let run_id = self.run_id.lock().clone();
        if let Fault::LateConnect(arrived, go) = fault {
            let _ = arrived.send(());
            let _ = go.recv();
        }
        let mut connects = self.connects.lock();
        connects.push(former.cloned());
        let handshake = Handshake {
            run_id,
            others: Vec::new(),
            client_id: connects.len() as i64,
            server_info: self.server_info.lock().clone(),
            no_kill: self.no_kill.lock().clone(),
        };
        let session = FakeSession {
            fake: Arc::clone(self),
            number: connects.len(),
            sent: VecDeque::new(),
            late: None,
        };
        Ok((Box::new(session), handshake))
    }

    fn with_subscriber(
        &self,
        serve: &mut dyn FnMut(&mut dyn Subscriber) -> Result<(), NodeFailure>,
    ) -> Result<(), NodeFailure> {
        self.up()?;
        let (tell, told) = unbounded();
        serve(&mut FakeSubscriber {
            fake: self,
            tell,
            told,
        })
    }
}

fn misconf() -> Reply {
    Reply::Failed(NodeFailure::ServerError("MISCONF".into()))
}

struct FakeSession {
    fake: Arc<FakeNode>,
    /// The number of this connection of the node, from 1.
    number: usize,
    /// The ids of the directly sent requests.
    sent: VecDeque<u64>,
    /// The id of the delayed request, with the signal of the test.
    late: Option<(u64, Receiver<()>)>,
}

impl FakeSession {
    /// Serves a request with the current fault. Returns `None` for a delayed request if `waits` is
    /// not set.
    fn serve(
        &mut self,
        request: &Request,
        number: Option<u64>,
        waits: bool,
    ) -> Result<Option<Reply>, NodeFailure> {
        self.is_open()?;
        if let Some((_, go)) = self.late.take_if(|(late, _)| Some(*late) == number) {
            return self.serve_late(request, number, waits, go);
        }
        let broken = || NodeFailure::Unreachable("broken".into());
        let fault = self.fake.fault.lock().clone();
        Ok(Some(match fault {
            Fault::Down => return Err(broken()),
            Fault::DeniesAccess => Reply::Failed(denied()),
            Fault::DeniesOp(op) if op == request.op => Reply::Failed(denied()),
            Fault::Delays(op, arrived, go) if op == request.op => {
                let _ = arrived.send(());
                return self.serve_late(request, number, waits, go);
            }
            Fault::FailsAfterApplying(op) if op == request.op => {
                self.fake.serve(request);
                let words = "OOM command not allowed script: f2, on @user_script:9.";
                Reply::Failed(NodeFailure::ServerError(words.into()))
            }
            Fault::Fails(op) if op == request.op => misconf(),
            Fault::Loads(op) if op == request.op => {
                Reply::Failed(NodeFailure::ServerError("LOADING Redis is loading".into()))
            }
            Fault::Breaks(op) if op == request.op => return Err(broken()),
            Fault::ErrsOn(name)
                if request.op == Op::Acquire && request.lease.key().name() == name =>
            {
                Reply::Failed(NodeFailure::ServerError("OOM".into()))
            }
            Fault::GoesDownAfter(op) if op == request.op => {
                self.fake.serve(request);
                self.fake.set_fault(Fault::Down);
                return Err(broken());
            }
            Fault::DisconnectsAfter(op) if op == request.op => {
                self.fake.serve(request);
                self.fake.set_fault(Fault::None);
                return Err(broken());
            }
            Fault::RestartsAt(op) if op == request.op => {
                self.fake.wipe();
                let run_id = format!("{} again", self.fake.run_id.lock());
                self.fake.set_run_id(&run_id);
                self.fake.set_fault(Fault::None);
                return Err(broken());
            }
            Fault::RefusesLate if request.op == Op::Acquire => {
                self.fake.served.lock().push((Op::Acquire, String::new()));
                Reply::Held(Blocker::Owner, Some(Duration::ZERO), None)
            }
            Fault::Refuses if request.op == Op::Acquire => {
                self.fake.served.lock().push((Op::Acquire, String::new()));
                Reply::Held(Blocker::Owner, Some(Duration::from_secs(60)), None)
            }
            Fault::Panics(op) if op == request.op => {
                self.fake.set_fault(Fault::None);
                panic!("panic of a test")
            }
            _ => self.fake.serve(request),
        }))
    }
}

impl FakeSession {
    fn is_open(&self) -> Result<(), NodeFailure> {
        let closes = matches!(*self.fake.fault.lock(), Fault::Closes);
        match !closes && self.number > self.fake.closed.load(Ordering::Acquire) {
            true => Ok(()),
            false => Err(NodeFailure::Unreachable("closed".into())),
        }
    }

    /// Serves a delayed request after the signal of the test, or refuses it if the fault is
    /// [`Fault::Fails`] by then.
    fn serve_late(
        &mut self,
        request: &Request,
        number: Option<u64>,
        waits: bool,
        go: Receiver<()>,
    ) -> Result<Option<Reply>, NodeFailure> {
        // A closed channel means that the test has ended.
        if waits {
            let _ = go.recv();
        } else if go.try_recv() == Err(TryRecvError::Empty) {
            self.late = number.map(|number| (number, go));
            return Ok(None);
        }
        if matches!(*self.fake.fault.lock(), Fault::Fails(op) if op == request.op) {
            return Ok(Some(misconf()));
        }
        Ok(Some(self.fake.serve(request)))
    }
}

impl Session for FakeSession {
    fn send_batch(
        &mut self,
        requests: &[Arc<Request>],
        answer: &mut dyn FnMut(usize, Reply),
    ) -> Result<(), NodeFailure> {
        for (index, request) in requests.iter().enumerate() {
            if let Some(served) = self.serve(request, None, true)? {
                answer(index, served);
            }
        }
        Ok(())
    }

    fn check_idle(&mut self) -> Result<(), NodeFailure> {
        assert!(self.sent.is_empty(), "the session is not idle");
        self.is_open()
    }

    fn ping(&mut self) -> Result<(), NodeFailure> {
        self.is_open()?;
        assert!(
            self.sent.is_empty(),
            "the reply would be taken for that of a request"
        );
        let fault = self.fake.fault.lock().clone();
        if let Fault::LatePing(arrived, go) = fault {
            let _ = arrived.send(());
            let _ = go.recv();
        }
        self.fake.up()
    }

    fn direct_io(&mut self) -> Option<&mut dyn DirectIo> {
        Some(self)
    }
}

impl DirectIo for FakeSession {
    fn can_append(&self) -> bool {
        true
    }

    fn send(&mut self, sent: &InFlight, _: &[u8]) -> Result<(), NodeFailure> {
        self.sent.push_back(sent.id);
        Ok(())
    }

    fn next_reply(
        &mut self,
        flights: &VecDeque<InFlight>,
        end: Option<Instant>,
    ) -> Result<Option<(u64, Reply)>, NodeFailure> {
        let Some(number) = self.sent.front().copied() else {
            return Ok(None);
        };
        let flight = flights.iter().find(|flight| flight.id == number);
        let request = &flight.expect("the request is in flight").request;
        let answer = self.serve(request, Some(number), end.is_some())?;
        Ok(answer.map(|answer| {
            self.sent.pop_front();
            (number, answer)
        }))
    }
}

fn denied() -> NodeFailure {
    NodeFailure::AccessDenied("NOAUTH".into())
}

fn key(name: &str, family: LockKind) -> Key {
    Key::parse("redguard:", name, family).expect("a good name")
}

/// Returns settings for fake nodes: timeouts so long that none decides a test by chance, and a
/// breaker that stays closed unless the test configures it.
pub(crate) fn settings(adjust: impl FnOnce(Config) -> Config) -> Settings {
    let config = Config::new(["unused"])
        .node_timeout(Duration::from_secs(5))
        .connect_timeout(Duration::from_secs(5))
        .circuit_breaker(u32::MAX, Duration::from_secs(60));
    let settings = adjust(config).validate().expect("settings of a test");
    Settings {
        max_split: Duration::from_secs(5),
        ..settings
    }
}

/// Returns a locker that is connected to all these fakes that are up.
pub(crate) fn connected_locker(
    fakes: &[Arc<FakeNode>],
    adjust: impl FnOnce(Config) -> Config,
) -> Result<RedisLocker, Error> {
    let settings = settings(adjust);
    let (strict, pool_size) = (settings.reject_evicting_servers, settings.pool_size);
    let configs: Vec<NodeConfig> = fakes
        .iter()
        .map(|fake| fake.node_config(&settings))
        .collect();
    let nodes = Nodes::start(settings, &configs)?;
    // `start` waits for a quorum; a test expects all nodes without a fault.
    let down = |fake: &&Arc<FakeNode>| {
        let fault = fake.server_info.lock().rejection(strict);
        let never_connects = |fault: &Fault| {
            matches!(
                fault,
                Fault::Down | Fault::DeniesAccess | Fault::LateConnect(..)
            )
        };
        fault.is_some() || never_connects(&fake.fault.lock())
    };
    let expected = fakes.len() - fakes.iter().filter(down).count();
    eventually("all connections are up", || {
        nodes.engine().nodes_up() == expected * pool_size
    });
    Ok(RedisLocker::new(&nodes))
}

type AtLine = Box<dyn FnMut(&str)>;

thread_local! {
    /// Called with each line that the library logs in this thread.
    static AT_LINE: RefCell<Option<AtLine>> = const { RefCell::new(None) };
}

/// Calls `act` with each line that this thread logs.
///
/// The log call is the seam: it lets a test stop a caller between the verdict of a round and the
/// guard. Its tests name words of log lines, so a changed log text makes them fail.
pub(crate) fn on_log_line(act: impl FnMut(&str) + 'static) {
    struct Lines;

    impl log::Log for Lines {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }

        fn log(&self, record: &log::Record<'_>) {
            AT_LINE.with_borrow_mut(|act| {
                if let Some(act) = act {
                    act(&record.args().to_string());
                }
            });
        }

        fn flush(&self) {}
    }

    // Fails if another test has set the same logger.
    let _ = log::set_logger(&Lines);
    log::set_max_level(log::LevelFilter::Debug);
    AT_LINE.set(Some(Box::new(act)));
}

/// Returns the number of attempts at these nodes. A node may have missed some: a request that a
/// quorum has refused is not sent to the others.
pub(crate) fn attempts(fakes: &[Arc<FakeNode>]) -> usize {
    let tokens: HashSet<String> = fakes
        .iter()
        .flat_map(|fake| fake.acquire_tokens())
        .collect();
    tokens.len()
}

/// Returns whether each node served a release of a token without acquire: that of a gate entry.
pub(crate) fn gate_entries_were_released(fakes: &[Arc<FakeNode>]) -> bool {
    let taken: HashSet<String> = fakes
        .iter()
        .flat_map(|fake| fake.acquire_tokens())
        .collect();
    fakes.iter().all(|fake| {
        let served = fake.served.lock();
        let mut releases = served.iter().filter(|(op, _)| *op == Op::Release);
        releases.any(|(_, token)| !taken.contains(token))
    })
}

/// Blocks until `holds` returns true.
///
/// # Panics
/// With `what` if that takes 20 s.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = clock::now() + Duration::from_secs(20);
    while !holds() {
        assert!(clock::now() < end, "never happened: {what}");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// Asserts that less time has passed since `began` than any timeout of the test, so that only a
/// message or a wake-up can be the cause.
pub(crate) fn assert_no_timeout_elapsed(began: Instant) {
    let took = clock::now().saturating_duration_since(began);
    assert!(took < Duration::from_secs(60), "{took:?}");
}
