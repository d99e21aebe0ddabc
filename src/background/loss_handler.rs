//! What is done when a lease ends by itself.

use std::sync::Arc;

use log::warn;

use crate::background::loss_notifier::Notifier;
use crate::local::lock_table::Gate;
use crate::protocol::lease::{Lease, Look};
use crate::protocol::quorum::NodeSet;
use crate::time::clock;
use crate::transport::node_group::Nodes;

/// What is owed by whoever makes a lease lost (rule S7): it is told, its token is released, and the first thread that waits
/// for its slot may take it.
#[derive(Clone)]
pub(crate) struct Losses {
    gate: Arc<Gate>,
    nodes: Arc<Nodes>,
    notifier: Arc<Notifier>,
}

impl Losses {
    pub(crate) fn new(gate: &Arc<Gate>, nodes: &Arc<Nodes>) -> Losses {
        let (for_gate, for_nodes) = (Arc::clone(gate), Arc::clone(nodes));
        let settle = move |lease: &Arc<Lease>| {
            free(lease, &for_gate, &for_nodes);
            log_loss(lease, ENDED);
        };
        Losses {
            gate: Arc::clone(gate),
            nodes: Arc::clone(nodes),
            notifier: Arc::new(Notifier::new(Arc::new(settle))),
        }
    }

    pub(crate) fn notifier(&self) -> &Notifier {
        &self.notifier
    }

    /// To be called by who made the lease lost, and only by that one.
    pub(crate) fn settle(&self, lease: &Arc<Lease>, why: &str) {
        free(lease, &self.gate, &self.nodes);
        self.notifier.lost(lease);
        log_loss(lease, why);
    }

    /// Looks at a lease; a loss that this look is the first to see is settled.
    pub(crate) fn look(&self, lease: &Arc<Lease>) -> Look {
        let look = lease.look(clock::now());
        // In a forked child there are no lanes that could release anything.
        if look == Look::JustLost && !self.gate.is_forked() {
            self.settle(lease, ENDED);
        }
        look
    }
}

/// Why a lease is lost whose time is over.
pub(crate) const ENDED: &str = "its lease ended";

fn free(lease: &Arc<Lease>, gate: &Gate, nodes: &Nodes) {
    nodes.release_behind(lease, NodeSet::default());
    gate.poke(lease.keys());
    nodes.meter().lost(lease.key());
}

/// Last of all: a logger that panics keeps nothing else from being done.
fn log_loss(lease: &Lease, why: &str) {
    warn!("{}: lock lost: {why}", lease.keys());
}
