//! Release listener: wakes callers that wait for a lock when its release is published.

pub(crate) mod listener;
pub(crate) mod place_sink;
pub(crate) mod places;
mod receivers;
pub(crate) mod reconnect;
pub(crate) mod shared;
pub(crate) mod subscription;
pub(crate) mod subscriptions;
pub(crate) mod yielding;
