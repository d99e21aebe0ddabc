//! Opens connections to a server.

use std::time::Instant;

use redis::ConnectionAddr;

use crate::error::NodeFailure;
use crate::time::clock;
use crate::time::deadline::remaining_timeout;
use crate::transport::node::address::ServerAddress;
use crate::transport::node::stream::Stream;

impl ServerAddress {
    /// Connects and logs in. Returns the server with the credentials that did so. Looking up a name has no time-out, so it can
    /// take longer than until `end`.
    pub(crate) fn open(&self, end: Instant) -> Result<(Stream, ServerAddress), NodeFailure> {
        let server = self.with_current_credentials()?;
        let timeout = match server.info.addr() {
            // What hangs over TLS has more to tell than that it does: in time for who waits for `connect_timeout`.
            ConnectionAddr::TcpTls { .. } => remaining_timeout(end) * 7 / 8,
            _ => remaining_timeout(end),
        };
        match Stream::open(&server, clock::now() + timeout) {
            Ok(wire) => Ok((wire, server)),
            Err(error) => Err(server.connect_failure(&error)),
        }
    }
}
