//! One request to all nodes, and the wait for the replies until they decide.
//!
//! - A round blocks in the caller's inbox only, with a deadline, and never on a connection.
//! - It counts votes and keeps the contents of the replies. The engine interprets both.
//! - A node's first vote counts. Only [`ask_again`](Round::ask_again) takes back a refusal.
//! - The inbox drops replies that arrive after the end of the round. Another sink still receives
//!   them.
//!
//! | state | leaves by |
//! |---|---|
//! | open | [`finish`](Round::finish), which `wait` and `wait_all` call last → an outcome |
//! | open | [`detach`](Round::detach) → detached |
//! | detached | nothing: the workers deliver the replies to the sink |
//!
//! [`decide`](Round::decide) and [`collect_while`](Round::collect_while) block and leave the round
//! open, so that `ask_again` may follow.
//!
//! Tests, for these rules in this order: `src/tests/engine/quorum.rs`,
//! `hung_minority_does_not_delay_an_acquire`; none for the second; `protocol/quorum.rs`,
//! `second_vote_of_a_node_does_not_count` and
//! `refusals_that_are_asked_again_count_as_outstanding_until_their_refusals_count`;
//! `transport/inbox.rs`, `replies_of_a_former_round_are_dropped`, and
//! `src/tests/engine/late_replies.rs`, `late_reply_to_an_extension_restores_the_key` (another
//! sink). Else in `src/tests/engine/`: `split.rs`, `wake_up.rs`, `handoff.rs` (detached rounds).

use std::sync::Arc;
use std::time::Instant;

use log::debug;

use crate::protocol::node_set::NodeSet;
use crate::protocol::permits::FreePermits;
use crate::protocol::quorum::{Tally, Verdict, Vote};
use crate::protocol::reply::{Blocker, Reply, vote_of, vote_rule};
use crate::protocol::request::Request;
use crate::sync::threads;
use crate::time::clock;
use crate::time::deadline::{Deadline, earlier};
use crate::transport::dispatch::{KeyConnections, SendMode};
use crate::transport::inbox::{Inbox, WaitEnd};
use crate::transport::job::ReplySink;
use crate::transport::load::{ActiveCallers, CallerGuard, RttEstimate};

/// The time that the preferred node has to reply before the other nodes are asked, in typical
/// rounds.
const PREFERRED_NODE_ROUNDS: u32 = 4;

/// The order in which a round asks the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RoundPlan {
    /// All nodes at once.
    All,
    /// The preferred node, and the others only if it does not refuse in time. So an acquire that it
    /// refuses leaves nothing to undo on the others.
    PreferredFirst(usize),
}

/// A request on its way to the nodes, and the votes that have arrived.
#[derive(Debug)]
#[must_use = "the votes are in its outcome"]
pub(crate) struct Round<'a> {
    request: &'a Request,
    inbox: &'a Arc<Inbox>,
    /// The round's id in the inbox.
    id: u32,
    opened: Instant,
    /// When the latest requests were sent. At first, when the round was opened.
    sent: Instant,
    tally: Tally,
    details: Option<Box<RoundDetails>>,
    /// Empty except while replies are counted; kept for its memory.
    replies: Vec<(usize, Reply)>,
    connections: KeyConnections<'a>,
    rtt: &'a RttEstimate,
    caller: CallerGuard<'a>,
    direct: DirectReplies<'a>,
}

/// The direct sends of a round, for whose replies the caller polls itself.
///
/// Dropping it leaves the outstanding replies to the workers.
#[derive(Debug)]
struct DirectReplies<'a> {
    connections: KeyConnections<'a>,
    /// The nodes for which the caller polls. A node that has replied stays in the set.
    polled: NodeSet,
    /// The nodes whose worker polls only after it is woken, because it sleeps.
    unattended: NodeSet,
}

impl DirectReplies<'_> {
    /// Reads the replies that have arrived. Leaves a node to its worker if the connection failed or
    /// a release has become pending. With `is_over` reads none, and leaves all nodes to their
    /// workers.
    fn poll(&mut self, is_over: bool) {
        for (node, connection) in self.connections.iter() {
            if self.polled.contains(node) && (is_over || !connection.poll()) {
                connection.wake_worker();
                self.polled = self.polled.difference(NodeSet::single(node));
            }
        }
    }
}

impl Drop for DirectReplies<'_> {
    fn drop(&mut self) {
        for (node, connection) in self.connections.iter() {
            if self.polled.contains(node) && self.unattended.contains(node) {
                connection.wake_worker_if_in_flight();
            }
        }
    }
}

