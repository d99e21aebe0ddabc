//! Draws faults, within the limits that the library documents.

use std::time::Duration;

use fastrand::Rng;

use crate::protocol::request::Op;
use crate::tests::simulation::network::fault::TimedChange;
use crate::tests::simulation::network::server::{Refusal, Trouble};
use crate::tests::simulation::plan::draw::{between, ms, one_of};
use crate::tests::simulation::plan::locks::{FOREIGN_LOCK, STOLEN_LOCK, TROUBLED_LOCK};
use crate::tests::simulation::plan::plan::{ClockPlan, Fault, Plan, ProcessPlan, Step};

/// Draws clocks that disagree by no more than the documented limit: 1 % from the slowest to the
/// fastest.
pub(crate) fn set_clocks(plan: &mut Plan, rng: &mut Rng) {
    let rate = one_of(rng, &[0, 4_000, 4_000]);
    let apart = one_of(rng, &[0, 1_000, 3_600_000_000]);
    // The worst case for mutual exclusion is a holder with a slow clock and nodes with fast ones.
    // The reverse is the worst case for leftover tokens.
    let end = one_of(rng, &[None, Some(rate), Some(-rate)]);
    let mut clock = |apart: i64, end: Option<i64>| ClockPlan {
        offset: rng.i64(-apart..=apart),
        rate: end.unwrap_or_else(|| rng.i64(-rate..=rate)),
    };
    for server in &mut plan.servers {
        *server = clock(apart, end);
    }
    for process in &mut plan.processes {
        process.clock = clock(3_600_000_000, end.map(|rate| -rate));
    }
}

/// Draws faults for the first seconds of a history.
pub(crate) fn draw_faults(plan: &mut Plan, quarantine: bool, rng: &mut Rng) {
    plan.calm_at = between(rng, ms(500), ms(3_000)).max(plan.max_ttl.min(ms(3_000)));
    if rng.u32(..3) == 0 {
        plan.delays.late_share = rng.u32(..500);
        plan.delays.late = rng.u64(1_000..300_000);
    }
    let mut faults = FaultPlan { plan, rng };
    for _ in 0..faults.rng.usize(1..=4) {
        faults.network_fault();
    }
    if faults.rng.u32(..3) == 0 {
        faults.process_fault();
    }
    if quarantine {
        faults.data_loss();
    }
    if faults.rng.u32(..3) == 0 {
        faults.steal();
    }
    if faults.rng.u32(..4) == 0 {
        faults.step_clock();
    }
    for server in 0..faults.plan.servers.len() {
        let refusal = Refusal::WrongType(FOREIGN_LOCK);
        faults.add(Duration::ZERO, TimedChange::Refuse { server, refusal });
    }
    let kill_is_denied = faults.plan.faults.iter().any(|(_, fault)| {
        matches!(
            fault,
            Fault::Network(TimedChange::Refuse {
                refusal: Refusal::KillDenied,
                ..
            })
        )
    });
    plan.promises.leaves_nothing &= !kill_is_denied;
    plan.promises.kills_connections &= !kill_is_denied;
}

/// Lets requests of one lock fail, on one server or on all. All other locks are to be as if nothing
/// had happened (L2).
pub(super) fn draw_trouble(plan: &mut Plan, rng: &mut Rng) {
    let troubles = [Trouble::Denied, Trouble::TryAgain, Trouble::OutOfMemory];
    let (at, lasts) = (between(rng, ms(0), ms(300)), between(rng, ms(5), ms(1_500)));
    let refusal = Refusal::Trouble(TROUBLED_LOCK, one_of(rng, &troubles));
    let all = plan.servers.len();
    for server in 0..one_of(rng, &[1, all, all]) {
        let refuse = TimedChange::Refuse { server, refusal };
        plan.faults.push((at, Fault::Network(refuse)));
        let accept = TimedChange::Accept { server, refusal };
        plan.faults.push((at + lasts, Fault::Network(accept)));
    }
    plan.calm_at = plan.calm_at.max(at + lasts);
}

/// Takes one server away until all faults end. Each process goes on to acquire and to release
/// meanwhile (L3).
pub(super) fn draw_outage(plan: &mut Plan, rng: &mut Rng) {
    plan.calm_at = plan.calm_at.max(ms(3_000));
    let server = rng.usize(..plan.servers.len());
    let outage = match rng.u32(..3) {
        0 => TimedChange::Hang { server },
        n => TimedChange::Crash {
            server,
            is_gone: n == 1,
            loses_data: false,
        },
    };
    let at = between(rng, ms(0), ms(500));
    plan.faults.push((at, Fault::Network(outage)));
    for process in &mut plan.processes {
        let churn = Step::Churn {
            times: rng.u32(10..=30),
            pause: between(rng, ms(20), ms(120)),
        };
        process.threads[0].insert(0, churn);
    }
}

/// Suspends the machine of one process at any time.
///
/// A suspend is noticed for as long as a lease may last if it takes more than 100 ms and a
/// hundredth of the TTL. It ends before the servers are looked at for what is left.
pub(super) fn draw_suspend(plan: &mut Plan, rng: &mut Rng) {
    let process = rng.usize(..plan.processes.len());
    let latest = one_of(rng, &[ms(500), plan.calm_at]);
    let at = between(rng, ms(0), latest);
    let least = ms(110) + plan.max_ttl / 90;
    let lasts = between(rng, least, least + ms(2_000));
    plan.suspend(process, at, lasts);
}

struct FaultPlan<'a> {
    plan: &'a mut Plan,
    rng: &'a mut Rng,
}

