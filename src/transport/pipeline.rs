//! The pipeline of a node connection: its session, the requests in flight, the pending releases.
//!
//! The worker keeps the pipeline locked, also while it connects or its connection is down. It
//! unlocks it in `Worker::wait` only, where it waits for a message or for an idle tick while the
//! connection is up. In that time a caller may lock the pipeline, send its own request directly,
//! and poll for the reply.
//!
//! - A caller never waits for the node here: its sends and polls do not block.
//! - The reply to a request that was sent is delivered. Without one the request is reported as
//!   failed, or, if it is a release, kept pending ([`unreleased`](crate::transport::unreleased)).
//! - A direct send never overtakes a request of the same token that is in flight (S4).
//! - A connection that leads to a former run of the node carries no direct send.
//!
//! Parts of it in files of their own: `direct_sends.rs` (a caller's own requests), `replies.rs`
//! (records, warnings and delivery), `unreleased.rs` (the end of a connection).
//!
//! Tests: `src/tests/transport/pipeline.rs`, for these rules in this order
//! `direct_sends_are_polled_in_any_order`,
//! `broken_connection_fails_acquires_and_keeps_releases_pending`,
//! `direct_send_behind_a_resendable_request_of_the_token_is_refused`,
//! `direct_send_on_a_connection_to_a_former_run_is_refused`; `src/tests/engine/pending.rs` (pending
//! releases).

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::node_failure::NodeFailure;
use crate::protocol::request::{Request, TokenSet};
use crate::protocol::send_check::{record_sent, replacement_release, skip_reply};
use crate::sync::atomic::Ordering;
use crate::telemetry::observer::{NodeReply, Observer};
use crate::time::clock;
use crate::transport::job::{Job, MAX_BATCH, PendingReply};
use crate::transport::messages::NodeConfig;
use crate::transport::node::traits::{InFlight, Session};
use crate::transport::pending_releases::PendingReleases;
use crate::transport::registry::NodeRegistry;
use crate::transport::status::ConnectionStatus;
use crate::transport::warning_state::WarningState;

/// The age of the last reply from which a connection counts as idle, so that it is checked before
/// the next request. The check is one to three system calls; between two requests of a busy caller
/// it would cost a fifth of the time of a lock. A connection that ends within this time after a
/// reply fails the next request, as a connection that ends during a request does.
const IDLE_AFTER: Duration = Duration::from_micros(if cfg!(test) { 0 } else { 20 });

/// The connection to a node, if it is open, and the requests on it.
///
/// | state | fields | leaves by |
/// |---|---|---|
/// | connecting | no session | [`attach_session`](Pipeline::attach_session) → idle |
/// | idle | session, nothing in flight | a direct send → in flight; a batch → sending |
/// | in flight | session, `in_flight` | the replies → idle; a caller's error → failed |
/// | sending | no session, within `send_batch` or `while_idle` | the replies → idle |
/// | idle, in flight, sending | as above | an error in an exchange of the worker → connecting |
/// | failed | `failure` set | the worker aborts the connection → connecting |
/// | replaced | an epoch other than the node's | the worker aborts the connection → connecting |
pub(crate) struct Pipeline {
    pub(crate) node: usize,
    pub(super) name: String,
    pub(crate) status: Arc<ConnectionStatus>,
    pub(crate) registry: Arc<NodeRegistry>,
    /// The node's epoch when the connection was opened.
    pub(super) epoch: u64,
    pub(super) node_timeout: Duration,
    /// `node_timeout` in µs.
    node_timeout_us: u64,
    pub(super) observer: Option<Arc<dyn Observer>>,
    pub(super) session: Option<Box<dyn Session>>,
    /// The next batch. [`send_batch`](Pipeline::send_batch) empties it.
    pub(super) batch: Vec<Arc<Request>>,
    /// The destinations of the replies to `batch`, in the same order.
    pub(super) batch_pending: Vec<PendingReply>,
    /// The tokens of `batch`.
    pub(super) batch_tokens: TokenSet,
    /// The direct sends in flight, oldest first.
    pub(super) in_flight: VecDeque<InFlight>,
    /// The destinations of the replies to `in_flight`, in the same order, with the time of each
    /// send.
    pub(super) pending_replies: VecDeque<(PendingReply, Instant)>,
    /// The id of the next direct send on this connection.
    pub(crate) next_id: u64,
    pub(crate) pending: PendingReleases,
    /// The run ids of the servers to which the present connection leads, or the last one led.
    run_ids: String,
    /// Since when the connection has led to servers with these run ids, reconnects included.
    pub(super) runs_since: Instant,
    /// When the node last replied on this connection; after a reply to a PING, when that was sent.
    /// `None` if the node has not replied.
    pub(super) last_reply: Option<Instant>,
    /// Why the connection is unusable, until the worker aborts it.
    pub(super) failure: Option<NodeFailure>,
    /// Whether the last `Worker::wait` began without direct sends. Until the next one begins, the
    /// worker polls for no reply.
    pub(crate) polls_paused: bool,
    /// Whether a caller has sent directly since `Worker::wait` last began.
    pub(crate) used_since_sleep: bool,
}

