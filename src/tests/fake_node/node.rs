//! Fake nodes for tests, each named for its sin, at the one seam where a server would be.

use std::cell::RefCell;
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, unbounded};
use parking_lot::Mutex;

use crate::api::locker::RedisLocker;
use crate::api::nodes::Nodes;
use crate::config::builder::Config;
use crate::config::settings::Settings;
use crate::error::{Error, NodeFailure};
use crate::protocol::key::{Channel, Key};
use crate::protocol::kind::{LeaseKind, LockKind};
use crate::protocol::reply::{Blocker, Reply};
use crate::protocol::request::{Op, Request};
use crate::protocol::server_info::ServerInfo;
use crate::tests::fake_node::store::{NodeStore, StoredLock};
use crate::time::clock;
use crate::transport::messages::NodeConfig;
use crate::transport::node::traits::{
    Connector, DirectIo, Event, Handshake, InFlight, Session, Subscriber,
};

/// What is wrong with a node.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// It cannot be connected to.
    Down,
    /// It denies access, at connect and to each request.
    DeniesAccess,
    /// It lets nobody subscribe.
    DeniesSubscribers,
    /// It denies requests of this verb alone.
    DeniesOp(Op),
    /// It takes requests of this verb and tells the test so, and serves them only when the test says: as one that
    /// grants, extends or releases late does.
    Delays(Op, Sender<()>, Receiver<()>),
    /// The same for a ping.
    LatePing(Sender<()>, Receiver<()>),
    /// The same for a connect.
    LateConnect(Sender<()>, Receiver<()>),
    /// It serves requests of this verb, but answers with an error.
    FailsAfterApplying(Op),
    /// It answers requests of this verb with an error, and does not serve them.
    Fails(Op),
    /// It answers requests of this verb that it is loading its data.
    Loads(Op),
    /// It serves requests of this verb, but goes down before the answer.
    GoesDownAfter(Op),
    /// It serves requests of this verb, but the connection breaks before the answer.
    DisconnectsAfter(Op),
    /// It restarts without its data when a request of this verb comes.
    RestartsAt(Op),
    /// The connection breaks at each request of this verb, unserved; a new one can be had at once.
    Breaks(Op),
    /// It can be connected to, and closes each connection before the first request.
    Closes,
    /// It answers takes of the exclusive lock of this name with an error.
    ErrsOn(&'static str),
    /// It answers takes as if somebody else held the lock.
    Refuses,
    /// It answers takes as if somebody else had held the lock until just now.
    RefusesLate,
    /// Requests of this verb make its lane panic.
    Panics(Op),
}

/// A node in memory that keeps keys as the scripts do, and a log of what it served.
#[derive(Debug)]
pub(crate) struct FakeNode {
    sin: Mutex<Fault>,
    memory: Mutex<NodeStore>,
    served: Mutex<Vec<(Op, String)>>,
    connects: Mutex<Vec<Option<Handshake>>>,
    /// How many of its connections it has closed.
    closed: AtomicUsize,
    no_kill: Mutex<Option<NodeFailure>>,
    refused: AtomicUsize,
    published: AtomicUsize,
    run_id: Mutex<String>,
    about: Mutex<ServerInfo>,
    ears: Mutex<Vec<(Channel, Sender<Event>)>>,
}

/// The test's end of a [`Fault::Delays`].
pub(crate) struct Rendezvous {
    arrived: Receiver<()>,
    go: Sender<()>,
}

impl Rendezvous {
    /// Waits until a request has come to the node.
    pub(crate) fn arrived(&self) {
        self.arrived
            .recv_timeout(Duration::from_secs(20))
            .expect("no request came");
    }

    /// Whether a request has come to the node that was not waited for yet.
    pub(crate) fn has_arrived(&self) -> bool {
        self.arrived.try_recv().is_ok()
    }

    /// Lets the node serve it.
    pub(crate) fn go(&self) {
        self.go.send(()).expect("the node is gone");
    }
}

