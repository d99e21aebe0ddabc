//! The seam `transport::node` in front of simulated servers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::settings::Settings;
use crate::error::node_failure::NodeFailure;
use crate::protocol::kind::LeaseKind;
use crate::protocol::lease::Lease;
use crate::protocol::reply::Reply;
use crate::protocol::request::{Op, Request};
use crate::protocol::scripts::Script;
use crate::protocol::server_error::protocol_error;
use crate::protocol::server_info::{ServerInfo, info_field};
use crate::protocol::token::Token;
use crate::protocol::{command, encode};
use crate::tests::simulation::network::network::Network;
use crate::tests::simulation::network::packet::{Command, ConnectionId, Packet};
use crate::tests::simulation::network::subscriber::SimulatedSubscriber;
use crate::time::clock;
use crate::transport::messages::{NodeConfig, PING_INTERVAL};
use crate::transport::node::traits::{
    Connector, DirectIo, Handshake, InFlight, Session, Subscriber,
};

/// Opens connections of one process to one server.
pub(crate) struct SimulatedConnector {
    pub(super) network: Arc<Network>,
    process: usize,
    server: usize,
    connect_timeout: Duration,
    node_timeout: Duration,
}

/// The client's end of a connection.
pub(super) struct ClientEnd {
    network: Arc<Network>,
    pub(super) id: ConnectionId,
}

impl Network {
    /// Returns the configuration of all servers as the nodes of a process.
    pub(crate) fn node_configs(
        self: &Arc<Network>,
        process: usize,
        settings: &Settings,
    ) -> Vec<NodeConfig> {
        let servers = 0..self.with(|state, _| state.servers.len());
        let config = |server| NodeConfig {
            name: format!("server-{server}"),
            connector: Arc::new(SimulatedConnector {
                network: Arc::clone(self),
                process,
                server,
                connect_timeout: settings.connect_timeout,
                node_timeout: settings.node_timeout,
            }),
            node_timeout: settings.node_timeout,
            restart_quarantine: settings.restart_quarantine,
            reject_evicting: settings.reject_evicting_servers,
            is_one_server: true,
            ping_interval: PING_INTERVAL,
            observer: settings.observer.clone(),
        };
        servers.map(config).collect()
    }
}

impl ClientEnd {
    /// Sends a command.
    ///
    /// # Errors
    /// - The connection has ended.
    pub(super) fn send(&self, commands: Vec<Command>) -> Result<(), NodeFailure> {
        self.network.with(|state, now| {
            if let Some(cause) = state.connections[self.id].closed() {
                return Err(NodeFailure::Unreachable(cause.to_owned()));
            }
            if state.is_over() {
                return Err(history_is_over());
            }
            for command in commands {
                state.transmit(self.id, command, now);
            }
            Ok(())
        })
    }

    /// Returns the next packet that has arrived.
    ///
    /// # Errors
    /// - The connection has ended.
    pub(super) fn poll(&self) -> Result<Option<Packet>, NodeFailure> {
        self.network.with(|state, _| {
            if state.is_over() {
                return Err(history_is_over());
            }
            let received = &mut state.connections[self.id].received;
            match received.front() {
                Some(Packet::Closed(cause)) => Err(NodeFailure::Unreachable((*cause).to_owned())),
                _ => Ok(received.pop_front()),
            }
        })
    }

    /// Blocks until the next packet, at most until `end`.
    ///
    /// # Errors
    /// - The connection has ended, or `end` is reached.
    pub(super) fn receive(&self, end: Instant) -> Result<Packet, NodeFailure> {
        let changed = self
            .network
            .with(|state, _| Arc::clone(&state.connections[self.id].changed));
        loop {
            if let Some(packet) = self.poll()? {
                return Ok(packet);
            }
            if clock::now() >= end {
                return Err(NodeFailure::TimedOut);
            }
            changed.wait_until(Some(end));
        }
    }
}

fn history_is_over() -> NodeFailure {
    NodeFailure::Unreachable("the history is over".to_owned())
}

impl Drop for ClientEnd {
    fn drop(&mut self) {
        self.network
            .with(|state, now| state.close_by_client(self.id, now));
    }
}

impl SimulatedConnector {
    /// Opens a connection.
    fn open(&self, end: Instant) -> Result<ClientEnd, NodeFailure> {
        let id = self
            .network
            .with(|state, now| state.open(self.process, self.server, now));
        let client = ClientEnd {
            network: Arc::clone(&self.network),
            id,
        };
        match client.receive(end)? {
            Packet::Opened => Ok(client),
            _ => Err(protocol_error()),
        }
    }
}

impl Connector for SimulatedConnector {
    fn connect(
        &self,
        former: Option<&Handshake>,
    ) -> Result<(Box<dyn Session>, Handshake), NodeFailure> {
        let end = clock::now() + self.connect_timeout;
        let client = self.open(end)?;
        let (wall, sent) = (clock::unix_time(), clock::now());
        client.send(vec![Command::Handshake])?;
        let (client_id, info, mut no_kill) = match client.receive(end)? {
            Packet::Handshake(client_id, info, no_kill) => (client_id, info, no_kill),
            Packet::Refused(failure) => return Err(failure),
            _ => return Err(protocol_error()),
        };
        let round_trip = clock::now().saturating_duration_since(sent);
        let run_id = info_field(&info, "run_id").unwrap_or_default().to_owned();
        let of_this_run = former.filter(|former| former.run_id == run_id);
        if let (Some(former), None) = (of_this_run, &no_kill) {
            client.send(vec![Command::Kill(former.client_id)])?;
            no_kill = match client.receive(end)? {
                Packet::Killed(denied) => denied,
                _ => return Err(protocol_error()),
            };
        }
        let handshake = Handshake {
            run_id,
            others: Vec::new(),
            client_id,
            server_info: ServerInfo::parse_info(&info, wall + round_trip / 2, round_trip),
            no_kill,
        };
        let session = SimulatedSession {
            client,
            node_timeout: self.node_timeout,
            outstanding: 0,
            second_commands: 0,
            cmd: command::Command::default(),
            wire: Vec::new(),
        };
        Ok((Box::new(session), handshake))
    }

