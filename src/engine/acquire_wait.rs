//! The waits of an acquire: before its first attempt, and between two attempts.
//!
//! Each is a sleep in the caller's [`Inbox`](crate::transport::inbox::Inbox), which ends by its
//! deadline, a release, or a cancellation. A stale wake-up must not shorten a retry delay. Without
//! a place in the waiting list, a lost release message must not prolong a wait beyond that delay.
//! With a place, `delay_of_placed` bounds it; far behind, a check follows instead.
//!
//! Tests: in `src/tests/engine/`: `wake_up.rs`, `cancel.rs`; `waiting_list.rs` (places),
//! `permits.rs` (permit queue), `read_write.rs` (followers), `split.rs` (delays).

use std::time::{Duration, Instant};

use log::debug;

use crate::background::release_listener::subscription::Subscription;
use crate::background::release_listener::subscriptions::Signal;
use crate::engine::acquire::Acquisition;
use crate::engine::attempt_result::{AttemptFailure, Contention};
use crate::engine::params::{Effort, HeldBy, access_mode, contended_error};
use crate::error::error::Error;
use crate::protocol::kind::LeaseKind;
use crate::random;
use crate::time::deadline::{Deadline, DeadlineCause};
use crate::time::{clock, deadline};

/// Redis counts TTLs in whole milliseconds and frees a key in the millisecond after its last.
const TTL_ROUNDING: Duration = Duration::from_millis(1);

/// A caller whose process yields for longer than this asks for a place meanwhile. After a release
/// that woke a process of the list, the time for which it yields is always longer.
const MIN_LISTED_YIELD: Duration = Duration::from_millis(1);

/// A yielding caller waits for its place for at most this many times the time for which it yields.
const MAX_YIELD_TIMES: u32 = 4;