impl FakeNode {
    pub(crate) fn new(name: &str) -> Arc<FakeNode> {
        Arc::new(FakeNode {
            sin: Mutex::new(Fault::None),
            memory: Mutex::new(NodeStore::default()),
            served: Mutex::new(Vec::new()),
            connects: Mutex::new(Vec::new()),
            closed: AtomicUsize::new(0),
            no_kill: Mutex::new(None),
            refused: AtomicUsize::new(0),
            published: AtomicUsize::new(0),
            run_id: Mutex::new(name.to_owned()),
            about: Mutex::new(ServerInfo::default()),
            ears: Mutex::new(Vec::new()),
        })
    }

    /// It as the crew knows it.
    pub(crate) fn node_config(self: &Arc<FakeNode>, settings: &Settings) -> NodeConfig {
        NodeConfig {
            name: self.run_id.lock().clone(),
            connector: Arc::new(Arc::clone(self)),
            node_timeout: settings.node_timeout,
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

    pub(crate) fn set_fault(&self, sin: Fault) {
        *self.sin.lock() = sin;
    }

    /// Another server is behind its address from now on.
    pub(crate) fn set_run_id(&self, name: &str) {
        name.clone_into(&mut self.run_id.lock());
    }

    /// Closes all its connections.
    pub(crate) fn closes_connections(&self) {
        let connects = self.connects.lock().len();
        self.closed.store(connects, Ordering::Release);
    }

    /// Refuses CLIENT KILL from the next connect on, or does not.
    pub(crate) fn refuses_to_kill(&self, cause: Option<NodeFailure>) {
        *self.no_kill.lock() = cause;
    }

    /// What it says of itself from the next connect on.
    pub(crate) fn says(&self, about: ServerInfo) {
        *self.about.lock() = about;
    }

    pub(crate) fn is_late(&self, verb: Op) -> Rendezvous {
        let (tell, arrived) = unbounded();
        let (go, wait) = unbounded();
        self.set_fault(Fault::Delays(verb, tell, wait));
        Rendezvous { arrived, go }
    }

    pub(crate) fn is_late_with_a_ping(&self) -> Rendezvous {
        let (tell, arrived) = unbounded();
        let (go, wait) = unbounded();
        self.set_fault(Fault::LatePing(tell, wait));
        Rendezvous { arrived, go }
    }

    pub(crate) fn is_late_with_a_connect(&self) -> Rendezvous {
        let (tell, arrived) = unbounded();
        let (go, wait) = unbounded();
        self.set_fault(Fault::LateConnect(tell, wait));
        Rendezvous { arrived, go }
    }

    /// The token under an exclusive lock's key, if it has not expired.
    pub(crate) fn token(&self, name: &str) -> Option<String> {
        let (token, _) = self.slot(name, LockKind::Exclusive).owner?;
        Some(token)
    }

    /// What it keeps for a lock.
    pub(crate) fn slot(&self, name: &str, family: LockKind) -> StoredLock {
        let mut memory = self.memory.lock();
        memory.slot(&key(name, family), clock::now()).clone()
    }

    /// Changes what it keeps for a lock behind everybody's back.
    pub(crate) fn meddle(&self, name: &str, family: LockKind, act: impl FnOnce(&mut StoredLock)) {
        act(self.memory.lock().slot(&key(name, family), clock::now()));
    }

    /// Puts a stranger's value under an exclusive lock's key.
    pub(crate) fn seize(&self, name: &str, ttl: Duration) {
        let value = ("stranger".to_owned(), clock::now() + ttl);
        self.meddle(name, LockKind::Exclusive, |slot| slot.owner = Some(value));
    }

    /// Marks and turns end no sooner than after `least` from now on: then no clock decides who gets in.
    pub(crate) fn signs_last(&self, least: Duration) {
        self.memory.lock().least_sign = least;
    }

    pub(crate) fn wipe(&self) {
        self.memory.lock().clear();
    }

    /// How often it served a verb.
    pub(crate) fn count(&self, verb: Op) -> usize {
        let served = self.served.lock();
        served.iter().filter(|(v, _)| *v == verb).count()
    }

    /// What it served, in order.
    pub(crate) fn verbs(&self) -> Vec<Op> {
        self.served.lock().iter().map(|(verb, _)| *verb).collect()
    }

    /// How often it served an extension of a token.
    pub(crate) fn extensions(&self, token: &str) -> usize {
        let served = self.served.lock();
        let of_it = |(verb, of): &&(Op, String)| *verb == Op::Extend && of == token;
        served.iter().filter(of_it).count()
    }

    /// The tokens of the takes that it served, in order.
    pub(crate) fn takes(&self) -> Vec<String> {
        let served = self.served.lock();
        let takes = served.iter().filter(|(verb, _)| *verb == Op::Acquire);
        takes.map(|(_, token)| token.clone()).collect()
    }

    /// For each connect that worked, the session that was to be killed.
    pub(crate) fn connects(&self) -> Vec<Option<Handshake>> {
        self.connects.lock().clone()
    }

    /// How many releases it published, whether or not somebody heard of it.
    pub(crate) fn published(&self) -> usize {
        self.published.load(Ordering::Relaxed)
    }

    /// How many connects it refused.
    pub(crate) fn refused(&self) -> usize {
        self.refused.load(Ordering::Relaxed)
    }

    fn serve(&self, request: &Request) -> Reply {
        let token = request.lease.token().text().to_owned();
        self.served.lock().push((request.verb, token));
        let answer = self.memory.lock().serve(request, clock::now());
        let publishes = request.publish || request.verb == Op::WakeListener;
        if publishes && answer == Reply::Done && !self.leaves_readers(request) {
            let keys = request.lease.keys().as_slice().iter();
            let heard = keys.map(|key| self.publish(&key.channel())).max();
            let heard = heard.unwrap_or_default();
            if request.publish {
                self.published.fetch_add(1, Ordering::Relaxed);
            }
            if request.publish && heard > 0 {
                return Reply::DoneNotified(heard);
            }
        }
        answer
    }

    /// Whether it is the release of a reader that others stay behind: only the last one's is published.
    fn leaves_readers(&self, request: &Request) -> bool {
        let mut memory = self.memory.lock();
        let slot = memory.slot(request.lease.key(), clock::now());
        request.verb == Op::Release
            && request.lease.claim() == LeaseKind::Read
            && !slot.readers.is_empty()
    }

    pub(crate) fn publish(&self, channel: &Channel) -> u64 {
        let ears = self.ears.lock();
        let subscribed = ears.iter().filter(|(name, _)| name == channel);
        let message = || Event::Message(Arc::clone(channel));
        let heard = subscribed.filter(|(_, ear)| ear.send(message()).is_ok());
        heard.count() as u64
    }

    /// How many subscriptions there are to a lock's channel.
    pub(crate) fn subscribed(&self, name: &str) -> usize {
        let channel = key(name, LockKind::Exclusive).channel();
        let ears = self.ears.lock();
        ears.iter().filter(|(name, _)| *name == channel).count()
    }
}

struct FakeSubscriber<'a> {
    fake: &'a FakeNode,
    tell: Sender<Event>,
    told: Receiver<Event>,
}

impl Subscriber for FakeSubscriber<'_> {
    fn subscribe(&mut self, command: u64, channels: &[Channel]) -> Result<(), NodeFailure> {
        self.fake.up()?;
        if matches!(*self.fake.sin.lock(), Fault::DeniesSubscribers) {
            _ = self.tell.send(Event::Refused(command, denied()));
            return Ok(());
        }
        let mut ears = self.fake.ears.lock();
        for channel in channels {
            ears.push((Arc::clone(channel), self.tell.clone()));
            let confirmed = Event::Subscribed(command, Arc::clone(channel));
            _ = self.tell.send(confirmed);
        }
        Ok(())
    }

