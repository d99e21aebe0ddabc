//! The pure part of the protocol: leases, votes, requests, replies and scripts, without I/O,
//! threads or clocks.

pub(crate) mod batch;
pub(crate) mod breaker;
pub(crate) mod command;
pub(crate) mod encode;
pub(crate) mod endangered_lock;
pub(crate) mod fencing;
#[cfg(any(feature = "cluster", all(test, not(loom))))]
pub(crate) mod hash_slot;
pub(crate) mod holder;
pub(crate) mod key;
pub(crate) mod key_existence;
pub(crate) mod key_set;
pub(crate) mod kind;
pub(crate) mod lease;
pub(crate) mod lost_lock;
pub(crate) mod mode;
pub(crate) mod node_set;
pub(crate) mod permits;
pub(crate) mod quorum;
pub(crate) mod reply;
pub(crate) mod request;
pub(crate) mod restoration;
pub(crate) mod retry;
pub(crate) mod scripts;
pub(crate) mod send_check;
pub(crate) mod server_error;
pub(crate) mod server_info;
pub(crate) mod token;
pub(crate) mod ttl;
pub(crate) mod validity;
