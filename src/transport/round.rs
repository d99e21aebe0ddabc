//! Many nodes, once: one request into every node's lane, and one wait for what they answer.

use std::sync::Arc;
use std::time::Instant;

use log::debug;

use crate::error::Cause;
use crate::protocol::key::Key;
use crate::protocol::permits::Free;
use crate::protocol::quorum::{NodeSet, Tally, Verdict};
use crate::protocol::reply::{Answer, Holder, vote};
use crate::protocol::request::{Request, Verb};
use crate::time::clock;
use crate::time::deadline::Budget;
use crate::transport::connection::Lane;
use crate::transport::inbox::{Ended, Inbox};
use crate::transport::job::Job;
use crate::transport::load::Caller;
use crate::transport::messages::Start;
use crate::transport::node_group::Nodes;

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
    pub(crate) free: Vec<Free>,
    /// Empty but while they are counted; kept for its memory.
    pub(crate) answers: Vec<(usize, Answer)>,
    pub(crate) nodes: &'a Nodes,
    pub(crate) caller: Caller<'a>,
    pub(crate) own: Own<'a>,
}

/// The nodes that a caller has asked himself, and looks for the answers of. What has not come when this is dropped, their lanes'
/// threads look for.
#[derive(Debug)]
pub(crate) struct Own<'a> {
    pub(crate) nodes: &'a Nodes,
    pub(crate) key: &'a Key,
    pub(crate) open: NodeSet,
    /// Those of them whose lanes' threads do not look unless they are woken.
    pub(crate) unseen: NodeSet,
}

impl Own<'_> {
    pub(crate) fn note(&mut self, node: usize, wake: bool) {
        self.open.insert(node);
        if wake {
            self.unseen.insert(node);
        }
    }

    /// Takes in what has come; or, if that `is_over`, lets the lanes' threads wait for it.
    fn look(&mut self, is_over: bool) {
        for (node, lane) in self.nodes.lanes(self.key) {
            if self.open.contains(node) && (is_over || !lane.look()) {
                lane.wake();
                self.open = self.open.without(NodeSet::of(node));
            }
        }
    }
}

impl Drop for Own<'_> {
    fn drop(&mut self) {
        for (node, lane) in self.nodes.lanes(self.key) {
            if self.open.contains(node) && self.unseen.contains(node) {
                lane.wake_if_open();
            }
        }
    }
}

