//! What an attempt at a semaphore is: one of its permits after another, for as long as nodes say that some are free.

use std::sync::Arc;

use crate::engine::attempt::WaitMarker;
use crate::engine::attempt_result::{AttemptFailure, AttemptResult};
use crate::engine::breaker::Probe;
use crate::engine::core::Engine;
use crate::engine::params::AcquireParams;
use crate::error::Error;
use crate::protocol::kind::LeaseKind;
use crate::protocol::permits;
use crate::protocol::quorum::majority;
use crate::random;
use crate::time::clock;
use crate::transport::inbox::Inbox;
use crate::transport::round::RoundOutcome;

/// So many permits in a row that others took at the same time end an attempt.
const MAX_PERMITS_TRIED: u32 = 16;

impl Engine {
    /// Asks for one permit, each time under a fresh token, and if others hold it for one of those that a quorum of nodes calls
    /// free. Which one is drawn at random, so that those who come together seldom want the same.
    ///
    /// Blocks for `node_timeout`, and for the round and its repeats that have begun by then.
    pub(crate) fn attempt_any_permit(
        &self,
        wish: &AcquireParams,
        of: u16,
        inbox: &Arc<Inbox>,
        first: Option<usize>,
        probe: Option<&Probe<'_>>,
    ) -> Result<AttemptResult, Error> {
        let end = self.node_budget(clock::now()).end();
        let mut slot = random::below(of.into()) as u16;
        let mut tried = 0;
        loop {
            let claim = LeaseKind::Permit {
                index: slot,
                total: of,
            };
            let (ended, free) =
                self.attempt_kind(wish, claim, inbox, WaitMarker::None, first, probe)?;
            tried += 1;
            let is_over = tried == MAX_PERMITS_TRIED || end.is_some_and(|end| end <= clock::now());
            match ended {
                Err(AttemptFailure::Contended(_)) if !free.is_empty() && !is_over => {
                    self.check_cancelled(inbox)?;
                    slot = free[random::below(free.len())];
                }
                ended => return Ok(ended),
            }
        }
    }

    /// Which permits may be had in place of the one that was asked for, by what the nodes have said.
    pub(crate) fn candidate_permits(
        &self,
        claim: LeaseKind,
        outcome: &RoundOutcome,
        by_one: bool,
    ) -> Vec<u16> {
        let LeaseKind::Permit { total: of, .. } = claim else {
            return Vec::new();
        };
        let total = self.nodes.total();
        let willing = match by_one {
            true => total - 1,
            false => outcome.tally.possible_grants(),
        };
        permits::candidates(&outcome.free_permits, of, willing, majority(total))
    }
}
