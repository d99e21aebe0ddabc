//! Hands a lock off to the next thread of this process: its release and the next acquire are one
//! `Swap` per node.
//!
//! The releasing thread sends one `Swap` to every node, carrying the next thread's token. The
//! replies are delivered to both inboxes, and neither thread waits for the other. The acquiring
//! thread treats them as replies to an acquire: validity counts from before the swap was sent
//! (S2), and it releases both tokens if it fails (S4). The releasing thread treats them as replies
//! to a release.
//!
//! - No lock is handed off while the breaker is open or a node is quarantined.
//! - No swap is sent for a thread that does not wait, or for a lock of several keys.
//!
//! Tests: `src/tests/engine/handoff.rs`.

use std::cell::LazyCell;
use std::sync::{Arc, Weak};
use std::time::Instant;

use crate::config::on_drop::OnDrop;
use crate::engine::core::Engine;
use crate::engine::params::AcquireParams;
use crate::error::error::Error;
use crate::error::node_failure::NodeFailure;
use crate::local::guard::{HasKeys, LocalGuard};
use crate::local::handoff::{FormerRelease, Handoff, HandoffOffer, HandoffTarget};
use crate::protocol::kind::LeaseKind;
use crate::protocol::lease::Lease;
use crate::protocol::node_set::NodeSet;
use crate::protocol::quorum::Verdict;
use crate::protocol::reply::Reply;
use crate::protocol::request::{Op, Publish, Request};
use crate::protocol::token::Token;
use crate::time::clock;
use crate::transport::inbox::Inbox;
use crate::transport::job::ReplySink;
use crate::transport::node_group::NodeGroup;

impl Engine {
    /// Creates the `Swap` that a releasing thread may send for a caller that queues until
    /// `deadline`.
    ///
    /// Returns `None` if the caller does not wait, or if the lock is not an exclusive one of a
    /// single key. Draws a token, so it is called only for a thread that has to queue.
    ///
    /// # Errors
    /// - `System`: the operating system has no random bytes.
    pub(crate) fn handoff_offer(
        &self,
        params: &AcquireParams,
        deadline: Option<Instant>,
    ) -> Result<Option<HandoffOffer>, Error> {
        let Some(key) = params.keys.single() else {
            return Ok(None);
        };
        let waits = || deadline.is_none_or(|deadline| deadline > clock::now());
        if params.kind != LeaseKind::Exclusive || !waits() {
            return Ok(None);
        }
        let token = Token::fresh(params.owner_label.as_ref())?;
        let lease = Arc::new(Lease::new(key.clone(), token, params.kind));
        let mut swap = Request::new(Op::Swap, &lease, params.ttl.millis());
        swap.min_fence = params.fenced.then_some(0);
        Ok(Some(HandoffOffer { swap, deadline }))
    }

    /// Ends a lease, whose release began at `start`, by a handoff to the next local waiter.
    ///
    /// Sends nothing and returns `None` if no waiter offers to accept it, while the breaker is
    /// open, or while a node is quarantined. Blocks as [`release`](Engine::release) does.
    ///
    /// # Errors
    /// - `LockLost`: a quorum does not have the token.
    /// - `InsufficientQuorum`: no quorum replied (`OnDrop::Wait` only).
    pub(super) fn hand_off(
        &self,
        lease: &Arc<Lease>,
        local: &LocalGuard<impl HasKeys>,
        on_drop: OnDrop,
        start: Instant,
    ) -> Option<Result<(), Error>> {
        if self.circuit.is_open() || !self.nodes.none_quarantined() {
            return None;
        }
        // A thread without a waiter needs none of this.
        let opened = LazyCell::new(|| {
            let inbox = Arc::new(Inbox::new());
            let round = inbox.open_round(self.nodes.total());
            (inbox, round)
        });
        let former = || FormerRelease {
            lease: Arc::clone(lease),
            start,
            wall_offset: clock::wall_offset(),
            inbox: Arc::clone(&opened.0),
            round: opened.1,
        };
        let target = local.hand_off(start, self.nodes.total(), former)?;
        let HandoffTarget { swap, inbox, round } = target;
        let release = Request::new(Op::Release, lease, 0);
        let (release_inbox, release_round) = &*opened;
        let sink = Arc::new(HandoffSink {
            releaser: Arc::clone(release_inbox),
            acquirer: Arc::clone(&inbox),
            acquirer_round: round,
            nodes: Arc::downgrade(&self.nodes),
            former: Arc::clone(lease),
        });
        let mut sent = self
            .nodes
            .resume_round(&release, release_inbox, *release_round);
        // If the acquirer has given up by now, the connections release the former token instead.
        sent.submit_substitute(&swap, sink);
        for (node, cause) in sent.tally().causes() {
            inbox.deliver(round, *node, Reply::Failed(cause.clone()));
        }
        inbox.wake();
        if on_drop == OnDrop::Background {
            sent.detach();
            lease.finish_release();
            return Some(Ok(()));
        }
        let outcome = sent.wait(self.node_budget(start));
        lease.finish_release();
        Some(self.release_result(lease, outcome))
    }

