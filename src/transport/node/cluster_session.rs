//! A session with a cluster: sends each request to the master that owns its slot (S4).
//!
//! The cluster client of `redis` is not used. Without retries it does not follow a moved slot, and
//! its retries resend requests that a broken connection may have run. Here a request is sent twice
//! only if the server ran nothing of it: after NOSCRIPT, and once to the target of MOVED or ASK.
//!
//! Tests: `tests/it/nodes/clusters.rs`; beside `slot_map.rs`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::sync::primitives::Mutex;

use crate::error::node_failure::NodeFailure;
use crate::protocol::hash_slot::hash_slot;
use crate::protocol::reply::Reply;
use crate::protocol::request::{Op, Request};
use crate::time::clock;
use crate::transport::node::address::ServerAddress;
use crate::transport::node::discovery;
use crate::transport::node::session::RedisSession;
use crate::transport::node::slot_map::{HostPort, SlotMap, parse_redirect};
use crate::transport::node::traits::{Handshake, Session};

/// The connections of closed sessions that are not known to be killed: server address, run id and
/// client id of each.
#[derive(Default)]
pub(super) struct FormerClients(Mutex<Vec<(HostPort, (String, i64))>>);

/// Sessions with the masters of one cluster.
pub(super) struct ClusterSession {
    /// The seed, whose credentials and TLS settings apply to all masters.
    pub(super) template: ServerAddress,
    pub(super) slots: SlotMap,
    pub(super) members: Vec<MasterSession>,
    pub(super) timeout: Duration,
    pub(super) former: Arc<FormerClients>,
}

pub(super) struct MasterSession {
    address: HostPort,
    name: String,
    session: RedisSession,
    pub(super) handshake: Handshake,
}

/// The requests of a batch for one master, with their indices in the batch.
struct MasterBatch {
    member: usize,
    indexes: Vec<usize>,
    requests: Vec<Arc<Request>>,
}

impl ClusterSession {
    /// Returns the index of the session with a master; connects if there is none.
    pub(super) fn master_session(
        &mut self,
        address: &HostPort,
        end: Instant,
    ) -> Result<usize, NodeFailure> {
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
        requests: &[Arc<Request>],
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
        requests: &[Arc<Request>],
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
