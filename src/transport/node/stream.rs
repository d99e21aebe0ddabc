//! An open connection to a server: sends bytes, receives or polls replies.
//!
//! Plain connections use a socket of this crate, because the socket of a `redis` connection cannot
//! be polled. TLS connections use the socket of `redis`, which loads the root
//! certificates.
//!
//! A poll and the check of an idle connection never block. All else has a timeout, except the
//! resolution of a host name and the connect to a Unix socket.
//!
//! Tests: beside `plain_stream.rs`; `tests/it/nodes/tls.rs`, `hostile.rs`.

use std::io;
use std::time::{Duration, Instant};

#[cfg(feature = "tls")]
use redis::{Connection, ProtocolVersion};
use redis::{ConnectionAddr, ErrorKind, Msg, RedisConnectionInfo, RedisError, RedisResult, Value};

use crate::error::node_failure::NodeFailure;
use crate::protocol::server_error;
use crate::time::deadline::remaining_timeout;
use crate::transport::node::address::ServerAddress;
#[cfg(feature = "tls")]
use crate::transport::node::plain_stream;
use crate::transport::node::plain_stream::PlainStream;
#[cfg(feature = "tls")]
use crate::transport::node::tls;

/// The client info that a server shows in CLIENT LIST.
const CLIENT_INFO: [(&str, &str); 2] = [
    ("LIB-NAME", env!("CARGO_PKG_NAME")),
    ("LIB-VER", env!("CARGO_PKG_VERSION")),
];

/// The number of replies to [`write_client_info`], all of which are ignored.
pub(crate) const CLIENT_INFO_REPLIES: usize = CLIENT_INFO.len();

/// Appends the commands that set the client info.
pub(crate) fn write_client_info(bytes: &mut Vec<u8>) {
    for (attribute, value) in CLIENT_INFO {
        let mut cmd = redis::cmd("CLIENT");
        cmd.arg("SETINFO").arg(attribute).arg(value);
        cmd.write_packed_command(bytes);
    }
}

/// An open connection. After an error other than a timeout it is unusable.
pub(crate) struct Stream {
    kind: StreamKind,
    /// Whether any reply has been received.
    has_received: bool,
}

enum StreamKind {
    Plain(Box<PlainStream>),
    #[cfg(feature = "tls")]
    Tls(Box<Connection>),
}

impl Stream {
    /// Connects and logs in. Blocks until `end`, and longer while a host name is resolved or a Unix
    /// socket does not accept.
    pub(crate) fn open(server: &ServerAddress, end: Instant) -> RedisResult<Stream> {
        let plain = match server.info.addr() {
            ConnectionAddr::Tcp(host, port) => PlainStream::connect(host, *port, end)?,
            #[cfg(unix)]
            ConnectionAddr::Unix(path) => PlainStream::connect_unix(path)?,
            #[cfg(feature = "tls")]
            ConnectionAddr::TcpTls { host, port, .. } => {
                return Stream::open_tls(server, host, *port, end);
            }
            _ => return Err((ErrorKind::InvalidClientConfig, "unsupported socket type").into()),
        };
        let mut stream = Stream::new(StreamKind::Plain(Box::new(plain)));
        stream.log_in(server.info.redis_settings(), end)?;
        Ok(stream)
    }

    #[cfg(feature = "tls")]
    fn open_tls(
        server: &ServerAddress,
        host: &str,
        port: u16,
        end: Instant,
    ) -> RedisResult<Stream> {
        // `redis` applies the timeout to each address of a name, and to all of them together.
        let addresses = plain_stream::count_addresses(host, port)?.max(1);
        // Login is done here, because `redis` drops the server's text of a refused AUTH.
        let no_login = RedisConnectionInfo::default()
            .set_skip_set_lib_name()
            .set_protocol(ProtocolVersion::RESP2);
        let client = redis::Client::open(server.info.clone().set_redis_settings(no_login))?;
        let connection = client
            .get_connection_with_timeout(remaining_timeout(end) / addresses)
            .map_err(|error| tls::name_addresses(error, addresses))?;
        let mut stream = Stream::new(StreamKind::Tls(Box::new(connection)));
        stream.log_in(server.info.redis_settings(), end)?;
        // A refused client certificate shows only after the first bytes.
        stream.send_client_info(end)?;
        Ok(stream)
    }

    fn new(kind: StreamKind) -> Stream {
        Stream {
            kind,
            has_received: false,
        }
    }

    /// Sends AUTH and SELECT in one round trip.
    fn log_in(&mut self, redis: &RedisConnectionInfo, end: Instant) -> RedisResult<()> {
        let mut bytes = Vec::new();
        if let Some(password) = redis.password() {
            let mut auth = redis::cmd("AUTH");
            auth.arg(redis.username()).arg(password);
            auth.write_packed_command(&mut bytes);
        }
        if redis.db() != 0 {
            let mut select = redis::cmd("SELECT");
            select.arg(redis.db()).write_packed_command(&mut bytes);
        }
        if bytes.is_empty() {
            return Ok(());
        }
        self.set_timeouts(remaining_timeout(end))?;
        self.send(&bytes)?;
        let mut receive = || {
            self.set_timeouts(remaining_timeout(end))?;
            self.receive(end)
        };
        if redis.password().is_some()
            && let Value::ServerError(error) = receive()?
        {
            // The first reply may concern the connection, such as "max number of clients reached".
            return Err(match server_error::is_about_auth(&error) {
                true => {
                    let text = error.details().unwrap_or_default();
                    let text = format!("{} {text}", error.code());
                    (ErrorKind::AuthenticationFailed, "AUTH refused", text).into()
                }
                false => error.into(),
            });
        }
        if redis.db() != 0
            && let Value::ServerError(error) = receive()?
        {
            return Err(error.into());
        }
        Ok(())
    }

