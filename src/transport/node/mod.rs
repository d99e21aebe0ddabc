//! One Redis system: sockets, sessions, topologies.

pub(crate) mod address;
pub(crate) mod array_headers;
#[cfg(feature = "cluster")]
pub(crate) mod cluster;
#[cfg(feature = "cluster")]
pub(crate) mod cluster_session;
pub(crate) mod connect;
pub(crate) mod direct;
#[cfg(any(feature = "sentinel", feature = "cluster"))]
pub(crate) mod discovery;
pub(crate) mod factory;
pub(crate) mod handshake;
pub(crate) mod plain_stream;
#[cfg(feature = "sentinel")]
pub(crate) mod sentinel;
pub(crate) mod session;
pub(crate) mod single;
#[cfg(feature = "cluster")]
pub(crate) mod slot_map;
pub(crate) mod stream;
pub(crate) mod subscriber;
#[cfg(feature = "tls")]
pub(crate) mod tls;
#[cfg(not(feature = "tls"))]
#[path = "tls_disabled.rs"]
pub(crate) mod tls;
pub(crate) mod traits;
