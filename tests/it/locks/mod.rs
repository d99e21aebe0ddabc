//! Locks on real servers.

pub(crate) mod adopt;
pub(crate) mod at_the_end;
pub(crate) mod cancellation;
pub(crate) mod conformance;
pub(crate) mod expiry;
pub(crate) mod fencing;
pub(crate) mod handoff;
pub(crate) mod min_hold;
pub(crate) mod multi_key;
pub(crate) mod one_shot;
pub(crate) mod processes;
pub(crate) mod renewal;
pub(crate) mod rw_conformance;
pub(crate) mod rw_processes;
pub(crate) mod rw_starvation;
pub(crate) mod semaphore;
pub(crate) mod topologies;