impl<'a> Round<'a> {
    /// Opens a round that has sent nothing yet. `id` is its id in the inbox.
    pub(super) fn new(
        request: &'a Request,
        inbox: &'a Arc<Inbox>,
        id: u32,
        connections: KeyConnections<'a>,
        rtt: &'a RttEstimate,
    ) -> Round<'a> {
        let now = clock::now();
        Round {
            request,
            inbox,
            id,
            opened: now,
            sent: now,
            tally: Tally::new(connections.total(), vote_rule(request.op)),
            details: None,
            replies: Vec::new(),
            connections,
            rtt,
            caller: CallerGuard::UNCOUNTED,
            direct: DirectReplies {
                connections,
                polled: NodeSet::default(),
                unattended: NodeSet::default(),
            },
        }
    }

    /// Counts the caller among the callers with a round in progress, until the round ends.
    pub(super) fn counted_in(mut self, callers: &'a ActiveCallers) -> Round<'a> {
        self.caller = callers.join(self.sent);
        self
    }

    /// Sends the round's own request to `nodes`, with the inbox as the sink. Returns the nodes that
    /// accepted it. Does not block.
    pub(super) fn submit(&mut self, nodes: NodeSet) -> NodeSet {
        let inbox = Arc::clone(self.inbox);
        self.submit_with_sink(self.request, nodes, inbox)
    }

    /// Sends a request to `nodes`. Its replies go to `sink`, which delivers them to the inbox, too.
    /// The failure of a suspect node, or of one whose worker has ended, is counted at once. Returns
    /// the nodes that accepted the request. Does not block.
    pub(super) fn submit_with_sink(
        &mut self,
        request: &Request,
        nodes: NodeSet,
        sink: Arc<dyn ReplySink>,
    ) -> NodeSet {
        let reply = (sink, self.id);
        let mode = SendMode {
            reply: Some(&reply),
            is_direct: self.caller.uses_direct_send(self.rtt, self.sent),
            now: self.sent,
        };
        let sent = self.connections.dispatch(request, nodes, mode);
        self.direct.polled = self.direct.polled.union(sent.direct);
        self.direct.unattended = self.direct.unattended.union(sent.unattended);
        for (node, cause) in sent.failures {
            self.tally.vote(node, Vote::Fault(cause));
        }
        sent.accepted
    }

    /// Sends `substitute` to all nodes in place of the round's own request. Its replies go to
    /// `sink`, which delivers to the inbox what they mean for the request.
    pub(crate) fn submit_substitute(&mut self, substitute: &Request, sink: Arc<dyn ReplySink>) {
        let all = NodeSet::all(self.connections.total());
        self.submit_with_sink(substitute, all, sink);
    }

    /// Asks the preferred node, and blocks until it replies, for [`PREFERRED_NODE_ROUNDS`] typical
    /// rounds at most. Returns the end of the wait if the node refused or the caller was cancelled;
    /// `None` if the other nodes are to be asked.
    pub(super) fn ask_preferred(&mut self, node: usize) -> Option<WaitEnd> {
        if !self.submit(NodeSet::single(node)).contains(node) {
            return None;
        }
        let start = clock::now();
        let end = start + PREFERRED_NODE_ROUNDS * self.rtt.typical_round();
        let ended = self.collect_replies(1, self.spin_deadline(start), Some(end));
        let is_over = self.tally.refused().contains(node) || ended == WaitEnd::Cancelled;
        self.sent = clock::now(); // for the other nodes
        is_over.then_some(ended)
    }

    /// Leaves the outstanding replies to the workers, because another thread waits for them. Does
    /// not close the round in the inbox.
    pub(crate) fn detach(mut self) {
        self.direct.poll(true);
    }

    /// Returns the votes that have arrived.
    pub(crate) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Blocks until the votes decide, at most until `deadline` or a cancellation. Ends the round.
    pub(crate) fn wait(mut self, deadline: Deadline) -> RoundOutcome {
        let ended = self.decide(deadline);
        self.finish(ended)
    }

    /// Blocks until the votes decide, at most until `deadline` or a cancellation. Does not end the
    /// round. Adds the duration to the estimate of a typical round.
    pub(crate) fn decide(&mut self, deadline: Deadline) -> WaitEnd {
        let start = clock::now();
        let spin_until = self.spin_deadline(start);
        let mut ended = WaitEnd::Complete;
        while self.tally.verdict().is_none() && ended == WaitEnd::Complete {
            let wanted = self.tally.min_votes_to_decide();
            ended = self.collect_replies(wanted, spin_until, deadline.end());
        }
        let now = clock::now();
        let took = now.saturating_duration_since(start);
        self.rtt.record(took, self.caller.callers_per_core());
        if self.caller.is_counted() && self.tally.verdict() == Some(Verdict::Granted) {
            let took = now.saturating_duration_since(self.opened);
            self.rtt.record_quorum(took);
        }
        ended
    }

    /// Returns until when the caller yields, if it begins to wait now. `None` if it sleeps at once.
    fn spin_deadline(&self, now: Instant) -> Option<Instant> {
        self.rtt.spin_deadline(now, self.caller.callers_per_core())
    }

    /// Collects replies while `lacks` returns `true` for the votes. Blocks at most until `end` or a
    /// cancellation.
    pub(crate) fn collect_while(
        &mut self,
        lacks: impl Fn(&Tally) -> bool,
        end: Option<Instant>,
    ) -> WaitEnd {
        let spin_until = self.spin_deadline(clock::now());
        let mut ended = WaitEnd::Complete;
        while lacks(&self.tally) && ended == WaitEnd::Complete {
            ended = self.collect_replies(1, spin_until, end);
        }
        ended
    }

    /// Asks the nodes in `contested`, which refused, once more for the same lease.
    pub(crate) fn ask_again(&mut self, contested: NodeSet) {
        self.tally.reopen(contested);
        self.sent = clock::now();
        self.submit(contested);
    }

    /// Counts the outstanding nodes as timed out.
    pub(crate) fn close(&mut self) {
        self.tally.close_with_timeouts();
    }

    /// Blocks until all nodes have voted, at most until `deadline` or a cancellation, and ends the
    /// round.
    pub(crate) fn wait_all(mut self, deadline: Deadline) -> RoundOutcome {
        let mut ended = WaitEnd::Complete;
        while self.tally.outstanding() > 0 && ended == WaitEnd::Complete {
            ended = self.collect_replies(self.tally.outstanding(), None, deadline.end());
        }
        self.finish(ended)
    }

    /// Blocks until `wanted` further replies have arrived, at most until `end` or a cancellation.
    /// Counts the votes.
    fn collect_replies(
        &mut self,
        wanted: usize,
        spin_until: Option<Instant>,
        end: Option<Instant>,
    ) -> WaitEnd {
        self.poll_direct(wanted, spin_until.and_then(|spin| earlier(Some(spin), end)));
        let ended = self
            .inbox
            .wait_replies(wanted, spin_until, end, &mut self.replies);
        for (node, reply) in self.replies.drain(..) {
            RoundDetails::record(&mut self.details, node, &reply);
            self.tally.vote(node, vote_of(reply));
        }
        ended
    }

    /// Polls for the replies to direct sends until `wanted` replies have arrived, at most until
    /// `end`. At `end`, and at once if it is `None`, leaves the outstanding replies to the workers.
    fn poll_direct(&mut self, wanted: usize, end: Option<Instant>) {
        while self.direct.polled.len() > 0 && self.inbox.needs_more(wanted) {
            threads::yield_now(); // a server on this machine may need the processor
            self.direct.poll(end.is_none_or(|end| end <= clock::now()));
        }
    }

    /// Ends the round with the votes that have arrived. Counts a node that was asked again and has
    /// not voted as refused, and other outstanding nodes as timed out if there is no verdict.
    pub(crate) fn finish(mut self, wait_end: WaitEnd) -> RoundOutcome {
        self.inbox.close_round();
        let unsettled = self.tally.count_former_refusals();
        let verdict = self.tally.verdict();
        let verdict = verdict.unwrap_or_else(|| self.tally.close_with_timeouts());
        threads::log(|| {
            debug!(
                "{}: {}: {verdict:?}, {} granted, {} refused",
                self.request.lease.keys(),
                self.request.op,
                self.tally.granted().len(),
                self.tally.refused().len(),
            );
        });
        RoundOutcome {
            verdict,
            tally: self.tally,
            details: self.details,
            unsettled,
            wait_end,
        }
    }
}

