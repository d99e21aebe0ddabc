//! Clients: attempts, extensions, downgrades, releases. Stands for `engine/`.

use crate::connection::{Message, Op, Verdict, Vote, verdict};
use crate::read_write::{Bug, Client, Config, Phase, Role, Round, State};

impl Config {
    /// Begins one attempt (`Engine::attempt`, `NodeGroup::send_to_all`).
    pub(super) fn start(&self, state: &mut State, c: usize) {
        let client = &mut state.clients[c];
        client.phase = Phase::Trying;
        client.attempts += 1;
        client.reads = self.roles[c] == Role::Reader;
        // A write request carries the gate entry that it refreshes.
        let (token, gate_entry) = (client.attempts, client.gate_entry);
        let acquire = Message::new(Op::Acquire, token, gate_entry, true);
        let checks = client.reads && self.has(Bug::ExistsThenAdd);
        for node in &mut state.nodes {
            let slot = &mut node.slots[c];
            if checks {
                slot.connection
                    .submit(Message::new(Op::Check, token, 0, false));
            }
            slot.asked = slot.ask(acquire);
            node.gate_entry_asked[c] |= slot.asked && gate_entry > 0;
        }
        self.count(state, c);
    }

    /// Starts a round about the client's own lease: an extension or a downgrade.
    pub(super) fn ask_mine(&self, state: &mut State, c: usize, op: Op) {
        let client = state.clients[c];
        let message = Message::new(op, client.attempts, client.form(), true);
        end_round(state, c);
        for node in &mut state.nodes {
            node.slots[c].ask(message);
        }
        self.count(state, c);
    }

    /// Ends the client's round if it is decided (`Round::wait`).
    pub(super) fn count(&self, state: &mut State, c: usize) {
        let client = state.clients[c];
        let votes = state.nodes.map(|node| node.slots[c].vote);
        let takes = client.phase == Phase::Trying;
        let quorum = match takes && client.reads && self.has(Bug::ReadFromOne) {
            true => 1,
            false => 2,
        };
        if let Some(verdict) = verdict(votes, quorum, takes) {
            self.decide(state, c, verdict);
        }
    }

    pub(super) fn decide(&self, state: &mut State, c: usize, verdict: Verdict) {
        let client = &mut state.clients[c];
        match (client.phase, client.round, verdict) {
            (Phase::Trying, _, Verdict::Won) if client.age < self.validity => {
                client.phase = Phase::Held;
                client.left = self.validity - client.age;
                client.age = 0;
                end_round(state, c);
                self.leave_gate(state, c);
            }
            (Phase::Trying, _, verdict) => self.miss(state, c, verdict),
            (_, Round::Extend, Verdict::Won) => self.prolong(state, c),
            (_, _, Verdict::Refused) => self.undo(state, c),
            // A downgrade need not reach every node.
            _ => {
                client.round = Round::None;
                client.age = 0;
                end_round(state, c);
            }
        }
    }

    /// Undoes a failed or late attempt on all nodes that may have granted it. A writer whose
    /// attempt a quorum answered adds a gate entry for its next attempt (`Engine::acquire`).
    pub(super) fn miss(&self, state: &mut State, c: usize, verdict: Verdict) {
        for node in &mut state.nodes {
            let slot = &mut node.slots[c];
            slot.refused = slot.vote == Vote::Refused;
        }
        self.undo(state, c);
        let client = &mut state.clients[c];
        match verdict {
            Verdict::Unavailable => self.leave_gate(state, c),
            Verdict::Refused if self.waits(c, client) && client.gate_entry == 0 => {
                client.gate_entry = client.attempts;
            }
            _ => {}
        }
    }

    /// Returns whether a writer will make another attempt.
    pub(super) fn waits(&self, c: usize, client: &Client) -> bool {
        self.roles[c] == Role::Writer && client.attempts < self.attempts[c]
    }

    /// Deletes the gate entry on every node that was asked to add it.
    pub(super) fn leave_gate(&self, state: &mut State, c: usize) {
        let gate_entry = std::mem::take(&mut state.clients[c].gate_entry);
        if gate_entry == 0 {
            return;
        }
        for node in &mut state.nodes {
            if std::mem::take(&mut node.gate_entry_asked[c]) && !self.has(Bug::StaysAtTheGate) {
                let leave = Message::new(Op::LeaveGate, gate_entry, 0, false);
                node.slots[c].connection.submit(leave);
            }
        }
    }

    /// Ends the lease. The release goes to all nodes that may hold the token, and no client waits
    /// for it.
    pub(super) fn undo(&self, state: &mut State, c: usize) {
        let client = state.clients[c];
        let release = Message::new(Op::Release, client.attempts, client.form(), false);
        end_round(state, c);
        for node in &mut state.nodes {
            let slot = &mut node.slots[c];
            if slot.asked && !slot.refused {
                slot.connection.submit(release);
            }
            slot.asked = false;
            slot.refused = false;
            slot.restore = false;
        }
        state.clients[c] = Client {
            attempts: client.attempts,
            gate_entry: client.gate_entry,
            ..Client::default()
        };
    }

    /// Extends the lease after a quorum did (`Lease::extend_to`, then `NodeGroup::restore`).
    pub(super) fn prolong(&self, state: &mut State, c: usize) {
        let client = &mut state.clients[c];
        client.round = Round::None;
        if client.left > 0 {
            client.left = client.left.max(self.validity - client.age);
            for node in &mut state.nodes {
                let slot = &mut node.slots[c];
                slot.restore = slot.vote == Vote::Absent;
                client.restoring |= slot.restore;
            }
        }
        client.age = 0;
        end_round(state, c);
    }

    /// Restores keys if the lease is held when the request is written (`protocol/send_check.rs`).
    pub(super) fn restore(&self, state: &mut State, c: usize) {
        let client = &mut state.clients[c];
        let held = client.holds();
        let restore_request = Message::new(Op::Restore, client.attempts, client.form(), false);
        client.restoring = false;
        for node in &mut state.nodes {
            let slot = &mut node.slots[c];
            if std::mem::take(&mut slot.restore) && held {
                slot.asked = true;
                slot.connection.submit(restore_request);
            }
        }
    }
}

pub(super) fn end_round(state: &mut State, c: usize) {
    for node in &mut state.nodes {
        node.slots[c].end_round();
    }
}
