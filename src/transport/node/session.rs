//! A lane's connection to a server: greeting it, and exchanging batches with it.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use redis::{Cmd, Value};

use crate::error::NodeFailure;
use crate::protocol::batch::BatchPlan;
#[cfg(feature = "cluster")]
use crate::protocol::reply::Blocker;
use crate::protocol::reply::{ParsedReply, Reply};
use crate::protocol::request::Request;
use crate::protocol::server_error::protocol_error;
use crate::protocol::server_info::{ServerInfo, ServerMode};
use crate::protocol::{encode, reply, server_error, server_info};
use crate::time::clock;
use crate::time::deadline::remaining_timeout;
use crate::transport::node::stream;
use crate::transport::node::stream::Stream;
use crate::transport::node::traits::{DirectIo, Handshake, Session};

/// What a node is asked of itself. The first one has its clock.
const INFO_SECTIONS: [&str; 3] = ["server", "replication", "memory"];

/// The number of no connection: to kill it shows whether we have the right to, and changes nothing.
const NOBODY: i64 = i64::MAX;
/// Where the wire cannot be read without blocking, a PING goes before the requests after an idle time of at least this many round
/// trips: so it adds a sixteenth at most to the time between two requests.
const PING_SHARE: u32 = 16;

/// An open connection, greeted.
pub(crate) struct RedisSession {
    pub(crate) stream: Stream,
    pub(crate) timeout: Duration,
    /// What it has logged in with, and what no words of an error may have in them.
    pub(crate) password: Box<str>,
    /// The read time-out that the socket has now, if it was set here.
    socket_timeout: Option<Duration>,
    /// When the last bytes were sent; and when the last round trip ended and how long it took. Only where the wire cannot be read
    /// without blocking.
    sent: Instant,
    used: Option<(Instant, Duration)>,
    pub(crate) cmd: Cmd,
    pub(crate) out: Vec<u8>,
    /// What the next replies are, of requests that were sent by themselves.
    pub(crate) expected: VecDeque<ExpectedReply>,
    /// Why the script is missing of a request that was sent again.
    pub(crate) script_load_failure: Option<NodeFailure>,
    /// How a batch is sent.
    calls: BatchPlan,
    /// The calls of a batch, by their first requests, that take a second question. Empty between batches; kept for its
    /// memory.
    followups: Vec<(usize, Followup)>,
}

/// What is asked again after a batch's first replies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Followup {
    /// How long the lock is held for, after a refusal.
    RemainingTtl,
    /// All of the call, after NOSCRIPT.
    Resend,
}

impl RedisSession {
    /// An open connection; nothing has been said yet.
    pub(crate) fn new(stream: Stream, timeout: Duration, password: &str) -> RedisSession {
        RedisSession {
            stream,
            timeout,
            password: password.into(),
            socket_timeout: None,
            sent: clock::now(),
            used: None,
            cmd: Cmd::new(),
            out: Vec::new(),
            expected: VecDeque::new(),
            script_load_failure: None,
            calls: BatchPlan::default(),
            followups: Vec::new(),
        }
    }

