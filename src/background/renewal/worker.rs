//! The renewal thread: sends the renewals that are due and counts the replies as they come.
//!
//! - The thread never blocks on a round, so a slow node delays no other renewal.
//! - A lease is renewed about a third of its TTL after its acquire and after each renewal. A failed
//!   renewal is repeated with back-off until the lease expires.
//! - Only a quorum of *not ours*, or the clock, makes a lease lost. A reply after the expiry never
//!   makes it held again (S5, S7).
//! - A key is restored only after a quorum has confirmed the lease ([`Restoration`], S5). A reply
//!   after the verdict may report a lost key, too, so a confirmed renewal is kept until
//!   all nodes have replied or `node_timeout` has passed.
//! - A panic ends neither the thread nor a renewal.
//!
//! Tests: `src/tests/engine/loss.rs`; `src/tests/engine/late_replies.rs` (restored keys).

use std::sync::Arc;
use std::time::{Duration, Instant};

use log::debug;

use crate::background::renewal::queue::{
    NAME, RenewalEntry, RenewalQueue, RenewalQueueState, RenewalResults,
};
use crate::protocol::lease::{ExtensionGuard, Lease, LeaseState};
use crate::protocol::node_set::NodeSet;
use crate::protocol::quorum::{Tally, Verdict};
use crate::protocol::reply::Reply;
use crate::protocol::request::{Op, Request};
use crate::protocol::restoration::Restoration;
use crate::protocol::{encode, reply, validity};
use crate::random::HashMap;
use crate::sync::threads;
use crate::time::{clock, deadline};
use crate::transport::job::ReplySink;
use crate::transport::node_group::NodeGroup;

/// The largest number of renewals in flight, which bounds their share of a worker's queue.
const MAX_IN_FLIGHT: usize = 256;

/// How long the thread waits for more replies once it has one.
const REPLY_GATHER_TIME: Duration = Duration::from_millis(2);

/// The part of `node_timeout` after which a check that met another extension is due again.
const CHECK_DELAY_FRACTION: u32 = 8;

/// The reason in the log for a lease whose validity ended while its renewals failed.
const NOT_RENEWED_MSG: &str = "its lease ended before it could be renewed";

/// A renewal that is about to be sent.
struct DueRenewal {
    id: u64,
    entry: RenewalEntry,
    extension: ExtensionGuard,
    /// The expiry of the lease before the renewal.
    expiry: Instant,
}

/// A renewal that was sent and has no verdict.
struct InFlightRenewal {
    id: u64,
    entry: RenewalEntry,
    /// Keeps other extensions of the lease from being sent.
    extension: ExtensionGuard,
    tally: Tally,
    restoration: Restoration,
    start: Instant,
    /// The offset of the wall clock at `start`, in µs.
    wall_offset: i64,
    /// When the wait for replies ends: after `node_timeout`, at most until the lease expires.
    end: Instant,
}

/// A renewal that a quorum has confirmed while replies were missing.
struct ConfirmedRenewal {
    entry: RenewalEntry,
    tally: Tally,
    restoration: Restoration,
    /// When late replies are no longer counted.
    end: Instant,
}

/// The replies and the due entries of one wake-up.
#[derive(Default)]
struct Work {
    replies: Vec<(u32, usize, Reply)>,
    due: Vec<(u64, RenewalEntry)>,
}

/// The state of the renewal thread.
pub(super) struct RenewalWorker {
    queue: Arc<RenewalQueue>,
    nodes: Arc<NodeGroup>,
    node_timeout: Duration,
    results: Arc<dyn RenewalResults>,
    /// By round.
    in_flight: HashMap<u32, InFlightRenewal>,
    /// By round.
    confirmed: HashMap<u32, ConfirmedRenewal>,
    last_round: u32,
}

