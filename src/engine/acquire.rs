//! How an acquire goes from one attempt to the next.

use std::sync::Arc;
use std::time::{Duration, Instant};

use log::debug;

use crate::cancel::{self, CancelToken};
use crate::config::OnDrop;
use crate::engine::Engine;
use crate::error::Error;
use crate::fence::{self, Fence};
use crate::inbox::{Ended, Inbox};
use crate::key::{Key, Token, Ttl};
use crate::lease::{Claim, Lease};
use crate::local::{Access, Pass, Refused};
use crate::quorum::{NodeSet, Tally, Verdict, quorum};
use crate::retry::RetryPolicy;
use crate::round::{Nodes, Outcome};
use crate::script::{Request, Verb};
use crate::time::{self, Budget, Limit};

/// So many attempts in a row that were too slow end an acquire.
const MOST_SLOW: u32 = 3;

/// Two writers that split the nodes have undone it after so many usual rounds.
const ROUNDS_OF_A_SPLIT: u32 = 4;

/// What an acquire is to take.
#[derive(Debug)]
pub(crate) struct Wish {
    pub(crate) key: Key,
    pub(crate) claim: Claim,
    pub(crate) ttl: Ttl,
    /// Whether it is to have a fencing token. Without meaning for readers.
    pub(crate) fenced: bool,
    /// What can end it from outside.
    pub(crate) cancel: Option<CancelToken>,
}

/// How long an acquire is ready to try.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    pub(crate) end: Option<Instant>,
    pub(crate) attempts: Option<u32>,
}

impl Patience {
    /// Whether this is over after so many attempts.
    fn is_over(&self, attempts: u32) -> bool {
        self.attempts.is_some_and(|most| attempts >= most)
            || self.end.is_some_and(|end| end <= time::now())
    }
}

/// How an attempt ended that was not won.
enum Miss {
    Contended(Contention),
    Unavailable(Tally),
    /// Granted too late, or no verdict within the time in which a grant would have been of use.
    Slow,
}

/// Held by others.
#[derive(Clone, Copy, Debug)]
struct Contention {
    /// How most of the nodes that refused say that it is held.
    by: Access,
    /// Free again after so long, if that is known.
    free: Option<Duration>,
    /// Some nodes had granted it: others want it at the same time, and they may all lose.
    split: bool,
}

/// What an attempt leaves on nodes that refuse it, to say that somebody waits.
enum Trace<'a> {
    None,
    /// A reader's mark: the next writer that releases gives readers a turn.
    Mark,
    /// A writer's place at the gate.
    Place(&'a Arc<Lease>),
}

/// A writer's place at the gate, under one token for all its attempts. It is left however the acquire ends.
struct Place<'a> {
    nodes: &'a Nodes,
    lease: Arc<Lease>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.nodes.release_behind(&self.lease, NodeSet::default());
    }
}

/// The pauses between the attempts of one acquire.
#[derive(Default)]
struct Pauses {
    retries: u32,
    /// How many attempts in a row have split the nodes.
    splits: u32,
}

impl Pauses {
    /// As the policy says. Only a writer that has split the nodes with another waits for some round trips, which the
    /// other's undo takes, and with jitter, so that one of them is first; longer each time, up to the policy's longest
    /// delay.
    fn next(&mut self, engine: &Engine, claim: Claim, met: Option<Contention>) -> Duration {
        let policy = engine.retry(claim);
        self.retries = self.retries.saturating_add(1);
        if claim != Claim::Write || met.is_none_or(|met| !met.split) {
            self.splits = 0;
            return policy.delay(self.retries, rand::random());
        }
        self.splits = self.splits.saturating_add(1);
        let rounds = ROUNDS_OF_A_SPLIT << self.splits.min(8);
        let most = engine.nodes.usual_round().saturating_mul(rounds);
        most.min(policy.max_delay).mul_f64(rand::random())
    }
}

/// Whether a claim shares the slot of its key.
pub(crate) fn access(claim: Claim) -> Access {
    match claim {
        Claim::Read => Access::Shared,
        Claim::Exclusive | Claim::Write | Claim::Gate => Access::Alone,
    }
}

/// The error of one whose limit ran out while others held the lock.
pub(crate) fn contended(
    claim: Claim,
    by: Access,
    attempts: u32,
    waited: Duration,
    remaining: Option<Duration>,
) -> Error {
    match (claim, by) {
        (Claim::Read, _) => Error::WriteLockTimeout {
            attempts,
            waited,
            remaining,
        },
        (Claim::Write, Access::Alone) => Error::WriteLockHeld {
            attempts,
            waited,
            remaining,
        },
        (Claim::Write, Access::Shared) => Error::ReadersTimeout {
            attempts,
            waited,
            remaining,
        },
        (Claim::Exclusive | Claim::Gate, _) => Error::Contended {
            attempts,
            waited,
            remaining,
        },
    }
}

