//! The execution of commands by a server.

use std::sync::Arc;
use std::time::Instant;

use crate::error::node_failure::NodeFailure;
use crate::protocol::key::{Channel, Key};
use crate::protocol::reply::{Blocker, Reply};
use crate::protocol::request::Request;
use crate::tests::simulation::network::network::NetworkState;
use crate::tests::simulation::network::packet::{Command, ConnectionId, Packet};
use crate::tests::simulation::network::server;
use crate::tests::simulation::network::server::Refusal;
use crate::transport::node::traits::Event;

impl NetworkState {
    /// Runs a command and sends the reply.
    pub(super) fn serve(&mut self, id: ConnectionId, command: Command, at: Instant) {
        match command {
            Command::Open => {}
            Command::Close => self.close_at_server(id),
            Command::Handshake => {
                let packet = self.handshake(id, at);
                self.reply(id, packet, at);
            }
            Command::Kill(client_id) => self.kill(id, client_id, at),
            Command::Ping => self.reply(id, Packet::Pong, at),
            Command::Call {
                id: number,
                request,
                script,
                load,
            } => {
                let server = self.connections[id].server;
                if let (Some(script), true) = (script, load) {
                    self.servers[server].load(script);
                }
                let has_script = |script| self.servers[server].has_script(script);
                let packet = match script.is_none_or(has_script) {
                    true => self.call(server, number, &request, at),
                    false => Packet::ScriptMissing(number),
                };
                self.reply(id, packet, at);
            }
            Command::RemainingTtl { id: number, key } => {
                let left = self.remaining_ttl(id, &key, at);
                self.reply(id, Packet::Reply(number, left), at);
            }
            Command::Subscribe(command, channels) => self.subscribe(id, command, channels, at),
            Command::Unsubscribe(channels) => {
                let server = &mut self.servers[self.connections[id].server];
                server
                    .subscriptions
                    .retain(|(of, channel)| *of != id || !channels.contains(channel));
                for _ in channels {
                    self.reply(id, Packet::Event(Event::Other), at);
                }
            }
        }
    }

    fn handshake(&mut self, id: ConnectionId, at: Instant) -> Packet {
        let day = self.day + at.saturating_duration_since(self.start);
        let connection = &self.connections[id];
        let server = &mut self.servers[connection.server];
        if server.refuses(Refusal::LoginDenied) {
            let text = "NOAUTH Authentication required.".to_owned();
            return Packet::Refused(NodeFailure::AccessDenied(text));
        }
        if server.refuses(Refusal::Loading) {
            let text = "LOADING Redis is loading the dataset in memory".to_owned();
            return Packet::Refused(NodeFailure::ServerError(text));
        }
        server.preload();
        self.links[connection.process][connection.server].connects += 1;
        let denied = server.refuses(Refusal::KillDenied).then(|| {
            NodeFailure::AccessDenied(
                "NOPERM User app has no permissions to run the 'client|kill' command".to_owned(),
            )
        });
        Packet::Handshake(connection.client_id, server.info(at, day), denied)
    }

    /// Runs CLIENT KILL ID.
    fn kill(&mut self, id: ConnectionId, client_id: i64, at: Instant) {
        let server = self.connections[id].server;
        let denied = self.servers[server]
            .refuses(Refusal::KillDenied)
            .then(|| NodeFailure::AccessDenied("NOPERM User app has no permissions".to_owned()));
        if denied.is_none() {
            let of_server = |connection: &_| self.is_client(connection, server, client_id);
            let killed = (0..self.connections.len()).find(of_server);
            if let Some(killed) = killed {
                self.note(|| format!("server {server} kills connection {killed}"));
                self.close_by_server(killed, at);
            }
        }
        self.reply(id, Packet::Killed(denied), at);
    }

    fn is_client(&self, connection: &ConnectionId, server: usize, client_id: i64) -> bool {
        let connection = &self.connections[*connection];
        connection.server == server && connection.server_open && connection.client_id == client_id
    }

    /// Runs a request whose script is loaded.
    fn call(&mut self, number: usize, id: u64, request: &Request, at: Instant) -> Packet {
        let server = &mut self.servers[number];
        let (reply, messages) = match server.error(request) {
            Some(failure) => (Reply::Failed(failure), Vec::new()),
            None => server.execute(request, at),
        };
        for (channel, message) in messages {
            self.publish(number, &channel, &message, at);
        }
        self.note(|| {
            let lease = &request.lease;
            let token = lease.token().text();
            format!(
                "server {number} runs {} of {} {}: {reply:?}",
                request.op,
                lease.keys(),
                &token[..8.min(token.len())],
            )
        });
        match server::asks_ttl(request, &reply) {
            true => Packet::SetRefused(id),
            false => Packet::Reply(id, reply),
        }
    }

    fn publish(&mut self, number: usize, channel: &Channel, message: &Event, at: Instant) {
        let receivers = self.servers[number].receivers(channel);
        if !self.servers[number].is_mute {
            for id in receivers {
                self.reply(id, Packet::Event(message.clone()), at);
            }
        }
    }

    fn remaining_ttl(&mut self, id: ConnectionId, key: &Key, at: Instant) -> Reply {
        let server = &mut self.servers[self.connections[id].server];
        let shown = server.clock.at(at);
        let owner = &server.store.stored_lock(key, shown).owner;
        // PTTL of an absent key is -2, which reads as no time left.
        let left = owner
            .as_ref()
            .map(|(_, end)| end.saturating_duration_since(shown));
        Reply::Held(Blocker::Owner, Some(left.unwrap_or_default()), None)
    }

    fn subscribe(&mut self, id: ConnectionId, command: u64, channels: Vec<Channel>, at: Instant) {
        let server = self.connections[id].server;
        if self.servers[server].refuses(Refusal::SubscribeDenied) {
            let text = "NOPERM User app has no permissions to access one of the channels";
            let cause = NodeFailure::AccessDenied(text.to_owned());
            return self.reply(id, Packet::Event(Event::Refused(command, cause)), at);
        }
        for channel in channels {
            self.servers[server]
                .subscriptions
                .push((id, Arc::clone(&channel)));
            self.reply(id, Packet::Event(Event::Subscribed(command, channel)), at);
        }
    }
}
