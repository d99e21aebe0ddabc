//! The breaker that the threads of a `Nodes` share: who may ask, who waits for whose verdict, and what is said of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use log::{info, warn};
use parking_lot::Mutex;

use crate::config::settings::Settings;
use crate::error::NodeFailure;
use crate::protocol::breaker::{Admission, CircuitBreaker, Connectivity, Phase};
use crate::protocol::quorum::Tally;
use crate::time::clock;
use crate::transport::inbox::Inbox;
use crate::transport::node_group::NodeGroup;
use crate::transport::registry::{Waiter, Waiters};

/// A breaker, and the callers that wait until it is known whether the nodes are back.
#[derive(Debug)]
pub(crate) struct SharedBreaker {
    state: Mutex<SharedBreakerState>,
    /// Whether a quorum answered the last round: then nobody needs to look at the state.
    ///
    /// Who succeeds writes `seen` and then reads this; who fails takes this and then reads `seen`. Both are sequentially
    /// consistent, since with less both could read what was before, and the success would be lost.
    fully_closed: AtomicBool,
    /// When a quorum was last seen while it was calm, in [`time::micros`].
    last_quorum: AtomicU64,
    /// Whether locks are held in this process while it is open.
    allow_degraded: bool,
    /// The names of the nodes, for the log.
    nodes: String,
    /// The callers that wait until it is known whether the nodes are back.
    waiters: Arc<Waiters>,
}

#[derive(Debug)]
struct SharedBreakerState {
    breaker: CircuitBreaker,
    /// The nodes that did not reply in the last failed round, with the causes.
    silent: Vec<(usize, NodeFailure)>,
}

/// Leave to ask the nodes.
#[derive(Debug)]
pub(crate) enum SharedAdmission<'a> {
    /// As at all times.
    Allowed,
    /// As the one whose attempt says whether the nodes are back.
    Probe(Probe<'a>),
    /// Not now: another one's attempt says so, and wakes those that wait.
    Wait,
    /// Not for so long.
    Rejected(Duration),
}

/// The probe of a half-open breaker. Dropped without a verdict, the next one probes.
#[derive(Debug)]
pub(crate) struct Probe<'a> {
    circuit: &'a SharedBreaker,
    number: u64,
}

impl SharedBreaker {
    pub(crate) fn new(settings: &Settings, nodes: &NodeGroup) -> SharedBreaker {
        let now = clock::now();
        SharedBreaker {
            state: Mutex::new(SharedBreakerState {
                breaker: CircuitBreaker::new(
                    settings.breaker_threshold,
                    settings.breaker_open_for,
                    now,
                ),
                silent: Vec::new(),
            }),
            fully_closed: AtomicBool::new(true),
            last_quorum: AtomicU64::new(clock::to_micros(now)),
            allow_degraded: settings.allow_degraded,
            nodes: nodes.names().join(", "),
            waiters: Arc::clone(nodes.waiters()),
        }
    }

    /// Whether no round has failed since a quorum answered.
    pub(crate) fn is_calm(&self) -> bool {
        self.fully_closed.load(Ordering::Acquire)
    }

    /// Registers a caller that may have to wait: a verdict, and each lane that comes up, wake its inbox.
    pub(crate) fn join(&self, inbox: &Arc<Inbox>) -> Waiter<'_> {
        self.waiters.join(inbox)
    }

    /// Whether a caller may ask.
    pub(crate) fn admit(&self, lanes: Connectivity) -> SharedAdmission<'_> {
        let mut state = self.state.lock();
        match state.breaker.admit(clock::now(), lanes) {
            Admission::Allowed => SharedAdmission::Allowed,
            Admission::Probe(number) => SharedAdmission::Probe(Probe {
                circuit: self,
                number,
            }),
            Admission::Rejected(left) => SharedAdmission::Rejected(left),
            Admission::Wait => SharedAdmission::Wait,
        }
    }

    /// A quorum has answered.
    pub(crate) fn record_quorum(&self) {
        let now = clock::now();
        self.last_quorum
            .store(clock::to_micros(now), Ordering::SeqCst);
        if self.fully_closed.load(Ordering::SeqCst) {
            return;
        }
        let mut state = self.state.lock();
        let was_closed = state.breaker.phase() == Phase::Closed;
        state.breaker.record_quorum(now);
        self.fully_closed.store(true, Ordering::SeqCst);
        state.silent = Vec::new();
        drop(state); // unlock before waking
        self.waiters.wake();
        if !was_closed {
            info!(
                "{}: a quorum answers again: circuit closed{}",
                self.nodes,
                self.degraded_suffix("; no more locks are held in this process alone")
            );
        }
    }

    /// A round of takes that began at `start`, when a lane had come up `risen` times, has run to its own end, and fewer nodes than a
    /// quorum replied.
    pub(crate) fn record_failure(
        &self,
        start: Instant,
        probe: Option<&Probe<'_>>,
        risen: u64,
        tally: &Tally,
    ) {
        let mut state = self.state.lock();
        let was_calm = self.fully_closed.swap(false, Ordering::SeqCst);
        if let (true, Some(seen)) = (
            was_calm,
            clock::from_micros(self.last_quorum.load(Ordering::SeqCst)),
        ) {
            state.breaker.record_quorum(seen);
        }
        let was_closed = state.breaker.phase() == Phase::Closed;
        let probe = probe.map(|probe| probe.number);
        let opens = state
            .breaker
            .record_failure(start, clock::now(), probe, risen);
        self.fully_closed
            .store(state.breaker.is_fully_closed(), Ordering::SeqCst);
        if !state.breaker.is_fully_closed() {
            state.silent = tally.silent().cloned().collect();
        }
        drop(state); // unlock before waking and telling
        if opens {
            self.waiters.wake();
        }
        if opens && was_closed {
            self.warn();
        }
    }

    /// No quorum could be connected to.
    pub(crate) fn open(&self, start: Instant, tally: &Tally) {
        let mut state = self.state.lock();
        self.fully_closed.store(false, Ordering::SeqCst);
        // Before the lanes began: each that is up is news.
        state.breaker.open(start, clock::now(), 0);
        state.silent = tally.silent().cloned().collect();
        drop(state); // let go before telling
        self.warn();
    }

    fn warn(&self) {
        warn!(
            "{}: no quorum answers: circuit open{}",
            self.nodes,
            self.degraded_suffix(
                "; locks are held in this process alone while none can be connected to"
            )
        );
    }

    fn degraded_suffix(&self, degraded: &'static str) -> &'static str {
        if self.allow_degraded { degraded } else { "" }
    }

    /// Since when it has not been closed; `None` while it is.
    pub(crate) fn opened(&self) -> Option<Instant> {
        self.state.lock().breaker.opened()
    }

    /// The nodes that did not reply when they were asked last, with the causes; none once a quorum has replied since.
    pub(crate) fn silent(&self) -> Vec<(usize, NodeFailure)> {
        self.state.lock().silent.clone()
    }

    pub(crate) fn phase(&self) -> Phase {
        self.state.lock().breaker.phase()
    }

    /// How many wait for a verdict.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn waiting(&self) -> usize {
        self.waiters.count()
    }

    pub(crate) fn is_open(&self) -> bool {
        !self.fully_closed.load(Ordering::Acquire) && matches!(self.phase(), Phase::Open { .. })
    }
}

impl Drop for Probe<'_> {
    fn drop(&mut self) {
        let mut state = self.circuit.state.lock();
        state.breaker.abandon_probe(self.number);
        drop(state); // unlock before waking
        self.circuit.waiters.wake();
    }
}
