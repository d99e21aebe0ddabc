//! Many nodes, once: one request into every node's lane, and one wait for what they answer.

use std::sync::Arc;
use std::time::Instant;

use log::debug;

use crate::error::NodeFailure;
use crate::protocol::key::Key;
use crate::protocol::permits::FreePermits;
use crate::protocol::quorum::{NodeSet, Tally, Verdict};
use crate::protocol::reply::{Blocker, Reply, vote_of};
use crate::protocol::request::{Op, Request};
use crate::time::clock;
use crate::time::deadline::Deadline;
use crate::transport::connection::NodeConnection;
use crate::transport::inbox::{Inbox, WaitEnd};
use crate::transport::job::Job;
use crate::transport::load::CallerGuard;
use crate::transport::messages::Submitted;
use crate::transport::node_group::NodeGroup;

/// One request on its way to the nodes.
#[derive(Debug)]
#[must_use = "the answers are in its outcome"]
pub(crate) struct Round<'a> {
    pub(crate) request: &'a Request,
    pub(crate) inbox: &'a Arc<Inbox>,
    pub(crate) number: u32,
    pub(crate) tally: Tally,
    pub(crate) numbers: Vec<(usize, u64)>,
    pub(crate) heard: Vec<(usize, u64)>,
    pub(crate) in_the_way: Vec<usize>,
    pub(crate) free: Vec<FreePermits>,
    /// Empty but while they are counted; kept for its memory.
    pub(crate) answers: Vec<(usize, Reply)>,
    pub(crate) nodes: &'a NodeGroup,
    pub(crate) caller: CallerGuard<'a>,
    pub(crate) own: DirectReplies<'a>,
}

/// The nodes that a caller has asked himself, and looks for the answers of. What has not come when this is dropped, their lanes'
/// threads look for.
#[derive(Debug)]
pub(crate) struct DirectReplies<'a> {
    pub(crate) nodes: &'a NodeGroup,
    pub(crate) key: &'a Key,
    pub(crate) pending: NodeSet,
    /// Those of them whose lanes' threads do not look unless they are woken.
    pub(crate) unattended: NodeSet,
}

impl DirectReplies<'_> {
    pub(crate) fn note(&mut self, node: usize, wake: bool) {
        self.pending.insert(node);
        if wake {
            self.unattended.insert(node);
        }
    }

    /// Takes in what has come; or, if that `is_exhausted`, lets the lanes' threads wait for it.
    fn poll_direct(&mut self, is_over: bool) {
        for (node, lane) in self.nodes.connections_for(self.key) {
            if self.pending.contains(node) && (is_over || !lane.poll()) {
                lane.wake_worker();
                self.pending = self.pending.difference(NodeSet::single(node));
            }
        }
    }
}

impl Drop for DirectReplies<'_> {
    fn drop(&mut self) {
        for (node, lane) in self.nodes.connections_for(self.key) {
            if self.pending.contains(node) && self.unattended.contains(node) {
                lane.wake_worker_if_in_flight();
            }
        }
    }
}

