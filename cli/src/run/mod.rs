//! `run`: runs a command under a lock.

pub(crate) mod acquire;
pub(crate) mod command;
pub(crate) mod event;
pub(crate) mod guard;
pub(crate) mod locked;
pub(crate) mod loss;
pub(crate) mod options;
pub(crate) mod owner;
pub(crate) mod repetition;
pub(crate) mod signals;
pub(crate) mod supervise;
pub(crate) mod witness;
