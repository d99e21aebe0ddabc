//! The load that decides how a caller sends and how it waits: the number of active callers, and the
//! duration of a round.
//!
//! A wrong estimate costs time only: no decision about a lock depends on it.

use std::time::{Duration, Instant};

use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::sync::threads;
use crate::time::clock;

/// Counts the callers that have a round in progress.
///
/// A single caller sends directly on connections whose queue is empty. With several, requests go
/// through the workers, which pipeline them.
#[derive(Debug, Default)]
pub(crate) struct ActiveCallers {
    count: AtomicUsize,
    /// When two callers were last active at once, by [`clock::to_micros`].
    last_shared: AtomicU64,
}

impl ActiveCallers {
    /// How long after [`last_shared`](ActiveCallers::last_shared) no caller counts as single, in
    /// µs: callers that met once are likely to meet again.
    const SHARED_WINDOW_US: u64 = 1000;

    /// Counts a caller as active until the returned guard is dropped.
    pub(crate) fn join(&self, now: Instant) -> CallerGuard<'_> {
        let others = self.count.fetch_add(1, Ordering::Relaxed);
        let now = clock::to_micros(now);
        if others > 0 {
            self.last_shared.store(now, Ordering::Relaxed);
        }
        let last_shared = self.last_shared.load(Ordering::Relaxed);
        CallerGuard {
            callers: Some(self),
            is_only_caller: now > last_shared + ActiveCallers::SHARED_WINDOW_US,
        }
    }

    /// Returns a guard for a request without a wait, which counts nobody: its caller may have a
    /// round in progress, and would count as a second caller beside itself.
    pub(super) fn uncounted(&self, now: Instant) -> CallerGuard<'static> {
        let last_shared = self.last_shared.load(Ordering::Relaxed);
        let is_past = clock::to_micros(now) > last_shared + ActiveCallers::SHARED_WINDOW_US;
        CallerGuard {
            callers: None,
            is_only_caller: is_past && self.count.load(Ordering::Relaxed) <= 1,
        }
    }
}

/// The registration of one active caller.
#[derive(Debug)]
pub(crate) struct CallerGuard<'a> {
    callers: Option<&'a ActiveCallers>,
    is_only_caller: bool,
}

impl CallerGuard<'_> {
    /// For handoffs: the other thread is blocked meanwhile, so this caller does not count as a
    /// second one and may send directly.
    pub(crate) const UNCOUNTED: CallerGuard<'static> = CallerGuard {
        callers: None,
        is_only_caller: true,
    };

    /// Returns whether the caller sends directly on connections whose queue is empty: it is the
    /// only one, and rounds are short enough to poll for the replies.
    pub(super) fn uses_direct_send(&self, rtt: &RttEstimate, now: Instant) -> bool {
        self.is_only_caller && rtt.spin_deadline(now, 0).is_some()
    }

    /// Returns whether the caller counts as active.
    pub(super) fn is_counted(&self) -> bool {
        self.callers.is_some()
    }

    /// Returns the number of active callers per core; zero if this one is alone.
    pub(super) fn callers_per_core(&self) -> u32 {
        let count = self.callers.map_or(0, |c| c.count.load(Ordering::Relaxed));
        match u32::try_from(count) {
            Ok(0 | 1) => 0,
            Ok(count) => count / threads::cores(),
            Err(_) => u32::MAX / threads::cores(),
        }
    }
}

