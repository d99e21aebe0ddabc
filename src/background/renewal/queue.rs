//! The leases to renew, by due time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::protocol::lease::Lease;
use crate::protocol::reply::Answer;
use crate::protocol::ttl::Ttl;
use crate::random;
use crate::time::timer_queue::Agenda;
use crate::transport::job::Addressee;

/// The thread's name.
pub(crate) const NAME: &str = "redguard-renewal";

/// Renewals go out early by up to this part of their TTL, so that those which are due at about the same time travel together.
const EARLY: u32 = 60;

/// The longest pause after failures is this part of a TTL; the first one is an eighth of it.
const LONGEST_PAUSE: u32 = 8;

/// Is told of a lease that was found lost, and how; it owes all the rest.
pub(crate) type Lost = Arc<dyn Fn(&Arc<Lease>, &str) + Send + Sync>;

pub(crate) struct Desk {
    pub(crate) state: Mutex<State>,
    pub(crate) changed: Condvar,
}

pub(crate) struct State {
    pub(crate) agenda: Agenda<Renewed>,
    /// The leases whose renewal is on its way, and not in the agenda: what the thread has of them may be gone with a panic.
    pub(crate) open: HashMap<u64, Renewed>,
    /// Answers, with the numbers of their rounds and nodes.
    pub(crate) arrived: Vec<(u32, usize, Answer)>,
    /// The thread sleeps until so many answers are there.
    pub(crate) wanted: usize,
    pub(crate) stopping: bool,
}

#[derive(Clone)]
pub(crate) struct Renewed {
    pub(crate) lease: Arc<Lease>,
    pub(crate) ttl: Ttl,
    /// When renewing ends, whatever the lease.
    pub(crate) until: Option<Instant>,
    pub(crate) failures: u32,
}

impl Renewed {
    /// From one renewal to the next: a third of the TTL, a tenth more or less, so that what was taken in one burst does not
    /// come in one burst for ever.
    pub(crate) fn interval(&self) -> Duration {
        let spread = 0.9 + 0.2 * random::unit();
        (self.ttl.duration() / 3).mul_f64(spread)
    }

    /// The pause after a failure.
    pub(crate) fn pause(&self) -> Duration {
        let longest = self.ttl.duration() / LONGEST_PAUSE;
        let doubled = longest / 8 * (1 << self.failures.min(3));
        doubled.mul_f64(0.5 + random::unit() / 2.0)
    }

    pub(crate) fn early(&self) -> Duration {
        self.ttl.duration() / EARLY
    }
}

impl Addressee for Desk {
    fn post(&self, round: u32, node: usize, answer: Answer) {
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
