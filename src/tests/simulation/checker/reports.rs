//! The reports of the callbacks of one acquire, and their times (S11, L5).
//!
//! | report | must come |
//! |---|---|
//! | endangered | within [`MAX_TELLING`] of the start of the danger, never before it, never twice in a row |
//! | safe | within [`MAX_TELLING`] of the extension, and only after *endangered* |
//! | lost | within [`MAX_TELLING`] of the loss, once, and as the last report |
//!
//! All times are those of the holder's process. A process that is paused or suspended reports
//! nothing, so its time counts from its last resume.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::loss_reason::LossReason;
use crate::protocol::endangered_lock::EndangeredLock;
use crate::protocol::lease::{Lease, LeaseState};
use crate::tests::simulation::checker::checker::{Checker, CheckerState};
use crate::tests::simulation::checker::hold::{Hold, HoldId, HoldState};
use crate::tests::simulation::plan::plan::AcquirePlan;
use crate::tests::simulation::world;

/// How long a report may take: the notifier runs among all other threads of a loaded machine.
pub(super) const MAX_TELLING: Duration = Duration::from_millis(100);

/// The reports on one acquire. Its callbacks hold it, and so does its hold.
#[derive(Debug)]
pub(crate) struct Reports {
    /// The margin of `on_endangered`, if it is asked for.
    margin: Option<Duration>,
    /// `on_lost` is asked for.
    asks_loss: bool,
    /// The lock is renewed, and no fault concerns it alone: a calm history never endangers it.
    is_renewed: bool,
    state: Mutex<Reported>,
}

#[derive(Debug, Default)]
struct Reported {
    losses: u32,
    /// The last report is that the lock is endangered.
    is_endangered: bool,
    /// When the guard was returned: earlier reports cannot be late.
    begun: Option<Instant>,
    /// When the checker first saw an extension that ended the reported danger.
    safe_since: Option<Instant>,
}

impl Reports {
    pub(crate) fn new(plan: &AcquirePlan) -> Arc<Reports> {
        let is_renewed = plan.renewed && plan.max_renewal.is_none();
        Arc::new(Reports {
            margin: plan.margin,
            asks_loss: plan.told,
            is_renewed: is_renewed && !plan.target.may_fail(),
            state: Mutex::default(),
        })
    }

    /// Returns whether the acquire asks for any report.
    pub(super) fn asks(&self) -> bool {
        self.asks_loss || self.margin.is_some()
    }

    /// Returns whether a loss that was to be told was not.
    pub(super) fn lacks_loss(&self) -> bool {
        self.asks_loss && self.state.lock().losses == 0
    }

    /// Records a call of `on_endangered`. Returns what is wrong with it.
    ///
    /// `begun` is since when the process could report, if that is known.
    fn record_danger(
        &self,
        (is_endangered, left): (bool, Duration),
        now: Instant,
        begun: Option<Instant>,
    ) -> Wrong {
        let margin = self.margin.unwrap_or_default();
        let mut state = self.state.lock();
        let was_endangered = std::mem::replace(&mut state.is_endangered, is_endangered);
        state.safe_since = None;
        if state.losses > 0 {
            return Some("danger told after the loss".to_owned());
        }
        if was_endangered == is_endangered {
            return Some(format!("danger told twice as {is_endangered}"));
        }
        if is_endangered && left > margin {
            return Some(format!("danger told early, {left:?} before the end"));
        }
        let begun = begun.filter(|_| is_endangered)?;
        let late = (margin - left).min(now.saturating_duration_since(begun));
        (late > MAX_TELLING).then(|| format!("danger told {late:?} late"))
    }

    /// Records a call of `on_lost`. Returns what is wrong with it.
    fn record_loss(&self, lease: &Lease, now: Instant, begun: Option<Instant>) -> Wrong {
        let mut state = self.state.lock();
        state.losses += 1;
        let (losses, reason) = (state.losses, lease.loss_reason(now));
        if losses > 1 || reason.is_none() {
            return Some(format!("loss told {losses} times, as {reason:?}"));
        }
        // The danger began after the guard was returned, and long enough before the loss.
        let margin = self.margin.filter(|margin| *margin > MAX_TELLING)?;
        let is_warned = state.is_endangered || reason != Some(LossReason::Expired);
        (!is_warned && begun? + margin < now).then(|| "loss told without a danger".to_owned())
    }

