//! The subscriber's connection to a server.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use redis::{Cmd, Msg, Value};

use crate::error::NodeFailure;
use crate::protocol::key::Channel;
use crate::protocol::server_error;
use crate::time::clock;
use crate::time::deadline::remaining_timeout;
use crate::transport::node::stream::Stream;
use crate::transport::node::traits::{Event, Subscriber};

/// So many messages may come before a reply that is overdue: a reader that was held up finds it behind them.
const MAX_QUEUED_MESSAGES: usize = 4096;

/// The subscriber's side of an open connection. A read may time out only where no reply is to come: over TLS, after a reply
/// that did, `redis` would skip a message.
pub(crate) struct RedisSubscriber {
    connection: Stream,
    node_timeout: Duration,
    /// The commands that the server has not replied to in full, in their order.
    sent: VecDeque<Sent>,
    /// How many messages have come since the last reply.
    queued: usize,
}

struct Sent {
    /// `None` where nobody asks what has become of it.
    subscribe: Option<u64>,
    replies: usize,
    end: Instant,
}

impl RedisSubscriber {
    pub(crate) fn new(
        connection: Stream,
        node_timeout: Duration,
    ) -> Result<RedisSubscriber, NodeFailure> {
        let mut ear = RedisSubscriber {
            connection,
            node_timeout,
            sent: VecDeque::new(),
            queued: 0,
        };
        let introduced = ear.connection.send_client_info(clock::now() + node_timeout);
        introduced.map_err(|error| ear.connection.cause(&error, ""))?;
        Ok(ear)
    }

    /// We do not do this with the `PubSub` of `redis`: it waits for the replies, and keeps what comes before them.
    fn send(
        &mut self,
        cmd: &Cmd,
        subscribe: Option<u64>,
        replies: usize,
    ) -> Result<(), NodeFailure> {
        self.connection
            .set_timeouts(self.node_timeout)
            .and_then(|()| self.connection.send(&cmd.get_packed_command()))
            .map_err(|error| server_error::failure(&error))?;
        self.sent.push_back(Sent {
            subscribe,
            replies,
            end: clock::now() + self.node_timeout,
        });
        Ok(())
    }

    /// Takes in what came while a reply was to come: that, or a message before it.
    fn read(&mut self, reply: Value, end: Instant) -> Result<Event, NodeFailure> {
        if let Some(channel) = message(&reply) {
            self.queued += 1;
            if self.queued > MAX_QUEUED_MESSAGES && clock::now() > end {
                return Err(NodeFailure::TimedOut);
            }
            return Ok(Event::Message(channel));
        }
        self.queued = 0;
        let Some(sent) = self.sent.front_mut() else {
            return Err(out_of_step());
        };
        if let Value::ServerError(error) = reply {
            let cause = server_error::failure(&error.into());
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

fn out_of_step() -> NodeFailure {
    NodeFailure::Unreachable("a reply that is none to what was asked".into())
}

impl Subscriber for RedisSubscriber {
    fn subscribe(&mut self, command: u64, channels: &[Channel]) -> Result<(), NodeFailure> {
        let mut cmd = redis::cmd("SUBSCRIBE");
        channels.iter().for_each(|channel| _ = cmd.arg(&**channel));
        self.send(&cmd, Some(command), channels.len())
    }

    fn unsubscribe(&mut self, channels: &[Channel]) -> Result<(), NodeFailure> {
        let mut cmd = redis::cmd("UNSUBSCRIBE");
        channels.iter().for_each(|channel| _ = cmd.arg(&**channel));
        self.send(&cmd, None, channels.len())
    }

    fn ping(&mut self) -> Result<(), NodeFailure> {
        self.send(&redis::cmd("PING"), None, 1)
    }

    fn next_message(&mut self, wait: Duration) -> Result<Option<Event>, NodeFailure> {
        if let Some(end) = self.sent.front().map(|sent| sent.end) {
            let reply = self
                .connection
                .set_timeouts(remaining_timeout(end))
                .and_then(|()| self.connection.receive(end));
            let reply = reply.map_err(|error| server_error::failure(&error))?;
            return self.read(reply, end).map(Some);
        }
        let end = clock::now() + wait;
        let heard = self
            .connection
            .set_timeouts(remaining_timeout(end))
            .and_then(|()| self.connection.next_message(end));
        match heard {
            Ok(message) => {
                let channel = message.get_channel_name().into();
                Ok(Some(Event::Message(channel)))
            }
            Err(error) if error.is_timeout() => Ok(None),
            Err(error) => Err(server_error::failure(&error)),
        }
    }
}
