//! Connects to the nodes and acquires the lock, in a thread of its own, so that signals are served
//! meanwhile.

use std::sync::mpsc::Sender;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{io, thread};

use redguard::{
    CancelToken, Config, Error, Holder, LocalLocker, LocalSemaphore, LockGuard, LockOptions,
    Locker, LossReason, Nodes, RedisLocker, RedisRwLocker, RedisSemaphore, RetryPolicy, RwLocker,
    Semaphore,
};
use serde_json::json;

use crate::config::Settings;
use crate::failure::{Failure, Result};
use crate::library;
use crate::notes::Notes;
use crate::run::event::{Acquired, Event};
use crate::run::guard::Guard;
use crate::run::options::RunOptions;

/// The time after which the library ends a split vote as contended (its rule L1).
const SPLIT_VOTE: Duration = Duration::from_millis(50);

/// How often an attempt without a wait is repeated after a split vote.
const MAX_REPEATS: u32 = 8;

/// The lock to acquire, and its options.
pub(crate) struct Plan {
    pub(crate) options: RunOptions,
    pub(crate) settings: Settings,
    pub(crate) ttl: Duration,
    pub(crate) grace: Duration,
    pub(crate) owner: String,
    pub(crate) start: Instant,
}

/// How far the acquisition is.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    step: Mutex<Step>,
    pub(crate) stop: CancelToken,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Step {
    /// No node has been asked for the lock.
    #[default]
    Connecting,
    /// Nodes may have granted it.
    Asking,
    Stopped,
}

impl Progress {
    /// Ends the acquisition. Returns whether nothing is left to be undone, so that the program may
    /// end at once.
    pub(crate) fn stop(&self) -> bool {
        self.stop.cancel();
        let mut step = self.lock();
        if *step == Step::Connecting {
            *step = Step::Stopped;
        }
        *step == Step::Stopped
    }

    /// Returns whether the nodes may be asked.
    fn may_ask(&self) -> bool {
        let mut step = self.lock();
        if *step == Step::Connecting {
            *step = Step::Asking;
        }
        *step == Step::Asking
    }

    fn lock(&self) -> MutexGuard<'_, Step> {
        self.step.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Acquires in a thread, which sends [`Event::Acquired`].
pub(crate) fn start(
    plan: Plan,
    progress: std::sync::Arc<Progress>,
    events: Sender<Event>,
    notes: Notes,
) -> io::Result<()> {
    let builder = thread::Builder::new().name("acquire".to_owned());
    builder.spawn(move || {
        let acquired = plan.acquire(&progress, &events, &notes);
        // The receiver is gone if a signal has ended the wait.
        let _ = events.send(Event::Acquired(acquired.map(Box::new)));
    })?;
    Ok(())
}

impl Plan {
    /// Checks what the library otherwise refuses only once a quorum is connected, which may take for
    /// ever.
    pub(crate) fn validate(&self) -> Result<()> {
        if self.grace > self.ttl / 2 {
            let line = "--grace is at most half of --ttl, because renewals begin after a third";
            return Err(Failure::usage(line));
        }
        let quarantine = self.options.quarantine.or(self.settings.quarantine);
        if quarantine.is_some_and(|max_ttl| self.ttl > max_ttl) {
            return Err(Failure::usage("--quarantine is at least the longest --ttl"));
        }
        self.acquire_here().map_err(|error| self.failure(error))
    }

    /// Acquires the lock in this process alone, by which the library checks names, TTL and permits.
    fn acquire_here(&self) -> std::result::Result<(), Error> {
        if let Some(permits) = self.options.permits {
            LocalSemaphore::new(permits)?;
        }
        let at_least = self.options.at_least.unwrap_or_default();
        let options = LockOptions::new(self.ttl).min_hold(at_least);
        let guard = LocalLocker::new().acquire_all(&self.keys(), &options)?;
        guard.release()
    }

    fn keys(&self) -> Vec<&str> {
        self.options.key.iter().map(String::as_str).collect()
    }

    fn acquire(
        &self,
        progress: &Progress,
        events: &Sender<Event>,
        notes: &Notes,
    ) -> Result<Acquired> {
        let nodes = self.connect(progress, notes)?;
        if !progress.may_ask() {
            return Err(Error::Cancelled.into());
        }
        let guard = self.guard(&nodes, progress, events);
        match guard {
            Ok(guard) => Ok(Acquired { nodes, guard }),
            Err(error) => {
                // Sends the queued releases, which undo a failed attempt.
                let _ = nodes.shutdown(Duration::ZERO);
                Err(self.failure(error))
            }
        }
    }

    fn failure(&self, error: Error) -> Failure {
        let is_named = error.is_contended();
        let mut failure = Failure::from(error);
        if !is_named {
            failure.line = format!("lock {:?}: {}", self.options.name(), failure.line);
        }
        failure
    }

