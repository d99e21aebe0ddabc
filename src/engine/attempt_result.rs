//! How an attempt can fail.

use std::sync::Arc;
use std::time::Duration;

use crate::local::entry::AccessMode;
use crate::protocol::lease::{Lease, NEVER_EXPIRES_AFTER};
use crate::protocol::quorum::{Split, Tally};
use crate::transport::round::RoundOutcome;

/// How an attempt ended that was not won.
pub(crate) enum AttemptFailure {
    Contended(Contention),
    Unavailable(Tally),
    /// Granted too late, or no verdict within the time in which a grant would have been of use.
    TooSlow {
        /// Whether a quorum granted it.
        won: bool,
        /// As [`max_hold_left`](AttemptFailure::max_hold_left).
        max_hold_left: Option<Duration>,
    },
}

/// What an attempt has come to.
pub(crate) type AttemptResult = Result<Arc<Lease>, AttemptFailure>;

impl AttemptFailure {
    /// How long somebody may hold the lock who refused it on a node, be it the only one that answered; for ever where that is
    /// not known.
    pub(crate) fn max_hold_left(&self) -> Option<Duration> {
        match self {
            AttemptFailure::Contended(met) => {
                Some(met.max_hold_left.unwrap_or(NEVER_EXPIRES_AFTER))
            }
            AttemptFailure::Unavailable(tally) => max_hold_left(tally),
            AttemptFailure::TooSlow {
                max_hold_left: held_for,
                ..
            } => *held_for,
        }
    }
}

pub(crate) fn max_hold_left(tally: &Tally) -> Option<Duration> {
    (tally.refused().len() > 0).then(|| tally.max_hold_left().unwrap_or(NEVER_EXPIRES_AFTER))
}

/// Held by others.
#[derive(Clone, Debug)]
pub(crate) struct Contention {
    /// How most of the nodes that refused say that it is held.
    pub(crate) held_by: AccessMode,
    /// Free again after so long, if that is known.
    pub(crate) free_in: Option<Duration>,
    /// Some nodes had granted it: others want it at the same time, and they may all lose.
    pub(crate) split_vote: Option<Split>,
    /// Only one node was asked, and it refused.
    pub(crate) single_node: bool,
    /// How long those may hold it at the longest who refused, if that is known.
    pub(crate) max_hold_left: Option<Duration>,
    /// Which of the lock's keys are held, where it has several.
    pub(crate) blocking_keys: Vec<usize>,
}

impl Contention {
    /// What those say who refused; `single_node` says that only one was asked.
    pub(crate) fn of(
        outcome: RoundOutcome,
        single_node: bool,
        split_vote: Option<Split>,
    ) -> Contention {
        let tally = outcome.tally;
        Contention {
            held_by: match tally.held_by_readers() {
                true => AccessMode::Shared,
                false => AccessMode::Exclusive,
            },
            free_in: match single_node {
                true => tally.max_hold_left(),
                false => tally.free_in(),
            },
            split_vote,
            single_node,
            max_hold_left: tally.max_hold_left(),
            blocking_keys: outcome.blocking_keys,
        }
    }
}
