//! A node that is one server at a time: where an address leads, or where sentinels say.

use std::time::{Duration, Instant};

use crate::config::settings::Settings;
use crate::error::NodeFailure;
use crate::time::clock;
use crate::transport::node::address::ServerAddress;
#[cfg(feature = "sentinel")]
use crate::transport::node::sentinel::SentinelResolver;
use crate::transport::node::session::RedisSession;
use crate::transport::node::stream::Stream;
use crate::transport::node::subscriber::RedisSubscriber;
use crate::transport::node::traits::{Connector, Handshake, Session, Subscriber};

/// The way to a node that is one server.
pub(crate) struct SingleServerConnector {
    site: ServerSource,
    connect_timeout: Duration,
    node_timeout: Duration,
}

/// Where its server is.
pub(crate) enum ServerSource {
    Fixed(ServerAddress),
    #[cfg(feature = "sentinel")]
    Sentinel(SentinelResolver),
}

impl SingleServerConnector {
    pub(crate) fn new(site: ServerSource, settings: &Settings) -> SingleServerConnector {
        SingleServerConnector {
            site,
            connect_timeout: settings.connect_timeout,
            node_timeout: settings.node_timeout,
        }
    }
}

impl ServerSource {
    /// A connection to the server, and which server that is.
    fn open(&self, end: Instant) -> Result<(Stream, ServerAddress), NodeFailure> {
        match self {
            ServerSource::Fixed(server) => server.open(end),
            #[cfg(feature = "sentinel")]
            ServerSource::Sentinel(watch) => watch.open(end),
        }
    }
}

impl Connector for SingleServerConnector {
    fn connect(
        &self,
        former: Option<&Handshake>,
    ) -> Result<(Box<dyn Session>, Handshake), NodeFailure> {
        let end = clock::now() + self.connect_timeout;
        let (connection, server) = self.site.open(end)?;
        let mut session = RedisSession::new(connection, self.node_timeout, server.password());
        let former = former.map(|former| (former.run_id.clone(), former.client_id));
        let greeting = session.handshake(former.as_slice(), end)?;
        if let Some(cause) = greeting.server_info.wrong_mode() {
            return Err(cause);
        }
        Ok((Box::new(session), greeting))
    }

    fn with_subscriber(
        &self,
        serve: &mut dyn FnMut(&mut dyn Subscriber) -> Result<(), NodeFailure>,
    ) -> Result<(), NodeFailure> {
        let (connection, _) = self.site.open(clock::now() + self.connect_timeout)?;
        serve(&mut RedisSubscriber::new(connection, self.node_timeout)?)
    }
}
