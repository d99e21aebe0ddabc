//! Connections to the servers of one node.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;
use std::{io, thread};

use redis::{
    Client, ClientTlsConfig, Cmd, Connection, ConnectionAddr, ConnectionInfo, ErrorKind,
    RedisError, RedisResult, TlsCertificates, Value,
};

use crate::config::{Settings, TlsFiles};
use crate::failure::Result;
use crate::nodes::discovery::{at, first_answer, host_of, masters};
use crate::nodes::spec::{NodeSpec, Servers};

/// A node, with a connection to each of its servers while they answer: one server, or the masters
/// of a cluster.
pub(crate) struct NodeConnection {
    pub(crate) name: String,
    servers: Servers,
    tls: TlsFiles,
    timeout: Duration,
    connect_timeout: Duration,
    /// Kept for the next request, except after an error, when a reply may still arrive.
    open: Vec<Connection>,
    /// A connect to a Unix socket that has not ended within its limit.
    late: Option<Receiver<RedisResult<Connection>>>,
}

impl NodeConnection {
    /// Prepares the connection. Does not connect.
    pub(crate) fn new(spec: &NodeSpec, settings: &Settings) -> Result<NodeConnection> {
        Ok(NodeConnection {
            name: spec.name(),
            servers: spec.servers(!settings.tls.is_empty())?,
            tls: settings.tls.clone(),
            timeout: settings.timeout,
            connect_timeout: settings.connect_timeout(),
            open: Vec::new(),
            late: None,
        })
    }

    /// Asks each server of the node, and returns their answers.
    ///
    /// # Errors
    /// The error of the first server that fails. All connections are then closed.
    pub(crate) fn ask<T>(
        &mut self,
        mut request: impl FnMut(&mut Connection) -> RedisResult<T>,
    ) -> RedisResult<Vec<T>> {
        let mut connections = std::mem::take(&mut self.open);
        if connections.is_empty() {
            connections = self.connect()?;
        }
        let answers = connections.iter_mut().map(&mut request);
        let answers = answers.collect::<RedisResult<Vec<T>>>()?;
        self.open = connections;
        Ok(answers)
    }

    fn connect(&mut self) -> RedisResult<Vec<Connection>> {
        match &self.servers {
            Servers::One(server) => {
                let connection = match server.addr() {
                    ConnectionAddr::Unix(_) => self.open_socket(server.clone())?,
                    _ => self.open_one(server)?,
                };
                Ok(vec![connection])
            }
            Servers::Sentinel(sentinels, master, template) => {
                let (host, port) = first_answer(sentinels, |sentinel| {
                    let address = Cmd::new()
                        .arg("SENTINEL")
                        .arg("GET-MASTER-ADDR-BY-NAME")
                        .arg(master)
                        .query::<Option<(String, u16)>>(&mut self.open_one(sentinel)?)?;
                    address.ok_or_else(|| {
                        let kind = ErrorKind::MasterNameNotFoundBySentinel;
                        (kind, "the sentinel does not know the master").into()
                    })
                })?;
                Ok(vec![self.open_one(&at(template, host, port))?])
            }
            Servers::Cluster(seeds) => {
                let (seed, masters) = first_answer(seeds, |seed| {
                    let slots = Cmd::new()
                        .arg("CLUSTER")
                        .arg("SLOTS")
                        .query::<Value>(&mut self.open_one(seed)?)?;
                    let masters = masters(&slots, host_of(seed)).ok_or_else(|| {
                        let kind = ErrorKind::ClusterConnectionNotFound;
                        RedisError::from((kind, "the seed names no masters"))
                    })?;
                    Ok((seed.clone(), masters))
                })?;
                let masters = masters.into_iter();
                masters
                    .map(|(host, port)| self.open_one(&at(&seed, host, port)))
                    .collect()
            }
        }
    }

