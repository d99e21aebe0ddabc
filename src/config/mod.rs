//! Settings, validated before any I/O.

pub(crate) mod address;
pub(crate) mod builder;
pub(crate) mod credentials;
pub(crate) mod endpoint;
pub(crate) mod on_drop;
pub(crate) mod owner_label;
#[cfg(feature = "serde")]
mod plain;
pub(crate) mod settings;
#[cfg(feature = "tls")]
pub(crate) mod tls;
