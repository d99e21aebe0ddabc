//! A cluster as one node: a session with each master, and each request to the owner of its slot
//! (S4).
//!
//! The cluster client of `redis` is not used. Without retries it does not follow a moved slot, and
//! its retries resend requests that a broken connection may have run. Here a request is sent twice
//! only if the server ran nothing of it: after NOSCRIPT, and once to the target of MOVED or ASK.

use std::sync::Arc;
use std::time::{Duration, Instant};

use log::debug;
use parking_lot::Mutex;
use redis::Value;

use crate::config::endpoint::Address;
use crate::config::settings::Settings;
use crate::error::{Error, NodeFailure};
use crate::protocol::hash_slot::hash_slot;
use crate::protocol::reply::Reply;
use crate::protocol::request::{Op, Request};
use crate::protocol::server_error::protocol_error;
use crate::protocol::server_info::{ClockReading, ServerInfo};
use crate::time::clock;
use crate::transport::node::address::{ServerAddress, host_and_port};
#[cfg(any(feature = "sentinel", feature = "cluster"))]
use crate::transport::node::discovery;
use crate::transport::node::session::RedisSession;
use crate::transport::node::slot_map::{HostPort, SlotMap, parse_redirect};
use crate::transport::node::stream::Stream;
use crate::transport::node::subscriber::RedisSubscriber;
use crate::transport::node::traits::{Connector, Handshake, Session, Subscriber};

/// The default port of a seed.
const PORT: u16 = 6379;

/// The connector of a node that is a cluster.
pub(crate) struct ClusterConnector {
    seeds: Vec<ServerAddress>,
    name: String,
    connect_timeout: Duration,
    node_timeout: Duration,
    former: Arc<FormerClients>,
}

/// The connections of closed sessions that are not known to be killed: server address, run id and
/// client id of each.
#[derive(Default)]
struct FormerClients(Mutex<Vec<(HostPort, (String, i64))>>);

impl ClusterConnector {
    /// Parses the seeds' addresses.
    ///
    /// # Errors
    /// - `InvalidConfig` with the address, without its credentials.
    pub(crate) fn new(seeds: &[Address], settings: &Settings) -> Result<ClusterConnector, Error> {
        let parse = |seed| ServerAddress::from_discovery_address(seed, settings, PORT);
        let seeds = seeds
            .iter()
            .map(parse)
            .collect::<Result<Vec<ServerAddress>, _>>()?;
        let first = seeds.first().map(ServerAddress::host_port);
        let name = format!("cluster:{}", first.unwrap_or_default());
        let with_login = |seed: ServerAddress| seed.with_login(settings, &name);
        Ok(ClusterConnector {
            seeds: seeds.into_iter().map(with_login).collect(),
            name,
            connect_timeout: settings.connect_timeout,
            node_timeout: settings.node_timeout,
            former: Arc::default(),
        })
    }

    /// Returns the node's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Returns the first seed that reports `cluster_state:ok`, a connection to it, and the slot
    /// map. Each seed gets an equal share of the time left until `end`; one more share is for the
    /// masters.
    fn discover(&self, end: Instant) -> Result<(ServerAddress, Stream, SlotMap), NodeFailure> {
        let mut failure = NodeFailure::TimedOut;
        for (index, seed) in self.seeds.iter().enumerate() {
            let shares = (self.seeds.len() - index + 1) as u32;
            let now = clock::now();
            let seed_end = now + end.saturating_duration_since(now) / shares;
            match query_seed(seed, seed_end) {
                Ok((connection, slots)) => return Ok((seed.clone(), connection, slots)),
                Err(new) => {
                    let new = discovery::prefix_failure(&seed.host_port(), new);
                    debug!("{}: {new}", self.name());
                    // `AccessDenied` prevails, because waiting does not help.
                    if !matches!(failure, NodeFailure::AccessDenied(_)) {
                        failure = new;
                    }
                }
            }
        }
        Err(failure)
    }
}

impl ServerAddress {
    fn host(&self) -> &str {
        host_and_port(&self.info).map_or("", |(host, _)| host)
    }
}

/// Asks a seed for the state of the cluster and its slots. A seed that is cut off may know former
/// masters; it reports that the cluster is down.
fn query_seed(seed: &ServerAddress, end: Instant) -> Result<(Stream, SlotMap), NodeFailure> {
    let (mut connection, seed) = seed.open(end)?;
    let mut query = |subcommand: &str| {
        let mut command = redis::cmd("CLUSTER");
        command.arg(subcommand);
        seed.query::<Value>(&mut connection, &command, end)
    };
    let info: String = redis::from_redis_value(query("INFO")?).map_err(|_| protocol_error())?;
    match crate::protocol::server_info::info_field(&info, "cluster_state") {
        Some("ok") => {}
        Some(_) => {
            return Err(NodeFailure::ServerError(
                "CLUSTERDOWN the cluster is down".into(),
            ));
        }
        None => return Err(protocol_error()),
    }
    let slots = SlotMap::read(&query("SLOTS")?, seed.host()).ok_or_else(protocol_error)?;
    Ok((connection, slots))
}

