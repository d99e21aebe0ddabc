//! What clients do: attempts, extensions, releases. Stands for `engine.rs`, `engine/attempt.rs`, `round.rs`, `fence.rs`.

use crate::model::exclusive::{Bug, Client, Config, Phase, State};
use crate::model::lane::{Message, Verb, Verdict, Vote, verdict};

impl Config {
    /// One attempt begins (`Engine::attempt`, `Nodes::send_to_all`).
    pub(super) fn start(&self, state: &mut State, c: usize) {
        let up = state.nodes.iter().filter(|node| !node.seats[c].lane.down);
        let total = match self.has(Bug::QuorumOfReachable) {
            true => up.count() as u8,
            false => 3,
        };
        let client = &mut state.clients[c];
        client.phase = Phase::Trying;
        client.attempts += 1;
        client.quorum = total / 2 + 1;
        let take = Message::new(Verb::Take, self.token(client), self.validity, true);
        for node in &mut state.nodes {
            let seat = &mut node.seats[c];
            seat.asked = seat.ask(take);
        }
        self.count(state, c);
    }

    /// The holder's release and the take of the next thread are sent as one (`Engine::hand_off`). What is awaited of an extension
    /// is not any more.
    pub(super) fn hand_on(&self, state: &mut State, c: usize) {
        end_round(state, c);
        let client = &mut state.clients[c];
        *client = Client {
            phase: Phase::Trying,
            attempts: client.attempts + 1,
            quorum: client.quorum,
            is_next: true,
            ..Client::default()
        };
        let swap = Message::new(Verb::Swap, self.token(client), self.validity, true);
        for node in &mut state.nodes {
            let seat = &mut node.seats[c];
            (seat.former, seat.refused) = (seat.asked, false);
            seat.asked = seat.ask(swap);
        }
        self.count(state, c);
    }

    /// Where the former token was not swapped it may be there yet (`Engine::accept_handoff`).
    fn give_back(&self, state: &mut State, c: usize) {
        let client = &mut state.clients[c];
        if !std::mem::take(&mut client.is_next) {
            return;
        }
        let former = Message::new(Verb::Release, client.attempts - 1, 0, false);
        for node in &mut state.nodes {
            let seat = &mut node.seats[c];
            if std::mem::take(&mut seat.former) && !self.has(Bug::FormerForgotten) {
                seat.lane.submit(former);
            }
        }
    }

    /// Asks whether it is mine: an extension, or a raise.
    pub(super) fn ask_mine(&self, state: &mut State, c: usize, verb: Verb, value: u8) {
        end_round(state, c);
        let message = Message::new(verb, self.token(&state.clients[c]), value, true);
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
        if let Some(verdict) = verdict(votes, usize::from(client.quorum), takes) {
            self.decide(state, c, verdict);
        }
    }

    pub(super) fn decide(&self, state: &mut State, c: usize, verdict: Verdict) {
        let client = state.clients[c];
        if client.phase == Phase::Trying && client.is_next {
            for node in &mut state.nodes {
                let seat = &mut node.seats[c];
                seat.former &= !matches!(seat.vote, Vote::Granted(_));
            }
        }
        match (client.phase, verdict) {
            (Phase::Trying, Verdict::Won) if self.fenced => self.number(state, c),
            (Phase::Trying | Phase::Raising, Verdict::Won) => self.hold(state, c),
            (Phase::Trying | Phase::Raising, _) => self.miss(state, c),
            (Phase::Held, Verdict::Won) => self.prolong(state, c),
            (Phase::Held, Verdict::Refused) => self.undo(state, c),
            (Phase::Held, Verdict::Unavailable) => {
                end_round(state, c);
                state.clients[c].extending = None;
                state.clients[c].age = 0;
            }
            (Phase::Idle, _) => unreachable!("no round"),
        }
    }

