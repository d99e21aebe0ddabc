//! The events that `run` waits for: from the lock, and from the system.

use std::time::Instant;

use redguard::Nodes;

use crate::failure::Result;
use crate::run::guard::Guard;
use crate::run::signals::Received;

/// An event that `run` reacts to.
pub(crate) enum Event {
    /// The lock was acquired, or not.
    Acquired(Result<Box<Acquired>>),
    Signal(Received),
    /// Renewals fail, with the end of the lock; or `None`, one has succeeded.
    Danger {
        end: Option<Instant>,
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
