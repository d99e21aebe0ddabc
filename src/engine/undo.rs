//! Undoes a failed attempt: releases its token on every node that may have granted it (S4).
//!
//! While it had the token, a node refused other callers, which may wait for a message of it: a
//! woken waiter asks one node alone. If the call goes on, it tries again, and its last attempt asks
//! all nodes. If the call ends, nobody else tells these waiters, so the undo is published (L4).
//!
//! Tests: `src/tests/engine/undo.rs`; `wake_up.rs`, `cancel.rs`, `leftovers.rs`.

use std::sync::Arc;

use crate::engine::core::Engine;
use crate::protocol::lease::Lease;
use crate::protocol::node_set::NodeSet;
use crate::protocol::quorum::majority;
use crate::protocol::request::{Op, Publish, Request};
use crate::time::clock;
use crate::transport::node_group::NodeGroup;

/// The undo of a failed attempt. Its drop sends it, and publishes it: the call ends.
#[must_use = "its drop ends the call"]
pub(crate) struct Undo<'a> {
    nodes: &'a NodeGroup,
    lease: Arc<Lease>,
    /// The nodes to which it is sent.
    nodes_asked: NodeSet,
    call_goes_on: bool,
}

impl Engine {
    /// Abandons the lease of a failed attempt, and returns the undo of the attempt.
    ///
    /// The nodes in `refused` have granted nothing. Any other node that was asked may have, even
    /// with an error reply.
    pub(super) fn undo(&self, lease: &Arc<Lease>, refused: NodeSet) -> Undo<'_> {
        lease.abandon();
        Undo {
            nodes: &self.nodes,
            lease: Arc::clone(lease),
            nodes_asked: lease.contacted().difference(refused),
            call_goes_on: false,
        }
    }
}

impl Undo<'_> {
    /// Sends the undo, unpublished: the call goes on, and its own message would end its delay,
    /// again and again where the nodes are out of memory or the holder lacks a node.
    pub(super) fn send_unpublished(mut self) {
        self.call_goes_on = true;
    }

    /// Returns whether a quorum may have granted, and so have refused others as the holder of a
    /// lock does.
    fn is_of_quorum(&self) -> bool {
        let now = clock::now();
        let total = self.nodes.total();
        let may_exist =
            |node: &usize| self.nodes_asked.contains(*node) && self.lease.may_exist(*node, now);
        (0..total).filter(may_exist).count() >= majority(total)
    }
}

impl Drop for Undo<'_> {
    /// Does not block.
    fn drop(&mut self) {
        let mut release = Request::new(Op::Release, &self.lease, 0);
        release.publish = match self.call_goes_on {
            true => Publish::Never,
            false if self.is_of_quorum() => Publish::Always,
            false => Publish::IfDeleted,
        };
        let nodes = match release.publish {
            // Those that a quorum refused may listen to any node.
            Publish::Always => self.nodes.all(),
            Publish::IfDeleted | Publish::Never => self.nodes_asked,
        };
        self.nodes.send_unawaited(&release, nodes);
    }
}
