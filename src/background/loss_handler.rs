//! What is done when a lease ends by itself.

use std::sync::Arc;

use log::warn;

use crate::background::loss_notifier::LossNotifier;
use crate::local::lock_table::LockTable;
use crate::protocol::lease::{Lease, LeaseState};
use crate::protocol::quorum::NodeSet;
use crate::time::clock;
use crate::transport::node_group::NodeGroup;

/// What is owed by whoever makes a lease lost (rule S7): it is told, its token is released, and the first thread that waits
/// for its slot may take it.
#[derive(Clone)]
pub(crate) struct LossHandler {
    gate: Arc<LockTable>,
    nodes: Arc<NodeGroup>,
    notifier: Arc<LossNotifier>,
}

impl LossHandler {
    pub(crate) fn new(gate: &Arc<LockTable>, nodes: &Arc<NodeGroup>) -> LossHandler {
        let (for_gate, for_nodes) = (Arc::clone(gate), Arc::clone(nodes));
        let settle = move |lease: &Arc<Lease>| {
            free_lost_lease(lease, &for_gate, &for_nodes);
            log_loss(lease, EXPIRED_MSG);
        };
        LossHandler {
            gate: Arc::clone(gate),
            nodes: Arc::clone(nodes),
            notifier: Arc::new(LossNotifier::new(Arc::new(settle))),
        }
    }

    pub(crate) fn notifier(&self) -> &LossNotifier {
        &self.notifier
    }

    /// To be called by who made the lease lost, and only by that one.
    pub(crate) fn handle_loss(&self, lease: &Arc<Lease>, why: &str) {
        free_lost_lease(lease, &self.gate, &self.nodes);
        self.notifier.notify_lost(lease);
        log_loss(lease, why);
    }

    /// Looks at a lease; a loss that this look is the first to see is settled.
    pub(crate) fn expire_if_due(&self, lease: &Arc<Lease>) -> LeaseState {
        let look = lease.expire_if_due(clock::now());
        // In a forked child there are no lanes that could release anything.
        if look == LeaseState::JustLost && !self.gate.is_forked() {
            self.handle_loss(lease, EXPIRED_MSG);
        }
        look
    }
}

/// Why a lease is lost whose time is over.
pub(crate) const EXPIRED_MSG: &str = "its lease ended";

fn free_lost_lease(lease: &Arc<Lease>, gate: &LockTable, nodes: &NodeGroup) {
    nodes.release_unawaited(lease, NodeSet::default());
    gate.recheck(lease.keys());
    nodes.counters().lost(lease.key());
}

/// Last of all: a logger that panics keeps nothing else from being done.
fn log_loss(lease: &Lease, why: &str) {
    warn!("{}: lock lost: {why}", lease.keys());
}