    fn unsubscribe(&mut self, channels: &[Channel]) -> Result<(), NodeFailure> {
        let tell = &self.tell;
        let mut ears = self.fake.ears.lock();
        ears.retain(|(name, ear)| !(channels.contains(name) && ear.same_channel(tell)));
        self.fake.up()
    }

    fn ping(&mut self) -> Result<(), NodeFailure> {
        self.fake.up()
    }

    fn next_message(&mut self, wait: Duration) -> Result<Option<Event>, NodeFailure> {
        let heard = self.told.recv_timeout(wait).ok();
        self.fake.up().map(|()| heard)
    }
}

impl Drop for FakeSubscriber<'_> {
    fn drop(&mut self) {
        let tell = &self.tell;
        let mut ears = self.fake.ears.lock();
        ears.retain(|(_, ear)| !ear.same_channel(tell));
    }
}

impl FakeNode {
    fn up(&self) -> Result<(), NodeFailure> {
        match *self.sin.lock() {
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
        if matches!(*self.sin.lock(), Fault::Down) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Err(NodeFailure::Unreachable("down".into()));
        }
        if matches!(*self.sin.lock(), Fault::DeniesAccess) {
            return Err(denied());
        }
        let sin = self.sin.lock().clone();
        if let Fault::LateConnect(arrived, go) = sin {
            let _ = arrived.send(());
            let _ = go.recv();
        }
        let mut connects = self.connects.lock();
        connects.push(former.cloned());
        let greeting = Handshake {
            run_id: self.run_id.lock().clone(),
            others: Vec::new(),
            client_id: connects.len() as i64,
            server_info: self.about.lock().clone(),
            no_kill: self.no_kill.lock().clone(),
        };
        let session = FakeSession {
            fake: Arc::clone(self),
            number: connects.len(),
            sent: VecDeque::new(),
            late: None,
        };
        Ok((Box::new(session), greeting))
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

struct FakeSession {
    fake: Arc<FakeNode>,
    /// Which of the fake's connections it is, from 1.
    number: usize,
    /// The numbers of the requests that were sent one by one.
    sent: VecDeque<u64>,
    /// The one of them that the test knows of, which is late.
    late: Option<(u64, Receiver<()>)>,
}

impl FakeSession {
    /// Serves a request, or commits a sin; a late one is waited for or not. `None` where it is still late.
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
        let sin = self.fake.sin.lock().clone();
        Ok(Some(match sin {
            Fault::Down => return Err(broken()),
            Fault::DeniesAccess => Reply::Failed(denied()),
            Fault::DeniesOp(verb) if verb == request.verb => Reply::Failed(denied()),
            Fault::Delays(verb, arrived, go) if verb == request.verb => {
                let _ = arrived.send(());
                return self.serve_late(request, number, waits, go);
            }
            Fault::FailsAfterApplying(verb) if verb == request.verb => {
                self.fake.serve(request);
                let words = "OOM command not allowed script: f2, on @user_script:9.";
                Reply::Failed(NodeFailure::ServerError(words.into()))
            }
            Fault::Fails(verb) if verb == request.verb => {
                Reply::Failed(NodeFailure::ServerError("MISCONF".into()))
            }
            Fault::Loads(verb) if verb == request.verb => {
                Reply::Failed(NodeFailure::ServerError("LOADING Redis is loading".into()))
            }
            Fault::Breaks(verb) if verb == request.verb => return Err(broken()),
            Fault::ErrsOn(name)
                if request.verb == Op::Acquire && request.lease.key().name() == name =>
            {
                Reply::Failed(NodeFailure::ServerError("OOM".into()))
            }
            Fault::GoesDownAfter(verb) if verb == request.verb => {
                self.fake.serve(request);
                self.fake.set_fault(Fault::Down);
                return Err(broken());
            }
            Fault::DisconnectsAfter(verb) if verb == request.verb => {
                self.fake.serve(request);
                self.fake.set_fault(Fault::None);
                return Err(broken());
            }
            Fault::RestartsAt(verb) if verb == request.verb => {
                self.fake.wipe();
                let run_id = format!("{} again", self.fake.run_id.lock());
                self.fake.set_run_id(&run_id);
                self.fake.set_fault(Fault::None);
                return Err(broken());
            }
            Fault::RefusesLate if request.verb == Op::Acquire => {
                self.fake.served.lock().push((Op::Acquire, String::new()));
                Reply::Held(Blocker::Owner, Some(Duration::ZERO))
            }
            Fault::Refuses if request.verb == Op::Acquire => {
                self.fake.served.lock().push((Op::Acquire, String::new()));
                Reply::Held(Blocker::Owner, Some(Duration::from_secs(60)))
            }
            Fault::Panics(verb) if verb == request.verb => {
                self.fake.set_fault(Fault::None);
                panic!("as the test wants it")
            }
            _ => self.fake.serve(request),
        }))
    }
}

impl FakeSession {
    fn is_open(&self) -> Result<(), NodeFailure> {
        let closes = matches!(*self.fake.sin.lock(), Fault::Closes);
        match !closes && self.number > self.fake.closed.load(Ordering::Acquire) {
            true => Ok(()),
            false => Err(NodeFailure::Unreachable("closed".into())),
        }
    }

