//! A session with one server: sends batches of requests and reads their replies (S4).
//! `handshake.rs` begins it, `direct.rs` has the direct sends.
//!
//! Nothing is sent twice, except after NOSCRIPT: any other error may follow a request that ran.
//!
//! Tests: `src/tests/store_conformance/`; `tests/it/nodes/hostile.rs`, `network.rs`.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{RedisError, Value};

use crate::error::node_failure::NodeFailure;
use crate::protocol::batch::BatchPlan;
use crate::protocol::command::Command;
#[cfg(feature = "cluster")]
use crate::protocol::reply::Blocker;
use crate::protocol::reply::{ParsedReply, Reply};
use crate::protocol::request::Request;
use crate::protocol::server_error::protocol_error;
use crate::protocol::{encode, reply, server_error};
use crate::time::clock;
use crate::transport::node::stream::Stream;
use crate::transport::node::traits::{DirectIo, Session};

/// On a stream that cannot be polled, a PING precedes the requests after an idle time of at least
/// this many round trips. It then adds at most a sixteenth to the time between two requests.
const PING_SHARE: u32 = 16;

/// An open connection to a server.
pub(crate) struct RedisSession {
    pub(super) stream: Stream,
    pub(super) timeout: Duration,
    /// The password of the login, which no error text may contain.
    pub(super) password: Box<str>,
    /// The timeout that the socket has now, if it was set here.
    socket_timeout: Option<Duration>,
    /// When the last bytes were sent. Only for a stream that cannot be polled.
    last_send: Instant,
    /// When the last round trip ended, and its duration. Only for a stream that cannot be polled.
    last_round_trip: Option<(Instant, Duration)>,
    /// Scratch space for encoding.
    pub(super) cmd: Command,
    pub(super) out: Vec<u8>,
    /// The replies that are expected, in order.
    pub(super) expected: VecDeque<ExpectedReply>,
    /// The failure of a request whose script is still missing after its load.
    pub(super) script_load_failure: Option<NodeFailure>,
    /// The plan of the present batch. Kept for its memory.
    plan: BatchPlan,
}

impl RedisSession {
    /// Creates a session on an open stream, before the handshake.
    pub(crate) fn new(stream: Stream, timeout: Duration, password: &str) -> RedisSession {
        RedisSession {
            stream,
            timeout,
            password: password.into(),
            socket_timeout: None,
            last_send: clock::now(),
            last_round_trip: None,
            cmd: Command::default(),
            out: Vec::new(),
            expected: VecDeque::new(),
            script_load_failure: None,
            plan: BatchPlan::default(),
        }
    }

    /// Sends the encoded bytes; blocks until the socket has accepted them.
    pub(super) fn send(&mut self, end: Instant) -> Result<(), NodeFailure> {
        self.set_socket_timeout(end)?;
        if !self.stream.can_poll() {
            self.last_send = clock::now();
        }
        let sent = self.stream.send(&self.out);
        sent.map_err(|error| self.failure(&error))
    }

    /// Blocks until the next reply.
    pub(super) fn receive(&mut self, end: Instant) -> Result<Value, NodeFailure> {
        let buffered = self.stream.buffered_reply();
        if let Some(reply) = buffered.map_err(|error| self.failure(&error))? {
            return Ok(reply);
        }
        self.set_socket_timeout(end)?;
        let received = self.stream.receive(end);
        received.map_err(|error| self.failure(&error))
    }

    fn failure(&self, error: &RedisError) -> NodeFailure {
        self.stream.failure(error, &self.password)
    }

    /// Sets the socket's timeouts so that the next call blocks little longer than until `end`. A
    /// timeout that differs by at most an eighth of `node_timeout` is kept, to save system calls.
    ///
    /// After `end` at least 1 ms is left, because this thread may have been delayed while the reply
    /// arrived.
    ///
    /// Over TLS the timeout applies to each read: a reply whose bytes keep arriving can block the
    /// worker for longer. Callers see the connection overdue and do not wait for it.
    fn set_socket_timeout(&mut self, end: Instant) -> Result<(), NodeFailure> {
        let left = end
            .saturating_duration_since(clock::now())
            .max(Duration::from_millis(1));
        let slack = self.timeout / 8;
        let fits = |timeout: Duration| timeout <= left + slack && left <= timeout + slack;
        if self.socket_timeout.is_some_and(fits) {
            return Ok(());
        }
        self.stream
            .set_timeouts(left)
            .map_err(|error| server_error::failure(&error))?;
        self.socket_timeout = Some(left);
        Ok(())
    }
}

impl RedisSession {
    /// Appends the call of the group with this first request.
    fn encode_group(&mut self, requests: &[Arc<Request>], plan: &BatchPlan, first: usize) {
        let mut joined = plan
            .group_members(first)
            .skip(1)
            .map(|index| &*requests[index])
            .peekable();
        match &requests[first].encoded {
            Some(bytes) if joined.peek().is_none() => self.out.extend_from_slice(bytes),
            _ => _ = encode::encode_request(&requests[first], joined, &mut self.cmd, &mut self.out),
        }
    }

