//! A cluster as one node: a connection to each of its masters, and each request to the one that has its slot.
//!
//! We do not use what `redis` has for this: without retries it neither follows a slot that moves nor learns of it, in
//! pipelines not even with them; and its retries send again what a broken connection may have carried out. Here nothing is
//! sent twice but what a server says it has not done: after NOSCRIPT, and to where MOVED and ASK point, once.

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

/// Where a seed listens, if its address does not say.
const PORT: u16 = 6379;

/// The way to a cluster.
pub(crate) struct ClusterConnector {
    seeds: Vec<ServerAddress>,
    name: String,
    connect_timeout: Duration,
    node_timeout: Duration,
    former: Arc<FormerClients>,
}

/// The connections that sessions had which are over, until it is certain that nothing of them runs any more: of each where it
/// was, the server's run id, and its number there. One session has many, and not all from its beginning.
#[derive(Default)]
struct FormerClients(Mutex<Vec<(HostPort, (String, i64))>>);

impl ClusterConnector {
    /// # Errors
    /// `InvalidConfig` that names the address without its credentials.
    pub(crate) fn new(seeds: &[Address], settings: &Settings) -> Result<ClusterConnector, Error> {
        let read = |seed| ServerAddress::from_discovery_address(seed, settings, PORT);
        let seeds = seeds
            .iter()
            .map(read)
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

    /// The node's.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A connection to the first seed that finds the cluster in order, and who has which slot. Each seed has an equal share
    /// of what is left until `end`, and one more is left for the masters.
    fn discover(&self, end: Instant) -> Result<(ServerAddress, Stream, SlotMap), NodeFailure> {
        let mut cause = NodeFailure::TimedOut;
        for (index, seed) in self.seeds.iter().enumerate() {
            let shares = (self.seeds.len() - index + 1) as u32;
            let now = clock::now();
            let turn = now + end.saturating_duration_since(now) / shares;
            match query_seed(seed, turn) {
                Ok((connection, slots)) => return Ok((seed.clone(), connection, slots)),
                Err(new) => {
                    let new = discovery::prefix_failure(&seed.host_port(), new);
                    debug!("{}: {new}", self.name());
                    // Wrong credentials do not pass by waiting, so they are told rather than others.
                    if !matches!(cause, NodeFailure::AccessDenied(_)) {
                        cause = new;
                    }
                }
            }
        }
        Err(cause)
    }
}

impl ServerAddress {
    fn host(&self) -> &str {
        host_and_port(&self.info).map_or("", |(host, _)| host)
    }
}

/// Asks one server for the cluster. One that is cut off from it may know masters that are none any more, and says that
/// the cluster is down.
fn query_seed(seed: &ServerAddress, end: Instant) -> Result<(Stream, SlotMap), NodeFailure> {
    let (mut connection, seed) = seed.open(end)?;
    let mut ask = |what: &str| {
        let mut question = redis::cmd("CLUSTER");
        question.arg(what);
        seed.query::<Value>(&mut connection, &question, end)
    };
    let info: String = redis::from_redis_value(ask("INFO")?).map_err(|_| protocol_error())?;
    match crate::protocol::server_info::info_field(&info, "cluster_state") {
        Some("ok") => {}
        Some(_) => {
            return Err(NodeFailure::ServerError(
                "CLUSTERDOWN the cluster is down".into(),
            ));
        }
        None => return Err(protocol_error()),
    }
    let slots = SlotMap::read(&ask("SLOTS")?, seed.host()).ok_or_else(protocol_error)?;
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
        let mut greeting: Option<Handshake> = None;
        for place in &masters {
            let member = session.master_session(place, end)?;
            let new = session.members[member].greeting.clone();
            match &mut greeting {
                None => greeting = Some(new),
                Some(greeting) => {
                    greeting.others.push(new.run_id);
                    merge_server_info(&mut greeting.server_info, new.server_info);
                    greeting.no_kill = greeting.no_kill.take().or(new.no_kill);
                }
            }
        }
        // `Slots` always has a master.
        let greeting = greeting.ok_or_else(protocol_error)?;
        Ok((Box::new(session), greeting))
    }

