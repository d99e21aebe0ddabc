//! Opens a connection to a server and logs in.
//!
//! Tests: `tests/it/nodes/connecting.rs`, `tls.rs`.

use std::time::Instant;

use redis::ConnectionAddr;

use crate::error::node_failure::NodeFailure;
use crate::time::clock;
use crate::time::deadline::remaining_timeout;
use crate::transport::node::address::ServerAddress;
use crate::transport::node::stream::Stream;

impl ServerAddress {
    /// Connects and logs in. Returns the address with the credentials that were accepted. Blocks
    /// until `end`, and longer while a host name is resolved or a Unix socket does not accept, which
    /// have no timeout.
    pub(crate) fn open(&self, end: Instant) -> Result<(Stream, ServerAddress), NodeFailure> {
        let server = self.with_current_credentials()?;
        let timeout = match server.info.addr() {
            // Leave time to report the cause of a TLS failure before `connect_timeout` ends.
            ConnectionAddr::TcpTls { .. } => remaining_timeout(end) * 7 / 8,
            _ => remaining_timeout(end),
        };
        match Stream::open(&server, clock::now() + timeout) {
            Ok(stream) => Ok((stream, server)),
            Err(error) => Err(server.connect_failure(&error)),
        }
    }
}
