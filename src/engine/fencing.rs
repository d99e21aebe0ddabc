//! Gives a lease its fencing token.

use std::sync::Arc;

use crate::engine::core::Engine;
use crate::protocol::fencing;
use crate::protocol::fencing::FencingOutcome;
use crate::protocol::lease::Lease;
use crate::protocol::quorum::{NodeSet, majority};
use crate::protocol::request::{Op, Request};
use crate::time::deadline::Deadline;
use crate::transport::inbox::Inbox;
use crate::transport::round::RoundOutcome;

impl Engine {
    /// Gives a lease that a quorum has granted its fencing token (rule S12), in a second round where the nodes' fences differ.
    /// Answers how the attempt has ended by that.
    pub(crate) fn assign_fencing_token(
        &self,
        lease: &Arc<Lease>,
        granted: RoundOutcome,
        inbox: &Arc<Inbox>,
        budget: Deadline,
    ) -> RoundOutcome {
        let numbers = granted
            .fencing_tokens
            .iter()
            .map(|(_, number)| *number)
            .collect();
        let mut raise = Request::new(Op::RaiseFence, lease, 0);
        match fencing::choose_token(numbers, majority(self.nodes.total())) {
            Some(FencingOutcome::Agreed(token)) => {
                raise.min_fence = Some(token);
                let mut behind = NodeSet::default();
                let lower = granted
                    .fencing_tokens
                    .iter()
                    .filter(|(_, number)| *number < token);
                lower.for_each(|(node, _)| behind.insert(*node));
                self.nodes.send_unawaited(&raise, behind); // so that they agree next time
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