    /// What is published anywhere in a cluster is heard everywhere in it.
    fn with_subscriber(
        &self,
        serve: &mut dyn FnMut(&mut dyn Subscriber) -> Result<(), NodeFailure>,
    ) -> Result<(), NodeFailure> {
        let (_, connection, _) = self.discover(clock::now() + self.connect_timeout)?;
        serve(&mut RedisSubscriber::new(connection, self.node_timeout)?)
    }
}

/// What several servers say of themselves together: of each the worst. The cluster is known by the run of its first one, and is
/// a master as all of them are.
fn merge_server_info(about: &mut ServerInfo, other: ServerInfo) {
    if about.eviction_risk.is_none() && other.eviction_risk.is_some() {
        about.eviction_risk = other.eviction_risk;
        about.maxmemory_policy = other.maxmemory_policy;
    }
    about.uptime = about.uptime.min(other.uptime);
    about.round_trip = about.round_trip.max(other.round_trip);
    if other.clock_offset.map(ClockReading::least) > about.clock_offset.map(ClockReading::least) {
        about.clock_offset = other.clock_offset;
    }
}

/// Open connections to masters of one cluster.
struct ClusterSession {
    /// A server of it that the others are like.
    template: ServerAddress,
    slots: SlotMap,
    members: Vec<MasterSession>,
    timeout: Duration,
    former: Arc<FormerClients>,
}

struct MasterSession {
    place: HostPort,
    name: String,
    session: RedisSession,
    greeting: Handshake,
}

/// The requests of a batch that one member has the slots for, with their numbers in it.
struct MasterBatch {
    member: usize,
    indexes: Vec<usize>,
    requests: Vec<Request>,
}

impl ClusterSession {
    /// The number of the member there, which is connected to if it is new.
    fn master_session(&mut self, place: &HostPort, end: Instant) -> Result<usize, NodeFailure> {
        let known = self.members.iter().position(|m| m.place == *place);
        if let Some(known) = known {
            return Ok(known);
        }
        let server = self.template.with_host_port(&place.0, place.1);
        let name = server.host_port();
        let cause = |cause| discovery::prefix_failure(&name, cause);
        let (connection, server) = server.open(end).map_err(cause)?;
        let mut session = RedisSession::new(connection, self.timeout, server.password());
        let killed = self.former.at(place);
        let greeting = session.handshake(&killed, end).map_err(cause)?;
        self.former.forget(place, &killed);
        if let Some(fault) = greeting.server_info.rejection(false) {
            return Err(cause(fault));
        }
        self.members.push(MasterSession {
            place: place.clone(),
            name,
            session,
            greeting,
        });
        Ok(self.members.len() - 1)
    }

    /// Sends requests to who has their slots, all at once, and hands out the answers with the member they come from. One that
    /// fails keeps the answers of the others from nobody.
    fn dispatch(
        &mut self,
        requests: &[Request],
        indexes: impl Iterator<Item = usize>,
        end: Instant,
        answer: &mut dyn FnMut(usize, &MasterSession, Reply),
    ) -> Result<(), NodeFailure> {
        let mut shares: Vec<MasterBatch> = Vec::new();
        for index in indexes {
            let place = self.slots.master(request_slot(&requests[index])).clone();
            let member = self.master_session(&place, end)?;
            let known = shares.iter().position(|share| share.member == member);
            let share = known.unwrap_or_else(|| {
                shares.push(MasterBatch {
                    member,
                    indexes: Vec::new(),
                    requests: Vec::new(),
                });
                shares.len() - 1
            });
            shares[share].indexes.push(index);
            shares[share].requests.push(requests[index].clone());
        }
        let mut done = Ok(());
        shares.retain(|share| {
            let member = &mut self.members[share.member];
            let sent = member.session.write_batch(&share.requests, end);
            let sent = sent.map_err(|cause| of_member(&member.name, cause));
            let is_sent = sent.is_ok();
            done = std::mem::replace(&mut done, Ok(())).and(sent);
            is_sent
        });
        for share in &shares {
            let MasterBatch {
                indexes, requests, ..
            } = share;
            let mut answers = Vec::with_capacity(requests.len());
            let member = &mut self.members[share.member];
            let read = member
                .session
                .read_batch(requests, end, &mut |place, read| {
                    answers.push((indexes[place], read));
                });
            for (index, read) in answers {
                answer(index, member, read);
            }
            done = done.and(read.map_err(|cause| of_member(&member.name, cause)));
        }
        done
    }
}

