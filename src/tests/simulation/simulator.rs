//! The world: true time, and what happens in which order.

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
use crate::tests::simulation::node::{Node, Sent};
use crate::tests::simulation::rounds::Post;

/// A history of more events than this does not end.
const MOST_EVENTS: u64 = 200_000;

/// One history while it happens. Everything in it follows from the seed.
pub(crate) struct Simulator {
    pub(crate) knobs: SimConfig,
    pub(crate) rng: Rng,
    pub(crate) key: Key,
    pub(crate) now: u64,
    queue: BinaryHeap<Entry>,
    /// How many entries there were: those of one moment keep their order.
    entries: u64,
    pub(crate) nodes: Vec<Node>,
    pub(crate) clients: Vec<Client>,
    /// Answers on their way from a lane to the rounds of its client.
    pub(crate) posts: VecDeque<Post>,
    /// A lane that may have nothing to do any more.
    pub(crate) to_check: Option<(usize, usize)>,
    /// No faults any more, and nobody begins anything.
    pub(crate) calm: bool,
    pub(crate) last_fence: u64,
    /// When a quorum confirmed each lease last.
    pub(crate) confirmed: HashMap<u64, u64>,
    pub(crate) counts: Coverage,
    pub(crate) found: Option<Violation>,
    /// What happened, line by line, if somebody wants to know.
    told: Option<Vec<String>>,
}

struct Entry {
    at: u64,
    number: u64,
    event: Event,
}

pub(crate) enum Event {
    ToNode(usize, Sent),
    ToClient(usize, SimEvent),
    Fault(Fault),
}

/// What comes to a client. It has to wait while the client is paused.
pub(crate) enum SimEvent {
    Answers {
        node: usize,
        life: u32,
        batch: u32,
        answers: Vec<Reply>,
    },
    Broken {
        node: usize,
        life: u32,
    },
    Overdue {
        node: usize,
        life: u32,
        batch: u32,
    },
    Dial {
        node: usize,
        life: u32,
    },
    Unwelcome {
        node: usize,
        life: u32,
    },
    Welcome {
        node: usize,
        life: u32,
        /// The node's, as it says.
        run: u32,
        uptime: Duration,
    },
    /// A lane takes up what is queued.
    Pump {
        node: usize,
    },
    /// The time has come for what the client does at present.
    Wake {
        ticket: u32,
    },
    /// The same for an extension.
    Renew {
        ticket: u32,
    },
    Cancel {
        acquire: u32,
    },
}

impl Simulator {
    pub(crate) fn new(seed: u64, bug: Option<PlantedBug>, tells: bool) -> Simulator {
        let mut rng = Rng::with_seed(seed);
        let knobs = SimConfig::draw(&mut rng, bug);
        let node = |clock: &Clock| Node::new(*clock, knobs.clients);
        let client = |clock: &Clock| Client::new(*clock, knobs.nodes);
        let mut world = Simulator {
            key: key(knobs.family),
            now: 0,
            queue: BinaryHeap::with_capacity(64),
            entries: 0,
            nodes: knobs.node_clocks.iter().map(node).collect(),
            clients: knobs.client_clocks.iter().map(client).collect(),
            posts: VecDeque::new(),
            to_check: None,
            calm: false,
            last_fence: 0,
            confirmed: HashMap::new(),
            counts: Coverage::default(),
            found: None,
            told: tells.then(Vec::new),
            knobs,
            rng,
        };
        world.note(|world| format!("{:?}", world.knobs));
        world.draw_faults();
        for client in 0..world.clients.len() {
            let at = world.rng.u64(..world.knobs.end / 4);
            world.tell(at, client, SimEvent::Wake { ticket: 0 });
        }
        world
    }

    /// Lets everything happen, and answers what was found.
    pub(crate) fn run(&mut self) {
        while let Some(Entry { at, event, .. }) = self.queue.pop() {
            self.now = at;
            self.counts.events += 1;
            match event {
                Event::ToNode(node, sent) => self.reach(node, sent),
                Event::ToClient(client, told) => self.hear(client, told),
                Event::Fault(fault) => self.befall(fault),
            }
            while let Some(post) = self.posts.pop_front() {
                self.deliver(post);
            }
            if let Some((client, node)) = self.to_check.take() {
                self.check_lane(client, node);
            }
            if self.counts.events > MOST_EVENTS {
                self.find(Violation::Endless);
            }
            if self.found.is_some() {
                return;
            }
        }
        self.check_the_end();
    }

    pub(crate) fn into_history(self) -> Vec<String> {
        self.told.unwrap_or_default()
    }

    pub(crate) fn note(&mut self, line: impl FnOnce(&Simulator) -> String) {
        if self.told.is_some() {
            let line = format!("{:>10} {}", self.now, line(self));
            self.told.get_or_insert_default().push(line);
        }
    }

    pub(crate) fn find(&mut self, found: Violation) {
        self.note(|_| format!("FOUND {found:?}"));
        self.found.get_or_insert(found);
    }

    pub(crate) fn put(&mut self, at: u64, event: Event) {
        let number = self.entries;
        self.entries += 1;
        self.queue.push(Entry { at, number, event });
    }

    pub(crate) fn send(&mut self, at: u64, node: usize, sent: Sent) {
        self.put(at, Event::ToNode(node, sent));
    }

    pub(crate) fn tell(&mut self, at: u64, client: usize, told: SimEvent) {
        self.put(at, Event::ToClient(client, told));
    }

    /// The present by a client's clock.
    pub(crate) fn clock(&self, client: usize) -> Instant {
        self.clients[client].clock.at(self.now)
    }

    /// How long a message takes from now on.
    pub(crate) fn travel(&mut self) -> u64 {
        self.knobs.travel(&mut self.rng, self.calm)
    }

    fn hear(&mut self, client: usize, told: SimEvent) {
        let Client {
            dead, paused_until, ..
        } = self.clients[client];
        if dead {
            return;
        }
        if paused_until > self.now {
            return self.tell(paused_until, client, told);
        }
        match told {
            SimEvent::Answers {
                node,
                life,
                batch,
                answers,
            } => self.hear_answers(client, node, (life, batch), answers),
            SimEvent::Broken { node, life } => self.hear_broken(client, node, life),
            SimEvent::Overdue { node, life, batch } => {
                self.hear_overdue(client, node, (life, batch))
            }
            SimEvent::Dial { node, life } => self.dial(client, node, life),
            SimEvent::Unwelcome { node, life } => self.hear_unwelcome(client, node, life),
            SimEvent::Welcome {
                node,
                life,
                run,
                uptime,
            } => self.hear_welcome(client, node, (life, run), uptime),
            SimEvent::Pump { node } => self.pump(client, node),
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

/// The heap gives its greatest first, and that is to be the earliest.
impl Ord for Entry {
    fn cmp(&self, other: &Entry) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

fn key(family: LockKind) -> Key {
    Key::parse("", "lock", family).expect("a good name")
}