impl Pipeline {
    pub(crate) fn new(
        node: usize,
        config: &NodeConfig,
        status: Arc<ConnectionStatus>,
        registry: Arc<NodeRegistry>,
    ) -> Pipeline {
        Pipeline {
            node,
            name: config.name.clone(),
            pending: PendingReleases::new(node, &status),
            status,
            registry,
            epoch: 0,
            node_timeout: config.node_timeout,
            node_timeout_us: clock::whole_micros(config.node_timeout),
            observer: config.observer.clone(),
            session: None,
            batch: Vec::with_capacity(MAX_BATCH),
            batch_pending: Vec::with_capacity(MAX_BATCH),
            batch_tokens: TokenSet::default(),
            in_flight: VecDeque::new(),
            pending_replies: VecDeque::new(),
            next_id: 0,
            run_ids: String::new(),
            runs_since: clock::now(),
            last_reply: None,
            failure: None,
            polls_paused: false,
            used_since_sleep: false,
        }
    }

    /// Attaches a session with servers of these run ids. Requests on the former connection count as
    /// ended from now on (`record_killed`). Pending releases stay behind the requests of the next
    /// batch.
    pub(crate) fn attach_session(&mut self, session: Box<dyn Session>, run_ids: &str) {
        self.session = Some(session);
        self.last_reply = None;
        self.failure = None;
        if self.run_ids != run_ids {
            run_ids.clone_into(&mut self.run_ids);
            self.runs_since = clock::now();
        }
        self.record_killed();
    }

    /// Returns which warnings were logged for the node.
    pub(super) fn warnings(&self) -> &WarningState {
        self.registry.warnings(self.node)
    }

    /// Returns whether the connection leads to the node's current run, not to a former one.
    pub(super) fn is_current(&self) -> bool {
        self.registry.epoch(self.node) == self.epoch
    }

    /// Checks that the connection leads to the node's current run.
    ///
    /// # Errors
    /// The cause if another connection has led to another run since this one was opened.
    pub(super) fn check_epoch(&self) -> Result<(), NodeFailure> {
        match self.is_current() {
            true => Ok(()),
            false => Err(NodeFailure::Unreachable(
                "replaced: a newer connection leads to another server, or to this one restarted"
                    .to_owned(),
            )),
        }
    }

    /// Returns whether the node has replied since the last session was attached. The handshake does
    /// not count; a PING does.
    pub(super) fn has_replied(&self) -> bool {
        self.last_reply.is_some()
    }

    /// Returns why the connection is not up.
    pub(super) fn cause(&self) -> NodeFailure {
        self.status.report.lock().cause.clone()
    }

    /// Returns whether direct sends are in flight, or have failed.
    pub(crate) fn has_in_flight(&self) -> bool {
        !self.in_flight.is_empty() || self.failure.is_some()
    }

