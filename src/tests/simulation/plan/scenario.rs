//! Scenarios: parts of a plan that bring about states which random draws contain too rarely.
//!
//! | scenario | theme | bugs that show in it |
//! |---|---|---|
//! | relay: all threads want one lock for short times | calm, with waiters that sleep until they are woken | a release that wakes nobody |
//! | hang: a server hangs through an extension until nearly the end of the TTL | faults | a token that outlives its release |

use std::time::Duration;

use fastrand::Rng;

use crate::tests::simulation::network::fault::TimedChange;
use crate::tests::simulation::plan::draw::{between, ms, one_of};
use crate::tests::simulation::plan::locks::SCENARIO_LOCK;
use crate::tests::simulation::plan::plan::{
    AcquirePlan, Act, Fault, GuardEnd, Plan, Step, Target, WaitPlan,
};

impl Plan {
    /// Lets all threads of a calm plan want one lock, again and again.
    pub(super) fn add_relay(&mut self, rng: &mut Rng) {
        let ttl = self.max_ttl;
        for thread in self.processes.iter_mut().flat_map(|p| &mut p.threads) {
            for _ in 0..rng.usize(1..=3) {
                let hold = Act::Hold(between(rng, ms(0), ms(10)));
                let wait = one_of(rng, &[WaitPlan::Try, WaitPlan::Policy, WaitPlan::Policy]);
                let acquire = acquire_for(ttl, wait, vec![hold], GuardEnd::Release);
                thread.insert(0, Step::Acquire(acquire));
            }
        }
    }

    /// Lets a server hang from before an extension until nearly the end of the TTL. Its holder
    /// looks at the lock after the end.
    pub(super) fn add_hang(&mut self, rng: &mut Rng) {
        let (ttl, server) = (self.max_ttl, rng.usize(..self.servers.len()));
        let at = between(rng, ms(50), ms(500));
        let lasts = ttl - at - between(rng, ms(1), ms(3_000));
        let resume = TimedChange::Resume { server };
        self.faults
            .push((at, Fault::Network(TimedChange::Hang { server })));
        self.faults.push((at + lasts, Fault::Network(resume)));
        self.calm_at = self.calm_at.max(at + lasts);
        self.processes[0].starts_at = Duration::ZERO;
        let during = vec![
            Act::Hold(at),
            Act::Extend(ttl),
            Act::Hold(ttl + between(rng, ms(0), ms(2_000))),
        ];
        let end = one_of(rng, &[GuardEnd::Release, GuardEnd::Drop]);
        let acquire = acquire_for(ttl, WaitPlan::Policy, during, end);
        self.processes[0].threads[0].insert(0, Step::Acquire(acquire));
    }
}

fn acquire_for(ttl: Duration, wait: WaitPlan, during: Vec<Act>, end: GuardEnd) -> AcquirePlan {
    AcquirePlan {
        target: Target::Exclusive(SCENARIO_LOCK),
        ttl,
        wait,
        fenced: false,
        renewed: false,
        max_renewal: None,
        told: false,
        margin: None,
        cancel_after: None,
        during,
        end,
    }
}
