//! The network: the packets between processes and servers, ordered by true time.
//!
//! Each arrival is a callback of the runtime, so the order of events never depends on the fibers.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use fastrand::Rng;
use parking_lot::Mutex;

use crate::tests::simulation::network::fault::TimedChange;
use crate::tests::simulation::network::link::{Connection, Delays, Link};
use crate::tests::simulation::network::packet::{Command, ConnectionId, Packet};
use crate::tests::simulation::network::server::{Power, Server, ServerClock};
use crate::tests::simulation::runtime::signal;
use crate::tests::simulation::runtime::signal::Signal;
use crate::tests::simulation::runtime::simulation::Simulation;
use crate::tests::simulation::world;

/// The network of a history, with its servers.
pub(crate) struct Network {
    state: Mutex<NetworkState>,
    /// Called after each event.
    observer: Mutex<Option<Box<dyn Fn() + Send>>>,
}

/// The servers, links and connections.
pub(crate) struct NetworkState {
    network: Weak<Network>,
    simulation: Simulation,
    pub(super) rng: Rng,
    pub(super) delays: Delays,
    pub(crate) servers: Vec<Server>,
    /// By process and server.
    pub(super) links: Vec<Vec<Link>>,
    pub(super) connections: Vec<Connection>,
    /// The wall clock of an exact process at the beginning.
    pub(super) day: Duration,
    pub(super) start: Instant,
    /// The events are told in words.
    pub(crate) records: bool,
    /// No fault happens any more.
    pub(super) is_calm: bool,
    /// The signals to raise once the state is unlocked.
    pub(super) signals: VecDeque<Arc<Signal>>,
}

pub(super) enum NetworkEvent {
    Arrive(ConnectionId, Command),
    Deliver(ConnectionId, Packet),
    Change(TimedChange),
}

impl Network {
    pub(crate) fn new(
        simulation: Simulation,
        seed: u64,
        delays: Delays,
        clocks: &[ServerClock],
        processes: usize,
    ) -> Arc<Network> {
        let start = signal::true_time();
        let link = Link {
            blocked_until: start,
            unreachable_until: start,
            connects: 0,
        };
        let servers = clocks.iter().enumerate();
        Arc::new_cyclic(|network| Network {
            observer: Mutex::new(None),
            state: Mutex::new(NetworkState {
                network: Weak::clone(network),
                simulation,
                rng: Rng::with_seed(seed),
                delays,
                servers: servers.map(|(n, clock)| Server::new(n, *clock)).collect(),
                links: vec![vec![link; clocks.len()]; processes],
                connections: Vec::new(),
                day: crate::time::clock::unix_time(),
                start,
                records: false,
                is_calm: false,
                signals: VecDeque::new(),
            }),
        })
    }

    /// Calls `body` with the state and the true time. No other fiber runs meanwhile.
    pub(crate) fn with<T>(&self, body: impl FnOnce(&mut NetworkState, Instant) -> T) -> T {
        signal::uninterrupted(|| {
            let mut state = self.state.lock();
            let result = body(&mut state, signal::true_time());
            let signals = std::mem::take(&mut state.signals);
            drop(state); // unlock before waking
            signals.iter().for_each(|signal| signal.raise());
            result
        })
    }

    /// Sets the function that is called after each event.
    pub(crate) fn observe(&self, observer: impl Fn() + Send + 'static) {
        *self.observer.lock() = Some(Box::new(observer));
    }

    fn run_event(&self, event: NetworkEvent) {
        self.with(|state, at| match event {
            NetworkEvent::Arrive(connection, command) => state.arrive(connection, command, at),
            NetworkEvent::Deliver(connection, packet) => state.deliver(connection, packet),
            NetworkEvent::Change(change) => state.change(change, at),
        });
        if let Some(observer) = &*self.observer.lock() {
            observer();
        }
    }
}

impl NetworkState {
    /// Returns whether the history is over: then every connection ends.
    pub(super) fn is_over(&self) -> bool {
        self.simulation.is_over()
    }

    pub(super) fn schedule(&mut self, at: Instant, event: NetworkEvent) {
        let delay = at.saturating_duration_since(signal::true_time());
        let network = Weak::clone(&self.network);
        self.simulation.after(delay, move || {
            if let Some(network) = network.upgrade() {
                network.run_event(event);
            }
        });
    }

    /// Returns whether packets may be late without a fault.
    pub(crate) fn has_late_packets(&self) -> bool {
        self.delays.late_share > 0
    }

    /// Returns the usual time from a request to its reply, at most.
    pub(crate) fn round_trip(&self) -> Duration {
        2 * Duration::from_micros(self.delays.usual)
    }

    /// Returns how often a process has completed the handshake of each server.
    pub(crate) fn connects(&self, process: usize) -> Vec<usize> {
        let links = self.links[process].iter();
        links.map(|link| link.connects).collect()
    }

