//! Releases leases.

use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{Level, log};

use crate::background::loss_handler;
use crate::config::on_drop::OnDrop;
use crate::engine::core::Engine;
use crate::error::{Error, LossReason, Operation};
use crate::local::guard::Pass;
use crate::protocol::lease::{Lease, Look};
use crate::protocol::quorum::{Tally, Verdict};
use crate::protocol::request::{Request, Verb};
use crate::time::clock;
use crate::transport::inbox::Inbox;
use crate::transport::round::Outcome;

impl Engine {
    /// A guard has ended that was handed out `held` ago.
    pub(crate) fn note_end(&self, lease: &Lease, held: Duration, late: bool) {
        self.nodes.meter().released(lease.key(), held, late);
    }

    /// The end of a lease, from `release()` and from `Drop` alike. Its slot is free for the next thread as soon as
    /// the release is queued: whatever that thread asks comes behind it in every lane.
    ///
    /// Blocks for `node_timeout` at most; with `HandOff` not at all.
    pub(crate) fn release(
        &self,
        lease: &Arc<Lease>,
        pass: &Pass,
        on_drop: OnDrop,
    ) -> Result<(), Error> {
        let now = clock::now();
        self.renewal.retire(lease);
        self.still_held(lease, lease.begin_release(now))?;
        self.losses.notifier().forget(lease);
        if let Some(handed_on) = self.hand_on(lease, pass, on_drop, now) {
            return handed_on;
        }
        let mut request = Request::new(Verb::Release, lease, 0);
        request.refresh = self.refresh;
        request.publish = true;
        self.listener.releases(lease.keys());
        if on_drop == OnDrop::HandOff {
            let heard = self.listener.addressee(lease.keys());
            let nodes = lease.asked();
            self.nodes.tell_for(&request, nodes, Some(&heard));
            lease.end();
            pass.leave();
            return Ok(());
        }
        let inbox = Arc::new(Inbox::new());
        let round = self.nodes.ask(&request, &inbox);
        pass.leave();
        let outcome = round.outcome(self.node_budget(now));
        self.listener.released(lease.keys(), &outcome.heard);
        lease.end();
        self.released(lease, outcome)
    }

    /// What the nodes' answers to a release are to its caller.
    pub(crate) fn released(&self, lease: &Lease, outcome: Outcome) -> Result<(), Error> {
        match outcome.verdict {
            Verdict::Won => Ok(()),
            Verdict::Refused => Err(lease.lost_for(LossReason::NotOurs)),
            Verdict::Unavailable => Err(self.insufficient(Operation::Release, outcome.tally)),
        }
    }

    /// The nodes say that a lease is not ours: it is lost.
    pub(crate) fn not_ours(&self, lease: &Arc<Lease>) -> Error {
        if lease.lose() {
            self.losses
                .settle(lease, "a quorum of nodes says that it is not ours");
        }
        lease.lost()
    }

    /// The expiry, if a look found the lease held; a loss that the look was the first to see is settled.
    pub(crate) fn still_held(&self, lease: &Arc<Lease>, look: Look) -> Result<Instant, Error> {
        match look {
            Look::Held(expiry) => Ok(expiry),
            Look::JustLost => {
                self.losses.settle(lease, loss_handler::ENDED);
                Err(lease.lost())
            }
            Look::Lost | Look::Trying | Look::Ended => Err(lease.lost()),
        }
    }

    pub(crate) fn insufficient(&self, operation: Operation, tally: Tally) -> Error {
        let error = tally.insufficient(operation, |node| self.nodes.name(node).to_owned());
        error.with_limits(|name| self.answer_limit(name))
    }

    /// What a guard's `Drop` could not do goes here, since nobody is there to be told.
    pub(crate) fn note_failed_drop(&self, lease: &Lease, error: &Error) {
        self.nodes.meter().drop_failed();
        // The loss of a lock is in the log already where it was found before the release began.
        let level = match lease.peek(clock::now()) {
            Look::Lost => Level::Debug,
            _ => Level::Warn,
        };
        log!(level, "{}: release by drop failed: {error}", lease.keys());
    }
}
