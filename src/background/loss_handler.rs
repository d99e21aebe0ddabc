//! The steps of a loss, in one place: release the token, admit the next waiter, count, report.
//!
//! The thread that marks a lease lost calls [`LossHandler::handle_loss`] exactly once (S7, S11).
//! Nothing here blocks on a node, and no user callback runs here: the loss notifier runs them.
//!
//! Tests: `src/tests/engine/loss.rs`, `validity.rs`.

use std::sync::Arc;

use log::warn;

use crate::background::loss_notifier::LossNotifier;
use crate::background::renewal::queue::RenewalResults;
use crate::local::lock_table::LockTable;
use crate::protocol::lease::{Lease, LeaseState};
use crate::protocol::node_set::NodeSet;
use crate::time::clock;
use crate::transport::node_group::NodeGroup;

/// The reason in the log for a lease whose validity ended.
pub(crate) const EXPIRED_MSG: &str = "its lease ended";

/// Handles the losses of leases, and the ends of their dangers.
#[derive(Clone)]
pub(crate) struct LossHandler {
    lock_table: Arc<LockTable>,
    nodes: Arc<NodeGroup>,
    notifier: Arc<LossNotifier>,
}

impl LossHandler {
    pub(crate) fn new(lock_table: &Arc<LockTable>, nodes: &Arc<NodeGroup>) -> LossHandler {
        let (its_table, its_nodes) = (Arc::clone(lock_table), Arc::clone(nodes));
        let on_expiry = move |lease: &Arc<Lease>| {
            free_lost_lease(lease, &its_table, &its_nodes);
            log_loss(lease, EXPIRED_MSG);
        };
        LossHandler {
            lock_table: Arc::clone(lock_table),
            nodes: Arc::clone(nodes),
            notifier: Arc::new(LossNotifier::new(Arc::new(on_expiry))),
        }
    }

    pub(crate) fn notifier(&self) -> &LossNotifier {
        &self.notifier
    }

    /// Handles the loss of a lease. Only the thread that marked the lease lost may call this.
    /// `reason` is for the log. Does not block.
    pub(crate) fn handle_loss(&self, lease: &Arc<Lease>, reason: &str) {
        free_lost_lease(lease, &self.lock_table, &self.nodes);
        self.notifier.recheck(lease);
        log_loss(lease, reason);
    }

    /// Reports the end of a danger after an extension. Does not block.
    pub(crate) fn handle_extension(&self, lease: &Lease) {
        if lease.is_danger_told() {
            self.notifier.recheck(lease);
        }
    }

    /// Marks a lease lost if its expiry has passed, and handles the loss if this call marked it.
    pub(crate) fn expire_if_due(&self, lease: &Arc<Lease>) -> LeaseState {
        let state = lease.expire_if_due(clock::now());
        // A forked child has no workers that could release the token.
        if state == LeaseState::JustLost && !self.lock_table.is_forked() {
            self.handle_loss(lease, EXPIRED_MSG);
        }
        state
    }
}

impl RenewalResults for LossHandler {
    fn handle_loss(&self, lease: &Arc<Lease>, reason: &str) {
        self.handle_loss(lease, reason);
    }

    fn handle_extension(&self, lease: &Lease) {
        self.handle_extension(lease);
    }
}

/// Queues the release of the token on all nodes that may hold it, and admits the next waiter.
fn free_lost_lease(lease: &Arc<Lease>, lock_table: &LockTable, nodes: &NodeGroup) {
    nodes.release_unawaited(lease, NodeSet::default());
    lock_table.recheck(lease.keys());
    nodes.counters().lost(lease.key().name());
}

/// Logs the loss. Called last, so that a panic of the logger prevents no other step.
fn log_loss(lease: &Lease, reason: &str) {
    warn!("{}: lock lost: {reason}", lease.keys());
}