impl Connector for ClusterConnector {
    fn connect(&self, _: Option<&Handshake>) -> Result<(Box<dyn Session>, Handshake), NodeFailure> {
        let end = clock::now() + self.connect_timeout;
        let (seed, _, slots) = self.discover(end)?;
        let masters = slots.masters();
        let mut session = ClusterSession {
            template: seed,
            slots,
            members: Vec::new(),
            timeout: self.node_timeout,
            former: Arc::clone(&self.former),
        };
        let mut handshake: Option<Handshake> = None;
        for address in &masters {
            let member = session.master_session(address, end)?;
            let new = session.members[member].handshake.clone();
            match &mut handshake {
                None => handshake = Some(new),
                Some(handshake) => {
                    handshake.others.push(new.run_id);
                    merge_server_info(&mut handshake.server_info, new.server_info);
                    handshake.no_kill = handshake.no_kill.take().or(new.no_kill);
                }
            }
        }
        // A `SlotMap` has at least one master.
        let handshake = handshake.ok_or_else(protocol_error)?;
        Ok((Box::new(session), handshake))
    }

    /// Subscribes on one server: a cluster forwards every message to all of its servers.
    fn with_subscriber(
        &self,
        serve: &mut dyn FnMut(&mut dyn Subscriber) -> Result<(), NodeFailure>,
    ) -> Result<(), NodeFailure> {
        let (_, connection, _) = self.discover(clock::now() + self.connect_timeout)?;
        serve(&mut RedisSubscriber::new(connection, self.node_timeout)?)
    }
}

/// Merges the server info of several masters: the worst value of each field.
fn merge_server_info(merged: &mut ServerInfo, other: ServerInfo) {
    if merged.eviction_risk.is_none() && other.eviction_risk.is_some() {
        merged.eviction_risk = other.eviction_risk;
        merged.maxmemory_policy = other.maxmemory_policy;
    }
    merged.uptime = merged.uptime.min(other.uptime);
    merged.round_trip = merged.round_trip.max(other.round_trip);
    if other.clock_offset.map(ClockReading::min_distance)
        > merged.clock_offset.map(ClockReading::min_distance)
    {
        merged.clock_offset = other.clock_offset;
    }
}

/// Sessions with the masters of one cluster.
struct ClusterSession {
    /// The seed, whose credentials and TLS settings apply to all masters.
    template: ServerAddress,
    slots: SlotMap,
    members: Vec<MasterSession>,
    timeout: Duration,
    former: Arc<FormerClients>,
}

struct MasterSession {
    address: HostPort,
    name: String,
    session: RedisSession,
    handshake: Handshake,
}

/// The requests of a batch for one master, with their indices in the batch.
struct MasterBatch {
    member: usize,
    indexes: Vec<usize>,
    requests: Vec<Request>,
}

impl ClusterSession {
    /// Returns the index of the session with a master; connects if there is none.
    fn master_session(&mut self, address: &HostPort, end: Instant) -> Result<usize, NodeFailure> {
        let known = self
            .members
            .iter()
            .position(|member| member.address == *address);
        if let Some(known) = known {
            return Ok(known);
        }
        let server = self.template.with_host_port(&address.0, address.1);
        let name = server.host_port();
        let prefixed = |failure| discovery::prefix_failure(&name, failure);
        let (connection, server) = server.open(end).map_err(prefixed)?;
        let mut session = RedisSession::new(connection, self.timeout, server.password());
        let killed = self.former.at(address);
        let handshake = session.handshake(&killed, end).map_err(prefixed)?;
        self.former.forget(address, &killed);
        if let Some(failure) = handshake.server_info.rejection(false) {
            return Err(prefixed(failure));
        }
        self.members.push(MasterSession {
            address: address.clone(),
            name,
            session,
            handshake,
        });
        Ok(self.members.len() - 1)
    }

    /// Sends requests to the masters of their slots, then reads and delivers all replies. The
    /// failure of one master does not suppress the replies of the others.
    fn dispatch(
        &mut self,
        requests: &[Request],
        indexes: impl Iterator<Item = usize>,
        end: Instant,
        deliver: &mut dyn FnMut(usize, &MasterSession, Reply),
    ) -> Result<(), NodeFailure> {
        let mut batches: Vec<MasterBatch> = Vec::new();
        for index in indexes {
            let address = self.slots.master(request_slot(&requests[index])).clone();
            let member = self.master_session(&address, end)?;
            let known = batches.iter().position(|batch| batch.member == member);
            let batch = known.unwrap_or_else(|| {
                batches.push(MasterBatch {
                    member,
                    indexes: Vec::new(),
                    requests: Vec::new(),
                });
                batches.len() - 1
            });
            batches[batch].indexes.push(index);
            batches[batch].requests.push(requests[index].clone());
        }
        let mut outcome = Ok(());
        batches.retain(|batch| {
            let member = &mut self.members[batch.member];
            let sent = member.session.write_batch(&batch.requests, end);
            let sent = sent.map_err(|failure| member_failure(&member.name, failure));
            let is_sent = sent.is_ok();
            outcome = std::mem::replace(&mut outcome, Ok(())).and(sent);
            is_sent
        });
        for batch in &batches {
            let MasterBatch {
                indexes, requests, ..
            } = batch;
            let mut replies = Vec::with_capacity(requests.len());
            let member = &mut self.members[batch.member];
            let read = member
                .session
                .read_batch(requests, end, &mut |position, reply| {
                    replies.push((indexes[position], reply));
                });
            for (index, reply) in replies {
                deliver(index, member, reply);
            }
            outcome = outcome.and(read.map_err(|failure| member_failure(&member.name, failure)));
        }
        outcome
    }
}

