//! Counters, observer and health. Nothing here influences a lock.

pub(crate) mod health;
pub(crate) mod observer;
pub(crate) mod stats;
