//! A node that is one server: at a fixed address, or the master that sentinels name.
//!
//! A session is never that of a sentinel or of a member of a cluster.
//!
//! Tests: `tests/it/nodes/connecting.rs`, `sentinels.rs`, `outage.rs`.

use std::time::{Duration, Instant};

use crate::config::settings::Settings;
use crate::error::node_failure::NodeFailure;
use crate::time::clock;
use crate::transport::node::address::ServerAddress;
#[cfg(feature = "sentinel")]
use crate::transport::node::sentinel::SentinelResolver;
use crate::transport::node::session::RedisSession;
use crate::transport::node::stream::Stream;
use crate::transport::node::subscriber::RedisSubscriber;
use crate::transport::node::traits::{Connector, Handshake, Session, Subscriber};

/// The connector of a node that is one server.
pub(crate) struct SingleServerConnector {
    source: ServerSource,
    connect_timeout: Duration,
    node_timeout: Duration,
}

/// The source of the server's address.
pub(crate) enum ServerSource {
    Fixed(ServerAddress),
    #[cfg(feature = "sentinel")]
    Sentinel(SentinelResolver),
}

impl SingleServerConnector {
    pub(crate) fn new(source: ServerSource, settings: &Settings) -> SingleServerConnector {
        SingleServerConnector {
            source,
            connect_timeout: settings.connect_timeout,
            node_timeout: settings.node_timeout,
        }
    }
}

impl ServerSource {
    /// Opens a connection; returns it with the server's address.
    fn open(&self, end: Instant) -> Result<(Stream, ServerAddress), NodeFailure> {
        match self {
            ServerSource::Fixed(server) => server.open(end),
            #[cfg(feature = "sentinel")]
            ServerSource::Sentinel(resolver) => resolver.open(end),
        }
    }
}

impl Connector for SingleServerConnector {
    fn connect(
        &self,
        former: Option<&Handshake>,
    ) -> Result<(Box<dyn Session>, Handshake), NodeFailure> {
        let end = clock::now() + self.connect_timeout;
        let (connection, server) = self.source.open(end)?;
        let mut session = RedisSession::new(connection, self.node_timeout, server.password());
        let former = former.map(|former| (former.run_id.clone(), former.client_id));
        let handshake = session.handshake(former.as_slice(), end)?;
        if let Some(failure) = handshake.server_info.wrong_mode() {
            return Err(failure);
        }
        Ok((Box::new(session), handshake))
    }

    fn with_subscriber(
        &self,
        serve: &mut dyn FnMut(&mut dyn Subscriber) -> Result<(), NodeFailure>,
    ) -> Result<(), NodeFailure> {
        let (connection, _) = self.source.open(clock::now() + self.connect_timeout)?;
        serve(&mut RedisSubscriber::new(connection, self.node_timeout)?)
    }
}
