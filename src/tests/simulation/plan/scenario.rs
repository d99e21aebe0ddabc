//! Scenarios: parts of a plan that bring about states which random draws contain too rarely.
//!
//! | scenario | theme | bugs that show in it |
//! |---|---|---|
//! | relay: all threads want one lock for short times | calm, with waiters that sleep until they are woken | a release that wakes nobody |
//! | removal: a process deletes the lock of another one, which extends it meanwhile | calm | a notice that tells nobody |
//! | own locks: the threads of a process share locks of a `LocalLocker` | all | a waiter of one process that is not woken |
//! | suspend: a machine is suspended through an extension until the lease has ended | expiry | a suspend that is not noticed because it began before the reply |
//! | hang: a server hangs through an extension until nearly the end of the TTL | faults | a token that outlives its release |

use std::time::Duration;

use fastrand::Rng;

use crate::tests::simulation::network::fault::TimedChange;
use crate::tests::simulation::plan::draw::{between, ms, one_of};
use crate::tests::simulation::plan::locks::{FORCED_LOCK, PROCESS_LOCKS, SCENARIO_LOCK};
use crate::tests::simulation::plan::plan::{
    AcquirePlan, Act, Fault, GuardEnd, Plan, ProcessPlan, Step, Target, WaitPlan,
};

/// A holder, a process that is near, and those far behind.
const RELAY_PROCESSES: usize = 5;

impl Plan {
    /// Lets all threads of a calm plan want one lock, again and again. Half of the plans
    /// have enough processes for some to be far behind in the waiting list.
    pub(super) fn add_relay(&mut self, rng: &mut Rng) {
        let ttl = self.max_ttl;
        let processes = one_of(rng, &[0, RELAY_PROCESSES]);
        while self.processes.len() < processes {
            self.processes.push(ProcessPlan {
                threads: vec![Vec::new()],
                ..self.processes[0].clone()
            });
        }
        for thread in self.processes.iter_mut().flat_map(|p| &mut p.threads) {
            for _ in 0..rng.usize(1..=3) {
                let hold = Act::Hold(between(rng, ms(0), ms(10)));
                let wait = one_of(rng, &[WaitPlan::Try, WaitPlan::Policy, WaitPlan::Policy]);
                let acquire = acquire_for(ttl, wait, vec![hold]);
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
        let acquire = AcquirePlan {
            end: one_of(rng, &[GuardEnd::Release, GuardEnd::Drop]),
            ..acquire_for(ttl, WaitPlan::Policy, during)
        };
        self.processes[0].threads[0].insert(0, Step::Acquire(acquire));
    }

    /// Suspends the machine of a process until its lease has ended on the servers, most likely
    /// while it waits for the replies to an extension.
    pub(super) fn add_suspend(&mut self, rng: &mut Rng) {
        let (ttl, packet) = (self.max_ttl, Duration::from_micros(self.delays.usual));
        let before = between(rng, ms(1), ms(40));
        // It has connected and acquired the lock by then.
        let at = before + between(rng, 5 * packet, 25 * packet);
        self.suspend(0, at, ttl + between(rng, ms(200), ms(1_000)));
        self.processes[0].starts_at = Duration::ZERO;
        let during = vec![Act::Hold(before), Act::Extend(ttl), Act::Check];
        let acquire = acquire_for(ttl, WaitPlan::Policy, during);
        self.processes[0].threads[0].insert(0, Step::Acquire(acquire));
    }

    /// Lets the threads of a process, two at least, share locks that no other process has.
    pub(super) fn add_own_locks(&mut self, rng: &mut Rng) {
        let process = rng.usize(..self.processes.len());
        let (threads, ttl) = (&mut self.processes[process].threads, self.max_ttl);
        if threads.len() == 1 {
            threads.push(Vec::new());
        }
        for thread in threads {
            for _ in 0..rng.usize(1..=3) {
                let mut locks = PROCESS_LOCKS.to_vec();
                rng.shuffle(&mut locks);
                locks.truncate(rng.usize(1..=2));
                let limit = WaitPlan::For(between(rng, ms(0), ms(100)));
                let wait = one_of(rng, &[WaitPlan::Try, limit, WaitPlan::Policy]);
                let during = vec![Act::Hold(between(rng, ms(0), ms(50))), Act::Check];
                let acquire = AcquirePlan {
                    fenced: rng.bool(),
                    min_hold: (rng.u32(..4) == 0).then(|| between(rng, ms(1), ms(100))),
                    cancel_after: (rng.u32(..8) == 0).then(|| between(rng, ms(0), ms(100))),
                    end: one_of(rng, &[GuardEnd::Release, GuardEnd::Drop]),
                    ..AcquirePlan::plain(Target::OfProcess(locks), ttl, wait, during)
                };
                thread.insert(0, Step::Acquire(acquire));
            }
        }
    }

    /// Lets a process delete the lock that another one holds and wants to be told of. The holder
    /// extends it at any time.
    pub(super) fn add_removal(&mut self, rng: &mut Rng) {
        let ttl = self.max_ttl;
        let [holder, operator, ..] = &mut self.processes[..] else {
            return;
        };
        let hold = |rng: &mut Rng| Act::Hold(between(rng, ms(0), ms(60)));
        let mut during = vec![Act::Hold(ms(50))];
        for _ in 0..rng.usize(0..=3) {
            during.extend([hold(rng), Act::Extend(ttl)]);
        }
        during.push(Act::Hold(ms(500)));
        let acquire = AcquirePlan {
            target: Target::Exclusive(FORCED_LOCK),
            renewed: rng.bool(),
            told: true,
            ..acquire_for(ttl, WaitPlan::Policy, during)
        };
        let sleep = Step::Sleep(between(rng, ms(50), ms(250)));
        holder.threads[0].insert(0, Step::Acquire(acquire));
        operator.threads[0].splice(0..0, [sleep, Step::ForceRelease]);
    }
}

/// Returns an acquire of the scenarios' lock, which ends with a release.
fn acquire_for(ttl: Duration, wait: WaitPlan, during: Vec<Act>) -> AcquirePlan {
    AcquirePlan::plain(Target::Exclusive(SCENARIO_LOCK), ttl, wait, during)
}