    /// Returns whether the batch is shorter than [`MAX_BATCH`].
    pub(super) fn batch_has_room(&self) -> bool {
        self.batch.len() < MAX_BATCH
    }

    /// Returns whether the batch has a request of the job's token already.
    pub(crate) fn batch_shares_token(&self, job: &Job) -> bool {
        self.batch_tokens.shares_token(&job.request)
    }

    /// Adds a job to the batch, unless its request need not be sent any more. A swap whose lease is
    /// over is replaced by a release.
    pub(crate) fn push_to_batch(&mut self, job: Job, now: Instant) {
        if let Some((request, pending_reply)) = self.prepare(job, now) {
            record_sent(&request, self.node, now);
            self.append_to_batch(request, pending_reply);
        }
    }

    /// Adds a request to the end of the batch.
    pub(super) fn append_to_batch(&mut self, request: Arc<Request>, pending_reply: PendingReply) {
        self.batch_tokens.insert(&request);
        self.batch.push(request);
        self.batch_pending.push(pending_reply);
    }

    /// Returns the request to send for a job. `None` if the job needs no request: its reply is then
    /// delivered here.
    fn prepare(&self, job: Job, now: Instant) -> Option<(Arc<Request>, PendingReply)> {
        let Job { request, reply } = job;
        let mut pending_reply = PendingReply::new(reply);
        let (node, quarantine) = (self.node, self.status.quarantine(now));
        let Some(reply) = skip_reply(&request, node, quarantine, now) else {
            return Some((request, pending_reply));
        };
        let Some(release) = replacement_release(&request, &reply) else {
            pending_reply.deliver(node, reply);
            return None;
        };
        pending_reply.was_sent = release.lease.may_exist(node, now);
        Some((Arc::new(release), pending_reply))
    }

