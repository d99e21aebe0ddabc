//! An open connection to a server: bytes out, replies in, waited for or only looked for.
//!
//! The socket is our own where it can be: that of a connection of `redis` is not to be had, and so cannot be looked at without
//! waiting. Over TLS it is that of `redis`, which alone has the roots that certificates are checked with.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
#[cfg(unix)]
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

#[cfg(feature = "tls")]
use redis::Connection;
use redis::{ConnectionAddr, ErrorKind, Msg, Parser, RedisConnectionInfo, RedisResult, Value};

use crate::node::address::{Server, left};

/// What we tell of ourselves.
const NAMES: [(&str, &str); 2] = [
    ("LIB-NAME", env!("CARGO_PKG_NAME")),
    ("LIB-VER", env!("CARGO_PKG_VERSION")),
];

/// An open connection. After an error other than a time-out it is of no use any more.
pub(super) struct Wire(Line);

enum Line {
    Own {
        socket: Socket,
        parser: Parser,
        /// Whether a read waits for what is not there yet.
        waits: bool,
    },
    #[cfg(feature = "tls")]
    Tls(Box<Connection>),
}

enum Socket {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
}

impl Wire {
    /// Connects, logs in and says who we are. Where a name has many addresses it can take longer than until `end`.
    pub(super) fn open(server: &Server, end: Instant) -> RedisResult<Wire> {
        let socket = match server.info.addr() {
            ConnectionAddr::Tcp(host, port) => Socket::Tcp(connect(host, *port, end)?),
            #[cfg(unix)]
            ConnectionAddr::Unix(path) => Socket::Unix(UnixStream::connect(path)?),
            #[cfg(feature = "tls")]
            _ => return Wire::open_tls(server, end),
            #[cfg(not(feature = "tls"))]
            _ => return Err(io::Error::from(io::ErrorKind::Unsupported).into()),
        };
        let mut wire = Wire(Line::Own {
            socket,
            parser: Parser::new(),
            waits: true,
        });
        wire.log_in(server.info.redis_settings(), end)?;
        Ok(wire)
    }

    #[cfg(feature = "tls")]
    fn open_tls(server: &Server, end: Instant) -> RedisResult<Wire> {
        let redis = server.info.redis_settings();
        // `redis` waits for each reply of its handshake as long as for all of it.
        let replies = 1 + u32::from(redis.password().is_some() && redis.db() != 0);
        let client = redis::Client::open(server.info.clone())?;
        let connection = client.get_connection_with_timeout(left(end) / replies)?;
        let mut wire = Wire(Line::Tls(Box::new(connection)));
        wire.log_in(&RedisConnectionInfo::default(), end)?; // `redis` has
        Ok(wire)
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
        for (what, name) in NAMES {
            let mut name_us = redis::cmd("CLIENT");
            name_us.arg("SETINFO").arg(what).arg(name);
            name_us.write_packed_command(&mut bytes);
        }
        // Over TLS who writes may read first.
        self.set_timeouts(left(end))?;
        self.send(&bytes)?;
        let mut receive = || {
            self.set_timeouts(left(end))?;
            self.receive()
        };
        if redis.password().is_some()
            && let Value::ServerError(error) = receive()?
        {
            // Whatever the reason, it is a question of rights.
            let (kind, words) = (ErrorKind::AuthenticationFailed, error.to_string());
            return Err((kind, "Password authentication failed", words).into());
        }
        if redis.db() != 0
            && let Value::ServerError(error) = receive()?
        {
            return Err(error.into());
        }
        for _ in NAMES {
            receive()?; // before Redis 7.2 it is an error
        }
        Ok(())
    }