    /// Connects to a Unix socket, in a thread: such a connect has no limit of its own, and blocks
    /// while a hung server does not accept those before it. There is one such thread per node,
    /// because the next connect waits for the same.
    fn open_socket(&mut self, server: ConnectionInfo) -> RedisResult<Connection> {
        let attempt = match self.late.take() {
            Some(late) => late,
            None => start_connect(server, self.connect_timeout)?,
        };
        match attempt.recv_timeout(self.connect_timeout) {
            Ok(opened) => self.limited(opened?),
            Err(RecvTimeoutError::Timeout) => {
                self.late = Some(attempt);
                Err(io::Error::from(io::ErrorKind::TimedOut).into())
            }
            Err(RecvTimeoutError::Disconnected) => {
                Err(io::Error::other("the connecting thread has ended").into())
            }
        }
    }

    fn open_one(&self, server: &ConnectionInfo) -> RedisResult<Connection> {
        let is_tls = matches!(server.addr(), ConnectionAddr::TcpTls { .. });
        let client = if is_tls {
            install_crypto_provider();
            let certificates = TlsCertificates {
                client_tls: self.tls.client.clone().map(|(client_cert, client_key)| {
                    ClientTlsConfig {
                        client_cert,
                        client_key,
                    }
                }),
                root_cert: self.tls.ca.clone(),
            };
            Client::build_with_tls(server.clone(), certificates)?
        } else {
            Client::open(server.clone())?
        };
        self.limited(client.get_connection_with_timeout(self.connect_timeout)?)
    }

    /// Sets the limits of replies: those of the handshake have been cleared.
    fn limited(&self, connection: Connection) -> RedisResult<Connection> {
        connection.set_read_timeout(Some(self.timeout))?;
        connection.set_write_timeout(Some(self.timeout))?;
        Ok(connection)
    }
}

/// Connects in a thread, which ends when the connect does.
fn start_connect(
    server: ConnectionInfo,
    limit: Duration,
) -> RedisResult<Receiver<RedisResult<Connection>>> {
    let (opened, attempt) = mpsc::sync_channel(1);
    let builder = thread::Builder::new().name("connect".to_owned());
    builder.spawn(move || {
        let connection =
            Client::open(server).and_then(|client| client.get_connection_with_timeout(limit));
        // The receiver is gone if the node is no longer asked.
        let _ = opened.send(connection);
    })?;
    Ok(attempt)
}

/// Installs the provider that the library would install, unless there is one.
fn install_crypto_provider() {
    // An error says that there is one.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Returns the error without the server's text, which may repeat credentials.
pub(crate) fn describe(error: &RedisError) -> String {
    let text = match (Trouble::of(error), error.code()) {
        (Trouble::Right, _) => "access denied: a right is missing (see `redguard doctor`)",
        (Trouble::Credentials, _) => "access denied: wrong or no credentials",
        (Trouble::Silent, _) => "no answer in time",
        (Trouble::Refused, _) => "the connection is refused",
        (Trouble::Unreachable, _) => "unreachable",
        (_, Some(code)) => return format!("the node replies {code}"),
        (_, None) => error.category(),
    };
    text.to_owned()
}

/// Why a node does not take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Nothing listens there.
    Refused,
    /// It, or the network before it, does not answer in time.
    Silent,
    Unreachable,
    /// It denies access to a user without these credentials.
    Credentials,
    /// A right is missing.
    Right,
    /// It is loading its data.
    Loading,
    /// A script keeps it busy.
    Busy,
    /// Another error.
    Other,
}

impl Trouble {
    pub(crate) fn of(error: &RedisError) -> Trouble {
        match error.code() {
            Some("NOPERM") => Trouble::Right,
            Some("NOAUTH" | "WRONGPASS") => Trouble::Credentials,
            Some("LOADING") => Trouble::Loading,
            Some("BUSY") => Trouble::Busy,
            Some(_) => Trouble::Other,
            None if error.kind() == ErrorKind::AuthenticationFailed => Trouble::Credentials,
            None if error.is_timeout() => Trouble::Silent,
            None if error.is_connection_refusal() => Trouble::Refused,
            None if error.is_io_error() => Trouble::Unreachable,
            None => Trouble::Other,
        }
    }

    /// Returns whether the node denies access, so that waiting does not help.
    pub(crate) fn is_denied(self) -> bool {
        matches!(self, Trouble::Credentials | Trouble::Right)
    }
}
