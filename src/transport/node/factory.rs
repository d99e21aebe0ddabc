//! From an endpoint to its connector.

use std::sync::Arc;

use crate::config::endpoint::{Endpoint, EndpointKind};
use crate::config::settings::Settings;
use crate::error::Error;
use crate::transport::node::address::ServerAddress;
#[cfg(feature = "cluster")]
use crate::transport::node::cluster;
#[cfg(feature = "sentinel")]
use crate::transport::node::sentinel;
use crate::transport::node::single::{ServerSource, SingleServerConnector};
use crate::transport::node::traits::Connector;

/// The way to a node, and the node's name: where it is, so that one named twice is found before any I/O. The database is no
/// part of it.
///
/// # Errors
/// `InvalidConfig` that names the address without its credentials.
pub(crate) fn make_connector(
    endpoint: &Endpoint,
    settings: &Settings,
) -> Result<(String, Arc<dyn Connector>), Error> {
    Ok(match endpoint.kind() {
        EndpointKind::Server(address) => {
            let server = ServerAddress::from_address(address, settings)?;
            let name = server.host_port();
            (
                name,
                Arc::new(SingleServerConnector::new(
                    ServerSource::Fixed(server),
                    settings,
                )),
            )
        }
        #[cfg(feature = "sentinel")]
        EndpointKind::Sentinel { master, sentinels } => {
            let watch = sentinel::SentinelResolver::new(master, sentinels, settings)?;
            let name = watch.name().to_owned();
            (
                name,
                Arc::new(SingleServerConnector::new(
                    ServerSource::Sentinel(watch),
                    settings,
                )),
            )
        }
        #[cfg(feature = "cluster")]
        EndpointKind::Cluster { seeds } => {
            let cluster = cluster::ClusterConnector::new(seeds, settings)?;
            (cluster.name().to_owned(), Arc::new(cluster))
        }
    })
}
