//! One client's connection to one node, and its votes. Stands for `transport/worker.rs`,
//! `transport/pipeline.rs` and `protocol/quorum.rs`.

use std::fmt;
use std::hash::{Hash, Hasher};

/// Operation of a request, as in `protocol/request.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Acquire,
    Extend,
    Restore,
    Release,
    Raise,
    Downgrade,
    /// Deletes the gate entry of a writer.
    LeaveGate,
    /// Reads whether a lock is free. No script does this alone.
    Check,
    /// Replaces the previous token, or none, by the new token.
    Swap,
}

const OPS: [Op; 9] = [
    Op::Acquire,
    Op::Extend,
    Op::Restore,
    Op::Release,
    Op::Raise,
    Op::Downgrade,
    Op::LeaveGate,
    Op::Check,
    Op::Swap,
];

/// A request: its operation, the index of the token among its client's (from 1), a TTL or a fencing
/// token, and whether a running round awaits the reply. Packed to save memory.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Message(u16);

impl Message {
    pub(crate) fn new(op: Op, token: u8, value: u8, awaited: bool) -> Message {
        assert!((1..8).contains(&token) && value < 32);
        Message(
            op as u16 | u16::from(token) << 4 | u16::from(value) << 7 | u16::from(awaited) << 15,
        )
    }

    pub(crate) fn op(self) -> Op {
        OPS[usize::from(self.0 & 15)]
    }

    pub(crate) fn token(self) -> u8 {
        (self.0 >> 4 & 7) as u8
    }

    pub(crate) fn value(self) -> u8 {
        (self.0 >> 7 & 31) as u8
    }

    pub(crate) fn is_awaited(self) -> bool {
        self.0 >> 15 == 1
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let star = if self.is_awaited() { "*" } else { "" };
        write!(
            f,
            "{:?}({}, {}){star}",
            self.op(),
            self.token(),
            self.value()
        )
    }
}

/// Requests that were written to one connection and not served yet: the next in the lowest bits,
/// zeros after the last.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Link(u128);

impl Link {
    pub(crate) fn iter(self) -> impl Iterator<Item = Message> {
        (0..8)
            .map(move |i| Message((self.0 >> (16 * i)) as u16))
            .take_while(|message| message.0 != 0)
    }

    fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn push(&mut self, message: Message) {
        let len = (128 - self.0.leading_zeros()).div_ceil(16);
        assert!(
            len < 8,
            "more on one connection than the model has room for"
        );
        self.0 |= u128::from(message.0) << (16 * len);
    }

    fn pop(&mut self) -> Message {
        let first = Message(self.0 as u16);
        self.0 >>= 16;
        first
    }

    /// Marks the requests as awaited by no round.
    fn forget_rounds(&mut self) {
        self.0 &= 0x7fff_7fff_7fff_7fff_7fff_7fff_7fff_7fff;
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// First in, first out to one node. A new connection first kills the former connection, and sends
/// the pending releases.
///
/// A request is written when it is submitted. In the library it may wait in a queue before. But the
/// check that can hold it back runs when it is written, so for the node a queued request is a
/// request that was submitted later.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Connection {
    pub(crate) down: bool,
    /// Requests on this connection that are not served yet.
    wire: Link,
    /// Requests on the broken connection that are not served yet. The node may serve them until the
    /// connection is killed.
    former: Link,
    /// Releases to send on the next connection, one bit per token: see [`pending_index`].
    pending: [u8; 3],
}

/// Returns the index of a pending release: by the form of the lock, or 2 for a gate entry.
fn pending_index(message: Message) -> Option<usize> {
    match message.op() {
        Op::Release => Some(usize::from(message.value())),
        Op::LeaveGate => Some(2),
        _ => None,
    }
}

impl Connection {
    /// Returns whether no request is on its way to the node.
    pub(crate) fn is_quiet(&self) -> bool {
        self.wire.is_empty() && self.former.is_empty() && self.pending == [0; 3]
    }

    /// Submits a request. Returns `false` if the connection is down: then a release becomes
    /// pending, and any other request is not sent.
    pub(crate) fn submit(&mut self, message: Message) -> bool {
        match self.down {
            false => self.wire.push(message),
            true => self.keep_pending(message),
        }
        !self.down
    }

    fn keep_pending(&mut self, message: Message) {
        if let Some(index) = pending_index(message) {
            self.pending[index] |= 1 << message.token();
        }
    }

    pub(crate) fn has_sent(&self) -> bool {
        !self.wire.is_empty()
    }

    pub(crate) fn has_former(&self) -> bool {
        !self.former.is_empty()
    }

    /// Returns the next request on this connection that the node serves.
    pub(crate) fn next(&mut self) -> Message {
        self.wire.pop()
    }

    /// Returns the next request on the broken connection that the node serves.
    pub(crate) fn next_of_former(&mut self) -> Message {
        self.former.pop()
    }

    /// Breaks the connection. The node may still serve any prefix of its requests; releases become
    /// pending.
    pub(crate) fn break_off(&mut self) {
        self.wire
            .iter()
            .for_each(|message| self.keep_pending(message));
        self.down = true;
        self.former = std::mem::take(&mut self.wire);
        self.former.forget_rounds();
    }