impl RenewalWorker {
    pub(super) fn new(
        queue: &Arc<RenewalQueue>,
        nodes: Arc<NodeGroup>,
        node_timeout: Duration,
        results: Arc<dyn RenewalResults>,
    ) -> RenewalWorker {
        RenewalWorker {
            queue: Arc::clone(queue),
            nodes,
            node_timeout,
            results,
            in_flight: HashMap::default(),
            confirmed: HashMap::default(),
            last_round: 0,
        }
    }

    pub(super) fn run(&mut self) {
        loop {
            match threads::catch(NAME, || self.run_once()) {
                Some(true) => {}
                Some(false) => return,
                None => self.recover(),
            }
        }
    }

    /// Waits for work and does it. Returns `false` if the thread is to end.
    fn run_once(&mut self) -> bool {
        let Some(work) = self.wait_for_work() else {
            return false;
        };
        for (round, node, reply) in work.replies {
            self.count_reply(round, node, reply);
        }
        let due = work.due.into_iter();
        let due: Vec<DueRenewal> = due
            .filter_map(|(id, entry)| self.begin(id, entry))
            .collect();
        self.send(due);
        let now = clock::now();
        let is_over =
            |renewal: &InFlightRenewal| renewal.tally.verdict().is_some() || renewal.end <= now;
        let over = self
            .in_flight
            .extract_if(|_, renewal| is_over(renewal))
            .collect::<Vec<_>>();
        for (round, renewal) in over {
            self.finish(round, renewal);
        }
        self.confirmed.retain(|_, renewal| now < renewal.end);
        true
    }

    /// Schedules all renewals in flight as if they had failed, because a panic left their rounds in
    /// an unknown state.
    fn recover(&mut self) {
        self.in_flight.clear();
        self.confirmed.clear();
        let now = clock::now();
        let mut state = self.queue.state.lock();
        let entries = std::mem::take(&mut state.in_flight);
        for (id, mut entry) in entries {
            let due = now + entry.retry_delay();
            entry.failures = entry.failures.saturating_add(1);
            state.timers.insert(id, due, entry);
        }
    }

    /// Counts a reply, and restores the key if the node has lost it and a quorum has confirmed the
    /// lease. Publishes a notice, once per lease, if the node has another token: one of the two
    /// holders has lost the lock, and is to check.
    fn count_reply(&mut self, round: u32, node: usize, reply: Reply) {
        let (is_absent, is_other) = (reply == Reply::Absent, reply == Reply::OtherToken);
        let (entry, tally, restoration) = if let Some(r) = self.in_flight.get_mut(&round) {
            (&r.entry, &mut r.tally, &mut r.restoration)
        } else if let Some(r) = self.confirmed.get_mut(&round) {
            (&r.entry, &mut r.tally, &mut r.restoration)
        } else {
            return; // the renewal failed, or its wait has ended
        };
        tally.vote(node, reply::vote_of(reply));
        if is_absent && restoration.record_absent(node) {
            let (ttl, nodes) = (entry.ttl.millis(), NodeSet::single(node));
            self.nodes.restore(&entry.lease, ttl, nodes);
        }
        if is_other && entry.lease.begin_notice() {
            self.nodes.notify_holders(entry.lease.keys());
        }
        if tally.is_complete() {
            self.confirmed.remove(&round);
        }
    }

