//! What clients do: attempts, extensions, downgrades, releases. Stands for `engine.rs`, `engine/acquire.rs`, `engine/attempt.rs`.

use crate::model::lane::{Message, Verb, Verdict, Vote, verdict};
use crate::model::read_write::{Bug, Client, Config, Phase, Role, Round, State};

impl Config {
    /// One attempt begins (`Engine::attempt`, `Nodes::send_to_all`).
    pub(super) fn start(&self, state: &mut State, c: usize) {
        let client = &mut state.clients[c];
        client.phase = Phase::Trying;
        client.attempts += 1;
        client.reads = self.roles[c] == Role::Reader;
        // A request to write carries the place that it refreshes.
        let (token, place) = (client.attempts, client.place);
        let take = Message::new(Verb::Take, token, place, true);
        let checks = client.reads && self.has(Bug::ExistsThenAdd);
        for node in &mut state.nodes {
            let seat = &mut node.seats[c];
            if checks {
                seat.lane.submit(Message::new(Verb::Check, token, 0, false));
            }
            seat.asked = seat.ask(take);
            node.place_asked[c] |= seat.asked && place > 0;
        }
        self.count(state, c);
    }

    /// Asks in a round whether it is mine: an extension, or a downgrade.
    pub(super) fn ask_mine(&self, state: &mut State, c: usize, verb: Verb) {
        let client = state.clients[c];
        let message = Message::new(verb, client.attempts, client.form(), true);
        end_round(state, c);
        for node in &mut state.nodes {
            node.seats[c].ask(message);
        }
        self.count(state, c);
    }

    /// Whether the client's round is decided, and what follows (`Round::wait`).
    pub(super) fn count(&self, state: &mut State, c: usize) {
        let client = state.clients[c];
        let votes = state.nodes.map(|node| node.seats[c].vote);
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
            // A downgrade need not come everywhere.
            _ => {
                client.round = Round::None;
                client.age = 0;
                end_round(state, c);
            }
        }
    }

    /// Not won, or too late: undone on all nodes that may have granted it. A writer that knows of a quorum takes a place at
    /// the gate, for its next attempt (`Engine::acquire`).
    pub(super) fn miss(&self, state: &mut State, c: usize, verdict: Verdict) {
        for node in &mut state.nodes {
            let seat = &mut node.seats[c];
            seat.refused = seat.vote == Vote::Refused;
        }
        self.undo(state, c);
        let client = &mut state.clients[c];
        match verdict {
            Verdict::Unavailable => self.leave_gate(state, c),
            Verdict::Refused if self.waits(c, client) && client.place == 0 => {
                client.place = client.attempts;
            }
            _ => {}
        }
    }

    /// Whether a writer will make another attempt.
    pub(super) fn waits(&self, c: usize, client: &Client) -> bool {
        self.roles[c] == Role::Writer && client.attempts < self.attempts[c]
    }

    /// Leaves the place at the gate, wherever it was asked for.
    pub(super) fn leave_gate(&self, state: &mut State, c: usize) {
        let place = std::mem::take(&mut state.clients[c].place);
        if place == 0 {
            return;
        }
        for node in &mut state.nodes {
            if std::mem::take(&mut node.place_asked[c]) && !self.has(Bug::StaysAtTheGate) {
                let leave = Message::new(Verb::LeaveGate, place, 0, false);
                node.seats[c].lane.submit(leave);
            }
        }
    }

    /// A release goes to all nodes that may hold the token, and nobody waits for it. The lease is over.
    pub(super) fn undo(&self, state: &mut State, c: usize) {
        let client = state.clients[c];
        let release = Message::new(Verb::Release, client.attempts, client.form(), false);
        end_round(state, c);
        for node in &mut state.nodes {
            let seat = &mut node.seats[c];
            if seat.asked && !seat.refused {
                seat.lane.submit(release);
            }
            seat.asked = false;
            seat.refused = false;
            seat.restore = false;
        }
        state.clients[c] = Client {
            attempts: client.attempts,
            place: client.place,
            ..Client::default()
        };
    }

    /// A quorum has extended the lease (`Lease::extend_to`, then `Nodes::restore`).
    pub(super) fn prolong(&self, state: &mut State, c: usize) {
        let client = &mut state.clients[c];
        client.round = Round::None;
        if client.left > 0 {
            client.left = client.left.max(self.validity - client.age);
            for node in &mut state.nodes {
                let seat = &mut node.seats[c];
                seat.restore = seat.vote == Vote::Absent;
                client.restoring |= seat.restore;
            }
        }
        client.age = 0;
        end_round(state, c);
    }

    /// Puts keys back, as long as the lease is held when that is written (`Worker::admit`).
    pub(super) fn restore(&self, state: &mut State, c: usize) {
        let client = &mut state.clients[c];
        let held = client.holds();
        let put_back = Message::new(Verb::PutBack, client.attempts, client.form(), false);
        client.restoring = false;
        for node in &mut state.nodes {
            let seat = &mut node.seats[c];
            if std::mem::take(&mut seat.restore) && held {
                seat.asked = true;
                seat.lane.submit(put_back);
            }
        }
    }
}

pub(super) fn end_round(state: &mut State, c: usize) {
    for node in &mut state.nodes {
        node.seats[c].end_round();
    }
}