impl Drop for CallerGuard<'_> {
    fn drop(&mut self) {
        if let Some(callers) = self.callers {
            callers.count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The duration of rounds.
#[derive(Debug)]
pub(crate) struct RttEstimate {
    /// A moving average in µs.
    average: AtomicU64,
    /// The shortest time in µs in which a quorum has replied: a round trip to the nearest quorum
    /// takes no longer.
    shortest: AtomicU64,
}

impl Default for RttEstimate {
    fn default() -> RttEstimate {
        RttEstimate {
            average: AtomicU64::new(0),
            shortest: AtomicU64::new(u64::MAX),
        }
    }
}

impl RttEstimate {
    /// Above this average a caller sleeps at once instead of yielding first.
    const SPIN_THRESHOLD: Duration = Duration::from_micros(500);
    /// How long a caller yields the processor before it sleeps.
    const SPIN_TIME: Duration = Duration::from_micros(200);
    /// About the processor time to put one caller to sleep and to wake it. To yield, beyond
    /// [`SPIN_TIME`](RttEstimate::SPIN_TIME), for as long as the sleep of all active callers of a
    /// core would take costs about twice as much as the better of both at most (Karlin, Li, Manasse
    /// and Owicki, "Empirical studies of competitive spinning for a shared-memory multiprocessor",
    /// SOSP 1991).
    const TIME_PER_CALLER: Duration = Duration::from_micros(8);
    /// The number of callers per core from which the times grow no further.
    const MAX_CALLERS: u32 = 500;
    /// A longer average is no typical round: it is that of a busy process, or of rounds that timed
    /// out.
    const MAX_TYPICAL_ROUND: Duration = Duration::from_millis(2);

    /// Returns until when a caller that begins to wait now yields. `None` if it sleeps at once.
    ///
    /// Among many callers both times are longer, if the nodes are near: a round is then long
    /// because the callers of a core run in turn.
    pub(super) fn spin_deadline(&self, now: Instant, callers_per_core: u32) -> Option<Instant> {
        let shortest = Duration::from_micros(self.shortest.load(Ordering::Relaxed));
        let added = match shortest < RttEstimate::SPIN_THRESHOLD {
            true => RttEstimate::added_by(callers_per_core),
            false => Duration::ZERO,
        };
        // Twice, because rounds in which the callers sleep are up to twice as long.
        let threshold = RttEstimate::SPIN_THRESHOLD + 2 * added;
        (self.average() < threshold).then(|| now + RttEstimate::SPIN_TIME + added)
    }

    /// Returns the time that the active callers of a core add to `SPIN_TIME`.
    fn added_by(callers_per_core: u32) -> Duration {
        callers_per_core.min(RttEstimate::MAX_CALLERS) * RttEstimate::TIME_PER_CALLER
    }

    /// Returns the duration of a typical round, at least [`SPIN_TIME`](RttEstimate::SPIN_TIME) and
    /// at most [`MAX_TYPICAL_ROUND`](RttEstimate::MAX_TYPICAL_ROUND).
    pub(super) fn typical_round(&self) -> Duration {
        let average = self.average();
        average.clamp(RttEstimate::SPIN_TIME, RttEstimate::MAX_TYPICAL_ROUND)
    }

    fn average(&self) -> Duration {
        Duration::from_micros(self.average.load(Ordering::Relaxed))
    }

    /// Adds the duration of a round to the average, with a weight of one eighth.
    pub(crate) fn record(&self, took: Duration, callers_per_core: u32) {
        // Capped, because a round that timed out says little about the next one. The cap is above
        // the threshold, so that such rounds end the yielding.
        let most = 4 * (RttEstimate::SPIN_THRESHOLD + RttEstimate::added_by(callers_per_core));
        let took = clock::whole_micros(took.min(most));
        let average = self.average.load(Ordering::Relaxed);
        self.average
            .store(average - average / 8 + took / 8, Ordering::Relaxed);
    }

    /// Records a time in which a quorum has replied, from before the first send.
    pub(super) fn record_quorum(&self, took: Duration) {
        let took = clock::whole_micros(took);
        if took < self.shortest.load(Ordering::Relaxed) {
            self.shortest.store(took, Ordering::Relaxed);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn caller_beside_another_is_not_the_only_one_until_the_window_ends() {
        let (callers, rtt, now) = (
            ActiveCallers::default(),
            RttEstimate::default(),
            clock::now(),
        );
        let first = callers.join(now);
        assert!(first.uses_direct_send(&rtt, now));
        let second = callers.join(now);
        assert!(!second.uses_direct_send(&rtt, now));
        drop((first, second));
        let window = Duration::from_micros(ActiveCallers::SHARED_WINDOW_US);
        let joins = |at| callers.join(at).uses_direct_send(&rtt, at);
        assert!(!joins(now + window) && joins(now + window + Duration::from_micros(1)));
        assert!(CallerGuard::UNCOUNTED.uses_direct_send(&rtt, now));
    }

    #[test]
    fn caller_that_sends_beside_its_own_round_stays_the_only_one() {
        let (callers, rtt, now) = (
            ActiveCallers::default(),
            RttEstimate::default(),
            clock::now(),
        );
        let round = callers.join(now);
        assert!(callers.uncounted(now).uses_direct_send(&rtt, now));
        drop(round);
        assert!(callers.join(now).uses_direct_send(&rtt, now));
        let _two = [callers.join(now), callers.join(now)];
        assert!(!callers.uncounted(now).uses_direct_send(&rtt, now));
    }

    #[test]
    fn rtt_estimate_of_slow_rounds_ends_spinning_until_rounds_are_short() {
        let (rtt, now) = (RttEstimate::default(), clock::now());
        assert_eq!(
            rtt.spin_deadline(now, 0),
            Some(now + RttEstimate::SPIN_TIME)
        );
        assert_eq!(rtt.typical_round(), RttEstimate::SPIN_TIME);
        (0..100).for_each(|_| rtt.record(Duration::from_secs(60), 0));
        assert!(rtt.spin_deadline(now, 0).is_none());
        assert_eq!(rtt.typical_round(), RttEstimate::MAX_TYPICAL_ROUND);
        (0..100).for_each(|_| rtt.record(Duration::from_micros(10), 0));
        assert!(rtt.spin_deadline(now, 0).is_some());
    }

    #[test]
    fn callers_per_core_are_zero_for_one_caller() {
        let callers = ActiveCallers::default();
        let alone = callers.join(clock::now());
        assert_eq!(alone.callers_per_core(), 0);
        let others = (1..100 * threads::cores()).map(|_| callers.join(clock::now()));
        let _others: Vec<_> = others.collect();
        assert_eq!(alone.callers_per_core(), 100);
        assert_eq!(CallerGuard::UNCOUNTED.callers_per_core(), 0);
    }

    #[test]
    fn caller_among_many_yields_for_longer() {
        let (rtt, now) = (RttEstimate::default(), clock::now());
        // One short round says that the nodes are near; longer ones are usual among many callers.
        rtt.record_quorum(Duration::from_micros(50));
        (0..100).for_each(|_| rtt.record(Duration::from_millis(1), 100));
        assert!(rtt.spin_deadline(now, 0).is_none());
        let end = now + RttEstimate::SPIN_TIME + 100 * RttEstimate::TIME_PER_CALLER;
        assert_eq!(rtt.spin_deadline(now, 100), Some(end));
        let most = rtt.spin_deadline(now, u32::MAX);
        assert!(most.is_some_and(|end| end < now + Duration::from_millis(5)));
        (0..100).for_each(|_| rtt.record(Duration::from_secs(60), 100));
        assert!(rtt.spin_deadline(now, 100).is_none());
        assert_eq!(rtt.typical_round(), RttEstimate::MAX_TYPICAL_ROUND);
    }

    #[test]
    fn caller_among_many_sleeps_if_the_nodes_are_distant() {
        let (rtt, now) = (RttEstimate::default(), clock::now());
        rtt.record_quorum(Duration::from_millis(1));
        (0..100).for_each(|_| rtt.record(Duration::from_millis(1), 100));
        assert!(rtt.spin_deadline(now, 100).is_none());
    }
}
