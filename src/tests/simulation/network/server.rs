//! A simulated server: the store that `store_conformance` compares with real servers, behind the
//! states in which a server can be.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::node_failure::NodeFailure;
use crate::protocol::key::{Channel, Key};
use crate::protocol::reply::{Blocker, Reply};
use crate::protocol::request::{Op, Request};
use crate::protocol::scripts::{PRELOADED, Script};
use crate::tests::fake_node::messages::Messages;
use crate::tests::fake_node::store::NodeStore;
use crate::tests::simulation::network::packet::{Command, ConnectionId};

/// The token of another client, which knows nothing of this crate.
pub(crate) const STRANGERS_TOKEN: &str = "stranger";

/// The clock of a server, as a function of true time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServerClock {
    /// The beginning of the history.
    pub(crate) start: Instant,
    /// How far the clock is ahead, or behind if negative, in µs.
    pub(crate) offset: i64,
    /// The excess of its rate over that of true time, in millionths.
    pub(crate) rate: i64,
}

impl ServerClock {
    pub(crate) fn at(&self, now: Instant) -> Instant {
        let elapsed = now.saturating_duration_since(self.start).as_micros() as i64;
        let shown = elapsed + elapsed * self.rate / 1_000_000 + self.offset;
        match shown >= 0 {
            true => self.start + Duration::from_micros(shown.unsigned_abs()),
            false => self.start - Duration::from_micros(shown.unsigned_abs()),
        }
    }
}

/// Whether a server runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Power {
    Up,
    /// It accepts connections and executes nothing.
    Hung,
    /// Its process has ended: connects are refused.
    Down,
    /// Its machine has ended: packets to it are lost.
    Gone,
}

/// A state in which a server refuses some requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Memory is full: nothing new is stored.
    OutOfMemory,
    /// A right is missing, for one operation.
    Denied(Op),
    /// CLIENT KILL is denied.
    KillDenied,
    /// SUBSCRIBE is denied.
    SubscribeDenied,
    /// Connects are denied.
    LoginDenied,
    /// The data is being loaded.
    Loading,
    /// The server is a replica.
    ReadOnly,
    /// The server cannot write its data to the disk.
    CannotPersist,
    /// A value of another type is stored under the lock with this number.
    WrongType(usize),
    /// Requests for the lock with this number end with an error, and no others.
    Trouble(usize, Trouble),
}

/// An error that concerns the requests of one lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The user has no right to the name.
    Denied,
    /// Its slot moves from one server of a cluster to another.
    TryAgain,
    /// Nothing more can be stored for it.
    OutOfMemory,
}

impl Trouble {
    /// Returns the error of a request.
    fn error(self, op: Op) -> Option<NodeFailure> {
        let text = match self {
            Trouble::Denied => {
                let text = "NOPERM No permissions to access a key".to_owned();
                return Some(NodeFailure::AccessDenied(text));
            }
            Trouble::TryAgain => "TRYAGAIN Multiple keys request during rehashing of slot",
            Trouble::OutOfMemory if matches!(op, Op::Acquire | Op::Restore) => {
                "OOM command not allowed when used memory > 'maxmemory'."
            }
            Trouble::OutOfMemory => return None,
        };
        Some(NodeFailure::ServerError(text.to_owned()))
    }
}

/// A server in memory.
pub(crate) struct Server {
    pub(crate) number: usize,
    pub(crate) store: NodeStore,
    pub(crate) clock: ServerClock,
    pub(super) power: Power,
    /// Counts the starts.
    pub(super) run: u32,
    pub(super) started: Instant,
    /// The loaded scripts, one bit each.
    pub(super) scripts: u32,
    pub(super) clients: i64,
    /// Commands that arrived while the server hung.
    pub(super) backlog: VecDeque<(ConnectionId, Command)>,
    pub(super) subscriptions: Vec<(ConnectionId, Channel)>,
    pub(super) refusals: Vec<Refusal>,
    /// Messages are not delivered.
    pub(super) is_mute: bool,
    /// A process may have found the server unreachable, or loading its data.
    pub(crate) had_outage: bool,
}

impl Server {
    pub(super) fn new(number: usize, clock: ServerClock) -> Server {
        Server {
            number,
            store: NodeStore::default(),
            clock,
            power: Power::Up,
            run: 0,
            // It has run for long: it is in no quarantine.
            started: clock.start - Duration::from_secs(900_000),
            scripts: 0,
            clients: 0,
            backlog: VecDeque::new(),
            subscriptions: Vec::new(),
            refusals: Vec::new(),
            is_mute: false,
            had_outage: false,
        }
    }

    /// Returns whether the server executes nothing.
    pub(crate) fn is_away(&self) -> bool {
        self.power != Power::Up
    }

    pub(super) fn run_id(&self) -> String {
        format!("{:036x}{:04x}", self.number + 1, self.run)
    }

