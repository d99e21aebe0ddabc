//! What it is to hand a lock over to another process, and to adopt one: the lock stays taken all the time.

use std::sync::Arc;
use std::time::Instant;

use crate::background::loss_handler;
use crate::engine::attempt::Bid;
use crate::engine::core::Engine;
use crate::engine::params::{Patience, Wish, turned_away};
use crate::error::{Error, LossReason, Operation};
use crate::local::entry::Access;
use crate::local::guard::Pass;
use crate::protocol::lease::Lease;
use crate::protocol::mode::Mode;
use crate::protocol::quorum::Verdict;
use crate::protocol::request::{Request, Verb};
use crate::protocol::token::Token;
use crate::time::clock;
use crate::transport::cancel;
use crate::transport::inbox::Inbox;

impl Engine {
    /// Ends a lease that is held, without its release: the nodes keep its token, for another to adopt, until the TTL is over.
    /// Does not block.
    pub(crate) fn hand_over(&self, lease: &Arc<Lease>, pass: &Pass) -> Result<(), Error> {
        self.renewal.retire(lease);
        self.still_held(lease, lease.begin_release(clock::now()))?;
        self.losses.notifier().forget(lease);
        lease.end();
        pass.leave();
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
        wish: &Wish,
        former: Token,
        patience: Patience,
    ) -> Result<(Arc<Lease>, Pass), Error> {
        let started = clock::now();
        let adopted = self.take_up(wish, former, patience, started);
        let waited = clock::now().saturating_duration_since(started);
        let outcome = adopted.as_ref().map(|_| Mode::Quorum);
        let meter = self.nodes.meter();
        meter.acquired(wish.keys.first(), outcome, waited);
        adopted
    }

    fn take_up(
        &self,
        wish: &Wish,
        former: Token,
        patience: Patience,
        started: Instant,
    ) -> Result<(Arc<Lease>, Pass), Error> {
        let inbox = cancel::inbox(wish.cancel.as_ref())?;
        let settle = |lease: &Arc<Lease>| self.losses.settle(lease, loss_handler::ENDED);
        let pass = self
            .gate
            .enter(&wish.keys, Access::Alone, &inbox, patience.end, settle)
            .map_err(|refused| {
                let waited = clock::now().saturating_duration_since(started);
                turned_away(refused, &wish.keys, wish.claim, 0, waited)
            })?;
        let lease = self.swap(wish, former, &inbox)?;
        self.keep(&lease, &pass, wish)?;
        Ok((lease, pass))
    }

    /// One round that puts a fresh token in the place of the former one.
    fn swap(&self, wish: &Wish, former: Token, inbox: &Arc<Inbox>) -> Result<Arc<Lease>, Error> {
        self.nodes.meter().attempted(wish.keys.first());
        let bid = self.bid(wish, wish.claim)?;
        let Bid { lease, budget, .. } = &bid;
        let mut request = Request::new(Verb::Adopt, lease, wish.ttl.millis());
        request.former = Some(Arc::new(Lease::new(wish.keys.clone(), former, wish.claim)));
        request.fence = wish.fenced.then_some(0);
        let mut outcome = self.nodes.ask(&request, inbox).outcome(*budget);
        let refused = outcome.tally.refused();
        if outcome.verdict == Verdict::Won && wish.fenced {
            outcome = self.number(lease, outcome, inbox, *budget);
        }
        let error = match outcome.verdict {
            Verdict::Won if bid.take_hold(wish.ttl) => return Ok(bid.lease),
            Verdict::Won => Error::ValidityExhausted {
                attempts: 1,
                ttl: wish.ttl.duration(),
            },
            Verdict::Refused => lease.lost_for(LossReason::NotOurs),
            Verdict::Unavailable => match self.go_on(inbox) {
                Ok(()) => self.insufficient(Operation::Acquire, outcome.tally),
                Err(error) => error,
            },
        };
        lease.abandon();
        self.nodes.release_behind(lease, refused);
        Err(error)
    }
}
