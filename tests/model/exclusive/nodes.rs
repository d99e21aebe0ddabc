//! Nodes serve requests, and their replies arrive. Stands for `protocol/lua/` and
//! `transport/worker.rs`.

use crate::connection::{Message, Op, Vote};
use crate::exclusive::clients::is_asking;
use crate::exclusive::{Bug, Config, Node, Phase, State};

impl Config {
    /// Serves one request and returns the vote (`protocol/lua/`).
    pub(super) fn serve(&self, node: &mut Node, c: usize, message: Message) -> Vote {
        let token = (c as u8, message.token());
        let mine = node.owner == Some(token);
        let not_mine = match node.owner {
            Some(_) => Vote::Refused,
            None => Vote::Absent,
        };
        match message.op() {
            Op::Acquire | Op::Swap if node.quarantine > 0 => Vote::Fault,
            Op::Acquire | Op::Restore => {
                if node.owner.is_some() {
                    return Vote::Refused;
                }
                node.owner = Some(token);
                node.life = message.value();
                if self.fenced && message.op() == Op::Acquire {
                    node.fence += 1;
                }
                Vote::Granted(node.fence)
            }
            Op::Swap => {
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
            Op::Extend if mine => {
                node.life = match self.has(Bug::ExtensionShortens) {
                    true => message.value(),
                    false => node.life.max(message.value()),
                };
                Vote::Granted(0)
            }
            Op::Raise if mine => {
                node.fence = node.fence.max(message.value());
                Vote::Granted(0)
            }
            Op::Release if mine || self.has(Bug::UnlockByName) => {
                node.free();
                Vote::Granted(0)
            }
            _ => not_mine,
        }
    }

    /// Delivers a reply. The reply to an ended round does not count.
    pub(super) fn deliver(
        &self,
        state: &mut State,
        (c, n): (usize, usize),
        message: Message,
        reply: Vote,
    ) {
        if !message.is_awaited() {
            return;
        }
        let slot = &mut state.nodes[n].slots[c];
        if self.replies_wait {
            slot.reply = reply;
        } else {
            slot.vote = reply;
            self.count(state, c);
        }
    }

    /// Drops the replies on a broken connection.
    pub(super) fn fall(&self, state: &mut State, c: usize, n: usize) {
        let asking = is_asking(&state.clients[c]);
        if state.nodes[n].slots[c].fall(asking) {
            self.count(state, c);
        }
    }

    /// Deletes all keys of a node. In quarantine it grants nothing while an earlier lease may be
    /// valid.
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

    /// Restarts a node at once.
    pub(super) fn restart(&self, state: &mut State, n: usize) {
        for c in 0..2 {
            state.nodes[n].slots[c].connection.lose_all();
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
