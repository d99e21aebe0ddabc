//! Checks a history for overlapping holders, fencing tokens out of order, and leftover tokens.

use std::sync::Arc;

use crate::protocol::kind::LeaseKind;
use crate::protocol::lease::{Lease, LeaseState};
use crate::protocol::quorum::{NodeSet, majority};
use crate::tests::simulation::client::ClientState;
use crate::tests::simulation::simulator::Simulator;

/// A broken rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Violation {
    /// Two clients hold the lock, and at least one of them does not only read.
    Overlap {
        first: (usize, LeaseKind),
        second: (usize, LeaseKind),
    },
    /// A fencing token is not greater than that of the holder before.
    Order { before: u64, after: u64 },
    /// A node keeps a token that its client no longer uses and no longer has a request for.
    Leftover { node: usize, token: String },
    /// A release was reported as successful, but `lost` of the nodes counted had lost the lock
    /// before.
    UnconfirmedRelease { lost: usize },
    /// A client still waits although no event is left.
    Stuck { client: usize, state: ClientState },
    /// The history exceeds the maximum number of events.
    Endless,
}

/// What happened in a number of histories, to show that they cover each kind of event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Coverage {
    pub(crate) events: u64,
    pub(crate) attempts: u64,
    pub(crate) repeats: u64,
    pub(crate) reconnect_waits: u64,
    pub(crate) pending: u64,
    pub(crate) holds: u64,
    pub(crate) fenced: u64,
    pub(crate) raises: u64,
    pub(crate) extensions: u64,
    pub(crate) extended: u64,
    pub(crate) restored: u64,
    pub(crate) downgrades: u64,
    pub(crate) swaps: u64,
    pub(crate) losses: u64,
    pub(crate) released: u64,
    pub(crate) cancels: u64,
}

impl Coverage {
    pub(crate) fn add(&mut self, other: &Coverage) {
        self.events += other.events;
        self.attempts += other.attempts;
        self.repeats += other.repeats;
        self.reconnect_waits += other.reconnect_waits;
        self.pending += other.pending;
        self.holds += other.holds;
        self.fenced += other.fenced;
        self.raises += other.raises;
        self.extensions += other.extensions;
        self.extended += other.extended;
        self.restored += other.restored;
        self.downgrades += other.downgrades;
        self.swaps += other.swaps;
        self.losses += other.losses;
        self.released += other.released;
        self.cancels += other.cancels;
    }
}

impl Simulator {
    /// Checks, when a client acquires or downgrades the lock, that no other client holds it by its
    /// own clock.
    pub(crate) fn check_new_holder(&mut self, client: usize, lease: &Arc<Lease>, kind: LeaseKind) {
        self.record(|_| {
            format!(
                "{client} HOLDS as {kind:?}: {} {:?}",
                lease.token().text(),
                lease.fencing_token()
            )
        });
        self.coverage.holds += 1;
        for other in (0..self.clients.len()).filter(|other| *other != client) {
            let now = self.clock(other);
            let Some(hold) = &self.clients[other].hold else {
                continue;
            };
            let Some(access) = hold.access else {
                continue;
            };
            let both_read = (access, kind) == (LeaseKind::Read, LeaseKind::Read);
            // A paused holder, or one that has not checked its lease, still believes in it until
            // its own clock says otherwise.
            if matches!(hold.lease.peek(now), LeaseState::Held(_)) && !both_read {
                self.report(Violation::Overlap {
                    first: (other, access),
                    second: (client, kind),
                });
            }
        }
        // A downgrade makes no new holder, so its fencing token is not checked.
        if let Some(token) = lease.fencing_token().filter(|_| kind != LeaseKind::Read) {
            self.coverage.fenced += 1;
            if token <= self.last_fence {
                self.report(Violation::Order {
                    before: self.last_fence,
                    after: token,
                });
            }
            self.last_fence = token;
        }
    }

    /// Checks that a release reported as successful was made on a quorum. A node does not count if
    /// it lost the lock after a quorum last confirmed it.
    pub(crate) fn check_release(&mut self, lease: &Arc<Lease>, released: NodeSet) {
        let token = lease.token();
        let confirmed = self.confirmed.get(&token.id()).copied();
        let has_lost = |node: usize| self.nodes[node].lost.get(token.text()).copied() > confirmed;
        let nodes = 0..self.nodes.len();
        let lost = nodes.filter(|node| released.contains(*node) && has_lost(*node));
        let lost = lost.count();
        if released.len() - lost < majority(self.nodes.len()) {
            self.report(Violation::UnconfirmedRelease { lost });
        }
    }

    /// Checks that an idle connection has left no token on its node that its client no longer uses
    /// (S4).
    pub(crate) fn check_connection(&mut self, client: usize, node: usize) {
        if self.clients[client].dead || !self.clients[client].connections[node].is_idle() {
            return;
        }
        let at = &mut self.nodes[node];
        let now = at.clock.at(self.now);
        let lock = at.store.stored_lock(&self.key, now);
        let owner = lock.owner.iter().map(|(token, _)| token);
        let tokens = owner.chain(lock.readers.keys()).chain(lock.gate.keys());
        let left = tokens.into_iter().find(|token| {
            let of = token.split_once('.').and_then(|(of, _)| of.parse().ok());
            of == Some(client) && !self.clients[client].uses_token(token)
        });
        if let Some(token) = left.cloned() {
            self.report(Violation::Leftover { node, token });
        }
    }

    /// Checks, after the last event, that no client waits and no token is left. After the longest
    /// TTL no token of a dead client is left either.
    pub(crate) fn check_final_state(&mut self) {
        for client in 0..self.clients.len() {
            let it = &self.clients[client];
            if !it.dead && it.state != ClientState::Idle {
                let state = it.state;
                return self.report(Violation::Stuck { client, state });
            }
            (0..self.nodes.len()).for_each(|node| self.check_connection(client, node));
        }
        // The gate entry of a dead client may outlast the locks. Clocks may be slow, and may have
        // been set back.
        let gate_entry_ttl = 3 * self.config.refresh.as_micros() as u64;
        let lasts = self.config.max_ttl().max(gate_entry_ttl);
        self.now += lasts + lasts / 50 + 4_000;
        for node in 0..self.nodes.len() {
            let at = &mut self.nodes[node];
            let now = at.clock.at(self.now);
            let lock = at.store.stored_lock(&self.key, now);
            let owner = lock.owner.iter().map(|(token, _)| token);
            let left = owner
                .chain(lock.readers.keys())
                .chain(lock.gate.keys())
                .next();
            if let Some(token) = left.cloned() {
                self.report(Violation::Leftover { node, token });
            }
        }
    }
}
