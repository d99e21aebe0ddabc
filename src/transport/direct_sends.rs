//! The part of the pipeline that sends a caller's own request, and reads the replies to direct
//! sends. Its rules stand in `pipeline.rs`.
//!
//! No function here waits for the node, except `drain_replies` and its `read_replies(true)`. Only
//! the worker calls `drain_replies`.
//!
//! Tests: `src/tests/transport/pipeline.rs`.

use std::sync::Arc;
use std::time::Instant;

use crate::error::node_failure::NodeFailure;
use crate::protocol::request::{Op, Request};
use crate::protocol::send_check::{record_sent, skip_reply};
use crate::sync::atomic::Ordering;
use crate::time::clock;
use crate::transport::job::{Job, PendingReply};
use crate::transport::node::traits::{DirectIo, InFlight, Session};
use crate::transport::pipeline::{Pipeline, catch_panic, no_connection};

/// The largest number of direct sends in flight on a connection. Further requests go to the worker,
/// which sends many of them faster, in one batch.
pub(crate) const MAX_DIRECT_IN_FLIGHT: usize = 8;
/// The size in bytes up to which a request is sent directly. A socket accepts
/// [`MAX_DIRECT_IN_FLIGHT`] of these without blocking, also if the node hangs and reads none.
const MAX_DIRECT_BYTES: usize = 2048;

impl Pipeline {
    /// Sends a job, whose encoded request is `bytes`, if the connection can take it now. Returns
    /// `true` if the caller must wake the worker: it sleeps and would not poll, or the send failed
    /// and it must abort the connection.
    ///
    /// # Errors
    /// The job itself if the worker has to send it.
    pub(crate) fn send_direct(
        &mut self,
        job: Job,
        bytes: &[u8],
        now: Instant,
    ) -> Result<bool, Job> {
        if !self.can_send_direct(&job.request, bytes.len()) {
            return Err(job);
        }
        if skip_reply(&job.request, self.node, self.status.quarantine(now), now).is_some() {
            return Err(job); // the worker may have to send another request in its place
        }
        let is_idle = self.in_flight.is_empty();
        let check = |session: &mut Box<dyn Session>| catch_panic(|| session.check_idle()).is_ok();
        let needs_check = is_idle && self.has_been_idle(now);
        if needs_check && !self.session.as_mut().is_some_and(check) {
            return Err(job); // the worker reconnects before it sends the job
        }
        let Job { request, reply } = job;
        record_sent(&request, self.node, now);
        let id = self.next_id;
        self.next_id += 1;
        let in_flight = InFlight { id, request };
        let sent = match direct_io(&mut self.session) {
            Ok(io) => catch_panic(|| io.send(&in_flight, bytes)),
            Err(cause) => Err(cause),
        };
        if is_idle {
            self.set_overdue(now);
        }
        self.in_flight.push_back(in_flight);
        self.pending_replies
            .push_back((PendingReply::new(reply), now));
        self.used_since_sleep = true;
        if let Err(cause) = sent {
            self.failure = Some(cause);
        }
        Ok(self.polls_paused || self.failure.is_some())
    }

    /// Returns whether a request of `size` bytes may be sent now, behind the requests in flight.
    fn can_send_direct(&mut self, request: &Request, size: usize) -> bool {
        // A script may be sent again after a NOSCRIPT, and its successor would then overtake it.
        let may_precede =
            |sent: &InFlight| !sent.request.shares_token(request) || sent.request.is_plain_set();
        // `Inspect` replies carry owner labels of any length, so only the worker reads them.
        let is_small = size <= MAX_DIRECT_BYTES && request.op != Op::Inspect;
        self.failure.is_none()
            && self.is_current()
            && is_small
            && self.in_flight.len() < MAX_DIRECT_IN_FLIGHT
            && self.in_flight.iter().all(may_precede)
            && direct_io(&mut self.session).is_ok_and(|io| io.can_append())
    }

    /// Reads the replies that have arrived. Returns whether the caller must wake the worker,
    /// because the connection failed or a release has become pending.
    pub(crate) fn poll_replies(&mut self) -> bool {
        let pending = self.pending.len();
        if self.failure.is_none()
            && let Err(cause) = self.read_replies(false)
        {
            self.failure = Some(cause);
        }
        self.failure.is_some() || self.pending.len() > pending
    }

    /// Returns whether the oldest direct send in flight was sent at `then` or before, or has
    /// failed.
    pub(crate) fn oldest_sent_before(&self, then: Instant) -> bool {
        let oldest = self.pending_replies.front();
        self.failure.is_some() || oldest.is_some_and(|(_, sent)| *sent <= then)
    }

    /// Blocks for the replies to all direct sends, each at most `node_timeout` after its send. Only
    /// the worker calls this.
    ///
    /// # Errors
    /// The cause if the connection had to be aborted.
    pub(crate) fn drain_replies(&mut self) -> Result<(), NodeFailure> {
        let done = match self.failure.take() {
            Some(cause) => Err(cause),
            None => self.read_replies(true),
        };
        if let Err(cause) = &done {
            self.abort_connection(cause);
        }
        done
    }

    /// Reads replies until none is outstanding. Unless `is_blocking`, stops at the first reply
    /// that has not arrived.
    ///
    /// # Errors
    /// The cause if the connection must be aborted. The caller aborts it or sets `failure`.
    fn read_replies(&mut self, is_blocking: bool) -> Result<(), NodeFailure> {
        while let Some((_, sent)) = self.pending_replies.front() {
            let end = is_blocking.then(|| *sent + self.node_timeout);
            let io = direct_io(&mut self.session)?;
            let Some((id, reply)) = catch_panic(|| io.next_reply(&self.in_flight, end))? else {
                return Ok(());
            };
            let Some((request, mut pending_reply, sent)) = self.take_in_flight(id) else {
                continue;
            };
            let now = clock::now();
            let latency = now.saturating_duration_since(sent);
            match self.pending_replies.front() {
                None => self.status.overdue_at.store(u64::MAX, Ordering::Release),
                Some((_, sent)) => self.set_overdue(*sent),
            }
            if latency > self.node_timeout {
                self.registry.record_connected(); // callers have seen the connection as overdue
            }
            self.record_reply(reply.reply(), latency);
            let handled = self.handle_reply(&request, &mut pending_reply, reply, now);
            self.last_reply = Some(now);
            self.settle(request, pending_reply);
            handled?;
        }
        Ok(())
    }

    /// Removes a direct send that is in flight, with the time of the send.
    fn take_in_flight(&mut self, id: u64) -> Option<(Arc<Request>, PendingReply, Instant)> {
        // Nearly always the oldest: only a request that needs a second command is replied to later.
        let (sent, pending) = match self.in_flight.iter().position(|sent| sent.id == id)? {
            0 => (self.in_flight.pop_front(), self.pending_replies.pop_front()),
            index => (
                self.in_flight.remove(index),
                self.pending_replies.remove(index),
            ),
        };
        let (pending_reply, sent_at) = pending?;
        Some((sent?.request, pending_reply, sent_at))
    }
}

/// Returns the session's interface for direct sends.
///
/// # Errors
/// `Unreachable` if there is no session, or none that can be polled without blocking.
fn direct_io(session: &mut Option<Box<dyn Session>>) -> Result<&mut dyn DirectIo, NodeFailure> {
    let io = session.as_mut().and_then(|session| session.direct_io());
    io.ok_or_else(no_connection)
}
