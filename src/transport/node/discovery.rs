//! Servers that are found by asking others: sentinels and the seeds of a cluster.

use std::time::Instant;

use redis::{Cmd, ConnectionAddr, FromRedisValue, RedisError};

use crate::config::address::Target;
use crate::config::endpoint::Address;
use crate::config::settings::Settings;
use crate::error::{Error, NodeFailure};
use crate::time::deadline::remaining_timeout;
use crate::transport::node::address::{ServerAddress, address_error};
use crate::transport::node::stream::Stream;

/// The longest name of a host, in bytes, as DNS has it.
const MAX_HOST_LEN: usize = 255;

impl ServerAddress {
    /// Reads the address of one that tells where the servers are, with its own credentials only. Where it names no port
    /// it has this one.
    pub(crate) fn from_discovery_address(
        address: &Address,
        settings: &Settings,
        port: u16,
    ) -> Result<ServerAddress, Error> {
        let (server, parsed) = ServerAddress::parse(address, settings)?;
        let refuse = |reason| Err(address_error(address, reason));
        let Target::Host { host, port: given } = &parsed.target else {
            return refuse("what it names are hosts and ports, so it must be one of them");
        };
        if parsed.db.is_some_and(|db| db != 0) {
            return refuse("it has no database but 0");
        }
        Ok(server.with_host_port(host, given.unwrap_or(port)))
    }

    /// Another server that is connected to in the same way.
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
            // `from_discovery_address` lets in no other.
            _ => addr = ConnectionAddr::Tcp(host.to_owned(), port),
        }
        let mut server = self.clone();
        server.info = server.info.set_addr(addr);
        server
    }

    /// Asks something on a connection to it that has just been opened.
    pub(crate) fn query<T: FromRedisValue>(
        &self,
        connection: &mut Stream,
        question: &Cmd,
        end: Instant,
    ) -> Result<T, NodeFailure> {
        let mut ask = || -> Result<T, RedisError> {
            connection.set_timeouts(remaining_timeout(end))?;
            connection.send(&question.get_packed_command())?;
            Ok(redis::from_redis_value(
                connection.receive(end)?.extract_error()?,
            )?)
        };
        let asked = ask();
        asked.map_err(|error| connection.cause(&error, self.password()))
    }
}

/// Whether others may name this as a host. It is passed on in logs and errors.
pub(crate) fn is_host(name: &str) -> bool {
    (1..=MAX_HOST_LEN).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic())
}

/// A cause of one of a node's servers, told as the node's.
pub(crate) fn prefix_failure(place: &str, cause: NodeFailure) -> NodeFailure {
    match cause {
        NodeFailure::AccessDenied(text) => NodeFailure::AccessDenied(format!("{place}: {text}")),
        NodeFailure::ServerError(text) => NodeFailure::ServerError(format!("{place}: {text}")),
        NodeFailure::Unreachable(text) => NodeFailure::Unreachable(format!("{place}: {text}")),
        other => NodeFailure::Unreachable(format!("{place}: {other}")),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_one_word() {
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
