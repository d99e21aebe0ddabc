//! Where an acquire that holds its slot goes: to the nodes, or while no quorum of them answers nowhere else than here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::attempt_result::Miss;
use crate::engine::breaker::{Leave, Probe};
use crate::engine::core::Engine;
use crate::engine::params::{Stay, Wish};
use crate::error::{Error, Operation};
use crate::protocol::kind::Claim;
use crate::time::{clock, deadline};
use crate::transport::inbox::Inbox;

/// Where an attempt is made. Chosen when the slot is held, and again before each attempt (rule S9).
pub(crate) enum Way<'a> {
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
    pub(crate) fn note(&mut self, miss: &Miss, start: Instant) {
        match miss {
            Miss::Unavailable(_) => self.begin(start),
            Miss::Slow { won: true, .. } => self.began = None,
            Miss::Contended(met) if !met.by_one => self.began = None,
            // Neither says whether there is a quorum.
            Miss::Slow { .. } | Miss::Contended(_) => {}
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
    pub(crate) fn way(
        &self,
        wish: &Wish,
        stay: Stay,
        inbox: &Arc<Inbox>,
        held_until: Option<Instant>,
        outage: &mut Outage,
    ) -> Result<Way<'_>, Error> {
        self.go_on(inbox)?;
        if self.circuit.is_calm() {
            return Ok(Way::Nodes(None));
        }
        // Before the first look, so that no change after it is missed.
        let _waiter = self.circuit.join(inbox);
        let probed = self.soon();
        loop {
            self.go_on(inbox)?;
            let (is_probing, retry_in) = match self.circuit.leave(self.nodes.lanes_up()) {
                Leave::Granted => return Ok(Way::Nodes(None)),
                Leave::Probe(probe) => return Ok(Way::Nodes(Some(probe))),
                Leave::Wait => (true, self.settings.node_timeout),
                Leave::Refused(retry_in) => (false, retry_in),
            };
            let now = clock::now();
            // An acquire that stood in the queue of its key while the breaker was open has waited for the nodes in that time.
            let opened = self.circuit.opened().unwrap_or(now);
            outage.begin(opened.max(stay.started));
            let mut end =
                deadline::earlier(stay.queue_end, outage.end(self.settings.retry.max_outage));
            if is_probing {
                end = end.map(|end| end.max(probed));
            }
            let is_over = end.is_some_and(|end| end <= now);
            if (is_over || !is_probing) && self.goes_local(wish, held_until) {
                return Ok(Way::Local);
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
    fn no_way(&self, stay: Stay, retry_in: Duration) -> Error {
        let tally = self.nodes.roll_call(&self.circuit.silent());
        if stay.waits() {
            return self.insufficient(Operation::Acquire, tally);
        }
        Error::CircuitOpen {
            retry_in,
            causes: tally.named_causes(|node| self.nodes.name(node).to_owned()),
        }
    }

    /// Whether the settings and the wish allow a lock in this process alone.
    fn may_go_local(&self, wish: &Wish) -> bool {
        let is_fenced = wish.fenced && wish.claim != Claim::Read;
        self.settings.allow_degraded && !is_fenced
    }

    /// Whether an acquire is to be local while the breaker is open: only where fresh connects have failed to so many nodes that no
    /// quorum is left, and where those that refused it, and may hold the lock until `held_until`, hold it no longer (rule S9).
    pub(crate) fn goes_local(&self, wish: &Wish, held_until: Option<Instant>) -> bool {
        self.may_go_local(wish)
            && held_until.is_none_or(|until| until <= clock::now())
            && self.nodes.no_quorum_reachable()
    }
}
