//! The pending releases of one connection: which of them are due, and when they expire.
//!
//! Pure but for the count that it publishes: the time is passed in, and it sends nothing. A release
//! stays until a node has replied to it without an error, or until its key cannot exist any more.
//!
//! | state of a release | leaves by |
//! |---|---|
//! | unanswered (not sent, or in flight at a break) | `take_due` at once |
//! | refused (error reply) | `take_due` after a delay that doubles with each attempt |
//! | either | `drop_expired`: the key cannot exist any more |
//!
//! Tests: `src/tests/transport/pipeline.rs`; `src/tests/engine/pending.rs` (L3).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::node_failure::NodeFailure;
use crate::protocol::reply::Reply;
use crate::protocol::request::Request;
use crate::sync::atomic::Ordering;
use crate::time::clock;
use crate::transport::job::{Pending, PendingReply};
use crate::transport::status::ConnectionStatus;

/// The largest number of pending releases behind each batch: no key waits for a backlog (L3).
pub(crate) const MAX_BEHIND: usize = 32;

/// The delay before the first retry of a refused release. It doubles with each further retry.
pub(super) const MIN_RETRY_DELAY: Duration = Duration::from_millis(50);

/// The longest delay between two retries of refused releases.
pub(super) const MAX_RETRY_DELAY: Duration = Duration::from_secs(2);

/// The pending releases of a connection.
pub(crate) struct PendingReleases {
    node: usize,
    /// Releases without a reply: there was no connection, or it broke.
    unanswered: VecDeque<Pending>,
    /// Releases with an error reply. All of them share one retry delay, so their number does not
    /// raise the load on a node that refuses them.
    refused: VecDeque<Pending>,
    /// When the next refused releases are due.
    retry_at: Instant,
    /// The delay after that retry.
    retry_delay: Duration,
    pub(super) status: Arc<ConnectionStatus>,
}

impl PendingReleases {
    pub(super) fn new(node: usize, status: &Arc<ConnectionStatus>) -> PendingReleases {
        PendingReleases {
            node,
            unanswered: VecDeque::new(),
            refused: VecDeque::new(),
            retry_at: clock::now(),
            retry_delay: MIN_RETRY_DELAY,
            status: Arc::clone(status),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.unanswered.len() + self.refused.len()
    }

    /// Adds a release without a reply.
    pub(super) fn push(&mut self, mut request: Arc<Request>, pending_reply: PendingReply) {
        clear_encoded(&mut request);
        self.unanswered.push_back((request, pending_reply));
        self.publish_len();
    }

    /// Adds a release with an error reply.
    pub(super) fn push_refused(
        &mut self,
        mut request: Arc<Request>,
        mut pending_reply: PendingReply,
        now: Instant,
    ) {
        clear_encoded(&mut request);
        if self.refused.is_empty() && !pending_reply.was_refused {
            self.retry_delay = MIN_RETRY_DELAY;
            self.retry_at = now + self.retry_delay;
        }
        pending_reply.was_refused = true;
        self.refused.push_back((request, pending_reply));
        self.publish_len();
    }

    /// Records that a release that was refused before has succeeded. The node may execute the
    /// others as well, so they become due at once.
    pub(super) fn note_success(&mut self, now: Instant) {
        self.retry_delay = MIN_RETRY_DELAY;
        self.retry_at = self.retry_at.min(now);
    }

    /// Returns when the next release is due; `None` if there is none.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        match (self.unanswered.is_empty(), self.refused.is_empty()) {
            (false, _) => Some(now),
            (true, false) => Some(self.retry_at),
            (true, true) => None,
        }
    }

    /// Removes and returns the releases that are due, at most [`MAX_BEHIND`].
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<Pending> {
        if self.len() == 0 {
            return Vec::new();
        }
        let count = self.unanswered.len().min(MAX_BEHIND);
        let mut due: Vec<Pending> = self.unanswered.drain(..count).collect();
        if self.retry_at <= now && count < MAX_BEHIND && !self.refused.is_empty() {
            self.drop_expired(now);
            let count = self.refused.len().min(MAX_BEHIND - count);
            due.extend(self.refused.drain(..count));
            self.retry_delay = (2 * self.retry_delay).min(MAX_RETRY_DELAY);
            self.retry_at = now + self.retry_delay;
        }
        let node = self.node;
        due.retain_mut(|pending| may_matter(pending, node, now));
        self.publish_len();
        due
    }

    /// Removes and returns all releases.
    pub(super) fn take_all(&mut self) -> VecDeque<Pending> {
        let mut all = std::mem::take(&mut self.unanswered);
        all.append(&mut self.refused);
        self.publish_len();
        all
    }

    /// Drops the releases whose key cannot exist any more, so that an outage of hours collects
    /// none.
    pub(super) fn drop_expired(&mut self, now: Instant) {
        let node = self.node;
        self.unanswered
            .retain_mut(|pending| may_matter(pending, node, now));
        self.refused
            .retain_mut(|pending| may_matter(pending, node, now));
        self.publish_len();
    }

    /// Records that the server has killed the former connection.
    pub(super) fn record_killed(&self, now: Instant) {
        for (request, _) in self.unanswered.iter().chain(&self.refused) {
            request.lease.record_killed(self.node, now);
        }
    }

    /// Reports the releases without a reply as failed to the callers that wait for them.
    pub(super) fn fail_waiters(&mut self, cause: &NodeFailure) {
        for (_, pending_reply) in &mut self.unanswered {
            pending_reply.deliver(self.node, Reply::Failed(cause.clone()));
        }
    }

    fn publish_len(&self) {
        self.status.pending.store(self.len(), Ordering::Release);
    }
}

/// Removes the encoded bytes: the rest of a minimum time is shorter when the release is sent.
fn clear_encoded(request: &mut Arc<Request>) {
    if request.encoded.is_some() {
        Arc::make_mut(request).encoded = None;
    }
}

/// Returns whether the key of a release may still exist. If not, reports the key as absent.
fn may_matter((request, pending_reply): &mut Pending, node: usize, now: Instant) -> bool {
    let may_exist = request.lease.may_exist(node, now);
    if !may_exist {
        pending_reply.deliver(node, Reply::Absent);
    }
    may_exist
}
