//! How an acquire goes from one attempt to the next.

use std::sync::Arc;
use std::time::{Duration, Instant};

use log::debug;

use crate::background::loss_handler;
use crate::background::release_listener::shared::Listening;
use crate::background::release_listener::subscriptions::Heard;
use crate::config::on_drop::OnDrop;
use crate::engine::attempt::Trace;
use crate::engine::attempt_result::{Contention, Miss};
use crate::engine::backend::{Outage, Way};
use crate::engine::backoff::Pauses;
use crate::engine::core::Engine;
use crate::engine::params::{Patience, Stay, Taken, Wish, access, contended, turned_away};
use crate::error::{Error, Operation};
use crate::local::guard::Pass;
use crate::protocol::key::Key;
use crate::protocol::kind::Claim;
use crate::protocol::lease::{FOR_EVER, Lease, Look};
use crate::protocol::mode::Mode;
use crate::protocol::quorum::NodeSet;
use crate::protocol::retry::RetryPolicy;
use crate::protocol::token::Token;
use crate::time::deadline::{Budget, Limit};
use crate::time::{clock, deadline};
use crate::transport::cancel;
use crate::transport::inbox::Inbox;
use crate::transport::node_group::Nodes;

/// So many attempts in a row that were too slow end an acquire.
const MOST_SLOW: u32 = 3;

/// A writer's place at the gate, under one token for all its attempts. It is left however the acquire ends.
struct Place<'a> {
    nodes: &'a Nodes,
    lease: Arc<Lease>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.nodes.release_behind(&self.lease, NodeSet::default());
    }
}

impl Engine {
    /// Takes a lock: the local slot first, then attempt after attempt until one is won or a limit ends it.
    ///
    /// Blocks until `patience` ends, and for the attempt that has begun by then.
    pub(crate) fn acquire(&self, wish: &Wish, patience: Patience) -> Result<Taken, Error> {
        let started = clock::now();
        let taken = self.pursue(wish, patience, started);
        let outcome = match &taken {
            Ok(Taken::Quorum(..)) => Ok(Mode::Quorum),
            Ok(Taken::Local(_)) => Ok(Mode::Local),
            Err(error) => Err(error),
        };
        let waited = clock::now().saturating_duration_since(started);
        self.nodes
            .meter()
            .acquired(wish.keys.first(), outcome, waited);
        taken
    }

