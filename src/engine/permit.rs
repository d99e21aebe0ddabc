//! Attempts to acquire any permit of a semaphore: each permit is a Redlock of its own.
//!
//! Tests: `src/tests/engine/permits.rs`.

use crate::engine::attempt::AttemptContext;
use crate::engine::attempt_result::{AttemptFailure, Attempted, VoteOutcome};
use crate::engine::core::Engine;
use crate::error::error::Error;
use crate::protocol::kind::LeaseKind;
use crate::protocol::permits;
use crate::protocol::quorum::majority;
use crate::random;
use crate::time::clock;

/// Permits that one attempt asks for, one after the other.
const MAX_PERMITS_TRIED: u32 = 16;

impl Engine {
    /// Asks for one permit. If others hold it, asks for another permit that a quorum reports free.
    ///
    /// Each permit is asked for under a fresh token. Permits are drawn at random, so that callers
    /// that ask at the same time seldom choose the same one. Blocks for at most `node_timeout`, and
    /// for the round that has begun by then.
    ///
    /// # Errors
    /// As [`attempt`](Engine::attempt).
    pub(super) fn attempt_any_permit(
        &self,
        context: &AttemptContext<'_>,
        total: u16,
    ) -> Result<Attempted<'_>, Error> {
        let end = self.node_budget(clock::now()).end();
        let mut index = random::below(total.into()) as u16;
        let mut tried = 0;
        loop {
            let mut attempted = self.attempt(&AttemptContext {
                kind: LeaseKind::Permit { index, total },
                ..*context
            })?;
            tried += 1;
            let is_over = tried == MAX_PERMITS_TRIED || end.is_some_and(|end| end <= clock::now());
            let is_contended = matches!(attempted.result, Err(AttemptFailure::Contended(_)));
            let free_permits = &attempted.free_permits;
            if !is_contended || free_permits.is_empty() || is_over {
                return Ok(attempted);
            }
            self.check_cancelled(context.inbox)?;
            index = free_permits[random::below(free_permits.len())];
            attempted.undo_unpublished();
        }
    }

    /// Returns the permits that a quorum may grant instead, by the replies of the refusing nodes.
    ///
    /// Empty for all other kinds of lease.
    pub(super) fn candidate_permits(&self, kind: LeaseKind, vote: &VoteOutcome) -> Vec<u16> {
        let LeaseKind::Permit { total: permits, .. } = kind else {
            return Vec::new();
        };
        let nodes = self.nodes.total();
        let possible_grants = match vote.single_node {
            true => nodes - 1,
            false => vote.round.tally.possible_grants(),
        };
        let free = vote.round.free_permits();
        permits::candidates(&free, permits, possible_grants, majority(nodes))
    }
}
