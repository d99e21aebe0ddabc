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
use crate::error::{Cause, Error};
use crate::protocol::hash_slot::slot_of;
use crate::protocol::reply::Answer;
use crate::protocol::request::{Request, Verb};
use crate::protocol::server_error::out_of_step;
use crate::protocol::server_info::{About, ClockReading};
use crate::time::clock;
use crate::transport::node::address::{Server, host_and_port};
#[cfg(any(feature = "sentinel", feature = "cluster"))]
use crate::transport::node::discovery;
use crate::transport::node::session::RedisSession;
use crate::transport::node::slot_map::{Place, Slots, read_target};
use crate::transport::node::stream::Wire;
use crate::transport::node::subscriber::RedisEar;
use crate::transport::node::traits::{Connector, Ear, Greeting, Session};

/// Where a seed listens, if its address does not say.
const PORT: u16 = 6379;

/// The way to a cluster.
pub(crate) struct Cluster {
    seeds: Vec<Server>,
    name: String,
    connect_timeout: Duration,
    node_timeout: Duration,
    former: Arc<Former>,
}

/// The connections that sessions had which are over, until it is certain that nothing of them runs any more: of each where it
/// was, the server's run id, and its number there. One session has many, and not all from its beginning.
#[derive(Default)]
struct Former(Mutex<Vec<(Place, (String, i64))>>);

