//! Opens connections to a server.

use std::time::Instant;

use redis::ConnectionAddr;

use crate::error::Cause;
use crate::time::clock;
use crate::time::deadline::left;
use crate::transport::node::address::Server;
use crate::transport::node::stream::Wire;

impl Server {
    /// Connects and logs in. Returns the server with the credentials that did so. Looking up a name has no time-out, so it can
    /// take longer than until `end`.
    pub(crate) fn open(&self, end: Instant) -> Result<(Wire, Server), Cause> {
        let server = self.with_current_credentials()?;
        let timeout = match server.info.addr() {
            // What hangs over TLS has more to tell than that it does: in time for who waits for `connect_timeout`.
            ConnectionAddr::TcpTls { .. } => left(end) * 7 / 8,
            _ => left(end),
        };
        match Wire::open(&server, clock::now() + timeout) {
            Ok(wire) => Ok((wire, server)),
            Err(error) => Err(server.connect_failure(&error)),
        }
    }
}
