//! What the renewing thread does: sends what is due, collects what comes, and never waits for a round.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::debug;

use crate::background::renewal::queue::{
    NAME, OnLeaseLost, RenewalEntry, RenewalQueue, RenewalQueueState,
};
use crate::protocol::lease::{ExtensionGuard, Lease, LeaseState};
use crate::protocol::quorum::{NodeSet, Tally, Verdict};
use crate::protocol::reply::Reply;
use crate::protocol::request::{Op, Request};
use crate::protocol::ttl::Ttl;
use crate::protocol::{reply, validity};
use crate::sync::threads;
use crate::time::{clock, deadline};
use crate::transport::job::ReplySink;
use crate::transport::node_group::NodeGroup;

/// A renewal that is about to be sent.
struct DueRenewal {
    id: u64,
    renewed: RenewalEntry,
    turn: ExtensionGuard,
    expiry: Instant,
}

/// A renewal on its way.
struct InFlightRenewal {
    id: u64,
    renewed: RenewalEntry,
    _turn: ExtensionGuard,
    tally: Tally,
    absent: NodeSet,
    start: Instant,
    lead: i64,
    end: Instant,
}

/// What the thread owns.
pub(crate) struct RenewalWorker {
    desk: Arc<RenewalQueue>,
    nodes: Arc<NodeGroup>,
    node_timeout: Duration,
    lost: OnLeaseLost,
    open: HashMap<u32, InFlightRenewal>,
    /// Renewals that a quorum has confirmed while some nodes had not answered.
    late: HashMap<u32, ConfirmedRenewal>,
    last: u32,
}

/// A node that answers when a quorum has may be the one that has lost the key.
struct ConfirmedRenewal {
    lease: Arc<Lease>,
    ttl: Ttl,
    end: Instant,
}

impl RenewalWorker {
    pub(crate) fn new(
        desk: &Arc<RenewalQueue>,
        nodes: Arc<NodeGroup>,
        node_timeout: Duration,
        lost: OnLeaseLost,
    ) -> RenewalWorker {
        RenewalWorker {
            desk: Arc::clone(desk),
            nodes,
            node_timeout,
            lost,
            open: HashMap::new(),
            late: HashMap::new(),
            last: 0,
        }
    }

    pub(crate) fn run(&mut self) {
        loop {
            match threads::catch(NAME, || self.turn()) {
                Some(true) => {}
                Some(false) => return,
                None => self.start_again(),
            }
        }
    }

    /// Serves what has come and what is due. `false` when the thread is to end.
    fn turn(&mut self) -> bool {
        let (mut answers, mut due) = (Vec::new(), Vec::new());
        if !self.wait(&mut answers, &mut due) {
            return false;
        }
        for (round, node, answer) in answers {
            self.count_reply(round, node, answer);
        }
        let begun = due
            .into_iter()
            .filter_map(|(id, renewed)| self.begin(id, renewed));
        let begun: Vec<DueRenewal> = begun.collect();
        self.send(begun);
        let now = clock::now();
        let over = |open: &InFlightRenewal| open.tally.verdict().is_some() || open.end <= now;
        let over = self.open.extract_if(|_, open| over(open));
        for (round, open) in over.collect::<Vec<_>>() {
            self.finish(round, open);
        }
        self.late.retain(|_, late| now < late.end);
        true
    }

    /// After a panic nothing is known of the renewals that were on their way: all of them are due again, as after a failure.
    fn start_again(&mut self) {
        self.open.clear();
        self.late.clear();
        let now = clock::now();
        let mut state = self.desk.state.lock();
        let open = std::mem::take(&mut state.open);
        for (id, mut renewed) in open {
            let due = now + renewed.pause();
            renewed.failures = renewed.failures.saturating_add(1);
            state.agenda.insert(id, due, renewed);
        }
    }

    fn count_reply(&mut self, round: u32, node: usize, answer: Reply) {
        if let Some(open) = self.open.get_mut(&round) {
            if answer == Reply::Absent {
                open.absent.insert(node);
            }
            open.tally.vote(node, reply::vote_of(answer));
        } else if let (Some(late), Reply::Absent) = (self.late.get(&round), answer) {
            let nodes = NodeSet::single(node);
            self.nodes.restore(&late.lease, late.ttl.millis(), nodes);
        }
    }

    /// Waits until there is something to do, and moves that into `answers` and `due`. `false` when the thread is to end.
    fn wait(
        &self,
        answers: &mut Vec<(u32, usize, Reply)>,
        due: &mut Vec<(u64, RenewalEntry)>,
    ) -> bool {
        let mut state = self.desk.state.lock();
        // As many as could decide all that are open: who is woken for less does less at a time.
        let decide = self
            .open
            .values()
            .map(|open| open.tally.min_votes_to_decide());
        state.wanted = decide.sum();
        let end = self.open.values().map(|open| open.end).min();
        let mut gathered = None;
        loop {
            if state.stopping {
                return false;
            }
            let now = clock::now();
            let room = MAX_IN_FLIGHT - self.open.len();
            // When the first one is due, all others go with it that soon will be.
            let is_due =
                |state: &RenewalQueueState| state.agenda.peek().is_some_and(|(at, _)| at <= now);
            let goes = |state: &RenewalQueueState| {
                let first = state.agenda.peek();
                first.is_some_and(|(at, renewed)| at <= now + renewed.send_ahead())
            };
            if is_due(&state) {
                while due.len() < room && goes(&state) {
                    let Some((id, renewed)) = state.agenda.pop() else {
                        break;
                    };
                    state.open.insert(id, renewed.clone());
                    due.push((id, renewed));
                }
            }
            let some = !state.arrived.is_empty();
            if some && gathered.is_none() {
                gathered = Some(now + REPLY_GATHER_TIME);
            }
            let arrived = some && state.arrived.len() >= state.wanted;
            let arrived = arrived || gathered.is_some_and(|gathered| gathered <= now);
            if arrived || !due.is_empty() || end.is_some_and(|end| end <= now) {
                state.wanted = 0;
                answers.append(&mut state.arrived);
                return true;
            }
            let next = state.agenda.peek().filter(|_| room > 0);
            let next = deadline::earlier(next.map(|(at, _)| at), gathered);
            match deadline::earlier(next, end) {
                Some(end) => _ = self.desk.changed.wait_until(&mut state, end),
                None => self.desk.changed.wait(&mut state),
            }
        }
    }

