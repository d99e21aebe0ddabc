//! The subscriber's connection to a server.

use std::collections::VecDeque;
use std::time::Duration;

use redis::{Cmd, Msg};

use crate::error::Cause;
use crate::key::Channel;
use crate::node::Ear;
use crate::node::wire::Wire;
use crate::script;
use crate::time;

/// So many messages may come before a reply that a subscriber waits for.
const MOST_EARLY: usize = 4096;

/// The subscriber's side of an open connection. Only what is read with [`hear`](Ear::hear) may time out: over TLS, after a reply
/// that did, `redis` would skip a message.
pub(super) struct RedisEar {
    connection: Wire,
    node_timeout: Duration,
    /// Messages that came before a reply that was waited for.
    early: VecDeque<Channel>,
}

impl RedisEar {
    pub(super) fn new(connection: Wire, node_timeout: Duration) -> Result<RedisEar, Cause> {
        let mut ear = RedisEar {
            connection,
            node_timeout,
            early: VecDeque::new(),
        };
        ear.connection
            .introduce_us(time::now() + node_timeout)
            .map_err(|error| script::cause(&error))?;
        Ok(ear)
    }

    /// We do not do this with the `PubSub` of `redis`: it keeps what comes before the reply, for as long as anything comes.
    fn ask(&mut self, cmd: &Cmd) -> Result<(), Cause> {
        let end = time::now() + self.node_timeout;
        self.connection
            .set_timeouts(self.node_timeout)
            .and_then(|()| self.connection.send(&cmd.get_packed_command()))
            .map_err(|error| script::cause(&error))?;
        while self.early.len() < MOST_EARLY && time::now() < end {
            let reply = self.connection.receive(end);
            let reply = reply.map_err(|error| script::cause(&error))?;
            match Msg::from_owned_value(reply) {
                Some(message) => self.early.push_back(message.get_channel_name().into()),
                None => return Ok(()),
            }
        }
        Err(Cause::TimedOut)
    }
}

impl Ear for RedisEar {
    fn subscribe(&mut self, channel: &str) -> Result<(), Cause> {
        self.ask(redis::cmd("SUBSCRIBE").arg(channel))
    }

    fn unsubscribe(&mut self, channel: &str) -> Result<(), Cause> {
        self.ask(redis::cmd("UNSUBSCRIBE").arg(channel))
    }

    fn hear(&mut self, wait: Duration) -> Result<Option<Channel>, Cause> {
        if let Some(channel) = self.early.pop_front() {
            return Ok(Some(channel));
        }
        let wait = wait.max(Duration::from_millis(1));
        let heard = self
            .connection
            .set_timeouts(wait)
            .and_then(|()| self.connection.hear(time::now() + wait));
        match heard {
            Ok(message) => Ok(Some(Channel::from(message.get_channel_name()))),
            Err(error) if error.is_timeout() => Ok(None),
            Err(error) => Err(script::cause(&error)),
        }
    }

    fn ping(&mut self) -> Result<(), Cause> {
        self.ask(&redis::cmd("PING"))
    }
}