/// The result of a round.
#[derive(Debug)]
pub(crate) struct RoundOutcome {
    pub(crate) verdict: Verdict,
    pub(crate) tally: Tally,
    details: Option<Box<RoundDetails>>,
    /// The nodes that refused, were asked again and have not replied.
    unsettled: NodeSet,
    /// The reason why the wait for replies ended.
    pub(crate) wait_end: WaitEnd,
}

impl RoundOutcome {
    /// Returns an outcome whose details come from these replies.
    #[cfg(test)]
    pub(crate) fn with_replies(
        verdict: Verdict,
        tally: Tally,
        wait_end: WaitEnd,
        replies: &[Reply],
    ) -> RoundOutcome {
        let mut details = None;
        for (node, reply) in replies.iter().enumerate() {
            RoundDetails::record(&mut details, node, reply);
        }
        RoundOutcome {
            verdict,
            tally,
            details,
            unsettled: NodeSet::default(),
            wait_end,
        }
    }

    /// Returns the nodes that certainly hold nothing of the lease.
    pub(crate) fn refused(&self) -> NodeSet {
        self.tally.refused().difference(self.unsettled)
    }

    /// Returns the fence counters of the nodes that granted a fenced acquire.
    pub(crate) fn fence_counters(&self) -> &[(usize, u64)] {
        self.details.as_ref().map_or(&[], |d| &d.fence_counters)
    }