    /// A renewal that is due may be sent, unless there is nothing to renew any more.
    fn begin(&self, id: u64, renewed: RenewalEntry) -> Option<DueRenewal> {
        let start = clock::now();
        let expiry = match renewed.lease.expire_if_due(start) {
            LeaseState::Held(expiry) => expiry,
            look => {
                self.desk.state.lock().open.remove(&id);
                if look == LeaseState::JustLost {
                    (self.lost)(&renewed.lease, "its lease ended before it could be renewed");
                }
                return None;
            }
        };
        if renewed.until.is_some_and(|until| until <= start) {
            self.desk.state.lock().open.remove(&id);
            debug!("{}: renewed no more after max_hold", renewed.lease.keys());
            return None;
        }
        let Some(turn) = renewed.lease.try_begin_extension() else {
            // Its holder extends it at this moment.
            let pause = renewed.send_ahead();
            self.put_back(id, renewed, start + pause);
            return None;
        };
        Some(DueRenewal {
            id,
            renewed,
            turn,
            expiry,
        })
    }

    /// Sends renewals, all that are due in one message to each lane.
    fn send(&mut self, begun: Vec<DueRenewal>) {
        if begun.is_empty() {
            return;
        }
        let (start, lead) = (clock::now(), clock::wall_offset());
        let mut requests = Vec::with_capacity(begun.len());
        for DueRenewal { renewed, .. } in &begun {
            self.last = self.last.wrapping_add(1);
            let request = Request::new(Op::Extend, &renewed.lease, renewed.ttl.millis());
            requests.push((request, self.last));
        }
        let desk: Arc<dyn ReplySink> = Arc::clone(&self.desk) as _;
        let tallies = self.nodes.send_many(&requests, &desk);
        for ((begun, (_, round)), tally) in begun.into_iter().zip(requests).zip(tallies) {
            let open = InFlightRenewal {
                id: begun.id,
                renewed: begun.renewed,
                _turn: begun.turn,
                tally,
                absent: NodeSet::default(),
                start,
                lead,
                end: begun.expiry.min(start + self.node_timeout),
            };
            self.open.insert(round, open);
        }
    }

    /// What a renewal has come to.
    fn finish(&mut self, round: u32, open: InFlightRenewal) {
        let InFlightRenewal {
            id,
            mut renewed,
            _turn,
            mut tally,
            absent,
            start,
            lead,
            ..
        } = open;
        drop(_turn);
        let (lease, ttl) = (&renewed.lease, renewed.ttl);
        let now = clock::now();
        let verdict = tally
            .verdict()
            .unwrap_or_else(|| tally.close_with_timeouts());
        let look = match (
            verdict,
            deadline::deadline(start, validity::validity(ttl.duration())),
        ) {
            (Verdict::Granted, Some(until)) => lease.extend_to(now, until, lead),
            (Verdict::Refused, _) if lease.mark_not_ours() => {
                (self.lost)(lease, "a quorum of nodes says that it is not ours");
                LeaseState::Lost
            }
            _ => lease.expire_if_due(now),
        };
        match (look, verdict) {
            (LeaseState::Held(_), Verdict::Granted) => {
                self.nodes.counters().renewed(lease.key());
                // Only now, with a quorum that is ours, may it come back where it was lost.
                self.nodes.restore(lease, ttl.millis(), absent);
                if !tally.is_complete() {
                    let late = ConfirmedRenewal {
                        lease: Arc::clone(lease),
                        ttl,
                        end: start + self.node_timeout,
                    };
                    self.late.insert(round, late);
                }
                renewed.failures = 0;
                let due = start + renewed.interval();
                self.put_back(id, renewed, due);
            }
            (LeaseState::Held(expiry), _) => {
                let keys = lease.keys().clone();
                let due = expiry.min(now + renewed.pause());
                renewed.failures = renewed.failures.saturating_add(1);
                self.put_back(id, renewed, due);
                debug!("{keys}: not renewed: {verdict:?}");
            }
            (look, _) => {
                self.desk.state.lock().open.remove(&id);
                if look == LeaseState::JustLost {
                    (self.lost)(lease, "its lease ended before it could be renewed");
                }
            }
        }
    }

    /// Once more at `due`, unless it was retired meanwhile.
    fn put_back(&self, id: u64, renewed: RenewalEntry, due: Instant) {
        let mut state = self.desk.state.lock();
        if state.open.remove(&id).is_some() {
            state.agenda.insert(id, due, renewed);
        }
    }
}

/// So many renewals are on their way at once, so that a lane's queue has no more of them.
pub(crate) const MAX_IN_FLIGHT: usize = 256;

/// So long the thread waits for more answers when it has some.
pub(crate) const REPLY_GATHER_TIME: Duration = Duration::from_millis(2);
