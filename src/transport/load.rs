//! How callers wait for a round, by how long rounds take and who else is in one: awake or asleep, and whether they ask idle nodes
//! themselves.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::time::clock;

/// How many callers have a round at present. One that is alone speaks to idle nodes himself; of several the requests go out
/// together, by the lanes' threads.
#[derive(Debug, Default)]
pub(crate) struct ActiveCallers {
    count: AtomicUsize,
    /// When somebody was not alone, in [`time::micros`].
    last_shared: AtomicU64,
}

impl ActiveCallers {
    /// For so many µs after that nobody counts as alone: they meet again.
    const SHARED_WINDOW_US: u64 = 1000;

    /// A caller comes, and stays until the answer is dropped.
    pub(crate) fn join(&self, now: Instant) -> CallerGuard<'_> {
        let (others, now) = (
            self.count.fetch_add(1, Ordering::Relaxed),
            clock::to_micros(now),
        );
        if others > 0 {
            self.last_shared.store(now, Ordering::Relaxed);
        }
        let alone =
            now > self.last_shared.load(Ordering::Relaxed) + ActiveCallers::SHARED_WINDOW_US;
        CallerGuard {
            company: Some(self),
            alone,
        }
    }
}

impl CallerGuard<'_> {
    /// One who hands something on, or is handed it: nobody has work meanwhile but the nodes, so it keeps no company, and asks idle
    /// nodes himself.
    pub(crate) const UNCOUNTED: CallerGuard<'static> = CallerGuard {
        company: None,
        alone: true,
    };

    pub(crate) fn is_only_caller(&self) -> bool {
        self.alone
    }
}

#[derive(Debug)]
pub(crate) struct CallerGuard<'a> {
    company: Option<&'a ActiveCallers>,
    alone: bool,
}

impl Drop for CallerGuard<'_> {
    fn drop(&mut self) {
        if let Some(company) = self.company {
            company.count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// How long rounds take at present, so that a caller knows whether going to sleep is worth it.
#[derive(Debug, Default)]
pub(crate) struct RttEstimate(AtomicU64);

impl RttEstimate {
    /// Where rounds take longer than this, a caller goes to sleep at once.
    const SPIN_THRESHOLD: Duration = Duration::from_micros(500);
    /// So long a caller yields before it goes to sleep.
    pub(crate) const SPIN_TIME: Duration = Duration::from_micros(200);

    /// Until when a caller that begins to wait now should only yield.
    pub(crate) fn spin_deadline(&self, now: Instant) -> Option<Instant> {
        (self.estimate() < RttEstimate::SPIN_THRESHOLD).then(|| now + RttEstimate::SPIN_TIME)
    }

    pub(crate) fn estimate(&self) -> Duration {
        Duration::from_micros(self.0.load(Ordering::Relaxed))
    }

    /// A round took so long: an eighth of it goes into what is usual.
    pub(crate) fn record(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let usual = self.0.load(Ordering::Relaxed);
        // A round that timed out says little about those to come.
        let took = took.min(4 * RttEstimate::SPIN_THRESHOLD.as_micros() as u64);
        self.0
            .store(usual - usual / 8 + took / 8, Ordering::Relaxed);
    }
}