    fn pursue(&self, wish: &Wish, patience: Patience, started: Instant) -> Result<Taken, Error> {
        let waited = || clock::now().saturating_duration_since(started);
        let inbox = cancel::inbox(wish.cancel.as_ref())?;
        let retry = self.retry(wish.claim);
        let span = patience.attempts.map(|attempts| retry.span(attempts));
        let queue_end = span.and_then(|span| deadline::deadline(started, span));
        let queue_end = deadline::earlier(patience.end, queue_end);
        let stay = Stay { started, queue_end };
        let settle = |lease: &Arc<Lease>| self.losses.settle(lease, loss_handler::ENDED);
        let access = access(wish.claim);
        let offer = self.offer(wish, queue_end)?;
        let pass = self
            .gate
            .enter_offering(
                &wish.keys,
                access,
                offer.as_ref(),
                &inbox,
                queue_end,
                settle,
            )
            .map_err(|refused| {
                let waited = waited();
                let attempts = retry.attempts_within(waited);
                turned_away(refused, &wish.keys, wish.claim, attempts, waited)
            })?;
        // Until when those may hold it who refused it.
        let mut held_until = None;
        if let Some(offer) = &offer
            && let Some(baton) = pass.baton()
        {
            match self.take_over(wish, offer, &baton, &inbox) {
                Ok(lease) => {
                    self.keep(&lease, &pass, wish)?;
                    return Ok(Taken::Quorum(lease, pass));
                }
                Err(refused) => {
                    let for_ever = deadline::deadline(clock::now(), FOR_EVER);
                    held_until = for_ever.filter(|_| refused.len() > 0);
                }
            }
        }
        if !self.stand_behind(wish, &pass, &inbox, queue_end)? {
            let attempts = retry.attempts_within(waited());
            return Err(contended(wish.claim, access, attempts, waited(), None));
        }
        // What passed by in a queue counts, but there is one attempt left at the least.
        let most_in_queue = patience.attempts.map_or(u32::MAX, |most| most - 1);
        let mut attempts = retry.attempts_within(waited()).min(most_in_queue);
        let (mut slow, mut pauses) = (0, Pauses::default());
        let mut place: Option<Place<'_>> = None;
        let mut outage = Outage::default();
        let mut way = self.way(wish, stay, &inbox, held_until, &mut outage)?;
        let keys = wish.keys.all().iter();
        let mut ears: Vec<Listening<'_>> = keys
            .filter_map(|key| self.listener.join_others(key, &inbox))
            .collect();
        self.let_others_pass(wish, patience, &inbox);
        let mut first = None;
        // One node alone is not asked for longer than a refresh interval: the traces on the others would be over.
        let mut asked_all = started;
        loop {
            self.go_on(&inbox)?;
            let Way::Nodes(probe) = way else {
                return Ok(Taken::Local(pass));
            };
            attempts = attempts.saturating_add(1);
            let trace = match (wish.claim, &place) {
                (Claim::Read, _) if !patience.is_over(attempts) => Trace::Mark,
                (Claim::Write, Some(place)) => Trace::Place(&place.lease),
                _ => Trace::None,
            };
            let now = clock::now();
            let alone = first.take().filter(|_| now < asked_all + self.refresh);
            // The last attempt is not spent on one node, which cannot say for all that the lock is held.
            let alone = alone.filter(|_| probe.is_none() && !patience.is_over(attempts));
            if alone.is_none() {
                asked_all = now;
            }
            let attempt = self.attempt(wish, &inbox, trace, alone, probe.as_ref())?;
            drop(probe); // its verdict is known, if there is one
            let miss = match attempt {
                Ok(lease) => {
                    self.keep(&lease, &pass, wish)?;
                    return Ok(Taken::Quorum(lease, pass));
                }
                Err(miss) => miss,
            };
            self.go_on(&inbox)?;
            let contention = match &miss {
                Miss::Contended(contention) => Some(contention),
                _ => None,
            };
            outage.note(&miss, now);
            slow = match miss {
                Miss::Slow { .. } => slow + 1,
                _ => 0,
            };
            if contention.is_some_and(|met| met.by_one) && patience.is_over(attempts) {
                way = Way::Nodes(None);
                continue; // one node cannot say for all that it is held
            }
            let now = clock::now();
            let outage_end = match miss {
                Miss::Unavailable(_) => outage.end(self.settings.retry.max_outage),
                _ => None,
            };
            let is_denied = matches!(&miss, Miss::Unavailable(tally) if tally.is_denied());
            if let Some(held_for) = miss.held_for() {
                held_until = held_until.max(deadline::deadline(now, held_for));
            }
            let is_open = matches!(miss, Miss::Unavailable(_)) && self.circuit.is_open();
            if is_open && self.goes_local(wish, held_until) {
                return Ok(Taken::Local(pass));
            }
            let over = patience.is_over(attempts) || outage_end.is_some_and(|end| end <= now);
            if over || is_denied || slow == MOST_SLOW {
                return Err(self.give_up(miss, wish, attempts, waited()));
            }
            // A place at the gate is for writers who know that a quorum answers (rule S10).
            match miss {
                Miss::Unavailable(_) => place = None,
                Miss::Contended(ref met)
                    if wish.claim == Claim::Write && !met.by_one && place.is_none() =>
                {
                    place = Some(self.place(wish.keys.first())?);
                }
                _ => {}
            }
            if is_open {
                way = self.way(wish, stay, &inbox, held_until, &mut outage)?;
                continue;
            }
            let mut budget = Budget::new(Limit::Wait, patience.end).and(Limit::Outage, outage_end);
            let has_time = queue_end.is_none_or(|end| end > now);
            if wish.claim.is_shared() && has_time && contention.is_some() && pass.follow() {
                // Another thread of this process asks for us, too, and its grant wakes us.
                inbox.sleep(budget.and(Limit::Pause, queue_end).end());
                let slept = clock::now().saturating_duration_since(now);
                attempts = attempts
                    .saturating_add(retry.attempts_within(slept))
                    .min(most_in_queue);
                way = self.way(wish, stay, &inbox, held_until, &mut outage)?;
                continue;
            }
            if let Some(met) = contention {
                self.listen(wish, met, &inbox, &mut ears);
            }
            let pause = pauses.next(self, wish.claim);
            budget = budget.and(Limit::Pause, deadline::deadline(now, pause));
            if let Some(free) = contention.and_then(|contention| contention.free) {
                // A node counts in whole milliseconds and frees a key in the one after its last.
                let free = free.saturating_add(Duration::from_millis(1));
                budget = budget.and(Limit::Pause, deadline::deadline(now, free));
            }
            debug!(
                "{}: attempt {attempts} missed, next after {:?}",
                wish.keys,
                budget.limit()
            );
            // A limited number of attempts is spent after delays and releases, not on what was released before the subscription.
            let least = match patience.attempts {
                Some(_) => Heard::Release,
                None => Heard::Subscribed,
            };
            let heard = || ears.iter().any(|ear| ear.has_heard(least));
            // A wake-up that came late for the slot is no reason to ask sooner; one to close or to cancel is.
            while !heard() && inbox.sleep(budget.end()) && self.go_on(&inbox).is_ok() {}
            let heard = ears.iter().map(Listening::take).max();
            if heard == Some(Heard::Release) {
                pauses.wake();
            }
            // All who wait ask the same node first, and those who lose there leave nothing to undo.
            if heard == Some(Heard::Release) {
                first = self.listener.node();
            }
            way = self.way(wish, stay, &inbox, held_until, &mut outage)?;
        }
    }

