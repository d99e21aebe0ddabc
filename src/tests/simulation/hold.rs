//! A client that holds the lock: it extends, loses, downgrades and releases its lease.

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

/// A held lease, and the plan of its holder.
pub(crate) struct Hold {
    pub(crate) lease: Arc<Lease>,
    /// The kind of access that the holder has; `None` while a downgrade is in progress.
    pub(crate) access: Option<LeaseKind>,
    pub(crate) ttl: Ttl,
    /// Whether the lease is extended at every third of its TTL. Otherwise it is extended at most
    /// once.
    renews: bool,
    failures: u32,
    downgrades: bool,
    /// The time at which the holder releases.
    end: Instant,
}

/// An extension that a quorum confirmed before all nodes replied.
pub(crate) struct ConfirmedRenewal {
    round: u32,
    lease: Arc<Lease>,
    ttl: u64,
}

impl Simulator {
    /// Begins to hold a lease, and checks that no other client holds the lock.
    pub(crate) fn begin_hold(
        &mut self,
        client: usize,
        lease: Arc<Lease>,
        kind: LeaseKind,
        ttl: Ttl,
    ) {
        self.check_new_holder(client, &lease, kind);
        self.confirmed.insert(lease.token().id(), self.now);
        let now = self.clock(client);
        let whole = ttl.duration();
        let stay = whole.mul_f64(one_of(&mut self.rng, &[0.1, 0.5, 1.5, 3.0]) * self.rng.f64());
        let hold = Hold {
            lease,
            access: Some(kind),
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
        self.set_state(client, ClientState::Holding, Some(act));
        self.set_renewal(client, due.map(|due| now + due));
    }

    fn set_renewal(&mut self, client: usize, due: Option<Instant>) {
        let it = &mut self.clients[client];
        it.renewal_ticket += 1;
        let (ticket, clock) = (it.renewal_ticket, it.clock);
        if let Some(due) = due {
            let at = clock.when(due).max(self.now);
            self.schedule_client_event(at, client, SimEvent::Renew { ticket });
        }
    }

    /// Begins an extension that is due, or ends one that is overdue.
    pub(crate) fn wake_renewal(&mut self, client: usize, ticket: u32) {
        let it = &self.clients[client];
        if it.renewal_ticket != ticket {
            return;
        }
        match it.extension {
            Some(_) => self.evaluate_extension(client, true),
            None => self.extend(client),
        }
    }

    fn extend(&mut self, client: usize) {
        let start = self.clock(client);
        let it = &self.clients[client];
        let Some(hold) = &it.hold else {
            return;
        };
        if it.state != ClientState::Holding {
            // An extension waits for a downgrade in progress.
            return self.set_renewal(client, Some(start + hold.ttl.duration() / 60));
        }
        let (lease, renews, mut ttl) = (Arc::clone(&hold.lease), hold.renews, hold.ttl);
        let Some(expiry) = self.held_until(client, &lease, lease.expire_if_due(start)) else {
            return;
        };
        if !renews {
            ttl = one_of(&mut self.rng, &self.config.ttls);
        }
        let (mut millis, mut until) = (ttl.millis(), start + validity::validity(ttl.duration()));
        if !renews && self.rng.u32(..4) == 0 {
            // This extension confirms the lease without prolonging it.
            (millis, until) = (validity::ttl_to_outlast(expiry, start), expiry);
        }
        let request = Request::new(Op::Extend, &lease, millis);
        let round = self.begin_round(client, request, (start, until), None);
        self.clients[client].extension = Some(round);
        self.coverage.extensions += 1;
        let end = expiry.min(start + self.config.node_timeout);
        self.set_renewal(client, Some(end));
        self.evaluate_extension(client, false);
    }

    /// Continues when the extension is decided or `over`.
    pub(crate) fn evaluate_extension(&mut self, client: usize, over: bool) {
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
        let state = match verdict {
            Verdict::Granted => lease.extend_to(now, round.until, 0),
            Verdict::Refused if lease.mark_not_ours() => LeaseState::JustLost,
            Verdict::Refused | Verdict::Unavailable => lease.expire_if_due(now),
        };
        self.record(|_| format!("{client} extends: {verdict:?}, {}", state_name(state)));
        let expiry = self.held_until(client, &lease, state);
        if let (Verdict::Granted, Some(_)) = (verdict, expiry) {
            self.coverage.extended += 1;
            self.confirmed.insert(lease.token().id(), self.now);
            // Restored only after a quorum confirmed that the lease is ours.
            self.restore(client, &lease, ttl, round.absent);
            self.clients[client].late = Some(ConfirmedRenewal {
                round: round.number,
                lease: Arc::clone(&lease),
                ttl,
            });
        }
        let faults_over = self.faults_over;
        let draw = self.rng.f64();
        let hold = self.clients[client].hold.as_mut();
        let renewed =
            hold.filter(|hold| hold.renews && !faults_over && Arc::ptr_eq(&hold.lease, &lease));
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

    /// Restores a missing key that a node reports after the verdict.
    pub(crate) fn deliver_late(&mut self, client: usize, round: u32, node: usize, reply: &Reply) {
        let late = self.clients[client].late.as_ref();
        let late = late.filter(|late| late.round == round && *reply == Reply::Absent);
        if let Some((lease, ttl)) = late.map(|late| (Arc::clone(&late.lease), late.ttl)) {
            self.restore(client, &lease, ttl, NodeSet::single(node));
        }
    }

    pub(crate) fn restore(&mut self, client: usize, lease: &Arc<Lease>, ttl: u64, nodes: NodeSet) {
        self.coverage.restored += nodes.len() as u64;
        self.send_to_nodes(client, &Request::new(Op::Restore, lease, ttl), nodes);
    }

    /// Returns the expiry of a held lease. Handles a loss that `state` reports for the first time.
    fn held_until(
        &mut self,
        client: usize,
        lease: &Arc<Lease>,
        state: LeaseState,
    ) -> Option<Instant> {
        match state {
            LeaseState::Held(expiry) => Some(expiry),
            LeaseState::JustLost => {
                self.handle_loss(client, lease);
                None
            }
            LeaseState::Lost | LeaseState::Pending | LeaseState::Ended => None,
        }
    }

    fn handle_loss(&mut self, client: usize, lease: &Arc<Lease>) {
        self.coverage.losses += 1;
        self.record(|_| format!("{client} has lost it"));
        self.release_lease(client, lease, NodeSet::default());
    }

    /// Begins the holder's next step, a downgrade or a release.
    pub(crate) fn begin_next_step(&mut self, client: usize) {
        let now = self.clock(client);
        let Some(hold) = &mut self.clients[client].hold else {
            return;
        };
        let lease = Arc::clone(&hold.lease);
        let (downgrades, end) = (std::mem::take(&mut hold.downgrades), hold.end);
        match downgrades {
            // A downgrade that would have to wait for an extension is skipped.
            true if self.clients[client].extension.is_some() => {
                self.set_state(client, ClientState::Holding, Some(end));
            }
            true => self.downgrade(client, &lease, now),
            false => self.release(client, &lease, now),
        }
    }

    fn downgrade(&mut self, client: usize, lease: &Arc<Lease>, now: Instant) {
        let state = lease.expire_if_due(now);
        let Some(expiry) = self.held_until(client, lease, state) else {
            return self.drop_lost(client);
        };
        self.set_access(client, None);
        lease.downgrade();
        let mut request = Request::new(Op::Downgrade, lease, validity::ttl_to_outlast(expiry, now));
        request.refresh_interval = self.config.refresh;
        let round = self.begin_round(client, request, (now, now), None);
        self.clients[client].round = Some(round);
        let end = expiry.min(now + self.config.node_timeout);
        self.set_state(client, ClientState::Downgrading, Some(end));
        self.wake_if_decided(client);
    }

    pub(crate) fn finish_downgrade(&mut self, client: usize, verdict: Verdict) {
        let now = self.clock(client);
        let Some(hold) = &self.clients[client].hold else {
            return;
        };
        let (lease, end) = (Arc::clone(&hold.lease), hold.end);
        let state = match verdict {
            Verdict::Refused if lease.mark_not_ours() => LeaseState::JustLost,
            _ => lease.expire_if_due(now),
        };
        if self.held_until(client, &lease, state).is_none() {
            return self.drop_lost(client);
        }
        self.coverage.downgrades += 1;
        self.check_new_holder(client, &lease, LeaseKind::Read);
        self.set_access(client, Some(LeaseKind::Read));
        self.set_state(client, ClientState::Holding, Some(end.max(now)));
    }

    fn set_access(&mut self, client: usize, kind: Option<LeaseKind>) {
        let hold = self.clients[client].hold.as_mut();
        hold.into_iter().for_each(|hold| hold.access = kind);
    }

    fn release(&mut self, client: usize, lease: &Arc<Lease>, now: Instant) {
        let state = lease.begin_release(now);
        self.record(|_| format!("{client} releases: {}", state_name(state)));
        if self.held_until(client, lease, state).is_none() {
            return self.drop_lost(client);
        }
        self.end_hold(client);
        if self.hand_off(client, lease, now) {
            return lease.finish_release();
        }
        let mut request = Request::new(Op::Release, lease, 0);
        request.refresh_interval = self.config.refresh;
        if self.rng.bool() {
            // Released in the background.
            self.send_to_nodes(client, &request, lease.contacted());
            lease.finish_release();
            return self.begin_rest(client);
        }
        let round = self.begin_round(client, request, (now, now), None);
        self.clients[client].round = Some(round);
        self.set_state(
            client,
            ClientState::Releasing,
            Some(now + self.config.node_timeout),
        );
        self.wake_if_decided(client);
    }

    pub(crate) fn finish_release(&mut self, client: usize, round: &Round, verdict: Verdict) {
        if verdict == Verdict::Granted {
            self.coverage.released += 1;
            self.check_release(&round.request.lease, round.tally.granted());
        }
        self.begin_rest(client);
    }

    /// Drops the guard of a lost lock.
    fn drop_lost(&mut self, client: usize) {
        self.end_hold(client);
        self.begin_rest(client);
    }

    /// Ends the hold. Replies to an extension in progress are ignored from now on.
    fn end_hold(&mut self, client: usize) {
        let it = &mut self.clients[client];
        (it.hold, it.extension) = (None, None);
        self.set_renewal(client, None);
    }

    /// Wakes the client immediately if its round was decided when it began, because all nodes are
    /// suspect.
    fn wake_if_decided(&mut self, client: usize) {
        let it = &self.clients[client];
        let decided = it
            .round
            .as_ref()
            .is_some_and(|round| round.tally.verdict().is_some());
        if decided {
            let ticket = it.ticket;
            self.schedule_client_event(self.now, client, SimEvent::Wake { ticket });
        }
    }
}

/// Returns the state without its time, because that differs between runs of the program.
fn state_name(state: LeaseState) -> &'static str {
    match state {
        LeaseState::Held(_) => "held",
        LeaseState::JustLost | LeaseState::Lost => "lost",
        LeaseState::Pending | LeaseState::Ended => "over",
    }
}
