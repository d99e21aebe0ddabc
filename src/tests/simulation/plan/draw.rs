//! Draws a plan from a seed.

use std::time::Duration;

use fastrand::Rng;

use crate::tests::simulation::network::link::Delays;
use crate::tests::simulation::plan::draw_faults;
use crate::tests::simulation::plan::draw_targets::SHARED_TARGETS;
use crate::tests::simulation::plan::locks::own_lock;
use crate::tests::simulation::plan::plan::{
    AcquirePlan, Act, ClockPlan, GuardEnd, Plan, ProcessPlan, Promises, SettingsPlan, Step, Target,
    WaitPlan,
};

/// The subject of a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Theme {
    /// No faults, long timeouts: everything has to succeed.
    Calm,
    /// Faults, and TTLs that are longer than the history.
    Faults,
    /// Faults, and TTLs that end within the history.
    Expiry,
}

pub(crate) const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(crate) fn one_of<T: Clone>(rng: &mut Rng, from: &[T]) -> T {
    from[rng.usize(..from.len())].clone()
}

/// Returns a duration between the limits, in µs.
pub(crate) fn between(rng: &mut Rng, least: Duration, most: Duration) -> Duration {
    Duration::from_micros(rng.u64(least.as_micros() as u64..=most.as_micros() as u64))
}

impl Plan {
    pub(crate) fn draw(seed: u64) -> Plan {
        let mut rng = Rng::with_seed(seed);
        let rng = &mut rng;
        let theme = match rng.u32(..10) {
            0..3 => Theme::Calm,
            3..7 => Theme::Faults,
            _ => Theme::Expiry,
        };
        let servers = one_of(rng, &[1, 3, 3, 3, 5]);
        let processes = one_of(rng, &[1, 2, 2, 3]);
        let max_ttl = match theme {
            Theme::Expiry => between(rng, ms(100), ms(1_500)),
            Theme::Calm | Theme::Faults => between(rng, ms(30_000), ms(60_000)),
        };
        let delays = Delays {
            usual: one_of(rng, &[60, 200, 1_000, 5_000]),
            late_share: 0,
            late: 0,
        };
        let is_slow_policy = theme == Theme::Calm && rng.bool();
        let quarantine = theme != Theme::Calm && rng.u32(..4) == 0;
        let drawn = Draw {
            theme,
            max_ttl,
            is_slow_policy,
            quarantine,
            locks: rng.usize(1..=2),
            processes,
            focus: (rng.u32(..4) == 0).then(|| rng.u32(..SHARED_TARGETS)),
            has_trouble: rng.u32(..4) == 0,
        };
        let mut plan = Plan {
            seed,
            delays,
            servers: vec![ClockPlan::default(); servers],
            processes: (0..processes)
                .map(|number| drawn.process(number, rng))
                .collect(),
            faults: Vec::new(),
            calm_at: Duration::ZERO,
            max_ttl,
            promises: Promises {
                is_calm: theme == Theme::Calm,
                leaves_nothing: theme != Theme::Expiry,
                wakes: theme == Theme::Calm && is_slow_policy,
                keeps_data: true,
                kills_connections: true,
            },
        };
        drawn.add_incidents(&mut plan, rng);
        plan.faults.sort_by_key(|(at, _)| *at);
        plan
    }
}

/// Returns whether a step may keep a waiter from a lock that nobody holds: a shutdown leaves locks
/// to their TTLs, and a thread that waits for several keys has those before in its lock table.
fn delays_others(step: &Step) -> bool {
    match step {
        Step::Acquire(acquire) => matches!(acquire.target, Target::All(_)),
        step => matches!(step, Step::ShutDown(_)),
    }
}

/// The settings that all processes of a plan share.
pub(super) struct Draw {
    pub(super) theme: Theme,
    pub(super) max_ttl: Duration,
    is_slow_policy: bool,
    quarantine: bool,
    pub(super) locks: usize,
    pub(super) processes: usize,
    /// The draw of most targets, so that many threads want the same.
    pub(super) focus: Option<u32>,
    /// The requests of one lock meet errors.
    pub(super) has_trouble: bool,
}