    /// Connects to a quorum of nodes, and waits for it as long as for the lock.
    fn connect(&self, progress: &Progress, notes: &Notes) -> Result<Nodes> {
        let mut is_first = true;
        loop {
            let config = self.config(self.remaining_wait());
            let error = match Nodes::connect(config) {
                Ok(nodes) => return Ok(nodes),
                Err(error) => error,
            };
            let is_over = self.remaining_wait().is_some_and(|left| left.is_zero());
            if !error.is_unavailable() || is_over || progress.stop.is_cancelled() {
                return Err(error.into());
            }
            if is_first {
                is_first = false;
                let text = format!("waiting for the nodes: {error}");
                notes.warn(
                    &text,
                    &json!({ "warning": text, "key": self.options.name() }),
                );
            }
        }
    }

    /// Returns what is left of `--wait`; `None` without a limit.
    fn remaining_wait(&self) -> Option<Duration> {
        let limit = self.options.wait_limit()?;
        Some(limit.saturating_sub(self.start.elapsed()))
    }

    fn config(&self, wait: Option<Duration>) -> Config {
        // A wait that ends during a connect ends the connect; without a wait it has its usual time.
        let connect = self.settings.connect_timeout();
        let connect = match wait {
            Some(left) if !left.is_zero() => connect.min(left.max(self.settings.timeout)),
            _ => connect,
        };
        let config = library::config(&self.settings)
            .owner_label(&self.owner)
            .connect_timeout(connect)
            // A breaker spares the nodes many callers, and here is one.
            .circuit_breaker(u32::MAX, Duration::from_secs(1))
            .retry(RetryPolicy {
                max_outage: wait.unwrap_or(Duration::MAX),
                ..RetryPolicy::default()
            });
        match self.options.quarantine {
            Some(max_ttl) => config.restart_quarantine(max_ttl),
            None => config,
        }
    }

    fn guard(
        &self,
        nodes: &Nodes,
        progress: &Progress,
        events: &Sender<Event>,
    ) -> std::result::Result<Guard, Error> {
        let options = self.lock_options(progress, events);
        let first = self.keys().first().copied().unwrap_or_default();
        if let Some(permits) = self.options.permits {
            let semaphore = RedisSemaphore::new(nodes, first, permits)?;
            semaphore.acquire(&options).map(Guard::Permit)
        } else if self.options.shared {
            let locker = RedisRwLocker::new(nodes);
            locker.acquire_read(first, &options).map(Guard::Read)
        } else if self.options.exclusive {
            let locker = RedisRwLocker::new(nodes);
            locker.acquire_write(first, &options).map(Guard::Write)
        } else {
            let locker = RedisLocker::new(nodes);
            self.acquire_exclusive(&locker, &options).map(Guard::Lock)
        }
    }

    /// Acquires an exclusive lock. Without a wait, an attempt whose split vote nobody has won in
    /// time is repeated: on a busy machine each of several hosts would give up, and none would run.
    fn acquire_exclusive(
        &self,
        locker: &RedisLocker,
        options: &LockOptions,
    ) -> std::result::Result<LockGuard, Error> {
        let keys = self.keys();
        let has_no_wait = self.options.wait_limit() == Some(Duration::ZERO);
        let mut repeats = 0;
        loop {
            match locker.acquire_all(&keys, options) {
                Err(Error::Contended { waited, .. })
                    if has_no_wait
                        && waited >= SPLIT_VOTE
                        && repeats < MAX_REPEATS
                        && is_free(locker, &keys) =>
                {
                    repeats += 1;
                }
                result => return result,
            }
        }
    }

    fn lock_options(&self, progress: &Progress, events: &Sender<Event>) -> LockOptions {
        let (lost, endangered) = (events.clone(), events.clone());
        let options = LockOptions::new(self.ttl)
            .auto_renew(true)
            .fencing(self.options.fenced)
            .min_hold(self.options.at_least.unwrap_or_default())
            .cancel_on(&progress.stop)
            .on_lost(move |lock| {
                let has_expired = lock.reason() == LossReason::Expired;
                _ = lost.send(Event::Lost { has_expired });
            })
            .on_endangered(self.grace, move |lock| {
                let is_endangered = lock.is_endangered();
                let end = is_endangered.then(|| Instant::now() + lock.remaining());
                _ = endangered.send(Event::Danger { end });
            });
        match self.remaining_wait() {
            Some(left) => options.wait_for(left),
            None => options,
        }
    }
}

/// Returns whether no key is on a quorum of nodes.
fn is_free(locker: &RedisLocker, keys: &[&str]) -> bool {
    let is_held = |holder: Holder| holder.nodes >= holder.quorum || holder.foreign;
    let mut holders = keys.iter().map(|key| locker.holder(key));
    holders.all(|holder| holder.is_ok_and(|holder| !holder.is_some_and(is_held)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_before_the_first_request_leaves_nothing_to_undo() {
        let progress = Progress::default();
        assert!(progress.stop());
        assert!(!progress.may_ask());
        let progress = Progress::default();
        assert!(progress.may_ask());
        assert!(!progress.stop());
    }
}
