//! Acquires a lock of any kind, and ends it.

use std::sync::Arc;
use std::time::Instant;

use crate::api::locker::{Locker, RedisLocker};
use crate::api::options::LockOptions;
use crate::api::rw_locker::{RedisRwLocker, RwLocker};
use crate::api::semaphore::{RedisSemaphore, Semaphore};
use crate::error::Error;
use crate::protocol::mode::Mode;
use crate::tests::simulation::checker::hold::HoldId;
use crate::tests::simulation::network::server::lock_name;
use crate::tests::simulation::plan::draw::CONTEST_LOCK;
use crate::tests::simulation::plan::draw_faults::{FORCED_LOCK, FOREIGN_LOCK};
use crate::tests::simulation::plan::plan::{AcquirePlan, Act, GuardEnd, Target, WaitPlan};
use crate::tests::simulation::program::guard::AnyGuard;
use crate::tests::simulation::program::thread::ProgramThread;
use crate::tests::simulation::runtime::signal;
use crate::tests::simulation::world;
use crate::transport::cancel::CancelToken;

impl ProgramThread {
    pub(super) fn acquire(&self, plan: &AcquirePlan) {
        let asked = signal::true_time();
        let is_contest = matches!(
            plan.target,
            Target::Exclusive(CONTEST_LOCK) | Target::Write(CONTEST_LOCK)
        ) || matches!(&plan.target, Target::All(locks) if locks[0] == CONTEST_LOCK);
        if is_contest {
            self.checker.count(match self.process {
                0 => "contests",
                _ => "other contestants",
            });
        }
        let acquired = self.ask(plan);
        match acquired {
            Ok(Some(guard)) => {
                if is_contest {
                    self.checker.count("contest winners");
                }
                let waits = plan.wait == WaitPlan::Policy && plan.cancel_after.is_none();
                let hold = self.hold(&guard, waits.then_some(asked));
                if plan.told {
                    self.checker.expect_told(hold);
                }
                self.live(plan, guard, hold);
            }
            Ok(None) => self.checker.count("refused locks"),
            Err(error) => {
                self.checker.count(match &error {
                    Error::Cancelled => "cancelled acquires",
                    Error::CircuitOpen { .. } => "acquires at an open breaker",
                    error if error.is_contended() => "contended acquires",
                    error if error.is_denied() => "denied acquires",
                    error if error.is_unavailable() => "unavailable acquires",
                    _ => "other errors",
                });
                self.checker
                    .note(|| format!("process {} thread {}: {error}", self.process, self.thread));
                self.checker.expect_calm("acquire", Some(&error));
            }
        }
    }

    fn options(&self, plan: &AcquirePlan) -> LockOptions {
        let mut options = LockOptions::new(plan.ttl)
            .fencing(plan.fenced)
            .auto_renew(plan.renewed);
        if let Some(limit) = plan.max_renewal {
            options = options.max_renewal(limit);
        }
        if plan.told {
            let checker = Arc::clone(&self.checker);
            options = options.on_lost(move |lost| checker.told(&lost.lease));
        }
        if let WaitPlan::For(limit) = plan.wait {
            options = options.wait_for(limit);
        }
        if let Some(after) = plan.cancel_after {
            let token = CancelToken::new();
            options = options.cancel_on(&token);
            self.world.spawn(self.process, "canceller", move || {
                world::sleep(after);
                token.cancel();
            });
        }
        options
    }

    fn ask(&self, plan: &AcquirePlan) -> Result<Option<AnyGuard>, Error> {
        let options = self.options(plan);
        let tries = plan.wait == WaitPlan::Try;
        let locker = RedisLocker::new(&self.nodes);
        let exclusive = |locks: &[usize]| {
            let names: Vec<Arc<str>> = locks.iter().map(|lock| lock_name(*lock)).collect();
            let names: Vec<&str> = names.iter().map(|name| &**name).collect();
            let guard = match tries {
                true => locker.try_acquire_all(&names, &options)?,
                false => Some(locker.acquire_all(&names, &options)?),
            };
            Ok(guard.map(AnyGuard::Lock))
        };
        let rw_locker = RedisRwLocker::new(&self.nodes);
        match &plan.target {
            Target::Exclusive(lock) => exclusive(&[*lock]),
            Target::All(locks) => exclusive(locks),
            Target::Forced => exclusive(&[FORCED_LOCK]),
            Target::Foreign => exclusive(&[FOREIGN_LOCK]),
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

    /// Does what is planned with a guard, and ends it.
    fn live(&self, plan: &AcquirePlan, mut guard: AnyGuard, hold: HoldId) {
        for act in &plan.during {
            match self.act(*act, guard, hold) {
                Some(kept) => guard = kept,
                None => return,
            }
        }
        let is_safe = plan.renewed && plan.max_renewal.is_none() && plan.target != Target::Forced;
        if self.checker.is_calm() && is_safe && !guard.is_held() {
            self.checker.lost_in_calm(hold);
        }
        match plan.end {
            GuardEnd::Release => self.release(guard, hold),
            // A local lock does not expire, so others would wait for it without end.
            GuardEnd::Keep if guard.mode() == Mode::Local => self.release(guard, hold),
            GuardEnd::Drop => {
                self.checker.end(hold);
                drop(guard);
                self.checker.count("drops");
            }
            GuardEnd::Keep => {
                guard.stop_renewal();
                self.kept.lock().push((guard, hold));
            }
            GuardEnd::Detach => {
                let expiry = guard.lease().expiry(world::clock_of(self.process));
                // Detached before the call, because its caller gives up the lock within it.
                self.checker.detached(hold, expiry);
                match guard.detach() {
                    Ok(Some(token)) => self.detached.lock().push((token, hold)),
                    Ok(None) | Err(_) => self.checker.end(hold),
                }
            }
        }
    }

    /// Returns the guard, unless the act ended it.
    fn act(&self, act: Act, guard: AnyGuard, hold: HoldId) -> Option<AnyGuard> {
        if act == Act::Downgrade {
            self.checker.downgrading(hold);
        }
        match act {
            Act::Hold(time) => world::sleep(time),
            Act::Check => {
                let before: Instant = crate::time::clock::now();
                let checked = guard.check();
                self.checker.checked(hold, before, checked.is_ok());
            }
            Act::Extend(ttl) => {
                let extended = guard.extend(ttl);
                self.checker.count(match &extended {
                    Ok(()) => "extensions",
                    Err(_) => "failed extensions",
                });
                self.checker
                    .note(|| format!("process {}: extend: {extended:?}", self.process));
                self.checker.check_overlaps();
            }
            Act::StopRenewal => guard.stop_renewal(),
            Act::Watch(limit) => {
                let watch = guard.watch();
                _ = watch.wait_ended(limit);
            }
            Act::Downgrade => match guard.downgrade() {
                Ok(guard) => {
                    self.checker.count("downgrades");
                    return Some(guard);
                }
                Err(error) => {
                    self.checker.end(hold);
                    self.checker
                        .note(|| format!("process {}: downgrade: {error}", self.process));
                    return None;
                }
            },
        }
        Some(guard)
    }
}
