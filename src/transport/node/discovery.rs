//! Servers that are found by asking others: sentinels and the seeds of a cluster.

use std::time::Instant;

use redis::{Cmd, ConnectionAddr, FromRedisValue, RedisError};

use crate::config::address::Target;
use crate::config::endpoint::Address;
use crate::config::settings::Settings;
use crate::error::{Cause, Error};
use crate::time::deadline::left;
use crate::transport::node::address::{Server, refusal};
use crate::transport::node::stream::Wire;

/// The longest name of a host, in bytes, as DNS has it.
const MOST_HOST: usize = 255;

impl Server {
    /// Reads the address of one that tells where the servers are, with its own credentials only. Where it names no port
    /// it has this one.
    pub(crate) fn read_guide(
        address: &Address,
        settings: &Settings,
        port: u16,
    ) -> Result<Server, Error> {
        let (server, parsed) = Server::parse(address, settings)?;
        let refuse = |reason| Err(refusal(address, reason));
        let Target::Host { host, port: given } = &parsed.target else {
            return refuse("what it names are hosts and ports, so it must be one of them");
        };
        if parsed.db.is_some_and(|db| db != 0) {
            return refuse("it has no database but 0");
        }
        Ok(server.at(host, given.unwrap_or(port)))
    }

    /// Another server that is connected to in the same way.
    pub(crate) fn at(&self, host: &str, port: u16) -> Server {
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
            // `read_guide` lets in no other.
            _ => addr = ConnectionAddr::Tcp(host.to_owned(), port),
        }
        let mut server = self.clone();
        server.info = server.info.set_addr(addr);
        server
    }

    /// Asks something on a connection to it that has just been opened.
    pub(crate) fn ask<T: FromRedisValue>(
        &self,
        connection: &mut Wire,
        question: &Cmd,
        end: Instant,
    ) -> Result<T, Cause> {
        let mut ask = || -> Result<T, RedisError> {
            connection.set_timeouts(left(end))?;
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
    (1..=MOST_HOST).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic())
}

/// A cause of one of a node's servers, told as the node's.
pub(crate) fn of(place: &str, cause: Cause) -> Cause {
    match cause {
        Cause::Denied(text) => Cause::Denied(format!("{place}: {text}")),
        Cause::Server(text) => Cause::Server(format!("{place}: {text}")),
        Cause::Unreachable(text) => Cause::Unreachable(format!("{place}: {text}")),
        other => Cause::Unreachable(format!("{place}: {other}")),
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
