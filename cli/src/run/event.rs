//! The events that `run` waits for: from the lock, and from the system.

use std::time::Duration;

use redguard::Nodes;

use crate::failure::Result;
use crate::run::guard::Guard;
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

/// An acquired lock.
pub(crate) struct Acquired {
    pub(crate) nodes: Nodes,
    pub(crate) guard: Guard,
}
