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
use crate::listener::Listener;
use crate::local::{Gate, Pass};
use crate::node::Connector;
use crate::quorum::{Tally, Verdict};
use crate::renewal::Renewal;
use crate::retry::RetryPolicy;
use crate::round::Nodes;
use crate::script::{Request, Verb};
use crate::time::{self, Budget, Limit};
use crate::watch::{self, Losses};

pub(crate) use self::acquire::{Care, Patience, Wish, access, contended};

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
    losses: Losses,
    renewal: Renewal,
    listener: Listener,
    /// Since when no quorum has answered, in [`time::micros`]; 0 while one does.
    outage_since: AtomicU64,
    drop_failures: AtomicU64,
}

impl Engine {
    /// # Errors
    /// `System` when there are no random bytes for a name.
    pub(crate) fn new(
        settings: Settings,
        nodes: Nodes,
        connectors: Arc<[Arc<dyn Connector>]>,
    ) -> Result<Engine, Error> {
        let policy = &settings.retry;
        let refresh = policy.max_delay.clamp(LEAST_REFRESH, REFRESH);
        let rw_retry = RetryPolicy {
            initial_delay: policy.initial_delay.min(refresh / 2),
            max_delay: policy.max_delay.min(refresh / 2),
            ..policy.clone()
        };
        let (gate, nodes) = (Arc::new(Gate::new()), Arc::new(nodes));
        let losses = Losses::new(&gate, &nodes);
        let lost = losses.clone();
        let lost = Arc::new(move |lease: &Arc<Lease>, why: &str| lost.settle(lease, why));
        Ok(Engine {
            rw_retry,
            refresh,
            listener: Listener::new(&settings.key_prefix, &nodes, connectors)?,
            renewal: Renewal::new(&nodes, settings.node_timeout, lost),
            losses,
            settings,
            gate,
            nodes,
            outage_since: AtomicU64::new(0),
            drop_failures: AtomicU64::new(0),
        })
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
        let start = time::now();
        let expiry = self.still_held(lease, lease.look(start))?;
        let until = time::deadline(start, time::validity(ttl.duration()));
        self.extend_until(lease, ttl.millis(), expiry, until.unwrap_or(expiry))
    }

    /// Asks the nodes whether a lease is still ours that may not be: after a suspend only they know (rule S11).
    ///
    /// Blocks as [`extend`](Engine::extend) does.
    pub(crate) fn make_sure(&self, lease: &Arc<Lease>) -> Result<(), Error> {
        if self.is_forked() {
            return Err(Error::Closed);
        }
        let _turn = lease.begin_extension();
        let start = time::now();
        let expiry = self.still_held(lease, lease.look(start))?;
        // So much that they keep it for as long as we think it held.
        let left = expiry.saturating_duration_since(start);
        let millis = u64::try_from((left + 2 * time::drift(left)).as_millis()).unwrap_or(u64::MAX);
        self.extend_until(lease, millis.saturating_add(1), expiry, expiry)
    }

    /// Extends a lease by `ttl` milliseconds, with which it is held until `until`.
    fn extend_until(
        &self,
        lease: &Arc<Lease>,
        ttl: u64,
        expiry: Instant,
        until: Instant,
    ) -> Result<(), Error> {
        let (start, lead) = (time::now(), time::lead());
        let budget = self.node_budget(start).and(Limit::Validity, Some(expiry));
        let request = Request::new(Verb::Extend, lease, ttl);
        let inbox = Arc::new(Inbox::new());
        let outcome = self.nodes.ask(&request, &inbox).outcome(budget);
        match outcome.verdict {
            Verdict::Won => {
                let look = lease.prolong(time::now(), until, lead);
                self.still_held(lease, look)?;
                // Only now, with a quorum that is ours, may it come back where it was lost.
                self.nodes.put_back(lease, ttl, outcome.absent);
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
        self.renewal.retire(lease);
        self.still_held(lease, lease.begin_release(now))?;
        self.losses.notifier().forget(lease);
        let mut request = Request::new(Verb::Release, lease, 0);
        request.refresh = self.refresh;
        request.publish = true;
        self.listener.releases(lease.key());
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
        self.listener.released(lease.key(), &outcome.heard);
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
        request.publish = true;
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
            self.losses
                .settle(lease, "a quorum of nodes says that it is not ours");
        }
        Error::LockLost
    }

    /// What is owed for a lost lease; a monitor of one has a clone.
    pub(crate) fn losses(&self) -> &Losses {
        &self.losses
    }

    /// A lease is not renewed any more, and ends at its expiry.
    pub(crate) fn stop_renewing(&self, lease: &Lease) {
        if !self.is_forked() {
            self.renewal.retire(lease);
        }
    }

    /// The expiry, if a look found the lease held; a loss that the look was the first to see is settled.
    fn still_held(&self, lease: &Arc<Lease>, look: Look) -> Result<Instant, Error> {
        match look {
            Look::Held(expiry) => Ok(expiry),
            Look::JustLost => {
                self.losses.settle(lease, watch::ENDED);
                Err(Error::LockLost)
            }
            Look::Lost | Look::Trying | Look::Ended => Err(Error::LockLost),
        }
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
                self.losses.notifier().lost(lease);
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

    /// Ends the threads when they have served what is queued, within `node_timeout`.
    fn drain(&self) -> bool {
        let end = self.soon();
        let helpers = self.renewal.stop(end) & self.listener.stop(end);
        let lanes = self.nodes.disband(end);
        if !lanes {
            debug!("some lanes are busy connecting and end by themselves");
        }
        let notifier = self.losses.notifier().stop(end);
        if !notifier {
            debug!("a callback for a lost lock is still running");
        }
        helpers && lanes && notifier
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
mod loss_tests;
#[cfg(all(test, not(loom)))]
mod rw_tests;
#[cfg(all(test, not(loom)))]
mod tests;
#[cfg(all(test, not(loom)))]
mod wake_tests;
