//! Connections to the servers of one node.

use std::time::Duration;

use redis::{
    Client, ClientTlsConfig, Cmd, Connection, ConnectionAddr, ConnectionInfo, ErrorKind,
    FromRedisValue, RedisError, RedisResult, TlsCertificates,
};

use crate::config::{Settings, TlsFiles};
use crate::failure::Result;
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
}

impl NodeConnection {
    /// Prepares the connection. Does not connect.
    pub(crate) fn new(spec: &NodeSpec, settings: &Settings) -> Result<NodeConnection> {
        Ok(NodeConnection {
            name: spec.name(),
            servers: spec.servers()?,
            tls: settings.tls.clone(),
            timeout: settings.timeout,
            connect_timeout: settings.connect_timeout(),
            open: Vec::new(),
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

    fn connect(&self) -> RedisResult<Vec<Connection>> {
        match &self.servers {
            Servers::One(server) => Ok(vec![self.open_one(server)?]),
            Servers::Sentinel(sentinels, master, template) => {
                let address = self.first_answer(sentinels, |connection| {
                    Cmd::new()
                        .arg("SENTINEL")
                        .arg("GET-MASTER-ADDR-BY-NAME")
                        .arg(master)
                        .query::<Option<(String, u16)>>(connection)
                })?;
                let (host, port) = address.ok_or_else(|| {
                    RedisError::from((ErrorKind::Io, "the sentinels do not know the master"))
                })?;
                Ok(vec![self.open_one(&at(template, host, port))?])
            }
            Servers::Cluster(seeds) => {
                let slots = self.first_answer(seeds, |connection| {
                    Cmd::new()
                        .arg("CLUSTER")
                        .arg("SLOTS")
                        .query::<Vec<redis::Value>>(connection)
                })?;
                let mut masters: Vec<(String, u16)> = slots.iter().filter_map(master_of).collect();
                masters.sort();
                masters.dedup();
                let Some(seed) = seeds.first() else {
                    return Ok(Vec::new());
                };
                let masters = masters.into_iter();
                masters
                    .map(|(host, port)| self.open_one(&at(seed, host, port)))
                    .collect()
            }
        }
    }

    /// Asks one server after the other until one answers.
    fn first_answer<T>(
        &self,
        servers: &[ConnectionInfo],
        mut request: impl FnMut(&mut Connection) -> RedisResult<T>,
    ) -> RedisResult<T> {
        let mut last = RedisError::from((ErrorKind::Io, "no addresses"));
        for server in servers {
            match self
                .open_one(server)
                .and_then(|mut open| request(&mut open))
            {
                Ok(answer) => return Ok(answer),
                Err(error) => last = error,
            }
        }
        Err(last)
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
        let connection = client.get_connection_with_timeout(self.connect_timeout)?;
        // The timeouts of the handshake have been cleared.
        connection.set_read_timeout(Some(self.timeout))?;
        connection.set_write_timeout(Some(self.timeout))?;
        Ok(connection)
    }
}

/// Installs the provider that the library would install, unless there is one.
fn install_crypto_provider() {
    // An error says that there is one.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Returns the address of another server with the same credentials and encryption.
fn at(template: &ConnectionInfo, host: String, port: u16) -> ConnectionInfo {
    let address = match template.addr().clone() {
        ConnectionAddr::TcpTls {
            insecure,
            tls_params,
            ..
        } => ConnectionAddr::TcpTls {
            host,
            port,
            insecure,
            tls_params,
        },
        _ => ConnectionAddr::Tcp(host, port),
    };
    template.clone().set_addr(address)
}

/// Returns the master of an entry of CLUSTER SLOTS: first slot, last slot, master, replicas.
fn master_of(entry: &redis::Value) -> Option<(String, u16)> {
    let redis::Value::Array(fields) = entry else {
        return None;
    };
    let redis::Value::Array(master) = fields.get(2)? else {
        return None;
    };
    let host = String::from_redis_value(master.first()?.clone()).ok()?;
    let port = u16::from_redis_value(master.get(1)?.clone()).ok()?;
    Some((host, port))
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
