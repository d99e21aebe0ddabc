//! What an attempt, an extension and a release are, and how an acquire goes from one attempt to the next.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use log::{debug, warn};

use crate::config::{OnDrop, Settings};
use crate::error::Error;
use crate::inbox::Inbox;
use crate::key::{Key, Token, Ttl};
use crate::lease::{Lease, Look};
use crate::local::{Entered, Gate, Pass, Refused};
use crate::quorum::{NodeSet, Tally, Verdict};
use crate::round::Nodes;
use crate::script::{Request, Verb};
use crate::time::{self, Budget, Limit};

/// So many attempts in a row that were too slow end an acquire.
const MOST_SLOW: u32 = 3;

/// The nodes, the gate before them, and what they have in common. Guards and handles share it.
pub(crate) struct Engine {
    settings: Settings,
    gate: Arc<Gate>,
    nodes: Arc<Nodes>,
    /// Since when no quorum has answered, in [`time::micros`]; 0 while one does.
    outage_since: AtomicU64,
    drop_failures: AtomicU64,
}

/// How long an acquire is ready to try.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    pub(crate) end: Option<Instant>,
    pub(crate) attempts: Option<u32>,
}

/// How an attempt ended that was not won.
enum Miss {
    /// Held by another; free again after so long, if that is known.
    Contended(Option<Duration>),
    Unavailable(Tally),
    /// Granted too late, or no verdict within the time in which a grant would have been of use.
    Slow,
}