impl Acquisition<'_> {
    /// Blocks while earlier callers of this process wait for a permit of the same semaphore.
    ///
    /// # Errors
    /// - `Contended`: the caller's limit ended.
    /// - `Cancelled`, `Closed`: the caller was cancelled, or the `Nodes` shut down.
    pub(super) fn wait_behind_earlier_permit_waiters(&self) -> Result<(), Error> {
        let kind = self.params.kind;
        while matches!(kind, LeaseKind::Permit { .. }) && self.local.has_earlier_waiter() {
            self.engine.check_cancelled(&self.inbox)?;
            if self.deadlines.queue.is_some_and(|end| end <= clock::now()) {
                let waited = self.waited();
                let attempts = self.retry.attempts_elapsed(waited);
                let held = HeldBy {
                    access: access_mode(kind),
                    key: 0,
                    owner_label: None,
                    remaining: None,
                };
                let effort = Effort { attempts, waited };
                return Err(contended_error(&self.params.keys, kind, held, effort));
            }
            self.inbox.sleep(self.deadlines.queue);
        }
        Ok(())
    }

    /// Subscribes to the keys whose channels this process listens on already, which costs nothing.
    pub(super) fn subscribe_if_active(&mut self) {
        let (listener, inbox) = (&self.engine.listener, &self.inbox);
        let keys = self.params.keys.as_slice().iter();
        self.subscriptions
            .extend(keys.filter_map(|key| listener.subscribe_if_active(key, inbox)));
    }

    /// Sleeps while waiters of other processes may acquire the lock that this process released:
    /// behind them in the waiting list, or else for some round trips.
    ///
    /// Returns at once if the caller does not wait.
    pub(super) fn yield_to_other_processes(&mut self) {
        let Some(until) = self.engine.listener.yield_deadline(&self.params.keys) else {
            return;
        };
        let limits = Deadline::new(DeadlineCause::CallerWait, self.limit.deadline);
        let has_time = self.limit.deadline.is_none_or(|end| end > until);
        if until > clock::now() + MIN_LISTED_YIELD && has_time && self.ask_place(None) {
            self.attempt_end = clock::now();
            return self.yield_with_place(until, limits);
        }
        let end = deadline::earlier(Some(until), self.limit.deadline);
        while self.inbox.sleep(end) && self.engine.check_cancelled(&self.inbox).is_ok() {}
    }

    /// Sleeps until `until`, and on until the place that this caller has asked for is told and it
    /// is woken.
    fn yield_with_place(&mut self, until: Instant, limits: Deadline) {
        let time = until.saturating_duration_since(self.attempt_end);
        for times in 1..=MAX_YIELD_TIMES {
            let end = self.attempt_end + times * time;
            let end = limits.min_with(DeadlineCause::RetryDelay, Some(end));
            if self.sleep_until_release(end.end()) {
                return;
            }
            // On a busy machine the place may take longer than this; without it, this caller would
            // overtake the woken process.
            if self.subscriptions.iter().any(Subscription::is_placed) {
                break;
            }
        }
        self.wait_with_place(limits);
    }

    /// Sleeps until a signal, the end of the holder's TTL or of the retry delay, or a limit. A
    /// follower waits for its leader; a caller with a place sleeps on (`wait_with_place`).
    pub(super) fn wait_before_next(&mut self, failure: &AttemptFailure) {
        let limits = Deadline::new(DeadlineCause::CallerWait, self.limit.deadline)
            .min_with(DeadlineCause::Outage, self.outage_deadline(failure));
        let contention = failure.contention();
        if contention.is_some() && self.follow_leader() {
            return self.wait_for_leader(limits);
        }
        if let Some(contention) = contention {
            self.subscribe_to_blockers(contention);
        }
        if contention.is_some() {
            self.ask_place(Some(self.entered_at));
        }
        let delay = self.backoff.next_delay(self.engine, self.params.kind);
        let delay_end = deadline::deadline(self.attempt_end, delay);
        let free_at = contention.and_then(|contention| {
            let free_in = contention.free_in?;
            // Zero: the key was gone when PTTL was asked, perhaps because the other caller gave
            // way in a split vote. That is no reason to spend one of a limited number of attempts
            // before the delay ends.
            if self.limit.max_attempts.is_some() && free_in.is_zero() {
                return None;
            }
            free_at(self.attempt_end, free_in)
        });
        let end = limits
            .min_with(DeadlineCause::RetryDelay, delay_end)
            .min_with(DeadlineCause::RetryDelay, free_at);
        debug!(
            "{}: attempt {} failed: {}: next after {}",
            self.params.keys,
            self.attempts,
            failure.name(),
            limit_name(end.limit())
        );
        // One node alone cannot say that the lock is held: its token may be that of an attempt.
        let is_of_one_node = failure.is_of_one_node();
        if !self.sleep_until_release(end.end()) && !is_of_one_node {
            self.wait_with_place(limits.min_with(DeadlineCause::RetryDelay, free_at));
        }
    }

    /// Asks for a place in the waiting list of an exclusive lock of one key. Returns whether the
    /// node was asked, now or before. `since` is when this caller had its entries in the lock
    /// table; `None` if it has not asked for the lock.
    ///
    /// A caller with a limited number of attempts has none: each release causes an attempt of it.
    fn ask_place(&self, since: Option<Instant>) -> bool {
        let is_listed = self.params.kind == LeaseKind::Exclusive
            && self.params.keys.single().is_some()
            && self.limit.max_attempts.is_none();
        match &self.subscriptions[..] {
            [subscription] if is_listed => subscription.ask_place(since),
            _ => false,
        }
    }

    /// Sleeps on while this caller has a place in the waiting list, until it is woken, or hears of
    /// no release for a long retry delay. Far behind it hears of none, and checks instead.
    fn wait_with_place(&mut self, limits: Deadline) {
        let delay = self.retry.delay_of_placed(random::unit());
        let mut is_woken = false;
        while !is_woken && self.engine.check_cancelled(&self.inbox).is_ok() {
            let place = self.subscriptions.iter().find(|each| each.is_placed());
            let Some(place) = place else { return };
            let heard_at = place.heard_at().max(Some(self.attempt_end));
            let delay_end = heard_at.and_then(|at| deadline::deadline(at, delay));
            let end = limits.min_with(DeadlineCause::RetryDelay, delay_end).end();
            if end.is_some_and(|end| end <= clock::now()) {
                match is_over(end, limits) || !place.ask_for_news() {
                    true => return,
                    false => continue,
                }
            }
            is_woken = self.sleep_until_release(end);
        }
    }

    /// Returns whether another thread of this process asks the nodes for this caller, too.
    fn follow_leader(&self) -> bool {
        let has_time = |end| end > self.attempt_end;
        self.params.kind.is_shared()
            && self.deadlines.queue.is_none_or(has_time)
            && self.local.follow_leader()
    }

    /// Sleeps until the leader's grant or release wakes this caller, or a limit ends.
    fn wait_for_leader(&mut self, limits: Deadline) {
        let end = limits.min_with(DeadlineCause::RetryDelay, self.deadlines.queue);
        self.inbox.sleep(end.end());
        let slept = clock::now().saturating_duration_since(self.attempt_end);
        let attempts = self.retry.attempts_elapsed(slept);
        let attempts = self.attempts.saturating_add(attempts);
        self.attempts = attempts.min(self.max_queued_attempts());
    }

    /// Subscribes to the keys that others hold. Without a subscription the wait ends by time.
    fn subscribe_to_blockers(&mut self, contention: &Contention) {
        let keys = &self.params.keys;
        let blocking = contention.blocking_keys.iter();
        let blocking = blocking.map(|key| &keys.as_slice()[*key]);
        for key in keys.single().into_iter().chain(blocking) {
            if !self.subscriptions.iter().any(|known| known.is_at(key)) {
                let subscription = self.engine.listener.subscribe(key, &self.inbox);
                let subscription = subscription
                    .inspect_err(|error| debug!("{key}: no release notifications: {error}"));
                self.subscriptions.extend(subscription);
            }
        }
    }

    /// Sleeps until `end` or until a subscription has a signal, and prepares the next attempt.
    /// Returns whether there was a signal.
    fn sleep_until_release(&mut self, end: Option<Instant>) -> bool {
        // With a limited number of attempts, none is spent on a subscription that was confirmed.
        let wanted = match self.limit.max_attempts {
            Some(_) => Signal::Released,
            None => Signal::Subscribed,
        };
        let is_signalled = || {
            self.subscriptions
                .iter()
                .any(|each| each.has_signal(wanted))
        };
        // A stale wake-up from the lock table must not shorten the delay.
        while !is_signalled()
            && self.inbox.sleep(end)
            && self.engine.check_cancelled(&self.inbox).is_ok()
        {}
        if self.engine.check_cancelled(&self.inbox).is_err() {
            return false; // a wake-up that is left goes to the next process (`Subscription::drop`)
        }
        let signals = self.subscriptions.iter().map(Subscription::take_signal);
        let signal = signals.max().unwrap_or(Signal::None);
        if signal == Signal::Released {
            // All waiters ask the same node first, so that the losers have nothing to undo. A
            // waiter that was woken alone asks all nodes at once. So does a waiter for a kept lock:
            // the node may have the token of another attempt, and does not know the time then.
            self.preferred_node = self.engine.listener.current_node();
        }
        signal >= wanted
    }
}

/// Returns when a lock is free of which a node said at `now` that it is free in `left`.
pub(super) fn free_at(now: Instant, left: Duration) -> Option<Instant> {
    deadline::deadline(now, left.saturating_add(TTL_ROUNDING))
}

/// Returns whether a wait that ended at `end` was ended by its limits.
fn is_over(end: Option<Instant>, limits: Deadline) -> bool {
    limits.end().is_some_and(|limit| end >= Some(limit))
}

/// Returns the limit that ends a wait, for the log.
fn limit_name(limit: DeadlineCause) -> &'static str {
    match limit {
        DeadlineCause::NodeTimeout => "node timeout",
        DeadlineCause::Validity => "validity",
        DeadlineCause::RetryDelay => "retry delay",
        DeadlineCause::CallerWait => "the caller's wait",
        DeadlineCause::Outage => "max_outage",
    }
}