    /// Blocks until a renewal is due, enough replies have arrived or `REPLY_GATHER_TIME` has passed
    /// since the first, or the wait of a renewal in flight ends.
    /// Returns `None` if the thread is to end.
    fn wait_for_work(&self) -> Option<Work> {
        let in_flight = || self.in_flight.values();
        let capacity = MAX_IN_FLIGHT - self.in_flight.len();
        let end = in_flight().map(|renewal| renewal.end).min();
        let mut work = Work::default();
        let mut gathered = None;
        let mut state = self.queue.state.lock();
        // Enough replies to decide all rounds: fewer would cost more wake-ups for the same work.
        state.wake_at = in_flight()
            .map(|renewal| renewal.tally.min_votes_to_decide())
            .sum();
        loop {
            if state.stopping {
                return None;
            }
            let now = clock::now();
            work.due = take_due(&mut state, capacity, now);
            let has_replies = !state.replies.is_empty();
            if has_replies && gathered.is_none() {
                gathered = Some(now + REPLY_GATHER_TIME);
            }
            let is_decided = has_replies && state.replies.len() >= state.wake_at;
            let is_gathered = gathered.is_some_and(|gathered| gathered <= now);
            let is_out_of_time = end.is_some_and(|end| end <= now);
            if is_decided || is_gathered || is_out_of_time || !work.due.is_empty() {
                state.wake_at = 0;
                work.replies.append(&mut state.replies);
                return Some(work);
            }
            let next = state.timers.peek().filter(|_| capacity > 0);
            let next = deadline::earlier(next.map(|(due, _)| due), gathered);
            match deadline::earlier(next, end) {
                Some(wake_at) => _ = self.queue.changed.wait_until(&mut state, wake_at),
                None => self.queue.changed.wait(&mut state),
            }
        }
    }

    /// Reserves the extension of a lease. Returns `None` if the lease need not be renewed now.
    fn begin(&self, id: u64, entry: RenewalEntry) -> Option<DueRenewal> {
        let start = clock::now();
        let expiry = match entry.lease.expire_if_due(start) {
            LeaseState::Held(expiry) => expiry,
            state => {
                self.end_renewal(id, &entry.lease, state);
                return None;
            }
        };
        if entry.renew_until.is_some_and(|until| until <= start) {
            self.queue.state.lock().in_flight.remove(&id);
            debug!("{}: renewal ended: max_renewal reached", entry.lease.keys());
            return None;
        }
        let Some(extension) = entry.lease.try_begin_extension() else {
            // The guard's `extend` is in flight. The nodes may have served it before a notice.
            let delay = match entry.is_check {
                true => self.node_timeout / CHECK_DELAY_FRACTION,
                false => entry.send_ahead(),
            };
            self.postpone(id, entry, start + delay);
            return None;
        };
        Some(DueRenewal {
            id,
            entry,
            extension,
            expiry,
        })
    }

    /// Sends renewals, as one message per node connection.
    fn send(&mut self, due: Vec<DueRenewal>) {
        if due.is_empty() {
            return;
        }
        let (start, wall_offset) = (clock::now(), clock::wall_offset());
        let mut requests = Vec::with_capacity(due.len());
        for DueRenewal { entry, .. } in &due {
            self.last_round = self.last_round.wrapping_add(1);
            let request = Request::new(Op::Extend, &entry.lease, entry.ttl.millis());
            requests.push((encode::shared(request), self.last_round));
        }
        let sink: Arc<dyn ReplySink> = Arc::clone(&self.queue) as _;
        let tallies = self.nodes.send_many(&requests, &sink);
        for ((due, (_, round)), tally) in due.into_iter().zip(requests).zip(tallies) {
            let renewal = InFlightRenewal {
                id: due.id,
                entry: due.entry,
                extension: due.extension,
                tally,
                restoration: Restoration::default(),
                start,
                wall_offset,
                end: due.expiry.min(start + self.node_timeout),
            };
            self.in_flight.insert(round, renewal);
        }
    }

