//! Connections and pipelines over fake nodes.

#[cfg(all(test, not(loom)))]
pub(crate) mod connection;
pub(crate) mod pipeline;
#[cfg(all(test, not(loom), feature = "tls"))]
mod tls;
#[cfg(all(test, not(loom)))]
pub(crate) mod worker;
