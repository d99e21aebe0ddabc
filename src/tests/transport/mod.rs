//! Connections and pipelines over fake nodes.

pub(crate) mod pipeline;
