//! How an acquire goes from one attempt to the next.

use std::sync::Arc;
use std::time::{Duration, Instant};

use log::debug;

use crate::background::loss_handler;
use crate::background::release_listener::shared::Subscription;
use crate::background::release_listener::subscriptions::Signal;
use crate::config::on_drop::OnDrop;
use crate::engine::attempt::WaitMarker;
use crate::engine::attempt_result::{AttemptFailure, Contention};
use crate::engine::backend::{Backend, Outage};
use crate::engine::backoff::Backoff;
use crate::engine::core::Engine;
use crate::engine::params::{
    AcquireParams, Acquired, Deadlines, WaitLimit, access_mode, contended_error, refusal_error,
};
use crate::error::{Error, Operation};
use crate::local::guard::LocalGuard;
use crate::protocol::key::Key;
use crate::protocol::kind::LeaseKind;
use crate::protocol::lease::{Lease, LeaseState, NEVER_EXPIRES_AFTER};
use crate::protocol::mode::Mode;
use crate::protocol::quorum::NodeSet;
use crate::protocol::retry::RetryPolicy;
use crate::protocol::token::Token;
use crate::time::deadline::{Deadline, DeadlineCause};
use crate::time::{clock, deadline};
use crate::transport::cancel;
use crate::transport::inbox::Inbox;
use crate::transport::node_group::NodeGroup;

/// So many attempts in a row that were too slow end an acquire.
const MAX_SLOW_ATTEMPTS: u32 = 3;

/// A writer's place at the gate, under one token for all its attempts. It is left however the acquire ends.
struct GateEntry<'a> {
    nodes: &'a NodeGroup,
    lease: Arc<Lease>,
}

impl Drop for GateEntry<'_> {
    fn drop(&mut self) {
        self.nodes
            .release_unawaited(&self.lease, NodeSet::default());
    }
}

impl Engine {
    /// Takes a lock: the local slot first, then attempt after attempt until one is won or a limit ends it.
    ///
    /// Blocks until `patience` ends, and for the attempt that has begun by then.
    pub(crate) fn acquire(
        &self,
        wish: &AcquireParams,
        patience: WaitLimit,
    ) -> Result<Acquired, Error> {
        let started = clock::now();
        let taken = self.run_acquire(wish, patience, started);
        let outcome = match &taken {
            Ok(Acquired::Quorum(..)) => Ok(Mode::Quorum),
            Ok(Acquired::Local(_)) => Ok(Mode::Local),
            Err(error) => Err(error),
        };
        let waited = clock::now().saturating_duration_since(started);
        self.nodes
            .counters()
            .acquired(wish.keys.first(), outcome, waited);
        taken
    }

