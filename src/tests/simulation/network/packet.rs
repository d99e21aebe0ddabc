//! The packets between a client and a server.

use crate::error::node_failure::NodeFailure;
use crate::protocol::key::{Channel, Key};
use crate::protocol::reply::Reply;
use crate::protocol::request::Request;
use crate::protocol::scripts::Script;
use crate::transport::node::traits::Event;

/// The number of a connection in its history.
pub(crate) type ConnectionId = usize;

/// A command on its way to a server.
#[derive(Debug)]
pub(crate) enum Command {
    /// Opens the connection.
    Open,
    /// Ends the connection.
    Close,
    /// The first round trip of the handshake.
    Handshake,
    /// CLIENT KILL of a client id.
    Kill(i64),
    Ping,
    /// A request, with the script that it calls. `load` is set if SCRIPT LOAD precedes it.
    Call {
        id: u64,
        request: Box<Request>,
        script: Option<Script>,
        load: bool,
    },
    /// PTTL of a lock, for the request with this id.
    RemainingTtl {
        id: u64,
        key: Key,
    },
    /// SUBSCRIBE with the id of the command.
    Subscribe(u64, Vec<Channel>),
    Unsubscribe(Vec<Channel>),
}

/// A reply, or the end of the connection, on its way to a client.
#[derive(Debug)]
pub(crate) enum Packet {
    /// The server accepted the connection.
    Opened,
    /// The client id, the reply to INFO, and why CLIENT KILL is denied if it is.
    Handshake(i64, String, Option<NodeFailure>),
    /// The server refuses the handshake.
    Refused(NodeFailure),
    Killed(Option<NodeFailure>),
    Pong,
    Reply(u64, Reply),
    /// A refused `SET NX PX`, whose client asks for the remaining time.
    SetRefused(u64),
    /// NOSCRIPT.
    ScriptMissing(u64),
    Event(Event),
    /// The connection has ended.
    Closed(&'static str),
}