    /// Looks at a lease that its holder has not ended. Returns what is wrong with its reports.
    fn look(&self, hold: &Hold, now: Instant, begun: Instant) -> Wrong {
        let (lease, mut state) = (&hold.lease, self.state.lock());
        let is_late = |since: Instant| now > since.max(begun) + MAX_TELLING;
        match lease.peek(now) {
            LeaseState::Held(expiry) if self.margin.is_some() => {
                let start = lease.danger_start(expiry);
                if start <= now {
                    state.safe_since = None;
                    let is_untold = !state.is_endangered && is_late(start);
                    return is_untold.then(|| "danger is not told".to_owned());
                }
                if !state.is_endangered {
                    state.safe_since = None;
                    return None;
                }
                let since = *state.safe_since.get_or_insert(now);
                is_late(since).then(|| "end of the danger is not told".to_owned())
            }
            LeaseState::Lost => {
                let is_late = hold.lost_since.get().is_some_and(is_late);
                let is_untold = self.asks_loss && state.losses == 0 && is_late;
                is_untold.then(|| "loss is not told".to_owned())
            }
            _ => None,
        }
    }
}

/// The first fault, if there is one.
type Wrong = Option<String>;

impl Checker {
    /// Lets a hold be checked for its reports.
    pub(crate) fn expect_reports(&self, hold: HoldId, reports: &Arc<Reports>) {
        self.with(|state| {
            let hold = &mut state.holds[hold];
            reports.state.lock().begun = Some(world::clock_of(hold.process));
            hold.reports = Some(Arc::clone(reports));
        });
    }

    /// Records a call of `on_lost`.
    pub(crate) fn loss_told(&self, process: usize, reports: &Reports, lease: &Lease) {
        let wrong = self.with(|state| {
            state
                .coverage
                .count(match lease.loss_reason(world::clock_of(process)) {
                    Some(LossReason::NotOurs) => "losses of locks that are not ours",
                    _ => "losses told",
                });
            state.count_notice(lease);
            let begun = state.can_report_since(process, reports);
            reports.record_loss(lease, world::clock_of(process), begun)
        });
        if let Some(wrong) = wrong {
            self.report(format!("{wrong}: process {process}, {}", lease.keys()));
        }
    }

    /// Records a call of `on_endangered`.
    pub(crate) fn danger_told(&self, process: usize, reports: &Reports, lock: &EndangeredLock) {
        let wrong = self.with(|state| {
            let told = (lock.is_endangered(), lock.remaining());
            state.coverage.count(match told.0 {
                true => "dangers told",
                false => "ends of dangers told",
            });
            let begun = state.can_report_since(process, reports);
            if self.promises.is_calm && reports.is_renewed && told.0 {
                return Some("renewed lock is endangered in a calm history".to_owned());
            }
            reports.record_danger(told, world::clock_of(process), begun)
        });
        let key = lock.key();
        self.note(|| format!("process {process}: {lock:?}"));
        if let Some(wrong) = wrong {
            self.report(format!("{wrong}: process {process}, {key}"));
        }
    }

    /// Checks that each danger and each loss of a held lock was told in time.
    pub(crate) fn check_reports(&self) {
        let wrong = self.with(|state| {
            let held = state.holds.iter();
            let mut held = held.filter(|hold| hold.state == HoldState::Held && !hold.is_local);
            held.find_map(|hold| {
                let wrong = state.look_at(hold)?;
                Some(format!("{wrong}: {}", hold.describe()))
            })
        });
        if let Some(wrong) = wrong {
            self.report(wrong);
        }
    }
}

impl CheckerState {
    fn look_at(&self, hold: &Hold) -> Wrong {
        let now = world::clock_of(hold.process);
        if hold.lost_since.get().is_none() && hold.lease.peek(now) == LeaseState::Lost {
            hold.lost_since.set(Some(now));
        }
        let awake = |since| self.awake_since(hold.process, since);
        let lost_since = hold.lost_since.get().and_then(awake);
        let waits_since = hold.watched_since.zip(lost_since);
        if waits_since.is_some_and(|(watch, lost)| now > watch.max(lost) + MAX_TELLING) {
            return Some("watch waits for a lock that is lost".to_owned());
        }
        let reports = hold.reports.as_ref()?;
        let begun = self.can_report_since(hold.process, reports)?;
        reports.look(hold, now, begun)
    }

    /// Returns since when the process of an acquire could report; `None` before its guard is
    /// returned, and while the process is paused.
    fn can_report_since(&self, process: usize, reports: &Reports) -> Option<Instant> {
        let begun = reports.state.lock().begun?;
        self.awake_since(process, begun)
    }
}
