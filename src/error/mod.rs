//! The public error type, with a failure for each node.

mod classes;
pub(crate) mod contended_lock;
mod details;
pub(crate) mod duration_text;
#[expect(clippy::module_inception, reason = "named for its type")]
pub(crate) mod error;
pub(crate) mod failed_node;
pub(crate) mod loss_reason;
pub(crate) mod node_failure;
pub(crate) mod operation;
