//! A node in memory with replies that a test decides.

pub(crate) mod messages;
pub(crate) mod node;
pub(crate) mod store;
pub(crate) mod stored_lock;
