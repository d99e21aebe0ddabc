//! A node: it serves what reaches it from the model of a real one, if it is there.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::error::NodeFailure;
use crate::protocol::key::Key;
use crate::protocol::reply::Reply;
use crate::protocol::request::{Op, Request};
use crate::tests::fake_node::store::NodeStore;
use crate::tests::simulation::clock::Clock;
use crate::tests::simulation::config::PlantedBug;
use crate::tests::simulation::simulator::{SimEvent, Simulator};
use crate::time::clock;

/// Nodes have been up for so long in the beginning.
const LONG_AGO: Duration = Duration::from_secs(3_000);

/// A node: what it keeps, and whether it serves.
pub(crate) struct Node {
    pub(crate) memory: NodeStore,
    pub(crate) clock: Clock,
    pub(crate) down: bool,
    pub(crate) hung_until: u64,
    /// By its own clock.
    pub(crate) started: Instant,
    /// The number of its present run.
    pub(crate) run: u32,
    /// The tokens that it had when it lost its data, and when that was.
    pub(crate) lost: HashMap<String, u64>,
    /// For each client the first connection that has not been killed, nor died with the server.
    pub(crate) living: Vec<u32>,
}

/// What comes to a node.
pub(crate) enum Sent {
    /// A pipeline of requests, of which it serves so many and answers so many.
    Batch {
        client: usize,
        life: u32,
        batch: u32,
        requests: Vec<Request>,
        served: usize,
        answered: usize,
        /// The answers go into a black hole.
        unheard: bool,
    },
    /// A new connection. It kills those before it.
    Hello { client: usize, life: u32 },
}

impl Node {
    pub(crate) fn new(clock: Clock, clients: usize) -> Node {
        Node {
            memory: NodeStore::default(),
            clock,
            down: false,
            hung_until: 0,
            started: clock.at(0) - LONG_AGO,
            run: 0,
            lost: HashMap::new(),
            living: vec![0; clients],
        }
    }

    /// Loses its data.
    pub(crate) fn forget(&mut self, key: &Key, now: u64) {
        let slot = self.memory.slot(key, self.clock.at(now));
        let owner = slot.owner.iter().map(|(token, _)| token);
        let tokens = owner.chain(slot.readers.keys()).cloned();
        self.lost.extend(tokens.map(|token| (token, now)));
        self.memory.clear();
    }

    /// As servers count it: in whole seconds of a wall clock.
    fn uptime(&self, now: u64) -> Duration {
        let second = |at: Instant| clock::to_micros(at) / 1_000_000;
        let uptime = second(self.clock.at(now)).saturating_sub(second(self.started));
        Duration::from_secs(uptime)
    }
}

impl Simulator {
    /// A message reaches a node.
    pub(crate) fn reach(&mut self, at: usize, sent: Sent) {
        let (client, life) = match sent {
            Sent::Batch { client, life, .. } | Sent::Hello { client, life } => (client, life),
        };
        let node = &mut self.nodes[at];
        if node.down || life < node.living[client] {
            if self.rng.bool() {
                let back = self.now + self.travel();
                self.tell(back, client, SimEvent::Broken { node: at, life });
            }
            return;
        }
        if node.hung_until > self.now {
            // When it goes on it takes up connections in any order.
            let resumed = node.hung_until + self.rng.u64(..1_000);
            return self.send(resumed, at, sent);
        }
        match sent {
            Sent::Batch {
                client,
                life,
                batch,
                requests,
                served,
                answered,
                unheard,
            } => {
                let mut answers = Vec::with_capacity(requests.len());
                for request in requests.iter().take(served) {
                    answers.push(self.serve(at, client, request));
                }
                if unheard {
                    return;
                }
                let back = self.now + self.travel();
                let whole = answered == requests.len();
                answers.truncate(answered);
                let told = SimEvent::Answers {
                    node: at,
                    life,
                    batch,
                    answers,
                };
                self.tell(back, client, told);
                if !whole {
                    self.tell(back, client, SimEvent::Broken { node: at, life });
                }
            }
            Sent::Hello { client, life } => {
                if !self.knobs.is(PlantedBug::NoKill) && !self.knobs.is(PlantedBug::OneToken) {
                    self.nodes[at].living[client] = life;
                }
                let back = self.now + self.travel();
                let welcome = SimEvent::Welcome {
                    node: at,
                    life,
                    run: self.nodes[at].run,
                    uptime: self.nodes[at].uptime(self.now),
                };
                self.tell(back, client, welcome);
            }
        }
    }

    fn serve(&mut self, at: usize, client: usize, request: &Request) -> Reply {
        let is_faulty =
            request.op != Op::Release && !self.calm && self.knobs.errs.strike(&mut self.rng);
        let error = Reply::Failed(NodeFailure::ServerError(String::new()));
        if is_faulty && self.rng.bool() {
            return error;
        }
        let node = &mut self.nodes[at];
        let now = node.clock.at(self.now);
        let answer = node.memory.serve(request, now);
        self.note(|_| {
            let token = request.lease.token().text();
            format!("node {at}: {client}'s {:?} {token}: {answer:?}", request.op)
        });
        match is_faulty {
            true => error,
            false => answer,
        }
    }
}
