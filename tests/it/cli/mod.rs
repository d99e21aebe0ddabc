//! The command-line tool, the metrics exporter and the other examples.

pub(crate) mod commands;
pub(crate) mod example;
pub(crate) mod metrics;
pub(crate) mod processes;