    /// The test knows of it, and says when.
    fn serve_late(
        &mut self,
        request: &Request,
        number: Option<u64>,
        waits: bool,
        go: Receiver<()>,
    ) -> Result<Option<Reply>, NodeFailure> {
        // The test has ended when its end is gone.
        if waits {
            let _ = go.recv();
        } else if go.try_recv() == Err(TryRecvError::Empty) {
            self.late = number.map(|number| (number, go));
            return Ok(None);
        }
        Ok(Some(self.fake.serve(request)))
    }
}

impl Session for FakeSession {
    fn send_batch(
        &mut self,
        requests: &[Request],
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
        assert!(self.sent.is_empty(), "it is not idle");
        self.is_open()
    }

    fn ping(&mut self) -> Result<(), NodeFailure> {
        self.is_open()?;
        assert!(
            self.sent.is_empty(),
            "its answer would be taken for another"
        );
        let sin = self.fake.sin.lock().clone();
        if let Fault::LatePing(arrived, go) = sin {
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

    fn send(&mut self, number: u64, _: &[u8]) -> Result<(), NodeFailure> {
        self.sent.push_back(number);
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
        let flight = flights.iter().find(|flight| flight.number == number);
        let request = &flight.expect("it is on the wire").request;
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

/// Settings for fakes: nodes that do not matter, time-outs long enough not to decide anything by chance, and a breaker that
/// never opens unless the test wants it.
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

/// A locker on these fakes.
pub(crate) fn connected_locker(
    fakes: &[Arc<FakeNode>],
    adjust: impl FnOnce(Config) -> Config,
) -> Result<RedisLocker, Error> {
    let settings = settings(adjust);
    let strict = settings.reject_evicting_servers;
    let posts: Vec<NodeConfig> = fakes
        .iter()
        .map(|fake| fake.node_config(&settings))
        .collect();
    let nodes = Nodes::start(settings, &posts)?;
    // A quorum is enough to join, but a test speaks of all nodes that it did not put down.
    let down = |fake: &&Arc<FakeNode>| {
        let fault = fake.about.lock().rejection(strict);
        fault.is_some() || matches!(*fake.sin.lock(), Fault::Down | Fault::DeniesAccess)
    };
    let expected = fakes.len() - fakes.iter().filter(down).count();
    eventually("all lanes are up", || nodes.engine().nodes_up() == expected);
    Ok(RedisLocker::new(&nodes))
}

type AtLine = Box<dyn FnMut(&str)>;

thread_local! {
    /// What the test of this thread wants to happen at lines that the library logs from it.
    static AT_LINE: RefCell<Option<AtLine>> = const { RefCell::new(None) };
}

/// Calls `act` with every line that this thread logs: a foot in the door of code that has no other seam.
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

    // Fails where another test was first, with the same.
    let _ = log::set_logger(&Lines);
    log::set_max_level(log::LevelFilter::Debug);
    AT_LINE.set(Some(Box::new(act)));
}

/// How many attempts were made at these nodes. None of them need have seen all: what a quorum has refused is not sent to others.
pub(crate) fn attempts(fakes: &[Arc<FakeNode>]) -> usize {
    let tokens: HashSet<String> = fakes.iter().flat_map(|fake| fake.takes()).collect();
    tokens.len()
}

/// Whether each of them served a release of what no take had asked any of them for: a place at the gate was given back.
pub(crate) fn places_were_left(fakes: &[Arc<FakeNode>]) -> bool {
    let taken: HashSet<String> = fakes.iter().flat_map(|fake| fake.takes()).collect();
    fakes.iter().all(|fake| {
        let served = fake.served.lock();
        let mut releases = served.iter().filter(|(verb, _)| *verb == Op::Release);
        releases.any(|(_, token)| !taken.contains(token))
    })
}

/// Waits for something that other threads bring about; fails loudly when it does not come.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = clock::now() + Duration::from_secs(20);
    while !holds() {
        assert!(clock::now() < end, "never happened: {what}");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// Holds where nothing but a message, or a wake-up, can have brought about what began at `began`: all clocks are slower.
pub(crate) fn assert_no_timeout_elapsed(began: Instant) {
    let took = clock::now().saturating_duration_since(began);
    assert!(took < Duration::from_secs(60), "{took:?}");
}
