//! Undoes a failed attempt: releases its token on every node that may have granted it (S4).
//!
//! A node with the token refuses other callers, which may then wait for a message of that node: a woken
//! waiter asks one node alone. If the call goes on, its next attempts follow, and the last one asks
//! all nodes. If the call ends, no other message wakes these waiters, so the undo is published (L4).
//!
//! - An undo never deletes the token of another attempt (S3), and its drop never blocks.
//! - The undo of a call that goes on is never published.
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

/// The undo of a failed attempt. Its drop sends and publishes it, for a call that ends. A call that
/// goes on uses [`send_unpublished`](Undo::send_unpublished).
#[must_use = "dropping it publishes the undo; use `send_unpublished` if the call goes on"]
pub(crate) struct Undo<'a> {
    nodes: &'a NodeGroup,
    lease: Arc<Lease>,
    /// The nodes that may have granted the token.
    may_have_granted: NodeSet,
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
            may_have_granted: lease.contacted().difference(refused),
            call_goes_on: false,
        }
    }
}

impl Undo<'_> {
    /// Sends the undo without publishing it, because the call goes on. The message would end the
    /// delay of this call itself: after every attempt, if nodes are out of memory or lack the
    /// holder's key.
    pub(super) fn send_unpublished(mut self) {
        self.call_goes_on = true;
    }

    /// Returns whether a quorum may have granted, and so have refused others as the holder of a
    /// lock does.
    fn is_of_quorum(&self) -> bool {
        let now = clock::now();
        let total = self.nodes.total();
        let may_exist = |node: &usize| {
            self.may_have_granted.contains(*node) && self.lease.may_exist(*node, now)
        };
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
            // Callers that a quorum refused may listen to any node.
            Publish::Always => self.nodes.all(),
            Publish::IfDeleted | Publish::Never => self.may_have_granted,
        };
        self.nodes.send_unawaited(&release, nodes);
    }
}
