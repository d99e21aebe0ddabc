//! What an extension is, and a downgrade: a lease that is held goes on, on a quorum of nodes.

use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::Mutex;

use crate::engine::core::Engine;
use crate::error::{Error, Operation};
use crate::protocol::lease::Lease;
use crate::protocol::quorum::{NodeSet, Verdict};
use crate::protocol::reply::Reply;
use crate::protocol::request::{Op, Request};
use crate::protocol::ttl::Ttl;
use crate::protocol::validity;
use crate::time::deadline::DeadlineCause;
use crate::time::{clock, deadline};
use crate::transport::inbox::Inbox;
use crate::transport::job::ReplySink;
use crate::transport::node_group::NodeGroup;

impl Engine {
    /// Extends a lease that is held by `ttl` from now, on a quorum of nodes (rule S5).
    ///
    /// Blocks for `node_timeout` at most, after extensions of other threads and a renewal that is on its way.
    pub(crate) fn extend(&self, lease: &Arc<Lease>, ttl: Ttl) -> Result<(), Error> {
        if self.is_forked() {
            return Err(Error::Closed);
        }
        let _turn = lease.lock_extension();
        let start = clock::now();
        let expiry = self.require_held(lease, lease.expire_if_due(start))?;
        let until = deadline::deadline(start, validity::validity(ttl.duration()));
        self.extend_until(lease, ttl.millis(), expiry, until.unwrap_or(expiry))
    }

    /// Asks the nodes whether a lease is still ours that may not be: after a suspend only they know (rule S11).
    ///
    /// Blocks as [`extend`](Engine::extend) does.
    pub(crate) fn confirm(&self, lease: &Arc<Lease>) -> Result<(), Error> {
        if self.is_forked() {
            return Err(Error::Closed);
        }
        let _turn = lease.lock_extension();
        let start = clock::now();
        let expiry = self.require_held(lease, lease.expire_if_due(start))?;
        self.extend_until(
            lease,
            validity::ttl_to_outlast(expiry, start),
            expiry,
            expiry,
        )
    }

    /// Extends a lease by `ttl` milliseconds, with which it is held until `until`.
    fn extend_until(
        &self,
        lease: &Arc<Lease>,
        ttl: u64,
        expiry: Instant,
        until: Instant,
    ) -> Result<(), Error> {
        let (start, lead) = (clock::now(), clock::wall_offset());
        let budget = self
            .node_budget(start)
            .min_with(DeadlineCause::Validity, Some(expiry));
        let request = Request::new(Op::Extend, lease, ttl);
        let inbox = Arc::new(Inbox::new());
        let restorer = Arc::new(RestoreSink {
            inbox: Arc::clone(&inbox),
            nodes: Arc::downgrade(&self.nodes),
            lease: Arc::clone(lease),
            ttl,
            state: Mutex::new(RestoreState::default()),
        });
        let addressee = Arc::clone(&restorer) as Arc<dyn ReplySink>;
        let round = self.nodes.send_with_sink(&request, &inbox, addressee);
        let outcome = round.wait(budget);
        match outcome.verdict {
            Verdict::Granted => {
                let look = lease.extend_to(clock::now(), until, lead);
                self.require_held(lease, look)?;
                restorer.restore_absent();
                Ok(())
            }
            Verdict::Refused => Err(self.mark_not_ours(lease)),
            Verdict::Unavailable => {
                self.require_held(lease, lease.expire_if_due(clock::now()))?;
                Err(self.insufficient_quorum(Operation::Extend, outcome.tally))
            }
        }
    }

    /// Turns a write lease that is held into a read lease with the same token and the same expiry (rule S10).
    ///
    /// Nodes that do not answer go on keeping the token as a writer's, which keeps out all that a reader's does and more:
    /// the read lock is held all the same, and a later extension or release finds the token in either form.
    ///
    /// Blocks for `node_timeout` at most.
    pub(crate) fn downgrade(&self, lease: &Arc<Lease>) -> Result<(), Error> {
        let _turn = lease.lock_extension();
        let now = clock::now();
        let expiry = self.require_held(lease, lease.expire_if_due(now))?;
        // First of all, so that whoever releases it from now on, for whatever reason, looks for both forms.
        lease.downgrade();
        let mut request = Request::new(Op::Downgrade, lease, validity::ttl_to_outlast(expiry, now));
        request.refresh_interval = self.refresh_interval;
        request.publish = true;
        let inbox = Arc::new(Inbox::new());
        let budget = self
            .node_budget(now)
            .min_with(DeadlineCause::Validity, Some(expiry));
        let outcome = self.nodes.send_to_all(&request, &inbox).wait(budget);
        match outcome.verdict {
            Verdict::Refused => Err(self.mark_not_ours(lease)),
            Verdict::Granted | Verdict::Unavailable => self
                .require_held(lease, lease.expire_if_due(clock::now()))
                .map(|_| ()),
        }
    }
}

/// Hears what nodes say to an extension, also those that come after the verdict, and puts the key back where it was lost:
/// once a quorum has said that it is ours, and not before (rule S5).
struct RestoreSink {
    inbox: Arc<Inbox>,
    nodes: Weak<NodeGroup>,
    lease: Arc<Lease>,
    ttl: u64,
    state: Mutex<RestoreState>,
}

#[derive(Default)]
struct RestoreState {
    confirmed: bool,
    absent: NodeSet,
}

impl RestoreSink {
    /// A quorum has said that it is ours.
    fn restore_absent(&self) {
        let mut state = self.state.lock();
        state.confirmed = true;
        let absent = state.absent;
        drop(state); // let go before sending
        self.restore(absent);
    }

    fn restore(&self, nodes: NodeSet) {
        if let Some(all) = self.nodes.upgrade() {
            all.restore(&self.lease, self.ttl, nodes);
        }
    }
}

impl ReplySink for RestoreSink {
    fn deliver(&self, round: u32, node: usize, answer: Reply) {
        if answer == Reply::Absent {
            let mut state = self.state.lock();
            state.absent.insert(node);
            let ours = state.confirmed;
            drop(state); // let go before sending
            if ours {
                self.restore(NodeSet::single(node));
            }
        }
        self.inbox.deliver(round, node, answer);
    }
}