    fn run_acquire(
        &self,
        wish: &AcquireParams,
        patience: WaitLimit,
        started: Instant,
    ) -> Result<Acquired, Error> {
        let waited = || clock::now().saturating_duration_since(started);
        let inbox = cancel::cancellable_inbox(wish.cancel.as_ref())?;
        let retry = self.retry_policy(wish.kind);
        let span = patience
            .max_attempts
            .map(|attempts| retry.total_delay(attempts));
        let queue_end = span.and_then(|span| deadline::deadline(started, span));
        let queue_end = deadline::earlier(patience.deadline, queue_end);
        let stay = Deadlines {
            started,
            queue: queue_end,
        };
        let settle = |lease: &Arc<Lease>| {
            self.loss_handler
                .handle_loss(lease, loss_handler::EXPIRED_MSG)
        };
        let access = access_mode(wish.kind);
        let offer = self.handoff_offer(wish, queue_end)?;
        let pass = self
            .lock_table
            .acquire_offering(
                &wish.keys,
                access,
                offer.as_ref(),
                &inbox,
                queue_end,
                settle,
            )
            .map_err(|refused| {
                let waited = waited();
                let attempts = retry.attempts_elapsed(waited);
                refusal_error(refused, &wish.keys, wish.kind, attempts, waited)
            })?;
        // Until when those may hold it who refused it.
        let mut held_until = None;
        if let Some(offer) = &offer
            && let Some(baton) = pass.take_handoff()
        {
            match self.accept_handoff(wish, offer, &baton, &inbox) {
                Ok(lease) => {
                    self.attach(&lease, &pass, wish)?;
                    return Ok(Acquired::Quorum(lease, pass));
                }
                Err(refused) => {
                    let for_ever = deadline::deadline(clock::now(), NEVER_EXPIRES_AFTER);
                    held_until = for_ever.filter(|_| refused.len() > 0);
                }
            }
        }
        if !self.wait_for_turn(wish, &pass, &inbox, queue_end)? {
            let attempts = retry.attempts_elapsed(waited());
            return Err(contended_error(wish.kind, access, attempts, waited(), None));
        }
        // What passed by in a queue counts, but there is one attempt left at the least.
        let most_in_queue = patience.max_attempts.map_or(u32::MAX, |most| most - 1);
        let mut attempts = retry.attempts_elapsed(waited()).min(most_in_queue);
        let (mut slow, mut pauses) = (0, Backoff::default());
        let mut place: Option<GateEntry<'_>> = None;
        let mut outage = Outage::default();
        let mut way = self.choose_backend(wish, stay, &inbox, held_until, &mut outage)?;
        let keys = wish.keys.as_slice().iter();
        let mut ears: Vec<Subscription<'_>> = keys
            .filter_map(|key| self.listener.subscribe_if_active(key, &inbox))
            .collect();
        self.yield_to_other_processes(wish, patience, &inbox);
        let mut first = None;
        // One node alone is not asked for longer than a refresh interval: the traces on the others would be over.
        let mut asked_all = started;
        loop {
            self.check_cancelled(&inbox)?;
            let Backend::Nodes(probe) = way else {
                return Ok(Acquired::Local(pass));
            };
            attempts = attempts.saturating_add(1);
            let trace = match (wish.kind, &place) {
                (LeaseKind::Read, _) if !patience.is_exhausted(attempts) => WaitMarker::Reader,
                (LeaseKind::Write, Some(place)) => WaitMarker::Writer(&place.lease),
                _ => WaitMarker::None,
            };
            let now = clock::now();
            let alone = first
                .take()
                .filter(|_| now < asked_all + self.refresh_interval);
            // The last attempt is not spent on one node, which cannot say for all that the lock is held.
            let alone = alone.filter(|_| probe.is_none() && !patience.is_exhausted(attempts));
            if alone.is_none() {
                asked_all = now;
            }
            let attempt = self.attempt(wish, &inbox, trace, alone, probe.as_ref())?;
            drop(probe); // its verdict is known, if there is one
            let miss = match attempt {
                Ok(lease) => {
                    self.attach(&lease, &pass, wish)?;
                    return Ok(Acquired::Quorum(lease, pass));
                }
                Err(miss) => miss,
            };
            self.check_cancelled(&inbox)?;
            let contention = match &miss {
                AttemptFailure::Contended(contention) => Some(contention),
                _ => None,
            };
            outage.note(&miss, now);
            slow = match miss {
                AttemptFailure::TooSlow { .. } => slow + 1,
                _ => 0,
            };
            if contention.is_some_and(|met| met.single_node) && patience.is_exhausted(attempts) {
                way = Backend::Nodes(None);
                continue; // one node cannot say for all that it is held
            }
            let now = clock::now();
            let outage_end = match miss {
                AttemptFailure::Unavailable(_) => outage.end(self.settings.retry.max_outage),
                _ => None,
            };
            let is_denied =
                matches!(&miss, AttemptFailure::Unavailable(tally) if tally.is_denied());
            if let Some(held_for) = miss.max_hold_left() {
                held_until = held_until.max(deadline::deadline(now, held_for));
            }
            let is_open = matches!(miss, AttemptFailure::Unavailable(_)) && self.circuit.is_open();
            if is_open && self.goes_local(wish, held_until) {
                return Ok(Acquired::Local(pass));
            }
            let over = patience.is_exhausted(attempts) || outage_end.is_some_and(|end| end <= now);
            if over || is_denied || slow == MAX_SLOW_ATTEMPTS {
                return Err(self.failure_error(miss, wish, attempts, waited()));
            }
            // A place at the gate is for writers who know that a quorum answers (rule S10).
            match miss {
                AttemptFailure::Unavailable(_) => place = None,
                AttemptFailure::Contended(ref met)
                    if wish.kind == LeaseKind::Write && !met.single_node && place.is_none() =>
                {
                    place = Some(self.new_gate_entry(wish.keys.first())?);
                }
                _ => {}
            }
            if is_open {
                way = self.choose_backend(wish, stay, &inbox, held_until, &mut outage)?;
                continue;
            }
            let mut budget = Deadline::new(DeadlineCause::CallerWait, patience.deadline)
                .min_with(DeadlineCause::Outage, outage_end);
            let has_time = queue_end.is_none_or(|end| end > now);
            if wish.kind.is_shared() && has_time && contention.is_some() && pass.follow_leader() {
                // Another thread of this process asks for us, too, and its grant wakes us.
                inbox.sleep(budget.min_with(DeadlineCause::RetryDelay, queue_end).end());
                let slept = clock::now().saturating_duration_since(now);
                attempts = attempts
                    .saturating_add(retry.attempts_elapsed(slept))
                    .min(most_in_queue);
                way = self.choose_backend(wish, stay, &inbox, held_until, &mut outage)?;
                continue;
            }
            if let Some(met) = contention {
                self.subscribe_to_blockers(wish, met, &inbox, &mut ears);
            }
            let pause = pauses.next_delay(self, wish.kind);
            budget = budget.min_with(DeadlineCause::RetryDelay, deadline::deadline(now, pause));
            let free = contention.and_then(|contention| contention.free_in);
            // Who refused may have been a caller that gave way in a split vote: its end is no reason to spend another attempt now.
            let free = free.filter(|free| patience.max_attempts.is_none() || !free.is_zero());
            if let Some(free) = free {
                // A node counts in whole milliseconds and frees a key in the one after its last.
                let free = free.saturating_add(Duration::from_millis(1));
                budget = budget.min_with(DeadlineCause::RetryDelay, deadline::deadline(now, free));
            }
            debug!(
                "{}: attempt {attempts} missed, next after {:?}",
                wish.keys,
                budget.limit()
            );
            // A limited number of attempts is spent after delays and releases, not on what was released before the subscription.
            let least = match patience.max_attempts {
                Some(_) => Signal::Released,
                None => Signal::Subscribed,
            };
            let heard = || ears.iter().any(|ear| ear.has_signal(least));
            // A wake-up that came late for the slot is no reason to ask sooner; one to close or to cancel is.
            while !heard() && inbox.sleep(budget.end()) && self.check_cancelled(&inbox).is_ok() {}
            let heard = ears.iter().map(Subscription::take_signal).max();
            if heard == Some(Signal::Released) {
                pauses.reset_after_release();
            }
            // All who wait ask the same node first, and those who lose there leave nothing to undo.
            if heard == Some(Signal::Released) {
                first = self.listener.current_node();
            }
            way = self.choose_backend(wish, stay, &inbox, held_until, &mut outage)?;
        }
    }

