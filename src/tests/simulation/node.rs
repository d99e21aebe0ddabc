//! A node that serves requests from `NodeStore` while it is up.

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

/// The uptime of all nodes at the beginning.
const LONG_AGO: Duration = Duration::from_secs(3_000);

/// A node, with its store and its faults.
pub(crate) struct Node {
    pub(crate) store: NodeStore,
    pub(crate) clock: Clock,
    pub(crate) down: bool,
    pub(crate) hung_until: u64,
    /// The time of its last start, by its own clock.
    pub(crate) started: Instant,
    /// The number of its present run.
    pub(crate) run: u32,
    /// The tokens that it stored when it lost its data, with the time of the loss.
    pub(crate) lost: HashMap<String, u64>,
    /// For each client the lowest connection number that was not killed and did not end with the
    /// server.
    pub(crate) min_generations: Vec<u32>,
}

/// A message to a node.
pub(crate) enum NodeMessage {
    /// A pipeline of requests. The node serves the first `served` and replies to the first
    /// `replied`.
    Batch {
        client: usize,
        generation: u32,
        batch: u32,
        requests: Vec<Request>,
        served: usize,
        replied: usize,
        /// Whether all replies are lost.
        replies_lost: bool,
    },
    /// A new connection, which kills the former ones of the client.
    Connect { client: usize, generation: u32 },
}

impl Node {
    pub(crate) fn new(clock: Clock, clients: usize) -> Node {
        Node {
            store: NodeStore::default(),
            clock,
            down: false,
            hung_until: 0,
            started: clock.at(0) - LONG_AGO,
            run: 0,
            lost: HashMap::new(),
            min_generations: vec![0; clients],
        }
    }

    /// Deletes all data.
    pub(crate) fn lose_data(&mut self, key: &Key, now: u64) {
        let lock = self.store.stored_lock(key, self.clock.at(now));
        let owner = lock.owner.iter().map(|(token, _)| token);
        let tokens = owner.chain(lock.readers.keys()).cloned();
        self.lost.extend(tokens.map(|token| (token, now)));
        self.store.clear();
    }

    /// Returns the uptime as servers report it: in whole seconds of a wall clock.
    fn uptime(&self, now: u64) -> Duration {
        let second = |at: Instant| clock::to_micros(at) / 1_000_000;
        let uptime = second(self.clock.at(now)).saturating_sub(second(self.started));
        Duration::from_secs(uptime)
    }
}

impl Simulator {
    /// Delivers a message to a node.
    pub(crate) fn deliver_to_node(&mut self, at: usize, message: NodeMessage) {
        let (client, generation) = match message {
            NodeMessage::Batch {
                client, generation, ..
            }
            | NodeMessage::Connect { client, generation } => (client, generation),
        };
        let node = &mut self.nodes[at];
        if node.down || generation < node.min_generations[client] {
            if self.rng.bool() {
                let back = self.now + self.message_delay();
                self.schedule_client_event(
                    back,
                    client,
                    SimEvent::Disconnected {
                        node: at,
                        generation,
                    },
                );
            }
            return;
        }
        if node.hung_until > self.now {
            // A node that resumes serves its connections in any order.
            let resumed = node.hung_until + self.rng.u64(..1_000);
            return self.schedule_node_message(resumed, at, message);
        }
        match message {
            NodeMessage::Batch {
                client,
                generation,
                batch,
                requests,
                served,
                replied,
                replies_lost,
            } => {
                let mut replies = Vec::with_capacity(requests.len());
                for request in requests.iter().take(served) {
                    replies.push(self.serve(at, client, request));
                }
                if replies_lost {
                    return;
                }
                let back = self.now + self.message_delay();
                let is_complete = replied == requests.len();
                replies.truncate(replied);
                let replies_event = SimEvent::Replies {
                    node: at,
                    generation,
                    batch,
                    replies,
                };
                self.schedule_client_event(back, client, replies_event);
                if !is_complete {
                    self.schedule_client_event(
                        back,
                        client,
                        SimEvent::Disconnected {
                            node: at,
                            generation,
                        },
                    );
                }
            }
            NodeMessage::Connect { client, generation } => {
                if !self.config.is(PlantedBug::NoKill) && !self.config.is(PlantedBug::OneToken) {
                    self.nodes[at].min_generations[client] = generation;
                }
                let back = self.now + self.message_delay();
                let welcome = SimEvent::Connected {
                    node: at,
                    generation,
                    run: self.nodes[at].run,
                    uptime: self.nodes[at].uptime(self.now),
                };
                self.schedule_client_event(back, client, welcome);
            }
        }
    }

    fn serve(&mut self, at: usize, client: usize, request: &Request) -> Reply {
        let is_faulty = request.op != Op::Release
            && !self.faults_over
            && self.config.error.occurs(&mut self.rng);
        let error = Reply::Failed(NodeFailure::ServerError(String::new()));
        if is_faulty && self.rng.bool() {
            return error;
        }
        let node = &mut self.nodes[at];
        let now = node.clock.at(self.now);
        let reply = node.store.serve(request, now);
        self.record(|_| {
            let token = request.lease.token().text();
            format!("node {at}: {client}'s {:?} {token}: {reply:?}", request.op)
        });
        match is_faulty {
            true => error,
            false => reply,
        }
    }
}