    fn with_subscriber(
        &self,
        serve: &mut dyn FnMut(&mut dyn Subscriber) -> Result<(), NodeFailure>,
    ) -> Result<(), NodeFailure> {
        let client = self.open(clock::now() + self.connect_timeout)?;
        serve(&mut SimulatedSubscriber::new(client, self.node_timeout))
    }
}

/// A session with a simulated server.
struct SimulatedSession {
    client: ClientEnd,
    node_timeout: Duration,
    /// The number of requests without a reply.
    outstanding: usize,
    /// The number of these that wait for the reply to a second command.
    second_commands: usize,
    cmd: command::Command,
    wire: Vec<u8>,
}

impl SimulatedSession {
    /// Returns the script that a request calls.
    fn script_of(&mut self, request: &Request) -> Option<Script> {
        self.wire.clear();
        encode::encode_request(request, std::iter::empty(), &mut self.cmd, &mut self.wire)
    }

    fn call(&mut self, id: u64, request: &Request, load: bool) -> Command {
        Command::Call {
            id,
            script: self.script_of(request),
            request: Box::new(as_sent(request)),
            load,
        }
    }

    /// Handles a packet. Returns the reply to a request, or sends a second command.
    fn handle<'a>(
        &mut self,
        packet: Packet,
        request_of: impl Fn(u64) -> Option<&'a Request>,
    ) -> Result<Option<(u64, Reply)>, NodeFailure> {
        let second = match packet {
            Packet::Reply(id, reply) => {
                self.outstanding -= 1;
                self.second_commands = self.second_commands.saturating_sub(1);
                return Ok(Some((id, reply)));
            }
            Packet::SetRefused(id) => {
                let request = request_of(id).ok_or_else(protocol_error)?;
                let key = request.lease.key().clone();
                Command::RemainingTtl { id, key }
            }
            Packet::ScriptMissing(id) => {
                let request = request_of(id).ok_or_else(protocol_error)?;
                self.call(id, request, true)
            }
            _ => return Err(protocol_error()),
        };
        self.second_commands += 1;
        self.client.send(vec![second]).map(|()| None)
    }
}

/// Returns the request as it travels: a later change of the lease does not reach it.
fn as_sent(request: &Request) -> Request {
    let mut sent = request.clone();
    let lease = &request.lease;
    if lease.kind() == LeaseKind::Write || lease.has_min_hold() {
        let token = Token::existing(&lease.token().text());
        sent.lease = Arc::new(Lease::new(lease.keys().clone(), token, lease.kind()));
    }
    if request.op == Op::Release {
        // A release has no TTL. The rest is that of the client's clock, and the copy has none.
        sent.ttl = request.keep_millis(clock::now());
    }
    sent
}

impl Session for SimulatedSession {
    fn send_batch(
        &mut self,
        requests: &[Arc<Request>],
        deliver: &mut dyn FnMut(usize, Reply),
    ) -> Result<(), NodeFailure> {
        let end = clock::now() + self.node_timeout;
        let calls = requests.iter().enumerate();
        let calls = calls.map(|(id, request)| self.call(id as u64, request, false));
        let calls = calls.collect();
        self.outstanding = requests.len();
        self.client.send(calls)?;
        while self.outstanding > 0 {
            let packet = self.client.receive(end)?;
            let reply = self.handle(packet, |id| requests.get(id as usize).map(Arc::as_ref))?;
            if let Some((id, reply)) = reply {
                deliver(id as usize, reply);
            }
        }
        Ok(())
    }

    fn check_idle(&mut self) -> Result<(), NodeFailure> {
        match self.client.poll()? {
            None => Ok(()),
            Some(_) => Err(protocol_error()),
        }
    }

    fn ping(&mut self) -> Result<(), NodeFailure> {
        let end = clock::now() + self.node_timeout;
        self.client.send(vec![Command::Ping])?;
        match self.client.receive(end)? {
            Packet::Pong => Ok(()),
            _ => Err(protocol_error()),
        }
    }

    fn direct_io(&mut self) -> Option<&mut dyn DirectIo> {
        Some(self)
    }
}

impl DirectIo for SimulatedSession {
    fn can_append(&self) -> bool {
        self.second_commands == 0
    }

    fn send(&mut self, sent: &InFlight, _: &[u8]) -> Result<(), NodeFailure> {
        self.outstanding += 1;
        let call = self.call(sent.id, &sent.request, false);
        self.client.send(vec![call])
    }

    fn next_reply(
        &mut self,
        in_flight: &VecDeque<InFlight>,
        end: Option<Instant>,
    ) -> Result<Option<(u64, Reply)>, NodeFailure> {
        while self.outstanding > 0 {
            let packet = match end {
                Some(end) => self.client.receive(end)?,
                None => match self.client.poll()? {
                    Some(packet) => packet,
                    None => return Ok(None),
                },
            };
            let request_of = |id| {
                let sent = in_flight.iter().find(|sent| sent.id == id);
                sent.map(|sent| &*sent.request)
            };
            if let Some(reply) = self.handle(packet, request_of)? {
                return Ok(Some(reply));
            }
        }
        Ok(None)
    }
}
