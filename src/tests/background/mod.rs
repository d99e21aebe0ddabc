//! Background threads over fake nodes.

pub(crate) mod loss_notifier;
