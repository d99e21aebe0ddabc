//! What is checked: holds that overlap, fencing tokens out of order, and what is left behind.

use std::sync::Arc;

use crate::protocol::kind::LeaseKind;
use crate::protocol::lease::{Lease, LeaseState};
use crate::protocol::quorum::{NodeSet, majority};
use crate::tests::simulation::client::ClientState;
use crate::tests::simulation::simulator::Simulator;

/// What should not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Violation {
    /// Two hold it, and not both of them read.
    Overlap {
        first: (usize, LeaseKind),
        second: (usize, LeaseKind),
    },
    /// A token that is not greater than that of the holder before.
    Order { before: u64, after: u64 },
    /// A node keeps a token of a client that has finished with it, and has nothing more to say to the node.
    Leftover { node: usize, token: String },
    /// A release was told as made by a quorum, of which so many nodes had lost the lock before.
    Told { lost: usize },
    /// A client still waits for something when nothing can happen any more.
    Stuck { client: usize, doing: ClientState },
    /// It goes on and on.
    Endless,
}

/// What happened in some histories, so that it shows if they are about nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Coverage {
    pub(crate) events: u64,
    pub(crate) attempts: u64,
    pub(crate) repeats: u64,
    pub(crate) waits: u64,
    pub(crate) pending: u64,
    pub(crate) holds: u64,
    pub(crate) fenced: u64,
    pub(crate) raises: u64,
    pub(crate) extensions: u64,
    pub(crate) extended: u64,
    pub(crate) put_backs: u64,
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
        self.waits += other.waits;
        self.pending += other.pending;
        self.holds += other.holds;
        self.fenced += other.fenced;
        self.raises += other.raises;
        self.extensions += other.extensions;
        self.extended += other.extended;
        self.put_backs += other.put_backs;
        self.downgrades += other.downgrades;
        self.swaps += other.swaps;
        self.losses += other.losses;
        self.released += other.released;
        self.cancels += other.cancels;
    }
}

impl Simulator {
    /// At the moment at which a client gets a guard, or one of another kind: nobody else may hold it by his own clock.
    pub(crate) fn check_hand_out(&mut self, client: usize, lease: &Arc<Lease>, kind: LeaseKind) {
        self.note(|_| {
            format!(
                "{client} HOLDS as {kind:?}: {} {:?}",
                lease.token().text(),
                lease.fencing_token()
            )
        });
        self.counts.holds += 1;
        for other in (0..self.clients.len()).filter(|other| *other != client) {
            let now = self.clock(other);
            let Some(hold) = &self.clients[other].hold else {
                continue;
            };
            let Some(may) = hold.may else {
                continue;
            };
            let both_read = (may, kind) == (LeaseKind::Read, LeaseKind::Read);
            // Who is paused, or has not looked, believes it until its own clock says otherwise.
            if matches!(hold.lease.peek(now), LeaseState::Held(_)) && !both_read {
                self.find(Violation::Overlap {
                    first: (other, may),
                    second: (client, kind),
                });
            }
        }
        // A downgrade is no new holder.
        if let Some(token) = lease.fencing_token().filter(|_| kind != LeaseKind::Read) {
            self.counts.fenced += 1;
            if token <= self.last_fence {
                self.find(Violation::Order {
                    before: self.last_fence,
                    after: token,
                });
            }
            self.last_fence = token;
        }
    }

    /// When a release has been told as made: a quorum of the nodes that say so has not lost the lock since a quorum confirmed it.
    pub(crate) fn check_release(&mut self, lease: &Arc<Lease>, released: NodeSet) {
        let token = lease.token();
        let confirmed = self.confirmed.get(&token.id()).copied();
        let has_lost = |node: usize| self.nodes[node].lost.get(token.text()).copied() > confirmed;
        let nodes = 0..self.nodes.len();
        let lost = nodes.filter(|node| released.contains(*node) && has_lost(*node));
        let lost = lost.count();
        if released.len() - lost < majority(self.nodes.len()) {
            self.find(Violation::Told { lost });
        }
    }

    /// A lane that has nothing to do has left nothing on its node that its client does not answer for (rule S4).
    pub(crate) fn check_lane(&mut self, client: usize, node: usize) {
        if self.clients[client].dead || !self.clients[client].lanes[node].is_idle() {
            return;
        }
        let at = &mut self.nodes[node];
        let now = at.clock.at(self.now);
        let slot = at.memory.slot(&self.key, now);
        let owner = slot.owner.iter().map(|(token, _)| token);
        let tokens = owner.chain(slot.readers.keys()).chain(slot.gate.keys());
        let left = tokens.into_iter().find(|token| {
            let of = token.split_once('.').and_then(|(of, _)| of.parse().ok());
            of == Some(client) && !self.clients[client].answers_for(token)
        });
        if let Some(token) = left.cloned() {
            self.find(Violation::Leftover { node, token });
        }
    }

    /// When nothing happens any more nobody waits, nothing is left, and when all has ended nothing is left of the dead either.
    pub(crate) fn check_the_end(&mut self) {
        for client in 0..self.clients.len() {
            let it = &self.clients[client];
            if !it.dead && it.doing != ClientState::Nothing {
                let doing = it.doing;
                return self.find(Violation::Stuck { client, doing });
            }
            (0..self.nodes.len()).for_each(|node| self.check_lane(client, node));
        }
        // A place at the gate of one who has died may outlast the locks. Clocks may be slow, and may have been set back.
        let place = 3 * self.knobs.refresh.as_micros() as u64;
        let lasts = self.knobs.longest().max(place);
        self.now += lasts + lasts / 50 + 4_000;
        for node in 0..self.nodes.len() {
            let at = &mut self.nodes[node];
            let now = at.clock.at(self.now);
            let slot = at.memory.slot(&self.key, now);
            let owner = slot.owner.iter().map(|(token, _)| token);
            let left = owner
                .chain(slot.readers.keys())
                .chain(slot.gate.keys())
                .next();
            if let Some(token) = left.cloned() {
                self.find(Violation::Leftover { node, token });
            }
        }
    }
}
