//! A lane's connection to a server: greeting it, and exchanging batches with it.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use redis::{Cmd, Value};

use crate::error::Cause;
use crate::protocol::batch::Calls;
#[cfg(feature = "cluster")]
use crate::protocol::reply::Holder;
use crate::protocol::reply::{Answer, Read};
use crate::protocol::request::Request;
use crate::protocol::server_error::out_of_step;
use crate::protocol::server_info::{About, ServerMode};
use crate::protocol::{encode, reply, server_error, server_info};
use crate::time::clock;
use crate::time::deadline::left;
use crate::transport::node::stream;
use crate::transport::node::stream::Wire;
use crate::transport::node::traits::{Greeting, Prompt, Session};

/// What a node is asked of itself. The first one has its clock.
const SECTIONS: [&str; 3] = ["server", "replication", "memory"];

/// The number of no connection: to kill it shows whether we have the right to, and changes nothing.
const NOBODY: i64 = i64::MAX;
/// Where the wire cannot be read without blocking, a PING goes before the requests after an idle time of at least this many round
/// trips: so it adds a sixteenth at most to the time between two requests.
const PING_SHARE: u32 = 16;

/// An open connection, greeted.
pub(crate) struct RedisSession {
    pub(crate) wire: Wire,
    pub(crate) timeout: Duration,
    /// What it has logged in with, and what no words of an error may have in them.
    pub(crate) password: Box<str>,
    /// The read time-out that the socket has now, if it was set here.
    armed: Option<Duration>,
    /// When the last bytes were sent; and when the last round trip ended and how long it took. Only where the wire cannot be read
    /// without blocking.
    sent: Instant,
    used: Option<(Instant, Duration)>,
    pub(crate) cmd: Cmd,
    pub(crate) out: Vec<u8>,
    /// What the next replies are, of requests that were sent by themselves.
    pub(crate) expected: VecDeque<Expected>,
    /// Why the script is missing of a request that was sent again.
    pub(crate) unloaded: Option<Cause>,
    /// How a batch is sent.
    calls: Calls,
    /// The calls of a batch, by their first requests, that take a second question. Empty between batches; kept for its
    /// memory.
    again: Vec<(usize, Again)>,
}

/// What is asked again after a batch's first replies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Again {
    /// How long the lock is held for, after a refusal.
    Left,
    /// All of the call, after NOSCRIPT.
    Whole,
}

impl RedisSession {
    /// An open connection; nothing has been said yet.
    pub(crate) fn new(wire: Wire, timeout: Duration, password: &str) -> RedisSession {
        RedisSession {
            wire,
            timeout,
            password: password.into(),
            armed: None,
            sent: clock::now(),
            used: None,
            cmd: Cmd::new(),
            out: Vec::new(),
            expected: VecDeque::new(),
            unloaded: None,
            calls: Calls::default(),
            again: Vec::new(),
        }
    }

