//! The leases to renew, by due time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::protocol::lease::Lease;
use crate::protocol::reply::Reply;
use crate::protocol::ttl::Ttl;
use crate::random;
use crate::time::timer_queue::TimerQueue;
use crate::transport::job::ReplySink;

/// The thread's name.
pub(crate) const NAME: &str = "redguard-renewal";

/// Renewals go out early by up to this part of their TTL, so that those which are due at about the same time travel together.
const SEND_AHEAD_FRACTION: u32 = 60;

/// The longest pause after failures is this part of a TTL; the first one is an eighth of it.
const MAX_RETRY_FRACTION: u32 = 8;

/// Is told of a lease that was found lost, and how; it owes all the rest.
pub(crate) type OnLeaseLost = Arc<dyn Fn(&Arc<Lease>, &str) + Send + Sync>;

pub(crate) struct RenewalQueue {
    pub(crate) state: Mutex<RenewalQueueState>,
    pub(crate) changed: Condvar,
}

pub(crate) struct RenewalQueueState {
    pub(crate) agenda: TimerQueue<RenewalEntry>,
    /// The leases whose renewal is on its way, and not in the agenda: what the thread has of them may be gone with a panic.
    pub(crate) open: HashMap<u64, RenewalEntry>,
    /// Answers, with the numbers of their rounds and nodes.
    pub(crate) arrived: Vec<(u32, usize, Reply)>,
    /// The thread sleeps until so many answers are there.
    pub(crate) wanted: usize,
    pub(crate) stopping: bool,
}

#[derive(Clone)]
pub(crate) struct RenewalEntry {
    pub(crate) lease: Arc<Lease>,
    pub(crate) ttl: Ttl,
    /// When renewing ends, whatever the lease.
    pub(crate) until: Option<Instant>,
    pub(crate) failures: u32,
}

impl RenewalEntry {
    /// From one renewal to the next: a third of the TTL, a tenth more or less, so that what was taken in one burst does not
    /// come in one burst for ever.
    pub(crate) fn interval(&self) -> Duration {
        let spread = 0.9 + 0.2 * random::unit();
        (self.ttl.duration() / 3).mul_f64(spread)
    }

    /// The pause after a failure.
    pub(crate) fn pause(&self) -> Duration {
        let longest = self.ttl.duration() / MAX_RETRY_FRACTION;
        let doubled = longest / 8 * (1 << self.failures.min(3));
        doubled.mul_f64(0.5 + random::unit() / 2.0)
    }

    pub(crate) fn send_ahead(&self) -> Duration {
        self.ttl.duration() / SEND_AHEAD_FRACTION
    }
}

impl ReplySink for RenewalQueue {
    fn deliver(&self, round: u32, node: usize, answer: Reply) {
        let mut state = self.state.lock();
        state.arrived.push((round, node, answer));
        // The first one wakes it, too: then it waits for the others with a limit.
        let enough = state.arrived.len() == 1 || state.arrived.len() == state.wanted;
        drop(state); // the thread need not wait for us when it wakes
        if enough {
            self.changed.notify_one();
        }
    }
}
