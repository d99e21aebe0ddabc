//! The subscriber's connection to a server: commands, their confirmations, and messages (L4).
//!
//! A message never counts as a confirmation. Bytes that are neither end the connection.
//!
//! Tests: `src/tests/engine/wake_up.rs` over fake nodes; `tests/it/nodes/hostile.rs`, `acl.rs`.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use redis::{Cmd, Msg, Value};

use crate::error::node_failure::NodeFailure;
use crate::protocol::key::Channel;
use crate::protocol::server_error;
use crate::time::clock;
use crate::time::deadline::remaining_timeout;
use crate::transport::node::stream::Stream;
use crate::transport::node::traits::{Event, Subscriber};

/// The number of messages that are read before an overdue reply is an error. A delayed reader may
/// find the reply behind them.
const MAX_QUEUED_MESSAGES: usize = 4096;

/// A subscriber's connection. A read may time out only while no reply is expected, because over TLS
/// `redis` skips a message after a reply that timed out.
pub(crate) struct RedisSubscriber {
    connection: Stream,
    node_timeout: Duration,
    /// The commands without all of their replies, in order.
    sent: VecDeque<Sent>,
    /// The number of messages since the last reply.
    queued: usize,
}

/// A command that was sent.
struct Sent {
    /// The id of a SUBSCRIBE; `None` for another command.
    subscribe: Option<u64>,
    replies: usize,
    end: Instant,
}

impl RedisSubscriber {
    pub(crate) fn new(
        connection: Stream,
        node_timeout: Duration,
    ) -> Result<RedisSubscriber, NodeFailure> {
        let mut subscriber = RedisSubscriber {
            connection,
            node_timeout,
            sent: VecDeque::new(),
            queued: 0,
        };
        let sent = subscriber
            .connection
            .send_client_info(clock::now() + node_timeout);
        sent.map_err(|error| subscriber.connection.failure(&error, ""))?;
        Ok(subscriber)
    }

    /// Sends a command without waiting. The `PubSub` of `redis` is not used, because it blocks for
    /// the replies.
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

    /// Handles a reply that arrived while one was expected; it may also be a message.
    fn read(&mut self, reply: Value, end: Instant) -> Result<Event, NodeFailure> {
        if let Some(message) = Msg::from_owned_value(reply.clone()) {
            self.queued += 1;
            if self.queued > MAX_QUEUED_MESSAGES && clock::now() > end {
                return Err(NodeFailure::TimedOut);
            }
            return Ok(event(&message));
        }
        self.queued = 0;
        let Some(sent) = self.sent.front_mut() else {
            return Err(unexpected_reply());
        };
        if let Value::ServerError(error) = reply {
            let failure = server_error::failure(&error.into());
            let subscribe = sent.subscribe;
            self.sent.pop_front();
            return subscribe.map_or(Err(failure.clone()), |command| {
                Ok(Event::Refused(command, failure))
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
            _ => Err(unexpected_reply()),
        }
    }
}

fn event(message: &Msg) -> Event {
    Event::from_message(message.get_channel_name(), message.get_payload_bytes())
}

/// Returns the kind and the channel of a confirmation.
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

fn unexpected_reply() -> NodeFailure {
    NodeFailure::Unreachable("unexpected reply on the subscriber's connection".into())
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
        let received = self
            .connection
            .set_timeouts(remaining_timeout(end))
            .and_then(|()| self.connection.next_message(end));
        match received {
            Ok(message) => Ok(Some(event(&message))),
            Err(error) if error.is_timeout() => Ok(None),
            Err(error) => Err(server_error::failure(&error)),
        }
    }
}
