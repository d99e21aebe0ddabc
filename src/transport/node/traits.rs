//! The seam to a node: connector, session, direct I/O and subscriber. Tests put fake nodes behind
//! it.
//!
//! A node is one server, the master that sentinels name, or a cluster.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::node_failure::NodeFailure;
use crate::protocol::key::Channel;
use crate::protocol::reply::Reply;
use crate::protocol::request::Request;
use crate::protocol::server_info::ServerInfo;

/// Opens sessions and subscriptions with one node.
pub(crate) trait Connector: Send + Sync {
    /// Connects and completes the handshake. Kills the former session first, if the server allows
    /// it, so that none of its requests runs later (S4). Blocks up to `connect_timeout`, and longer
    /// while a host name is resolved.
    fn connect(
        &self,
        former: Option<&Handshake>,
    ) -> Result<(Box<dyn Session>, Handshake), NodeFailure>;

    /// Opens a separate connection for subscriptions and keeps it while `serve` runs. Returns why
    /// it ended.
    fn with_subscriber(
        &self,
        serve: &mut dyn FnMut(&mut dyn Subscriber) -> Result<(), NodeFailure>,
    ) -> Result<(), NodeFailure>;
}

/// A connection that receives published messages. After an error it is unusable.
pub(crate) trait Subscriber {
    /// Sends one SUBSCRIBE for all channels, without waiting for the replies. `command` identifies
    /// it in events.
    fn subscribe(&mut self, command: u64, channels: &[Channel]) -> Result<(), NodeFailure>;

    /// Sends one UNSUBSCRIBE for all channels, without waiting for the replies.
    fn unsubscribe(&mut self, channels: &[Channel]) -> Result<(), NodeFailure>;

    /// Sends PING, without waiting for the reply.
    fn ping(&mut self) -> Result<(), NodeFailure>;

    /// Blocks until the next event, at most for `wait`; while a reply is expected, at most until it
    /// is overdue.
    ///
    /// # Errors
    /// - The connection failed, or an expected reply is overdue.
    fn next_message(&mut self, wait: Duration) -> Result<Option<Event>, NodeFailure>;
}

/// An event on a subscriber's connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A release was published in this channel, for every waiter. In a listener's own channel, its
    /// process wakes it.
    Message(Channel),
    /// The lock of this channel was released and is kept for the rest of its minimum time.
    Kept(Channel),
    /// A release was published in this channel. The first process of the waiting list is woken by
    /// `Woken`.
    NextWoken(Channel),
    /// This process is first in the waiting list of the channel's lock, which was released.
    Woken(Channel),
    /// The lock of the channel is free, to a check.
    Free(Channel),
    /// This process has a place in the waiting list of the channel's lock, behind this number of
    /// others.
    Placed(Channel, u32),
    /// A notice: the holders in this process of the channel's lock are to check it.
    Notice(Channel),
    /// The SUBSCRIBE with this id is confirmed for this channel.
    Subscribed(u64, Channel),
    /// The SUBSCRIBE with this id is refused, for all of its channels.
    Refused(u64, NodeFailure),
    /// Another reply, which shows that the server is alive.
    Other,
}

impl Event {
    /// Returns the event of a message. One of an unknown form counts as a release for every waiter,
    /// as do those of earlier versions and of other clients.
    pub(crate) fn from_message(channel: &str, payload: &[u8]) -> Event {
        let parsed = str::from_utf8(payload).ok().and_then(|text| {
            let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
            match word {
                "kept" if rest.is_empty() => Some(Event::Kept(channel.into())),
                "next" if rest.is_empty() => Some(Event::NextWoken(channel.into())),
                "wake" => Some(Event::Woken(rest.into())),
                "free" => Some(Event::Free(rest.into())),
                "check" => Some(Event::Notice(rest.into())),
                "place" => {
                    let (before, of) = rest.split_once(' ')?;
                    Some(Event::Placed(of.into(), before.parse().ok()?))
                }
                _ => None,
            }
        });
        parsed.unwrap_or_else(|| Event::Message(channel.into()))
    }

    /// Returns whether the event is a message, and not a reply to a command.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn is_message(&self) -> bool {
        use Event::{Free, Kept, Message, NextWoken, Notice, Placed, Woken};
        matches!(
            self,
            Message(_) | Kept(_) | NextWoken(_) | Woken(_) | Free(_) | Placed(..) | Notice(_)
        )
    }
}

