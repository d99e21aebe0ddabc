//! Runs one acquire: from the lock table to a lease, or to the error that ends it.
//!
//! The caller first waits for the entries of its keys in the lock table (S8). Then
//! [`Acquisition::run`] makes attempts until one is granted and valid, until a limit ends the
//! acquire, or until waiting cannot help. Between two attempts the caller sleeps in its [`Inbox`],
//! until a published release, a cancellation or a deadline. `acquire_wait.rs` has these waits.
//!
//! - No attempt is made without the entry of every key. So a caller sends no request while it waits
//!   for another thread of this process (S8).
//! - A refusal by the preferred node alone never ends an acquire: the last attempt asks all nodes.
//! - A local lock is acquired only while the breaker is not closed, no quorum is reachable, and
//!   every lease of another holder that a node has reported is past its expiry (S9).
//! - A gate entry is released when the acquire ends, and when an attempt is unavailable (S10).
//!
//! Tests: `src/tests/engine/`, for these rules in this order: `quorum.rs`,
//! `locally_held_key_causes_no_request`; `wake_up.rs`,
//! `last_attempt_asks_all_nodes_although_one_woke_it` (a limit of attempts); `outage.rs`,
//! `broken_connections_that_reconnect_never_lead_to_local_locks` (no quorum reachable) and
//! `refused_acquire_stays_off_local_locks_until_the_holders_lease_can_have_ended` (past the
//! expiry); `read_write.rs`, `timed_out_writer_releases_its_gate_entry` (the acquire ends) and
//! `writer_without_a_quorum_releases_its_gate_entry_and_adds_none` (unavailable). Else `cancel.rs`,
//! `validity.rs`, `handoff.rs`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::background::release_listener::subscription::Subscription;
use crate::engine::attempt::{AttemptContext, WaitMarker};
use crate::engine::attempt_result::{AttemptFailure, Attempted};
use crate::engine::backend::{Backend, BackendRequest, Outage};
use crate::engine::backoff::Backoff;
use crate::engine::breaker::Probe;
use crate::engine::core::Engine;
use crate::engine::gate_entry::GateEntry;
use crate::engine::params::{
    AcquireParams, Acquired, Deadlines, Effort, HeldBy, WaitLimit, access_mode, contended_error,
    refusal_error,
};
use crate::engine::undo::Undo;
use crate::error::error::Error;
use crate::error::operation::Operation;
use crate::local::guard::LocalGuard;
use crate::local::handoff::HandoffOffer;
use crate::local::request::LocalRequest;
use crate::protocol::kind::LeaseKind;
use crate::protocol::lease::{Lease, NEVER_EXPIRES_AFTER};
use crate::protocol::mode::Mode;
use crate::protocol::retry::RetryPolicy;
use crate::time::{clock, deadline};
use crate::transport::cancel;
use crate::transport::inbox::Inbox;

/// Slow attempts in a row that end an acquire as `ValidityExhausted` (S2).
const MAX_SLOW_ATTEMPTS: u32 = 3;

impl Engine {
    /// Acquires a lock on a quorum of nodes, or in this process alone in degraded mode (S9).
    ///
    /// Blocks until `limit` ends or an outage has lasted for `max_outage`, and finishes an attempt
    /// in progress. If `limit` ends between two attempts while the breaker is closed, one last
    /// attempt follows.
    ///
    /// # Errors
    /// - `Contended`, `WriteLockHeld`, `WriteLockTimeout`, `ReadersTimeout`: the last attempt was
    ///   contended, or another thread had the entry, when `limit` ended.
    /// - `InsufficientQuorum`: the last attempt was unavailable, or the breaker open, when `limit`
    ///   or `max_outage` ended.
    /// - `InsufficientQuorum`, at once: without the nodes that deny access there is no quorum.
    /// - `CircuitOpen`: the breaker is open, and `limit` allows no wait.
    /// - `ValidityExhausted`: `MAX_SLOW_ATTEMPTS` attempts in a row were too slow, or the last one
    ///   was when `limit` ended.
    /// - `Cancelled`, `Closed`: the caller's token was cancelled, or the `Nodes` shut down.
    /// - `InvalidConfig`: a quorum knows another number of permits.
    /// - `System`: the operating system has no random bytes, or no thread.
    pub(crate) fn acquire(
        &self,
        params: &AcquireParams,
        limit: WaitLimit,
    ) -> Result<Acquired, Error> {
        let (started, mut held_until) = (clock::now(), None);
        let acquisition = Acquisition::queue(self, params, limit, started, &mut held_until);
        let acquired = acquisition.and_then(Acquisition::run);
        self.record_acquire(params, &acquired, started);
        acquired
    }