impl Engine {
    /// Takes a lock: the local slot first, then attempt after attempt until one is won or a limit ends it.
    ///
    /// Blocks until `patience` ends, and for the attempt that has begun by then.
    pub(crate) fn acquire(
        &self,
        wish: &Wish,
        patience: Patience,
    ) -> Result<(Arc<Lease>, Pass), Error> {
        let started = time::now();
        let waited = || time::now().saturating_duration_since(started);
        let inbox = cancel::inbox(wish.cancel.as_ref());
        if inbox.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let retry = self.retry(wish.claim);
        let span = patience.attempts.map(|attempts| retry.span(attempts));
        let queue_end = span.and_then(|span| time::deadline(started, span));
        let queue_end = time::earlier(patience.end, queue_end);
        let settle = |lease: &Arc<Lease>| self.settle_loss(lease, "its lease ended");
        let access = access(wish.claim);
        let pass = match self
            .gate
            .enter(&wish.key, access, &inbox, queue_end, settle)
        {
            Ok(pass) => pass,
            Err(Refused::Closed) => return Err(Error::Closed),
            Err(Refused::Cancelled) => return Err(Error::Cancelled),
            Err(Refused::Busy { by, remaining }) => {
                let waited = waited();
                let attempts = retry.attempts_within(waited);
                return Err(contended(wish.claim, by, attempts, waited, remaining));
            }
        };
        // What passed by in a queue counts, but there is one attempt left at the least.
        let most_in_queue = patience.attempts.map_or(u32::MAX, |most| most - 1);
        let mut attempts = retry.attempts_within(waited()).min(most_in_queue);
        let (mut slow, mut pauses) = (0, Pauses::default());
        let mut place: Option<Place<'_>> = None;
        loop {
            if self.gate.is_closed() {
                return Err(Error::Closed);
            }
            if inbox.is_cancelled() {
                return Err(Error::Cancelled);
            }
            attempts = attempts.saturating_add(1);
            let trace = match (wish.claim, &place) {
                (Claim::Read, _) if !patience.is_over(attempts) => Trace::Mark,
                (Claim::Write, Some(place)) => Trace::Place(&place.lease),
                _ => Trace::None,
            };
            let miss = match self.attempt(wish, &inbox, trace)? {
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
            if inbox.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let contention = match &miss {
                Miss::Contended(contention) => Some(*contention),
                _ => None,
            };
            slow = match miss {
                Miss::Slow => slow + 1,
                _ => 0,
            };
            let now = time::now();
            let outage_end = match miss {
                Miss::Unavailable(_) => self.outage_end(started),
                _ => None,
            };
            if patience.is_over(attempts)
                || outage_end.is_some_and(|end| end <= now)
                || slow == MOST_SLOW
            {
                return Err(self.give_up(miss, wish, attempts, waited()));
            }
            // A place at the gate is for writers who know that a quorum answers (rule S10).
            match miss {
                Miss::Unavailable(_) => place = None,
                Miss::Contended(_) if wish.claim == Claim::Write && place.is_none() => {
                    place = Some(self.place(&wish.key)?);
                }
                _ => {}
            }
            let mut budget = Budget::new(Limit::Wait, patience.end).and(Limit::Outage, outage_end);
            let has_time = queue_end.is_none_or(|end| end > now);
            if wish.claim == Claim::Read && has_time && contention.is_some() && pass.follow() {
                // Another reader of this process asks for us, too, and its grant wakes us.
                inbox.sleep(budget.and(Limit::Pause, queue_end).end());
                let slept = time::now().saturating_duration_since(now);
                attempts = attempts
                    .saturating_add(retry.attempts_within(slept))
                    .min(most_in_queue);
                continue;
            }
            let pause = pauses.next(self, wish.claim, contention);
            budget = budget.and(Limit::Pause, time::deadline(now, pause));
            if let Some(free) = contention.and_then(|contention| contention.free) {
                // A node counts in whole milliseconds and frees a key in the one after its last.
                let free = free.saturating_add(Duration::from_millis(1));
                budget = budget.and(Limit::Pause, time::deadline(now, free));
            }
            debug!(
                "{:?}: attempt {attempts} missed, next after {:?}",
                wish.key,
                budget.limit()
            );
            // A wake-up that came late for the slot is no reason to ask sooner; one to close or to cancel is.
            while inbox.sleep(budget.end()) && !self.gate.is_closed() && !inbox.is_cancelled() {}
        }
    }

    /// The policy for a claim.
    fn retry(&self, claim: Claim) -> &RetryPolicy {
        match claim {
            Claim::Exclusive => &self.settings.retry,
            Claim::Read | Claim::Write | Claim::Gate => &self.rw_retry,
        }
    }

    fn place(&self, key: &Key) -> Result<Place<'_>, Error> {
        let token = Token::fresh(self.settings.owner.as_deref())?;
        Ok(Place {
            nodes: &self.nodes,
            lease: Arc::new(Lease::new(key.clone(), token, Claim::Gate)),
        })
    }

