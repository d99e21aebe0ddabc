//! Shared code of the examples: arguments and exit statuses.

pub mod args;
pub mod exit_status;
