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

use log::{debug, trace, warn};

use crate::error::node_failure::NodeFailure;
use crate::protocol::reply::{Blocker, Reply};
use crate::protocol::request::{Op, Request, TokenSet};
use crate::protocol::send_check::{record_reply, record_sent, replacement_release, skip_reply};
use crate::protocol::server_error;
use crate::sync::atomic::Ordering;
use crate::telemetry::observer;
use crate::telemetry::observer::{NodeReply, Observer};
use crate::time::clock;
use crate::transport::job::{Job, MAX_BATCH, PendingReply, RequestState};
use crate::transport::messages::NodeConfig;
use crate::transport::node::traits::{DirectIo, InFlight, Session};
use crate::transport::pending_releases::PendingReleases;
use crate::transport::registry::NodeRegistry;
use crate::transport::status::ConnectionStatus;
use crate::transport::warning_state::WarningState;

/// The largest number of direct sends in flight on a connection. Further requests go to the worker,
/// which sends many of them faster, in one batch.
pub(crate) const MAX_DIRECT_IN_FLIGHT: usize = 8;
/// The size in bytes up to which a request is sent directly. A socket accepts
/// [`MAX_DIRECT_IN_FLIGHT`] of these without blocking, also if the node hangs and reads none.
const MAX_DIRECT_BYTES: usize = 2048;
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
/// | sending | no session, within `send_batch` | the replies → idle |
/// | each of these three | as above | an error in an exchange of the worker → connecting |
/// | failed | `failure` set | the worker aborts the connection → connecting |
/// | replaced | an epoch other than the node's | the worker aborts the connection → connecting |
pub(crate) struct Pipeline {
    pub(crate) node: usize,
    pub(super) name: String,
    pub(crate) status: Arc<ConnectionStatus>,
    pub(crate) registry: Arc<NodeRegistry>,
    /// The node's epoch when the connection was opened.
    pub(super) epoch: u64,
    node_timeout: Duration,
    /// `node_timeout` in µs.
    node_timeout_us: u64,
    observer: Option<Arc<dyn Observer>>,
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
    runs_since: Instant,
    /// When the node last replied on this connection; `None` if it has not.
    last_reply: Option<Instant>,
    /// Why the connection is unusable, until the worker aborts it.
    pub(super) failure: Option<NodeFailure>,
    /// Whether the worker sleeps until a message arrives or a PING or release is due. It then polls
    /// for no reply.
    pub(crate) worker_asleep: bool,
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
            worker_asleep: false,
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
    fn is_current(&self) -> bool {
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

    /// Returns whether the batch is shorter than [`MAX_BATCH`].
    pub(super) fn batch_has_room(&self) -> bool {
        self.batch.len() < MAX_BATCH
    }

    /// Returns whether the batch has a request of the job's token already.
    pub(super) fn batch_shares_token(&self, job: &Job) -> bool {
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

    /// Records a reply in the lease and the node's warnings, and delivers it.
    ///
    /// # Errors
    /// The cause if the connection must not be used any more.
    fn handle_reply(
        &self,
        request: &Request,
        pending_reply: &mut PendingReply,
        reply: Reply,
        now: Instant,
    ) -> Result<(), NodeFailure> {
        trace!("{}: {}: {reply:?}", self.name, request.op);
        // The node may have executed the request as late as now, so the TTL counts from now.
        record_sent(request, self.node, now);
        record_reply(request, self.node, &reply);
        let mut state = RequestState::Replied;
        if reply.is_endless() {
            self.warn_of_endless(request, &reply);
        }
        let mut result = Ok(());
        match &reply {
            Reply::Failed(cause) => {
                state = self.handle_failure(request, cause, now);
                // The server was a master at the handshake. Now another one may be, and a reconnect
                // finds it where sentinels or a cluster name it.
                if server_error::is_read_only(cause) {
                    result = Err(cause.clone());
                }
            }
            Reply::Done
            | Reply::DoneNotified(_)
            | Reply::DoneWoke(_)
            | Reply::Fenced(_)
            | Reply::SwappedAbsent(_) => {
                self.warnings().clear_denied_key(request);
                if matches!(request.op, Op::Acquire | Op::Swap | Op::TakePlace) {
                    self.warnings().clear_foreign(request);
                }
            }
            _ => {}
        }
        // After the warnings: if the logger panics, the request counts as unanswered.
        pending_reply.state = state;
        pending_reply.deliver_from(self.runs_since, &request.lease, self.node, reply);
        result
    }

    /// Warns about a key without an expiry, which no lock of this crate has.
    fn warn_of_endless(&self, request: &Request, reply: &Reply) {
        let keys = request.lease.keys();
        let key = match reply {
            Reply::Held(Blocker::OwnerOfKey(key), ..) => keys.as_slice().get(*key),
            _ => None,
        };
        let key = key.unwrap_or(keys.first());
        if self.warnings().is_new_foreign(key, request) {
            let name = &self.name;
            warn!("{name}: {key}: foreign value without an expiry: left untouched");
        }
    }

    /// Warns about an error reply, and returns the state of the request after it.
    fn handle_failure(&self, request: &Request, cause: &NodeFailure, now: Instant) -> RequestState {
        let (name, keys) = (&self.name, request.lease.keys());
        if *cause == NodeFailure::WrongType && self.warnings().is_new_foreign(keys.first(), request)
        {
            warn!("{name}: {keys}: {cause}: left untouched");
        }
        if request.op == Op::Release {
            return self.handle_failed_release(request, cause, now);
        }
        if matches!(cause, NodeFailure::AccessDenied(_))
            && self.warnings().is_newly_denied_key(request)
        {
            match request.op {
                // Without the waiting list every release wakes all waiters, as in earlier versions.
                Op::TakePlace | Op::LeavePlace => debug!("{name}: {keys}: {}: {cause}", request.op),
                Op::WakeListener => warn!("{name}: {}: {cause}", request.op),
                _ => warn!("{name}: {keys}: {}: {cause}", request.op),
            }
        }
        RequestState::Replied
    }

    /// Returns the state of a release after an error reply. A server that cannot delete at present
    /// (MISCONF, BUSY) may be able to later.
    fn handle_failed_release(
        &self,
        request: &Request,
        cause: &NodeFailure,
        now: Instant,
    ) -> RequestState {
        // Requests on the former connection count as ended from now on: this one has replaced it,
        // and the node has replied here.
        request.lease.record_killed(self.node, now);
        if cause.is_permanent() || !request.lease.may_exist(self.node, now) {
            return RequestState::Replied;
        }
        let code = match cause {
            NodeFailure::ServerError(text) | NodeFailure::AccessDenied(text) => {
                match server_error::code(text) {
                    "ERR" => text,
                    code => code,
                }
            }
            _ => "",
        };
        if self.warnings().is_new_release_error(code) {
            let name = &self.name;
            warn!("{name}: release refused, retried until the lease's TTL ends: {cause}");
        }
        RequestState::Refused
    }

    /// Counts a reply, or its absence, and notifies the observer.
    pub(super) fn record_reply(&self, reply: NodeReply, latency: Duration) {
        self.status.counters.record(reply, latency);
        let observer = self.observer.as_ref();
        observer::notify(observer, |observer| {
            observer.replied(&self.name, reply, latency);
        });
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

    fn has_been_idle(&self, now: Instant) -> bool {
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
}

/// Direct sends. No method of this block waits for the node, except `drain_replies` and its
/// `read_replies(true)`. Only the worker calls `drain_replies`.
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
        Ok(self.worker_asleep || self.failure.is_some())
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

    /// Returns whether direct sends are in flight, or have failed.
    pub(crate) fn has_in_flight(&self) -> bool {
        !self.in_flight.is_empty() || self.failure.is_some()
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
    fn set_overdue(&self, sent: Instant) {
        let overdue_at = clock::to_micros(sent).saturating_add(self.node_timeout_us);
        self.status.overdue_at.store(overdue_at, Ordering::Release);
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

/// Runs an exchange with a node, and returns a panic in it as an error. So the panic ends neither a
/// caller nor the worker.
pub(super) fn catch_panic<T>(
    exchange: impl FnOnce() -> Result<T, NodeFailure>,
) -> Result<T, NodeFailure> {
    catch_unwind(AssertUnwindSafe(exchange)).unwrap_or_else(|_| Err(panic_failure()))
}

pub(crate) fn panic_failure() -> NodeFailure {
    NodeFailure::Unreachable("a panic during an exchange with the node".into())
}

pub(crate) fn no_connection() -> NodeFailure {
    NodeFailure::Unreachable("no connection".into())
}

pub(super) fn worker_stopped() -> NodeFailure {
    NodeFailure::Unreachable("the worker has stopped".into())
}