    /// Learns who the server is, loads the scripts that must be there, and kills what there is of our former connections to it (a run id, and
    /// a number within that run).
    pub(crate) fn handshake(
        &mut self,
        former: &[(String, i64)],
        end: Instant,
    ) -> Result<Handshake, NodeFailure> {
        self.out.clear();
        redis::cmd("CLIENT")
            .arg("ID")
            .write_packed_command(&mut self.out);
        // One by one: before Redis 7 it takes one section at a time.
        for section in INFO_SECTIONS {
            redis::cmd("INFO")
                .arg(section)
                .write_packed_command(&mut self.out);
        }
        write_kill(NOBODY, &mut self.out);
        stream::write_client_info(&mut self.out);
        encode::encode_script_loads(&mut self.out);
        let (wall, sent) = (clock::unix_time(), clock::now());
        self.send(end)?;
        let client = self.receive_as::<i64>(end)?;
        let mut info = self.receive_as::<String>(end)?;
        let round_trip = clock::now().saturating_duration_since(sent);
        for _ in &INFO_SECTIONS[1..] {
            info.push('\n');
            info.push_str(&self.receive_as::<String>(end)?);
        }
        let mut no_kill = self.receive_kill(end)?;
        for _ in 0..stream::CLIENT_INFO_REPLIES {
            self.receive(end)?; // before Redis 7.2 it is an error
        }
        let mut about = ServerInfo::parse_info(&info, wall + round_trip / 2, round_trip);
        // It does not have the scripts' commands, and would be told by that.
        if about.mode == Some(ServerMode::Sentinel)
            && let Some(cause) = about.wrong_mode()
        {
            return Err(cause);
        }
        for sum in encode::script_hashes() {
            if self.receive_as::<String>(end)? != sum {
                return Err(protocol_error());
            }
        }
        // It may have been hung until just now, which is no news of its clock or of how far it is.
        if round_trip > self.timeout && remaining_timeout(end) > 2 * round_trip {
            about.refine(&self.ask_about(end)?);
        }
        let run_id = server_info::info_field(&info, "run_id")
            .filter(|run_id| is_sha1_hex(run_id))
            .ok_or_else(|| NodeFailure::ServerError("INFO server names no run_id".into()))?
            .to_owned();
        // A server refuses to kill such a one, and would do so at every connect from now on.
        if client <= 0 {
            return Err(protocol_error());
        }
        // After a restart the numbers begin anew: ours may be somebody else's by now.
        let killed = || former.iter().filter(|(run, _)| *run == run_id);
        if no_kill.is_none() && killed().next().is_some() {
            self.out.clear();
            killed().for_each(|(_, client)| write_kill(*client, &mut self.out));
            self.send(end)?;
            for _ in killed() {
                no_kill = no_kill.or(self.receive_kill(end)?);
            }
        }
        self.note_used();
        let greeting = Handshake {
            run_id,
            others: Vec::new(),
            client_id: client,
            server_info: about,
            no_kill,
        };
        Ok(greeting)
    }

    /// What the server says of itself and its clock, in an exchange of its own.
    fn ask_about(&mut self, end: Instant) -> Result<ServerInfo, NodeFailure> {
        self.out.clear();
        redis::cmd("INFO")
            .arg(INFO_SECTIONS[0])
            .write_packed_command(&mut self.out);
        let (wall, sent) = (clock::unix_time(), clock::now());
        self.send(end)?;
        let info = self.receive_as::<String>(end)?;
        let round_trip = clock::now().saturating_duration_since(sent);
        Ok(ServerInfo::parse_info(
            &info,
            wall + round_trip / 2,
            round_trip,
        ))
    }

    /// Reads the reply to CLIENT KILL. Returns why the server refused it, if it did.
    fn receive_kill(&mut self, end: Instant) -> Result<Option<NodeFailure>, NodeFailure> {
        match self.receive(end)? {
            Value::Int(_) => Ok(None),
            Value::ServerError(error) => Ok(Some(server_error::failure_redacted(
                &error.into(),
                &self.password,
            ))),
            _ => Err(protocol_error()),
        }
    }

    pub(crate) fn send(&mut self, end: Instant) -> Result<(), NodeFailure> {
        self.set_socket_timeout(end)?;
        if !self.stream.can_poll() {
            self.sent = clock::now();
        }
        self.stream
            .send(&self.out)
            .map_err(|error| self.stream.cause(&error, &self.password))
    }

    pub(crate) fn receive(&mut self, end: Instant) -> Result<Value, NodeFailure> {
        self.set_socket_timeout(end)?;
        self.stream
            .receive(end)
            .map_err(|error| self.stream.cause(&error, &self.password))
    }