impl Draw {
    /// Adds clocks, faults and scenarios.
    fn add_incidents(&self, plan: &mut Plan, rng: &mut Rng) {
        if rng.u32(..20) == 0 {
            self.contest(plan, rng);
        }
        draw_faults::set_clocks(plan, rng);
        let steps = plan.processes.iter().flat_map(|process| &process.threads);
        plan.promises.wakes &= !steps.flatten().any(delays_others);
        if self.theme != Theme::Calm {
            draw_faults::draw_faults(plan, self.quarantine, rng);
        }
        if self.has_trouble {
            draw_faults::draw_trouble(plan, rng);
        }
        if self.theme == Theme::Faults && rng.u32(..8) == 0 {
            draw_faults::draw_outage(plan, rng);
        }
        match self.theme {
            Theme::Calm if plan.promises.wakes && rng.u32(..4) == 0 => plan.add_relay(rng),
            Theme::Calm if rng.u32(..16) == 0 => plan.add_removal(rng),
            Theme::Faults if rng.u32(..16) == 0 => plan.add_hang(rng),
            _ => {}
        }
        if self.theme != Theme::Calm && plan.has_constant_clocks() && rng.u32(..8) == 0 {
            match self.theme == Theme::Expiry && rng.bool() {
                true => plan.add_suspend(rng),
                false => draw_faults::draw_suspend(plan, rng),
            }
        }
        if rng.u32(..16) == 0 {
            plan.add_own_locks(rng);
        }
    }

    fn process(&self, number: usize, rng: &mut Rng) -> ProcessPlan {
        let threads = one_of(rng, &[1, 1, 2, 2, 3]);
        ProcessPlan {
            clock: ClockPlan::default(),
            starts_at: match rng.u32(..3) {
                0 => between(rng, ms(0), ms(300)),
                _ => Duration::ZERO,
            },
            settings: self.settings(rng),
            threads: (0..threads)
                .map(|thread| self.thread(own_lock(number, thread), rng))
                .collect(),
            shutdown: rng.bool().then(|| ms(rng.u64(..500))),
        }
    }

    fn settings(&self, rng: &mut Rng) -> SettingsPlan {
        let is_calm = self.theme == Theme::Calm;
        let node_timeout = match is_calm {
            true => ms(20_000),
            false => between(rng, ms(30), ms(300)),
        };
        let initial_delay = match self.is_slow_policy {
            true => ms(20_000),
            false => between(rng, ms(5), ms(100)),
        };
        SettingsPlan {
            node_timeout,
            connect_timeout: node_timeout * rng.u32(1..=4),
            pool_size: one_of(rng, &[1, 1, 1, 1, 2]),
            min_validity: one_of(rng, &[0.5, 0.5, 0.1]),
            initial_delay,
            // A waiter that polls for a long TTL would make too many steps.
            max_delay: match self.theme {
                Theme::Calm | Theme::Faults => initial_delay.max(ms(1_000)),
                Theme::Expiry => initial_delay * rng.u32(1..=8),
            },
            max_attempts: one_of(rng, &[None, None, None, Some(2)]).filter(|_| !is_calm),
            max_outage: one_of(rng, &[ms(10_000), ms(300)]),
            background_drop: rng.u32(..3) == 0,
            breaker_threshold: one_of(rng, &[1, 2, 5]),
            breaker_open_for: one_of(rng, &[ms(100), ms(2_000), ms(60_000)]),
            degraded: !is_calm && rng.u32(..4) == 0,
            quarantine: self.quarantine,
        }
    }

    fn thread(&self, own_lock: usize, rng: &mut Rng) -> Vec<Step> {
        let mut steps: Vec<Step> = Vec::new();
        for _ in 0..rng.usize(1..=3) {
            steps.push(self.step(own_lock, rng));
        }
        if rng.u32(..30) == 0 {
            steps.push(Step::ShutDown(ms(one_of(rng, &[0, 20, 1_000]))));
        }
        steps
    }