    /// Returns how many receivers a published release had, by node. Nodes without any are left out.
    pub(crate) fn receivers(&self) -> &[(usize, u64)] {
        self.details.as_ref().map_or(&[], |d| &d.receivers)
    }

    /// Returns whether a node woke the first process of the waiting list.
    pub(crate) fn woke_next(&self) -> bool {
        self.details.as_ref().is_some_and(|d| d.woke_next)
    }

    /// Returns the indices of the lock's keys that other owners hold, where it has several keys:
    /// of each node that refused, the key that stays held for the longest.
    pub(crate) fn blocking_keys(&self) -> &[usize] {
        self.details.as_ref().map_or(&[], |d| &d.blocking_keys)
    }

    /// Returns the owner label that most of the refusing nodes reported.
    pub(crate) fn owner_label(&self) -> Option<&str> {
        let labels = self.details.as_ref().map_or(&[][..], |d| &d.owner_labels);
        let labels = labels.iter().map(|label| &**label);
        let count = |label: &&str| labels.clone().filter(|other| other == label).count();
        labels.clone().max_by_key(count)
    }

    /// Returns the free permits of a semaphore on each node that refused a permit, by its latest
    /// reply.
    pub(crate) fn free_permits(&self) -> Vec<&FreePermits> {
        let reports = self.details.as_ref().map_or(&[][..], |d| &d.free_permits);
        let refused = |(node, _): &&(usize, FreePermits)| self.tally.refused().contains(*node);
        reports
            .iter()
            .filter(refused)
            .map(|(_, free)| free)
            .collect()
    }
}

/// The contents of the replies besides the votes. Created by the first reply that has any, because
/// most rounds have none.
#[derive(Debug, Default)]
struct RoundDetails {
    fence_counters: Vec<(usize, u64)>,
    receivers: Vec<(usize, u64)>,
    woke_next: bool,
    blocking_keys: Vec<usize>,
    owner_labels: Vec<Box<str>>,
    /// The latest report of each node.
    free_permits: Vec<(usize, FreePermits)>,
}

impl RoundDetails {
    /// Adds the contents of a reply.
    fn record(details: &mut Option<Box<RoundDetails>>, node: usize, reply: &Reply) {
        match reply {
            Reply::Fenced(counter) | Reply::SwappedAbsent(Some(counter)) => {
                let counters = &mut details.get_or_insert_default().fence_counters;
                counters.push((node, *counter));
            }
            Reply::DoneNotified(count) | Reply::DoneWoke(count) => {
                let details = details.get_or_insert_default();
                details.receivers.push((node, *count));
                details.woke_next |= matches!(reply, Reply::DoneWoke(_));
            }
            Reply::Held(by, _, label) => {
                if let Blocker::OwnerOfKey(key) = by {
                    let keys = &mut details.get_or_insert_default().blocking_keys;
                    if !keys.contains(key) {
                        keys.push(*key);
                    }
                }
                if let Some(label) = label {
                    let labels = &mut details.get_or_insert_default().owner_labels;
                    labels.push(label.clone());
                }
            }
            Reply::PermitTaken(free, _) => {
                let permits = &mut details.get_or_insert_default().free_permits;
                permits.retain(|(reporter, _)| *reporter != node);
                permits.push((node, free.clone()));
            }
            _ => {}
        }
    }
}
