//! A node in memory whose answers a test decides.

pub(crate) mod node;
pub(crate) mod store;
