//! Gives a lease its fencing token.

use std::sync::Arc;

use crate::engine::core::Engine;
use crate::protocol::fencing;
use crate::protocol::fencing::Fence;
use crate::protocol::lease::Lease;
use crate::protocol::quorum::{NodeSet, quorum};
use crate::protocol::request::{Request, Verb};
use crate::time::deadline::Budget;
use crate::transport::inbox::Inbox;
use crate::transport::round::Outcome;

impl Engine {
    /// Gives a lease that a quorum has granted its fencing token (rule S12), in a second round where the nodes' fences differ.
    /// Answers how the attempt has ended by that.
    pub(crate) fn number(
        &self,
        lease: &Arc<Lease>,
        granted: Outcome,
        inbox: &Arc<Inbox>,
        budget: Budget,
    ) -> Outcome {
        let numbers = granted.numbers.iter().map(|(_, number)| *number).collect();
        let mut raise = Request::new(Verb::Raise, lease, 0);
        match fencing::fence(numbers, quorum(self.nodes.total())) {
            Some(Fence::Agreed(token)) => {
                raise.fence = Some(token);
                let mut behind = NodeSet::default();
                let lower = granted.numbers.iter().filter(|(_, number)| *number < token);
                lower.for_each(|(node, _)| behind.insert(*node));
                self.nodes.tell(&raise, behind); // so that they agree next time
                lease.number(token);
                granted
            }
            Some(Fence::Raise(token)) => {
                raise.fence = Some(token);
                lease.number(token);
                self.nodes.ask(&raise, inbox).outcome(budget)
            }
            None => granted,
        }
    }
}