impl FaultPlan<'_> {
    fn add(&mut self, at: Duration, change: TimedChange) {
        self.plan.faults.push((at, Fault::Network(change)));
    }

    /// Returns when a fault begins, and how long it lasts.
    fn when(&mut self) -> (Duration, Duration) {
        let calm_at = self.plan.calm_at;
        let at = match self.rng.u32(..3) {
            // Many steps happen at the beginning.
            0 => between(self.rng, ms(0), ms(20).min(calm_at)),
            _ => between(self.rng, ms(0), calm_at),
        };
        let longest = one_of(self.rng, &[ms(20), ms(400), calm_at]);
        (at, between(self.rng, ms(1), longest))
    }

    fn network_fault(&mut self) {
        let (at, lasts) = self.when();
        let server = self.rng.usize(..self.plan.servers.len());
        let process = self.rng.usize(..self.plan.processes.len());
        let is_gone = self.rng.bool();
        match self.rng.u32(..100) {
            0..15 => {
                self.add(
                    at,
                    TimedChange::Crash {
                        server,
                        is_gone,
                        loses_data: false,
                    },
                );
                self.add(at + lasts, TimedChange::Restart { server });
            }
            15..30 => {
                self.add(at, TimedChange::Hang { server });
                self.add(at + lasts, TimedChange::Resume { server });
            }
            30..45 => self.add(
                at,
                TimedChange::Block {
                    process,
                    server,
                    lasts,
                },
            ),
            45..52 => self.add(
                at,
                TimedChange::Shut {
                    process,
                    server,
                    lasts,
                },
            ),
            52..60 => self.add(at, TimedChange::Silence { process, server }),
            60..67 => self.add(at, TimedChange::Disconnect { process, server }),
            67..74 => self.add(at, TimedChange::CutBetween { process, server }),
            74..78 => self.add(at, TimedChange::FlushScripts { server }),
            78..81 => {
                self.add(
                    at,
                    TimedChange::Mute {
                        server,
                        is_mute: true,
                    },
                );
                self.add(
                    at + lasts,
                    TimedChange::Mute {
                        server,
                        is_mute: false,
                    },
                );
            }
            _ => self.refusal(at, lasts, server),
        }
    }

    /// Lets one server, or all, refuse something.
    fn refusal(&mut self, at: Duration, lasts: Duration, server: usize) {
        let refusal = one_of(
            self.rng,
            &[
                Refusal::OutOfMemory,
                Refusal::Denied(Op::Acquire),
                Refusal::Denied(Op::Release),
                Refusal::Denied(Op::Extend),
                Refusal::Denied(Op::Swap),
                Refusal::KillDenied,
                Refusal::SubscribeDenied,
                Refusal::LoginDenied,
                Refusal::Loading,
                Refusal::ReadOnly,
                Refusal::CannotPersist,
            ],
        );
        let servers = match self.rng.bool() {
            true => server..server + 1,
            false => 0..self.plan.servers.len(),
        };
        for server in servers {
            self.add(at, TimedChange::Refuse { server, refusal });
            self.add(at + lasts, TimedChange::Accept { server, refusal });
        }
    }

    fn process_fault(&mut self) {
        let (at, lasts) = self.when();
        let process = self.rng.usize(..self.plan.processes.len());
        let fault = match self.rng.u32(..5) {
            0 | 1 => Fault::Pause { process, lasts },
            2 | 3 => {
                self.restart(process, at);
                Fault::Kill {
                    process,
                    is_silent: self.rng.bool(),
                }
            }
            _ => Fault::StepWall {
                process,
                by: self.rng.i64(-1_000_000..10_000_000),
            },
        };
        self.plan.faults.push((at, fault));
    }

    /// Lets a process that is killed at a time be started again, in half of the cases. It is
    /// another process to the nodes and to the checker, and does the same.
    fn restart(&mut self, process: usize, killed_at: Duration) {
        if self.rng.bool() {
            let starts_at = killed_at + between(self.rng, ms(0), ms(500));
            self.plan.processes.push(ProcessPlan {
                starts_at,
                ..self.plan.processes[process].clone()
            });
        }
    }

    /// Lets another client overwrite a lock for some time, on all servers or on a quorum.
    fn steal(&mut self) {
        let (at, lasts) = self.when();
        let total = self.plan.servers.len();
        let servers = if self.rng.bool() {
            total
        } else {
            total / 2 + 1
        };
        for server in 0..servers {
            let lock = STOLEN_LOCK;
            self.add(
                at,
                TimedChange::Steal {
                    server,
                    lock,
                    lasts,
                },
            );
        }
    }

    /// Sets the clock of one server forward, by the documented limit at most.
    fn step_clock(&mut self) {
        let (at, _) = self.when();
        let server = self.rng.usize(..self.plan.servers.len());
        let by = self.rng.i64(0..=2_000);
        self.add(at, TimedChange::StepClock { server, by });
    }

    /// Lets nodes lose their data. Each process quarantines them for the longest TTL. Clocks are in
    /// step, because fence counters start from them.
    fn data_loss(&mut self) {
        self.plan.promises.keeps_data = false;
        for server in &mut self.plan.servers {
            server.offset = 0;
        }
        for _ in 0..self.rng.usize(1..=2) {
            let (at, lasts) = self.when();
            let server = self.rng.usize(..self.plan.servers.len());
            let crash = TimedChange::Crash {
                server,
                is_gone: self.rng.bool(),
                loses_data: true,
            };
            self.add(at, crash);
            self.add(at + lasts, TimedChange::Restart { server });
        }
    }
}
