//! Creates the connector of an endpoint.
//!
//! Tests: `tests/it/nodes/sentinels.rs`, `clusters.rs`, `unix_sockets.rs`.

use std::sync::Arc;

use crate::config::endpoint::{Endpoint, EndpointKind};
use crate::config::settings::Settings;
use crate::error::error::Error;
use crate::transport::node::address::ServerAddress;
#[cfg(feature = "cluster")]
use crate::transport::node::cluster;
#[cfg(feature = "sentinel")]
use crate::transport::node::sentinel;
use crate::transport::node::single::{ServerSource, SingleServerConnector};
use crate::transport::node::traits::Connector;

/// Returns the connector of a node and the node's name. The name is the address without the
/// database, so that a node that is configured twice is found before any I/O.
///
/// # Errors
/// - `InvalidConfig` with the address, without its credentials.
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
            let resolver = sentinel::SentinelResolver::new(master, sentinels, settings)?;
            let name = resolver.name().to_owned();
            (
                name,
                Arc::new(SingleServerConnector::new(
                    ServerSource::Sentinel(resolver),
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
