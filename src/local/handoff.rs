//! How a lock goes from one thread to the next that waits for it here, without being free in between: the slot and what is
//! asked of the nodes change hands in one step.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::protocol::lease::Lease;
use crate::protocol::request::Request;
use crate::transport::inbox::Inbox;

/// So often in a row a lock is handed on, and for so long: then it is free for a moment, so that other processes have their turn.
pub(crate) const MAX_STREAK: u32 = 16;
pub(crate) const MAX_STREAK_TIME: Duration = Duration::from_millis(10);

/// What one who waits in a queue can be handed.
#[derive(Clone, Debug)]
pub(crate) struct HandoffOffer {
    /// What is asked of the nodes for it, but for the former lease.
    pub(crate) swap: Request,
    /// When its wait ends.
    pub(crate) end: Option<Instant>,
}

/// What one who holds the slot has been handed with it: a round of its inbox in which the nodes are asked to swap.
#[derive(Debug)]
pub(crate) struct Handoff {
    pub(crate) former: Arc<Lease>,
    /// From before anything was sent; with the wall clock's lead at that time.
    pub(crate) start: Instant,
    pub(crate) lead: i64,
    pub(crate) round: u32,
}

/// Whom a slot was handed to, and what is to be asked for that one.
#[derive(Debug)]
pub(crate) struct HandoffTarget {
    pub(crate) swap: Request,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) round: u32,
}

/// How often a lock was handed on since it was free.
#[derive(Clone, Copy)]
pub(crate) struct HandoffStreak {
    pub(crate) count: u32,
    pub(crate) since: Instant,
}
