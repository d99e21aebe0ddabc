//! Renews the leases of guards that asked for it.

pub(crate) mod queue;
pub(crate) mod service;
pub(crate) mod worker;
