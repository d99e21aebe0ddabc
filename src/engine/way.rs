//! Where an acquire that holds its slot goes: to the nodes, or while no quorum of them answers nowhere else than here.

use std::sync::Arc;
use std::time::Instant;

use crate::engine::circuit::{Leave, Probe};
use crate::engine::{Engine, Wish};
use crate::error::Error;
use crate::inbox::Inbox;
use crate::lease::Claim;
use crate::time;

/// Where an attempt is made. Chosen when the slot is held, and again before each attempt (rule S9).
pub(super) enum Way<'a> {
    /// On the nodes, perhaps as the one that finds out whether they are back.
    Nodes(Option<Probe<'a>>),
    /// In this process alone, where no attempt is needed.
    Local,
}

/// How long an acquire waits for its way.
#[derive(Clone, Copy)]
pub(super) struct Stay {
    /// When its caller came, from when on it bears with an outage.
    pub(super) started: Instant,
    /// When the caller's wait ends.
    pub(super) end: Option<Instant>,
    /// When that ends, or all attempts would be over.
    pub(super) queue_end: Option<Instant>,
}

impl Engine {
    /// Chooses the way, and waits for it where another finds out whether the nodes are back, or where a holder that refused us
    /// may go on holding the lock until `held_until`; for that no longer than the policy bears with an outage.
    ///
    /// Without patience it waits for a `node_timeout` all the same, since the other one takes no longer.
    pub(super) fn way(
        &self,
        wish: &Wish,
        stay: Stay,
        inbox: &Arc<Inbox>,
        held_until: Option<Instant>,
    ) -> Result<Way<'_>, Error> {
        let probed = stay.end.map(|end| end.max(self.soon()));
        loop {
            self.go_on(inbox)?;
            let retry_in = match self.circuit.leave(inbox, || self.nodes.lanes_up()) {
                Leave::Granted => return Ok(Way::Nodes(None)),
                Leave::Probe(probe) => return Ok(Way::Nodes(Some(probe))),
                Leave::Refused(retry_in) => retry_in,
                Leave::Wait if inbox.sleep(probed) => continue,
                Leave::Wait => self.settings.node_timeout,
            };
            self.go_on(inbox)?;
            let now = time::now();
            let numbered = wish.fenced && wish.claim != Claim::Read;
            let until = held_until.filter(|until| *until > now);
            let end = time::earlier(stay.queue_end, self.outage_end(stay.started));
            match until {
                _ if numbered || !self.settings.allow_degraded => {}
                None => return Ok(Way::Local),
                // It may be free before, on nodes that are back.
                Some(until) if end.is_none_or(|end| end > now) => {
                    let look = time::deadline(now, self.settings.retry.max_delay);
                    inbox.sleep(time::earlier(Some(until), time::earlier(end, look)));
                    continue;
                }
                Some(_) => {}
            }
            return Err(Error::CircuitOpen { retry_in });
        }
    }
}