    /// Returns the process that has opened a connection.
    pub(crate) fn process_of(&self, connection: ConnectionId) -> usize {
        self.connections[connection].process
    }

    /// Returns the process and the server of each connection that its client has open.
    pub(crate) fn open_connections(&self) -> Vec<(usize, usize)> {
        let open = self.connections.iter();
        let open = open.filter(|connection| connection.client_open);
        open.map(|connection| (connection.process, connection.server))
            .collect()
    }

    /// Adds a line to the history.
    pub(crate) fn note(&self, line: impl FnOnce() -> String) {
        world::note(self.simulation, self.records, line);
    }

    /// Opens a connection, which the server has not accepted yet.
    pub(super) fn open(&mut self, process: usize, server: usize, now: Instant) -> ConnectionId {
        let id = self.connections.len();
        self.connections.push(Connection::new(process, server, now));
        let blocked = self.links[process][server].unreachable_until > now;
        self.connections[id].is_silent = blocked && !self.is_calm;
        self.transmit(id, Command::Open, now);
        id
    }

    /// Sends a command to the server of a connection.
    pub(super) fn transmit(&mut self, id: ConnectionId, command: Command, now: Instant) {
        let connection = &self.connections[id];
        if connection.is_silent {
            return;
        }
        let at = self.arrival(id, 0, now);
        self.schedule(at, NetworkEvent::Arrive(id, command));
    }

    /// Sends a packet to the client of a connection.
    pub(super) fn reply(&mut self, id: ConnectionId, packet: Packet, now: Instant) {
        let connection = &self.connections[id];
        if connection.is_silent || !connection.client_open {
            return;
        }
        let at = self.arrival(id, 1, now);
        self.schedule(at, NetworkEvent::Deliver(id, packet));
    }

    /// Draws when a packet that is sent at `now` arrives. Packets of a direction keep their order.
    fn arrival(&mut self, id: ConnectionId, direction: usize, now: Instant) -> Instant {
        let delay = self.delays.draw(&mut self.rng, self.is_calm);
        let connection = &mut self.connections[id];
        let link = &self.links[connection.process][connection.server];
        let sent = now.max(link.blocked_until);
        let last = &mut connection.last_arrival[direction];
        *last = (sent + delay).max(*last);
        *last
    }

    /// Handles a command at its server.
    fn arrive(&mut self, id: ConnectionId, command: Command, at: Instant) {
        let server = self.connections[id].server;
        match (self.servers[server].power, &command) {
            (Power::Gone, _) => {}
            (Power::Down, Command::Open) => {
                self.reply(id, Packet::Closed("Connection refused (os error 111)"), at);
            }
            (_, Command::Open) => {
                self.servers[server].clients += 1;
                self.connections[id].client_id = self.servers[server].clients;
                self.connections[id].server_open = true;
                self.reply(id, Packet::Opened, at);
            }
            _ if !self.connections[id].server_open => {
                self.reply(
                    id,
                    Packet::Closed("Connection reset by peer (os error 104)"),
                    at,
                );
            }
            (Power::Hung, _) => self.servers[server].backlog.push_back((id, command)),
            _ => self.serve(id, command, at),
        }
    }

    /// Runs the commands that arrived while the server hung, also those of connections that their
    /// clients have closed since. Those of different connections may run in another order.
    pub(super) fn serve_backlog(&mut self, server: usize, at: Instant) {
        let mut backlog: Vec<_> = self.servers[server].backlog.drain(..).collect();
        while !backlog.is_empty() {
            let index = self.rng.usize(..backlog.len());
            let connection = backlog[index].0;
            let first = backlog.iter().position(|(id, _)| *id == connection);
            let (id, command) = backlog.remove(first.unwrap_or(index));
            if self.connections[id].server_open {
                self.serve(id, command, at);
            }
        }
    }

    pub(super) fn close_at_server(&mut self, id: ConnectionId) {
        let connection = &mut self.connections[id];
        connection.server_open = false;
        let server = &mut self.servers[connection.server];
        server
            .subscriptions
            .retain(|(subscribed, _)| *subscribed != id);
    }

    /// Ends a connection at the server, which tells the client behind all earlier replies.
    pub(super) fn close_by_server(&mut self, id: ConnectionId, at: Instant) {
        self.close_at_server(id);
        self.reply(
            id,
            Packet::Closed("the other side closed the connection"),
            at,
        );
    }

    fn deliver(&mut self, id: ConnectionId, packet: Packet) {
        let connection = &mut self.connections[id];
        if connection.client_open && !connection.is_silent && connection.closed().is_none() {
            connection.received.push_back(packet);
            self.signals.push_back(Arc::clone(&connection.changed));
        }
    }

    /// Ends a connection at the client. Packets already sent still arrive.
    pub(super) fn close_by_client(&mut self, id: ConnectionId, now: Instant) {
        let connection = &mut self.connections[id];
        if std::mem::take(&mut connection.client_open) {
            connection.received.clear();
            self.transmit(id, Command::Close, now);
        }
    }
}
