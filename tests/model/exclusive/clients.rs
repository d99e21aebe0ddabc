//! Clients: attempts, extensions, releases. Stands for `engine/` and `transport/round.rs`.

use crate::connection::{Message, Op, Verdict, Vote, verdict};
use crate::exclusive::{Bug, Client, Config, Phase, State};

impl Config {
    /// Begins one attempt (`Engine::attempt`, `NodeGroup::send_to_all`).
    pub(super) fn start(&self, state: &mut State, c: usize) {
        let up = state
            .nodes
            .iter()
            .filter(|node| !node.slots[c].connection.down);
        let total = match self.has(Bug::QuorumOfReachable) {
            true => up.count() as u8,
            false => 3,
        };
        let client = &mut state.clients[c];
        client.phase = Phase::Trying;
        client.attempts += 1;
        client.quorum = total / 2 + 1;
        let acquire = Message::new(Op::Acquire, self.token(client), self.validity, true);
        for node in &mut state.nodes {
            let slot = &mut node.slots[c];
            slot.asked = slot.ask(acquire);
        }
        self.count(state, c);
    }

    /// Sends the holder's release and the next thread's acquire as one request
    /// (`Engine::hand_off`). A running extension no longer waits for replies.
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
        let swap = Message::new(Op::Swap, self.token(client), self.validity, true);
        for node in &mut state.nodes {
            let slot = &mut node.slots[c];
            (slot.former, slot.refused) = (slot.asked, false);
            slot.asked = slot.ask(swap);
        }
        self.count(state, c);
    }

    /// Releases the former token where the swap did not succeed, since the node may still hold it
    /// (`Engine::accept_handoff`).
    fn give_back(&self, state: &mut State, c: usize) {
        let client = &mut state.clients[c];
        if !std::mem::take(&mut client.is_next) {
            return;
        }
        let former = Message::new(Op::Release, client.attempts - 1, 0, false);
        for node in &mut state.nodes {
            let slot = &mut node.slots[c];
            if std::mem::take(&mut slot.former) && !self.has(Bug::FormerForgotten) {
                slot.connection.submit(former);
            }
        }
    }

    /// Starts a round about the client's own lease: an extension or a raise of the fence counter.
    pub(super) fn ask_mine(&self, state: &mut State, c: usize, op: Op, value: u8) {
        end_round(state, c);
        let message = Message::new(op, self.token(&state.clients[c]), value, true);
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
        if let Some(verdict) = verdict(votes, usize::from(client.quorum), takes) {
            self.decide(state, c, verdict);
        }
    }

    pub(super) fn decide(&self, state: &mut State, c: usize, verdict: Verdict) {
        let client = state.clients[c];
        if client.phase == Phase::Trying && client.is_next {
            for node in &mut state.nodes {
                let slot = &mut node.slots[c];
                slot.former &= !matches!(slot.vote, Vote::Granted(_));
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

    /// Assigns a fencing token to the lease, or begins the second round
    /// (`Engine::assign_fencing_token`).
    pub(super) fn number(&self, state: &mut State, c: usize) {
        let mut numbers: Vec<u8> = Vec::with_capacity(3);
        for node in &mut state.nodes {
            let slot = &mut node.slots[c];
            match slot.vote {
                Vote::Granted(number) => numbers.push(number),
                Vote::Refused => slot.refused = true,
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
            let raise = Message::new(Op::Raise, self.token(&state.clients[c]), token, false);
            for node in &mut state.nodes {
                let slot = &mut node.slots[c];
                let behind = matches!(slot.vote, Vote::Granted(number) if number < token);
                if behind && !self.has(Bug::NoSecondRound) {
                    slot.connection.submit(raise);
                }
            }
            self.hold(state, c);
        } else {
            state.clients[c].fence = greatest;
            state.clients[c].phase = Phase::Raising;
            self.ask_mine(state, c, Op::Raise, greatest);
        }
    }

    /// Checks the remaining validity, as the last step before the guard (rule S2).
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

    /// Undoes a failed or late attempt on all nodes that may have granted it.
    pub(super) fn miss(&self, state: &mut State, c: usize) {
        if state.clients[c].phase == Phase::Trying {
            for node in &mut state.nodes {
                let slot = &mut node.slots[c];
                slot.refused = slot.vote == Vote::Refused;
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

    /// Ends the lease. The release goes to all nodes that may hold the key, and no client waits for
    /// it.
    pub(super) fn undo(&self, state: &mut State, c: usize) {
        let release = Message::new(Op::Release, self.token(&state.clients[c]), 0, false);
        end_round(state, c);
        for node in &mut state.nodes {
            let slot = &mut node.slots[c];
            if slot.asked && !slot.refused {
                slot.connection.submit(release);
            }
        }
        self.give_back(state, c);
        leave(state, c);
    }

    /// Extends the lease after a quorum did (`Lease::extend_to`, then `NodeGroup::restore`).
    pub(super) fn prolong(&self, state: &mut State, c: usize) {
        let client = &mut state.clients[c];
        let ttl = client.extending.take().unwrap_or(0);
        if client.left > 0 {
            client.left = client.left.max(ttl.saturating_sub(client.age));
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
        let held = client.phase == Phase::Held && client.left > 0;
        let restore_request = Message::new(Op::Restore, self.token(client), self.validity, false);
        client.restoring = false;
        for node in &mut state.nodes {
            let slot = &mut node.slots[c];
            if std::mem::take(&mut slot.restore) && (held || self.has(Bug::RestoreAfterRelease)) {
                slot.asked |= held;
                slot.connection.submit(restore_request);
            }
        }
    }
}

/// Returns whether the client has a running round.
pub(super) fn is_asking(client: &Client) -> bool {
    match client.phase {
        Phase::Idle => false,
        Phase::Trying | Phase::Raising => true,
        Phase::Held => client.extending.is_some(),
    }
}

/// Ends the round on all nodes: its replies no longer count.
pub(super) fn end_round(state: &mut State, c: usize) {
    for node in &mut state.nodes {
        node.slots[c].end_round();
    }
}

/// Ends the lease. Its client may still be about to restore a key.
pub(super) fn leave(state: &mut State, c: usize) {
    end_round(state, c);
    for node in &mut state.nodes {
        node.slots[c].asked = false;
        node.slots[c].refused = false;
    }
    let client = &mut state.clients[c];
    *client = Client {
        attempts: client.attempts,
        restoring: client.restoring,
        ..Client::default()
    };
}
