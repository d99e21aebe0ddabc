//! Orders the events of a history by true time.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::protocol::key::Key;
use crate::protocol::kind::LockKind;
use crate::protocol::reply::Reply;
use crate::tests::simulation::checker::{Coverage, Violation};
use crate::tests::simulation::client::Client;
use crate::tests::simulation::clock::Clock;
use crate::tests::simulation::config::{PlantedBug, SimConfig};
use crate::tests::simulation::faults::Fault;
use crate::tests::simulation::node::{Node, NodeMessage};
use crate::tests::simulation::rounds::RoutedReply;

/// The number of events after which a history counts as endless.
const MAX_EVENTS: u64 = 200_000;

/// One history in progress. All of it follows from the seed.
pub(crate) struct Simulator {
    pub(crate) config: SimConfig,
    pub(crate) rng: Rng,
    pub(crate) key: Key,
    pub(crate) now: u64,
    queue: BinaryHeap<Entry>,
    /// The number of events scheduled so far. Events of the same time keep this order.
    entries: u64,
    pub(crate) nodes: Vec<Node>,
    pub(crate) clients: Vec<Client>,
    /// Replies on their way from a connection to the rounds of its client.
    pub(crate) replies: VecDeque<RoutedReply>,
    /// The client and node of a connection that may have become idle.
    pub(crate) to_check: Option<(usize, usize)>,
    /// No fault happens and no client begins an acquire any more.
    pub(crate) faults_over: bool,
    pub(crate) last_fence: u64,
    /// The time at which a quorum last confirmed each lease, by token id.
    pub(crate) confirmed: HashMap<u64, u64>,
    pub(crate) coverage: Coverage,
    pub(crate) violation: Option<Violation>,
    /// The recorded lines of the history, if it is recorded.
    history: Option<Vec<String>>,
}

struct Entry {
    at: u64,
    number: u64,
    event: Event,
}

pub(crate) enum Event {
    ToNode(usize, NodeMessage),
    ToClient(usize, SimEvent),
    Fault(Fault),
}

/// An event for a client. It is postponed while the client is paused.
pub(crate) enum SimEvent {
    Replies {
        node: usize,
        generation: u32,
        batch: u32,
        replies: Vec<Reply>,
    },
    Disconnected {
        node: usize,
        generation: u32,
    },
    TimedOut {
        node: usize,
        generation: u32,
        batch: u32,
    },
    Connect {
        node: usize,
        generation: u32,
    },
    ConnectTimedOut {
        node: usize,
        generation: u32,
    },
    Connected {
        node: usize,
        generation: u32,
        /// The run of the node, as the node reports it.
        run: u32,
        uptime: Duration,
    },
    /// The connection sends its queued jobs.
    SendQueued {
        node: usize,
    },
    /// The alarm of the client's present state.
    Wake {
        ticket: u32,
    },
    /// The alarm of the client's renewal.
    Renew {
        ticket: u32,
    },
    Cancel {
        acquire: u32,
    },
}

impl Simulator {
    pub(crate) fn new(seed: u64, bug: Option<PlantedBug>, records: bool) -> Simulator {
        let mut rng = Rng::with_seed(seed);
        let config = SimConfig::draw(&mut rng, bug);
        let node = |clock: &Clock| Node::new(*clock, config.clients);
        let client = |clock: &Clock| Client::new(*clock, config.nodes);
        let mut simulator = Simulator {
            key: key(config.lock_kind),
            now: 0,
            queue: BinaryHeap::with_capacity(64),
            entries: 0,
            nodes: config.node_clocks.iter().map(node).collect(),
            clients: config.client_clocks.iter().map(client).collect(),
            replies: VecDeque::new(),
            to_check: None,
            faults_over: false,
            last_fence: 0,
            confirmed: HashMap::new(),
            coverage: Coverage::default(),
            violation: None,
            history: records.then(Vec::new),
            config,
            rng,
        };
        simulator.record(|simulator| format!("{:?}", simulator.config));
        simulator.draw_faults();
        for client in 0..simulator.clients.len() {
            let at = simulator.rng.u64(..simulator.config.end / 4);
            simulator.schedule_client_event(at, client, SimEvent::Wake { ticket: 0 });
        }
        simulator
    }

