//! The part of the pipeline that ends a connection and keeps its releases (S4, L3).
//!
//! When a connection breaks, each request in flight is either reported as failed, with its effect
//! unknown, or, if it is a release, kept pending. A pending release is sent again on the next
//! connection, until a node has replied or the key cannot exist there any more.
//!
//! - No request but a release is ever sent twice.
//! - No release is dropped while its key may exist on the node.
//! - A pending release delays no other request: at most
//!   [`MAX_BEHIND`](crate::transport::pending_releases::MAX_BEHIND) follow each batch.

use std::sync::Arc;
use std::time::Instant;

use crate::error::node_failure::NodeFailure;
use crate::protocol::reply::Reply;
use crate::protocol::request::{Op, Request};
use crate::protocol::send_check::record_unanswered;
use crate::sync::atomic::Ordering;
use crate::telemetry::observer::NodeReply;
use crate::time::clock;
use crate::transport::job::{Job, MAX_BATCH, PendingReply, RequestState};
use crate::transport::pipeline::Pipeline;

impl Pipeline {
    /// Drops the connection, and abandons the direct sends in flight.
    pub(super) fn abort_connection(&mut self, cause: &NodeFailure) {
        self.session = None;
        self.failure = None;
        self.status.overdue_at.store(u64::MAX, Ordering::Release);
        let now = clock::now();
        let in_flight = std::mem::take(&mut self.in_flight);
        let pending_replies = std::mem::take(&mut self.pending_replies);
        for (sent, (pending_reply, sent_at)) in in_flight.into_iter().zip(pending_replies) {
            if pending_reply.state == RequestState::Open {
                self.record_reply(NodeReply::NoReply, now.saturating_duration_since(sent_at));
            }
            self.abandon_request(sent.request, pending_reply, cause);
        }
    }

    /// Drops the connection, and abandons the direct sends and the batch.
    pub(super) fn abort_with_batch(&mut self, cause: &NodeFailure) {
        self.abort_connection(cause);
        self.batch_tokens.clear();
        let batch = self.batch.drain(..).zip(self.batch_pending.drain(..));
        let batch: Vec<_> = batch.collect();
        for (request, pending_reply) in batch {
            self.abandon_request(request, pending_reply, cause);
        }
    }

    /// Ends a request that was in flight when the connection broke: keeps a release pending, and
    /// reports any other request as failed.
    pub(super) fn abandon_request(
        &mut self,
        request: Arc<Request>,
        mut pending_reply: PendingReply,
        cause: &NodeFailure,
    ) {
        if pending_reply.state != RequestState::Open {
            return self.settle(request, pending_reply);
        }
        if request.op == Op::Release {
            pending_reply.was_sent = true;
            return self.pending.push(request, pending_reply);
        }
        record_unanswered(&request, self.node);
        // A server error is the reply to another request. It says nothing about this one.
        let cause = match cause {
            NodeFailure::ServerError(_) | NodeFailure::AccessDenied(_) => {
                NodeFailure::Unreachable(format!("connection aborted: {cause}"))
            }
            cause => cause.clone(),
        };
        pending_reply.deliver(self.node, Reply::Failed(cause));
    }

    /// Ends a request whose reply has arrived. A release with an error reply stays pending.
    pub(super) fn settle(&mut self, request: Arc<Request>, pending_reply: PendingReply) {
        match pending_reply.state {
            RequestState::Refused => {
                self.pending
                    .push_refused(request, pending_reply, clock::now())
            }
            _ if pending_reply.was_refused => self.pending.note_success(clock::now()),
            _ => {}
        }
    }

    /// Returns when the next pending release is due; `None` if there is none.
    pub(super) fn pending_due(&self, now: Instant) -> Option<Instant> {
        self.pending.due(now)
    }

    /// Adds the due pending releases to the end of the batch. Their tokens are in no other request,
    /// so the order within the batch does not matter.
    pub(crate) fn admit_pending(&mut self) {
        for (request, pending_reply) in self.pending.take_due(clock::now()) {
            self.readmit(request, pending_reply);
        }
    }

    fn readmit(&mut self, request: Arc<Request>, mut pending_reply: PendingReply) {
        pending_reply.state = RequestState::Open;
        self.append_to_batch(request, pending_reply);
    }

    /// Sends all pending releases once, because the worker ends. Blocks for the replies.
    ///
    /// # Errors
    /// The cause if the connection had to be aborted. The other releases stay pending.
    pub(crate) fn send_all_pending(&mut self) -> Result<(), NodeFailure> {
        self.pending.drop_expired(clock::now());
        let mut all = self.pending.take_all();
        let mut done = Ok(());
        while !all.is_empty() && done.is_ok() {
            let count = all.len().min(MAX_BATCH);
            for (request, pending_reply) in all.drain(..count) {
                self.readmit(request, pending_reply);
            }
            done = self.send_batch();
        }
        for (request, pending_reply) in all {
            self.pending.push(request, pending_reply);
        }
        done
    }

