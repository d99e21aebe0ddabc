//! The subscriber's connection to a server.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use redis::{Cmd, Msg, Value};

use crate::error::Cause;
use crate::protocol::key::Channel;
use crate::protocol::server_error;
use crate::time::clock;
use crate::time::deadline::left;
use crate::transport::node::stream::Wire;
use crate::transport::node::traits::{Ear, Event};

/// So many messages may come before a reply that is overdue: a reader that was held up finds it behind them.
const MOST_EARLY: usize = 4096;

/// The subscriber's side of an open connection. A read may time out only where no reply is to come: over TLS, after a reply
/// that did, `redis` would skip a message.
pub(crate) struct RedisEar {
    connection: Wire,
    node_timeout: Duration,
    /// The commands that the server has not replied to in full, in their order.
    sent: VecDeque<Sent>,
    /// How many messages have come since the last reply.
    early: usize,
}

struct Sent {
    /// `None` where nobody asks what has become of it.
    subscribe: Option<u64>,
    replies: usize,
    end: Instant,
}

impl RedisEar {
    pub(crate) fn new(connection: Wire, node_timeout: Duration) -> Result<RedisEar, Cause> {
        let mut ear = RedisEar {
            connection,
            node_timeout,
            sent: VecDeque::new(),
            early: 0,
        };
        let introduced = ear.connection.introduce_us(clock::now() + node_timeout);
        introduced.map_err(|error| ear.connection.cause(&error, ""))?;
        Ok(ear)
    }

    /// We do not do this with the `PubSub` of `redis`: it waits for the replies, and keeps what comes before them.
    fn send(&mut self, cmd: &Cmd, subscribe: Option<u64>, replies: usize) -> Result<(), Cause> {
        self.connection
            .set_timeouts(self.node_timeout)
            .and_then(|()| self.connection.send(&cmd.get_packed_command()))
            .map_err(|error| server_error::cause(&error))?;
        self.sent.push_back(Sent {
            subscribe,
            replies,
            end: clock::now() + self.node_timeout,
        });
        Ok(())
    }

    /// Takes in what came while a reply was to come: that, or a message before it.
    fn read(&mut self, reply: Value, end: Instant) -> Result<Event, Cause> {
        if let Some(channel) = message(&reply) {
            self.early += 1;
            if self.early > MOST_EARLY && clock::now() > end {
                return Err(Cause::TimedOut);
            }
            return Ok(Event::Message(channel));
        }
        self.early = 0;
        let Some(sent) = self.sent.front_mut() else {
            return Err(out_of_step());
        };
        if let Value::ServerError(error) = reply {
            let cause = server_error::cause(&error.into());
            let refused = sent.subscribe;
            self.sent.pop_front();
            return refused.map_or(Err(cause.clone()), |command| {
                Ok(Event::Refused(command, cause))
            });
        }
        let subscribe = sent.subscribe;
        sent.replies -= 1;
        if sent.replies == 0 {
            self.sent.pop_front();
        }
        match (confirmation(&reply), subscribe) {
            (Some(("subscribe", channel)), Some(command)) => {
                Ok(Event::Subscribed(command, channel.into()))
            }
            (Some(("unsubscribe" | "pong", _)), None) => Ok(Event::Other),
            _ => Err(out_of_step()),
        }
    }
}

fn message(reply: &Value) -> Option<Channel> {
    let message = Msg::from_owned_value(reply.clone())?;
    Some(message.get_channel_name().into())
}

/// The kind of a reply of the form that all have which a subscriber gets, and the channel.
fn confirmation(reply: &Value) -> Option<(&str, &str)> {
    let items = match reply {
        Value::Array(items) => items,
        _ => return None,
    };
    match &items[..] {
        [Value::BulkString(kind), Value::BulkString(channel), ..] => Some((
            std::str::from_utf8(kind).ok()?,
            std::str::from_utf8(channel).ok()?,
        )),
        _ => None,
    }
}

fn out_of_step() -> Cause {
    Cause::Unreachable("a reply that is none to what was asked".into())
}

impl Ear for RedisEar {
    fn subscribe(&mut self, command: u64, channels: &[Channel]) -> Result<(), Cause> {
        let mut cmd = redis::cmd("SUBSCRIBE");
        channels.iter().for_each(|channel| _ = cmd.arg(&**channel));
        self.send(&cmd, Some(command), channels.len())
    }

    fn unsubscribe(&mut self, channels: &[Channel]) -> Result<(), Cause> {
        let mut cmd = redis::cmd("UNSUBSCRIBE");
        channels.iter().for_each(|channel| _ = cmd.arg(&**channel));
        self.send(&cmd, None, channels.len())
    }

    fn ping(&mut self) -> Result<(), Cause> {
        self.send(&redis::cmd("PING"), None, 1)
    }

    fn hear(&mut self, wait: Duration) -> Result<Option<Event>, Cause> {
        if let Some(end) = self.sent.front().map(|sent| sent.end) {
            let reply = self
                .connection
                .set_timeouts(left(end))
                .and_then(|()| self.connection.receive(end));
            let reply = reply.map_err(|error| server_error::cause(&error))?;
            return self.read(reply, end).map(Some);
        }
        let end = clock::now() + wait;
        let heard = self
            .connection
            .set_timeouts(left(end))
            .and_then(|()| self.connection.hear(end));
        match heard {
            Ok(message) => {
                let channel = message.get_channel_name().into();
                Ok(Some(Event::Message(channel)))
            }
            Err(error) if error.is_timeout() => Ok(None),
            Err(error) => Err(server_error::cause(&error)),
        }
    }
}
