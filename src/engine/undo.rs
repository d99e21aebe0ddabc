//! Undoes a failed attempt: releases its token on every node that may have granted it (S4).
//!
//! While it had the token, a node refused other callers, which may wait for a message of it: a woken
//! waiter asks one node alone. If the call goes on, it tries again, and its last attempt asks all
//! nodes. If the call ends, nobody else tells these waiters, so the undo is published (L4).
//!
//! Tests: `src/tests/engine/undo.rs`; `wake_up.rs`, `cancel.rs`, `leftovers.rs`.

use std::sync::Arc;

use crate::engine::core::Engine;
use crate::protocol::lease::Lease;
use crate::protocol::node_set::NodeSet;
use crate::protocol::quorum::majority;
use crate::protocol::request::{Op, Publish, Request};
use crate::transport::node_group::NodeGroup;

/// The undo of a failed attempt. Its drop sends it, and publishes it: the call ends.
#[must_use = "its drop ends the call"]
pub(crate) struct Undo<'a> {
    nodes: &'a NodeGroup,
    lease: Arc<Lease>,
    refused: NodeSet,
    may_have_granted: NodeSet,
    call_goes_on: bool,
}

impl Engine {
    /// Abandons the lease of a failed attempt, and returns the undo of the attempt.
    ///
    /// The nodes in `refused` have granted nothing. Any other node may have, even with an error
    /// reply. `may_have_granted` names those that granted or did not reply.
    pub(super) fn undo(
        &self,
        lease: &Arc<Lease>,
        refused: NodeSet,
        may_have_granted: NodeSet,
    ) -> Undo<'_> {
        lease.abandon();
        Undo {
            nodes: &self.nodes,
            lease: Arc::clone(lease),
            refused,
            may_have_granted,
            call_goes_on: false,
        }
    }
}

impl Undo<'_> {
    /// Sends the undo, unpublished: the call goes on, and its own message would end its delay, again
    /// and again where the nodes are out of memory or the holder lacks a node.
    pub(super) fn send_unpublished(mut self) {
        self.call_goes_on = true;
    }
}

impl Drop for Undo<'_> {
    /// Does not block.
    fn drop(&mut self) {
        let is_quorum = self.may_have_granted.len() >= majority(self.nodes.total());
        let mut release = Request::new(Op::Release, &self.lease, 0);
        let contacted = self.lease.contacted().difference(self.refused);
        let nodes = match (self.call_goes_on, is_quorum) {
            (true, _) => contacted,
            (false, false) => {
                release.publish = Publish::IfDeleted;
                contacted
            }
            (false, true) => {
                // It may have refused others as a lock does. They may listen to any node.
                release.publish = Publish::Always;
                self.nodes.all()
            }
        };
        self.nodes.send_unawaited(&release, nodes);
    }
}