    /// Learns who the server is, loads the scripts that must be there, and kills what there is of our former connections to it (a run id, and
    /// a number within that run).
    pub(crate) fn greet(
        &mut self,
        former: &[(String, i64)],
        end: Instant,
    ) -> Result<Greeting, Cause> {
        self.out.clear();
        redis::cmd("CLIENT")
            .arg("ID")
            .write_packed_command(&mut self.out);
        // One by one: before Redis 7 it takes one section at a time.
        for section in SECTIONS {
            redis::cmd("INFO")
                .arg(section)
                .write_packed_command(&mut self.out);
        }
        write_kill(NOBODY, &mut self.out);
        stream::introduce(&mut self.out);
        encode::write_loads(&mut self.out);
        let (wall, sent) = (clock::wall(), clock::now());
        self.send(end)?;
        let client = self.receive_as::<i64>(end)?;
        let mut info = self.receive_as::<String>(end)?;
        let round_trip = clock::now().saturating_duration_since(sent);
        for _ in &SECTIONS[1..] {
            info.push('\n');
            info.push_str(&self.receive_as::<String>(end)?);
        }
        let mut no_kill = self.receive_kill(end)?;
        for _ in 0..stream::INTRODUCED {
            self.receive(end)?; // before Redis 7.2 it is an error
        }
        let mut about = About::read(&info, wall + round_trip / 2, round_trip);
        // It does not have the scripts' commands, and would be told by that.
        if about.mode == Some(ServerMode::Sentinel)
            && let Some(cause) = about.wrong_mode()
        {
            return Err(cause);
        }
        for sum in encode::sums() {
            if self.receive_as::<String>(end)? != sum {
                return Err(out_of_step());
            }
        }
        // It may have been hung until just now, which is no news of its clock or of how far it is.
        if round_trip > self.timeout && left(end) > 2 * round_trip {
            about.refine(&self.ask_about(end)?);
        }
        let run_id = server_info::field(&info, "run_id")
            .filter(|run_id| is_digest(run_id))
            .ok_or_else(|| Cause::Server("INFO server names no run_id".into()))?
            .to_owned();
        // A server refuses to kill such a one, and would do so at every connect from now on.
        if client <= 0 {
            return Err(out_of_step());
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
        let greeting = Greeting {
            run_id,
            others: Vec::new(),
            client,
            about,
            no_kill,
        };
        Ok(greeting)
    }

    /// What the server says of itself and its clock, in an exchange of its own.
    fn ask_about(&mut self, end: Instant) -> Result<About, Cause> {
        self.out.clear();
        redis::cmd("INFO")
            .arg(SECTIONS[0])
            .write_packed_command(&mut self.out);
        let (wall, sent) = (clock::wall(), clock::now());
        self.send(end)?;
        let info = self.receive_as::<String>(end)?;
        let round_trip = clock::now().saturating_duration_since(sent);
        Ok(About::read(&info, wall + round_trip / 2, round_trip))
    }

    /// Reads the reply to CLIENT KILL. Returns why the server refused it, if it did.
    fn receive_kill(&mut self, end: Instant) -> Result<Option<Cause>, Cause> {
        match self.receive(end)? {
            Value::Int(_) => Ok(None),
            Value::ServerError(error) => Ok(Some(server_error::cause_without(
                &error.into(),
                &self.password,
            ))),
            _ => Err(out_of_step()),
        }
    }

    pub(crate) fn send(&mut self, end: Instant) -> Result<(), Cause> {
        self.arm(end)?;
        if !self.wire.can_look() {
            self.sent = clock::now();
        }
        self.wire
            .send(&self.out)
            .map_err(|error| self.wire.cause(&error, &self.password))
    }

    pub(crate) fn receive(&mut self, end: Instant) -> Result<Value, Cause> {
        self.arm(end)?;
        self.wire
            .receive(end)
            .map_err(|error| self.wire.cause(&error, &self.password))
    }

    fn receive_as<T: redis::FromRedisValue>(&mut self, end: Instant) -> Result<T, Cause> {
        let value = self.receive(end)?;
        let cause = |error| server_error::cause_without(&error, &self.password);
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
    fn arm(&mut self, end: Instant) -> Result<(), Cause> {
        let left = end
            .saturating_duration_since(clock::now())
            .max(Duration::from_millis(1));
        let slack = self.timeout / 8;
        let fits = |armed: Duration| armed <= left + slack && left <= armed + slack;
        if self.armed.is_some_and(fits) {
            return Ok(());
        }
        self.wire
            .set_timeouts(left)
            .map_err(|error| server_error::cause(&error))?;
        self.armed = Some(left);
        Ok(())
    }
}

impl RedisSession {
    /// Appends a call, given by its first request.
    fn write(&mut self, requests: &[Request], calls: &Calls, first: usize) {
        let mut joined = calls
            .members(first)
            .skip(1)
            .map(|index| &requests[index])
            .peekable();
        match &requests[first].wire {
            Some(bytes) if joined.peek().is_none() => self.out.extend_from_slice(bytes),
            _ => _ = encode::write(&requests[first], joined, &mut self.cmd, &mut self.out),
        }
    }

    /// Settles what a batch's first replies have left open, completely: before the next batch.
    fn ask_again(
        &mut self,
        requests: &[Request],
        calls: &Calls,
        again: &[(usize, Again)],
        end: Instant,
        answer: &mut dyn FnMut(usize, Answer),
    ) -> Result<(), Cause> {
        self.out.clear();
        for (first, what) in again {
            match what {
                Again::Left => {
                    encode::write_left(&requests[*first], &mut self.cmd, &mut self.out);
                }
                Again::Whole => {
                    let joined = calls.members(*first).skip(1).map(|index| &requests[index]);
                    let (cmd, out) = (&mut self.cmd, &mut self.out);
                    encode::write_with_script(&requests[*first], joined, cmd, out);
                }
            }
        }
        self.send(end)?;
        for (first, what) in again {
            let reply = self.receive(end)?;
            if *what == Again::Left {
                match reply::read_left(&reply) {
                    Some(held) => answer(*first, held),
                    None => return Err(out_of_step()),
                }
                continue;
            }
            let unloaded = server_error::unloaded(&reply);
            let reply = self.receive(end)?;
            for (place, index) in calls.members(*first).enumerate() {
                match reply::read(&requests[index], place, &reply) {
                    Read::Answer(read) => answer(index, read),
                    Read::NoScript => answer(index, Answer::Fault(unloaded.clone())),
                    Read::Refused | Read::OutOfStep => return Err(out_of_step()),
                }
            }
        }
        Ok(())
    }
}

impl RedisSession {
    /// Sends a batch, whose answers are then to be read with [`read_batch`](RedisSession::read_batch).
    pub(crate) fn write_batch(&mut self, requests: &[Request], end: Instant) -> Result<(), Cause> {
        let mut calls = std::mem::take(&mut self.calls);
        calls.plan(requests);
        self.out.clear();
        for first in calls.firsts() {
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
        answer: &mut dyn FnMut(usize, Answer),
    ) -> Result<(), Cause> {
        let calls = std::mem::take(&mut self.calls);
        let mut again = std::mem::take(&mut self.again);
        for first in calls.firsts() {
            let reply = self.receive(end)?;
            for (place, index) in calls.members(first).enumerate() {
                match reply::read(&requests[index], place, &reply) {
                    Read::Answer(read) => answer(index, read),
                    Read::Refused => again.push((index, Again::Left)),
                    Read::NoScript => {
                        again.push((first, Again::Whole));
                        break;
                    }
                    Read::OutOfStep => return Err(out_of_step()),
                }
            }
        }
        if !again.is_empty() {
            self.ask_again(requests, &calls, &again, end, answer)?;
        }
        again.clear();
        (self.again, self.calls) = (again, calls);
        self.note_used();
        Ok(())
    }

    /// Sends one request to where a slot is on its way to, and reads its answer.
    #[cfg(feature = "cluster")]
    pub(crate) fn ask_aside(&mut self, request: &Request, end: Instant) -> Result<Answer, Cause> {
        self.out.clear();
        let (cmd, out) = (&mut self.cmd, &mut self.out);
        let mut call = Vec::new();
        let script = encode::write(request, std::iter::empty(), cmd, &mut call);
        // It may not have been there before, and ASKING holds for one command.
        if let Some(script) = script {
            encode::write_load(script, out);
        }
        redis::cmd("ASKING").write_packed_command(out);
        out.append(&mut call);
        self.send(end)?;
        for _ in 0..1 + usize::from(script.is_some()) {
            self.receive(end)?;
        }
        let reply = self.receive(end)?;
        match reply::read(request, 0, &reply) {
            Read::Answer(answer) => Ok(answer),
            // For how long would be one more question aside, and it is told as unknown as well.
            Read::Refused => Ok(Answer::Held(Holder::Unknown, None)),
            Read::NoScript => Ok(Answer::Fault(Cause::Server("NOSCRIPT aside".into()))),
            Read::OutOfStep => Err(out_of_step()),
        }
    }

    /// # Errors
    /// Also if the reply is another one's, which was not asked for.
    pub(crate) fn ping_by(&mut self, end: Instant) -> Result<(), Cause> {
        self.out.clear();
        redis::cmd("PING").write_packed_command(&mut self.out);
        self.send(end)?;
        match self.receive(end)? {
            Value::SimpleString(pong) if pong == "PONG" => {}
            Value::ServerError(_) => {} // a sign of life, too
            _ => return Err(out_of_step()),
        }
        self.note_used();
        Ok(())
    }

    /// A round trip is over.
    fn note_used(&mut self) {
        if !self.wire.can_look() {
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
    fn exchange(
        &mut self,
        requests: &[Request],
        answer: &mut dyn FnMut(usize, Answer),
    ) -> Result<(), Cause> {
        let end = clock::now() + self.timeout;
        self.write_batch(requests, end)?;
        self.read_batch(requests, end, answer)
    }

    fn check_idle(&mut self) -> Result<(), Cause> {
        debug_assert!(self.expected.is_empty());
        match self.wire.check_idle() {
            Ok(true) => Ok(()),
            // Over TLS the socket is that of `redis`, which cannot be read without blocking.
            Ok(false) if self.may_ping_first() => self.ping(),
            Ok(false) => Ok(()),
            Err(error) if error.kind() == ErrorKind::InvalidData => Err(out_of_step()),
            Err(error) => Err(server_error::cause(&error.into())),
        }
    }

    fn ping(&mut self) -> Result<(), Cause> {
        self.ping_by(clock::now() + self.timeout)
    }

    fn prompt(&mut self) -> Option<&mut dyn Prompt> {
        match self.wire.can_look() {
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
fn is_digest(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// What a reply is, of one that was sent by itself.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    /// That to the request with this number.
    Whole(u64),
    /// For how long the lock is held that it was refused.
    Left(u64),
    /// That to the loading of a script that the server did not have.
    Script,
    /// That to the request with this number, which was sent again after its script.
    Again(u64),
}