    /// Counts a call that asked for this lock, began at `started` and has ended.
    pub(super) fn record_acquire(
        &self,
        params: &AcquireParams,
        acquired: &Result<Acquired, Error>,
        started: Instant,
    ) {
        let outcome = match acquired {
            Ok(Acquired::Quorum(..)) => Ok(Mode::Quorum),
            Ok(Acquired::Local(_)) => Ok(Mode::Local),
            Err(error) => Err(error),
        };
        let waited = clock::now().saturating_duration_since(started);
        let name = params.keys.first().name();
        self.nodes.counters().acquired(name, outcome, waited);
    }

    /// Acquires the entries of all keys in the lock table. Blocks while other threads hold them,
    /// until `deadlines.queue` at most.
    ///
    /// A thread that queues leaves an offer at its position in the wait queue, so that the releasing
    /// thread may hand the lock off to it. Returns the offer with the guard.
    ///
    /// # Errors
    /// - `Contended`, `WriteLockHeld`, `WriteLockTimeout`, `ReadersTimeout`: the deadline ended.
    /// - `InvalidConfig`: the semaphore is in use with another number of permits.
    /// - `Cancelled`, `Closed`: the caller's token was cancelled, or the `Nodes` shut down.
    /// - `System`: the operating system has no random bytes for the offer.
    fn queue_locally(
        &self,
        params: &AcquireParams,
        inbox: &Arc<Inbox>,
        deadlines: Deadlines,
    ) -> Result<(LocalGuard, Option<HandoffOffer>), Error> {
        let to_error = |refusal| {
            let waited = clock::now().saturating_duration_since(deadlines.started);
            let attempts = self.retry_policy(params.kind).attempts_elapsed(waited);
            let effort = Effort { attempts, waited };
            refusal_error(refusal, &self.lock_table, &params.keys, params.kind, effort)
        };
        let mut request = LocalRequest {
            keys: &params.keys,
            mode: access_mode(params.kind),
            offer: None,
            inbox,
            deadline: deadlines.queue,
        };
        if let Some(local) = self.lock_table.try_acquire(&request).map_err(to_error)? {
            return Ok((local, None));
        }
        let offer = self.handoff_offer(params, deadlines.queue)?;
        request.offer = offer.as_ref();
        let on_lost = |lease: &Arc<Lease>| self.handle_expiry(lease);
        let local = self.lock_table.acquire(&request, on_lost);
        Ok((local.map_err(to_error)?, offer))
    }

    /// Returns the retry policy for a kind of lease.
    pub(super) fn retry_policy(&self, kind: LeaseKind) -> &RetryPolicy {
        match kind {
            LeaseKind::Exclusive | LeaseKind::Permit { .. } => &self.settings.retry,
            LeaseKind::Read | LeaseKind::Write | LeaseKind::GateEntry => &self.rw_retry,
        }
    }
}

/// A call that makes several acquires, as one of them sees it.
#[derive(Clone, Copy)]
pub(super) struct SeveralAcquires {
    pub(super) limit: WaitLimit,
    /// The attempts of the call, with the present one.
    pub(super) attempts: u32,
    pub(super) waits: bool,
}

