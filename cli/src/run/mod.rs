//! `run`: runs a command under a lock.

pub(crate) mod acquire;
pub(crate) mod command;
pub(crate) mod guard;
pub(crate) mod locked;
pub(crate) mod loss;
pub(crate) mod options;
pub(crate) mod owner;
pub(crate) mod repetition;
pub(crate) mod signals;
pub(crate) mod supervise;
pub(crate) mod witness;

use std::time::Duration;

use crate::failure::Result;
use crate::run::acquire::Acquired;
use crate::run::signals::Received;

/// An event that `run` reacts to.
pub(crate) enum Event {
    /// The lock was acquired, or not.
    Acquired(Result<Box<Acquired>>),
    Signal(Received),
    /// Renewals fail, with the time left; or `None`, one has succeeded.
    Danger {
        remaining: Option<Duration>,
    },
    Lost {
        has_expired: bool,
    },
}
