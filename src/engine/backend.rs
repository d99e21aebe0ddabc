//! Chooses where an attempt is made: on the nodes, or in this process alone in degraded mode (S9).
//!
//! An acquire never goes local because of contention, a short deadline, or an error that a node
//! replied.
//!
//! Tests: `src/tests/engine/outage.rs`, such as
//! `refused_acquire_stays_off_local_locks_until_the_holders_lease_can_have_ended`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::attempt_result::AttemptFailure;
use crate::engine::breaker::Probe;
use crate::engine::core::Engine;
use crate::engine::params::{AcquireParams, Deadlines};
use crate::error::error::Error;
use crate::error::operation::Operation;
use crate::protocol::breaker::Admission;
use crate::protocol::kind::LeaseKind;
use crate::time::{clock, deadline};
use crate::transport::inbox::Inbox;

/// Where an attempt is made.
pub(super) enum Backend<'a> {
    /// On the nodes; with a probe, the attempt tells the breaker whether a quorum is back.
    Nodes(Option<Probe<'a>>),
    /// In this process alone, where the entry in the lock table is the lock.
    Local,
}

/// The acquire for which a back end is chosen.
pub(super) struct BackendRequest<'a> {
    pub(super) params: &'a AcquireParams,
    pub(super) deadlines: Deadlines,
    pub(super) inbox: &'a Arc<Inbox>,
    /// The latest expiry of another holder's lease, by the nodes that refused (S9).
    pub(super) held_until: Option<Instant>,
    /// Whether the call waits, although this acquire of it may not.
    pub(super) waits: bool,
}

/// The time in which the rounds of one acquire, in a row, found no quorum or an open breaker.
///
/// Rounds of other acquires do not count: their keys may have more or less trouble.
#[derive(Debug, Default)]
pub(crate) struct Outage {
    began: Option<Instant>,
}

impl Outage {
    /// Records how a round that began at `start` failed.
    pub(crate) fn note(&mut self, failure: &AttemptFailure, start: Instant) {
        match failure {
            AttemptFailure::Unavailable(_) => self.begin(start),
            AttemptFailure::TooSlow { won: true, .. } => self.began = None,
            AttemptFailure::Contended(contention) if !contention.single_node => self.began = None,
            // Neither shows whether a quorum replies.
            AttemptFailure::TooSlow { .. } | AttemptFailure::Contended(_) => {}
        }
    }

    /// Starts the outage at `start`, unless it has begun.
    fn begin(&mut self, start: Instant) {
        self.began.get_or_insert(start);
    }

    /// Returns when the outage has lasted for `max_outage`.
    ///
    /// `None` without an outage, or if that is beyond the range of the clock.
    pub(crate) fn end(&self, max_outage: Duration) -> Option<Instant> {
        self.began
            .and_then(|began| deadline::deadline(began, max_outage))
    }
}

impl Engine {
    /// Chooses the back end of the next attempt.
    ///
    /// Blocks while the breaker is open: until a quorum is connected, another acquire has probed,
    /// the caller's limit ends, or the outage has lasted for `max_outage`. A caller that does not
    /// wait blocks only for the probe of another acquire, for at most `node_timeout`.
    ///
    /// # Errors
    /// - `Cancelled`, `Closed`: the caller was cancelled, or the `Nodes` shut down.
    /// - `CircuitOpen`: the breaker is open, and the call does not wait.
    /// - `InsufficientQuorum`: the caller's limit or `max_outage` ended.
    pub(super) fn choose_backend(
        &self,
        request: &BackendRequest<'_>,
        outage: &mut Outage,
    ) -> Result<Backend<'_>, Error> {
        let BackendRequest {
            params,
            deadlines,
            inbox,
            held_until,
            waits,
        } = *request;
        self.check_cancelled(inbox)?;
        if self.circuit.is_calm() {
            return Ok(Backend::Nodes(None));
        }
        // Joins before the first check, so that it misses no change after it.
        let _waiter = self.circuit.join(inbox);
        let probe_end = self.node_timeout_from_now();
        loop {
            self.check_cancelled(inbox)?;
            let (is_probing, retry_in) = match self.circuit.admit(self.nodes.connectivity()) {
                Admission::Allowed => return Ok(Backend::Nodes(None)),
                Admission::Probe(probe) => return Ok(Backend::Nodes(Some(probe))),
                Admission::Wait => (true, self.settings.node_timeout),
                Admission::Rejected(retry_in) => (false, retry_in),
            };
            let now = clock::now();
            let probe_end = is_probing.then_some(probe_end);
            let end = self.rejection_end(deadlines, outage, probe_end, now);
            let is_over = end.is_some_and(|end| end <= now);
            if (is_over || !is_probing) && self.goes_local(params, held_until) {
                return Ok(Backend::Local);
            }
            if is_over {
                return Err(self.breaker_error(waits, retry_in));
            }
            let local_at = held_until.filter(|until| *until > now && self.may_go_local(params));
            let recheck_at = deadline::deadline(now, retry_in).filter(|_| !is_probing);
            inbox.sleep(deadline::earlier(
                end,
                deadline::earlier(recheck_at, local_at),
            ));
        }
    }

    /// Returns when the wait of a rejected acquire ends, and counts the wait as an outage.
    ///
    /// The wait for another acquire's probe lasts until `probe_end`, whatever the limits are.
    fn rejection_end(
        &self,
        deadlines: Deadlines,
        outage: &mut Outage,
        probe_end: Option<Instant>,
        now: Instant,
    ) -> Option<Instant> {
        // The time in the local queue while the breaker was open counts, too.
        let opened = self.circuit.opened().unwrap_or(now);
        outage.begin(opened.max(deadlines.started));
        let outage_end = outage.end(self.settings.retry.max_outage);
        let end = deadline::earlier(deadlines.queue, outage_end);
        end.map(|end| probe_end.map_or(end, |probe_end| end.max(probe_end)))
    }

    /// Returns the error of an acquire that the open breaker rejected. `waits` is of its call.
    fn breaker_error(&self, waits: bool, retry_in: Duration) -> Error {
        let tally = self.nodes.connection_tally(&self.circuit.silent());
        if waits {
            // No node was asked to grant the lock.
            return self.insufficient_quorum(Operation::Connect, tally);
        }
        self.circuit_open(retry_in, tally)
    }

    /// Returns whether degraded mode is allowed for this acquire. A fenced one never goes local.
    fn may_go_local(&self, params: &AcquireParams) -> bool {
        let is_fenced = params.fenced && params.kind != LeaseKind::Read;
        self.settings.allow_degraded && !is_fenced
    }

    /// Returns whether an acquire goes local while the breaker is open (S9).
    ///
    /// It does only if fresh connects reach fewer nodes than a quorum, and after `held_until`:
    /// until then a holder that a node reported may still have the lock.
    pub(super) fn goes_local(&self, params: &AcquireParams, held_until: Option<Instant>) -> bool {
        self.may_go_local(params)
            && held_until.is_none_or(|until| until <= clock::now())
            && self.nodes.no_quorum_reachable()
    }
}
