//! Threads that serve all locks of a `Nodes`: renewal, release listener, loss notifier.
//!
//! Each starts on first use, holds no handle that keeps a `Nodes` alive, and survives a panic.

pub(crate) mod holder_check;
pub(crate) mod loss_handler;
pub(crate) mod loss_notifier;
pub(crate) mod release_listener;
pub(crate) mod renewal;
