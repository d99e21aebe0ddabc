//! What the turns of one cell come to, and how redguard compares.

use crate::peers::Peer;
use crate::runner::Sample;
use crate::scenarios::Setting;
use crate::schedule::Measured;
use crate::stats::spread;

/// So many times a peer's pairs are to be reached, where it has a load.
pub(crate) const PAIRS: f64 = 1.5;

/// Medians over the turns; of the maxima and of the threads that were given up the greatest.
pub(crate) struct Summary {
    /// The least, the median and the greatest.
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

    /// Why there are no figures.
    pub(crate) fn word(&self) -> Option<&'static str> {
        match self.rate[1] > 0.0 {
            true => None,
            false if self.hung > 0.0 => Some("hangs"),
            false => Some("fails"),
        }
    }
}

/// Ratios of redguard's figures to a peer's: the least, the median and the greatest of the turns'.
pub(crate) struct Ratios {
    pub(crate) pairs: [f64; 3],
    pub(crate) p99: [f64; 3],
    pub(crate) longest: [f64; 3],
}

impl Ratios {
    /// None for the one who is compared.
    pub(crate) fn of(measured: &Measured, peer: Peer) -> Option<Ratios> {
        let ours = measured.samples(Peer::Redguard)?;
        let theirs = measured.samples(peer).filter(|_| peer != Peer::Redguard)?;
        let over = |ratio: fn(&Sample, &Sample) -> f64| {
            let turns = ours.iter().zip(theirs);
            spread(turns.map(|(ours, theirs)| ratio(ours, theirs)))
        };
        Some(Ratios {
            pairs: over(|ours, theirs| ours.rate / theirs.rate),
            // Who has no lock has no time that could be shorter.
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

    /// No goal, but what a p99 does not say where a few threads get the lock again and again: of all that were taken, nearly
    /// all were then taken at once.
    pub(crate) fn no_longer_wait(&self) -> bool {
        self.longest[1] <= 1.0
    }
}

/// Whether the goals for peers speak of this one there. Floors are no peers.
pub(crate) fn is_judged(setting: Setting, peer: Peer) -> bool {
    setting.is_large() && !matches!(peer, Peer::Redguard | Peer::Floor)
}
