//! The command-line tool and the metrics exporter.

pub(crate) mod commands;
pub(crate) mod metrics;
