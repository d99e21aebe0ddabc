//! What a client does with a lock that it has: it extends it, is told of its loss, downgrades it, and lets it go.

use std::sync::Arc;
use std::time::Instant;

use crate::protocol::kind::LeaseKind;
use crate::protocol::lease::{Lease, LeaseState};
use crate::protocol::quorum::{NodeSet, Verdict};
use crate::protocol::reply::Reply;
use crate::protocol::request::{Op, Request};
use crate::protocol::ttl::Ttl;
use crate::protocol::validity;
use crate::tests::simulation::client::ClientState;
use crate::tests::simulation::config::one_of;
use crate::tests::simulation::rounds::Round;
use crate::tests::simulation::simulator::{SimEvent, Simulator};

/// A guard, and what is to become of it.
pub(crate) struct Hold {
    pub(crate) lease: Arc<Lease>,
    /// What its holder may do at present; `None` while nobody can say.
    pub(crate) may: Option<LeaseKind>,
    pub(crate) ttl: Ttl,
    /// Extended at every third of its TTL; otherwise once at the most.
    renews: bool,
    failures: u32,
    downgrades: bool,
    /// When its holder has done what it wants to do with it.
    end: Instant,
}

/// An extension that a quorum has confirmed while some nodes had not answered.
pub(crate) struct ConfirmedRenewal {
    round: u32,
    lease: Arc<Lease>,
    ttl: u64,
}

impl Simulator {
    /// A guard is there. What the check finds is found here.
    pub(crate) fn hand_out(&mut self, client: usize, lease: Arc<Lease>, kind: LeaseKind, ttl: Ttl) {
        self.check_hand_out(client, &lease, kind);
        self.confirmed.insert(lease.token().id(), self.now);
        let now = self.clock(client);
        let whole = ttl.duration();
        let stay = whole.mul_f64(one_of(&mut self.rng, &[0.1, 0.5, 1.5, 3.0]) * self.rng.f64());
        let hold = Hold {
            lease,
            may: Some(kind),
            ttl,
            renews: self.rng.bool(),
            failures: 0,
            downgrades: kind == LeaseKind::Write && self.rng.bool(),
            end: now + stay,
        };
        let due = match hold.renews {
            true => Some(whole / 3),
            false => self.rng.bool().then(|| whole.mul_f64(self.rng.f64())),
        };
        let act = match hold.downgrades {
            true => now + stay.mul_f64(self.rng.f64()),
            false => hold.end,
        };
        self.clients[client].hold = Some(hold);
        self.does(client, ClientState::Holds, Some(act));
        self.set_renewal(client, due.map(|due| now + due));
    }

    fn set_renewal(&mut self, client: usize, due: Option<Instant>) {
        let it = &mut self.clients[client];
        it.renewal_ticket += 1;
        let (ticket, clock) = (it.renewal_ticket, it.clock);
        if let Some(due) = due {
            let at = clock.when(due).max(self.now);
            self.tell(at, client, SimEvent::Renew { ticket });
        }
    }

    /// An extension is due, or the one that is on its way has had its time.
    pub(crate) fn wake_renewal(&mut self, client: usize, ticket: u32) {
        let it = &self.clients[client];
        if it.renewal_ticket != ticket {
            return;
        }
        match it.extension {
            Some(_) => self.count_extension(client, true),
            None => self.extend(client),
        }
    }

    fn extend(&mut self, client: usize) {
        let start = self.clock(client);
        let it = &self.clients[client];
        let Some(hold) = &it.hold else {
            return;
        };
        if it.doing != ClientState::Holds {
            // The downgrade has its turn.
            return self.set_renewal(client, Some(start + hold.ttl.duration() / 60));
        }
        let (lease, renews, mut ttl) = (Arc::clone(&hold.lease), hold.renews, hold.ttl);
        let Some(expiry) = self.still_held(client, &lease, lease.expire_if_due(start)) else {
            return;
        };
        if !renews {
            ttl = one_of(&mut self.rng, &self.knobs.ttls);
        }
        let (mut millis, mut until) = (ttl.millis(), start + validity::validity(ttl.duration()));
        if !renews && self.rng.u32(..4) == 0 {
            // Only to make sure.
            (millis, until) = (validity::ttl_to_outlast(expiry, start), expiry);
        }
        let request = Request::new(Op::Extend, &lease, millis);
        let round = self.ask(client, request, (start, until), None);
        self.clients[client].extension = Some(round);
        self.counts.extensions += 1;
        let end = expiry.min(start + self.knobs.node_timeout);
        self.set_renewal(client, Some(end));
        self.count_extension(client, false);
    }