    /// Returns the reply to INFO. `day` is the wall clock of a process with an exact clock.
    pub(super) fn info(&self, now: Instant, day: Duration) -> String {
        let (shown, start) = (self.clock.at(now), self.clock.start);
        let wall = match shown.checked_duration_since(now) {
            Some(ahead) => day + ahead,
            None => day.saturating_sub(now - shown),
        };
        let role = match self.refuses(Refusal::ReadOnly) {
            true => "slave",
            false => "master",
        };
        debug_assert!(now >= start);
        format!(
            "redis_mode:standalone\nrun_id:{}\nserver_time_usec:{}\nuptime_in_seconds:{}\n\
             role:{role}\nmaxmemory:0\nmaxmemory_policy:noeviction\n",
            self.run_id(),
            wall.as_micros(),
            now.saturating_duration_since(self.started).as_secs(),
        )
    }

    pub(super) fn refuses(&self, refusal: Refusal) -> bool {
        self.refusals.contains(&refusal)
    }

    pub(super) fn has_script(&self, script: Script) -> bool {
        self.scripts & (1 << script as u32) != 0
    }

    pub(super) fn load(&mut self, script: Script) {
        self.scripts |= 1 << script as u32;
    }

    pub(super) fn preload(&mut self) {
        PRELOADED.iter().for_each(|script| self.load(*script));
    }

    /// Ends the process of the server.
    pub(super) fn crash(&mut self, power: Power, loses_data: bool) {
        self.power = power;
        self.backlog.clear();
        self.subscriptions.clear();
        if loses_data {
            self.store.clear();
        }
    }

    pub(super) fn restart(&mut self, now: Instant) {
        self.power = Power::Up;
        self.run += 1;
        self.started = now;
        (self.scripts, self.clients) = (0, 0);
    }

    /// Returns the error with which the server replies to a request, before it runs any of it.
    pub(super) fn error(&self, request: &Request) -> Option<NodeFailure> {
        let is_publish = matches!(request.op, Op::WakeListener | Op::Notify);
        let is_script = !request.is_plain_set() && !is_publish;
        let writes = !is_publish && request.op != Op::Inspect;
        let error = |text: &str| Some(NodeFailure::ServerError(text.to_owned()));
        self.refusals.iter().find_map(|refusal| match *refusal {
            Refusal::OutOfMemory
                if matches!(request.op, Op::Acquire | Op::Restore | Op::TakePlace) =>
            {
                match is_script {
                    true => error(
                        "OOM command not allowed when used memory > 'maxmemory'. \
                         script: f_0, on @user_script:9.",
                    ),
                    false => error("OOM command not allowed when used memory > 'maxmemory'."),
                }
            }
            Refusal::Denied(op) if op == request.op => Some(NodeFailure::AccessDenied(
                "NOPERM User app has no permissions to run the command".to_owned(),
            )),
            Refusal::Loading => error("LOADING Redis is loading the dataset in memory"),
            Refusal::ReadOnly if writes => match is_script {
                true => error(
                    "READONLY You can't write against a read only replica. \
                     script: f_0, on @user_script:9.",
                ),
                false => error("READONLY You can't write against a read only replica."),
            },
            Refusal::CannotPersist if writes => {
                error("MISCONF Redis is configured to save RDB snapshots, but cannot persist")
            }
            Refusal::WrongType(lock) if is_lock(request, lock) && writes => {
                Some(NodeFailure::WrongType)
            }
            Refusal::Trouble(lock, trouble) if is_lock(request, lock) => trouble.error(request.op),
            _ => None,
        })
    }

    /// Lets another client hold a lock.
    pub(crate) fn give_to_stranger(&mut self, key: &Key, lasts: Duration, now: Instant) {
        let shown = self.clock.at(now);
        let lock = self.store.stored_lock(key, shown);
        lock.owner = Some((STRANGERS_TOKEN.to_owned(), shown + lasts));
    }

    /// Returns whether the other client holds a lock.
    pub(crate) fn is_strangers(&mut self, key: &Key, now: Instant) -> bool {
        let shown = self.clock.at(now);
        let owner = &self.store.stored_lock(key, shown).owner;
        owner
            .as_ref()
            .is_some_and(|(owner, _)| owner == STRANGERS_TOKEN)
    }

    /// Executes a request. Returns the reply, and the messages that it publishes.
    pub(super) fn execute(&mut self, request: &Request, now: Instant) -> (Reply, Messages) {
        let (shown, subscriptions) = (self.clock.at(now), &self.subscriptions);
        let receivers = |channel: &str| {
            let each = subscriptions.iter();
            each.filter(|(_, subscribed)| **subscribed == *channel)
                .count() as u64
        };
        self.store.run(request, shown, &receivers)
    }

    /// Returns the connections that are subscribed to a channel.
    pub(crate) fn receivers(&self, channel: &Channel) -> Vec<ConnectionId> {
        let receivers = self.subscriptions.iter();
        let receivers = receivers.filter(|(_, subscribed)| subscribed == channel);
        receivers.map(|(connection, _)| *connection).collect()
    }
}

/// Returns whether a refusal of a plain SET leaves the remaining time to be asked.
pub(super) fn asks_ttl(request: &Request, reply: &Reply) -> bool {
    request.is_plain_set() && matches!(reply, Reply::Held(Blocker::Owner, ..))
}

fn is_lock(request: &Request, lock: usize) -> bool {
    let name = lock_name(lock);
    let mut keys = request.lease.keys().as_slice().iter();
    keys.any(|key| key.name() == &*name)
}

/// Returns the name of the lock with this number.
pub(crate) fn lock_name(lock: usize) -> Arc<str> {
    format!("lock-{lock}").into()
}
