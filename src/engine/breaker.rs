//! The circuit breaker that all callers of a `Nodes` share, with its waiters and its log lines.
//!
//! Contention and error replies never open it. No caller blocks on it while it is closed.
//!
//! Tests: beside `protocol/breaker.rs`; `src/tests/engine/outage.rs`.

use std::sync::Arc;
use std::time::Instant;

use log::{info, warn};

use crate::config::settings::Settings;
use crate::error::node_failure::NodeFailure;
use crate::protocol::breaker::{Admission, CircuitBreaker, Connectivity, Phase};
use crate::protocol::quorum::Tally;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::primitives::Mutex;
use crate::sync::threads;
use crate::time::clock;
use crate::transport::inbox::Inbox;
use crate::transport::node_group::NodeGroup;
use crate::transport::waiters::{Waiter, Waiters};

/// A circuit breaker that several threads use. It blocks no caller while it is closed.
#[derive(Debug)]
pub(crate) struct SharedBreaker {
    state: Mutex<SharedBreakerState>,
    /// A quorum replied in the last round, so callers need not lock the state.
    ///
    /// A success stores `last_quorum` and then loads this flag; a failure swaps this flag and then
    /// loads `last_quorum`. All four are sequentially consistent. With weaker orderings, each side
    /// could read the old value of the other, and the success would be lost.
    fully_closed: AtomicBool,
    /// When a quorum was last seen while `fully_closed` was set, as `clock::to_micros`.
    last_quorum: AtomicU64,
    allow_degraded: bool,
    /// The names of all nodes, for the log.
    node_names: String,
    /// The callers that wait for a verdict or for a node to come up.
    waiters: Arc<Waiters>,
}

#[derive(Debug)]
struct SharedBreakerState {
    breaker: CircuitBreaker,
    /// The nodes that did not reply in the last failed round, with the causes.
    silent: Vec<(usize, NodeFailure)>,
}

/// The probe of a half-open breaker. If it is dropped without a verdict, the next caller probes.
#[derive(Debug)]
pub(crate) struct Probe<'a> {
    circuit: &'a SharedBreaker,
    number: u64,
}

impl SharedBreaker {
    pub(super) fn new(settings: &Settings, nodes: &NodeGroup) -> SharedBreaker {
        let now = clock::now();
        let (threshold, open_for) = (settings.breaker_threshold, settings.breaker_open_for);
        SharedBreaker {
            state: Mutex::new(SharedBreakerState {
                breaker: CircuitBreaker::new(threshold, open_for, now),
                silent: Vec::new(),
            }),
            fully_closed: AtomicBool::new(true),
            last_quorum: AtomicU64::new(clock::to_micros(now)),
            allow_degraded: settings.allow_degraded,
            node_names: nodes.names().join(", "),
            waiters: Arc::clone(nodes.waiters()),
        }
    }

    /// Returns whether no round has failed since a quorum replied. Does not lock.
    pub(crate) fn is_calm(&self) -> bool {
        self.fully_closed.load(Ordering::Acquire)
    }

    /// Registers a caller whose inbox each verdict and each node that comes up wakes.
    pub(super) fn join(&self, inbox: &Arc<Inbox>) -> Waiter<'_> {
        self.waiters.join(inbox)
    }

    /// Returns whether a caller may ask the nodes.
    pub(super) fn admit(&self, connectivity: Connectivity) -> Admission<Probe<'_>> {
        let admission = self.state.lock().breaker.admit(clock::now(), connectivity);
        admission.map_probe(|number| Probe {
            circuit: self,
            number,
        })
    }

    /// Records that a quorum has replied by `now`, and closes the breaker.
    pub(super) fn record_quorum(&self, now: Instant) {
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
            threads::log(|| {
                info!(
                    "{}: quorum reached: circuit closed{}",
                    self.node_names,
                    self.degraded_suffix("; no new local locks")
                );
            });
        }
    }

    /// Records a round that ended by itself and in which fewer nodes than a quorum replied.
    ///
    /// The round began at `start`, when the count of connects was `connect_count`.
    pub(crate) fn record_failure(
        &self,
        start: Instant,
        probe: Option<&Probe<'_>>,
        connect_count: u64,
        tally: &Tally,
    ) {
        let mut state = self.state.lock();
        let was_calm = self.fully_closed.swap(false, Ordering::SeqCst);
        let last_quorum = clock::from_micros(self.last_quorum.load(Ordering::SeqCst));
        if let (true, Some(last_quorum)) = (was_calm, last_quorum) {
            state.breaker.record_quorum(last_quorum);
        }
        let was_closed = state.breaker.phase() == Phase::Closed;
        let probe = probe.map(|probe| probe.number);
        let opens = state
            .breaker
            .record_failure(start, clock::now(), probe, connect_count);
        let is_fully_closed = state.breaker.is_fully_closed();
        self.fully_closed.store(is_fully_closed, Ordering::SeqCst);
        if !is_fully_closed {
            state.silent = tally.silent().cloned().collect();
        }
        drop(state); // unlock before waking and logging
        if opens {
            self.waiters.wake();
        }
        if opens && was_closed {
            self.log_opened();
        }
    }

    /// Opens the breaker, since no quorum could be connected to at start.
    pub(super) fn open(&self, start: Instant, tally: &Tally) {
        let mut state = self.state.lock();
        self.fully_closed.store(false, Ordering::SeqCst);
        // Epoch 0: each connection that has come up counts as a reason to probe.
        state.breaker.open(start, clock::now(), 0);
        state.silent = tally.silent().cloned().collect();
        drop(state); // unlock before logging
        self.log_opened();
    }

    fn log_opened(&self) {
        threads::log(|| {
            warn!(
                "{}: no quorum: circuit open{}",
                self.node_names,
                self.degraded_suffix("; local locks while no quorum can be connected to")
            );
        });
    }

    fn degraded_suffix(&self, suffix: &'static str) -> &'static str {
        if self.allow_degraded { suffix } else { "" }
    }

    /// Returns when the breaker opened; `None` while it is closed.
    pub(super) fn opened(&self) -> Option<Instant> {
        self.state.lock().breaker.opened()
    }

    /// Returns the nodes that did not reply in the last failed round; empty after a success.
    pub(super) fn silent(&self) -> Vec<(usize, NodeFailure)> {
        self.state.lock().silent.clone()
    }

    pub(crate) fn phase(&self) -> Phase {
        self.state.lock().breaker.phase()
    }

    /// Returns how many callers wait for a verdict.
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
