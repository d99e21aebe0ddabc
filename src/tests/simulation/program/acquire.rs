//! Acquires a lock of any kind.

use std::sync::Arc;
use std::time::Duration;

use crate::api::guard::LockGuard;
use crate::api::locker::Locker;
use crate::api::options::LockOptions;
use crate::api::redis_locker::RedisLocker;
use crate::api::rw_locker::{RedisRwLocker, RwLocker};
use crate::api::semaphore::{RedisSemaphore, Semaphore};
use crate::error::error::Error;
use crate::tests::simulation::checker::reports::Reports;
use crate::tests::simulation::checker::waits::TimedCall;
use crate::tests::simulation::network::server::lock_name;
use crate::tests::simulation::plan::locks::{CONTEST_LOCK, own_lock};
use crate::tests::simulation::plan::plan::{AcquirePlan, Target, WaitPlan};
use crate::tests::simulation::program::guard::AnyGuard;
use crate::tests::simulation::program::thread::ProgramThread;
use crate::tests::simulation::runtime::signal;
use crate::tests::simulation::world;
use crate::transport::cancel::CancelToken;

/// An acquire that is to be cancelled earlier is cancelled before it begins.
const MIN_CANCEL: Duration = Duration::from_millis(10);

impl ProgramThread {
    pub(super) fn acquire(&self, plan: &AcquirePlan) {
        let asked = signal::true_time();
        let is_contest = plan.target.lock() == CONTEST_LOCK;
        if is_contest {
            self.checker.count(match self.process {
                0 => "contests",
                _ => "other contestants",
            });
        }
        let reports = Reports::new(plan);
        let acquired = self.ask(plan, &reports);
        if let Some(call) = self.timed_call(plan) {
            self.checker.check_duration(self.process, call, asked);
        }
        match acquired {
            Ok(Some(guard)) => {
                if is_contest {
                    self.checker.count("contest winners");
                }
                let waits = plan.wait == WaitPlan::Policy && plan.cancel_after.is_none();
                let waiting_since = waits.then_some(asked);
                let hold = self.hold(&guard, waiting_since);
                self.checker.expect_reports(hold, &reports);
                match &plan.target {
                    Target::Any(locks) => {
                        self.checker.check_choice(hold, locks, waiting_since);
                    }
                    Target::OfProcess(locks) => self.checker.check_choice(hold, locks, None),
                    _ => {}
                }
                self.live(plan, guard, hold);
            }
            Ok(None) => self.checker.count("refused locks"),
            Err(error) => {
                self.checker.count(match &error {
                    Error::Cancelled => "cancelled acquires",
                    Error::CircuitOpen { .. } => "acquires at an open breaker",
                    Error::InvalidConfig(_) => "disputed permits",
                    error if error.is_contended() => "contended acquires",
                    error if error.is_denied() => "denied acquires",
                    error if error.is_unavailable() => "unavailable acquires",
                    _ => "other errors",
                });
                if matches!(error, Error::Closed) {
                    self.checker.check_closed(self.process, asked);
                }
                self.checker
                    .note(|| format!("process {} thread {}: {error}", self.process, self.thread));
                if !plan.target.may_fail() {
                    self.checker.expect_calm("acquire", Some(&error));
                }
            }
        }
    }

    /// Returns how the duration of an acquire is bounded, if it is.
    fn timed_call(&self, plan: &AcquirePlan) -> Option<TimedCall> {
        match plan.wait {
            _ if plan.target.lock() == own_lock(self.process, self.thread) => {
                Some(TimedCall::Alone)
            }
            WaitPlan::Try if plan.target.lock() == CONTEST_LOCK => Some(TimedCall::Contest),
            WaitPlan::For(limit) => Some(match &plan.target {
                Target::Any(locks) => TimedCall::LimitedForAny(limit, locks.len() as u32),
                _ => TimedCall::Limited(limit),
            }),
            _ => None,
        }
    }

