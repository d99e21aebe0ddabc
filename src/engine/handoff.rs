//! How a lock is handed on in this process: the release of one thread and the take of the next are one script in one round.
//!
//! Who releases sends it, with the next one's token and into the next one's inbox, and has nothing more to do with it: a thread
//! that is slow to wake, or is being cancelled, keeps nobody waiting. The answers come to both. Who is handed the lock counts them
//! as those to an attempt (rule S2: from before they were sent), and undoes both tokens where that fails (rule S4).
//! To the one who releases they say what those to a release say.

use std::sync::{Arc, Weak};
use std::time::Instant;

use crate::config::on_drop::OnDrop;
use crate::engine::core::Engine;
use crate::engine::params::AcquireParams;
use crate::error::{Error, NodeFailure};
use crate::local::guard::LocalGuard;
use crate::local::handoff::{Handoff, HandoffOffer, HandoffTarget};
use crate::protocol::kind::LeaseKind;
use crate::protocol::lease::Lease;
use crate::protocol::quorum::{NodeSet, Verdict};
use crate::protocol::reply::Reply;
use crate::protocol::request::{Op, Request};
use crate::protocol::token::Token;
use crate::time::clock;
use crate::transport::inbox::Inbox;
use crate::transport::job::ReplySink;
use crate::transport::node_group::NodeGroup;

impl Engine {
    /// What one who is about to wait for a slot until `end` can be handed: an exclusive lock of one key. All others, and who
    /// need not wait or does not want to, go the ordinary way.
    pub(crate) fn handoff_offer(
        &self,
        wish: &AcquireParams,
        end: Option<Instant>,
    ) -> Result<Option<HandoffOffer>, Error> {
        let Some(key) = wish.keys.single() else {
            return Ok(None);
        };
        let waits = || end.is_none_or(|end| end > clock::now());
        if wish.kind != LeaseKind::Exclusive || !self.lock_table.is_busy(key) || !waits() {
            return Ok(None);
        }
        let token = Token::fresh(self.settings.owner_label.as_deref())?;
        let lease = Arc::new(Lease::new(key.clone(), token, wish.kind));
        let mut swap = Request::new(Op::Swap, &lease, wish.ttl.millis());
        swap.min_fence = wish.fenced.then_some(0);
        Ok(Some(HandoffOffer { swap, end }))
    }

    /// Ends a lease, whose release began at `now`, by handing its lock on to the next thread that waits for it. `None` if there
    /// is none that it can be handed to, and nothing was done.
    ///
    /// Blocks as [`release`](Engine::release) does.
    pub(crate) fn hand_off(
        &self,
        lease: &Arc<Lease>,
        pass: &LocalGuard,
        on_drop: OnDrop,
        now: Instant,
    ) -> Option<Result<(), Error>> {
        if self.circuit.is_open() || !self.nodes.none_quarantined() {
            return None;
        }
        let handed = pass.hand_off(lease, now, clock::wall_offset(), self.nodes.total())?;
        let HandoffTarget { swap, inbox, round } = handed;
        let (release, ours) = (Request::new(Op::Release, lease, 0), Arc::new(Inbox::new()));
        let both = Arc::new(HandoffSink {
            releaser: Arc::clone(&ours),
            acquirer: Arc::clone(&inbox),
            round,
            nodes: Arc::downgrade(&self.nodes),
            lease: Arc::clone(lease),
        });
        // The next one may have given it up by now: then the lanes release the former token in its place.
        let asked = self.nodes.send_substitute(&release, &swap, &ours, both);
        for (node, cause) in asked.tally().causes() {
            inbox.deliver(round, *node, Reply::Failed(cause.clone()));
        }
        inbox.wake();
        if on_drop == OnDrop::Background {
            asked.detach();
            lease.finish_release();
            return Some(Ok(()));
        }
        let outcome = asked.wait(self.node_budget(now));
        lease.finish_release();
        Some(self.release_result(lease, outcome))
    }

