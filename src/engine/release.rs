//! Releases leases, and turns the replies and the states of leases into errors.
//!
//! A release never deletes a token of another lease. It counts a missing token as released only if
//! no other holder can have had the lock.
//!
//! Tests: `src/tests/engine/leftovers.rs`, `pending.rs`, `min_hold.rs`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{Level, log};

use crate::config::on_drop::OnDrop;
use crate::engine::core::Engine;
use crate::error::error::Error;
use crate::error::loss_reason::LossReason;
use crate::error::operation::Operation;
use crate::local::guard::{HasKeys, LocalGuard};
use crate::protocol::lease::{Lease, LeaseState};
use crate::protocol::quorum::{Tally, Verdict};
use crate::protocol::request::{Op, Publish, Request};
use crate::sync::threads;
use crate::time::clock;
use crate::transport::inbox::Inbox;
use crate::transport::round::RoundOutcome;

impl Engine {
    /// Counts the end of a guard that existed for `held`; `late` if its lease was lost by then.
    pub(crate) fn record_end(&self, lease: &Lease, held: Duration, late: bool) {
        self.nodes
            .counters()
            .released(lease.key().name(), held, late);
    }

    /// Releases a lease, for `release()` and for `Drop` alike.
    ///
    /// Frees the entry in the lock table as soon as the release is queued: requests of the next
    /// local caller follow it on every node connection. A lock whose minimum time is not over is
    /// kept until then, on the nodes and in the lock table, and is not handed off. With
    /// `OnDrop::Wait`, blocks until a quorum has replied, for at most `node_timeout`; else does not
    /// block.
    ///
    /// # Errors
    /// - `LockLost`: the lease was no longer held, or a quorum does not have its token.
    /// - `InsufficientQuorum`: no quorum replied (`OnDrop::Wait` only).
    pub(crate) fn release(
        &self,
        lease: &Arc<Lease>,
        local: &LocalGuard<impl HasKeys>,
        on_drop: OnDrop,
    ) -> Result<(), Error> {
        let now = clock::now();
        self.renewal.unregister(lease);
        self.require_held(lease, lease.begin_release(now))?;
        self.loss_handler.notifier().forget(lease);
        let kept_until = lease.kept_until(now);
        if kept_until.is_none()
            && let Some(handed_off) = self.hand_off(lease, local, on_drop, now)
        {
            return handed_off;
        }
        let mut request = Request::new(Op::Release, lease, 0);
        request.refresh_interval = self.refresh_interval;
        request.publish = Publish::Always;
        self.listener.release_started(lease.keys());
        if on_drop == OnDrop::Background {
            let receivers = self.listener.receiver_count_sink(lease.keys());
            self.nodes
                .send_unawaited_with_sink(&request, self.nodes.all(), Some(&receivers));
            lease.finish_release();
            local.release_at(kept_until);
            return Ok(());
        }
        let inbox = Arc::new(Inbox::new());
        let round = self.nodes.send_to_all(&request, &inbox);
        local.release_at(kept_until);
        let outcome = round.wait(self.node_budget(now));
        self.listener.record_release(lease.keys(), &outcome);
        lease.finish_release();
        self.release_result(lease, outcome)
    }

    /// Returns the result of a release from the votes on it.
    pub(super) fn release_result(&self, lease: &Lease, outcome: RoundOutcome) -> Result<(), Error> {
        match outcome.verdict {
            Verdict::Granted => Ok(()),
            Verdict::Refused => Err(lease.lost_error_for(LossReason::NotOurs)),
            Verdict::Unavailable => {
                Err(self.insufficient_quorum(Operation::Release, outcome.tally))
            }
        }
    }

    /// Marks a lease lost, because a quorum does not have its token. Returns the error.
    pub(super) fn mark_not_ours(&self, lease: &Arc<Lease>) -> Error {
        if lease.mark_not_ours() {
            self.loss_handler
                .handle_loss(lease, "a quorum of nodes says that it is not ours");
        }
        lease.lost_error()
    }

    /// Returns the expiry of a held lease. Handles the loss if this thread was the first to see it.
    ///
    /// # Errors
    /// - `LockLost`: the lease is not held.
    pub(super) fn require_held(
        &self,
        lease: &Arc<Lease>,
        state: LeaseState,
    ) -> Result<Instant, Error> {
        match state {
            LeaseState::Held(expiry) => Ok(expiry),
            LeaseState::JustLost => {
                self.handle_expiry(lease);
                Err(lease.lost_error())
            }
            LeaseState::Lost | LeaseState::Pending | LeaseState::Ended => Err(lease.lost_error()),
        }
    }

    /// Returns the error of an operation without a quorum, with a cause per node.
    pub(super) fn insufficient_quorum(&self, operation: Operation, tally: Tally) -> Error {
        let error = tally.into_error(operation, |node| self.nodes.name(node).to_owned());
        error.with_limits(|name| self.reply_limit(name))
    }

    /// Counts and logs a release that failed in a guard's `Drop`, which returns no error (S13).
    pub(crate) fn record_failed_drop(&self, lease: &Lease, error: &Error) {
        self.nodes.counters().record_failed_drop();
        // The loss of the lock has been logged as a warning before.
        let level = match lease.peek(clock::now()) {
            LeaseState::Lost => Level::Debug,
            _ => Level::Warn,
        };
        threads::log(|| log!(level, "{}: release by drop failed: {error}", lease.keys()));
    }
}
