//! What nodes do with requests, and what becomes of their answers. Stands for `script/lua.rs` and `worker.rs`.

use crate::model::exclusive::clients::is_asking;
use crate::model::exclusive::{Bug, Config, Node, Phase, State};
use crate::model::lane::{Message, Verb, Vote};

impl Config {
    /// What a node does with a request, and says to it (`script/lua.rs`).
    pub(super) fn serve(&self, node: &mut Node, c: usize, message: Message) -> Vote {
        let token = (c as u8, message.token());
        let mine = node.owner == Some(token);
        let not_mine = match node.owner {
            Some(_) => Vote::Refused,
            None => Vote::Absent,
        };
        match message.verb() {
            Verb::Take | Verb::Swap if node.quarantine > 0 => Vote::Fault,
            Verb::Take | Verb::PutBack => {
                if node.owner.is_some() {
                    return Vote::Refused;
                }
                node.owner = Some(token);
                node.life = message.value();
                if self.fenced && message.verb() == Verb::Take {
                    node.fence += 1;
                }
                Vote::Granted(node.fence)
            }
            Verb::Swap => {
                let former = (c as u8, message.token() - 1);
                let is_free = node.owner.is_none_or(|owner| owner == former);
                if !is_free && !self.has(Bug::SwapsForeign) {
                    return Vote::Refused;
                }
                if node.owner.is_none() || !self.has(Bug::SwapKeepsTime) {
                    node.life = message.value();
                }
                node.owner = Some(token);
                if self.fenced {
                    node.fence += 1;
                }
                Vote::Granted(node.fence)
            }
            Verb::Extend if mine => {
                node.life = match self.has(Bug::ExtensionShortens) {
                    true => message.value(),
                    false => node.life.max(message.value()),
                };
                Vote::Granted(0)
            }
            Verb::Raise if mine => {
                node.fence = node.fence.max(message.value());
                Vote::Granted(0)
            }
            Verb::Release if mine || self.has(Bug::UnlockByName) => {
                node.free();
                Vote::Granted(0)
            }
            _ => not_mine,
        }
    }

    /// An answer comes in; of a round that is over it does not count.
    pub(super) fn answer(
        &self,
        state: &mut State,
        c: usize,
        n: usize,
        message: Message,
        answer: Vote,
    ) {
        if !message.is_awaited() {
            return;
        }
        let seat = &mut state.nodes[n].seats[c];
        if self.answers_wait {
            seat.answer = answer;
        } else {
            seat.vote = answer;
            self.count(state, c);
        }
    }

    /// The connection is gone, and with it the answers to the requests on it.
    pub(super) fn fall(&self, state: &mut State, c: usize, n: usize) {
        let asking = is_asking(&state.clients[c]);
        if state.nodes[n].seats[c].fall(asking) {
            self.count(state, c);
        }
    }

    /// A node forgets all keys. In quarantine it grants nothing for as long as a lease of before may be valid.
    pub(super) fn lose_data(&self, state: &mut State, n: usize) {
        let above = state.nodes.iter().map(|node| node.fence).max();
        let at_rest = state
            .clients
            .iter()
            .all(|client| client.phase == Phase::Idle);
        let node = &mut state.nodes[n];
        node.free();
        node.fence = match self.fenced && self.clocks_in_step {
            true => above.unwrap_or(0) + 1,
            false => 0,
        };
        node.quarantine = match self.has(Bug::NoQuarantine) || self.still && at_rest {
            true => 0,
            false => self.validity,
        };
    }

    /// A node ends and is back at once.
    pub(super) fn restart(&self, state: &mut State, n: usize) {
        for c in 0..2 {
            state.nodes[n].seats[c].lane.lose_all();
            self.fall(state, c, n);
        }
    }
}

impl Node {
    pub(super) fn free(&mut self) {
        self.owner = None;
        self.life = 0;
    }
}
