//! The part of the pipeline that handles a reply: its records, its warnings, its delivery.
//!
//! - A reply is delivered after all warnings about it, also if the logger panics: a caller that polls
//!   may have no guard or undo yet (S4).
//! - A release that a node refuses stays pending while its key may exist there (S4).
//!
//! Tests: `src/tests/transport/pipeline.rs`; `src/tests/engine/pending.rs` (refused releases);
//! beside `warning_state.rs`.

use std::time::{Duration, Instant};

use log::{debug, trace, warn};

use crate::error::node_failure::NodeFailure;
use crate::protocol::reply::{Blocker, Reply};
use crate::protocol::request::{Op, Request};
use crate::protocol::send_check::{record_reply, record_sent};
use crate::protocol::server_error;
use crate::sync::threads;
use crate::telemetry::observer;
use crate::telemetry::observer::NodeReply;
use crate::transport::job::{PendingReply, RequestState};
use crate::transport::pipeline::Pipeline;

impl Pipeline {
    /// Records a reply in the lease and the node's warnings, and delivers it.
    ///
    /// # Errors
    /// The cause if the connection must not be used any more.
    pub(super) fn handle_reply(
        &self,
        request: &Request,
        pending_reply: &mut PendingReply,
        reply: Reply,
        now: Instant,
    ) -> Result<(), NodeFailure> {
        threads::log(|| trace!("{}: {}: {reply:?}", self.name, request.op));
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
            threads::log(|| {
                warn!("{name}: {key}: foreign value without an expiry: left untouched");
            });
        }
    }

    /// Warns about an error reply, and returns the state of the request after it.
    fn handle_failure(&self, request: &Request, cause: &NodeFailure, now: Instant) -> RequestState {
        let (name, keys) = (&self.name, request.lease.keys());
        if *cause == NodeFailure::WrongType && self.warnings().is_new_foreign(keys.first(), request)
        {
            threads::log(|| warn!("{name}: {keys}: {cause}: left untouched"));
        }
        if request.op == Op::Release {
            return self.handle_failed_release(request, cause, now);
        }
        if matches!(cause, NodeFailure::AccessDenied(_))
            && self.warnings().is_newly_denied_key(request)
        {
            threads::log(|| match request.op {
                // Without the waiting list every release wakes all waiters, as in earlier versions.
                Op::TakePlace | Op::LeavePlace => debug!("{name}: {keys}: {}: {cause}", request.op),
                Op::WakeListener => warn!("{name}: {}: {cause}", request.op),
                _ => warn!("{name}: {keys}: {}: {cause}", request.op),
            });
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
            threads::log(|| {
                warn!("{name}: release refused, retried until the lease's TTL ends: {cause}");
            });
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
}