    /// Goes on when an extension is decided, or is `over`.
    pub(crate) fn count_extension(&mut self, client: usize, over: bool) {
        let now = self.clock(client);
        let Some(mut round) = self.clients[client].extension.take() else {
            return;
        };
        let verdict = match self.verdict(client, &round) {
            Some(verdict) => verdict,
            None if over => round.tally.close_with_timeouts(),
            None => {
                self.clients[client].extension = Some(round);
                return;
            }
        };
        let (lease, ttl) = (Arc::clone(&round.request.lease), round.request.ttl);
        let look = match verdict {
            Verdict::Granted => lease.extend_to(now, round.until, 0),
            Verdict::Refused if lease.mark_not_ours() => LeaseState::JustLost,
            Verdict::Refused | Verdict::Unavailable => lease.expire_if_due(now),
        };
        self.note(|_| format!("{client} extends: {verdict:?}, {}", named(look)));
        let expiry = self.still_held(client, &lease, look);
        if let (Verdict::Granted, Some(_)) = (verdict, expiry) {
            self.counts.extended += 1;
            self.confirmed.insert(lease.token().id(), self.now);
            // Only now, with a quorum that is ours, may it come back where it was lost.
            self.put_back(client, &lease, ttl, round.absent);
            self.clients[client].late = Some(ConfirmedRenewal {
                round: round.number,
                lease: Arc::clone(&lease),
                ttl,
            });
        }
        let calm = self.calm;
        let draw = self.rng.f64();
        let hold = self.clients[client].hold.as_mut();
        let renewed = hold.filter(|hold| hold.renews && !calm && Arc::ptr_eq(&hold.lease, &lease));
        let (Some(hold), Some(expiry)) = (renewed, expiry) else {
            return self.set_renewal(client, None);
        };
        let whole = hold.ttl.duration();
        let due = match verdict {
            Verdict::Granted => {
                hold.failures = 0;
                round.start + (whole / 3).mul_f64(0.9 + 0.2 * draw)
            }
            _ => {
                let pause = (whole / 64 * (1 << hold.failures.min(3))).mul_f64(0.5 + draw / 2.0);
                hold.failures += 1;
                expiry.min(now + pause)
            }
        };
        self.set_renewal(client, Some(due));
    }

    /// An answer comes after the verdict: also there the key is put back where it was lost.
    pub(crate) fn deliver_late(&mut self, client: usize, round: u32, node: usize, answer: &Reply) {
        let late = self.clients[client].late.as_ref();
        let late = late.filter(|late| late.round == round && *answer == Reply::Absent);
        if let Some((lease, ttl)) = late.map(|late| (Arc::clone(&late.lease), late.ttl)) {
            self.put_back(client, &lease, ttl, NodeSet::single(node));
        }
    }

    pub(crate) fn put_back(&mut self, client: usize, lease: &Arc<Lease>, ttl: u64, nodes: NodeSet) {
        self.counts.put_backs += nodes.len() as u64;
        self.tell_nodes(client, &Request::new(Op::Restore, lease, ttl), nodes);
    }

    /// The expiry, if a look found the lease held; a loss that the look was the first to see is settled.
    fn still_held(
        &mut self,
        client: usize,
        lease: &Arc<Lease>,
        look: LeaseState,
    ) -> Option<Instant> {
        match look {
            LeaseState::Held(expiry) => Some(expiry),
            LeaseState::JustLost => {
                self.settle(client, lease);
                None
            }
            LeaseState::Lost | LeaseState::Pending | LeaseState::Ended => None,
        }
    }

    fn settle(&mut self, client: usize, lease: &Arc<Lease>) {
        self.counts.losses += 1;
        self.note(|_| format!("{client} has lost it"));
        self.release_behind(client, lease, NodeSet::default());
    }