    /// Drops all requests, because the node has ended.
    pub(crate) fn lose_all(&mut self) {
        if !self.down {
            self.break_off();
        }
        self.former = Link::default();
    }

    /// Connects again. Kills the former connection if `kills`.
    pub(crate) fn connect(&mut self, kills: bool) {
        if kills {
            self.former = Link::default();
        }
        self.down = false;
        let pending = std::mem::take(&mut self.pending);
        for (index, tokens) in pending.into_iter().enumerate() {
            for token in (1..8).filter(|token| tokens >> token & 1 == 1) {
                let (op, form) = match index {
                    2 => (Op::LeaveGate, 0),
                    form => (Op::Release, form as u8),
                };
                self.wire.push(Message::new(op, token, form, false));
            }
        }
    }

    pub(crate) fn forget_rounds(&mut self) {
        self.wire.forget_rounds();
    }
}

/// Shows only the fields that are not empty.
impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", if self.down { "down" } else { "up" })?;
        if !self.wire.is_empty() {
            write!(f, " sent {:?}", self.wire)?;
        }
        if !self.former.is_empty() {
            write!(f, " former {:?}", self.former)?;
        }
        if self.pending != [0; 3] {
            write!(f, " pending {:?}", self.pending)?;
        }
        Ok(())
    }
}

/// Vote of a node in a round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Vote {
    /// No vote yet.
    #[default]
    Open,
    /// Granted, with the value of the fence counter.
    Granted(u8),
    /// Refused: another owner has the key.
    Refused,
    /// Refused: the node has no such token.
    Absent,
    Fault,
}

impl Vote {
    fn code(self) -> u8 {
        match self {
            Vote::Open => 0,
            Vote::Refused => 1,
            Vote::Absent => 2,
            Vote::Fault => 3,
            Vote::Granted(number) => 4 + number,
        }
    }

    fn is_refusal(self) -> bool {
        matches!(self, Vote::Refused | Vote::Absent)
    }
}

/// A client's view of a node, and its connection to the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NodeSlot {
    pub(crate) connection: Connection,
    /// The vote in the running round.
    pub(crate) vote: Vote,
    /// A reply on its way.
    pub(crate) reply: Vote,
    /// The node was asked to grant the lease, so it may hold its key.
    pub(crate) asked: bool,
    /// The node refused the lease.
    pub(crate) refused: bool,
    /// The key is to be restored on the node.
    pub(crate) restore: bool,
    /// The node may still hold the previous token.
    pub(crate) former: bool,
}

impl NodeSlot {
    /// Asks the node in a new round. A node whose connection is down is not asked, and counts as a
    /// fault at once (`NodeGroup::dispatch`).
    pub(crate) fn ask(&mut self, message: Message) -> bool {
        let sent = self.connection.submit(message);
        self.vote = if sent { Vote::Open } else { Vote::Fault };
        sent
    }

    /// Ends the round: its replies no longer count.
    pub(crate) fn end_round(&mut self) {
        self.vote = Vote::Open;
        self.reply = Vote::Open;
        self.connection.forget_rounds();
    }

    /// Drops the replies on a broken connection. Returns `true` if a vote results.
    pub(crate) fn fall(&mut self, asking: bool) -> bool {
        self.reply = Vote::Open;
        let votes = asking && self.vote == Vote::Open;
        if votes {
            self.vote = Vote::Fault;
        }
        votes
    }
}

/// Writes three integers, because the checker spends most of its time here.
impl Hash for NodeSlot {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let [exclusive, read, gate_entry] = self.connection.pending;
        let flags = [
            self.connection.down,
            self.asked,
            self.refused,
            self.restore,
            self.former,
        ];
        let flags = flags
            .into_iter()
            .fold(0, |all, flag| all << 1 | u8::from(flag));
        let [vote, reply] = [self.vote, self.reply].map(Vote::code);
        hasher.write_u128(self.connection.wire.0);
        hasher.write_u128(self.connection.former.0);
        hasher.write_u64(u64::from_le_bytes([
            exclusive, read, gate_entry, flags, vote, reply, 0, 0,
        ]));
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Won,
    Refused,
    Unavailable,
}

/// The decision table of `protocol/quorum.rs`: returns a verdict as soon as no open vote can change
/// it. `takes` marks an attempt to acquire, as opposed to a question about one's own lease.
pub(crate) fn verdict(votes: [Vote; 3], quorum: usize, takes: bool) -> Option<Verdict> {
    let count = |of: fn(Vote) -> bool| votes.iter().filter(|vote| of(**vote)).count();
    let granted = count(|vote| matches!(vote, Vote::Granted(_)));
    let refused = count(Vote::is_refusal);
    let open = count(|vote| vote == Vote::Open);
    if granted >= quorum {
        return Some(Verdict::Won);
    }
    if refused > votes.len() - quorum
        || takes && granted + open < quorum && granted + refused >= quorum
    {
        return Some(Verdict::Refused);
    }
    (open == 0).then_some(Verdict::Unavailable)
}
