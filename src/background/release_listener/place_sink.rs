//! The sink for the replies to requests for a place in a waiting list. The places themselves arrive
//! as messages.
//!
//! An error of one lock alone, such as a foreign value under the key of its list, never keeps other
//! locks from their places (L2).

use std::time::{Duration, Instant};

use log::debug;

use crate::error::node_failure::NodeFailure;
use crate::protocol::reply::Reply;
use crate::protocol::server_error;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::threads;
use crate::time::clock;
use crate::transport::job::ReplySink;

/// After a node refused a place by its rights or for want of memory, the listener asks no node for a
/// place during this time.
const REFUSAL_TIME: Duration = Duration::from_secs(60);

/// Records that a node refuses all places: by its rights, or for want of memory. One refusal counts
/// for all nodes, also after the listener has connected to another.
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
        if !refuses_all(&cause) {
            return;
        }
        let until = clock::to_micros(clock::now() + REFUSAL_TIME);
        self.refused_until.store(until, Ordering::Relaxed);
        threads::log(|| debug!("no waiting list, so each release wakes all waiters: {cause}"));
    }
}

/// Returns whether a node that refuses one place for this cause refuses those of other locks, too.
fn refuses_all(cause: &NodeFailure) -> bool {
    match cause {
        NodeFailure::AccessDenied(_) => true,
        NodeFailure::ServerError(text) => server_error::code(text) == "OOM",
        _ => false,
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn error_about_one_list_does_not_refuse_the_places_of_others() {
        let error = |text: &str| NodeFailure::ServerError(text.to_owned());
        for (cause, refuses) in [
            (NodeFailure::AccessDenied("NOPERM".to_owned()), true),
            (error("OOM command not allowed"), true),
            (error("TRYAGAIN multiple keys"), false),
            (NodeFailure::WrongType, false),
            (NodeFailure::CrossSlot, false),
            (NodeFailure::TimedOut, false),
            (NodeFailure::Unreachable("reset".to_owned()), false),
        ] {
            let sink = PlaceSink::default();
            sink.deliver(0, 0, Reply::Failed(cause.clone()));
            assert_eq!(sink.has_refused(clock::now()), refuses, "{cause}");
        }
    }
}