    fn receive_as<T: redis::FromRedisValue>(&mut self, end: Instant) -> Result<T, NodeFailure> {
        let value = self.receive(end)?;
        let cause = |error| server_error::failure_redacted(&error, &self.password);
        match value {
            Value::ServerError(error) => Err(cause(error.into())),
            value => redis::from_redis_value(value).map_err(|error| cause(error.into())),
        }
    }

    /// Sets the socket's time-outs so that what follows cannot block for long past `end`. To spare system calls
    /// the socket keeps what it has while that is at most an eighth of the node's time-out too long.
    ///
    /// After `end` there is a last moment to read what has come by then: it may be us who were held up.
    ///
    /// Over TLS, where the socket is that of `redis`, the time-out is that of each read: a reply whose bytes keep coming can take
    /// longer, and holds the lane for as long as they come. Callers see that it is overdue and do not wait for it.
    fn set_socket_timeout(&mut self, end: Instant) -> Result<(), NodeFailure> {
        let left = end
            .saturating_duration_since(clock::now())
            .max(Duration::from_millis(1));
        let slack = self.timeout / 8;
        let fits = |armed: Duration| armed <= left + slack && left <= armed + slack;
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
    /// Appends a call, given by its first request.
    fn write(&mut self, requests: &[Request], calls: &BatchPlan, first: usize) {
        let mut joined = calls
            .group_members(first)
            .skip(1)
            .map(|index| &requests[index])
            .peekable();
        match &requests[first].encoded {
            Some(bytes) if joined.peek().is_none() => self.out.extend_from_slice(bytes),
            _ => _ = encode::encode_request(&requests[first], joined, &mut self.cmd, &mut self.out),
        }
    }

    /// Settles what a batch's first replies have left open, completely: before the next batch.
    fn send_followups(
        &mut self,
        requests: &[Request],
        calls: &BatchPlan,
        again: &[(usize, Followup)],
        end: Instant,
        answer: &mut dyn FnMut(usize, Reply),
    ) -> Result<(), NodeFailure> {
        self.out.clear();
        for (first, what) in again {
            match what {
                Followup::RemainingTtl => {
                    encode::encode_pttl(&requests[*first], &mut self.cmd, &mut self.out);
                }
                Followup::Resend => {
                    let joined = calls
                        .group_members(*first)
                        .skip(1)
                        .map(|index| &requests[index]);
                    let (cmd, out) = (&mut self.cmd, &mut self.out);
                    encode::encode_with_script_load(&requests[*first], joined, cmd, out);
                }
            }
        }
        self.send(end)?;
        for (first, what) in again {
            let reply = self.receive(end)?;
            if *what == Followup::RemainingTtl {
                match reply::parse_pttl(&reply) {
                    Some(held) => answer(*first, held),
                    None => return Err(protocol_error()),
                }
                continue;
            }
            let unloaded = server_error::unloaded(&reply);
            let reply = self.receive(end)?;
            for (place, index) in calls.group_members(*first).enumerate() {
                match reply::parse_reply(&requests[index], place, &reply) {
                    ParsedReply::Reply(read) => answer(index, read),
                    ParsedReply::ScriptMissing => answer(index, Reply::Failed(unloaded.clone())),
                    ParsedReply::RefusedAskTtl | ParsedReply::ProtocolError => {
                        return Err(protocol_error());
                    }
                }
            }
        }
        Ok(())
    }
}

impl RedisSession {
    /// Sends a batch, whose answers are then to be read with [`read_batch`](RedisSession::read_batch).
    pub(crate) fn write_batch(
        &mut self,
        requests: &[Request],
        end: Instant,
    ) -> Result<(), NodeFailure> {
        let mut calls = std::mem::take(&mut self.calls);
        calls.plan(requests);
        self.out.clear();
        for first in calls.group_leaders() {
            self.write(requests, &calls, first);
        }
        self.calls = calls;
        self.send(end)
    }

