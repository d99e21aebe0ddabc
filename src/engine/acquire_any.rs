//! Acquires the first of several locks that is free: one attempt for each of them, and then one for
//! each that is released.
//!
//! Each lock is asked for with one attempt at a time, and nothing of the others is left.
//!
//! Tests: `src/tests/engine/acquire_any.rs`; the simulator.

use std::sync::Arc;
use std::time::Instant;

use log::debug;

use crate::background::release_listener::subscription::Subscription;
use crate::background::release_listener::subscriptions::Signal;
use crate::engine::acquire::{Acquisition, SeveralAcquires};
use crate::engine::acquire_wait::free_at;
use crate::engine::backoff::Backoff;
use crate::engine::core::Engine;
use crate::engine::params::{AcquireParams, Acquired, Deadlines, WaitLimit};
use crate::error::error::Error;
use crate::local::acquire_any::TableWatch;
use crate::time::{clock, deadline};
use crate::transport::cancel;
use crate::transport::inbox::Inbox;

/// One wait for the first of several locks.
struct AnyAcquisition<'a> {
    engine: &'a Engine,
    choices: &'a [AcquireParams],
    limit: WaitLimit,
    started: Instant,
    inbox: &'a Arc<Inbox>,
    /// One for each lock, from the first refusal on.
    subscriptions: Vec<Subscription<'a>>,
    backoff: Backoff,
    /// When each lock is free, as its latest refusal said.
    free_at: Vec<Option<Instant>>,
    /// For each lock, the latest expiry of another holder's lease (S9). A later outage leaves it.
    held_until: Vec<Option<Instant>>,
    /// The position of the lock that the call acquires, or whose error it returns.
    last_choice: usize,
    attempts: u32,
    outage: Option<AnyOutage>,
}

/// Attempts in a row for which no quorum replied.
struct AnyOutage {
    /// When the first of them ended.
    since: Instant,
    /// When the last of them ended.
    last: Instant,
    /// The error of the last.
    error: Error,
    /// The position of its lock.
    choice: usize,
}

/// Why an attempt for one lock failed.
struct FailedChoice {
    error: Error,
    /// Whether the lock table refused, so that no node was asked.
    is_local: bool,
}

impl Engine {
    /// Acquires the first of `choices` that is free, in the order of the list. Blocks until one is,
    /// or `limit` ends, as [`acquire`](Engine::acquire) does. There is at least one choice.
    ///
    /// # Errors
    /// As [`acquire`](Engine::acquire): that of the last lock that was asked for, or in an outage of the
    /// last one for which no quorum replied.
    pub(crate) fn acquire_any(
        &self,
        choices: &[AcquireParams],
        limit: WaitLimit,
    ) -> Result<Acquired, Error> {
        let started = clock::now();
        let Some(first) = choices.first() else {
            return Err(Error::Closed);
        };
        let inbox = cancel::cancellable_inbox(first.cancel.as_ref())?;
        let mut waiting = AnyAcquisition {
            engine: self,
            choices,
            limit,
            started,
            inbox: &inbox,
            subscriptions: Vec::new(),
            backoff: Backoff::default(),
            free_at: vec![None; choices.len()],
            held_until: vec![None; choices.len()],
            last_choice: 0,
            attempts: 0,
            outage: None,
        };
        let acquired = waiting.run();
        self.record_acquire(&choices[waiting.last_choice], &acquired, started);
        acquired
    }
}