    /// Runs the history to its end or to the first violation.
    pub(crate) fn run(&mut self) {
        while let Some(Entry { at, event, .. }) = self.queue.pop() {
            self.now = at;
            self.coverage.events += 1;
            match event {
                Event::ToNode(node, message) => self.deliver_to_node(node, message),
                Event::ToClient(client, event) => self.handle_event(client, event),
                Event::Fault(fault) => self.apply_fault(fault),
            }
            while let Some(post) = self.replies.pop_front() {
                self.deliver(post);
            }
            if let Some((client, node)) = self.to_check.take() {
                self.check_connection(client, node);
            }
            if self.coverage.events > MAX_EVENTS {
                self.report(Violation::Endless);
            }
            if self.violation.is_some() {
                return;
            }
        }
        self.check_final_state();
    }

    pub(crate) fn into_history(self) -> Vec<String> {
        self.history.unwrap_or_default()
    }

    pub(crate) fn record(&mut self, line: impl FnOnce(&Simulator) -> String) {
        if self.history.is_some() {
            let line = format!("{:>10} {}", self.now, line(self));
            self.history.get_or_insert_default().push(line);
        }
    }

    pub(crate) fn report(&mut self, violation: Violation) {
        self.record(|_| format!("FOUND {violation:?}"));
        self.violation.get_or_insert(violation);
    }

    pub(crate) fn schedule(&mut self, at: u64, event: Event) {
        let number = self.entries;
        self.entries += 1;
        self.queue.push(Entry { at, number, event });
    }

    pub(crate) fn schedule_node_message(&mut self, at: u64, node: usize, message: NodeMessage) {
        self.schedule(at, Event::ToNode(node, message));
    }

    pub(crate) fn schedule_client_event(&mut self, at: u64, client: usize, event: SimEvent) {
        self.schedule(at, Event::ToClient(client, event));
    }

    /// Returns the present time by a client's clock.
    pub(crate) fn clock(&self, client: usize) -> Instant {
        self.clients[client].clock.at(self.now)
    }

    /// Draws the delay of a message that is sent now, in µs.
    pub(crate) fn message_delay(&mut self) -> u64 {
        self.config.message_delay(&mut self.rng, self.faults_over)
    }

    fn handle_event(&mut self, client: usize, event: SimEvent) {
        let Client {
            dead, paused_until, ..
        } = self.clients[client];
        if dead {
            return;
        }
        if paused_until > self.now {
            return self.schedule_client_event(paused_until, client, event);
        }
        match event {
            SimEvent::Replies {
                node,
                generation,
                batch,
                replies,
            } => self.handle_replies(client, node, (generation, batch), replies),
            SimEvent::Disconnected { node, generation } => {
                self.handle_disconnect(client, node, generation)
            }
            SimEvent::TimedOut {
                node,
                generation,
                batch,
            } => self.handle_timeout(client, node, (generation, batch)),
            SimEvent::Connect { node, generation } => self.connect(client, node, generation),
            SimEvent::ConnectTimedOut { node, generation } => {
                self.handle_connect_timeout(client, node, generation)
            }
            SimEvent::Connected {
                node,
                generation,
                run,
                uptime,
            } => self.handle_connected(client, node, (generation, run), uptime),
            SimEvent::SendQueued { node } => self.send_queued(client, node),
            SimEvent::Wake { ticket } => self.wake(client, ticket),
            SimEvent::Renew { ticket } => self.wake_renewal(client, ticket),
            SimEvent::Cancel { acquire } => self.cancel(client, acquire),
        }
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Entry) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Entry) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Reversed, because the heap returns its greatest entry first and the earliest is needed.
impl Ord for Entry {
    fn cmp(&self, other: &Entry) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

fn key(lock_kind: LockKind) -> Key {
    Key::parse("", "lock", lock_kind).expect("a good name")
}
