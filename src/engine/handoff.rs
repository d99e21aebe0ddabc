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
use crate::engine::params::Wish;
use crate::error::{Cause, Error};
use crate::local::guard::Pass;
use crate::local::handoff::{Baton, Handed, Offer};
use crate::protocol::kind::Claim;
use crate::protocol::lease::Lease;
use crate::protocol::quorum::{NodeSet, Verdict};
use crate::protocol::reply::Answer;
use crate::protocol::request::{Request, Verb};
use crate::protocol::token::Token;
use crate::time::clock;
use crate::transport::inbox::Inbox;
use crate::transport::job::Addressee;
use crate::transport::node_group::Nodes;

impl Engine {
    /// What one who is about to wait for a slot until `end` can be handed: an exclusive lock of one key. All others, and who
    /// need not wait or does not want to, go the ordinary way.
    pub(crate) fn offer(&self, wish: &Wish, end: Option<Instant>) -> Result<Option<Offer>, Error> {
        let Some(key) = wish.keys.only() else {
            return Ok(None);
        };
        let waits = || end.is_none_or(|end| end > clock::now());
        if wish.claim != Claim::Exclusive || !self.gate.is_busy(key) || !waits() {
            return Ok(None);
        }
        let token = Token::fresh(self.settings.owner.as_deref())?;
        let lease = Arc::new(Lease::new(key.clone(), token, wish.claim));
        let mut swap = Request::new(Verb::Swap, &lease, wish.ttl.millis());
        swap.fence = wish.fenced.then_some(0);
        Ok(Some(Offer { swap, end }))
    }

    /// Ends a lease, whose release began at `now`, by handing its lock on to the next thread that waits for it. `None` if there
    /// is none that it can be handed to, and nothing was done.
    ///
    /// Blocks as [`release`](Engine::release) does.
    pub(crate) fn hand_on(
        &self,
        lease: &Arc<Lease>,
        pass: &Pass,
        on_drop: OnDrop,
        now: Instant,
    ) -> Option<Result<(), Error>> {
        if self.circuit.is_open() || !self.nodes.all_vote() {
            return None;
        }
        let handed = pass.hand_on(lease, now, clock::lead(), self.nodes.total())?;
        let Handed { swap, inbox, round } = handed;
        let (release, ours) = (
            Request::new(Verb::Release, lease, 0),
            Arc::new(Inbox::new()),
        );
        let both = Arc::new(Both {
            former: Arc::clone(&ours),
            next: Arc::clone(&inbox),
            round,
            nodes: Arc::downgrade(&self.nodes),
            lease: Arc::clone(lease),
        });
        // The next one may have given it up by now: then the lanes release the former token in its place.
        let asked = self.nodes.ask_instead(&release, &swap, &ours, both);
        for (node, cause) in asked.tally().causes() {
            inbox.post(round, *node, Answer::Fault(cause.clone()));
        }
        inbox.wake();
        if on_drop == OnDrop::HandOff {
            asked.leave();
            lease.end();
            return Some(Ok(()));
        }
        let outcome = asked.outcome(self.node_budget(now));
        lease.end();
        Some(self.released(lease, outcome))
    }

    /// Takes what was handed to a thread that offered it: the lease; or, where that fails, which nodes said that others hold it. Then all of it
    /// is undone and the thread holds its slot as any other does.
    ///
    /// Blocks for `node_timeout` at most, and no longer than a grant would be of use.
    pub(crate) fn take_over(
        &self,
        wish: &Wish,
        offer: &Offer,
        baton: &Baton,
        inbox: &Arc<Inbox>,
    ) -> Result<Arc<Lease>, NodeSet> {
        let (swap, former) = (&offer.swap, &baton.former);
        self.nodes.meter().attempted(wish.keys.first());
        let bid = self.bid_for(wish, &swap.lease, baton.start, baton.lead);
        let round = self.nodes.join(swap, inbox, baton.round);
        let mut outcome = round.outcome(bid.budget);
        let (swapped, refused) = (outcome.tally.granted(), outcome.tally.refused());
        if outcome.verdict == Verdict::Won && wish.fenced {
            outcome = self.number(&bid.lease, outcome, inbox, bid.budget);
        }
        let is_ours = outcome.verdict == Verdict::Won && bid.take_hold(wish.ttl);
        if !is_ours {
            // Before anything is put behind it: what is not sent yet need not be sent.
            bid.lease.abandon();
            self.give_back(&bid.lease, refused, true);
        }
        // Where it was not swapped it may be there yet.
        self.give_back(former, swapped, !is_ours);
        is_ours.then_some(bid.lease).ok_or(refused)
    }

    /// Releases a token on all nodes that may hold it, `except` those that certainly do not, and publishes it where that ends
    /// the lock: of a release that has become an undo others are to hear all the same.
    fn give_back(&self, lease: &Arc<Lease>, except: NodeSet, publish: bool) {
        let mut release = Request::new(Verb::Release, lease, 0);
        release.publish = publish;
        self.nodes.tell(&release, lease.asked().without(except));
    }
}

/// Where the answers to a swap go.
struct Both {
    former: Arc<Inbox>,
    next: Arc<Inbox>,
    /// That of the next one.
    round: u32,
    nodes: Weak<Nodes>,
    /// The former one.
    lease: Arc<Lease>,
}

impl Both {
    /// Releases the former token on a node that refused the swap with an error: what it may not grant to the next one, or has no
    /// memory for, is no reason to keep it from the former one. It is sent before the next one hears of the error, so it comes
    /// before what that one undoes.
    fn release(&self, round: u32, node: usize, cause: &Cause) {
        let fault = Answer::Fault(cause.clone());
        let Some(nodes) = self.nodes.upgrade() else {
            return self.former.post(round, node, fault);
        };
        let mut release = Request::new(Verb::Release, &self.lease, 0);
        release.publish = true;
        let instead: Arc<dyn Addressee> = Arc::new(Instead {
            former: Arc::clone(&self.former),
            round,
            fault,
        });
        nodes.tell_for(&release, NodeSet::of(node), Some(&instead));
    }
}

impl Addressee for Both {
    fn post(&self, round: u32, node: usize, answer: Answer) {
        // A take in place of nothing is a release of nothing; and a node that does not vote on takes may have the token yet.
        let former = match &answer {
            Answer::Yes | Answer::Numbered(_) => Some(Answer::Yes),
            Answer::Anew(_) => Some(Answer::Absent),
            Answer::Fault(Cause::Quarantined { .. }) => Some(Answer::Fault(Cause::Unreachable(
                "not asked: in quarantine it grants nothing".into(),
            ))),
            Answer::Fault(cause) if cause.is_reply() => {
                self.release(round, node, cause);
                None
            }
            other => Some(other.clone()),
        };
        if let Some(former) = former {
            self.former.post(round, node, former);
        }
        self.next.post(self.round, node, answer);
    }
}

/// Where the answer goes to a release that was sent after a swap had failed.
struct Instead {
    former: Arc<Inbox>,
    round: u32,
    /// What the swap ended with.
    fault: Answer,
}

impl Addressee for Instead {
    fn post(&self, _: u32, node: usize, answer: Answer) {
        let answer = match answer {
            // It may be the next one's: the error need not mean that nothing was done.
            Answer::Foreign => self.fault.clone(),
            answer => answer,
        };
        self.former.post(self.round, node, answer);
    }
}
