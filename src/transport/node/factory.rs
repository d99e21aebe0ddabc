//! From an endpoint to its connector.

use std::sync::Arc;

use crate::config::endpoint::{Endpoint, Kind};
use crate::config::settings::Settings;
use crate::error::Error;
use crate::transport::node::address::Server;
#[cfg(feature = "cluster")]
use crate::transport::node::cluster;
#[cfg(feature = "sentinel")]
use crate::transport::node::sentinel;
use crate::transport::node::single::{Single, Site};
use crate::transport::node::traits::Connector;

/// The way to a node, and the node's name: where it is, so that one named twice is found before any I/O. The database is no
/// part of it.
///
/// # Errors
/// `InvalidConfig` that names the address without its credentials.
pub(crate) fn connector(
    endpoint: &Endpoint,
    settings: &Settings,
) -> Result<(String, Arc<dyn Connector>), Error> {
    Ok(match endpoint.kind() {
        Kind::Server(address) => {
            let server = Server::read(address, settings)?;
            let name = server.place();
            (name, Arc::new(Single::new(Site::At(server), settings)))
        }
        #[cfg(feature = "sentinel")]
        Kind::Sentinel { master, sentinels } => {
            let watch = sentinel::Watch::new(master, sentinels, settings)?;
            let name = watch.name().to_owned();
            (name, Arc::new(Single::new(Site::Watched(watch), settings)))
        }
        #[cfg(feature = "cluster")]
        Kind::Cluster { seeds } => {
            let cluster = cluster::Cluster::new(seeds, settings)?;
            (cluster.name().to_owned(), Arc::new(cluster))
        }
    })
}