    /// Gives the lease its number, or begins the second round (`Engine::assign_fencing_token`, `fence.rs`).
    pub(super) fn number(&self, state: &mut State, c: usize) {
        let mut numbers: Vec<u8> = Vec::with_capacity(3);
        for node in &mut state.nodes {
            let seat = &mut node.seats[c];
            match seat.vote {
                Vote::Granted(number) => numbers.push(number),
                Vote::Refused => seat.refused = true,
                _ => {}
            }
        }
        numbers.sort_unstable();
        let quorum = usize::from(state.clients[c].quorum);
        let (token, greatest) = (numbers[quorum - 1], numbers[numbers.len() - 1]);
        let agreed = numbers.iter().filter(|number| **number >= token).count() >= quorum;
        if agreed || self.has(Bug::NoSecondRound) {
            let token = if agreed { token } else { greatest };
            state.clients[c].fence = token;
            let raise = Message::new(Verb::Raise, self.token(&state.clients[c]), token, false);
            for node in &mut state.nodes {
                let seat = &mut node.seats[c];
                let behind = matches!(seat.vote, Vote::Granted(number) if number < token);
                if behind && !self.has(Bug::NoSecondRound) {
                    seat.lane.submit(raise);
                }
            }
            self.hold(state, c);
        } else {
            state.clients[c].fence = greatest;
            state.clients[c].phase = Phase::Raising;
            self.ask_mine(state, c, Verb::Raise, greatest);
        }
    }

    /// The last step before the guard: is there validity left? (rule S2)
    pub(super) fn hold(&self, state: &mut State, c: usize) {
        let client = &mut state.clients[c];
        let elapsed = match self.has(Bug::NoElapsed) {
            true => 0,
            false => client.age,
        };
        if elapsed >= self.validity {
            return self.miss(state, c);
        }
        client.phase = Phase::Held;
        client.left = self.validity - elapsed;
        client.age = 0;
        if self.fenced {
            state.fence_fell |= client.fence <= state.fence;
            state.fence = state.fence.max(client.fence);
            state.fences += 1;
        }
        end_round(state, c);
        self.give_back(state, c);
    }

    /// Not won, or too late: undone on all nodes that may have granted it.
    pub(super) fn miss(&self, state: &mut State, c: usize) {
        if state.clients[c].phase == Phase::Trying {
            for node in &mut state.nodes {
                let seat = &mut node.seats[c];
                seat.refused = seat.vote == Vote::Refused;
            }
        }
        let is_left = state.clients[c].is_next && self.has(Bug::NextForgotten);
        match self.has(Bug::NoUndo) || is_left {
            true => {
                self.give_back(state, c);
                leave(state, c);
            }
            false => self.undo(state, c),
        }
    }

    /// A release goes to all nodes that may hold the key, and nobody waits for it. The lease is over.
    pub(super) fn undo(&self, state: &mut State, c: usize) {
        let release = Message::new(Verb::Release, self.token(&state.clients[c]), 0, false);
        end_round(state, c);
        for node in &mut state.nodes {
            let seat = &mut node.seats[c];
            if seat.asked && !seat.refused {
                seat.lane.submit(release);
            }
        }
        self.give_back(state, c);
        leave(state, c);
    }

    /// A quorum has extended the lease (`Lease::extend_to`, then `Nodes::restore`).
    pub(super) fn prolong(&self, state: &mut State, c: usize) {
        let client = &mut state.clients[c];
        let ttl = client.extending.take().unwrap_or(0);
        if client.left > 0 {
            client.left = client.left.max(ttl.saturating_sub(client.age));
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
        let held = client.phase == Phase::Held && client.left > 0;
        let put_back = Message::new(Verb::PutBack, self.token(client), self.validity, false);
        client.restoring = false;
        for node in &mut state.nodes {
            let seat = &mut node.seats[c];
            if std::mem::take(&mut seat.restore) && (held || self.has(Bug::RestoreAfterRelease)) {
                seat.asked |= held;
                seat.lane.submit(put_back);
            }
        }
    }
}

/// Whether a round of the client is on its way.
pub(super) fn is_asking(client: &Client) -> bool {
    match client.phase {
        Phase::Idle => false,
        Phase::Trying | Phase::Raising => true,
        Phase::Held => client.extending.is_some(),
    }
}

/// No answer counts any more that was asked for in the round.
pub(super) fn end_round(state: &mut State, c: usize) {
    for node in &mut state.nodes {
        node.seats[c].end_round();
    }
}

/// The lease is over. What its client may still be about to do is to put back a key.
pub(super) fn leave(state: &mut State, c: usize) {
    end_round(state, c);
    for node in &mut state.nodes {
        node.seats[c].asked = false;
        node.seats[c].refused = false;
    }
    let client = &mut state.clients[c];
    *client = Client {
        attempts: client.attempts,
        restoring: client.restoring,
        ..Client::default()
    };
}