    /// The holder's next step.
    pub(crate) fn act(&mut self, client: usize) {
        let now = self.clock(client);
        let Some(hold) = &mut self.clients[client].hold else {
            return;
        };
        let lease = Arc::clone(&hold.lease);
        let (downgrades, end) = (std::mem::take(&mut hold.downgrades), hold.end);
        match downgrades {
            // One that would have to wait for an extension is left out.
            true if self.clients[client].extension.is_some() => {
                self.does(client, ClientState::Holds, Some(end));
            }
            true => self.downgrade(client, &lease, now),
            false => self.release(client, &lease, now),
        }
    }

    fn downgrade(&mut self, client: usize, lease: &Arc<Lease>, now: Instant) {
        let look = lease.expire_if_due(now);
        let Some(expiry) = self.still_held(client, lease, look) else {
            return self.let_go(client);
        };
        self.may(client, None);
        lease.downgrade();
        let mut request = Request::new(Op::Downgrade, lease, validity::ttl_to_outlast(expiry, now));
        request.refresh_interval = self.knobs.refresh;
        let round = self.ask(client, request, (now, now), None);
        self.clients[client].round = Some(round);
        let end = expiry.min(now + self.knobs.node_timeout);
        self.does(client, ClientState::Downgrades, Some(end));
        self.wake_if_decided(client);
    }

    pub(crate) fn finish_downgrade(&mut self, client: usize, verdict: Verdict) {
        let now = self.clock(client);
        let Some(hold) = &self.clients[client].hold else {
            return;
        };
        let (lease, end) = (Arc::clone(&hold.lease), hold.end);
        let look = match verdict {
            Verdict::Refused if lease.mark_not_ours() => LeaseState::JustLost,
            _ => lease.expire_if_due(now),
        };
        if self.still_held(client, &lease, look).is_none() {
            return self.let_go(client);
        }
        self.counts.downgrades += 1;
        self.check_hand_out(client, &lease, LeaseKind::Read);
        self.may(client, Some(LeaseKind::Read));
        self.does(client, ClientState::Holds, Some(end.max(now)));
    }

    fn may(&mut self, client: usize, kind: Option<LeaseKind>) {
        let hold = self.clients[client].hold.as_mut();
        hold.into_iter().for_each(|hold| hold.may = kind);
    }

    fn release(&mut self, client: usize, lease: &Arc<Lease>, now: Instant) {
        let look = lease.begin_release(now);
        self.note(|_| format!("{client} releases: {}", named(look)));
        if self.still_held(client, lease, look).is_none() {
            return self.let_go(client);
        }
        self.end_hold(client);
        if self.hand_on(client, lease, now) {
            return lease.finish_release();
        }
        let mut request = Request::new(Op::Release, lease, 0);
        request.refresh_interval = self.knobs.refresh;
        if self.rng.bool() {
            // Handed off.
            self.tell_nodes(client, &request, lease.contacted());
            lease.finish_release();
            return self.rest(client);
        }
        let round = self.ask(client, request, (now, now), None);
        self.clients[client].round = Some(round);
        self.does(
            client,
            ClientState::Releases,
            Some(now + self.knobs.node_timeout),
        );
        self.wake_if_decided(client);
    }

    pub(crate) fn finish_release(&mut self, client: usize, round: &Round, verdict: Verdict) {
        if verdict == Verdict::Granted {
            self.counts.released += 1;
            self.check_release(&round.request.lease, round.tally.granted());
        }
        self.rest(client);
    }

    /// The guard of a lost lock is dropped.
    fn let_go(&mut self, client: usize) {
        self.end_hold(client);
        self.rest(client);
    }

    /// What is said to an extension that is still on its way is of no interest any more.
    fn end_hold(&mut self, client: usize) {
        let it = &mut self.clients[client];
        (it.hold, it.extension) = (None, None);
        self.set_renewal(client, None);
    }

    /// With all nodes suspect a round is over before it begins.
    fn wake_if_decided(&mut self, client: usize) {
        let it = &self.clients[client];
        let decided = it
            .round
            .as_ref()
            .is_some_and(|round| round.tally.verdict().is_some());
        if decided {
            let ticket = it.ticket;
            self.tell(self.now, client, SimEvent::Wake { ticket });
        }
    }
}

/// A look without its time, which is another in each run of the program.
fn named(look: LeaseState) -> &'static str {
    match look {
        LeaseState::Held(_) => "held",
        LeaseState::JustLost | LeaseState::Lost => "lost",
        LeaseState::Pending | LeaseState::Ended => "over",
    }
}
