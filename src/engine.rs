//! What an attempt, an extension, a downgrade and a release are.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use log::{debug, warn};

use crate::config::{OnDrop, Settings};
use crate::error::Error;
use crate::inbox::Inbox;
use crate::key::{Key, Ttl};
use crate::lease::{Lease, Look};
use crate::local::{Gate, Pass};
use crate::quorum::{NodeSet, Tally, Verdict};
use crate::retry::RetryPolicy;
use crate::round::Nodes;
use crate::script::{Request, Verb};
use crate::time::{self, Budget, Limit};

pub(crate) use self::acquire::{Patience, Wish, access, contended};

mod acquire;
mod attempt;

/// The interval in which a writer that waits says so again, where the policy's `max_delay` is not shorter. It is also how
/// long a turn of the readers takes; a writer's place at the gate has three times as long.
const REFRESH: Duration = Duration::from_millis(100);
/// An interval below this would be over before a slow round is.
const LEAST_REFRESH: Duration = Duration::from_millis(10);

/// The nodes, the gate before them, and what they have in common. Guards and handles share it.
pub(crate) struct Engine {
    settings: Settings,
    gate: Arc<Gate>,
    nodes: Arc<Nodes>,
    /// The policy for read-write locks: with pauses so short that no place at the gate lapses and no turn is missed.
    rw_retry: RetryPolicy,
    refresh: Duration,
    /// Since when no quorum has answered, in [`time::micros`]; 0 while one does.
    outage_since: AtomicU64,
    drop_failures: AtomicU64,
}

