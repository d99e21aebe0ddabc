//! Detaches a lock for another process, and adopts a detached one. The lock stays held meanwhile.
//!
//! Tests: `src/tests/engine/adopt.rs`; `tests/it/locks/adopt.rs`.

use std::sync::Arc;
use std::time::Instant;

use crate::engine::attempt::Attempt;
use crate::engine::core::Engine;
use crate::engine::params::{AcquireParams, Effort, WaitLimit, refusal_error};
use crate::error::error::Error;
use crate::error::loss_reason::LossReason;
use crate::error::operation::Operation;
use crate::local::guard::{HasKeys, LocalGuard};
use crate::local::request::{AccessMode, LocalRequest};
use crate::protocol::lease::Lease;
use crate::protocol::mode::Mode;
use crate::protocol::quorum::Verdict;
use crate::protocol::request::{Op, Request};
use crate::protocol::token::Token;
use crate::time::clock;
use crate::transport::cancel;
use crate::transport::inbox::Inbox;

impl Engine {
    /// Ends a held lease without a release: the nodes keep its token until the TTL ends, so that
    /// another process can adopt it.
    ///
    /// Does not block.
    ///
    /// # Errors
    /// - `LockLost`: the lease was no longer held.
    pub(crate) fn detach(
        &self,
        lease: &Arc<Lease>,
        local: &LocalGuard<impl HasKeys>,
    ) -> Result<(), Error> {
        self.renewal.unregister(lease);
        self.require_held(lease, lease.begin_release(clock::now()))?;
        self.loss_handler.notifier().forget(lease);
        lease.finish_release();
        local.release();
        Ok(())
    }

    /// Adopts a lock that was detached under the token `former`, under a fresh token.
    ///
    /// A node swaps the tokens only if it has the former one, so at most one of several adopters
    /// has a quorum. The others release the tokens that they have swapped in. Blocks for the entry
    /// in the lock table until `limit` ends, and then for at most `node_timeout`.
    ///
    /// # Errors
    /// - `LockLost`: a quorum does not have the former token.
    /// - `Contended`: another thread of this process held the key until `limit` ended.
    /// - `InsufficientQuorum`: no quorum replied.
    /// - `ValidityExhausted`: the nodes replied too late.
    /// - `Cancelled`, `Closed`: the caller's token was cancelled, or the `Nodes` shut down.
    /// - `System`: the operating system has no random bytes, or no thread.
    pub(crate) fn adopt(
        &self,
        params: &AcquireParams,
        former: Token,
        limit: WaitLimit,
    ) -> Result<(Arc<Lease>, LocalGuard), Error> {
        let started = clock::now();
        let adopted = self.run_adopt(params, former, limit, started);
        let waited = clock::now().saturating_duration_since(started);
        let outcome = adopted.as_ref().map(|_| Mode::Quorum);
        let counters = self.nodes.counters();
        counters.acquired(params.keys.first().name(), outcome, waited);
        adopted
    }

    fn run_adopt(
        &self,
        params: &AcquireParams,
        former: Token,
        limit: WaitLimit,
        started: Instant,
    ) -> Result<(Arc<Lease>, LocalGuard), Error> {
        let inbox = cancel::cancellable_inbox(params.cancel.as_ref())?;
        let request = LocalRequest {
            keys: &params.keys,
            mode: AccessMode::Exclusive,
            offer: None,
            inbox: &inbox,
            deadline: limit.deadline,
        };
        let on_lost = |lease: &Arc<Lease>| self.handle_expiry(lease);
        let local = self
            .lock_table
            .acquire(&request, on_lost)
            .map_err(|refusal| {
                let waited = clock::now().saturating_duration_since(started);
                let (keys, kind) = (&params.keys, params.kind);
                let effort = Effort {
                    attempts: 0,
                    waited,
                };
                refusal_error(refusal, &self.lock_table, keys, kind, effort)
            })?;
        let lease = self.adopt_round(params, former, &inbox)?;
        self.attach(&lease, &local, params)?;
        Ok((lease, local))
    }

    /// Replaces the former token by a fresh one, in one round.
    fn adopt_round(
        &self,
        params: &AcquireParams,
        former: Token,
        inbox: &Arc<Inbox>,
    ) -> Result<Arc<Lease>, Error> {
        self.nodes.counters().attempted(params.keys.first().name());
        let attempt = self.new_attempt(params, params.kind)?;
        let Attempt { lease, budget, .. } = &attempt;
        let former = Lease::new(params.keys.clone(), former, params.kind);
        let mut request = Request::new(Op::Adopt, lease, params.ttl.millis());
        request.former_lease = Some(Arc::new(former));
        request.min_fence = params.fenced.then_some(0);
        let mut outcome = self.nodes.send_to_all(&request, inbox).wait(*budget);
        let refused = outcome.tally.refused();
        if outcome.verdict == Verdict::Granted && params.fenced {
            outcome = self.assign_fencing_token(lease, outcome, inbox, *budget);
        }
        let error = match outcome.verdict {
            Verdict::Granted if attempt.activate(params.ttl, clock::now()) => {
                return Ok(attempt.lease);
            }
            Verdict::Granted => Error::ValidityExhausted {
                attempts: 1,
                ttl: params.ttl.duration(),
            },
            Verdict::Refused => lease.lost_error_for(LossReason::NotOurs),
            Verdict::Unavailable => match self.check_cancelled(inbox) {
                Ok(()) => self.insufficient_quorum(Operation::Acquire, outcome.tally),
                Err(error) => error,
            },
        };
        drop(self.undo(lease, refused)); // published, because the call ends
        Err(error)
    }
}