    /// Takes what was handed to a thread that offered it: the lease; or, where that fails, which nodes said that others hold it. Then all of it
    /// is undone and the thread holds its slot as any other does.
    ///
    /// Blocks for `node_timeout` at most, and no longer than a grant would be of use.
    pub(crate) fn accept_handoff(
        &self,
        wish: &AcquireParams,
        offer: &HandoffOffer,
        baton: &Handoff,
        inbox: &Arc<Inbox>,
    ) -> Result<Arc<Lease>, NodeSet> {
        let (swap, former) = (&offer.swap, &baton.former);
        self.nodes.counters().attempted(wish.keys.first());
        let bid = self.attempt_for_lease(wish, &swap.lease, baton.start, baton.lead);
        let round = self.nodes.resume_round(swap, inbox, baton.round);
        let mut outcome = round.wait(bid.budget);
        let (swapped, refused) = (outcome.tally.granted(), outcome.tally.refused());
        if outcome.verdict == Verdict::Granted && wish.fenced {
            outcome = self.assign_fencing_token(&bid.lease, outcome, inbox, bid.budget);
        }
        let is_ours = outcome.verdict == Verdict::Granted && bid.activate(wish.ttl);
        if !is_ours {
            // Before anything is put behind it: what is not sent yet need not be sent.
            bid.lease.abandon();
            self.release_token(&bid.lease, refused, true);
        }
        // Where it was not swapped it may be there yet.
        self.release_token(former, swapped, !is_ours);
        is_ours.then_some(bid.lease).ok_or(refused)
    }

    /// Releases a token on all nodes that may hold it, `except` those that certainly do not, and publishes it where that ends
    /// the lock: of a release that has become an undo others are to hear all the same.
    fn release_token(&self, lease: &Arc<Lease>, except: NodeSet, publish: bool) {
        let mut release = Request::new(Op::Release, lease, 0);
        release.publish = publish;
        self.nodes
            .send_unawaited(&release, lease.contacted().difference(except));
    }
}

/// Where the answers to a swap go.
struct HandoffSink {
    releaser: Arc<Inbox>,
    acquirer: Arc<Inbox>,
    /// That of the next one.
    round: u32,
    nodes: Weak<NodeGroup>,
    /// The former one.
    lease: Arc<Lease>,
}

impl HandoffSink {
    /// Releases the former token on a node that refused the swap with an error: what it may not grant to the next one, or has no
    /// memory for, is no reason to keep it from the former one. It is sent before the next one hears of the error, so it comes
    /// before what that one undoes.
    fn release(&self, round: u32, node: usize, cause: &NodeFailure) {
        let fault = Reply::Failed(cause.clone());
        let Some(nodes) = self.nodes.upgrade() else {
            return self.releaser.deliver(round, node, fault);
        };
        let mut release = Request::new(Op::Release, &self.lease, 0);
        release.publish = true;
        let instead: Arc<dyn ReplySink> = Arc::new(Instead {
            former: Arc::clone(&self.releaser),
            round,
            fault,
        });
        nodes.send_unawaited_with_sink(&release, NodeSet::single(node), Some(&instead));
    }
}

impl ReplySink for HandoffSink {
    fn deliver(&self, round: u32, node: usize, answer: Reply) {
        // A take in place of nothing is a release of nothing; and a node that does not vote on takes may have the token yet.
        let former = match &answer {
            Reply::Done | Reply::Fenced(_) => Some(Reply::Done),
            Reply::SwappedAbsent(_) => Some(Reply::Absent),
            Reply::Failed(NodeFailure::Quarantined { .. }) => Some(Reply::Failed(
                NodeFailure::Unreachable("not asked: in quarantine it grants nothing".into()),
            )),
            Reply::Failed(cause) if cause.is_reply() => {
                self.release(round, node, cause);
                None
            }
            other => Some(other.clone()),
        };
        if let Some(former) = former {
            self.releaser.deliver(round, node, former);
        }
        self.acquirer.deliver(self.round, node, answer);
    }
}

/// Where the answer goes to a release that was sent after a swap had failed.
struct Instead {
    former: Arc<Inbox>,
    round: u32,
    /// What the swap ended with.
    fault: Reply,
}

impl ReplySink for Instead {
    fn deliver(&self, _: u32, node: usize, answer: Reply) {
        let answer = match answer {
            // It may be the next one's: the error need not mean that nothing was done.
            Reply::OtherToken => self.fault.clone(),
            answer => answer,
        };
        self.former.deliver(self.round, node, answer);
    }
}