    fn options(&self, plan: &AcquirePlan, reports: &Arc<Reports>) -> LockOptions {
        let mut options = LockOptions::new(plan.ttl)
            .fencing(plan.fenced)
            .auto_renew(plan.renewed);
        if let Some(limit) = plan.max_renewal {
            options = options.max_renewal(limit);
        }
        if let Some(time) = plan.min_hold {
            options = options.min_hold(time);
        }
        let process = self.process;
        if plan.told {
            let (checker, reports) = (Arc::clone(&self.checker), Arc::clone(reports));
            options =
                options.on_lost(move |lost| checker.loss_told(process, &reports, &lost.lease));
        }
        if let Some(margin) = plan.margin {
            let (checker, reports) = (Arc::clone(&self.checker), Arc::clone(reports));
            let on_endangered = move |lock: &_| checker.danger_told(process, &reports, lock);
            options = options.on_endangered(margin, on_endangered);
        }
        if let WaitPlan::For(limit) = plan.wait {
            options = options.wait_for(limit);
        }
        if let Some(after) = plan.cancel_after {
            let token = CancelToken::new();
            options = options.cancel_on(&token);
            let cancel = move || {
                token.cancel();
                assert!(token.is_cancelled());
            };
            match after < MIN_CANCEL {
                true => cancel(),
                false => {
                    let canceller = move || {
                        world::sleep(after);
                        cancel();
                    };
                    self.world.spawn(self.process, "canceller", canceller);
                }
            }
        }
        options
    }

    fn ask(&self, plan: &AcquirePlan, reports: &Arc<Reports>) -> Result<Option<AnyGuard>, Error> {
        let options = self.options(plan, reports);
        let tries = plan.wait == WaitPlan::Try;
        let locker = RedisLocker::new(&self.nodes);
        let exclusive = |locks: &[usize]| {
            let guard = with_names(locks, |names| match tries {
                true => locker.try_acquire_all(names, &options),
                false => locker.acquire_all(names, &options).map(Some),
            });
            Ok(guard?.map(AnyGuard::Lock))
        };
        let rw_locker = RedisRwLocker::new(&self.nodes);
        match &plan.target {
            Target::Exclusive(lock) => exclusive(&[*lock]),
            Target::All(locks) => exclusive(locks),
            Target::Any(locks) => {
                let options = match tries {
                    true => options.wait_for(Duration::ZERO),
                    false => options,
                };
                let guard = with_names(locks, |names| locker.acquire_any(names, &options));
                none_if_refused(guard, tries)
            }
            Target::OfProcess(locks) => self.ask_alone(locks, tries, &options),
            Target::Read(lock) => {
                let guard = match tries {
                    true => rw_locker.try_acquire_read(&lock_name(*lock), &options)?,
                    false => Some(rw_locker.acquire_read(&lock_name(*lock), &options)?),
                };
                Ok(guard.map(AnyGuard::Read))
            }
            Target::Write(lock) => {
                let guard = match tries {
                    true => rw_locker.try_acquire_write(&lock_name(*lock), &options)?,
                    false => Some(rw_locker.acquire_write(&lock_name(*lock), &options)?),
                };
                Ok(guard.map(AnyGuard::Write))
            }
            Target::Permit { lock, total } => {
                let semaphore = RedisSemaphore::new(&self.nodes, &lock_name(*lock), *total)?;
                let permit = match tries {
                    true => semaphore.try_acquire(&options)?,
                    false => Some(semaphore.acquire(&options)?),
                };
                Ok(permit.map(AnyGuard::Permit))
            }
        }
    }
}

impl ProgramThread {
    /// Acquires the first of `locks` that is free in this process, which has them for itself alone.
    fn ask_alone(
        &self,
        locks: &[usize],
        tries: bool,
        options: &LockOptions,
    ) -> Result<Option<AnyGuard>, Error> {
        with_names(locks, |names| match (names, tries) {
            ([name], true) => {
                let guard = self.own_locks.try_acquire(name, options)?;
                Ok(guard.map(AnyGuard::Lock))
            }
            ([name], false) => none_if_refused(self.own_locks.acquire(name, options), false),
            (names, true) => {
                let options = options.clone().wait_for(Duration::ZERO);
                none_if_refused(self.own_locks.acquire_any(names, &options), true)
            }
            (names, false) => none_if_refused(self.own_locks.acquire_any(names, options), false),
        })
    }
}

/// Turns *contended* into `None` for a call that only tries.
fn none_if_refused(
    guard: Result<LockGuard, Error>,
    tries: bool,
) -> Result<Option<AnyGuard>, Error> {
    match guard {
        Err(error) if tries && error.is_contended() => Ok(None),
        guard => guard.map(|guard| Some(AnyGuard::Lock(guard))),
    }
}

/// Calls `ask` with the names of locks.
fn with_names<T>(locks: &[usize], ask: impl FnOnce(&[&str]) -> T) -> T {
    let names: Vec<Arc<str>> = locks.iter().map(|lock| lock_name(*lock)).collect();
    let names: Vec<&str> = names.iter().map(|name| &**name).collect();
    ask(&names)
}