    /// Handles a reply to the requests of `group`, which share a call. Delivers it to them, or
    /// encodes a second command into `out` and expects its replies. The caller sends `out`.
    ///
    /// # Errors
    /// - The reply does not belong to the requests.
    pub(super) fn handle_reply<'a>(
        &mut self,
        expected: ExpectedReply,
        reply: &Value,
        mut group: impl Iterator<Item = (u64, &'a Request)> + Clone,
        deliver: &mut dyn FnMut(u64, Reply),
    ) -> Result<(), NodeFailure> {
        match expected {
            ExpectedReply::ScriptLoad => {
                self.script_load_failure = Some(server_error::script_load_failure(reply));
                return Ok(());
            }
            ExpectedReply::RemainingTtl(id) => {
                deliver(id, reply::parse_pttl(reply).ok_or_else(protocol_error)?);
                return Ok(());
            }
            ExpectedReply::Owner(id) => {
                match reply::parse_blocking_holder(reply).map_err(|()| protocol_error())? {
                    Some(held) => deliver(id, held),
                    None => {
                        let (_, request) = group.next().ok_or_else(protocol_error)?;
                        self.ask_remaining_ttl(id, request);
                    }
                }
                return Ok(());
            }
            ExpectedReply::Request(_) | ExpectedReply::Resent(_) => {}
        }
        let is_first = matches!(expected, ExpectedReply::Request(_));
        for (position, (id, request)) in group.clone().enumerate() {
            match reply::parse_reply(request, position, reply) {
                ParsedReply::Reply(parsed) => deliver(id, parsed),
                ParsedReply::RefusedAskTtl if is_first && request.wants_owner => {
                    encode::encode_inspect(request, &mut self.cmd, &mut self.out);
                    self.expected.push_back(ExpectedReply::Owner(id));
                }
                ParsedReply::RefusedAskTtl if is_first => self.ask_remaining_ttl(id, request),
                ParsedReply::ScriptMissing if is_first => {
                    let (first, leader) = group.next().ok_or_else(protocol_error)?;
                    let joined = group.map(|(_, request)| request);
                    let (cmd, out) = (&mut self.cmd, &mut self.out);
                    encode::encode_with_script_load(leader, joined, cmd, out);
                    self.expected.push_back(ExpectedReply::ScriptLoad);
                    self.expected.push_back(ExpectedReply::Resent(first));
                    return Ok(());
                }
                ParsedReply::ScriptMissing => {
                    let failure = self.script_load_failure.clone();
                    deliver(id, Reply::Failed(failure.unwrap_or_else(protocol_error)));
                }
                ParsedReply::RefusedAskTtl | ParsedReply::ProtocolError => {
                    return Err(protocol_error());
                }
            }
        }
        Ok(())
    }

    /// Encodes `PTTL` of the key that refused a request, and expects its reply.
    fn ask_remaining_ttl(&mut self, id: u64, request: &Request) {
        encode::encode_pttl(request, &mut self.cmd, &mut self.out);
        self.expected.push_back(ExpectedReply::RemainingTtl(id));
    }
}

impl RedisSession {
    /// Sends a batch. [`read_batch`](RedisSession::read_batch) reads its replies.
    pub(crate) fn write_batch(
        &mut self,
        requests: &[Arc<Request>],
        end: Instant,
    ) -> Result<(), NodeFailure> {
        let mut plan = std::mem::take(&mut self.plan);
        plan.plan(requests);
        self.out.clear();
        debug_assert!(self.expected.is_empty());
        for first in plan.group_leaders() {
            self.encode_group(requests, &plan, first);
            self.expected
                .push_back(ExpectedReply::Request(first as u64));
        }
        self.plan = plan;
        self.send(end)
    }

    /// Reads the replies to the batch that was sent and delivers them.
    pub(crate) fn read_batch(
        &mut self,
        requests: &[Arc<Request>],
        end: Instant,
        deliver: &mut dyn FnMut(usize, Reply),
    ) -> Result<(), NodeFailure> {
        let plan = std::mem::take(&mut self.plan);
        self.out.clear();
        while let Some(expected) = self.expected.pop_front() {
            // The second commands are sent together, behind the last first reply.
            if !matches!(expected, ExpectedReply::Request(_)) && !self.out.is_empty() {
                self.send(end)?;
                self.out.clear();
            }
            let reply = self.receive(end)?;
            let group = expected.id().into_iter().flat_map(|first| {
                let members = plan.group_members(first as usize);
                members.map(|index| (index as u64, &*requests[index]))
            });
            self.handle_reply(expected, &reply, group, &mut |id, reply| {
                deliver(id as usize, reply);
            })?;
        }
        self.plan = plan;
        self.record_round_trip();
        Ok(())
    }

