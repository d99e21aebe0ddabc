//! One node: connecting to it, greeting it, and exchanging a batch of requests with it. What stands for a node here is one
//! server, the master that sentinels name, or a cluster.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::error::NodeFailure;
use crate::protocol::key::Channel;
use crate::protocol::reply::Reply;
use crate::protocol::request::Request;
use crate::protocol::server_info::ServerInfo;

/// Makes sessions with one node. The one seam at which tests put fakes in the place of servers.
pub(crate) trait Connector: Send + Sync {
    /// Connects, which can block for longer than any time-out while a name is looked up. A session that
    /// had been there before is killed first, so that nothing of it runs any more (rule S4), where the server lets us.
    fn connect(
        &self,
        former: Option<&Handshake>,
    ) -> Result<(Box<dyn Session>, Handshake), NodeFailure>;

    /// Opens a connection of its own to hear what is published, and keeps it while `serve` runs. Answers why it ended.
    fn with_subscriber(
        &self,
        serve: &mut dyn FnMut(&mut dyn Subscriber) -> Result<(), NodeFailure>,
    ) -> Result<(), NodeFailure>;
}

/// A connection that hears what is published. After an error it is of no use any more.
pub(crate) trait Subscriber {
    /// Sends one SUBSCRIBE with this number for all of these channels, and does not wait for the replies.
    fn subscribe(&mut self, command: u64, channels: &[Channel]) -> Result<(), NodeFailure>;

    /// Sends one UNSUBSCRIBE, in the same way.
    fn unsubscribe(&mut self, channels: &[Channel]) -> Result<(), NodeFailure>;

    /// Asks for a sign of life, in the same way.
    fn ping(&mut self) -> Result<(), NodeFailure>;

    /// Waits for what the server sends next, for `wait` at most, or for as long as a reply may take that is to come. An error is
    /// also that a reply has not come in time.
    fn next_message(&mut self, wait: Duration) -> Result<Option<Event>, NodeFailure>;
}

/// What a server has sent to one that listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Something was published on this channel.
    Message(Channel),
    /// The SUBSCRIBE of this number has been executed for this channel.
    Subscribed(u64, Channel),
    /// The SUBSCRIBE of this number is refused, for all of its channels.
    Refused(u64, NodeFailure),
    /// Another reply, as a sign of life.
    Other,
}

/// An open connection to one node.
pub(crate) trait Session: Send {
    /// Sends the requests as one pipeline and hands out each answer as it is read. Those of readers that travel together
    /// may come before others.
    ///
    /// On an error the requests without an answer are unknown, and the session is of no use any more: replies
    /// may still be on their way.
    fn send_batch(
        &mut self,
        requests: &[Request],
        answer: &mut dyn FnMut(usize, Reply),
    ) -> Result<(), NodeFailure>;

    /// Finds out, before the first bytes of a batch and while nothing is in flight, whether the other side has closed the
    /// connection or sent something that was not asked for. Does not block a session that has a [`direct_io`](Session::direct_io).
    ///
    /// # Errors
    /// If the session is of no use any more. What is to be sent has not been.
    fn check_idle(&mut self) -> Result<(), NodeFailure>;

    /// Asks for a sign of life.
    fn ping(&mut self) -> Result<(), NodeFailure>;

    /// The same session, if its answers can be looked for without waiting.
    fn direct_io(&mut self) -> Option<&mut dyn DirectIo> {
        None
    }
}

/// A session whose answers can be looked for. After an error it is of no use any more.
pub(crate) trait DirectIo {
    /// Whether nothing has to be asked again of what is on the wire: then something else may follow it.
    fn can_append(&self) -> bool;

    /// Sends a request, given as it goes over the wire, behind those that are on it.
    fn send(&mut self, number: u64, bytes: &[u8]) -> Result<(), NodeFailure>;

    /// The next answer to one of the requests on the wire; `None` if it has not come. It is waited for if there is an `end`,
    /// after which it is an error.
    fn next_reply(
        &mut self,
        flights: &VecDeque<InFlight>,
        end: Option<Instant>,
    ) -> Result<Option<(u64, Reply)>, NodeFailure>;
}

/// A request that is on the wire by itself.
pub(crate) struct InFlight {
    /// No other on the same wire has it.
    pub(crate) number: u64,
    pub(crate) request: Request,
}

/// What a node says of itself and of the session when it is greeted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Handshake {
    /// The server's run id, another one after each restart.
    pub(crate) run_id: String,
    /// Of a cluster the run ids of its other masters.
    pub(crate) others: Vec<String>,
    /// The number of this connection within that run.
    pub(crate) client_id: i64,
    pub(crate) server_info: ServerInfo,
    /// Why the server does not let us kill the former connection, if it does not.
    pub(crate) no_kill: Option<NodeFailure>,
}

impl Handshake {
    /// The runs of all servers together: the same text only where none of them has restarted, and none is another.
    pub(crate) fn runs(&self) -> String {
        let others = self.others.iter().map(String::as_str);
        let mut runs: Vec<&str> = others.chain([self.run_id.as_str()]).collect();
        runs.sort_unstable();
        runs.join(" ")
    }
}