impl Cluster {
    /// # Errors
    /// `InvalidConfig` that names the address without its credentials.
    pub(crate) fn new(seeds: &[Address], settings: &Settings) -> Result<Cluster, Error> {
        let read = |seed| Server::read_guide(seed, settings, PORT);
        let seeds = seeds.iter().map(read).collect::<Result<Vec<Server>, _>>()?;
        let first = seeds.first().map(Server::place);
        let name = format!("cluster:{}", first.unwrap_or_default());
        let with_login = |seed: Server| seed.with_login(settings, &name);
        Ok(Cluster {
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
    fn survey(&self, end: Instant) -> Result<(Server, Wire, Slots), Cause> {
        let mut cause = Cause::TimedOut;
        for (index, seed) in self.seeds.iter().enumerate() {
            let shares = (self.seeds.len() - index + 1) as u32;
            let now = clock::now();
            let turn = now + end.saturating_duration_since(now) / shares;
            match ask_seed(seed, turn) {
                Ok((connection, slots)) => return Ok((seed.clone(), connection, slots)),
                Err(new) => {
                    let new = discovery::of(&seed.place(), new);
                    debug!("{}: {new}", self.name());
                    // Wrong credentials do not pass by waiting, so they are told rather than others.
                    if !matches!(cause, Cause::Denied(_)) {
                        cause = new;
                    }
                }
            }
        }
        Err(cause)
    }
}

impl Server {
    fn host(&self) -> &str {
        host_and_port(&self.info).map_or("", |(host, _)| host)
    }
}

/// Asks one server for the cluster. One that is cut off from it may know masters that are none any more, and says that
/// the cluster is down.
fn ask_seed(seed: &Server, end: Instant) -> Result<(Wire, Slots), Cause> {
    let (mut connection, seed) = seed.open(end)?;
    let mut ask = |what: &str| {
        let mut question = redis::cmd("CLUSTER");
        question.arg(what);
        seed.ask::<Value>(&mut connection, &question, end)
    };
    let info: String = redis::from_redis_value(ask("INFO")?).map_err(|_| out_of_step())?;
    match crate::protocol::server_info::field(&info, "cluster_state") {
        Some("ok") => {}
        Some(_) => return Err(Cause::Server("CLUSTERDOWN the cluster is down".into())),
        None => return Err(out_of_step()),
    }
    let slots = Slots::read(&ask("SLOTS")?, seed.host()).ok_or_else(out_of_step)?;
    Ok((connection, slots))
}

impl Connector for Cluster {
    fn connect(&self, _: Option<&Greeting>) -> Result<(Box<dyn Session>, Greeting), Cause> {
        let end = clock::now() + self.connect_timeout;
        let (seed, _, slots) = self.survey(end)?;
        let masters = slots.masters();
        let mut session = ClusterSession {
            like: seed,
            slots,
            members: Vec::new(),
            timeout: self.node_timeout,
            former: Arc::clone(&self.former),
        };
        let mut greeting: Option<Greeting> = None;
        for place in &masters {
            let member = session.member(place, end)?;
            let new = session.members[member].greeting.clone();
            match &mut greeting {
                None => greeting = Some(new),
                Some(greeting) => {
                    greeting.others.push(new.run_id);
                    add(&mut greeting.about, new.about);
                    greeting.no_kill = greeting.no_kill.take().or(new.no_kill);
                }
            }
        }
        // `Slots` always has a master.
        let greeting = greeting.ok_or_else(out_of_step)?;
        Ok((Box::new(session), greeting))
    }

    /// What is published anywhere in a cluster is heard everywhere in it.
    fn listen(
        &self,
        serve: &mut dyn FnMut(&mut dyn Ear) -> Result<(), Cause>,
    ) -> Result<(), Cause> {
        let (_, connection, _) = self.survey(clock::now() + self.connect_timeout)?;
        serve(&mut RedisEar::new(connection, self.node_timeout)?)
    }
}

/// What several servers say of themselves together: of each the worst. The cluster is known by the run of its first one, and is
/// a master as all of them are.
fn add(about: &mut About, other: About) {
    if about.evicts.is_none() && other.evicts.is_some() {
        about.evicts = other.evicts;
        about.policy = other.policy;
    }
    about.uptime = about.uptime.min(other.uptime);
    about.round_trip = about.round_trip.max(other.round_trip);
    if other.clock.map(ClockReading::least) > about.clock.map(ClockReading::least) {
        about.clock = other.clock;
    }
}

/// Open connections to masters of one cluster.
struct ClusterSession {
    /// A server of it that the others are like.
    like: Server,
    slots: Slots,
    members: Vec<Member>,
    timeout: Duration,
    former: Arc<Former>,
}

struct Member {
    place: Place,
    name: String,
    session: RedisSession,
    greeting: Greeting,
}

/// The requests of a batch that one member has the slots for, with their numbers in it.
struct Share {
    member: usize,
    indexes: Vec<usize>,
    requests: Vec<Request>,
}

impl ClusterSession {
    /// The number of the member there, which is connected to if it is new.
    fn member(&mut self, place: &Place, end: Instant) -> Result<usize, Cause> {
        let known = self.members.iter().position(|m| m.place == *place);
        if let Some(known) = known {
            return Ok(known);
        }
        let server = self.like.at(&place.0, place.1);
        let name = server.place();
        let cause = |cause| discovery::of(&name, cause);
        let (connection, server) = server.open(end).map_err(cause)?;
        let mut session = RedisSession::new(connection, self.timeout, server.password());
        let killed = self.former.at(place);
        let greeting = session.greet(&killed, end).map_err(cause)?;
        self.former.forget(place, &killed);
        if let Some(fault) = greeting.about.fault(false) {
            return Err(cause(fault));
        }
        self.members.push(Member {
            place: place.clone(),
            name,
            session,
            greeting,
        });
        Ok(self.members.len() - 1)
    }

    /// Sends requests to who has their slots, all at once, and hands out the answers with the member they come from. One that
    /// fails keeps the answers of the others from nobody.
    fn serve(
        &mut self,
        requests: &[Request],
        indexes: impl Iterator<Item = usize>,
        end: Instant,
        answer: &mut dyn FnMut(usize, &Member, Answer),
    ) -> Result<(), Cause> {
        let mut shares: Vec<Share> = Vec::new();
        for index in indexes {
            let place = self.slots.master(slot(&requests[index])).clone();
            let member = self.member(&place, end)?;
            let known = shares.iter().position(|share| share.member == member);
            let share = known.unwrap_or_else(|| {
                shares.push(Share {
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
            let sent = sent.map_err(|cause| discovery::of(&member.name, cause));
            let is_sent = sent.is_ok();
            done = std::mem::replace(&mut done, Ok(())).and(sent);
            is_sent
        });
        for share in &shares {
            let Share {
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
            done = done.and(read.map_err(|cause| discovery::of(&member.name, cause)));
        }
        done
    }
}

impl Session for ClusterSession {
    fn exchange(
        &mut self,
        requests: &[Request],
        answer: &mut dyn FnMut(usize, Answer),
    ) -> Result<(), Cause> {
        let end = clock::now() + self.timeout;
        let mut moved = Vec::new();
        let mut aside = Vec::new();
        let all = 0..requests.len();
        self.serve(
            requests,
            all,
            end,
            &mut |index, from, read| match redirect(&read, &from.place.0) {
                Some(Redirect::Moved(slot, place)) => moved.push((index, slot, place)),
                Some(Redirect::Ask(place)) => aside.push((index, place)),
                None => answer(index, read),
            },
        )?;
        if !moved.is_empty() {
            for (_, slot, place) in &moved {
                self.slots.learn(*slot, place);
            }
            let moved = moved.into_iter().map(|(index, ..)| index);
            // Who is sent on once more is told so: the next attempt is as good.
            self.serve(requests, moved, end, &mut |index, _, read| {
                answer(index, read)
            })?;
        }
        for (index, place) in aside {
            let member = self.member(&place, end)?;
            let member = &mut self.members[member];
            let read = member.session.ask_aside(&requests[index], end);
            answer(
                index,
                read.map_err(|cause| discovery::of(&member.name, cause))?,
            );
        }
        Ok(())
    }

    fn check_idle(&mut self) -> Result<(), Cause> {
        for member in &mut self.members {
            let checked = member.session.check_idle();
            checked.map_err(|cause| discovery::of(&member.name, cause))?;
        }
        Ok(())
    }

    fn ping(&mut self) -> Result<(), Cause> {
        let end = clock::now() + self.timeout;
        for member in &mut self.members {
            let pinged = member.session.ping_by(end);
            pinged.map_err(|cause| discovery::of(&member.name, cause))?;
        }
        Ok(())
    }
}

impl Drop for ClusterSession {
    fn drop(&mut self) {
        let ended = self.members.drain(..).map(|member| {
            let Member {
                place, greeting, ..
            } = member;
            (place, (greeting.run_id, greeting.client))
        });
        self.former.0.lock().extend(ended);
    }
}

impl Former {
    fn at(&self, place: &Place) -> Vec<(String, i64)> {
        let former = self.0.lock();
        let there = former.iter().filter(|(there, _)| there == place);
        there.map(|(_, client)| client.clone()).collect()
    }

    /// Those are killed by now, or died with the server. There may be others since.
    fn forget(&self, place: &Place, killed: &[(String, i64)]) {
        let is_left = |(there, client): &(Place, _)| there != place || !killed.contains(client);
        self.0.lock().retain(is_left);
    }
}

/// Where a server sends us.
enum Redirect {
    /// The slot is there from now on.
    Moved(u16, Place),
    /// The slot is on its way there, and this key is there already, or is to be made there.
    Ask(Place),
}

/// Whether an answer sends us somewhere else, as seen from `host`. Then the server has done nothing.
fn redirect(answer: &Answer, host: &str) -> Option<Redirect> {
    let Answer::Fault(Cause::Server(words)) = answer else {
        return None;
    };
    if let Some(words) = words.strip_prefix("MOVED ") {
        let (slot, place) = read_target(words, host)?;
        return Some(Redirect::Moved(slot, place));
    }
    let (_, place) = read_target(words.strip_prefix("ASK ")?, host)?;
    Some(Redirect::Ask(place))
}

/// The slot of a request's keys. Of keys that do not share one the server says so. What has no key is for anybody.
fn slot(request: &Request) -> u16 {
    let key = request.lease.key();
    match request.verb {
        Verb::Knock => slot_of(key.wire()),
        _ => slot_of(&key.owner().to_string()),
    }
}
