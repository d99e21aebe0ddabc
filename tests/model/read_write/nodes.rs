//! Nodes serve requests. Stands for `protocol/lua/`.

use crate::connection::{Message, Op, Vote};
use crate::read_write::{AS_READER, Bug, CLIENTS, Config, Life, Node, Role, State};

impl Config {
    /// Serves one request and returns the vote (`protocol/lua/`).
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
        match message.op() {
            Op::Check => {
                node.found_free[c] = node.writer.is_none() && !gated;
                Vote::Open
            }
            Op::Acquire | Op::Restore => self.serve_acquire(node, c, message),
            // extend_read.lua: on a node that the downgrade missed, the token is still the
            // writer's.
            Op::Extend if reads => {
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
            Op::Extend if mine => {
                node.writer_life = full;
                Vote::Granted(0)
            }
            Op::Downgrade if mine => {
                let life = node.writer_life;
                node.free_writer();
                if !self.has(Bug::DowngradeInTwoSteps) {
                    node.enter(c, token, life);
                }
                Vote::Granted(0)
            }
            Op::Downgrade if entry > 0 => Vote::Granted(0),
            // release_read.lua, in either form.
            Op::Release if reads && entry > 0 => {
                node.readers[c][usize::from(token) - 1] = 0;
                Vote::Granted(0)
            }
            Op::Release if mine && !(reads && self.has(Bug::ReleaseInOneForm)) => {
                node.free_writer();
                Vote::Granted(0)
            }
            Op::LeaveGate => {
                node.gate[c] &= !(1 << token);
                Vote::Granted(0)
            }
            _ => not_mine,
        }
    }

    /// Serves an acquire or a restore.
    fn serve_acquire(&self, node: &mut Node, c: usize, message: Message) -> Vote {
        let (token, full) = (message.token(), self.validity + 1);
        let gated = node.gate != [0; CLIENTS];
        match message.op() {
            // acquire_read.lua, for a new reader.
            Op::Acquire if self.roles[c] == Role::Reader => {
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
            // acquire_read.lua, to restore a reader: it ignores the gate.
            Op::Restore if message.value() == AS_READER => {
                if node.writer.is_some() || gated && self.has(Bug::GateStopsAll) {
                    return Vote::Refused;
                }
                node.enter(c, token, full);
                Vote::Granted(0)
            }
            // acquire_write.lua. A gate refuses no writer.
            _ => {
                if node.writer.is_some() || node.has_readers() {
                    if message.op() == Op::Acquire {
                        // Index 0 means no gate entry, so its bit is cleared.
                        node.gate[c] |= 1 << message.value() & !1;
                    }
                    return Vote::Refused;
                }
                node.writer = Some((c as u8, token));
                node.writer_life = full;
                Vote::Granted(0)
            }
        }
    }

    /// Serves the next request of a connection, and delivers the reply unless its round has ended.
    pub(super) fn serve_next(&self, state: &mut State, c: usize, n: usize) {
        let message = state.nodes[n].slots[c].connection.next();
        let reply = self.serve_seen(state, c, n, message);
        let slot = &mut state.nodes[n].slots[c];
        match (message.is_awaited(), self.replies_wait) {
            (false, _) => {}
            (true, true) => slot.reply = reply,
            (true, false) => {
                slot.vote = reply;
                self.count(state, c);
            }
        }
    }

    /// Serves one request, and records whether the gate alone refused a reader that was present
    /// before.
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
        let may_pass = match message.op() {
            Op::Extend => was_in,
            Op::Restore => before.writer.is_none() && message.value() == AS_READER,
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

    /// Adds a reader, or extends it.
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
