//! What an extension is, and a downgrade: a lease that is held goes on, on a quorum of nodes.

use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::Mutex;

use crate::engine::core::Engine;
use crate::error::{Error, Operation};
use crate::protocol::lease::Lease;
use crate::protocol::quorum::{NodeSet, Verdict};
use crate::protocol::reply::Answer;
use crate::protocol::request::{Request, Verb};
use crate::protocol::ttl::Ttl;
use crate::protocol::validity;
use crate::time::deadline::Limit;
use crate::time::{clock, deadline};
use crate::transport::inbox::Inbox;
use crate::transport::job::Addressee;
use crate::transport::node_group::Nodes;

impl Engine {
    /// Extends a lease that is held by `ttl` from now, on a quorum of nodes (rule S5).
    ///
    /// Blocks for `node_timeout` at most, after extensions of other threads and a renewal that is on its way.
    pub(crate) fn extend(&self, lease: &Arc<Lease>, ttl: Ttl) -> Result<(), Error> {
        if self.is_forked() {
            return Err(Error::Closed);
        }
        let _turn = lease.begin_extension();
        let start = clock::now();
        let expiry = self.still_held(lease, lease.look(start))?;
        let until = deadline::deadline(start, validity::validity(ttl.duration()));
        self.extend_until(lease, ttl.millis(), expiry, until.unwrap_or(expiry))
    }

    /// Asks the nodes whether a lease is still ours that may not be: after a suspend only they know (rule S11).
    ///
    /// Blocks as [`extend`](Engine::extend) does.
    pub(crate) fn make_sure(&self, lease: &Arc<Lease>) -> Result<(), Error> {
        if self.is_forked() {
            return Err(Error::Closed);
        }
        let _turn = lease.begin_extension();
        let start = clock::now();
        let expiry = self.still_held(lease, lease.look(start))?;
        self.extend_until(lease, validity::outlasts(expiry, start), expiry, expiry)
    }

    /// Extends a lease by `ttl` milliseconds, with which it is held until `until`.
    fn extend_until(
        &self,
        lease: &Arc<Lease>,
        ttl: u64,
        expiry: Instant,
        until: Instant,
    ) -> Result<(), Error> {
        let (start, lead) = (clock::now(), clock::lead());
        let budget = self.node_budget(start).and(Limit::Validity, Some(expiry));
        let request = Request::new(Verb::Extend, lease, ttl);
        let inbox = Arc::new(Inbox::new());
        let restorer = Arc::new(Restorer {
            inbox: Arc::clone(&inbox),
            nodes: Arc::downgrade(&self.nodes),
            lease: Arc::clone(lease),
            ttl,
            state: Mutex::new(Restored::default()),
        });
        let addressee = Arc::clone(&restorer) as Arc<dyn Addressee>;
        let round = self.nodes.ask_for(&request, &inbox, addressee);
        let outcome = round.outcome(budget);
        match outcome.verdict {
            Verdict::Won => {
                let look = lease.prolong(clock::now(), until, lead);
                self.still_held(lease, look)?;
                restorer.restore();
                Ok(())
            }
            Verdict::Refused => Err(self.not_ours(lease)),
            Verdict::Unavailable => {
                self.still_held(lease, lease.look(clock::now()))?;
                Err(self.insufficient(Operation::Extend, outcome.tally))
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
        let _turn = lease.begin_extension();
        let now = clock::now();
        let expiry = self.still_held(lease, lease.look(now))?;
        // First of all, so that whoever releases it from now on, for whatever reason, looks for both forms.
        lease.downgrade();
        let mut request = Request::new(Verb::Downgrade, lease, validity::outlasts(expiry, now));
        request.refresh = self.refresh;
        request.publish = true;
        let inbox = Arc::new(Inbox::new());
        let budget = self.node_budget(now).and(Limit::Validity, Some(expiry));
        let outcome = self.nodes.ask(&request, &inbox).outcome(budget);
        match outcome.verdict {
            Verdict::Refused => Err(self.not_ours(lease)),
            Verdict::Won | Verdict::Unavailable => {
                self.still_held(lease, lease.look(clock::now())).map(|_| ())
            }
        }
    }
}

/// Hears what nodes say to an extension, also those that come after the verdict, and puts the key back where it was lost:
/// once a quorum has said that it is ours, and not before (rule S5).
struct Restorer {
    inbox: Arc<Inbox>,
    nodes: Weak<Nodes>,
    lease: Arc<Lease>,
    ttl: u64,
    state: Mutex<Restored>,
}

#[derive(Default)]
struct Restored {
    ours: bool,
    absent: NodeSet,
}

impl Restorer {
    /// A quorum has said that it is ours.
    fn restore(&self) {
        let mut state = self.state.lock();
        state.ours = true;
        let absent = state.absent;
        drop(state); // let go before sending
        self.put_back(absent);
    }

    fn put_back(&self, nodes: NodeSet) {
        if let Some(all) = self.nodes.upgrade() {
            all.put_back(&self.lease, self.ttl, nodes);
        }
    }
}

impl Addressee for Restorer {
    fn post(&self, round: u32, node: usize, answer: Answer) {
        if answer == Answer::Absent {
            let mut state = self.state.lock();
            state.absent.insert(node);
            let ours = state.ours;
            drop(state); // let go before sending
            if ours {
                self.put_back(NodeSet::of(node));
            }
        }
        self.inbox.post(round, node, answer);
    }
}
