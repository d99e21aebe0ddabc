//! Where an acquire that holds its slot goes: to the nodes, or while no quorum of them answers nowhere else than here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::attempt_result::AttemptFailure;
use crate::engine::breaker::{Probe, SharedAdmission};
use crate::engine::core::Engine;
use crate::engine::params::{AcquireParams, Deadlines};
use crate::error::{Error, Operation};
use crate::protocol::kind::LeaseKind;
use crate::time::{clock, deadline};
use crate::transport::inbox::Inbox;

/// Where an attempt is made. Chosen when the slot is held, and again before each attempt (rule S9).
pub(crate) enum Backend<'a> {
    /// On the nodes, perhaps as the one that finds out whether they are back.
    Nodes(Option<Probe<'a>>),
    /// In this process alone, where no attempt is needed.
    Local,
}

/// Since when the rounds of one acquire, in a row, found no quorum, or it waited for an open breaker instead. What other acquires
/// meet is no part of it: their locks may have less trouble than this one, or more.
#[derive(Debug, Default)]
pub(crate) struct Outage {
    began: Option<Instant>,
}

impl Outage {
    /// Notes how a round ended that began at `start`.
    pub(crate) fn note(&mut self, miss: &AttemptFailure, start: Instant) {
        match miss {
            AttemptFailure::Unavailable(_) => self.begin(start),
            AttemptFailure::TooSlow { won: true, .. } => self.began = None,
            AttemptFailure::Contended(met) if !met.single_node => self.began = None,
            // Neither says whether there is a quorum.
            AttemptFailure::TooSlow { .. } | AttemptFailure::Contended(_) => {}
        }
    }

    /// Begins at `start`, unless it has begun.
    fn begin(&mut self, start: Instant) {
        self.began.get_or_insert(start);
    }

    /// When it has lasted for `max_outage`; `None` without an outage, or where that is beyond the clock's range.
    pub(crate) fn end(&self, max_outage: Duration) -> Option<Instant> {
        self.began
            .and_then(|began| deadline::deadline(began, max_outage))
    }
}

impl Engine {
    /// Chooses the way. While the breaker is open the acquire sleeps until nodes are back, another acquire has found out whether
    /// they are, its own limit has come, or the outage has lasted for `max_outage`.
    ///
    /// Without a wait it sleeps for a `node_timeout` only where another acquire probes, since that takes no longer.
    pub(crate) fn choose_backend(
        &self,
        wish: &AcquireParams,
        stay: Deadlines,
        inbox: &Arc<Inbox>,
        held_until: Option<Instant>,
        outage: &mut Outage,
    ) -> Result<Backend<'_>, Error> {
        self.check_cancelled(inbox)?;
        if self.circuit.is_calm() {
            return Ok(Backend::Nodes(None));
        }
        // Before the first look, so that no change after it is missed.
        let _waiter = self.circuit.join(inbox);
        let probed = self.node_timeout_from_now();
        loop {
            self.check_cancelled(inbox)?;
            let (is_probing, retry_in) = match self.circuit.admit(self.nodes.connectivity()) {
                SharedAdmission::Allowed => return Ok(Backend::Nodes(None)),
                SharedAdmission::Probe(probe) => return Ok(Backend::Nodes(Some(probe))),
                SharedAdmission::Wait => (true, self.settings.node_timeout),
                SharedAdmission::Rejected(retry_in) => (false, retry_in),
            };
            let now = clock::now();
            // An acquire that stood in the queue of its key while the breaker was open has waited for the nodes in that time.
            let opened = self.circuit.opened().unwrap_or(now);
            outage.begin(opened.max(stay.started));
            let mut end = deadline::earlier(stay.queue, outage.end(self.settings.retry.max_outage));
            if is_probing {
                end = end.map(|end| end.max(probed));
            }
            let is_over = end.is_some_and(|end| end <= now);
            if (is_over || !is_probing) && self.goes_local(wish, held_until) {
                return Ok(Backend::Local);
            }
            if is_over {
                return Err(self.no_way(stay, retry_in));
            }
            let held_until = held_until.filter(|until| *until > now && self.may_go_local(wish));
            let look = deadline::deadline(now, retry_in).filter(|_| !is_probing);
            inbox.sleep(deadline::earlier(end, deadline::earlier(look, held_until)));
        }
    }

    /// The error of an acquire that the open breaker keeps from asking.
    fn no_way(&self, stay: Deadlines, retry_in: Duration) -> Error {
        let tally = self.nodes.connection_tally(&self.circuit.silent());
        match stay.waits() {
            // Nobody has been asked to grant it.
            true => self.insufficient_quorum(Operation::Connect, tally),
            false => self.circuit_open(retry_in, tally),
        }
    }

    /// Whether the settings and the wish allow a lock in this process alone.
    fn may_go_local(&self, wish: &AcquireParams) -> bool {
        let is_fenced = wish.fenced && wish.kind != LeaseKind::Read;
        self.settings.allow_degraded && !is_fenced
    }

    /// Whether an acquire is to be local while the breaker is open: only where fresh connects have failed to so many nodes that no
    /// quorum is left, and where those that refused it, and may hold the lock until `held_until`, hold it no longer (rule S9).
    pub(crate) fn goes_local(&self, wish: &AcquireParams, held_until: Option<Instant>) -> bool {
        self.may_go_local(wish)
            && held_until.is_none_or(|until| until <= clock::now())
            && self.nodes.no_quorum_reachable()
    }
}