impl AnyAcquisition<'_> {
    fn run(&mut self) -> Result<Acquired, Error> {
        // A forked child returns before it locks the table.
        if self.engine.is_forked() {
            return Err(Error::Closed);
        }
        let keys = self.choices.iter().map(|choice| &choice.keys);
        let watch = self.engine.lock_table.watch(keys, self.inbox);
        let mut due: Vec<usize> = (0..self.choices.len()).collect();
        loop {
            self.engine.check_cancelled(self.inbox)?;
            self.attempts = self.attempts.saturating_add(1);
            let mut last = None;
            let (mut is_refused, mut is_unavailable) = (false, false);
            for choice in due {
                // Each lock is asked for once, whatever the limit. Later one attempt may outlast
                // it.
                if self.attempts > 1 && last.is_some() && self.is_past_limit() {
                    break;
                }
                let failed = match self.attempt(choice) {
                    Ok(acquired) => return Ok(acquired),
                    Err(failed) => failed,
                };
                if !failed.error.is_contended() && !failed.error.is_unavailable() {
                    return Err(failed.error);
                }
                let left = failed.error.contended_for();
                self.free_at[choice] = left.and_then(|left| free_at(clock::now(), left));
                self.record_outage(choice, &failed);
                is_refused |= failed.error.is_contended() && !failed.is_local;
                is_unavailable |= failed.error.is_unavailable();
                last = Some(failed.error);
            }
            if is_refused {
                // Errors of one lock are no outage while the nodes say that another one is held.
                // Another thread of this process that has a lock says nothing about the nodes.
                self.outage = None;
            }
            if let Some(error) = self.final_error(last, is_unavailable) {
                let waited = clock::now().saturating_duration_since(self.started);
                return Err(error.with_effort(self.attempts, waited));
            }
            due = self.wait(&watch);
        }
    }

    /// Makes one attempt for one lock, without a wait.
    fn attempt(&mut self, choice: usize) -> Result<Acquired, FailedChoice> {
        self.last_choice = choice;
        let (params, held_until) = (&self.choices[choice], &mut self.held_until[choice]);
        let latest_end = self.engine.node_timeout_from_now();
        let is_last = self.limit.may_be_last(self.attempts, latest_end);
        let once = WaitLimit {
            deadline: Some(self.started),
            max_attempts: None,
            tells_holder: self.limit.tells_holder && is_last,
        };
        let refused_by = |is_local| move |error| FailedChoice { error, is_local };
        let acquisition = Acquisition::queue(self.engine, params, once, clock::now(), held_until);
        let mut acquisition = acquisition.map_err(refused_by(true))?;
        let retry = &self.engine.settings.retry;
        acquisition.call = Some(SeveralAcquires {
            limit: self.limit,
            attempts: self.attempts,
            waits: Deadlines::new(self.started, self.limit, retry).waits(),
        });
        acquisition.local.end_unnoticed();
        acquisition.run().map_err(refused_by(false))
    }

    fn is_past_limit(&self) -> bool {
        self.limit.deadline.is_some_and(|end| end <= clock::now())
    }

    /// Records since when no quorum has replied. Rounds in which this process itself had all the
    /// locks say nothing about the nodes, so an outage does not last through many of them.
    fn record_outage(&mut self, choice: usize, failed: &FailedChoice) {
        if !failed.error.is_unavailable() {
            return;
        }
        let (now, max_outage) = (clock::now(), self.engine.settings.retry.max_outage);
        let is_recent = |outage: &&AnyOutage| {
            deadline::deadline(outage.last, max_outage).is_none_or(|end| now <= end)
        };
        let former = self.outage.as_ref().filter(is_recent);
        self.outage = Some(AnyOutage {
            since: former.map_or(now, |outage| outage.since),
            last: now,
            error: failed.error.clone(),
            choice,
        });
    }

    /// Returns the error of the call, if no further attempt follows the `last` one. An outage ends
    /// the call only in a round that met it.
    fn final_error(&mut self, last: Option<Error>, is_unavailable: bool) -> Option<Error> {
        let max_outage = self.engine.settings.retry.max_outage;
        let outage = self.outage.take_if(|outage| {
            let end = deadline::deadline(outage.since, max_outage);
            is_unavailable && end.is_some_and(|end| end <= clock::now())
        });
        match outage {
            Some(outage) => {
                self.last_choice = outage.choice;
                Some(outage.error)
            }
            None => last.filter(|_| self.limit.is_exhausted(self.attempts)),
        }
    }

    /// Sleeps until a release, the end of a lease, the retry delay or the limit. Returns the
    /// positions of the locks to ask for: those whose release was published, or else all.
    fn wait(&mut self, watch: &TableWatch<'_>) -> Vec<usize> {
        let now = clock::now();
        self.subscribe();
        let delay = self.backoff.next_delay(self.engine, self.choices[0].kind);
        let free_at = self.free_at.iter().flatten().min().copied();
        let end = deadline::earlier(deadline::deadline(now, delay), free_at);
        let end = deadline::earlier(end, self.limit.deadline);
        // With a limited number of attempts, none is spent on a subscription that was confirmed, or
        // on another call that has ended.
        let is_limited = self.limit.max_attempts.is_some();
        let wanted = match is_limited {
            true => Signal::Released,
            false => Signal::Subscribed,
        };
        let is_released_here = || !is_limited && watch.is_released();
        let is_signalled = |subscription: &Subscription<'_>| subscription.has_signal(wanted);
        // A stale wake-up, of a reply for example, must not shorten the delay.
        while !is_released_here()
            && !self.subscriptions.iter().any(is_signalled)
            && self.inbox.sleep(end)
            && self.engine.check_cancelled(self.inbox).is_ok()
        {}
        let asks_all = watch.take_released() && !is_limited;
        let signals = self.subscriptions.iter().map(Subscription::take_signal);
        let signals: Vec<Signal> = signals.collect();
        let choices = 0..self.choices.len();
        let is_any_released = signals.iter().any(|signal| *signal >= Signal::Released);
        // The other locks may have become free meanwhile.
        let is_due = end.is_some_and(|end| end <= clock::now());
        if asks_all || is_due || !is_any_released {
            return choices.collect();
        }
        let is_released = |choice: &usize| {
            let key = self.choices[*choice].keys.first();
            let mut signalled = self.subscriptions.iter().zip(&signals);
            signalled.any(|(each, signal)| each.is_at(key) && *signal >= Signal::Released)
        };
        choices.filter(is_released).collect()
    }

    /// Subscribes to all locks, once. Without a subscription a wait ends by time.
    fn subscribe(&mut self) {
        if !self.subscriptions.is_empty() {
            return;
        }
        for params in self.choices {
            let key = params.keys.first();
            match self.engine.listener.subscribe(key, self.inbox) {
                Ok(subscription) => self.subscriptions.push(subscription),
                Err(error) => debug!("{key}: no release notifications: {error}"),
            }
        }
    }
}
