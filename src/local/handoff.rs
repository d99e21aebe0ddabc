//! The data of a handoff, without behaviour of its own.
//!
//! A handoff passes a lock from one thread to the next one in the queue without freeing it: one
//! `Swap` per node puts the next thread's token in place of the releasing thread's. A thread goes
//! through these types in order:
//!
//! | step                                     | thread    | type              |
//! |------------------------------------------|-----------|-------------------|
//! | queues with a token of its own           | acquiring | [`HandoffOffer`]  |
//! | makes that thread the holder             | releasing | [`Handoff`]       |
//! | sends the swap, for both inboxes         | releasing | [`HandoffTarget`] |
//! | takes the handoff, waits for the replies | acquiring | [`Handoff`]       |
//!
//! Nothing here may send a request: `engine/handoff.rs` does.
//!
//! Tests: beside `entry.rs`; `src/tests/engine/handoff.rs`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::protocol::lease::Lease;
use crate::protocol::request::Request;
use crate::transport::inbox::Inbox;

/// The largest number of handoffs of a key in a row. Then the key is released, so that other
/// processes can acquire it.
pub(crate) const MAX_STREAK: u32 = 16;

/// The longest time of handoffs in a row, for the same reason.
pub(super) const MAX_STREAK_TIME: Duration = Duration::from_millis(10);

/// A queued thread's part of a handoff: the swap that would make it the holder.
#[derive(Clone, Debug)]
pub(crate) struct HandoffOffer {
    /// The request for the nodes, complete but for the former lease.
    pub(crate) swap: Request,
    /// When the thread's wait ends; `None` means no limit.
    pub(crate) deadline: Option<Instant>,
}

/// A handoff in progress, stored with the new holder until its thread takes it.
#[derive(Debug)]
pub(crate) struct Handoff {
    pub(crate) former: FormerRelease,
    /// The round in the new holder's inbox that receives the replies.
    pub(crate) round: u32,
}

/// The release of the former holder, which a handoff takes the place of.
#[derive(Debug)]
pub(crate) struct FormerRelease {
    pub(crate) lease: Arc<Lease>,
    /// Before the swap was sent; the new holder's validity counts from here (S2).
    pub(crate) start: Instant,
    /// The offset of the wall clock at `start`, in µs.
    pub(crate) wall_offset: i64,
    /// Where the releasing thread waits for the replies.
    pub(crate) inbox: Arc<Inbox>,
    /// The round in `inbox` that receives the replies.
    pub(crate) round: u32,
}

#[cfg(all(test, not(loom)))]
impl FormerRelease {
    /// Returns a release of `lease` that begins now.
    pub(crate) fn of(lease: &Arc<Lease>) -> FormerRelease {
        FormerRelease {
            lease: Arc::clone(lease),
            start: crate::time::clock::now(),
            wall_offset: 0,
            inbox: Arc::new(Inbox::new()),
            round: 0,
        }
    }
}

/// The swap to send, and where its replies go besides the inbox of the releasing thread.
#[derive(Debug)]
pub(crate) struct HandoffTarget {
    pub(crate) swap: Request,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) round: u32,
}

/// The handoffs of a key since it was last free.
#[derive(Clone, Copy)]
pub(super) struct HandoffStreak {
    pub(super) count: u32,
    pub(super) since: Instant,
}

impl HandoffStreak {
    /// Returns whether the key must be released next.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.count == MAX_STREAK || now >= self.since + MAX_STREAK_TIME
    }
}
