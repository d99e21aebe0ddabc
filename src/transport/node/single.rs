//! A node that is one server at a time: where an address leads, or where sentinels say.

use std::time::{Duration, Instant};

use crate::config::settings::Settings;
use crate::error::Cause;
use crate::time::clock;
use crate::transport::node::address::Server;
#[cfg(feature = "sentinel")]
use crate::transport::node::sentinel::Watch;
use crate::transport::node::session::RedisSession;
use crate::transport::node::stream::Wire;
use crate::transport::node::subscriber::RedisEar;
use crate::transport::node::traits::{Connector, Ear, Greeting, Session};

/// The way to a node that is one server.
pub(crate) struct Single {
    site: Site,
    connect_timeout: Duration,
    node_timeout: Duration,
}

/// Where its server is.
pub(crate) enum Site {
    At(Server),
    #[cfg(feature = "sentinel")]
    Watched(Watch),
}

impl Single {
    pub(crate) fn new(site: Site, settings: &Settings) -> Single {
        Single {
            site,
            connect_timeout: settings.connect_timeout,
            node_timeout: settings.node_timeout,
        }
    }
}

impl Site {
    /// A connection to the server, and which server that is.
    fn open(&self, end: Instant) -> Result<(Wire, Server), Cause> {
        match self {
            Site::At(server) => server.open(end),
            #[cfg(feature = "sentinel")]
            Site::Watched(watch) => watch.open(end),
        }
    }
}

impl Connector for Single {
    fn connect(&self, former: Option<&Greeting>) -> Result<(Box<dyn Session>, Greeting), Cause> {
        let end = clock::now() + self.connect_timeout;
        let (connection, server) = self.site.open(end)?;
        let mut session = RedisSession::new(connection, self.node_timeout, server.password());
        let former = former.map(|former| (former.run_id.clone(), former.client));
        let greeting = session.greet(former.as_slice(), end)?;
        if let Some(cause) = greeting.about.wrong_mode() {
            return Err(cause);
        }
        Ok((Box::new(session), greeting))
    }

    fn listen(
        &self,
        serve: &mut dyn FnMut(&mut dyn Ear) -> Result<(), Cause>,
    ) -> Result<(), Cause> {
        let (connection, _) = self.site.open(clock::now() + self.connect_timeout)?;
        serve(&mut RedisEar::new(connection, self.node_timeout)?)
    }
}
