//! Extends, confirms and downgrades held leases on a quorum of nodes.
//!
//! - An extension never shortens, revives or deletes a lock (S5).
//! - Replies from before a suspend confirm nothing: the nodes are asked again (S11).
//!
//! Tests: `src/tests/engine/validity.rs`, `loss.rs` (suspend), `late_replies.rs`, `read_write.rs`
//! (downgrade).

use std::sync::{Arc, Weak};
use std::time::Instant;

use crate::engine::core::Engine;
use crate::error::error::Error;
use crate::error::operation::Operation;
use crate::protocol::lease::Lease;
use crate::protocol::node_set::NodeSet;
use crate::protocol::quorum::Verdict;
use crate::protocol::reply::Reply;
use crate::protocol::request::{Op, Publish, Request};
use crate::protocol::restoration::Restoration;
use crate::protocol::ttl::Ttl;
use crate::protocol::validity;
use crate::sync::primitives::Mutex;
use crate::time::deadline::{Deadline, DeadlineCause};
use crate::time::{clock, deadline};
use crate::transport::inbox::Inbox;
use crate::transport::job::ReplySink;
use crate::transport::node_group::NodeGroup;

impl Engine {
    /// Extends a held lease to `ttl` from now, on a quorum of nodes (S5).
    ///
    /// Blocks for extensions of the same lease by other threads and by the renewal, and then for at
    /// most `node_timeout`.
    ///
    /// # Errors
    /// - `LockLost`: the lease was not held, or a quorum does not have its token.
    /// - `InsufficientQuorum`: no quorum replied; the lease is held until its former expiry.
    /// - `Closed`: this process is a forked child.
    pub(crate) fn extend(&self, lease: &Arc<Lease>, ttl: Ttl) -> Result<(), Error> {
        if self.is_forked() {
            return Err(Error::Closed);
        }
        let _turn = lease.lock_extension();
        let start = clock::now();
        let expiry = self.require_held(lease, lease.expire_if_due(start))?;
        let until = deadline::deadline(start, validity::validity(ttl.duration()));
        self.extend_until(lease, ttl.millis(), until.unwrap_or(expiry))
    }

    /// Asks the nodes whether they still have the token of a lease, without moving its expiry.
    ///
    /// After a suspend the clocks of this process cannot say whether a lease is held (S11).
    /// Blocks, and fails, as [`extend`](Engine::extend) does.
    pub(crate) fn confirm(&self, lease: &Arc<Lease>) -> Result<(), Error> {
        if self.is_forked() {
            return Err(Error::Closed);
        }
        let _turn = lease.lock_extension();
        let start = clock::now();
        let expiry = self.require_held(lease, lease.expire_if_due(start))?;
        let ttl = validity::ttl_to_outlast(expiry, start);
        self.extend_until(lease, ttl, expiry)
    }

    /// Extends a lease by `ttl` milliseconds on the nodes, and here to `until`.
    ///
    /// Asks the nodes again after a suspend. Each further round takes another suspend, and the lease
    /// ends at its expiry.
    fn extend_until(&self, lease: &Arc<Lease>, ttl: u64, until: Instant) -> Result<(), Error> {
        while !self.extend_once(lease, ttl, until)? {}
        Ok(())
    }

