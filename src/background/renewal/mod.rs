//! Renewal: one thread extends the leases of all guards that asked for it.

pub(crate) mod queue;
pub(crate) mod service;
pub(crate) mod worker;