impl Engine {
    pub(crate) fn new(settings: Settings, nodes: Nodes) -> Engine {
        let policy = &settings.retry;
        let refresh = policy.max_delay.clamp(LEAST_REFRESH, REFRESH);
        let rw_retry = RetryPolicy {
            initial_delay: policy.initial_delay.min(refresh / 2),
            max_delay: policy.max_delay.min(refresh / 2),
            ..policy.clone()
        };
        Engine {
            rw_retry,
            refresh,
            settings,
            gate: Arc::new(Gate::new()),
            nodes: Arc::new(nodes),
            outage_since: AtomicU64::new(0),
            drop_failures: AtomicU64::new(0),
        }
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    #[cfg(all(test, not(loom)))]
    pub(crate) fn nodes_up(&self) -> usize {
        self.nodes.up()
    }

    pub(crate) fn drop_failures(&self) -> u64 {
        self.drop_failures.load(Ordering::Relaxed)
    }

    /// Whether this process is a child that was forked off the one with the lanes' threads.
    pub(crate) fn is_forked(&self) -> bool {
        self.gate.is_forked()
    }

    /// Keeps count of how long no quorum has answered: from the first round of a row to the one that found one.
    fn note_quorum(&self, seen: bool, start: Instant) {
        let (old, new) = match seen {
            true => (self.outage_since.load(Ordering::Relaxed), 0),
            false => (0, time::micros(start)),
        };
        if old != new {
            // Where it fails another round, which overlaps with this one, has said so already.
            let _ =
                self.outage_since
                    .compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Since when no quorum has answered; long ago while one does.
    fn outage_since(&self) -> Option<Instant> {
        time::instant(self.outage_since.load(Ordering::Relaxed))
    }

    /// The time that the nodes have for a round that begins at `start`.
    fn node_budget(&self, start: Instant) -> Budget {
        Budget::new(
            Limit::Node,
            time::deadline(start, self.settings.node_timeout),
        )
    }

    /// Extends a lease that is held by `ttl` from now, on a quorum of nodes (rule S5).
    ///
    /// Blocks for `node_timeout` at most, after extensions of other threads.
    pub(crate) fn extend(&self, lease: &Arc<Lease>, ttl: Ttl) -> Result<(), Error> {
        if self.is_forked() {
            return Err(Error::Closed);
        }
        let _turn = lease.begin_extension();
        let expiry = self.still_held(lease, lease.look(time::now()))?;
        let start = time::now();
        let budget = self.node_budget(start).and(Limit::Validity, Some(expiry));
        let request = Request::new(Verb::Extend, lease, ttl.millis());
        let inbox = Arc::new(Inbox::new());
        let outcome = self.nodes.ask(&request, &inbox).outcome(budget);
        match outcome.verdict {
            Verdict::Won => {
                let until = time::deadline(start, time::validity(ttl.duration()));
                let look = lease.prolong(time::now(), until.unwrap_or(expiry));
                self.still_held(lease, look)?;
                // Only now, with a quorum that is ours, may it come back where it was lost.
                self.nodes.put_back(lease, ttl.millis(), outcome.absent);
                Ok(())
            }
            Verdict::Refused => Err(self.not_ours(lease)),
            Verdict::Unavailable => {
                self.still_held(lease, lease.look(time::now()))?;
                Err(self.insufficient(outcome.tally))
            }
        }
    }

    /// The end of a lease, from `release()` and from `Drop` alike. Its slot is free for the next thread as soon as
    /// the release is queued: whatever that thread asks comes behind it in every lane.
    ///
    /// Blocks for `node_timeout` at most; with `HandOff` not at all.
    pub(crate) fn release(
        &self,
        lease: &Arc<Lease>,
        pass: &Pass,
        on_drop: OnDrop,
    ) -> Result<(), Error> {
        let now = time::now();
        self.still_held(lease, lease.begin_release(now))?;
        let mut request = Request::new(Verb::Release, lease, 0);
        request.refresh = self.refresh;
        if on_drop == OnDrop::HandOff {
            self.nodes.tell(&request, lease.asked());
            lease.end();
            pass.leave();
            return Ok(());
        }
        let inbox = Arc::new(Inbox::new());
        let round = self.nodes.ask(&request, &inbox);
        pass.leave();
        let outcome = round.outcome(self.node_budget(now));
        lease.end();
        match outcome.verdict {
            Verdict::Won => Ok(()),
            Verdict::Refused => Err(Error::LockLost),
            Verdict::Unavailable => Err(self.insufficient(outcome.tally)),
        }
    }

    /// Turns a write lease that is held into a read lease with the same token and the same expiry (rule S10).
    ///
    /// Nodes that do not answer go on keeping the token as a writer's, which keeps out all that a reader's does and more:
    /// the read lock is held all the same, and a later extension or release finds the token in either form.
    ///
    /// Blocks for `node_timeout` at most.
    pub(crate) fn downgrade(&self, lease: &Arc<Lease>) -> Result<(), Error> {
        let _turn = lease.begin_extension();
        let now = time::now();
        let expiry = self.still_held(lease, lease.look(now))?;
        // First of all, so that whoever releases it from now on, for whatever reason, looks for both forms.
        lease.downgrade();
        let left = expiry.saturating_duration_since(now).as_millis();
        let mut request = Request::new(Verb::Downgrade, lease, u64::try_from(left).unwrap_or(0));
        request.refresh = self.refresh;
        let inbox = Arc::new(Inbox::new());
        let budget = self.node_budget(now).and(Limit::Validity, Some(expiry));
        let outcome = self.nodes.ask(&request, &inbox).outcome(budget);
        match outcome.verdict {
            Verdict::Refused => Err(self.not_ours(lease)),
            Verdict::Won | Verdict::Unavailable => {
                self.still_held(lease, lease.look(time::now())).map(|_| ())
            }
        }
    }

    /// The nodes say that a lease is not ours: it is lost.
    fn not_ours(&self, lease: &Arc<Lease>) -> Error {
        if lease.lose() {
            self.settle_loss(lease, "a quorum of nodes says that it is not ours");
        }
        Error::LockLost
    }

    /// Looks at a lease; a loss that this look is the first to see is settled.
    pub(crate) fn look(&self, lease: &Arc<Lease>) -> Look {
        let look = lease.look(time::now());
        // In a forked child there are no lanes that could release anything.
        if look == Look::JustLost && !self.is_forked() {
            self.settle_loss(lease, "its lease ended");
        }
        look
    }

    /// The expiry, if a look found the lease held; a loss that the look was the first to see is settled.
    fn still_held(&self, lease: &Arc<Lease>, look: Look) -> Result<Instant, Error> {
        match look {
            Look::Held(expiry) => Ok(expiry),
            Look::JustLost => {
                self.settle_loss(lease, "its lease ended");
                Err(Error::LockLost)
            }
            Look::Lost | Look::Trying | Look::Ended => Err(Error::LockLost),
        }
    }

    /// What is owed by whoever made a lease lost (rule S7): it is told, its token is released, and the first
    /// thread that waits for its slot may take it.
    fn settle_loss(&self, lease: &Arc<Lease>, why: &str) {
        warn!("{:?}: lock lost: {why}", lease.key());
        self.nodes.release_behind(lease, NodeSet::default());
        self.gate.poke(lease.key());
    }

    fn insufficient(&self, tally: Tally) -> Error {
        tally.insufficient(|node| self.nodes.name(node).to_owned())
    }

    /// What a guard's `Drop` could not do goes here, since nobody is there to be told.
    pub(crate) fn note_failed_drop(&self, key: &Key, error: &Error) {
        self.drop_failures.fetch_add(1, Ordering::Relaxed);
        warn!("{key:?}: release by drop failed: {error}");
    }

    /// Closes the gate, waits for live guards, drains the lanes and ends their threads; at most for `grace`, and
    /// `node_timeout` for the draining. `false` if a guard was still alive or a thread did not end in time.
    pub(crate) fn shutdown(&self, grace: Duration) -> bool {
        if self.is_forked() {
            return false;
        }
        let end = time::deadline(time::now(), grace);
        self.gate.close();
        let alive = self.gate.wait_empty(end);
        for lease in &alive {
            if lease.lose() {
                // Nothing in use is ever deleted: its holder may not have looked yet.
                warn!("{:?}: lock lost: shut down, left to its TTL", lease.key());
            }
        }
        // Who is still asking undoes it yet: the lanes must be there for that.
        let settled = self.gate.wait_settled(self.soon());
        self.drain() && settled && alive.is_empty()
    }

    /// A `node_timeout` from now.
    fn soon(&self) -> Instant {
        let now = time::now();
        time::deadline(now, self.settings.node_timeout).unwrap_or(now)
    }

    /// Ends the lanes when they have served what is queued, within `node_timeout`.
    fn drain(&self) -> bool {
        let ended = self.nodes.disband(self.soon());
        if !ended {
            debug!("some lanes are busy connecting and end by themselves");
        }
        ended
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.is_forked() {
            // The lanes' channels may have been in use by threads that do not exist here: never touch them.
            std::mem::forget(Arc::clone(&self.nodes));
        } else {
            self.drain();
        }
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries((0..self.nodes.total()).map(|node| self.nodes.name(node)))
            .finish()
    }
}

#[cfg(all(test, not(loom)))]
mod cancel_tests;
#[cfg(all(test, not(loom)))]
mod fence_tests;
#[cfg(all(test, not(loom)))]
mod rw_tests;
#[cfg(all(test, not(loom)))]
mod tests;
