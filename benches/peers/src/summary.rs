//! Summaries of the turns of one cell, and ratios to redguard.

use crate::peers::Peer;
use crate::runner::Sample;
use crate::schedule::Measured;
use crate::stats::spread;

/// Goal for the ratio of pairs to a peer's.
pub(crate) const PAIRS: f64 = 2.0;

/// Medians over the turns; for maxima and hung threads the greatest.
pub(crate) struct Summary {
    /// Minimum, median and maximum.
    pub(crate) rate: [f64; 3],
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
    pub(crate) longest: f64,
    pub(crate) failed: f64,
    pub(crate) hung: f64,
}

impl Summary {
    pub(crate) fn of(samples: &[Sample]) -> Summary {
        let over = |value: fn(&Sample) -> f64| spread(samples.iter().map(value));
        Summary {
            rate: over(|sample| sample.rate),
            p50: over(|sample| sample.p50)[1],
            p99: over(|sample| sample.p99)[1],
            max: over(|sample| sample.max)[2],
            longest: over(|sample| sample.longest)[1],
            failed: over(|sample| sample.failed)[1],
            hung: over(|sample| sample.hung)[2],
        }
    }

    /// Returns why there are no figures.
    pub(crate) fn word(&self) -> Option<&'static str> {
        match self.rate[1] > 0.0 {
            true => None,
            false if self.hung > 0.0 => Some("hangs"),
            false => Some("fails"),
        }
    }
}

/// Ratios of redguard's figures to a peer's: minimum, median and maximum of the turns' ratios.
pub(crate) struct Ratios {
    pub(crate) pairs: [f64; 3],
    pub(crate) p99: [f64; 3],
    pub(crate) longest: [f64; 3],
}

impl Ratios {
    /// Returns the ratios to `peer`; `None` for redguard itself.
    pub(crate) fn of(measured: &Measured, peer: Peer) -> Option<Ratios> {
        let ours = measured.samples(Peer::Redguard)?;
        let theirs = measured.samples(peer).filter(|_| peer != Peer::Redguard)?;
        let over = |ratio: fn(&Sample, &Sample) -> f64| {
            let turns = ours.iter().zip(theirs);
            spread(turns.map(|(ours, theirs)| ratio(ours, theirs)))
        };
        Some(Ratios {
            pairs: over(|ours, theirs| ours.rate / theirs.rate),
            // Without a lock there is no time to compare.
            p99: over(
                |ours, theirs| match theirs.p99.is_nan() && ours.rate > 0.0 {
                    true => 0.0,
                    false => ours.p99 / theirs.p99,
                },
            ),
            longest: over(|ours, theirs| ours.longest / theirs.longest),
        })
    }

    pub(crate) fn enough_pairs(&self) -> bool {
        self.pairs[1] >= PAIRS
    }

    pub(crate) fn no_longer_p99(&self) -> bool {
        self.p99[1] <= 1.0
    }

    /// Returns whether no thread waits longer than with the peer: p99 hides long waits where a few
    /// threads acquire the lock repeatedly.
    pub(crate) fn no_longer_wait(&self) -> bool {
        self.longest[1] <= 1.0
    }
}

/// Returns whether the goals apply to this peer. Baselines are not peers.
pub(crate) fn is_judged(peer: Peer) -> bool {
    !matches!(peer, Peer::Redguard | Peer::Baseline)
}
