//! Assigns a fencing token to a lease that a quorum granted (S12).
//!
//! Each fenced guard has a token, and its token is above all former ones.
//!
//! Tests: `src/tests/engine/fencing.rs`; the stateright model.

use std::sync::Arc;

use crate::engine::core::Engine;
use crate::protocol::fencing;
use crate::protocol::fencing::FencingOutcome;
use crate::protocol::lease::Lease;
use crate::protocol::node_set::NodeSet;
use crate::protocol::quorum::majority;
use crate::protocol::request::{Op, Request};
use crate::time::deadline::Deadline;
use crate::transport::inbox::Inbox;
use crate::transport::round::RoundOutcome;

impl Engine {
    /// Assigns the fencing token to a lease, from the fence counters that the nodes returned.
    ///
    /// If no quorum has the greatest counter, a second round raises the others to it. Then the
    /// outcome of that round is returned instead. Blocks until `budget` ends.
    pub(super) fn assign_fencing_token(
        &self,
        lease: &Arc<Lease>,
        granted: RoundOutcome,
        inbox: &Arc<Inbox>,
        budget: Deadline,
    ) -> RoundOutcome {
        let counters = granted.fence_counters().iter();
        let counters = counters.map(|(_, counter)| *counter).collect();
        let mut raise = Request::new(Op::RaiseFence, lease, 0);
        match fencing::choose_token(counters, majority(self.nodes.total())) {
            Some(FencingOutcome::Agreed(token)) => {
                raise.min_fence = Some(token);
                let mut behind = NodeSet::default();
                let counters = granted.fence_counters().iter();
                let lower = counters.filter(|(_, counter)| *counter < token);
                lower.for_each(|(node, _)| behind.insert(*node));
                // So that the next acquire needs no second round.
                self.nodes.send_unawaited(&raise, behind);
                lease.set_fencing_token(token);
                granted
            }
            Some(FencingOutcome::Raise(token)) => {
                raise.min_fence = Some(token);
                lease.set_fencing_token(token);
                self.nodes.send_to_all(&raise, inbox).wait(budget)
            }
            None => granted,
        }
    }
}
