//! Draws what threads acquire.

use std::time::Duration;

use fastrand::Rng;

use crate::tests::simulation::plan::draw::{Draw, Theme, ms, one_of};
use crate::tests::simulation::plan::locks::{
    CONTEST_LOCK, DISPUTED_SEMAPHORE, FORCED_LOCK, FOREIGN_LOCK, STOLEN_LOCK, STRANGERS_LOCK,
    TROUBLED_LOCK,
};
use crate::tests::simulation::plan::plan::{AcquirePlan, Act, Plan, Step, Target, WaitPlan};

/// The number of draws that lead to a lock that all processes share.
pub(super) const SHARED_TARGETS: u32 = 84;

impl Draw {
    pub(super) fn target(&self, own_lock: usize, rng: &mut Rng) -> Target {
        if self.has_trouble && rng.u32(..4) == 0 {
            let troubled = [Target::Exclusive, Target::Read, Target::Write];
            return one_of(rng, &troubled)(TROUBLED_LOCK);
        }
        let lock = rng.usize(..self.locks);
        let focus = self.focus.filter(|_| rng.u32(..4) > 0);
        match focus.unwrap_or_else(|| rng.u32(..100)) {
            0..32 => Target::Exclusive(lock),
            32..39 => Target::All(several_locks(rng)),
            39..46 => Target::Any(several_locks(rng)),
            46..58 => Target::Read(lock),
            58..70 => Target::Write(lock),
            70..SHARED_TARGETS => Target::Permit {
                lock,
                // The number follows from the lock, so that all processes agree on it.
                total: lock as u32 + 1,
            },
            84..88 => Target::Exclusive(own_lock),
            88..91 => Target::Permit {
                lock: DISPUTED_SEMAPHORE,
                total: rng.u32(1..=2),
            },
            91..93 => Target::Exclusive(STRANGERS_LOCK),
            93..96 => Target::Exclusive(FORCED_LOCK),
            _ if self.theme == Theme::Calm => Target::Exclusive(own_lock),
            96..98 => Target::Exclusive(STOLEN_LOCK),
            _ => Target::Exclusive(FOREIGN_LOCK),
        }
    }

    /// Lets one thread of each process ask for a free lock at the same moment (L1).
    pub(super) fn contest(&self, plan: &mut Plan, rng: &mut Rng) {
        let lock = CONTEST_LOCK;
        let target = match rng.u32(..3) {
            0 => Target::Exclusive(lock),
            1 => Target::Write(lock),
            _ => Target::All(vec![lock, lock + 1]),
        };
        if self.processes < 2 || self.theme != Theme::Calm || plan.delays.usual > 1_000 {
            return;
        }
        for process in &mut plan.processes {
            process.starts_at = Duration::ZERO;
            let during = vec![Act::Hold(ms(1_000))];
            let acquire = AcquirePlan {
                fenced: rng.bool(),
                ..AcquirePlan::plain(target.clone(), self.max_ttl, WaitPlan::Try, during)
            };
            process.threads[0].insert(0, Step::Acquire(acquire));
        }
    }
}

/// Draws a few locks that all processes share, in any order.
fn several_locks(rng: &mut Rng) -> Vec<usize> {
    let mut locks: Vec<usize> = (0..rng.usize(2..=3)).collect();
    rng.shuffle(&mut locks);
    locks
}
