//! What nodes do with requests. Stands for `script/lua.rs`.

use crate::model::lane::{Message, Verb, Vote};
use crate::model::read_write::{AS_READER, Bug, CLIENTS, Config, Life, Node, Role, State};

impl Config {
    /// What a node does with a request, and says to it (`script/lua.rs`).
    pub(super) fn serve(&self, node: &mut Node, c: usize, message: Message) -> Vote {
        let (token, full) = (message.token(), self.validity + 1);
        let mine = node.writer == Some((c as u8, token));
        let entry = node.readers[c][usize::from(token) - 1];
        let reads = message.value() == AS_READER;
        let gated = node.gate != [0; CLIENTS];
        let not_mine = match node.writer {
            Some(_) => Vote::Refused,
            None => Vote::Absent,
        };
        match message.verb() {
            Verb::Check => {
                node.found_free[c] = node.writer.is_none() && !gated;
                Vote::Open
            }
            // READ, for a new reader.
            Verb::Take if self.roles[c] == Role::Reader => {
                let free = match self.has(Bug::ExistsThenAdd) {
                    true => std::mem::take(&mut node.found_free[c]),
                    false => node.writer.is_none() && !gated,
                };
                if !free {
                    return Vote::Refused;
                }
                node.enter(c, token, full);
                Vote::Granted(0)
            }
            // READ, for who has been in: the gate is not heeded.
            Verb::PutBack if reads => {
                if node.writer.is_some() || gated && self.has(Bug::GateStopsAll) {
                    return Vote::Refused;
                }
                node.enter(c, token, full);
                Vote::Granted(0)
            }
            // WRITE. A gate keeps no writer out.
            Verb::Take | Verb::PutBack => {
                if node.writer.is_some() || node.has_readers() {
                    if message.verb() == Verb::Take {
                        // The bit of no place is none.
                        node.gate[c] |= 1 << message.value() & !1;
                    }
                    return Vote::Refused;
                }
                node.writer = Some((c as u8, token));
                node.writer_life = full;
                Vote::Granted(0)
            }
            // EXTEND_READ: where a downgrade did not come, the token is the writer's yet.
            Verb::Extend if reads => {
                if gated && self.has(Bug::GateStopsAll) {
                    return Vote::Absent;
                }
                if entry == 0 {
                    if !mine {
                        return Vote::Absent;
                    }
                    node.free_writer();
                }
                node.enter(c, token, full);
                Vote::Granted(0)
            }
            Verb::Extend if mine => {
                node.writer_life = full;
                Vote::Granted(0)
            }
            Verb::Downgrade if mine => {
                let life = node.writer_life;
                node.free_writer();
                if !self.has(Bug::DowngradeInTwoSteps) {
                    node.enter(c, token, life);
                }
                Vote::Granted(0)
            }
            Verb::Downgrade if entry > 0 => Vote::Granted(0),
            // RELEASE_READ, in either form.
            Verb::Release if reads && entry > 0 => {
                node.readers[c][usize::from(token) - 1] = 0;
                Vote::Granted(0)
            }
            Verb::Release if mine && !(reads && self.has(Bug::ReleaseInOneForm)) => {
                node.free_writer();
                Vote::Granted(0)
            }
            Verb::LeaveGate => {
                node.gate[c] &= !(1 << token);
                Vote::Granted(0)
            }
            _ => not_mine,
        }
    }

    /// The node serves a request, and a witness looks whether it was the gate that kept somebody out.
    pub(super) fn serve_seen(
        &self,
        state: &mut State,
        c: usize,
        n: usize,
        message: Message,
    ) -> Vote {
        let node = &mut state.nodes[n];
        let before = *node;
        let vote = self.serve(node, c, message);
        let was_in = before.readers[c][usize::from(message.token()) - 1] > 0;
        let may_pass = match message.verb() {
            Verb::Extend => was_in,
            Verb::PutBack => before.writer.is_none() && message.value() == AS_READER,
            _ => false,
        };
        state.gate_stopped |= may_pass && vote != Vote::Granted(0);
        vote
    }
}

impl Node {
    pub(super) fn free_writer(&mut self) {
        self.writer = None;
        self.writer_life = 0;
    }

    /// Enters a reader, or lets it stay for longer.
    pub(super) fn enter(&mut self, c: usize, token: u8, life: Life) {
        let entry = &mut self.readers[c][usize::from(token) - 1];
        *entry = life.max(*entry);
    }

    pub(super) fn has_readers(&self) -> bool {
        self.readers.as_flattened().iter().any(|life| *life > 0)
    }

    pub(super) fn is_free(&self) -> bool {
        self.writer.is_none() && !self.has_readers() && self.gate == [0; CLIENTS]
    }
}