    /// When an outage has lasted as long as the policy bears with, for a caller that came at `started`.
    fn outage_end(&self, started: Instant) -> Option<Instant> {
        let since = self.outage_since();
        let began = since.map_or(started, |since| since.max(started));
        time::deadline(began, self.settings.retry.max_outage)
    }

    fn give_up(&self, miss: Miss, wish: &Wish, attempts: u32, waited: Duration) -> Error {
        match miss {
            Miss::Contended(Contention { by, free, .. }) => {
                contended(wish.claim, by, attempts, waited, free)
            }
            Miss::Unavailable(tally) => self.insufficient(tally),
            Miss::Slow => Error::ValidityExhausted {
                attempts,
                ttl: wish.ttl.duration(),
            },
        }
    }

    /// Gives a lease that a quorum has granted its fencing token (rule S12), in a second round where the nodes' fences differ.
    /// Answers how the attempt has ended by that.
    fn number(
        &self,
        lease: &Arc<Lease>,
        granted: Outcome,
        inbox: &Arc<Inbox>,
        budget: Budget,
    ) -> Outcome {
        let numbers = granted.numbers.iter().map(|(_, number)| *number).collect();
        let mut raise = Request::new(Verb::Raise, lease, 0);
        match fence::fence(numbers, quorum(self.nodes.total())) {
            Some(Fence::Agreed(token)) => {
                raise.fence = Some(token);
                let mut behind = NodeSet::default();
                let lower = granted.numbers.iter().filter(|(_, number)| *number < token);
                lower.for_each(|(node, _)| behind.insert(*node));
                self.nodes.tell(&raise, behind); // so that they agree next time
                lease.number(token);
                granted
            }
            Some(Fence::Raise(token)) => {
                raise.fence = Some(token);
                lease.number(token);
                self.nodes.ask(&raise, inbox).outcome(budget)
            }
            None => granted,
        }
    }

    /// One attempt with a fresh token: won and valid, or undone on every node that may have granted it.
    ///
    /// Blocks for `node_timeout` at most, and no longer than a grant would be of use.
    fn attempt(
        &self,
        wish: &Wish,
        inbox: &Arc<Inbox>,
        trace: Trace<'_>,
    ) -> Result<Result<Arc<Lease>, Miss>, Error> {
        let ttl = wish.ttl;
        let token = Token::fresh(self.settings.owner.as_deref())?;
        let lease = Arc::new(Lease::new(wish.key.clone(), token, wish.claim));
        let least = ttl.least_validity(self.settings.min_validity);
        let validity = time::validity(ttl.duration());
        let start = time::now();
        let budget = self
            .node_budget(start)
            .and(Limit::Validity, time::deadline(start, validity - least));
        let mut request = Request::new(Verb::Take, &lease, ttl.millis());
        if !matches!(trace, Trace::None) {
            request.refresh = self.refresh;
        }
        if let Trace::Place(place) = trace {
            request.place = Some(Arc::clone(place));
        }
        if wish.fenced && wish.claim != Claim::Read {
            request.fence = Some(0);
        }
        let mut outcome = self.nodes.ask(&request, inbox).outcome(budget);
        let refused = outcome.tally.refused();
        if outcome.verdict == Verdict::Won && request.fence.is_some() {
            outcome = self.number(&lease, outcome, inbox, budget);
        }
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
            Verdict::Refused => Miss::Contended(Contention {
                by: match outcome.tally.held_by_readers() {
                    true => Access::Shared,
                    false => Access::Alone,
                },
                free: outcome.tally.free_in(),
                split: outcome.tally.granted().len() > 0,
            }),
            Verdict::Unavailable
                if outcome.ended == Ended::TimedOut && budget.limit() == Limit::Validity =>
            {
                Miss::Slow
            }
            Verdict::Unavailable => Miss::Unavailable(outcome.tally),
        };
        // Who is cancelled has not waited to see whether there is one.
        if outcome.ended != Ended::Cancelled {
            self.note_quorum(quorum_seen, start);
        }
        lease.abandon();
        // Nodes that refused have nothing of it. All others may have, also those that answered with an error (S4).
        self.nodes.release_behind(&lease, refused);
        Ok(Err(miss))
    }
}