impl Round<'_> {
    /// Leaves what is to come to the lanes' threads, since others wait for it.
    pub(crate) fn leave(mut self) {
        self.own.look(true);
    }

    /// What is known so far.
    pub(crate) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Waits until the nodes have decided or the budget's time is over: nobody ever waits for a lane.
    pub(crate) fn outcome(mut self, budget: Budget) -> Outcome {
        let ended = self.decide(budget);
        self.end(ended)
    }

    /// The same for a round that may go on after it.
    pub(crate) fn decide(&mut self, budget: Budget) -> Ended {
        let start = clock::now();
        let soon = self.nodes.pace.soon(start);
        let mut ended = Ended::Answered;
        while self.tally.verdict().is_none() && ended == Ended::Answered {
            ended = self.collect(self.tally.at_least(), soon, budget.end());
        }
        self.nodes
            .pace
            .note(clock::now().saturating_duration_since(start));
        ended
    }

    /// Waits until `end` for as long as the votes that have come lack something.
    pub(crate) fn collect_while(&mut self, lacks: impl Fn(&Tally) -> bool, end: Instant) {
        let soon = self.nodes.pace.soon(clock::now());
        let mut ended = Ended::Answered;
        while lacks(&self.tally) && ended == Ended::Answered {
            ended = self.collect(1, soon, Some(end));
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
        self.tally.close();
    }

    /// Waits for all nodes that were asked, whatever they say, until the budget's time is over.
    pub(crate) fn of_all(mut self, budget: Budget) -> Outcome {
        let mut ended = Ended::Answered;
        while self.tally.open() > 0 && ended == Ended::Answered {
            ended = self.collect(self.tally.open(), None, budget.end());
        }
        self.end(ended)
    }

    /// Waits for `wanted` answers and counts them.
    pub(crate) fn collect(
        &mut self,
        wanted: usize,
        soon: Option<Instant>,
        end: Option<Instant>,
    ) -> Ended {
        self.look(
            wanted,
            soon.map(|soon| end.map_or(soon, |end| soon.min(end))),
        );
        let ended = self.inbox.collect(wanted, soon, end, &mut self.answers);
        for (node, answer) in self.answers.drain(..) {
            match answer {
                Answer::Numbered(number) | Answer::Anew(Some(number)) => {
                    self.numbers.push((node, number))
                }
                Answer::Heard(count) => self.heard.push((node, count)),
                Answer::Held(Holder::Of(key), _) if !self.in_the_way.contains(&key) => {
                    self.in_the_way.push(key);
                }
                Answer::NotThisOne(ref free, _) => self.free.push(free.clone()),
                _ => {}
            }
            self.tally.vote(node, vote(answer));
        }
        ended
    }

    /// Looks for the answers of the nodes that the caller has asked himself, until `wanted` are there, or `end` (`None`: it is
    /// over). What has not come by then the lanes' threads wait for.
    fn look(&mut self, wanted: usize, end: Option<Instant>) {
        while self.own.open.len() > 0 && self.inbox.lacks(wanted) {
            std::thread::yield_now(); // a server on this machine may want the processor to answer
            self.own.look(end.is_none_or(|end| end <= clock::now()));
        }
    }

    /// Ends the round with what is known so far.
    pub(crate) fn end(mut self, ended: Ended) -> Outcome {
        self.inbox.close_round();
        let unsettled = self.tally.restore();
        let verdict = self.tally.verdict();
        let verdict = verdict.unwrap_or_else(|| self.tally.close());
        debug!(
            "{}: {}: {verdict:?}, {} granted, {} refused",
            self.request.lease.keys(),
            self.request.verb,
            self.tally.granted().len(),
            self.tally.refused().len(),
        );
        Outcome {
            verdict,
            tally: self.tally,
            numbers: self.numbers,
            heard: self.heard,
            in_the_way: self.in_the_way,
            free: self.free,
            unsettled,
            ended,
        }
    }
}

impl Outcome {
    /// The nodes that certainly have nothing of the lease.
    pub(crate) fn refused(&self) -> NodeSet {
        self.tally.refused().without(self.unsettled)
    }
}

/// How a round ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) verdict: Verdict,
    pub(crate) tally: Tally,
    /// What the fences of the nodes gave that granted a take.
    pub(crate) numbers: Vec<(usize, u64)>,
    /// How many heard of a release, on nodes where somebody did.
    pub(crate) heard: Vec<(usize, u64)>,
    /// Which of the lock's keys others hold, where it has several: of each node that refused the one that it is longest for.
    pub(crate) in_the_way: Vec<usize>,
    /// Which permits of a semaphore are free, on each node that refused one.
    pub(crate) free: Vec<Free>,
    /// The nodes that refused, were asked once more and have not answered.
    pub(crate) unsettled: NodeSet,
    /// What ended it.
    pub(crate) ended: Ended,
}

/// Gives a job to a node's lane, sent by this very thread if it is given as `bytes` on the wire.
///
/// A suspect node is asked for nothing and left nothing but the releases of leases that it was asked for before: what waits for
/// it does not grow with an outage (rule L3).
pub(crate) fn give(
    node: usize,
    lane: &Lane,
    job: Job,
    bytes: Option<&[u8]>,
    now: Instant,
) -> Result<Start, Cause> {
    let request = &job.request;
    // Before it is there. A lease that is given up before that need not be released: then the request is not sent.
    if request.verb.grants() && lane.is_up(now) {
        let node = NodeSet::of(node);
        request.leases().for_each(|lease| lease.note_asked(node));
    }
    let owed = request.verb == Verb::Release && request.lease.asked().contains(node);
    match bytes {
        Some(bytes) => lane.start_job(job, bytes, owed, now),
        None => lane.submit(job, owed, now).map(|()| Start::Queued),
    }
}
