//! What the library tells about itself: counters, observers, health.

pub(crate) mod health;
pub(crate) mod observer;
pub(crate) mod stats;