impl Round<'_> {
    /// Leaves what is to come to the lanes' threads, since others wait for it.
    pub(crate) fn detach(mut self) {
        self.own.poll_direct(true);
    }

    /// What is known so far.
    pub(crate) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Waits until the nodes have decided or the budget's time is over: nobody ever waits for a lane.
    pub(crate) fn wait(mut self, budget: Deadline) -> RoundOutcome {
        let ended = self.decide(budget);
        self.finish(ended)
    }

    /// The same for a round that may go on after it.
    pub(crate) fn decide(&mut self, budget: Deadline) -> WaitEnd {
        let start = clock::now();
        let soon = self.nodes.pace.spin_deadline(start);
        let mut ended = WaitEnd::Complete;
        while self.tally.verdict().is_none() && ended == WaitEnd::Complete {
            ended = self.collect_replies(self.tally.min_votes_to_decide(), soon, budget.end());
        }
        self.nodes
            .pace
            .record(clock::now().saturating_duration_since(start));
        ended
    }

    /// Waits until `end` for as long as the votes that have come lack something.
    pub(crate) fn collect_while(&mut self, lacks: impl Fn(&Tally) -> bool, end: Instant) {
        let soon = self.nodes.pace.spin_deadline(clock::now());
        let mut ended = WaitEnd::Complete;
        while lacks(&self.tally) && ended == WaitEnd::Complete {
            ended = self.collect_replies(1, soon, Some(end));
        }
    }

    /// Asks nodes that refused once more, for the same lease.
    pub(crate) fn ask_again(&mut self, contested: NodeSet) {
        self.tally.reopen(contested);
        self.free.clear();
        let nodes = self.nodes;
        nodes.submit(self, |node| contested.contains(node));
    }

    /// Counts what has not come as no answer: the nodes had their time.
    pub(crate) fn close(&mut self) {
        self.tally.close_with_timeouts();
    }

    /// Waits for all nodes that were asked, whatever they say, until the budget's time is over.
    pub(crate) fn wait_all(mut self, budget: Deadline) -> RoundOutcome {
        let mut ended = WaitEnd::Complete;
        while self.tally.outstanding() > 0 && ended == WaitEnd::Complete {
            ended = self.collect_replies(self.tally.outstanding(), None, budget.end());
        }
        self.finish(ended)
    }

    /// Waits for `wanted` answers and counts them.
    pub(crate) fn collect_replies(
        &mut self,
        wanted: usize,
        soon: Option<Instant>,
        end: Option<Instant>,
    ) -> WaitEnd {
        self.poll_direct(
            wanted,
            soon.map(|soon| end.map_or(soon, |end| soon.min(end))),
        );
        let ended = self
            .inbox
            .wait_replies(wanted, soon, end, &mut self.answers);
        for (node, answer) in self.answers.drain(..) {
            match answer {
                Reply::Fenced(number) | Reply::SwappedAbsent(Some(number)) => {
                    self.numbers.push((node, number))
                }
                Reply::DoneNotified(count) => self.heard.push((node, count)),
                Reply::Held(Blocker::OwnerOfKey(key), _) if !self.in_the_way.contains(&key) => {
                    self.in_the_way.push(key);
                }
                Reply::PermitTaken(ref free, _) => self.free.push(free.clone()),
                _ => {}
            }
            self.tally.vote(node, vote_of(answer));
        }
        ended
    }

    /// Looks for the answers of the nodes that the caller has asked himself, until `wanted` are there, or `end` (`None`: it is
    /// over). What has not come by then the lanes' threads wait for.
    fn poll_direct(&mut self, wanted: usize, end: Option<Instant>) {
        while self.own.pending.len() > 0 && self.inbox.needs_more(wanted) {
            std::thread::yield_now(); // a server on this machine may want the processor to answer
            self.own
                .poll_direct(end.is_none_or(|end| end <= clock::now()));
        }
    }

    /// Ends the round with what is known so far.
    pub(crate) fn finish(mut self, ended: WaitEnd) -> RoundOutcome {
        self.inbox.close_round();
        let unsettled = self.tally.restore();
        let verdict = self.tally.verdict();
        let verdict = verdict.unwrap_or_else(|| self.tally.close_with_timeouts());
        debug!(
            "{}: {}: {verdict:?}, {} granted, {} refused",
            self.request.lease.keys(),
            self.request.verb,
            self.tally.granted().len(),
            self.tally.refused().len(),
        );
        RoundOutcome {
            verdict,
            tally: self.tally,
            fencing_tokens: self.numbers,
            receivers: self.heard,
            blocking_keys: self.in_the_way,
            free_permits: self.free,
            unsettled,
            wait_end: ended,
        }
    }
}

impl RoundOutcome {
    /// The nodes that certainly have nothing of the lease.
    pub(crate) fn refused(&self) -> NodeSet {
        self.tally.refused().difference(self.unsettled)
    }
}

/// How a round ended.
#[derive(Debug)]
pub(crate) struct RoundOutcome {
    pub(crate) verdict: Verdict,
    pub(crate) tally: Tally,
    /// What the fences of the nodes gave that granted a take.
    pub(crate) fencing_tokens: Vec<(usize, u64)>,
    /// How many heard of a release, on nodes where somebody did.
    pub(crate) receivers: Vec<(usize, u64)>,
    /// Which of the lock's keys others hold, where it has several: of each node that refused the one that it is longest for.
    pub(crate) blocking_keys: Vec<usize>,
    /// Which permits of a semaphore are free, on each node that refused one.
    pub(crate) free_permits: Vec<FreePermits>,
    /// The nodes that refused, were asked once more and have not answered.
    pub(crate) unsettled: NodeSet,
    /// What ended it.
    pub(crate) wait_end: WaitEnd,
}

/// Gives a job to a node's lane, sent by this very thread if it is given as `bytes` on the wire.
///
/// A suspect node is asked for nothing and left nothing but the releases of leases that it was asked for before: what waits for
/// it does not grow with an outage (rule L3).
pub(crate) fn give(
    node: usize,
    lane: &NodeConnection,
    job: Job,
    bytes: Option<&[u8]>,
    now: Instant,
) -> Result<Submitted, NodeFailure> {
    let request = &job.request;
    let owed = request.verb == Op::Release && request.lease.contacted().contains(node);
    if !owed && let Some(cause) = lane.unavailable(now) {
        return Err(cause);
    }
    // Whether or not the lane is up by the time it is submitted, and before it is there. A lease that is given up before that
    // need not be released: then the request is not sent.
    if request.verb.grants() {
        let node = NodeSet::single(node);
        request
            .written_leases()
            .for_each(|lease| lease.record_contacted(node));
    }
    match bytes {
        Some(bytes) => lane.send_or_submit(job, bytes, owed, now),
        None => lane.submit(job, owed, now).map(|()| Submitted::Queued),
    }
}