    /// Sends one request with ASKING to the master that imports its slot, and returns its reply.
    #[cfg(feature = "cluster")]
    pub(crate) fn send_asking(
        &mut self,
        request: &Request,
        end: Instant,
    ) -> Result<Reply, NodeFailure> {
        self.out.clear();
        let (cmd, out) = (&mut self.cmd, &mut self.out);
        let mut call = Vec::new();
        let script = encode::encode_request(request, std::iter::empty(), cmd, &mut call);
        // The script is loaded first, because ASKING holds for one command and allows no second
        // try.
        if let Some(script) = script {
            encode::encode_script_load(script, out);
        }
        redis::cmd("ASKING").write_packed_command(out);
        out.append(&mut call);
        self.send(end)?;
        for _ in 0..1 + usize::from(script.is_some()) {
            self.receive(end)?;
        }
        let reply = self.receive(end)?;
        match reply::parse_reply(request, 0, &reply) {
            ParsedReply::Reply(reply) => Ok(reply),
            // PTTL would need another ASKING; an unknown remaining time does as well.
            ParsedReply::RefusedAskTtl => Ok(Reply::Held(Blocker::Unknown, None, None)),
            ParsedReply::ScriptMissing => Ok(Reply::Failed(NodeFailure::ServerError(
                "NOSCRIPT after SCRIPT LOAD".into(),
            ))),
            ParsedReply::ProtocolError => Err(protocol_error()),
        }
    }

    /// Sends PING and blocks for its reply until `end`.
    ///
    /// # Errors
    /// - The connection fails, `end` passes, or the reply belongs to another command.
    pub(crate) fn ping_by(&mut self, end: Instant) -> Result<(), NodeFailure> {
        self.out.clear();
        redis::cmd("PING").write_packed_command(&mut self.out);
        self.send(end)?;
        match self.receive(end)? {
            Value::SimpleString(pong) if pong == "PONG" => {}
            Value::ServerError(_) => {} // PING denied: the server is alive
            _ => return Err(protocol_error()),
        }
        self.record_round_trip();
        Ok(())
    }

    /// Records the end of a round trip, for `may_ping_first`.
    pub(super) fn record_round_trip(&mut self) {
        if !self.stream.can_poll() {
            let now = clock::now();
            self.last_round_trip = Some((now, now.saturating_duration_since(self.last_send)));
        }
    }

    /// Returns whether a PING takes only a small part of the time since the last round trip.
    fn may_ping_first(&self) -> bool {
        self.last_round_trip.is_some_and(|(end, round_trip)| {
            clock::now().saturating_duration_since(end) >= PING_SHARE * round_trip
        })
    }
}

impl Session for RedisSession {
    fn send_batch(
        &mut self,
        requests: &[Arc<Request>],
        deliver: &mut dyn FnMut(usize, Reply),
    ) -> Result<(), NodeFailure> {
        let end = clock::now() + self.timeout;
        self.write_batch(requests, end)?;
        self.read_batch(requests, end, deliver)
    }

    fn check_idle(&mut self) -> Result<(), NodeFailure> {
        debug_assert!(self.expected.is_empty());
        match self.stream.check_idle() {
            Ok(true) => Ok(()),
            // Over TLS the socket belongs to `redis` and cannot be polled.
            Ok(false) if self.may_ping_first() => self.ping(),
            Ok(false) => Ok(()),
            Err(error) if error.kind() == ErrorKind::InvalidData => Err(protocol_error()),
            Err(error) => Err(server_error::failure(&error.into())),
        }
    }

    fn ping(&mut self) -> Result<(), NodeFailure> {
        self.ping_by(clock::now() + self.timeout)
    }

    fn direct_io(&mut self) -> Option<&mut dyn DirectIo> {
        match self.stream.can_poll() {
            true => Some(self),
            false => None,
        }
    }
}

/// A reply that is still expected. The id is the index of a group's first request in a batch, or
/// the number of a direct send.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ExpectedReply {
    /// The first reply to the request with this id.
    Request(u64),
    /// The reply to PTTL, sent after a refused SET.
    RemainingTtl(u64),
    /// The reply to `Inspect`, sent after a refused SET whose caller wants the owner label.
    Owner(u64),
    /// The reply to SCRIPT LOAD, sent after NOSCRIPT.
    ScriptLoad,
    /// The reply to the request with this id, resent after SCRIPT LOAD.
    Resent(u64),
}

impl ExpectedReply {
    /// Returns the id of the request; `None` for the load of a script.
    pub(super) fn id(self) -> Option<u64> {
        match self {
            ExpectedReply::Request(id)
            | ExpectedReply::RemainingTtl(id)
            | ExpectedReply::Owner(id)
            | ExpectedReply::Resent(id) => Some(id),
            ExpectedReply::ScriptLoad => None,
        }
    }
}
