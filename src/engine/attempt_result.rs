//! How an attempt can fail.

use std::sync::Arc;
use std::time::Duration;

use crate::local::entry::Access;
use crate::protocol::lease::{FOR_EVER, Lease};
use crate::protocol::quorum::{Split, Tally};
use crate::transport::round::Outcome;

/// How an attempt ended that was not won.
pub(crate) enum Miss {
    Contended(Contention),
    Unavailable(Tally),
    /// Granted too late, or no verdict within the time in which a grant would have been of use.
    Slow {
        /// Whether a quorum granted it.
        won: bool,
        /// As [`held_for`](Miss::held_for).
        held_for: Option<Duration>,
    },
}

/// What an attempt has come to.
pub(crate) type Attempted = Result<Arc<Lease>, Miss>;

impl Miss {
    /// How long somebody may hold the lock who refused it on a node, be it the only one that answered; for ever where that is
    /// not known.
    pub(crate) fn held_for(&self) -> Option<Duration> {
        match self {
            Miss::Contended(met) => Some(met.held_for.unwrap_or(FOR_EVER)),
            Miss::Unavailable(tally) => held_for(tally),
            Miss::Slow { held_for, .. } => *held_for,
        }
    }
}

pub(crate) fn held_for(tally: &Tally) -> Option<Duration> {
    (tally.refused().len() > 0).then(|| tally.held_for().unwrap_or(FOR_EVER))
}

/// Held by others.
#[derive(Clone, Debug)]
pub(crate) struct Contention {
    /// How most of the nodes that refused say that it is held.
    pub(crate) by: Access,
    /// Free again after so long, if that is known.
    pub(crate) free: Option<Duration>,
    /// Some nodes had granted it: others want it at the same time, and they may all lose.
    pub(crate) split: Option<Split>,
    /// Only one node was asked, and it refused.
    pub(crate) by_one: bool,
    /// How long those may hold it at the longest who refused, if that is known.
    pub(crate) held_for: Option<Duration>,
    /// Which of the lock's keys are held, where it has several.
    pub(crate) in_the_way: Vec<usize>,
}

impl Contention {
    /// What those say who refused; `by_one` says that only one was asked.
    pub(crate) fn of(outcome: Outcome, by_one: bool, split: Option<Split>) -> Contention {
        let tally = outcome.tally;
        Contention {
            by: match tally.held_by_readers() {
                true => Access::Shared,
                false => Access::Alone,
            },
            free: match by_one {
                true => tally.held_for(),
                false => tally.free_in(),
            },
            split,
            by_one,
            held_for: tally.held_for(),
            in_the_way: outcome.in_the_way,
        }
    }
}
