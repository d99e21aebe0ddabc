//! Releases that have no answer yet.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::protocol::reply::Reply;
use crate::protocol::request::Request;
use crate::time::clock;
use crate::transport::job::{Pending, PendingReply};
use crate::transport::status::ConnectionStatus;

/// At most this many pending releases travel behind each batch of other requests: no key waits for a backlog (rule L3).
pub(crate) const MAX_BEHIND: usize = 32;

/// Pauses between tries of releases that were answered with an error: from the first, doubling, to the last.
pub(crate) const FIRST_PAUSE: Duration = Duration::from_millis(50);

pub(crate) const LAST_PAUSE: Duration = Duration::from_secs(2);

/// The pending releases of a node.
pub(crate) struct PendingReleases {
    node: usize,
    /// Without an answer: there was no connection, or it broke.
    pub(crate) unanswered: VecDeque<Pending>,
    /// Answered with an error. They are tried at a pace of their own, however many they are.
    refused: VecDeque<Pending>,
    /// When the next of those are tried, and the pause after that.
    due: Instant,
    pause: Duration,
    pub(crate) health: Arc<ConnectionStatus>,
}

impl PendingReleases {
    pub(crate) fn new(node: usize, health: &Arc<ConnectionStatus>) -> PendingReleases {
        PendingReleases {
            node,
            unanswered: VecDeque::new(),
            refused: VecDeque::new(),
            due: clock::now(),
            pause: FIRST_PAUSE,
            health: Arc::clone(health),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.unanswered.len() + self.refused.len()
    }

    /// A release that has no answer.
    pub(crate) fn push(&mut self, request: Request, back: PendingReply) {
        self.unanswered.push_back((request, back));
        self.note_len();
    }

    /// A release that was answered with an error.
    pub(crate) fn push_refused(&mut self, request: Request, mut back: PendingReply, now: Instant) {
        if self.refused.is_empty() && !back.was_refused {
            self.pause = FIRST_PAUSE;
            self.due = now + self.pause;
        }
        back.was_refused = true;
        self.refused.push_back((request, back));
        self.note_len();
    }

    /// A release that was refused before has taken effect: what stood in its way may not stand in that of the others either.
    pub(crate) fn note_success(&mut self, now: Instant) {
        self.pause = FIRST_PAUSE;
        self.due = self.due.min(now);
    }

    /// When the next ones are to be sent, if there are any.
    pub(crate) fn due(&self, now: Instant) -> Option<Instant> {
        match (self.unanswered.is_empty(), self.refused.is_empty()) {
            (false, _) => Some(now),
            (true, false) => Some(self.due),
            (true, true) => None,
        }
    }

    /// Takes out those that are to be sent now, at most [`MAX_BEHIND`].
    pub(crate) fn take_due(&mut self, now: Instant) -> Vec<Pending> {
        if self.len() == 0 {
            return Vec::new();
        }
        let count = self.unanswered.len().min(MAX_BEHIND);
        let mut due: Vec<Pending> = self.unanswered.drain(..count).collect();
        if self.due <= now && count < MAX_BEHIND && !self.refused.is_empty() {
            self.drop_expired(now);
            let count = self.refused.len().min(MAX_BEHIND - count);
            due.extend(self.refused.drain(..count));
            self.pause = (2 * self.pause).min(LAST_PAUSE);
            self.due = now + self.pause;
        }
        let node = self.node;
        due.retain_mut(|pending| keep(pending, node, now));
        self.note_len();
        due
    }

    /// Takes out all.
    pub(crate) fn take_all(&mut self) -> VecDeque<Pending> {
        let mut all = std::mem::take(&mut self.unanswered);
        all.append(&mut self.refused);
        self.note_len();
        all
    }

    /// Drops those whose key cannot exist any more, so that a node which is down for hours collects nothing.
    pub(crate) fn drop_expired(&mut self, now: Instant) {
        let node = self.node;
        self.unanswered
            .retain_mut(|pending| keep(pending, node, now));
        self.refused.retain_mut(|pending| keep(pending, node, now));
        self.note_len();
    }

    /// A connection has killed the former one.
    pub(crate) fn note_killed(&self, now: Instant) {
        for (request, _) in self.unanswered.iter().chain(&self.refused) {
            request.lease.note_killed(self.node, now);
        }
    }

    fn note_len(&self) {
        self.health.pending.store(self.len(), Ordering::Release);
    }
}

/// Whether the key of a release may be there yet. Otherwise that is told.
fn keep((request, back): &mut Pending, node: usize, now: Instant) -> bool {
    let keep = request.lease.may_exist(node, now);
    if !keep {
        back.deliver(node, Reply::Absent);
    }
    keep
}