    /// How long a read and a write may take.
    pub(super) fn set_timeouts(&self, timeout: Duration) -> RedisResult<()> {
        let timeout = Some(timeout);
        match &self.0 {
            Line::Own { socket, .. } => match socket {
                Socket::Tcp(tcp) => {
                    tcp.set_read_timeout(timeout)?;
                    tcp.set_write_timeout(timeout)?;
                }
                #[cfg(unix)]
                Socket::Unix(unix) => {
                    unix.set_read_timeout(timeout)?;
                    unix.set_write_timeout(timeout)?;
                }
            },
            #[cfg(feature = "tls")]
            Line::Tls(connection) => {
                connection.set_read_timeout(timeout)?;
                connection.set_write_timeout(timeout)?;
            }
        }
        Ok(())
    }

    pub(super) fn send(&mut self, mut bytes: &[u8]) -> RedisResult<()> {
        match &mut self.0 {
            Line::Own { socket, waits, .. } => {
                while !bytes.is_empty() {
                    match socket.write(bytes) {
                        Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                        Ok(written) => bytes = &bytes[written..],
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock && !*waits => {
                            socket.let_wait(waits, true)?;
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
                Ok(())
            }
            #[cfg(feature = "tls")]
            Line::Tls(connection) => connection.send_packed_command(bytes),
        }
    }

    /// Waits for the next reply, for as long as [`set_timeouts`](Wire::set_timeouts) has said.
    pub(super) fn receive(&mut self) -> RedisResult<Value> {
        match &mut self.0 {
            Line::Own {
                socket,
                parser,
                waits,
            } => {
                socket.let_wait(waits, true)?;
                parser.parse_value(socket)
            }
            #[cfg(feature = "tls")]
            Line::Tls(connection) => connection.recv_response(),
        }
    }

    /// Whether replies can be looked for.
    pub(super) fn can_look(&self) -> bool {
        matches!(self.0, Line::Own { .. })
    }

    /// The next reply, if it has come.
    pub(super) fn look(&mut self) -> RedisResult<Option<Value>> {
        match &mut self.0 {
            Line::Own {
                socket,
                parser,
                waits,
            } => {
                socket.let_wait(waits, false)?;
                match parser.parse_value(socket) {
                    Ok(reply) => Ok(Some(reply)),
                    // What has come of it is kept.
                    Err(error) if error.is_timeout() => Ok(None),
                    Err(error) => Err(error),
                }
            }
            #[cfg(feature = "tls")]
            Line::Tls(_) => Ok(None),
        }
    }

    /// Waits for the next message, for as long as [`set_timeouts`](Wire::set_timeouts) has said; unlike other replies one that
    /// has not come may come later.
    pub(super) fn hear(&mut self) -> RedisResult<Msg> {
        match &mut self.0 {
            Line::Own { .. } => loop {
                if let Some(message) = Msg::from_owned_value(self.receive()?) {
                    return Ok(message);
                }
            },
            // After a reply that has timed out `redis` would skip a message.
            #[cfg(feature = "tls")]
            Line::Tls(connection) => {
                let mut messages = connection.as_pubsub();
                let heard = messages.get_message();
                // Its destructor would end all subscriptions, and wait for what the server says to that. It owns nothing.
                std::mem::forget(messages);
                heard
            }
        }
    }
}

/// Connects to the first of a name's addresses that answers.
fn connect(host: &str, port: u16, end: Instant) -> io::Result<TcpStream> {
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, left(end)) {
            Ok(socket) => {
                socket.set_nodelay(true)?;
                return Ok(socket);
            }
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

impl Socket {
    /// Makes reads wait or not, if they do not already.
    fn let_wait(&self, waits: &mut bool, wait: bool) -> io::Result<()> {
        if *waits != wait {
            match self {
                Socket::Tcp(tcp) => tcp.set_nonblocking(!wait)?,
                #[cfg(unix)]
                Socket::Unix(unix) => unix.set_nonblocking(!wait)?,
            }
            *waits = wait;
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(tcp) => tcp.write(bytes),
            #[cfg(unix)]
            Socket::Unix(unix) => unix.write(bytes),
        }
    }
}

impl Read for Socket {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(tcp) => tcp.read(bytes),
            #[cfg(unix)]
            Socket::Unix(unix) => unix.read(bytes),
        }
    }
}