/// One acquire that holds the entries of its keys in the lock table.
///
/// The fields are dropped in this order. The gate entry is released before the local guard, so
/// that the release precedes the requests of the next local caller.
pub(super) struct Acquisition<'a> {
    pub(super) engine: &'a Engine,
    pub(super) params: &'a AcquireParams,
    pub(super) limit: WaitLimit,
    /// The call, if it makes several acquires. It goes on after this one unless its limit is
    /// exhausted.
    pub(super) call: Option<SeveralAcquires>,
    pub(super) deadlines: Deadlines,
    pub(super) retry: &'a RetryPolicy,
    pub(super) subscriptions: Vec<Subscription<'a>>,
    outage: Outage,
    gate_entry: Option<GateEntry<'a>>,
    pub(super) backoff: Backoff,
    /// The attempts made, plus the attempts that the time in local queues would have allowed.
    pub(super) attempts: u32,
    /// The attempts in a row that were too slow.
    slow_attempts: u32,
    /// When the caller had the entries of its keys in the lock table.
    pub(super) entered_at: Instant,
    /// When the latest attempt began.
    attempt_start: Instant,
    /// When the latest attempt ended.
    pub(super) attempt_end: Instant,
    /// When the latest attempt that asked all nodes began.
    last_full_round: Instant,
    /// The node that the next attempt asks before the others.
    pub(super) preferred_node: Option<usize>,
    /// The latest expiry of another holder's lease, by the nodes that refused. Until then no local
    /// lock is acquired (S9). The call keeps it for the next acquire of the same lock.
    held_until: &'a mut Option<Instant>,
    pub(super) local: LocalGuard,
    offer: Option<HandoffOffer>,
    pub(super) inbox: Arc<Inbox>,
}

