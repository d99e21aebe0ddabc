//! An open connection to a server: bytes out, replies in, waited for or only looked for.
//!
//! The socket is our own where it can be: that of a connection of `redis` is not to be had, and so cannot be looked at without
//! waiting. Over TLS it is that of `redis`, which alone has the roots that certificates are checked with.

use std::io;
use std::time::{Duration, Instant};

#[cfg(feature = "tls")]
use redis::{Connection, ProtocolVersion};
use redis::{ConnectionAddr, ErrorKind, Msg, RedisConnectionInfo, RedisError, RedisResult, Value};

use crate::error::NodeFailure;
use crate::protocol::server_error;
use crate::time::deadline::remaining_timeout;
use crate::transport::node::address::ServerAddress;
use crate::transport::node::plain_stream;
use crate::transport::node::plain_stream::PlainStream;

/// What we tell of ourselves.
const CLIENT_INFO: [(&str, &str); 2] = [
    ("LIB-NAME", env!("CARGO_PKG_NAME")),
    ("LIB-VER", env!("CARGO_PKG_VERSION")),
];

/// How many replies [`introduce`] brings, each of no interest.
pub(crate) const CLIENT_INFO_REPLIES: usize = CLIENT_INFO.len();

/// Appends what says who we are.
pub(crate) fn write_client_info(bytes: &mut Vec<u8>) {
    for (what, name) in CLIENT_INFO {
        let mut cmd = redis::cmd("CLIENT");
        cmd.arg("SETINFO").arg(what).arg(name);
        cmd.write_packed_command(bytes);
    }
}

/// An open connection. After an error other than a time-out it is of no use any more.
pub(crate) struct Stream {
    line: StreamKind,
    /// Whether anything has been received.
    has_heard: bool,
}

enum StreamKind {
    Plain(Box<PlainStream>),
    #[cfg(feature = "tls")]
    Tls(Box<Connection>),
}

impl Stream {
    /// Connects and logs in. While a name is looked up it can take longer than until `end`.
    pub(crate) fn open(server: &ServerAddress, end: Instant) -> RedisResult<Stream> {
        let own = match server.info.addr() {
            ConnectionAddr::Tcp(host, port) => PlainStream::connect(host, *port, end)?,
            #[cfg(unix)]
            ConnectionAddr::Unix(path) => PlainStream::connect_unix(path)?,
            #[cfg(feature = "tls")]
            ConnectionAddr::TcpTls { host, port, .. } => {
                return Stream::open_tls(server, host, *port, end);
            }
            _ => return Err((ErrorKind::InvalidClientConfig, "no such socket here").into()),
        };
        let mut wire = Stream::new(StreamKind::Plain(Box::new(own)));
        wire.log_in(server.info.redis_settings(), end)?;
        Ok(wire)
    }

    #[cfg(feature = "tls")]
    fn open_tls(
        server: &ServerAddress,
        host: &str,
        port: u16,
        end: Instant,
    ) -> RedisResult<Stream> {
        // `redis` waits for each address of a name as long as for all of them.
        let addresses = plain_stream::count_addresses(host, port)?.max(1);
        // We log in ourselves: what `redis` makes of a refused AUTH does not have the server's words.
        let alone = RedisConnectionInfo::default()
            .set_skip_set_lib_name()
            .set_protocol(ProtocolVersion::RESP2);
        let client = redis::Client::open(server.info.clone().set_redis_settings(alone))?;
        let connection = client.get_connection_with_timeout(remaining_timeout(end) / addresses)?;
        let mut wire = Stream::new(StreamKind::Tls(Box::new(connection)));
        wire.log_in(server.info.redis_settings(), end)?;
        // What is wrong with certificates shows when something is said.
        wire.send_client_info(end)?;
        Ok(wire)
    }

    fn new(line: StreamKind) -> Stream {
        Stream {
            line,
            has_heard: false,
        }
    }

