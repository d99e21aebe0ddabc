//! Where answers go, and the pending releases of a node: kept over a broken connection, and where the node answers with an
//! error, until they have taken effect or their keys cannot exist any more (rules S4, L3).

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::error::NodeFailure;
use crate::protocol::reply::Reply;
use crate::protocol::request::{Op, Request};
use crate::protocol::send_check::{record_unanswered, skip_reply};
use crate::telemetry::observer::NodeReply;
use crate::time::clock;
use crate::transport::job::{Job, MAX_BATCH, PendingReply, State};
use crate::transport::pipeline::Pipeline;

impl Pipeline {
    /// The connection broke, or is given up: what is open is unknown to its callers, and the releases that did not take effect
    /// for certain are pending.
    pub(crate) fn abort_connection(&mut self, cause: &NodeFailure) {
        self.session = None;
        self.failure = None;
        self.health.overdue_at.store(u64::MAX, Ordering::Release);
        let (now, flights) = (clock::now(), std::mem::take(&mut self.in_flight));
        let backs = std::mem::take(&mut self.pending_replies);
        for (flight, (back, sent)) in flights.into_iter().zip(backs) {
            if back.state == State::Open {
                self.record_reply(NodeReply::NoReply, now.saturating_duration_since(sent));
            }
            self.abandon_request(flight.request, back, cause);
        }
    }

    /// The lane goes down: nothing is left on the wire of what connection there was.
    pub(crate) fn go_down(&mut self, cause: &NodeFailure) {
        self.abort_connection(cause);
        let (requests, returns) = (self.batch.drain(..), self.batch_pending.drain(..));
        let batch: Vec<_> = requests.zip(returns).collect();
        for (request, back) in batch {
            self.abandon_request(request, back, cause);
        }
    }

    /// It was on the wire when the connection broke.
    pub(crate) fn abandon_request(
        &mut self,
        request: Request,
        mut back: PendingReply,
        cause: &NodeFailure,
    ) {
        if back.state != State::Open {
            return self.settle(request, back);
        }
        if request.verb == Op::Release {
            back.was_sent = true;
            return self.pending.push(request, back);
        }
        record_unanswered(&request, self.node);
        // A server's error is the answer to another request: of this one nothing is known.
        let cause = match cause {
            NodeFailure::ServerError(_) | NodeFailure::AccessDenied(_) => {
                NodeFailure::Unreachable(format!("the connection was given up: {cause}"))
            }
            cause => cause.clone(),
        };
        back.deliver(self.node, Reply::Failed(cause));
    }

    /// It has its answer.
    pub(crate) fn settle(&mut self, request: Request, back: PendingReply) {
        match back.state {
            State::Refused => self.pending.push_refused(request, back, clock::now()),
            _ if back.was_refused => self.pending.note_success(clock::now()),
            _ => {}
        }
    }

    /// When pending releases are to be sent, if there are any.
    pub(crate) fn pending_due(&self, now: Instant) -> Option<Instant> {
        self.pending.due(now)
    }

    /// Puts pending releases that are due behind what is in the batch. They are of tokens that nobody asks for any more, so it
    /// does not matter what else is in it.
    pub(crate) fn admit_pending(&mut self) {
        for (request, back) in self.pending.take_due(clock::now()) {
            self.readmit(request, back);
        }
    }

    fn readmit(&mut self, request: Request, mut back: PendingReply) {
        back.state = State::Open;
        self.batch.push(request);
        self.batch_pending.push(back);
    }

    /// Sends all pending releases once, since the lane ends.
    pub(crate) fn send_all_pending(&mut self) -> Result<(), NodeFailure> {
        self.pending.drop_expired(clock::now());
        let mut all = self.pending.take_all();
        let mut done = Ok(());
        while !all.is_empty() {
            let count = all.len().min(MAX_BATCH);
            all.drain(..count)
                .for_each(|(request, back)| self.readmit(request, back));
            done = done.and_then(|()| self.send_batch());
            if done.is_err() {
                break;
            }
        }
        for (request, back) in all {
            self.pending.push(request, back);
        }
        done
    }

    /// A new connection has killed the former one: what was open on that has been run by now, or never is. Where the server does
    /// not let us kill it, what it runs later is left to its TTL, as the log has said: nothing waits for that without an end.
    pub(crate) fn note_killed(&self) {
        self.pending.note_killed(clock::now());
    }

