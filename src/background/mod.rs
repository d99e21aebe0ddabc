//! Threads that serve all locks: renewal, the release listener, losses.

pub(crate) mod loss_handler;
pub(crate) mod loss_notifier;
pub(crate) mod release_listener;
pub(crate) mod renewal;