    /// Applies the verdict of a renewal to its lease and schedules the next one.
    fn finish(&mut self, round: u32, renewal: InFlightRenewal) {
        let InFlightRenewal {
            id,
            entry,
            extension,
            mut tally,
            mut restoration,
            start,
            wall_offset,
            ..
        } = renewal;
        drop(extension);
        let lease = &entry.lease;
        let now = clock::now();
        let verdict = tally
            .verdict()
            .unwrap_or_else(|| tally.close_with_timeouts());
        let expiry = deadline::deadline(start, validity::validity(entry.ttl.duration()));
        let state = match (verdict, expiry) {
            (Verdict::Granted, Some(expiry)) => lease.extend_to(now, expiry, wall_offset),
            (Verdict::Refused, _) if lease.mark_not_ours() => {
                self.results
                    .handle_loss(lease, "a quorum of nodes says that it is not ours");
                LeaseState::Lost
            }
            _ => lease.expire_if_due(now),
        };
        match (state, verdict) {
            (LeaseState::Held(_), Verdict::Granted) => {
                self.results.handle_extension(lease);
                let absent = restoration.confirm();
                self.nodes.restore(lease, entry.ttl.millis(), absent);
                if !tally.is_complete() {
                    let confirmed = ConfirmedRenewal {
                        entry: entry.clone(),
                        tally,
                        restoration,
                        end: start + self.node_timeout,
                    };
                    self.confirmed.insert(round, confirmed);
                }
                self.schedule_next(id, entry, start);
            }
            (LeaseState::Held(expiry), _) => {
                let granted = tally.granted().len();
                self.schedule_retry(id, entry, expiry, granted);
            }
            (state, _) => self.end_renewal(id, lease, state),
        }
    }

    /// Counts a successful renewal that began at `start` and schedules the next one.
    fn schedule_next(&self, id: u64, mut entry: RenewalEntry, start: Instant) {
        if !entry.is_check {
            self.nodes.counters().renewed(entry.lease.key().name());
        }
        entry.failures = 0;
        let due = start + entry.interval();
        self.reschedule(id, entry, due);
    }

    /// Schedules the repetition of a renewal that only `granted` nodes confirmed, no later than the
    /// lease's `expiry`.
    fn schedule_retry(&self, id: u64, mut entry: RenewalEntry, expiry: Instant, granted: usize) {
        let keys = entry.lease.keys().clone();
        let due = expiry.min(clock::now() + entry.retry_delay());
        entry.failures = entry.failures.saturating_add(1);
        self.reschedule(id, entry, due);
        let total = self.nodes.total();
        debug!("{keys}: renewal failed: confirmed by {granted} of {total} nodes");
    }

    /// Schedules the entry at `due`, unless it was unregistered meanwhile. A check ends, and both
    /// are due at once after a notice.
    fn reschedule(&self, id: u64, entry: RenewalEntry, due: Instant) {
        let mut state = self.queue.state.lock();
        let Some(stored) = state.in_flight.remove(&id) else {
            return;
        };
        let due = match stored.checks_again {
            true => clock::now(),
            false if entry.is_check => return,
            false => due,
        };
        state.timers.insert(id, due, entry);
    }

    /// Schedules an entry that was not sent at `due`, unless it was unregistered meanwhile.
    fn postpone(&self, id: u64, entry: RenewalEntry, due: Instant) {
        let mut state = self.queue.state.lock();
        if state.in_flight.remove(&id).is_some() {
            state.timers.insert(id, due, entry);
        }
    }

    /// Removes the entry of a lease that is no longer held, and handles its loss if `state` says
    /// that this thread marked it lost.
    fn end_renewal(&self, id: u64, lease: &Arc<Lease>, state: LeaseState) {
        self.queue.state.lock().in_flight.remove(&id);
        if state == LeaseState::JustLost {
            self.results.handle_loss(lease, NOT_RENEWED_MSG);
        }
    }
}

/// Moves up to `capacity` entries to `in_flight`, if one is due at `now`: the due entries, and the
/// entries that may be sent ahead with them.
fn take_due(
    state: &mut RenewalQueueState,
    capacity: usize,
    now: Instant,
) -> Vec<(u64, RenewalEntry)> {
    let mut due = Vec::new();
    if state.timers.peek().is_none_or(|(first, _)| first > now) {
        return due;
    }
    let may_be_sent = |state: &RenewalQueueState| {
        let first = state.timers.peek();
        first.is_some_and(|(first, entry)| first <= now + entry.send_ahead())
    };
    while due.len() < capacity && may_be_sent(state) {
        let Some((id, entry)) = state.timers.pop() else {
            break;
        };
        state.in_flight.insert(id, entry.clone());
        due.push((id, entry));
    }
    due
}