    /// Sets the client info and ignores the replies.
    pub(crate) fn send_client_info(&mut self, end: Instant) -> RedisResult<()> {
        let mut bytes = Vec::new();
        write_client_info(&mut bytes);
        // Over TLS a write may have to read first.
        self.set_timeouts(remaining_timeout(end))?;
        self.send(&bytes)?;
        for _ in 0..CLIENT_INFO_REPLIES {
            self.set_timeouts(remaining_timeout(end))?;
            self.receive(end)?; // an error before Redis 7.2
        }
        Ok(())
    }

    /// Sets the timeout of each read and write.
    pub(crate) fn set_timeouts(&self, timeout: Duration) -> RedisResult<()> {
        match &self.kind {
            StreamKind::Plain(plain) => plain.set_timeouts(Some(timeout))?,
            #[cfg(feature = "tls")]
            StreamKind::Tls(connection) => {
                connection.set_read_timeout(Some(timeout))?;
                connection.set_write_timeout(Some(timeout))?;
            }
        }
        Ok(())
    }

    /// Sends all bytes; blocks until the socket has accepted them.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> RedisResult<()> {
        match &mut self.kind {
            StreamKind::Plain(plain) => Ok(plain.send(bytes)?),
            #[cfg(feature = "tls")]
            StreamKind::Tls(connection) => connection.send_packed_command(bytes),
        }
    }

    /// Returns the stream if it is not over TLS: only then can it be sent to without blocking.
    pub(super) fn plain(&mut self) -> Option<&mut PlainStream> {
        match &mut self.kind {
            StreamKind::Plain(plain) => Some(plain),
            #[cfg(feature = "tls")]
            StreamKind::Tls(_) => None,
        }
    }

    /// Blocks until the next reply, at most for the timeout set by
    /// [`set_timeouts`](Stream::set_timeouts). Over TLS that applies to each read: a reply whose
    /// bytes keep arriving can take longer.
    pub(crate) fn receive(&mut self, end: Instant) -> RedisResult<Value> {
        let received = match &mut self.kind {
            StreamKind::Plain(plain) => plain.receive(end),
            #[cfg(feature = "tls")]
            StreamKind::Tls(connection) => connection.recv_response(),
        };
        self.has_received |= received.is_ok();
        received
    }

    /// Converts an error to the node's failure, without the password in its text.
    pub(crate) fn failure(&self, error: &RedisError, password: &str) -> NodeFailure {
        let is_tcp = matches!(&self.kind, StreamKind::Plain(plain) if plain.is_tcp());
        let failure = server_error::failure_redacted(error, password);
        match failure {
            // A server that expects TLS closes a plain connection after its first bytes.
            NodeFailure::Unreachable(text)
                if is_tcp && !self.has_received && server_error::is_peer_close(error) =>
            {
                NodeFailure::Unreachable(format!("{text}: is it a port for TLS? (rediss://)"))
            }
            failure => failure,
        }
    }

    /// Checks an idle connection by one non-blocking read. Returns `false` if the stream cannot be
    /// polled.
    ///
    /// # Errors
    /// - The peer closed the connection.
    /// - `InvalidData`: the peer sent an unexpected reply.
    pub(crate) fn check_idle(&mut self) -> io::Result<bool> {
        match &mut self.kind {
            StreamKind::Plain(plain) => plain.check_idle().map(|()| true),
            #[cfg(feature = "tls")]
            StreamKind::Tls(_) => Ok(false),
        }
    }

    /// Returns whether replies can be polled.
    pub(crate) fn can_poll(&self) -> bool {
        matches!(self.kind, StreamKind::Plain(_))
    }

    /// Returns the next reply if all of it was read before, without a system call.
    pub(crate) fn buffered_reply(&mut self) -> RedisResult<Option<Value>> {
        match &mut self.kind {
            StreamKind::Plain(plain) => plain.buffered_reply(),
            #[cfg(feature = "tls")]
            StreamKind::Tls(_) => Ok(None),
        }
    }

    /// Returns the next reply if it has arrived.
    pub(crate) fn poll_reply(&mut self) -> RedisResult<Option<Value>> {
        match &mut self.kind {
            StreamKind::Plain(plain) => plain.poll_reply(),
            #[cfg(feature = "tls")]
            StreamKind::Tls(_) => Ok(None),
        }
    }

    /// Blocks until the next message, at most for the timeout. Unlike a reply, a message may arrive
    /// after the timeout.
    pub(crate) fn next_message(&mut self, end: Instant) -> RedisResult<Msg> {
        match &mut self.kind {
            StreamKind::Plain(_) => loop {
                if let Some(message) = Msg::from_owned_value(self.receive(end)?) {
                    return Ok(message);
                }
            },
            // `receive` must not time out here: `redis` would then skip the next message.
            #[cfg(feature = "tls")]
            StreamKind::Tls(connection) => {
                let mut messages = connection.as_pubsub();
                let message = messages.get_message();
                // Its destructor would unsubscribe and block for the replies. It owns nothing.
                std::mem::forget(messages);
                message
            }
        }
    }
}