    /// Collects the replies to the `Swap` of a handoff, and returns the held lease.
    ///
    /// Blocks for at most `node_timeout`, and no longer than a grant would be valid.
    ///
    /// # Errors
    /// The nodes that refused, if the handoff failed. It is undone by then, and the thread still
    /// holds its entry in the lock table.
    pub(crate) fn accept_handoff(
        &self,
        params: &AcquireParams,
        offer: &HandoffOffer,
        handoff: &Handoff,
        inbox: &Arc<Inbox>,
    ) -> Result<Arc<Lease>, NodeSet> {
        let (swap, former) = (&offer.swap, &handoff.former);
        self.nodes.counters().attempted(params.keys.first().name());
        let attempt = self.attempt_for_lease(params, &swap.lease, former.start, former.wall_offset);
        let round = self.nodes.resume_round(swap, inbox, handoff.round);
        let mut outcome = round.wait(attempt.budget);
        let (swapped, refused) = (outcome.tally.granted(), outcome.tally.refused());
        if outcome.verdict == Verdict::Granted && params.fenced {
            let (lease, budget) = (&attempt.lease, attempt.budget);
            outcome = self.assign_fencing_token(lease, outcome, inbox, budget);
        }
        let is_held =
            outcome.verdict == Verdict::Granted && attempt.activate(params.ttl, clock::now());
        if !is_held {
            // Abandoned before a release is queued, so that a swap not yet sent is dropped.
            attempt.lease.abandon();
        }
        let publish = match is_held {
            true => Publish::Never,
            false => Publish::Always,
        };
        self.release_former(former, swapped, publish);
        if !is_held {
            let mut undo = Request::new(Op::Release, &attempt.lease, 0);
            undo.publish = Publish::Always; // the handoff failed, so this frees the lock
            let nodes = attempt.lease.contacted().difference(refused);
            self.nodes.send_unawaited(&undo, nodes);
        }
        is_held.then_some(attempt.lease).ok_or(refused)
    }

    /// Releases the former token, except on the nodes that `swapped`. The other nodes may still
    /// have it. Waiters are notified if the handoff failed.
    ///
    /// The replies go to the releasing thread, too, because this release may overtake the
    /// release behind a refused swap, which then finds no token.
    fn release_former(&self, former: &FormerRelease, swapped: NodeSet, publish: Publish) {
        let sink: Arc<dyn ReplySink> = Arc::new(FormerReleaseSink {
            releaser: Arc::clone(&former.inbox),
            round: former.round,
            swap_failure: None,
        });
        let mut release = Request::new(Op::Release, &former.lease, 0);
        release.publish = publish;
        let nodes = match publish {
            Publish::Always => self.nodes.all(),
            Publish::Never | Publish::IfDeleted => former.lease.contacted(),
        };
        self.nodes
            .send_unawaited_with_sink(&release, nodes.difference(swapped), Some(&sink));
    }
}

/// Delivers the replies to a `Swap` to both threads.
struct HandoffSink {
    releaser: Arc<Inbox>,
    acquirer: Arc<Inbox>,
    acquirer_round: u32,
    nodes: Weak<NodeGroup>,
    former: Arc<Lease>,
}

impl HandoffSink {
    /// Releases the former token on a node that replied to the swap with an error.
    ///
    /// A missing right or lack of memory for the swap must not keep the lock from being released.
    /// This is sent before the acquirer receives the error, so it precedes the acquirer's undo.
    fn release_former(&self, round: u32, node: usize, cause: &NodeFailure) {
        let swap_failure = Reply::Failed(cause.clone());
        let Some(nodes) = self.nodes.upgrade() else {
            return self.releaser.deliver(round, node, swap_failure);
        };
        let mut release = Request::new(Op::Release, &self.former, 0);
        release.publish = Publish::Always;
        let sink: Arc<dyn ReplySink> = Arc::new(FormerReleaseSink {
            releaser: Arc::clone(&self.releaser),
            round,
            swap_failure: Some(swap_failure),
        });
        nodes.send_unawaited_with_sink(&release, NodeSet::single(node), Some(&sink));
    }
}

impl ReplySink for HandoffSink {
    fn deliver(&self, round: u32, node: usize, reply: Reply) {
        let release_reply = match &reply {
            Reply::Done | Reply::Fenced(_) => Some(Reply::Done),
            // The node swapped nothing, so it had nothing to release.
            Reply::SwappedAbsent(_) => Some(Reply::Absent),
            // A quarantined node refuses swaps, but may still have the former token.
            Reply::Failed(NodeFailure::Quarantined { .. }) => Some(Reply::Failed(
                NodeFailure::Unreachable("not asked: quarantined".into()),
            )),
            Reply::Failed(cause) if cause.is_reply() => {
                self.release_former(round, node, cause);
                None
            }
            other => Some(other.clone()),
        };
        if let Some(reply) = release_reply {
            self.releaser.deliver(round, node, reply);
        }
        self.acquirer.deliver(self.acquirer_round, node, reply);
    }
}

/// Delivers the reply to a release of the former token that was sent behind a swap.
struct FormerReleaseSink {
    releaser: Arc<Inbox>,
    round: u32,
    /// The failure of the swap; `None` if its own reply is delivered, or was.
    swap_failure: Option<Reply>,
}

impl ReplySink for FormerReleaseSink {
    fn deliver(&self, _: u32, node: usize, reply: Reply) {
        let reply = match reply {
            // The swap was applied, possibly in spite of its error: the token is the acquirer's.
            Reply::OtherToken => self.swap_failure.clone(),
            reply => Some(reply),
        };
        if let Some(reply) = reply {
            self.releaser.deliver(self.round, node, reply);
        }
    }
}