    /// Waits while others of this process wait for a permit who came before. `false` where the time was over first.
    fn wait_for_turn(
        &self,
        wish: &AcquireParams,
        pass: &LocalGuard,
        inbox: &Inbox,
        end: Option<Instant>,
    ) -> Result<bool, Error> {
        while matches!(wish.kind, LeaseKind::Permit { .. }) && pass.has_earlier_waiter() {
            self.check_cancelled(inbox)?;
            if end.is_some_and(|end| end <= clock::now()) {
                return Ok(false);
            }
            inbox.sleep(end);
        }
        Ok(true)
    }

    /// Begins to listen for the release of what others hold: of a lock with several keys those that stood in the way. Without
    /// an ear a wait is ended by time, as it can be anyway.
    fn subscribe_to_blockers<'a>(
        &'a self,
        wish: &AcquireParams,
        met: &Contention,
        inbox: &Arc<Inbox>,
        ears: &mut Vec<Subscription<'a>>,
    ) {
        let one = wish.keys.single().into_iter();
        let some = met
            .blocking_keys
            .iter()
            .map(|key| &wish.keys.as_slice()[*key]);
        for key in one.chain(some) {
            if !ears.iter().any(|ear| ear.is_at(key)) {
                let ear = self.listener.subscribe(key, inbox);
                ears.extend(ear.inspect_err(|error| debug!("{key}: not listening: {error}")));
            }
        }
    }

    /// Waits while others may pass who wait in other processes for what was released in this one. Who only tries does not.
    fn yield_to_other_processes(&self, wish: &AcquireParams, patience: WaitLimit, inbox: &Inbox) {
        if let Some(until) = self.listener.yield_deadline(&wish.keys) {
            let end = deadline::earlier(Some(until), patience.deadline);
            while inbox.sleep(end) && self.check_cancelled(inbox).is_ok() {}
        }
    }

    /// Gives a lease that was won its slot, and what is to be done for it; given back where that cannot be.
    pub(crate) fn attach(
        &self,
        lease: &Arc<Lease>,
        pass: &LocalGuard,
        wish: &AcquireParams,
    ) -> Result<(), Error> {
        let kept = match pass.attach_lease(lease) {
            true => self.apply_lease_options(lease, wish),
            false => Err(Error::Closed),
        };
        if kept.is_err() {
            // How that ends is nobody's business any more.
            let _ = self.release(lease, pass, OnDrop::Background);
        }
        kept
    }

    /// Before anybody sees the guard, so that nothing can be missed.
    pub(crate) fn apply_lease_options(
        &self,
        lease: &Arc<Lease>,
        wish: &AcquireParams,
    ) -> Result<(), Error> {
        if let Some(tell) = &wish.lease_options.on_lost {
            let now = clock::now();
            let due = match lease.peek(now) {
                LeaseState::Held(expiry) => expiry,
                _ => now, // lost already: to be told at once
            };
            self.loss_handler
                .notifier()
                .watch(lease, due, tell.clone())?;
        }
        match wish.lease_options.auto_renew {
            true => self
                .renewal
                .register(lease, wish.ttl, wish.lease_options.max_renewal),
            false => Ok(()),
        }
    }

    /// Whether somebody who waits in this inbox may.
    pub(crate) fn check_cancelled(&self, inbox: &Inbox) -> Result<(), Error> {
        match (self.lock_table.is_closed(), inbox.is_cancelled()) {
            (true, _) => Err(Error::Closed),
            (false, true) => Err(Error::Cancelled),
            (false, false) => Ok(()),
        }
    }

    /// The policy for a claim.
    pub(crate) fn retry_policy(&self, claim: LeaseKind) -> &RetryPolicy {
        match claim {
            LeaseKind::Exclusive | LeaseKind::Permit { .. } => &self.settings.retry,
            LeaseKind::Read | LeaseKind::Write | LeaseKind::GateEntry => &self.rw_retry,
        }
    }

    fn new_gate_entry(&self, key: &Key) -> Result<GateEntry<'_>, Error> {
        let token = Token::fresh(self.settings.owner_label.as_deref())?;
        Ok(GateEntry {
            nodes: &self.nodes,
            lease: Arc::new(Lease::new(key.clone(), token, LeaseKind::GateEntry)),
        })
    }

    fn failure_error(
        &self,
        miss: AttemptFailure,
        wish: &AcquireParams,
        attempts: u32,
        waited: Duration,
    ) -> Error {
        match miss {
            AttemptFailure::Contended(Contention {
                held_by: by,
                free_in: free,
                ..
            }) => contended_error(wish.kind, by, attempts, waited, free),
            AttemptFailure::Unavailable(tally) => {
                self.insufficient_quorum(Operation::Acquire, tally)
            }
            AttemptFailure::TooSlow { .. } => Error::ValidityExhausted {
                attempts,
                ttl: wish.ttl.duration(),
            },
        }
    }
}
