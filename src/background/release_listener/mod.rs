//! Release listener: wakes callers that wait for a lock when its release is published.

pub(crate) mod listener;
mod place_sink;
mod places;
mod receivers;
mod reconnect;
pub(crate) mod shared;
pub(crate) mod subscription;
pub(crate) mod subscriptions;
mod yielding;