/// A cause of a member that is connected, told as the cluster's. That it does not answer stays what it is: the lane is to know
/// it, since such a node is not waited for as one is whose connection has ended.
fn of_member(name: &str, cause: NodeFailure) -> NodeFailure {
    match cause {
        NodeFailure::TimedOut => NodeFailure::TimedOut,
        cause => discovery::prefix_failure(name, cause),
    }
}

impl Session for ClusterSession {
    fn send_batch(
        &mut self,
        requests: &[Request],
        answer: &mut dyn FnMut(usize, Reply),
    ) -> Result<(), NodeFailure> {
        let end = clock::now() + self.timeout;
        let mut moved = Vec::new();
        let mut aside = Vec::new();
        let all = 0..requests.len();
        self.dispatch(requests, all, end, &mut |index, from, read| match redirect(
            &read,
            &from.place.0,
        ) {
            Some(Redirect::Moved(slot, place)) => moved.push((index, slot, place)),
            Some(Redirect::Ask(place)) => aside.push((index, place)),
            None => answer(index, read),
        })?;
        if !moved.is_empty() {
            for (_, slot, place) in &moved {
                self.slots.set_owner(*slot, place);
            }
            let moved = moved.into_iter().map(|(index, ..)| index);
            // Who is sent on once more is told so: the next attempt is as good.
            self.dispatch(requests, moved, end, &mut |index, _, read| {
                answer(index, read)
            })?;
        }
        for (index, place) in aside {
            let member = self.master_session(&place, end)?;
            let member = &mut self.members[member];
            let read = member.session.send_asking(&requests[index], end);
            answer(index, read.map_err(|cause| of_member(&member.name, cause))?);
        }
        Ok(())
    }

    fn check_idle(&mut self) -> Result<(), NodeFailure> {
        for member in &mut self.members {
            let checked = member.session.check_idle();
            checked.map_err(|cause| of_member(&member.name, cause))?;
        }
        Ok(())
    }

    fn ping(&mut self) -> Result<(), NodeFailure> {
        let end = clock::now() + self.timeout;
        for member in &mut self.members {
            let pinged = member.session.ping_by(end);
            pinged.map_err(|cause| of_member(&member.name, cause))?;
        }
        Ok(())
    }
}

impl Drop for ClusterSession {
    fn drop(&mut self) {
        let ended = self.members.drain(..).map(|member| {
            let MasterSession {
                place, greeting, ..
            } = member;
            (place, (greeting.run_id, greeting.client_id))
        });
        self.former.0.lock().extend(ended);
    }
}

impl FormerClients {
    fn at(&self, place: &HostPort) -> Vec<(String, i64)> {
        let former = self.0.lock();
        let there = former.iter().filter(|(there, _)| there == place);
        there.map(|(_, client)| client.clone()).collect()
    }

    /// Those are killed by now, or died with the server. There may be others since.
    fn forget(&self, place: &HostPort, killed: &[(String, i64)]) {
        let is_left = |(there, client): &(HostPort, _)| there != place || !killed.contains(client);
        self.0.lock().retain(is_left);
    }
}

/// Where a server sends us.
enum Redirect {
    /// The slot is there from now on.
    Moved(u16, HostPort),
    /// The slot is on its way there, and this key is there already, or is to be made there.
    Ask(HostPort),
}

/// Whether an answer sends us somewhere else, as seen from `host`. Then the server has done nothing.
fn redirect(answer: &Reply, host: &str) -> Option<Redirect> {
    let Reply::Failed(NodeFailure::ServerError(words)) = answer else {
        return None;
    };
    if let Some(words) = words.strip_prefix("MOVED ") {
        let (slot, place) = parse_redirect(words, host)?;
        return Some(Redirect::Moved(slot, place));
    }
    let (_, place) = parse_redirect(words.strip_prefix("ASK ")?, host)?;
    Some(Redirect::Ask(place))
}

/// The slot of a request's keys. Of keys that do not share one the server says so. What has no key is for anybody.
fn request_slot(request: &Request) -> u16 {
    let key = request.lease.key();
    match request.verb {
        Op::WakeListener => hash_slot(key.as_str()),
        _ => hash_slot(&key.token_key().to_string()),
    }
}
