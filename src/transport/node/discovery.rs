//! Servers that name other servers: sentinels and the seeds of a cluster.

use std::time::Instant;

use redis::{Cmd, ConnectionAddr, FromRedisValue, RedisError};

use crate::config::address::Target;
use crate::config::endpoint::Address;
use crate::config::settings::Settings;
use crate::error::error::Error;
use crate::error::node_failure::NodeFailure;
use crate::time::deadline::remaining_timeout;
use crate::transport::node::address::{ServerAddress, address_error};
use crate::transport::node::stream::Stream;

/// The maximal length of a host name in DNS, in bytes.
const MAX_HOST_LEN: usize = 255;

impl ServerAddress {
    /// Parses the address of a sentinel or seed, with its own credentials only and this default
    /// port.
    ///
    /// # Errors
    /// - `InvalidConfig`: a Unix socket, a database, or an invalid address.
    pub(crate) fn from_discovery_address(
        address: &Address,
        settings: &Settings,
        port: u16,
    ) -> Result<ServerAddress, Error> {
        let (server, parsed) = ServerAddress::parse(address, settings)?;
        let refuse = |reason| Err(address_error(address, reason));
        let Target::Host { host, port: given } = &parsed.target else {
            return refuse("sentinels and seeds are hosts and ports, not socket paths");
        };
        if parsed.db.is_some_and(|db| db != 0) {
            return refuse("a sentinel or seed has no database but 0");
        }
        Ok(server.with_host_port(host, given.unwrap_or(port)))
    }

    /// Returns the address of another server with the same credentials and TLS settings.
    pub(crate) fn with_host_port(&self, host: &str, port: u16) -> ServerAddress {
        let mut addr = self.info.addr().clone();
        match &mut addr {
            ConnectionAddr::TcpTls {
                host: old_host,
                port: old_port,
                ..
            }
            | ConnectionAddr::Tcp(old_host, old_port) => {
                host.clone_into(old_host);
                *old_port = port;
            }
            // `from_discovery_address` accepts no other kind of address.
            _ => addr = ConnectionAddr::Tcp(host.to_owned(), port),
        }
        let mut server = self.clone();
        server.info = server.info.set_addr(addr);
        server
    }

    /// Sends a command on a new connection and returns its reply.
    pub(crate) fn query<T: FromRedisValue>(
        &self,
        connection: &mut Stream,
        command: &Cmd,
        end: Instant,
    ) -> Result<T, NodeFailure> {
        let mut exchange = || -> Result<T, RedisError> {
            connection.set_timeouts(remaining_timeout(end))?;
            connection.send(&command.get_packed_command())?;
            Ok(redis::from_redis_value(
                connection.receive(end)?.extract_error()?,
            )?)
        };
        let reply = exchange();
        reply.map_err(|error| connection.failure(&error, self.password()))
    }
}

/// Returns whether a foreign server may name this host. It appears in logs and errors.
pub(crate) fn is_host(name: &str) -> bool {
    (1..=MAX_HOST_LEN).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Prefixes the failure of one of a node's servers with its address.
pub(crate) fn prefix_failure(host_port: &str, failure: NodeFailure) -> NodeFailure {
    match failure {
        NodeFailure::AccessDenied(text) => {
            NodeFailure::AccessDenied(format!("{host_port}: {text}"))
        }
        NodeFailure::ServerError(text) => NodeFailure::ServerError(format!("{host_port}: {text}")),
        NodeFailure::Unreachable(text) => NodeFailure::Unreachable(format!("{host_port}: {text}")),
        other => NodeFailure::Unreachable(format!("{host_port}: {other}")),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn host_is_printable_and_at_most_255_bytes() {
        for name in [
            "10.0.0.1",
            "redis-1.internal",
            "fe80::1%eth0",
            &"x".repeat(255),
        ] {
            assert!(is_host(name), "{name}");
        }
        for name in ["", "a b", "a\nb", "a\x1b[2J", "é", &"x".repeat(256)] {
            assert!(!is_host(name), "{name}");
        }
    }
}
