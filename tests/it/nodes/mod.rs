//! Nodes: outages, networks, topologies, rights.

pub(crate) mod acl;
#[cfg(feature = "cluster")]
pub(crate) mod clusters;
pub(crate) mod connecting;
pub(crate) mod hostile;
pub(crate) mod idle;
pub(crate) mod list_change;
pub(crate) mod network;
pub(crate) mod observability;
pub(crate) mod out_of_memory;
pub(crate) mod outage;
#[cfg(feature = "sentinel")]
pub(crate) mod sentinels;
pub(crate) mod test_servers;
#[cfg(feature = "tls")]
pub(crate) mod tls;
pub(crate) mod unix_sockets;
