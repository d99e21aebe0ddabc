//! Wakes callers that wait for a lock when it is released.

pub(crate) mod listener;
pub(crate) mod rests;
pub(crate) mod shared;
pub(crate) mod subscriptions;
pub(crate) mod yielding;
