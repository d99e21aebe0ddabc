//! The state that the renewal thread shares with its callers: leases by due time, and replies.
//!
//! The engine and `HolderCheck` register leases through `RenewalService`; workers deliver replies
//! here. Neither blocks: the mutex is held for queue operations only.
//!
//! | entry     | stored in                         | ends by                                |
//! |-----------|-----------------------------------|----------------------------------------|
//! | waiting   | `timers`                          | due: in flight                         |
//! | in flight | `in_flight`; the worker's own map | verdict or time limit: waiting or gone |
//! | in flight | as above                          | postponed, or a panic: waiting         |
//! | gone      | nowhere                           |                                        |
//!
//! An entry is gone when its lease has ended, it is unregistered, `renew_until` has passed, or its
//! check has ended.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::protocol::lease::Lease;
use crate::protocol::reply::Reply;
use crate::protocol::ttl::Ttl;
use crate::random;
use crate::random::HashMap;
use crate::sync::primitives::{Condvar, Mutex};
use crate::time::timer_queue::TimerQueue;
use crate::transport::job::ReplySink;

/// The thread's name.
pub(crate) const NAME: &str = "redguard-renewal";

/// A renewal may be sent ahead of time by its TTL divided by this. So renewals that are due at
/// about the same time share one batch.
const SEND_AHEAD_FRACTION: u32 = 60;

/// The TTL divided by this is the longest delay after failed renewals.
const MAX_RETRY_DIVISOR: u32 = 8;

/// The delay doubles this many times until it is the longest one.
const RETRY_DOUBLINGS: u32 = 3;

/// Handles the results of renewals.
pub(crate) trait RenewalResults: Send + Sync {
    /// Handles the loss of a lease that the renewal marked lost. `reason` is for the log.
    fn handle_loss(&self, lease: &Arc<Lease>, reason: &str);

    /// Handles the extension of a lease.
    fn handle_extension(&self, lease: &Lease);
}

/// The leases to renew and the replies to renewals.
pub(super) struct RenewalQueue {
    pub(super) state: Mutex<RenewalQueueState>,
    pub(super) changed: Condvar,
}

pub(super) struct RenewalQueueState {
    /// By token id, due when the lease is to be renewed.
    pub(super) timers: TimerQueue<RenewalEntry>,
    /// The entries whose renewal was sent, by token id. Kept here and not with the thread, so that
    /// a panic of the thread loses none.
    pub(super) in_flight: HashMap<u64, RenewalEntry>,
    /// The replies not yet counted, with their round and node.
    pub(super) replies: Vec<(u32, usize, Reply)>,
    /// The thread is woken when this many replies are there, and also at the first reply.
    pub(super) wake_at: usize,
    pub(super) stopping: bool,
}

/// One lease that is renewed.
#[derive(Clone)]
pub(super) struct RenewalEntry {
    pub(super) lease: Arc<Lease>,
    pub(super) ttl: Ttl,
    /// When renewing ends, even if the lease is held; `None` means no limit.
    pub(super) renew_until: Option<Instant>,
    /// Failed renewals in a row.
    pub(super) failures: u32,
    /// The entry is a check: one extension by the time left, which does not move the expiry.
    pub(super) is_check: bool,
    /// The lease is to be checked once more, because a notice came while a request was in flight.
    pub(super) checks_again: bool,
}

impl RenewalQueue {
    pub(super) fn new() -> RenewalQueue {
        RenewalQueue {
            state: Mutex::new(RenewalQueueState {
                timers: TimerQueue::new(),
                in_flight: HashMap::default(),
                replies: Vec::new(),
                wake_at: 0,
                stopping: false,
            }),
            changed: Condvar::new(),
        }
    }
}

impl RenewalEntry {
    pub(super) fn new(lease: &Arc<Lease>, ttl: Ttl) -> RenewalEntry {
        RenewalEntry {
            lease: Arc::clone(lease),
            ttl,
            renew_until: None,
            failures: 0,
            is_check: false,
            checks_again: false,
        }
    }

    /// Returns the time between two renewals: a third of the TTL, ±10 %. The jitter spreads leases
    /// that were acquired in one burst.
    pub(super) fn interval(&self) -> Duration {
        let factor = 0.9 + 0.2 * random::unit();
        (self.ttl.duration() / 3).mul_f64(factor)
    }

    /// Returns the delay after a failed renewal: TTL/64, doubled per failure up to TTL/8, of which
    /// up to a half is cut at random.
    pub(super) fn retry_delay(&self) -> Duration {
        let max = self.ttl.duration() / MAX_RETRY_DIVISOR;
        let min = max / (1 << RETRY_DOUBLINGS);
        let doubled = min * (1 << self.failures.min(RETRY_DOUBLINGS));
        doubled.mul_f64(0.5 + random::unit() / 2.0)
    }

    /// Returns how long before its due time a renewal may be sent.
    pub(super) fn send_ahead(&self) -> Duration {
        self.ttl.duration() / SEND_AHEAD_FRACTION
    }
}

impl ReplySink for RenewalQueue {
    fn deliver(&self, round: u32, node: usize, reply: Reply) {
        let mut state = self.state.lock();
        state.replies.push((round, node, reply));
        // The first reply wakes the thread, too: from then on it waits for more with a limit.
        let wakes = state.replies.len() == 1 || state.replies.len() == state.wake_at;
        drop(state); // unlock before waking
        if wakes {
            self.changed.notify_one();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    #![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

    use super::*;
    use crate::tests::fixtures::lease;

    const TTL: Duration = Duration::from_secs(64);

    fn entry(failures: u32) -> RenewalEntry {
        RenewalEntry {
            failures,
            ..RenewalEntry::new(&lease("x"), Ttl::parse(TTL, 0.5).unwrap())
        }
    }

    #[test]
    fn interval_is_a_third_of_the_ttl_with_a_tenth_of_jitter() {
        let drawn: Vec<Duration> = (0..1000).map(|_| entry(0).interval()).collect();
        let (third, min, max) = (TTL / 3, drawn.iter().min(), drawn.iter().max());
        let within = |part: f64, low: f64, high: f64| (low..=high).contains(&part);
        let parts = [min, max].map(|part| part.unwrap().as_secs_f64() / third.as_secs_f64());
        // Of a thousand draws some are close to both ends.
        assert!(within(parts[0], 0.9, 0.92), "{parts:?}");
        assert!(within(parts[1], 1.08, 1.1), "{parts:?}");
    }

    #[test]
    fn retry_delay_doubles_per_failure_up_to_an_eighth_of_the_ttl() {
        for (failures, whole) in [(0, 1), (1, 2), (2, 4), (3, 8), (4, 8), (u32::MAX, 8)] {
            let whole = Duration::from_secs(whole);
            let drawn: Vec<Duration> = (0..1000).map(|_| entry(failures).retry_delay()).collect();
            let within = |delay: &Duration| (whole / 2..=whole).contains(delay);
            assert!(drawn.iter().all(within), "after {failures}");
            let (min, max) = (drawn.iter().min(), drawn.iter().max());
            let spread = *max.unwrap() - *min.unwrap();
            assert!(spread > whole / 4, "after {failures}: {spread:?}");
        }
    }
}