    /// Waits while others of this process wait for a permit who came before. `false` where the time was over first.
    fn stand_behind(
        &self,
        wish: &Wish,
        pass: &Pass,
        inbox: &Inbox,
        end: Option<Instant>,
    ) -> Result<bool, Error> {
        while matches!(wish.claim, Claim::Permit { .. }) && pass.is_behind() {
            self.go_on(inbox)?;
            if end.is_some_and(|end| end <= clock::now()) {
                return Ok(false);
            }
            inbox.sleep(end);
        }
        Ok(true)
    }

    /// Begins to listen for the release of what others hold: of a lock with several keys those that stood in the way. Without
    /// an ear a wait is ended by time, as it can be anyway.
    fn listen<'a>(
        &'a self,
        wish: &Wish,
        met: &Contention,
        inbox: &Arc<Inbox>,
        ears: &mut Vec<Listening<'a>>,
    ) {
        let one = wish.keys.only().into_iter();
        let some = met.in_the_way.iter().map(|key| &wish.keys.all()[*key]);
        for key in one.chain(some) {
            if !ears.iter().any(|ear| ear.is_at(key)) {
                let ear = self.listener.join(key, inbox);
                ears.extend(ear.inspect_err(|error| debug!("{key}: not listening: {error}")));
            }
        }
    }

    /// Waits while others may pass who wait in other processes for what was released in this one. Who only tries does not.
    fn let_others_pass(&self, wish: &Wish, patience: Patience, inbox: &Inbox) {
        if let Some(until) = self.listener.courtesy(&wish.keys) {
            let end = deadline::earlier(Some(until), patience.end);
            while inbox.sleep(end) && self.go_on(inbox).is_ok() {}
        }
    }

    /// Gives a lease that was won its slot, and what is to be done for it; given back where that cannot be.
    pub(crate) fn keep(&self, lease: &Arc<Lease>, pass: &Pass, wish: &Wish) -> Result<(), Error> {
        let kept = match pass.bind(lease) {
            true => self.care_for(lease, wish),
            false => Err(Error::Closed),
        };
        if kept.is_err() {
            // How that ends is nobody's business any more.
            let _ = self.release(lease, pass, OnDrop::HandOff);
        }
        kept
    }

    /// Before anybody sees the guard, so that nothing can be missed.
    pub(crate) fn care_for(&self, lease: &Arc<Lease>, wish: &Wish) -> Result<(), Error> {
        if let Some(tell) = &wish.care.on_lost {
            let now = clock::now();
            let due = match lease.peek(now) {
                Look::Held(expiry) => expiry,
                _ => now, // lost already: to be told at once
            };
            self.losses.notifier().watch(lease, due, tell.clone())?;
        }
        match wish.care.renews {
            true => self.renewal.register(lease, wish.ttl, wish.care.max_hold),
            false => Ok(()),
        }
    }

    /// Whether somebody who waits in this inbox may.
    pub(crate) fn go_on(&self, inbox: &Inbox) -> Result<(), Error> {
        match (self.gate.is_closed(), inbox.is_cancelled()) {
            (true, _) => Err(Error::Closed),
            (false, true) => Err(Error::Cancelled),
            (false, false) => Ok(()),
        }
    }

    /// The policy for a claim.
    pub(crate) fn retry(&self, claim: Claim) -> &RetryPolicy {
        match claim {
            Claim::Exclusive | Claim::Permit { .. } => &self.settings.retry,
            Claim::Read | Claim::Write | Claim::Gate => &self.rw_retry,
        }
    }

    fn place(&self, key: &Key) -> Result<Place<'_>, Error> {
        let token = Token::fresh(self.settings.owner.as_deref())?;
        Ok(Place {
            nodes: &self.nodes,
            lease: Arc::new(Lease::new(key.clone(), token, Claim::Gate)),
        })
    }

    fn give_up(&self, miss: Miss, wish: &Wish, attempts: u32, waited: Duration) -> Error {
        match miss {
            Miss::Contended(Contention { by, free, .. }) => {
                contended(wish.claim, by, attempts, waited, free)
            }
            Miss::Unavailable(tally) => self.insufficient(Operation::Acquire, tally),
            Miss::Slow { .. } => Error::ValidityExhausted {
                attempts,
                ttl: wish.ttl.duration(),
            },
        }
    }
}
