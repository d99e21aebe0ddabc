//! The acts of a thread with a guard, from its acquire to its end.

use crate::protocol::mode::Mode;
use crate::tests::simulation::checker::hold::HoldId;
use crate::tests::simulation::plan::locks::{FORCED_LOCK, STOLEN_LOCK};
use crate::tests::simulation::plan::plan::{AcquirePlan, Act, GuardEnd, Target};
use crate::tests::simulation::program::guard::AnyGuard;
use crate::tests::simulation::program::thread::ProgramThread;
use crate::tests::simulation::runtime::signal;
use crate::tests::simulation::world;

impl ProgramThread {
    /// Does what is planned with a guard, and ends it.
    pub(super) fn live(&self, plan: &AcquirePlan, mut guard: AnyGuard, hold: HoldId) {
        let acquired = signal::true_time();
        for act in &plan.during {
            self.look(&guard, hold);
            match self.act(*act, guard, hold) {
                Some(kept) => guard = kept,
                None => return,
            }
        }
        self.look(&guard, hold);
        let is_kept = plan.renewed && plan.max_renewal.is_none();
        let is_safe = is_kept && ![FORCED_LOCK, STOLEN_LOCK].contains(&plan.target.lock());
        if self.checker.is_calm() && is_safe && !guard.is_held() {
            self.checker.lost_in_calm(hold);
        }
        if let (Target::Any(locks), [_]) = (&plan.target, &self.plan.threads[..]) {
            self.checker.check_other_choices(hold, locks, acquired);
        }
        self.end(plan.end, guard, hold);
    }

    /// Looks at a guard, as a holder does before each step of its work.
    fn look(&self, guard: &AnyGuard, hold: HoldId) {
        let before = self.checker.known(hold);
        let is_held = guard.is_held();
        self.checker.checked(hold, before, is_held);
    }

    fn end(&self, end: GuardEnd, guard: AnyGuard, hold: HoldId) {
        match end {
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
        match act {
            Act::Hold(time) => world::sleep(time),
            Act::Check => {
                let before = self.checker.known(hold);
                let checked = guard.check();
                self.checker.checked(hold, before, checked.is_ok());
            }
            Act::Extend(ttl) => {
                self.checker.extending(hold);
                let extended = guard.extend(ttl);
                self.checker.extended(hold, &extended);
                self.checker
                    .note(|| format!("process {}: extend: {extended:?}", self.process));
            }
            Act::StopRenewal => guard.stop_renewal(),
            Act::Watch(limit) => self.checker.watch(hold, &guard.watch(), limit),
            Act::Downgrade => return self.downgrade(guard, hold),
        }
        Some(guard)
    }

    fn downgrade(&self, guard: AnyGuard, hold: HoldId) -> Option<AnyGuard> {
        self.checker.downgrading(hold);
        match guard.downgrade() {
            Ok(guard) => {
                self.checker.count("downgrades");
                Some(guard)
            }
            Err(error) => {
                self.checker.end(hold);
                self.checker
                    .note(|| format!("process {}: downgrade: {error}", self.process));
                None
            }
        }
    }
}