    /// All of it at once, since nothing depends on what is answered.
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
            // The first reply of a server may be about the connection, whatever was asked: "max number of clients reached".
            return Err(match server_error::is_about_auth(&error) {
                true => {
                    let (kind, words) = (ErrorKind::AuthenticationFailed, error.to_string());
                    (kind, "Password authentication failed", words).into()
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

    /// Says who we are.
    pub(crate) fn send_client_info(&mut self, end: Instant) -> RedisResult<()> {
        let mut bytes = Vec::new();
        write_client_info(&mut bytes);
        // Over TLS who writes may read first.
        self.set_timeouts(remaining_timeout(end))?;
        self.send(&bytes)?;
        for _ in 0..CLIENT_INFO_REPLIES {
            self.set_timeouts(remaining_timeout(end))?;
            self.receive(end)?; // before Redis 7.2 it is an error
        }
        Ok(())
    }

    /// How long a read and a write may take.
    pub(crate) fn set_timeouts(&self, timeout: Duration) -> RedisResult<()> {
        match &self.line {
            StreamKind::Plain(own) => own.set_timeouts(Some(timeout))?,
            #[cfg(feature = "tls")]
            StreamKind::Tls(connection) => {
                connection.set_read_timeout(Some(timeout))?;
                connection.set_write_timeout(Some(timeout))?;
            }
        }
        Ok(())
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> RedisResult<()> {
        match &mut self.line {
            StreamKind::Plain(own) => Ok(own.send(bytes)?),
            #[cfg(feature = "tls")]
            StreamKind::Tls(connection) => connection.send_packed_command(bytes),
        }
    }

    /// The same where nobody may wait for that: an error if the socket does not take it at once.
    pub(crate) fn send_nonblocking(&mut self, bytes: &[u8]) -> RedisResult<()> {
        match &mut self.line {
            StreamKind::Plain(own) => Ok(own.send_at_once(bytes)?),
            #[cfg(feature = "tls")]
            StreamKind::Tls(connection) => connection.send_packed_command(bytes),
        }
    }

    /// Waits for the next reply, for as long as [`set_timeouts`](Stream::set_timeouts) has said. Over TLS that is for each part of it:
    /// one whose bytes keep coming can take longer.
    pub(crate) fn receive(&mut self, end: Instant) -> RedisResult<Value> {
        let received = match &mut self.line {
            StreamKind::Plain(own) => own.receive(end),
            #[cfg(feature = "tls")]
            StreamKind::Tls(connection) => connection.recv_response(),
        };
        self.has_heard |= received.is_ok();
        received
    }

    /// Returns what an error says of the node, in words without the password.
    pub(crate) fn cause(&self, error: &RedisError, password: &str) -> NodeFailure {
        let is_tcp = matches!(&self.line, StreamKind::Plain(own) if own.is_tcp());
        let cause = server_error::failure_redacted(error, password);
        match cause {
            // A server that expects TLS closes the connection at the first bytes that are none.
            NodeFailure::Unreachable(text)
                if is_tcp && !self.has_heard && server_error::is_peer_close(error) =>
            {
                NodeFailure::Unreachable(format!("{text}: is it a port for TLS? (rediss://)"))
            }
            cause => cause,
        }
    }

    /// Reads once, without blocking, while no reply is outstanding. `false` where that cannot be done.
    ///
    /// # Errors
    /// If the other side has closed the connection, or has sent something that was not asked for (`InvalidData`).
    pub(crate) fn check_idle(&mut self) -> io::Result<bool> {
        match &mut self.line {
            StreamKind::Plain(own) => own.check_idle().map(|()| true),
            #[cfg(feature = "tls")]
            StreamKind::Tls(_) => Ok(false),
        }
    }

    /// Whether replies can be looked for.
    pub(crate) fn can_poll(&self) -> bool {
        matches!(self.line, StreamKind::Plain(_))
    }

    /// The next reply, if it has come.
    pub(crate) fn poll_reply(&mut self) -> RedisResult<Option<Value>> {
        match &mut self.line {
            StreamKind::Plain(own) => own.poll_reply(),
            #[cfg(feature = "tls")]
            StreamKind::Tls(_) => Ok(None),
        }
    }

    /// Waits for the next message, for as long as [`set_timeouts`](Stream::set_timeouts) has said; unlike other replies one that
    /// has not come may come later.
    pub(crate) fn next_message(&mut self, end: Instant) -> RedisResult<Msg> {
        match &mut self.line {
            StreamKind::Plain(_) => loop {
                if let Some(message) = Msg::from_owned_value(self.receive(end)?) {
                    return Ok(message);
                }
            },
            // After a reply that has timed out `redis` would skip a message.
            #[cfg(feature = "tls")]
            StreamKind::Tls(connection) => {
                let mut messages = connection.as_pubsub();
                let heard = messages.get_message();
                // Its destructor would end all subscriptions, and wait for what the server says to that. It owns nothing.
                std::mem::forget(messages);
                heard
            }
        }
    }
}
