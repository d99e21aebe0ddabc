//! The sink for the replies to requests for a place in a waiting list. The places themselves arrive
//! as messages.

use std::time::{Duration, Instant};

use log::debug;

use crate::error::NodeFailure;
use crate::protocol::reply::Reply;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::time::clock;
use crate::transport::job::ReplySink;

/// No place is asked for during this time after a node refused one.
const REFUSAL_TIME: Duration = Duration::from_secs(60);

/// Records that a node refuses places: by its rights, for want of memory, or for a foreign value.
#[derive(Default)]
pub(super) struct PlaceSink {
    /// In µs of the steady clock; 0 without a refusal.
    refused_until: AtomicU64,
}

impl PlaceSink {
    /// Returns whether no place is to be asked for at `now`.
    pub(super) fn has_refused(&self, now: Instant) -> bool {
        clock::to_micros(now) < self.refused_until.load(Ordering::Relaxed)
    }
}

impl ReplySink for PlaceSink {
    fn deliver(&self, _: u32, _: usize, reply: Reply) {
        let Reply::Failed(cause) = reply else {
            return;
        };
        if matches!(cause, NodeFailure::Unreachable(_) | NodeFailure::TimedOut) {
            return; // the listener will be told another place
        }
        let until = clock::to_micros(clock::now() + REFUSAL_TIME);
        self.refused_until.store(until, Ordering::Relaxed);
        debug!("no waiting list, so each release wakes all waiters: {cause}");
    }
}