    /// Hands out the answers to the batch that was sent.
    pub(crate) fn read_batch(
        &mut self,
        requests: &[Request],
        end: Instant,
        answer: &mut dyn FnMut(usize, Reply),
    ) -> Result<(), NodeFailure> {
        let calls = std::mem::take(&mut self.calls);
        let mut again = std::mem::take(&mut self.followups);
        for first in calls.group_leaders() {
            let reply = self.receive(end)?;
            for (place, index) in calls.group_members(first).enumerate() {
                match reply::parse_reply(&requests[index], place, &reply) {
                    ParsedReply::Reply(read) => answer(index, read),
                    ParsedReply::RefusedAskTtl => again.push((index, Followup::RemainingTtl)),
                    ParsedReply::ScriptMissing => {
                        again.push((first, Followup::Resend));
                        break;
                    }
                    ParsedReply::ProtocolError => return Err(protocol_error()),
                }
            }
        }
        if !again.is_empty() {
            self.send_followups(requests, &calls, &again, end, answer)?;
        }
        again.clear();
        (self.followups, self.calls) = (again, calls);
        self.note_used();
        Ok(())
    }

    /// Sends one request to where a slot is on its way to, and reads its answer.
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
        // It may not have been there before, and ASKING holds for one command.
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
            ParsedReply::Reply(answer) => Ok(answer),
            // For how long would be one more question aside, and it is told as unknown as well.
            ParsedReply::RefusedAskTtl => Ok(Reply::Held(Blocker::Unknown, None)),
            ParsedReply::ScriptMissing => Ok(Reply::Failed(NodeFailure::ServerError(
                "NOSCRIPT aside".into(),
            ))),
            ParsedReply::ProtocolError => Err(protocol_error()),
        }
    }

    /// # Errors
    /// Also if the reply is another one's, which was not asked for.
    pub(crate) fn ping_by(&mut self, end: Instant) -> Result<(), NodeFailure> {
        self.out.clear();
        redis::cmd("PING").write_packed_command(&mut self.out);
        self.send(end)?;
        match self.receive(end)? {
            Value::SimpleString(pong) if pong == "PONG" => {}
            Value::ServerError(_) => {} // a sign of life, too
            _ => return Err(protocol_error()),
        }
        self.note_used();
        Ok(())
    }

    /// A round trip is over.
    fn note_used(&mut self) {
        if !self.stream.can_poll() {
            let now = clock::now();
            self.used = Some((now, now.saturating_duration_since(self.sent)));
        }
    }

    /// Whether asking for a sign of life takes a small part only of the time for which the connection has been idle.
    fn may_ping_first(&self) -> bool {
        self.used.is_some_and(|(used, round_trip)| {
            clock::now().saturating_duration_since(used) >= PING_SHARE * round_trip
        })
    }
}

impl Session for RedisSession {
    fn send_batch(
        &mut self,
        requests: &[Request],
        answer: &mut dyn FnMut(usize, Reply),
    ) -> Result<(), NodeFailure> {
        let end = clock::now() + self.timeout;
        self.write_batch(requests, end)?;
        self.read_batch(requests, end, answer)
    }

    fn check_idle(&mut self) -> Result<(), NodeFailure> {
        debug_assert!(self.expected.is_empty());
        match self.stream.check_idle() {
            Ok(true) => Ok(()),
            // Over TLS the socket is that of `redis`, which cannot be read without blocking.
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

/// Appends CLIENT KILL for a connection of ours.
fn write_kill(client: i64, out: &mut Vec<u8>) {
    let mut cmd = redis::cmd("CLIENT");
    cmd.arg("KILL").arg("ID").arg(client);
    cmd.write_packed_command(out);
}

/// Whether it looks like a SHA-1 or a run id: 40 hexadecimal digits.
fn is_sha1_hex(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// What a reply is, of one that was sent by itself.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExpectedReply {
    /// That to the request with this number.
    Request(u64),
    /// For how long the lock is held that it was refused.
    RemainingTtl(u64),
    /// That to the loading of a script that the server did not have.
    ScriptLoad,
    /// That to the request with this number, which was sent again after its script.
    Resent(u64),
}