    /// Records that the server has killed the former connection: each request on it has run by now,
    /// or never runs.
    ///
    /// A server that does not permit the kill may still run a request later. Its key is then left
    /// to its TTL, as the warning says, because no release is to stay pending without an end.
    pub(super) fn record_killed(&self) {
        self.pending.record_killed(clock::now());
    }

    /// Ends a job that was not sent, because the node is down: keeps a release of a key that the
    /// node may hold pending, and reports any other job as failed.
    pub(crate) fn reject(&mut self, job: Job) {
        let mut pending_reply = PendingReply::new(job.reply);
        if job.request.op != Op::Release {
            let cause = self.cause();
            return pending_reply.deliver(self.node, Reply::Failed(cause));
        }
        match job.request.lease.may_exist(self.node, clock::now()) {
            true => self.pending.push(job.request, pending_reply),
            false => pending_reply.deliver(self.node, Reply::Absent),
        }
    }

    /// Reports the pending releases as failed to the callers that wait for them. The releases stay
    /// pending.
    pub(super) fn fail_release_waiters(&mut self) {
        self.pending.drop_expired(clock::now());
        let cause = self.cause();
        self.pending.fail_waiters(&cause);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::tests::fixtures::lease;
    use crate::time::clock;
    use crate::transport::job::{Pending, PendingReply};
    use crate::transport::pending_releases::{
        MAX_BEHIND, MAX_RETRY_DELAY, MIN_RETRY_DELAY, PendingReleases,
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
            Arc::new(Request::new(Op::Release, &lease, 0)),
            PendingReply::new(None),
        )
    }

    fn refuse(pending: &mut PendingReleases, releases: Vec<Pending>, now: Instant) {
        for (request, pending_reply) in releases {
            pending.push_refused(request, pending_reply, now);
        }
    }

    #[test]
    fn pending_release_is_encoded_anew() {
        let (mut pending, now) = (pending_releases(), clock::now());
        for is_refused in [false, true] {
            let (mut request, pending_reply) = release(now, Duration::from_secs(3600));
            let request_mut = Arc::make_mut(&mut request);
            request_mut.encoded = Some(Box::from(&b"with a rest of the minimum time"[..]));
            match is_refused {
                false => pending.push(request, pending_reply),
                true => pending.push_refused(request, pending_reply, now),
            }
        }
        let all = pending.take_all();
        assert_eq!(all.len(), 2);
        assert!(all.iter().all(|(request, _)| request.encoded.is_none()));
    }

    #[test]
    fn many_refused_releases_are_retried_at_a_bounded_rate() {
        let (mut pending, start) = (pending_releases(), clock::now());
        let hour = Duration::from_secs(3600);
        let many = (0..10_000).map(|_| release(start, hour)).collect();
        refuse(&mut pending, many, start);
        assert!(pending.take_due(start).is_empty(), "not at once");
        let (mut now, mut retried) = (start, 0);
        while now < start + Duration::from_secs(60) {
            now = now.max(pending.due(now).expect("some are left"));
            let due = pending.take_due(now);
            retried += due.len();
            refuse(&mut pending, due, now);
        }
        assert!(retried <= MAX_BEHIND * 40, "{retried}");
        assert_eq!(pending.len(), 10_000);
        // The node executes releases again: all are sent without a delay.
        while pending.len() > 0 {
            pending.note_success(now);
            assert_eq!(pending.take_due(now).len().min(1), 1);
        }
        assert_eq!(pending.due(now), None);
    }

    #[test]
    fn single_refused_release_is_retried_after_a_growing_delay() {
        let (mut pending, start) = (pending_releases(), clock::now());
        refuse(
            &mut pending,
            vec![release(start, Duration::from_secs(3600))],
            start,
        );
        let mut delays = Vec::new();
        let mut now = start;
        for _ in 0..10 {
            let due = pending.due(now).expect("it is left");
            delays.push(due - now);
            now = due;
            let due = pending.take_due(now);
            assert_eq!(due.len(), 1);
            refuse(&mut pending, due, now);
        }
        assert!(delays.is_sorted() && delays[0] >= MIN_RETRY_DELAY);
        assert_eq!(delays[9], MAX_RETRY_DELAY);
    }

    #[test]
    fn pending_release_is_dropped_with_its_ttl_although_the_node_refuses_it() {
        let (mut pending, start) = (pending_releases(), clock::now());
        let ttl = Duration::from_secs(1);
        let (request, pending_reply) = release(start, ttl);
        request.lease.record_unanswered(NODE);
        pending.push(request, pending_reply);
        let (request, pending_reply) = release(start, ttl);
        pending.push_refused(request, pending_reply, start);
        let mut now = start + 2 * ttl;
        pending.drop_expired(now);
        assert_eq!(
            pending.len(),
            1,
            "the node may execute an unanswered request later"
        );
        pending.record_killed(now);
        now += ttl;
        assert_eq!(pending.take_due(now).len(), 1);
        let (request, pending_reply) = release(start, ttl);
        request.lease.record_unanswered(NODE);
        pending.push(request, pending_reply);
        pending.record_killed(now);
        now += 2 * ttl;
        assert!(pending.take_due(now).is_empty());
        assert_eq!(pending.status.pending.load(Ordering::Acquire), 0);
    }
}