impl<'a> Acquisition<'a> {
    /// Waits for the entries of all keys in the lock table (S8). `held_until` is what earlier
    /// acquires of the same call have learned about this lock.
    pub(super) fn queue(
        engine: &'a Engine,
        params: &'a AcquireParams,
        limit: WaitLimit,
        started: Instant,
        held_until: &'a mut Option<Instant>,
    ) -> Result<Acquisition<'a>, Error> {
        let inbox = cancel::cancellable_inbox(params.cancel.as_ref())?;
        let retry = engine.retry_policy(params.kind);
        let deadlines = Deadlines::new(started, limit, retry);
        let (local, offer) = engine.queue_locally(params, &inbox, deadlines)?;
        Ok(Acquisition {
            engine,
            params,
            limit,
            call: None,
            deadlines,
            retry,
            subscriptions: Vec::new(),
            outage: Outage::default(),
            gate_entry: None,
            backoff: Backoff::default(),
            attempts: 0,
            slow_attempts: 0,
            entered_at: started,
            attempt_start: started,
            attempt_end: started,
            last_full_round: started,
            preferred_node: None,
            held_until,
            local,
            offer,
            inbox,
        })
    }

    /// Makes attempts until one is granted and valid, a limit ends the acquire, or waiting cannot
    /// help.
    pub(super) fn run(mut self) -> Result<Acquired, Error> {
        if let Some(lease) = self.enter()? {
            return self.attach(lease);
        }
        self.subscribe_if_active();
        self.yield_to_other_processes();
        // Last, because it may begin a probe of the breaker, for which other callers wait.
        let mut backend = self.choose_backend()?;
        loop {
            self.engine.check_cancelled(&self.inbox)?;
            let Backend::Nodes(probe) = backend else {
                return Ok(Acquired::Local(self.local));
            };
            let attempted = self.attempt(probe)?;
            // Dropped where the call ends, which publishes it.
            let undo = attempted.undo;
            let failure = match attempted.result {
                Ok(lease) => return self.attach(lease),
                Err(failure) => failure,
            };
            self.engine.check_cancelled(&self.inbox)?;
            self.note(&failure);
            let is_breaker_open = failure.is_unavailable() && self.engine.circuit.is_open();
            if is_breaker_open && self.engine.goes_local(self.params, *self.held_until) {
                return Ok(Acquired::Local(self.local));
            }
            let is_over = self.is_over(&failure);
            if !is_over || self.call_goes_on(&failure) {
                undo.into_iter().for_each(Undo::send_unpublished);
            }
            if is_over {
                return Err(self.give_up(failure));
            }
            self.update_gate_entry(&failure)?;
            if !is_breaker_open {
                self.wait_before_next(&failure);
            }
            // Blocks while the breaker is open, instead of the wait above.
            backend = self.choose_backend()?;
        }
    }

    /// Returns the lease of a handoff that came with the entry; `None` without one.
    ///
    /// Without one it first blocks while earlier callers of this process wait for a permit of the
    /// same semaphore. It then counts the attempts that the time so far would have allowed.
    fn enter(&mut self) -> Result<Option<Arc<Lease>>, Error> {
        self.entered_at = clock::now();
        if let Some(lease) = self.accept_handoff() {
            return Ok(Some(lease));
        }
        self.wait_behind_earlier_permit_waiters()?;
        let attempts = self.retry.attempts_elapsed(self.waited());
        self.attempts = attempts.min(self.max_queued_attempts());
        Ok(None)
    }

    /// Accepts the lock from the thread of this process that released it, if that thread handed it
    /// off. Blocks for the replies to the `Swap`, for at most `node_timeout`.
    fn accept_handoff(&mut self) -> Option<Arc<Lease>> {
        let offer = self.offer.take()?;
        let handoff = self.local.take_handoff()?;
        let accepted = self
            .engine
            .accept_handoff(self.params, &offer, &handoff, &self.inbox);
        match accepted {
            Ok(lease) => Some(lease),
            Err(refused) => {
                // A refused `Swap` does not say when the other holder's lease ends, so this acquire
                // never goes local.
                let never = deadline::deadline(clock::now(), NEVER_EXPIRES_AFTER);
                let held_until = never.filter(|_| refused.len() > 0);
                *self.held_until = held_until.max(*self.held_until);
                None
            }
        }
    }

    /// Chooses where the next attempt is made. Blocks while the breaker is open.
    fn choose_backend(&mut self) -> Result<Backend<'a>, Error> {
        let request = BackendRequest {
            params: self.params,
            deadlines: self.deadlines,
            inbox: &self.inbox,
            held_until: *self.held_until,
            waits: match self.call {
                Some(call) => call.waits,
                None => self.deadlines.waits(),
            },
        };
        self.engine.choose_backend(&request, &mut self.outage)
    }

    /// Makes one attempt on the nodes.
    ///
    /// Repeats it on all nodes if the limit ended while only the preferred node was asked: one node
    /// cannot say for all that the lock is held. The repeat counts as an attempt.
    fn attempt(&mut self, mut probe: Option<Probe<'a>>) -> Result<Attempted<'a>, Error> {
        loop {
            self.attempts = self.attempts.saturating_add(1);
            self.attempt_start = clock::now();
            let preferred_node = self.next_preferred_node(probe.is_some());
            let latest_end = self.engine.node_timeout_from(self.attempt_start);
            let context = AttemptContext {
                params: self.params,
                kind: self.params.kind,
                inbox: &self.inbox,
                marker: self.wait_marker(),
                preferred_node,
                wants_owner: self.limit.tells_holder
                    && self.limit.may_be_last(self.attempts, latest_end),
                probe: probe.as_ref(),
            };
            let keys = &self.params.keys;
            self.engine.nodes.counters().attempted(keys.first().name());
            let mut attempted = match self.params.kind {
                LeaseKind::Permit { total, .. } => {
                    self.engine.attempt_any_permit(&context, total)?
                }
                _ => self.engine.attempt(&context)?,
            };
            drop(probe.take()); // the breaker has its verdict
            let Err(failure) = &attempted.result else {
                return Ok(attempted);
            };
            if !failure.is_of_one_node() || !self.limit.is_exhausted(self.attempts) {
                return Ok(attempted);
            }
            self.engine.check_cancelled(&self.inbox)?;
            self.note(failure);
            attempted.undo_unpublished();
        }
    }

    /// Takes the preferred node, and returns it if this attempt asks it before the others. Returns
    /// `None` if the attempt asks all nodes at once.
    fn next_preferred_node(&mut self, is_probe: bool) -> Option<usize> {
        // Ask all nodes again after one refresh interval, because reader markers and gate entries
        // on the nodes that are not asked expire.
        let refresh_at = self.last_full_round + self.engine.refresh_interval;
        let is_last = is_probe || self.limit.is_exhausted(self.attempts);
        let node = self.preferred_node.take();
        let node = node.filter(|_| self.attempt_start < refresh_at && !is_last);
        // The answer of a single node is final, and not that of one node of several.
        let node = node.filter(|_| self.engine.nodes.total() > 1);
        if node.is_none() {
            self.last_full_round = self.attempt_start;
        }
        node
    }

    /// Returns the marker that the attempt leaves on nodes that refuse it.
    fn wait_marker(&self) -> WaitMarker<'_> {
        match (self.params.kind, &self.gate_entry) {
            (LeaseKind::Read, _) if !self.limit.is_exhausted(self.attempts) => WaitMarker::Reader,
            (LeaseKind::Write, Some(entry)) => WaitMarker::Writer(&entry.lease),
            _ => WaitMarker::None,
        }
    }

    /// Records a failed attempt: its end, its part in an outage, and whether it was too slow. Also
    /// records the latest reported expiry of another holder's lease.
    fn note(&mut self, failure: &AttemptFailure) {
        self.outage.note(failure, self.attempt_start);
        self.slow_attempts = match failure {
            AttemptFailure::TooSlow { .. } => self.slow_attempts + 1,
            _ => 0,
        };
        self.attempt_end = clock::now();
        if let Some(left) = failure.max_hold_left() {
            let until = deadline::deadline(self.attempt_end, left);
            *self.held_until = until.max(*self.held_until);
        }
    }

    /// Returns whether the acquire ends with this failure.
    fn is_over(&self, failure: &AttemptFailure) -> bool {
        let outage_end = self.outage_deadline(failure);
        // The limit may have ended since the attempt: the next one asks all nodes.
        self.limit.is_exhausted(self.attempts) && !failure.is_of_one_node()
            || outage_end.is_some_and(|end| end <= self.attempt_end)
            || failure.is_denied() // waiting cannot grant a missing right
            || self.slow_attempts == MAX_SLOW_ATTEMPTS
    }

    /// Returns whether the call goes on although the acquire ends with this failure.
    fn call_goes_on(&self, failure: &AttemptFailure) -> bool {
        let goes_on = |call: SeveralAcquires| !call.limit.is_exhausted(call.attempts);
        self.call.is_some_and(goes_on) && !failure.is_denied()
    }

    /// Returns the error of an acquire that ends with this failure.
    fn give_up(&self, failure: AttemptFailure) -> Error {
        let attempts = self.attempts;
        match failure {
            AttemptFailure::Contended(contention) => {
                let held = HeldBy {
                    access: contention.held_by,
                    key: contention.blocking_keys.first().copied().unwrap_or(0),
                    owner_label: contention.owner_label,
                    remaining: contention.free_in,
                };
                let effort = Effort {
                    attempts,
                    waited: self.waited(),
                };
                contended_error(&self.params.keys, self.params.kind, held, effort)
            }
            AttemptFailure::Unavailable(tally) => {
                self.engine.insufficient_quorum(Operation::Acquire, tally)
            }
            AttemptFailure::TooSlow { .. } => Error::ValidityExhausted {
                attempts,
                ttl: self.params.ttl.duration(),
            },
        }
    }

    /// Creates a writer's gate entry when an attempt on all nodes is contended; the next attempt
    /// raises it on the nodes. Releases it when an attempt is unavailable.
    ///
    /// A writer without a quorum must not keep readers out (S10).
    fn update_gate_entry(&mut self, failure: &AttemptFailure) -> Result<(), Error> {
        let is_writer = self.params.kind == LeaseKind::Write;
        match failure {
            AttemptFailure::Unavailable(_) => self.gate_entry = None,
            AttemptFailure::Contended(contention)
                if is_writer && !contention.single_node && self.gate_entry.is_none() =>
            {
                self.gate_entry = Some(GateEntry::new(self.engine, self.params)?);
            }
            _ => {}
        }
        Ok(())
    }

    /// Attaches the lease to the local guard, and ends the acquire.
    fn attach(self, lease: Arc<Lease>) -> Result<Acquired, Error> {
        if !self.subscriptions.is_empty() {
            lease.set_was_subscribed();
        }
        self.engine.attach(&lease, &self.local, self.params)?;
        Ok(Acquired::Quorum(lease, self.local))
    }

    /// Returns when the outage has lasted for `max_outage`; `None` for other failures.
    pub(super) fn outage_deadline(&self, failure: &AttemptFailure) -> Option<Instant> {
        let max_outage = self.engine.settings.retry.max_outage;
        let end = self.outage.end(max_outage);
        end.filter(|_| failure.is_unavailable())
    }

    /// Returns the largest number of attempts that the time in local queues counts as. One is
    /// always left for the nodes.
    pub(super) fn max_queued_attempts(&self) -> u32 {
        let max_attempts = self.limit.max_attempts;
        max_attempts.map_or(u32::MAX, |max| max.saturating_sub(1))
    }

    /// Returns the time since the call began.
    pub(super) fn waited(&self) -> Duration {
        clock::now().saturating_duration_since(self.deadlines.started)
    }
}