    /// A job for a node that does not answer: releases of what the node may have are pending, everything else was not sent.
    pub(crate) fn reject(&mut self, job: Job) {
        let mut back = PendingReply::new(job.reply);
        if job.request.verb != Op::Release {
            let cause = self.cause();
            return back.deliver(self.node, Reply::Failed(cause));
        }
        match skip_reply(&job.request, self.node, Duration::ZERO, clock::now()) {
            Some(answer) => back.deliver(self.node, answer),
            None => self.pending.push(job.request, back),
        }
    }

    /// Answers those who wait for a pending release; the releases stay pending.
    pub(crate) fn fail_release_waiters(&mut self) {
        self.pending.drop_expired(clock::now());
        let cause = self.cause();
        for (_, back) in &mut self.pending.unanswered {
            back.deliver(self.node, Reply::Failed(cause.clone()));
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::protocol::lease::tests::lease;
    use crate::time::clock;
    use crate::transport::job::{Pending, PendingReply};
    use crate::transport::pending_releases::{
        FIRST_PAUSE, LAST_PAUSE, MAX_BEHIND, PendingReleases,
    };
    use crate::transport::status::ConnectionStatus;

    const NODE: usize = 0;

    fn pending_releases() -> PendingReleases {
        PendingReleases::new(NODE, &Arc::new(ConnectionStatus::new()))
    }

    fn release(now: Instant, ttl: Duration) -> Pending {
        let lease = lease("x");
        lease.record_sent(NODE, now, ttl);
        (
            Request::new(Op::Release, &lease, 0),
            PendingReply::new(None),
        )
    }

    fn refuse(pending: &mut PendingReleases, some: Vec<Pending>, now: Instant) {
        for (request, back) in some {
            pending.push_refused(request, back, now);
        }
    }

    #[test]
    fn refused_releases_are_tried_ever_more_seldom_however_many_they_are() {
        let (mut pending, start) = (pending_releases(), clock::now());
        let hour = Duration::from_secs(3600);
        let many = (0..10_000).map(|_| release(start, hour)).collect();
        refuse(&mut pending, many, start);
        assert!(pending.take_due(start).is_empty(), "not at once");
        let (mut now, mut tried) = (start, 0);
        while now < start + Duration::from_secs(60) {
            now = now.max(pending.due(now).expect("some are left"));
            let due = pending.take_due(now);
            tried += due.len();
            refuse(&mut pending, due, now);
        }
        assert!(tried <= MAX_BEHIND * 40, "{tried}");
        assert_eq!(pending.len(), 10_000);
        // What stood in the way is gone: all go in a row.
        while pending.len() > 0 {
            pending.note_success(now);
            assert_eq!(pending.take_due(now).len().min(1), 1);
        }
        assert_eq!(pending.due(now), None);
    }

    #[test]
    fn single_refused_release_is_not_tried_without_a_pause() {
        let (mut pending, start) = (pending_releases(), clock::now());
        refuse(
            &mut pending,
            vec![release(start, Duration::from_secs(3600))],
            start,
        );
        let mut pauses = Vec::new();
        let mut now = start;
        for _ in 0..10 {
            let due = pending.due(now).expect("it is left");
            pauses.push(due - now);
            now = due;
            let due = pending.take_due(now);
            assert_eq!(due.len(), 1);
            refuse(&mut pending, due, now);
        }
        assert!(pauses.is_sorted() && pauses[0] >= FIRST_PAUSE);
        assert_eq!(pauses[9], LAST_PAUSE);
    }

    #[test]
    fn pending_release_ends_with_its_ttl_also_while_the_node_refuses_it() {
        let (mut pending, start) = (pending_releases(), clock::now());
        let ttl = Duration::from_secs(1);
        let (request, back) = release(start, ttl);
        request.lease.record_unanswered(NODE);
        pending.push(request, back);
        let (request, back) = release(start, ttl);
        pending.push_refused(request, back, start);
        let mut now = start + 2 * ttl;
        pending.drop_expired(now);
        assert_eq!(
            pending.len(),
            1,
            "the node may yet run what it has not answered"
        );
        pending.note_killed(now);
        now += ttl;
        assert_eq!(pending.take_due(now).len(), 1);
        let (request, back) = release(start, ttl);
        request.lease.record_unanswered(NODE);
        pending.push(request, back);
        pending.note_killed(now);
        now += 2 * ttl;
        assert!(pending.take_due(now).is_empty());
        assert_eq!(pending.health.pending.load(Ordering::Acquire), 0);
    }
}
