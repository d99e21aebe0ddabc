//! Rounds over all nodes, node connections, their workers.

pub(crate) mod cancel;
pub(crate) mod connection;
pub(crate) mod direct_sends;
pub(crate) mod dispatch;
pub(crate) mod inbox;
pub(crate) mod job;
pub(crate) mod load;
pub(crate) mod messages;
pub(crate) mod node;
pub(crate) mod node_group;
pub(crate) mod pending_releases;
pub(crate) mod pipeline;
pub(crate) mod registry;
mod replies;
pub(crate) mod round;
pub(crate) mod startup;
pub(crate) mod status;
pub(crate) mod unreleased;
pub(crate) mod waiters;
pub(crate) mod warning_state;
pub(crate) mod worker;
pub(crate) mod worker_connect;
pub(crate) mod worker_pool;
