//! Releases leases.

use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{Level, log};

use crate::background::loss_handler;
use crate::config::on_drop::OnDrop;
use crate::engine::core::Engine;
use crate::error::{Error, LossReason, Operation};
use crate::local::guard::LocalGuard;
use crate::protocol::lease::{Lease, LeaseState};
use crate::protocol::quorum::{Tally, Verdict};
use crate::protocol::request::{Op, Request};
use crate::time::clock;
use crate::transport::inbox::Inbox;
use crate::transport::round::RoundOutcome;

impl Engine {
    /// A guard has ended that was handed out `held` ago.
    pub(crate) fn record_end(&self, lease: &Lease, held: Duration, late: bool) {
        self.nodes.counters().released(lease.key(), held, late);
    }

    /// The end of a lease, from `release()` and from `Drop` alike. Its slot is free for the next thread as soon as
    /// the release is queued: whatever that thread asks comes behind it in every lane.
    ///
    /// Blocks for `node_timeout` at most; with `Background` not at all.
    pub(crate) fn release(
        &self,
        lease: &Arc<Lease>,
        pass: &LocalGuard,
        on_drop: OnDrop,
    ) -> Result<(), Error> {
        let now = clock::now();
        self.renewal.unregister(lease);
        self.require_held(lease, lease.begin_release(now))?;
        self.loss_handler.notifier().forget(lease);
        if let Some(handed_on) = self.hand_off(lease, pass, on_drop, now) {
            return handed_on;
        }
        let mut request = Request::new(Op::Release, lease, 0);
        request.refresh_interval = self.refresh_interval;
        request.publish = true;
        self.listener.release_started(lease.keys());
        if on_drop == OnDrop::Background {
            let heard = self.listener.receiver_count_sink(lease.keys());
            let nodes = lease.contacted();
            self.nodes
                .send_unawaited_with_sink(&request, nodes, Some(&heard));
            lease.finish_release();
            pass.release();
            return Ok(());
        }
        let inbox = Arc::new(Inbox::new());
        let round = self.nodes.send_to_all(&request, &inbox);
        pass.release();
        let outcome = round.wait(self.node_budget(now));
        self.listener
            .record_receivers(lease.keys(), &outcome.receivers);
        lease.finish_release();
        self.release_result(lease, outcome)
    }

    /// What the nodes' answers to a release are to its caller.
    pub(crate) fn release_result(&self, lease: &Lease, outcome: RoundOutcome) -> Result<(), Error> {
        match outcome.verdict {
            Verdict::Granted => Ok(()),
            Verdict::Refused => Err(lease.lost_error_for(LossReason::NotOurs)),
            Verdict::Unavailable => {
                Err(self.insufficient_quorum(Operation::Release, outcome.tally))
            }
        }
    }

    /// The nodes say that a lease is not ours: it is lost.
    pub(crate) fn mark_not_ours(&self, lease: &Arc<Lease>) -> Error {
        if lease.mark_not_ours() {
            self.loss_handler
                .handle_loss(lease, "a quorum of nodes says that it is not ours");
        }
        lease.lost_error()
    }

    /// The expiry, if a look found the lease held; a loss that the look was the first to see is settled.
    pub(crate) fn require_held(
        &self,
        lease: &Arc<Lease>,
        look: LeaseState,
    ) -> Result<Instant, Error> {
        match look {
            LeaseState::Held(expiry) => Ok(expiry),
            LeaseState::JustLost => {
                self.loss_handler
                    .handle_loss(lease, loss_handler::EXPIRED_MSG);
                Err(lease.lost_error())
            }
            LeaseState::Lost | LeaseState::Pending | LeaseState::Ended => Err(lease.lost_error()),
        }
    }

    pub(crate) fn insufficient_quorum(&self, operation: Operation, tally: Tally) -> Error {
        let error = tally.into_error(operation, |node| self.nodes.name(node).to_owned());
        error.with_limits(|name| self.answer_limit(name))
    }

    /// What a guard's `Drop` could not do goes here, since nobody is there to be told.
    pub(crate) fn record_failed_drop(&self, lease: &Lease, error: &Error) {
        self.nodes.counters().record_failed_drop();
        // The loss of a lock is in the log already where it was found before the release began.
        let level = match lease.peek(clock::now()) {
            LeaseState::Lost => Level::Debug,
            _ => Level::Warn,
        };
        log!(level, "{}: release by drop failed: {error}", lease.keys());
    }
}