    fn step(&self, own_lock: usize, rng: &mut Rng) -> Step {
        match rng.u32(..100) {
            0..80 => Step::Acquire(self.acquire(own_lock, rng)),
            80..88 => Step::Adopt {
                ttl: self.ttl(rng),
                renewed: rng.bool(),
                hold: between(rng, ms(0), ms(50)),
            },
            88..92 => Step::Holder(rng.usize(..self.locks)),
            92..94 => Step::ForceRelease,
            94..96 => Step::Health,
            _ => Step::Sleep(between(rng, ms(0), ms(200))),
        }
    }

    fn ttl(&self, rng: &mut Rng) -> Duration {
        between(rng, self.max_ttl / 2, self.max_ttl)
    }

    fn acquire(&self, own_lock: usize, rng: &mut Rng) -> AcquirePlan {
        let target = self.target(own_lock, rng);
        let is_calm = self.theme == Theme::Calm;
        let is_exclusive = matches!(
            target,
            Target::Exclusive(_) | Target::All(_) | Target::Any(_)
        );
        // The next acquire of its own thread would wait for a lock that is kept.
        let is_shared = is_exclusive && target.lock() != own_lock;
        let renewed = rng.u32(..3) == 0;
        let end = match rng.u32(..20) {
            // Likewise for a detached lock.
            0 | 1 if is_shared => GuardEnd::Detach,
            2..8 => GuardEnd::Drop,
            8 if !is_calm => GuardEnd::Keep,
            _ => GuardEnd::Release,
        };
        let wait = match rng.u32(..10) {
            0..3 => WaitPlan::Try,
            3..7 => WaitPlan::For(between(rng, ms(10), ms(3_000))),
            _ if target.is_never_free() => WaitPlan::Try,
            _ => WaitPlan::Policy,
        };
        let cancels = rng.u32(..8) == 0;
        let ttl = self.ttl(rng);
        let warned = rng.u32(..3) == 0;
        AcquirePlan {
            ttl,
            margin: warned.then(|| between(rng, ttl / 20, ttl / 2)),
            wait,
            fenced: !matches!(target, Target::Read(_) | Target::Permit { .. }) && rng.u32(..3) == 0,
            renewed,
            max_renewal: (renewed && !is_calm && rng.u32(..5) == 0).then(|| self.max_ttl * 2),
            min_hold: (is_shared && rng.u32(..6) == 0).then(|| self.min_hold(ttl, rng)),
            told: rng.u32(..3) == 0,
            cancel_after: cancels.then(|| between(rng, ms(0), ms(200))),
            during: self.acts(&target, renewed, rng),
            target,
            end,
        }
    }

    /// Draws a minimum time. It ends long before the servers are looked at for what is left, or
    /// with the TTL.
    fn min_hold(&self, ttl: Duration, rng: &mut Rng) -> Duration {
        match self.theme {
            Theme::Calm | Theme::Faults => between(rng, ms(1), ms(500)),
            Theme::Expiry => between(rng, ms(1), ttl),
        }
    }

    fn acts(&self, target: &Target, renewed: bool, rng: &mut Rng) -> Vec<Act> {
        let longest = match self.theme {
            // A renewed lock outlives its TTL.
            Theme::Calm if renewed && rng.u32(..8) == 0 => 2 * self.max_ttl,
            Theme::Calm | Theme::Faults => ms(300),
            Theme::Expiry => self.max_ttl * 3 / 2,
        };
        let mut acts = Vec::new();
        for _ in 0..rng.usize(..=3) {
            acts.push(match rng.u32(..10) {
                0..5 => Act::Hold(between(rng, ms(0), longest)),
                5 | 6 => Act::Check,
                7 => Act::Extend(self.ttl(rng)),
                8 if renewed && self.theme != Theme::Calm => Act::StopRenewal,
                9 if matches!(target, Target::Write(_)) => Act::Downgrade,
                _ => Act::Watch(between(rng, ms(0), longest / 2)),
            });
        }
        acts
    }
}