    /// Sends the batch and delivers the replies. Afterwards the batch is empty.
    ///
    /// Blocks for the replies, at most until the session's timeouts end.
    ///
    /// # Errors
    /// The cause if the connection had to be aborted.
    pub(crate) fn send_batch(&mut self) -> Result<(), NodeFailure> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let mut session = self.session.take();
        self.batch_tokens.clear();
        let mut requests = std::mem::take(&mut self.batch);
        let mut pending_replies = std::mem::take(&mut self.batch_pending);
        let (sent, mut replies, mut unusable) = (clock::now(), 0, None);
        let mut last_reply = self.last_reply;
        let done = self.with_overdue_mark(|| match &mut session {
            None => Err(no_connection()),
            Some(session) => session.send_batch(&requests, &mut |index, reply| {
                replies += 1;
                let now = clock::now();
                last_reply = Some(now);
                self.record_reply(reply.reply(), now.saturating_duration_since(sent));
                let pending_reply = &mut pending_replies[index];
                let handled = self.handle_reply(&requests[index], pending_reply, reply, now);
                unusable = unusable.take().or(handled.err());
            }),
        });
        // Not the present time: this thread may have slept since it delivered the reply.
        self.last_reply = last_reply;
        let took = clock::now().saturating_duration_since(sent);
        for _ in replies..requests.len() {
            self.record_reply(NodeReply::NoReply, took);
        }
        let done = done.and(unusable.map_or(Ok(()), Err));
        match &done {
            Ok(()) => {
                for (request, pending_reply) in requests.drain(..).zip(pending_replies.drain(..)) {
                    self.settle(request, pending_reply);
                }
                self.session = session;
            }
            Err(cause) => {
                for (request, pending_reply) in requests.drain(..).zip(pending_replies.drain(..)) {
                    self.abandon_request(request, pending_reply, cause);
                }
                self.abort_connection(cause);
            }
        }
        (self.batch, self.batch_pending) = (requests, pending_replies);
        done
    }

    /// Checks whether an idle connection has ended, or has received bytes that belong to no reply.
    /// Does nothing if the last reply is younger than [`IDLE_AFTER`].
    ///
    /// Nothing is in flight, so a connection that fails the check loses no request.
    ///
    /// # Errors
    /// The cause if the connection must not be used any more.
    pub(crate) fn check_idle(&mut self) -> Result<(), NodeFailure> {
        if !self.has_been_idle(clock::now()) {
            return Ok(());
        }
        self.while_idle(|session| session.check_idle())
    }

    /// Returns whether the last reply is at least [`IDLE_AFTER`] old, or there is none.
    pub(super) fn has_been_idle(&self, now: Instant) -> bool {
        self.last_reply
            .is_none_or(|reply| now >= reply + IDLE_AFTER)
    }

    /// Sends a PING on an idle connection and blocks for the reply.
    ///
    /// # Errors
    /// The cause if the connection must not be used any more.
    pub(super) fn ping(&mut self) -> Result<(), NodeFailure> {
        let sent = clock::now();
        let done = self.while_idle(|session| session.ping());
        if done.is_ok() {
            self.last_reply = Some(sent);
        }
        done
    }

    /// Runs an exchange on an idle connection, with the overdue mark.
    fn while_idle(
        &mut self,
        exchange: impl FnOnce(&mut dyn Session) -> Result<(), NodeFailure>,
    ) -> Result<(), NodeFailure> {
        debug_assert!(!self.has_in_flight());
        let mut session = self.session.take();
        let done =
            self.with_overdue_mark(|| exchange(session.as_deref_mut().ok_or_else(no_connection)?));
        self.session = session;
        done
    }

    /// Runs an exchange with the node. Callers see the connection as overdue while the exchange
    /// takes longer than `node_timeout`: a reply that arrives byte by byte can outlast every socket
    /// timeout.
    ///
    /// # Errors
    /// The error of the exchange, or a panic in it.
    pub(crate) fn with_overdue_mark(
        &self,
        exchange: impl FnOnce() -> Result<(), NodeFailure>,
    ) -> Result<(), NodeFailure> {
        let overdue_at = clock::to_micros(clock::now() + self.node_timeout);
        self.status.overdue_at.store(overdue_at, Ordering::Release);
        let done = catch_panic(exchange);
        self.status.overdue_at.store(u64::MAX, Ordering::Release);
        if done.is_ok() && clock::to_micros(clock::now()) > overdue_at {
            self.registry.record_connected(); // callers have seen the connection as overdue
        }
        done
    }

    /// Marks the start of a reconnect, which may take `node_timeout` before callers see the
    /// connection as overdue.
    pub(super) fn expect_connect(&self) {
        self.set_overdue(clock::now());
    }

    /// Returns whether a reply or a reconnect is overdue.
    pub(super) fn is_overdue(&self) -> bool {
        self.status.is_overdue(clock::now())
    }

    /// Sets the overdue time from the send of the oldest outstanding request.
    pub(super) fn set_overdue(&self, sent: Instant) {
        let overdue_at = clock::to_micros(sent).saturating_add(self.node_timeout_us);
        self.status.overdue_at.store(overdue_at, Ordering::Release);
    }
}

/// Runs an exchange with a node, and returns a panic in it as an error. So the panic ends neither a
/// caller nor the worker.
pub(super) fn catch_panic<T>(
    exchange: impl FnOnce() -> Result<T, NodeFailure>,
) -> Result<T, NodeFailure> {
    catch_unwind(AssertUnwindSafe(exchange)).unwrap_or_else(|_| Err(panic_failure()))
}

/// Returns the failure of an exchange that panicked.
pub(crate) fn panic_failure() -> NodeFailure {
    NodeFailure::Unreachable("a panic during an exchange with the node".into())
}

/// Returns the failure of a request for which there is no session.
pub(crate) fn no_connection() -> NodeFailure {
    NodeFailure::Unreachable("no connection".into())
}

/// Returns the failure of a request that the worker did not serve before its end.
pub(super) fn worker_stopped() -> NodeFailure {
    NodeFailure::Unreachable("the worker has stopped".into())
}
