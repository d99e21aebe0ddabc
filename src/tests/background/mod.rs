//! The threads that serve all locks, over fake nodes.

pub(crate) mod loss_notifier;