impl Engine {
    pub(crate) fn new(settings: Settings, nodes: Nodes) -> Engine {
        Engine {
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

    /// Takes the lock of `key`: the local slot first, then attempt after attempt until one is won or a limit ends it.
    ///
    /// Blocks until `patience` ends, and for the attempt that has begun by then.
    pub(crate) fn acquire(
        &self,
        key: &Key,
        ttl: Ttl,
        patience: Patience,
    ) -> Result<(Arc<Lease>, Pass), Error> {
        let started = time::now();
        let inbox = Arc::new(Inbox::new());
        let retry = &self.settings.retry;
        let in_queue = patience.attempts.map(|attempts| retry.span(attempts));
        let queue_end = in_queue.and_then(|span| time::deadline(started, span));
        let entered = self
            .gate
            .enter(key, &inbox, time::earlier(patience.end, queue_end));
        let waited = || time::now().saturating_duration_since(started);
        let pass = match entered {
            Ok(Entered { pass, expired }) => {
                if let Some(lease) = expired {
                    self.settle_loss(&lease, "its lease ended");
                }
                pass
            }
            Err(Refused::Closed) => return Err(Error::Closed),
            Err(Refused::Busy(remaining)) => {
                let waited = waited();
                return Err(Error::Contended {
                    attempts: retry.attempts_within(waited),
                    waited,
                    remaining,
                });
            }
        };
        // The slot came in time, so there is one attempt left at the least.
        let most_in_queue = patience.attempts.map_or(u32::MAX, |most| most - 1);
        let mut attempts = retry.attempts_within(waited()).min(most_in_queue);
        let (mut retries, mut slow) = (0_u32, 0_u32);
        loop {
            if self.gate.is_closed() {
                return Err(Error::Closed);
            }
            attempts = attempts.saturating_add(1);
            let miss = match self.attempt(key, ttl, &inbox)? {
                Ok(lease) => {
                    if pass.bind(&lease) {
                        return Ok((lease, pass));
                    }
                    // Closed meanwhile, so given back. How that ends is nobody's business any more.
                    let _ = self.release(&lease, &pass, OnDrop::HandOff);
                    return Err(Error::Closed);
                }
                Err(miss) => miss,
            };
            if self.gate.is_closed() {
                return Err(Error::Closed);
            }
            slow = match miss {
                Miss::Slow => slow + 1,
                _ => 0,
            };
            let now = time::now();
            let outage_end = match miss {
                Miss::Unavailable(_) => self.outage_end(started),
                _ => None,
            };
            let over = patience.attempts.is_some_and(|most| attempts >= most)
                || patience.end.is_some_and(|end| end <= now)
                || outage_end.is_some_and(|end| end <= now)
                || slow == MOST_SLOW;
            if over {
                return Err(self.give_up(miss, attempts, ttl, waited()));
            }
            retries = retries.saturating_add(1);
            let delay = retry.delay(retries, rand::random());
            let mut budget = Budget::new(Limit::Pause, time::deadline(now, delay))
                .and(Limit::Wait, patience.end)
                .and(Limit::Outage, outage_end);
            if let Miss::Contended(Some(free)) = miss {
                // A node counts in whole milliseconds and frees a key in the one after its last.
                let free = free.saturating_add(Duration::from_millis(1));
                budget = budget.and(Limit::Pause, time::deadline(now, free));
            }
            debug!(
                "{key:?}: attempt {attempts} missed, next after {:?}",
                budget.limit()
            );
            // A wake-up that came late for the slot is no reason to ask sooner; one to close is.
            while inbox.sleep(budget.end()) && !self.gate.is_closed() {}
        }
    }

    /// When an outage has lasted as long as the policy bears with, for a caller that came at `started`.
    fn outage_end(&self, started: Instant) -> Option<Instant> {
        let since = self.outage_since.load(Ordering::Relaxed);
        let began = time::instant(since).map_or(started, |since| since.max(started));
        time::deadline(began, self.settings.retry.max_outage)
    }

    fn give_up(&self, miss: Miss, attempts: u32, ttl: Ttl, waited: Duration) -> Error {
        match miss {
            Miss::Contended(remaining) => Error::Contended {
                attempts,
                waited,
                remaining,
            },
            Miss::Unavailable(tally) => self.insufficient(tally),
            Miss::Slow => Error::ValidityExhausted {
                attempts,
                ttl: ttl.duration(),
            },
        }
    }

    /// One attempt with a fresh token: won and valid, or undone on every node that may have granted it.
    ///
    /// Blocks for `node_timeout` at most, and no longer than a grant would be of use.
    fn attempt(
        &self,
        key: &Key,
        ttl: Ttl,
        inbox: &Arc<Inbox>,
    ) -> Result<Result<Arc<Lease>, Miss>, Error> {
        let token = Token::fresh(self.settings.owner.as_deref())?;
        let lease = Arc::new(Lease::new(key.clone(), token));
        let least = ttl.least_validity(self.settings.min_validity);
        let validity = time::validity(ttl.duration());
        let start = time::now();
        let budget = self
            .node_budget(start)
            .and(Limit::Validity, time::deadline(start, validity - least));
        let request = Request {
            verb: Verb::Take,
            lease: Arc::clone(&lease),
            ttl: ttl.millis(),
        };
        let outcome = self.nodes.ask(&request, inbox).outcome(budget);
        let refused = outcome.tally.refused();
        let quorum_seen = outcome.verdict != Verdict::Unavailable;
        let miss = match outcome.verdict {
            Verdict::Won => {
                // The last step before the guard: is there still as much validity as was asked for? (rule S2)
                let end = time::deadline(start, validity);
                let left = |end: Instant| end.saturating_duration_since(time::now());
                match end {
                    Some(end) if left(end) >= least && lease.hold(end) => {
                        self.note_quorum(quorum_seen, start);
                        return Ok(Ok(lease));
                    }
                    _ => Miss::Slow,
                }
            }
            Verdict::Refused => Miss::Contended(outcome.tally.free_in()),
            Verdict::Unavailable if outcome.timed_out && budget.limit() == Limit::Validity => {
                Miss::Slow
            }
            Verdict::Unavailable => Miss::Unavailable(outcome.tally),
        };
        self.note_quorum(quorum_seen, start);
        lease.abandon();
        // Nodes that refused have nothing of it. All others may have, also those that answered with an error (S4).
        self.nodes.release_behind(&lease, refused);
        Ok(Err(miss))
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
        let request = Request {
            verb: Verb::Extend,
            lease: Arc::clone(lease),
            ttl: ttl.millis(),
        };
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
            Verdict::Refused => {
                if lease.lose() {
                    self.settle_loss(lease, "a quorum of nodes says that it is not ours");
                }
                Err(Error::LockLost)
            }
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
        if on_drop == OnDrop::HandOff {
            self.nodes.release_behind(lease, NodeSet::default());
            lease.end();
            pass.leave();
            return Ok(());
        }
        let request = Request {
            verb: Verb::Release,
            lease: Arc::clone(lease),
            ttl: 0,
        };
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
mod tests;
