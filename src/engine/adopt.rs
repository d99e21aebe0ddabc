//! What it is to hand a lock over to another process, and to adopt one: the lock stays taken all the time.

use std::sync::Arc;
use std::time::Instant;

use crate::background::loss_handler;
use crate::engine::attempt::Attempt;
use crate::engine::core::Engine;
use crate::engine::params::{AcquireParams, WaitLimit, refusal_error};
use crate::error::{Error, LossReason, Operation};
use crate::local::entry::AccessMode;
use crate::local::guard::LocalGuard;
use crate::protocol::lease::Lease;
use crate::protocol::mode::Mode;
use crate::protocol::quorum::Verdict;
use crate::protocol::request::{Op, Request};
use crate::protocol::token::Token;
use crate::time::clock;
use crate::transport::cancel;
use crate::transport::inbox::Inbox;

impl Engine {
    /// Ends a lease that is held, without its release: the nodes keep its token, for another to adopt, until the TTL is over.
    /// Does not block.
    pub(crate) fn detach(&self, lease: &Arc<Lease>, pass: &LocalGuard) -> Result<(), Error> {
        self.renewal.unregister(lease);
        self.require_held(lease, lease.begin_release(clock::now()))?;
        self.loss_handler.notifier().forget(lease);
        lease.finish_release();
        pass.release();
        Ok(())
    }

    /// Takes up a lock that was handed over with the token `former`, under a fresh one.
    ///
    /// A node swaps tokens if it has the former one, so of many who adopt it one at most has a quorum. The others, and who comes
    /// late, release what they have swapped: so the lock ends where nobody has one.
    ///
    /// Blocks for the slot until `patience` ends, and for `node_timeout`.
    pub(crate) fn adopt(
        &self,
        wish: &AcquireParams,
        former: Token,
        patience: WaitLimit,
    ) -> Result<(Arc<Lease>, LocalGuard), Error> {
        let started = clock::now();
        let adopted = self.run_adopt(wish, former, patience, started);
        let waited = clock::now().saturating_duration_since(started);
        let outcome = adopted.as_ref().map(|_| Mode::Quorum);
        let meter = self.nodes.counters();
        meter.acquired(wish.keys.first(), outcome, waited);
        adopted
    }

    fn run_adopt(
        &self,
        wish: &AcquireParams,
        former: Token,
        patience: WaitLimit,
        started: Instant,
    ) -> Result<(Arc<Lease>, LocalGuard), Error> {
        let inbox = cancel::cancellable_inbox(wish.cancel.as_ref())?;
        let settle = |lease: &Arc<Lease>| {
            self.loss_handler
                .handle_loss(lease, loss_handler::EXPIRED_MSG)
        };
        let pass = self
            .lock_table
            .acquire(
                &wish.keys,
                AccessMode::Exclusive,
                &inbox,
                patience.deadline,
                settle,
            )
            .map_err(|refused| {
                let waited = clock::now().saturating_duration_since(started);
                refusal_error(refused, &wish.keys, wish.kind, 0, waited)
            })?;
        let lease = self.adopt_round(wish, former, &inbox)?;
        self.attach(&lease, &pass, wish)?;
        Ok((lease, pass))
    }

    /// One round that puts a fresh token in the place of the former one.
    fn adopt_round(
        &self,
        wish: &AcquireParams,
        former: Token,
        inbox: &Arc<Inbox>,
    ) -> Result<Arc<Lease>, Error> {
        self.nodes.counters().attempted(wish.keys.first());
        let bid = self.new_attempt(wish, wish.kind)?;
        let Attempt { lease, budget, .. } = &bid;
        let mut request = Request::new(Op::Adopt, lease, wish.ttl.millis());
        request.former_lease = Some(Arc::new(Lease::new(wish.keys.clone(), former, wish.kind)));
        request.min_fence = wish.fenced.then_some(0);
        let mut outcome = self.nodes.send_to_all(&request, inbox).wait(*budget);
        let refused = outcome.tally.refused();
        if outcome.verdict == Verdict::Granted && wish.fenced {
            outcome = self.assign_fencing_token(lease, outcome, inbox, *budget);
        }
        let error = match outcome.verdict {
            Verdict::Granted if bid.activate(wish.ttl) => return Ok(bid.lease),
            Verdict::Granted => Error::ValidityExhausted {
                attempts: 1,
                ttl: wish.ttl.duration(),
            },
            Verdict::Refused => lease.lost_error_for(LossReason::NotOurs),
            Verdict::Unavailable => match self.check_cancelled(inbox) {
                Ok(()) => self.insufficient_quorum(Operation::Acquire, outcome.tally),
                Err(error) => error,
            },
        };
        lease.abandon();
        self.nodes.release_unawaited(lease, refused);
        Err(error)
    }
}