/// An open connection to one node.
pub(crate) trait Session: Send {
    /// Sends the requests as one pipeline and delivers each reply as it arrives. Requests that
    /// share a call may get their replies before earlier ones.
    ///
    /// # Errors
    /// - The connection failed. Requests without a reply may have run, and the session is unusable,
    ///   because late replies may still arrive.
    fn send_batch(
        &mut self,
        requests: &[Arc<Request>],
        deliver: &mut dyn FnMut(usize, Reply),
    ) -> Result<(), NodeFailure>;

    /// Checks, before a batch is sent and while nothing is in flight, whether the peer closed the
    /// connection or sent an unexpected reply. Blocks only a session without
    /// [`direct_io`](Session::direct_io).
    ///
    /// # Errors
    /// - The session is unusable. Nothing of the batch has been sent.
    fn check_idle(&mut self) -> Result<(), NodeFailure>;

    /// Sends PING and blocks for the reply.
    fn ping(&mut self) -> Result<(), NodeFailure>;

    /// Returns the session for direct sends, if its replies can be polled.
    fn direct_io(&mut self) -> Option<&mut dyn DirectIo> {
        None
    }
}

/// A session whose replies can be polled. After an error it is unusable.
pub(crate) trait DirectIo {
    /// Returns whether another request may follow: no request in flight needs a second command.
    fn can_append(&self) -> bool;

    /// Sends a request, encoded as `bytes`, behind the requests in flight, without blocking. Its
    /// reply is returned with its id.
    fn send(&mut self, sent: &InFlight, bytes: &[u8]) -> Result<(), NodeFailure>;

    /// Returns the next reply to a request in flight. Without `end` it returns `None` if no reply
    /// has arrived; with `end` it blocks, and a reply that does not arrive in time is an error.
    fn next_reply(
        &mut self,
        in_flight: &VecDeque<InFlight>,
        end: Option<Instant>,
    ) -> Result<Option<(u64, Reply)>, NodeFailure>;
}

/// A request in flight that was sent directly.
pub(crate) struct InFlight {
    /// The id of the request, unique on its connection.
    pub(crate) id: u64,
    pub(crate) request: Arc<Request>,
}

/// The result of a handshake: identity and state of the node, and the id of the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Handshake {
    /// The server's run id, which changes at each restart.
    pub(crate) run_id: String,
    /// The run ids of a cluster's other masters.
    pub(crate) others: Vec<String>,
    /// The client id of this connection within that run.
    pub(crate) client_id: i64,
    pub(crate) server_info: ServerInfo,
    /// Why the server refuses to kill a former connection, if it does.
    pub(crate) no_kill: Option<NodeFailure>,
}

impl Handshake {
    /// Returns the run ids of all servers as one text. It changes if any server restarted or was
    /// replaced.
    pub(crate) fn runs(&self) -> String {
        let others = self.others.iter().map(String::as_str);
        let mut runs: Vec<&str> = others.chain([self.run_id.as_str()]).collect();
        runs.sort_unstable();
        runs.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_of_an_unknown_form_is_a_release_for_every_waiter() {
        let (lock, of) = (|| Channel::from("lock"), || Channel::from("a b"));
        for (payload, event) in [
            ("", Event::Message(lock())),
            ("released", Event::Message(lock())),
            ("next 1", Event::Message(lock())),
            ("place", Event::Message(lock())),
            ("place -1 a", Event::Message(lock())),
            ("place 9999999999 a", Event::Message(lock())),
            ("kept", Event::Kept(lock())),
            ("kept 1", Event::Message(lock())),
            ("next", Event::NextWoken(lock())),
            ("wake a b", Event::Woken(of())),
            ("free a b", Event::Free(of())),
            ("check a b", Event::Notice(of())),
            ("place 7 a b", Event::Placed(of(), 7)),
        ] {
            let parsed = Event::from_message("lock", payload.as_bytes());
            assert_eq!(parsed, event, "{payload:?}");
        }
        let parsed = Event::from_message("lock", b"wake \xff");
        assert_eq!(parsed, Event::Message(lock()));
    }
}