/// Prefixes the failure of a connected master with its name. `TimedOut` stays as it is, because the
/// worker waits for one reconnect only where a connection has ended, and not where a node is hung.
fn member_failure(name: &str, failure: NodeFailure) -> NodeFailure {
    match failure {
        NodeFailure::TimedOut => NodeFailure::TimedOut,
        failure => discovery::prefix_failure(name, failure),
    }
}

impl Session for ClusterSession {
    fn send_batch(
        &mut self,
        requests: &[Request],
        deliver: &mut dyn FnMut(usize, Reply),
    ) -> Result<(), NodeFailure> {
        let end = clock::now() + self.timeout;
        let mut moved = Vec::new();
        let mut asked = Vec::new();
        let all = 0..requests.len();
        self.dispatch(
            requests,
            all,
            end,
            &mut |index, from, reply| match redirect(&reply, &from.address.0) {
                Some(Redirect::Moved(slot, address)) => moved.push((index, slot, address)),
                Some(Redirect::Ask(address)) => asked.push((index, address)),
                None => deliver(index, reply),
            },
        )?;
        if !moved.is_empty() {
            for (_, slot, address) in &moved {
                self.slots.set_owner(*slot, address);
            }
            let moved = moved.into_iter().map(|(index, ..)| index);
            // A second redirection is delivered as an error; the next attempt follows the new map.
            self.dispatch(requests, moved, end, &mut |index, _, reply| {
                deliver(index, reply)
            })?;
        }
        for (index, address) in asked {
            let member = self.master_session(&address, end)?;
            let member = &mut self.members[member];
            let reply = member.session.send_asking(&requests[index], end);
            deliver(
                index,
                reply.map_err(|failure| member_failure(&member.name, failure))?,
            );
        }
        Ok(())
    }

    fn check_idle(&mut self) -> Result<(), NodeFailure> {
        for member in &mut self.members {
            let checked = member.session.check_idle();
            checked.map_err(|failure| member_failure(&member.name, failure))?;
        }
        Ok(())
    }

    fn ping(&mut self) -> Result<(), NodeFailure> {
        let end = clock::now() + self.timeout;
        for member in &mut self.members {
            let pinged = member.session.ping_by(end);
            pinged.map_err(|failure| member_failure(&member.name, failure))?;
        }
        Ok(())
    }
}

impl Drop for ClusterSession {
    fn drop(&mut self) {
        let ended = self.members.drain(..).map(|member| {
            let MasterSession {
                address, handshake, ..
            } = member;
            (address, (handshake.run_id, handshake.client_id))
        });
        self.former.0.lock().extend(ended);
    }
}

impl FormerClients {
    /// Returns the former connections to a server.
    fn at(&self, address: &HostPort) -> Vec<(String, i64)> {
        let former = self.0.lock();
        let of_server = former.iter().filter(|(server, _)| server == address);
        of_server.map(|(_, client)| client.clone()).collect()
    }

    /// Forgets connections that are killed, or died with their server.
    fn forget(&self, address: &HostPort, killed: &[(String, i64)]) {
        let is_open =
            |(server, client): &(HostPort, _)| server != address || !killed.contains(client);
        self.0.lock().retain(is_open);
    }
}

/// A redirection by a server.
enum Redirect {
    /// The slot has this owner from now on.
    Moved(u16, HostPort),
    /// The slot is migrating to this server, which serves this key already.
    Ask(HostPort),
}

/// Returns the redirection in a reply of the server at `host`. The server ran nothing of the
/// request.
fn redirect(reply: &Reply, host: &str) -> Option<Redirect> {
    let Reply::Failed(NodeFailure::ServerError(text)) = reply else {
        return None;
    };
    if let Some(target) = text.strip_prefix("MOVED ") {
        let (slot, address) = parse_redirect(target, host)?;
        return Some(Redirect::Moved(slot, address));
    }
    let (_, address) = parse_redirect(text.strip_prefix("ASK ")?, host)?;
    Some(Redirect::Ask(address))
}

/// Returns the slot of a request's first key. The server refuses keys of different slots.
fn request_slot(request: &Request) -> u16 {
    let key = request.lease.key();
    match request.op {
        Op::WakeListener => hash_slot(key.as_str()),
        _ => hash_slot(&key.token_key().to_string()),
    }
}
