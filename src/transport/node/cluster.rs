//! A cluster as one node: finds its masters by a seed, and connects to each of them.
//!
//! A cluster is up only while all its masters are. `cluster_session.rs` sends the requests.
//!
//! Tests: `tests/it/nodes/clusters.rs`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use log::debug;
use redis::Value;

use crate::config::endpoint::Address;
use crate::config::settings::Settings;
use crate::error::error::Error;
use crate::error::node_failure::NodeFailure;
use crate::protocol::server_error::protocol_error;
use crate::protocol::server_info::{ClockReading, ServerInfo};
use crate::time::clock;
use crate::transport::node::address::{ServerAddress, host_and_port};
use crate::transport::node::cluster_session::{ClusterSession, FormerClients};
use crate::transport::node::discovery;
use crate::transport::node::slot_map::SlotMap;
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