    /// Makes one round of an extension. Returns `false`, without an extension here, if the system was
    /// suspended meanwhile: the nodes may have replied before, and their keys have ended since (S11).
    fn extend_once(&self, lease: &Arc<Lease>, ttl: u64, until: Instant) -> Result<bool, Error> {
        let (start, wall_offset) = clock::read_both();
        let expiry = self.require_held(lease, lease.expire_if_due(start))?;
        let request = Request::new(Op::Extend, lease, ttl);
        let inbox = Arc::new(Inbox::new());
        let restorer = Arc::new(RestoreSink {
            inbox: Arc::clone(&inbox),
            nodes: Arc::downgrade(&self.nodes),
            lease: Arc::clone(lease),
            ttl,
            restoration: Mutex::default(),
        });
        let sink = Arc::clone(&restorer) as Arc<dyn ReplySink>;
        let round = self.nodes.send_with_sink(&request, &inbox, sink);
        let outcome = round.wait(self.held_budget(start, expiry));
        match outcome.verdict {
            Verdict::Granted => {
                let (now, later_offset) = clock::read_both();
                let elapsed = clock::whole_micros(now.saturating_duration_since(start));
                if clock::is_suspend(later_offset.saturating_sub(wall_offset), elapsed) {
                    return Ok(false);
                }
                let state = lease.extend_to(now, until, wall_offset);
                self.require_held(lease, state)?;
                self.loss_handler.handle_extension(lease);
                restorer.confirm();
                Ok(true)
            }
            Verdict::Refused => Err(self.mark_not_ours(lease)),
            Verdict::Unavailable => {
                self.require_held(lease, lease.expire_if_due(clock::now()))?;
                Err(self.insufficient_quorum(Operation::Extend, outcome.tally))
            }
        }
    }

    /// Turns a held write lease into a read lease with the same token and expiry (S10).
    ///
    /// A node that does not reply keeps the token as a writer's. That excludes every caller that a
    /// reader's excludes, so the read lock is held all the same. A later extension or release finds
    /// the token in either form. Blocks for at most `node_timeout`.
    ///
    /// # Errors
    /// - `LockLost`: the lease was not held, or a quorum does not have its token.
    pub(crate) fn downgrade(&self, lease: &Arc<Lease>) -> Result<(), Error> {
        let _turn = lease.lock_extension();
        let now = clock::now();
        let expiry = self.require_held(lease, lease.expire_if_due(now))?;
        // Before the request, so that any release from now on looks for both forms of the token.
        lease.downgrade();
        let mut request = Request::new(Op::Downgrade, lease, validity::ttl_to_outlast(expiry, now));
        request.refresh_interval = self.refresh_interval;
        request.publish = Publish::Always;
        let inbox = Arc::new(Inbox::new());
        let round = self.nodes.send_to_all(&request, &inbox);
        let outcome = round.wait(self.held_budget(now, expiry));
        match outcome.verdict {
            Verdict::Refused => Err(self.mark_not_ours(lease)),
            Verdict::Granted | Verdict::Unavailable => self
                .require_held(lease, lease.expire_if_due(clock::now()))
                .map(|_| ()),
        }
    }

    /// Returns the time for a round on a held lease: `node_timeout`, at most until its expiry.
    fn held_budget(&self, start: Instant, expiry: Instant) -> Deadline {
        self.node_budget(start)
            .min_with(DeadlineCause::Validity, Some(expiry))
    }
}

/// Delivers the replies to an extension, and restores the key on nodes that have lost it.
///
/// Replies that come after the verdict count as well.
struct RestoreSink {
    inbox: Arc<Inbox>,
    nodes: Weak<NodeGroup>,
    lease: Arc<Lease>,
    /// In milliseconds.
    ttl: u64,
    restoration: Mutex<Restoration>,
}

impl RestoreSink {
    /// Restores the key, because a quorum has confirmed the lease.
    fn confirm(&self) {
        let mut restoration = self.restoration.lock();
        let absent = restoration.confirm();
        drop(restoration); // unlock before sending
        self.restore(absent);
    }

    fn restore(&self, nodes: NodeSet) {
        if let Some(group) = self.nodes.upgrade() {
            group.restore(&self.lease, self.ttl, nodes);
        }
    }
}

impl ReplySink for RestoreSink {
    fn deliver(&self, round: u32, node: usize, reply: Reply) {
        if reply == Reply::Absent {
            let mut restoration = self.restoration.lock();
            let is_restored = restoration.record_absent(node);
            drop(restoration); // unlock before sending
            if is_restored {
                self.restore(NodeSet::single(node));
            }
        }
        self.inbox.deliver(round, node, reply);
    }
}
