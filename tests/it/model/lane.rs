//! One client's connection to one node, and the votes that come over it. Stands for `worker.rs`, `lane.rs`, `quorum.rs`.

use std::fmt;
use std::hash::{Hash, Hasher};

/// What is asked of a node, as `script.rs` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Take,
    Extend,
    PutBack,
    Release,
    Raise,
    Downgrade,
    /// A writer leaves its place at the gate.
    LeaveGate,
    /// What no script does: looks whether a lock is free, and leaves it at that.
    Check,
    /// Its token takes the place of the one before it, or of none.
    Swap,
}

const VERBS: [Verb; 9] = [
    Verb::Take,
    Verb::Extend,
    Verb::PutBack,
    Verb::Release,
    Verb::Raise,
    Verb::Downgrade,
    Verb::LeaveGate,
    Verb::Check,
    Verb::Swap,
];

/// A request: a verb, the token by its number among its client's (from 1), a TTL or a fencing number, and whether its answer
/// counts in a round that is not over. Packed, since states are many.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Message(u16);

impl Message {
    pub(crate) fn new(verb: Verb, token: u8, value: u8, awaited: bool) -> Message {
        assert!((1..8).contains(&token) && value < 32);
        Message(
            verb as u16 | u16::from(token) << 4 | u16::from(value) << 7 | u16::from(awaited) << 15,
        )
    }

    pub(crate) fn verb(self) -> Verb {
        VERBS[usize::from(self.0 & 15)]
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
            self.verb(),
            self.token(),
            self.value()
        )
    }
}

/// What was written to one connection and is not served yet: the next one in the lowest bits, zeros behind the last.
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

    /// No round waits for these any more.
    fn forget_rounds(&mut self) {
        self.0 &= 0x7fff_7fff_7fff_7fff_7fff_7fff_7fff_7fff;
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// A lane: first in, first out on one connection; a new connection first kills the former one, and pays what is owed.
///
/// A request is written when it is submitted. In the library it may wait in a queue before; but what holds a request back
/// unsent is looked at when it is written, so that to the node a request that waited is one that was submitted later.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Lane {
    pub(crate) down: bool,
    /// Not served yet on this connection.
    wire: Link,
    /// Not served yet on the connection that broke. The node may still serve it, until it is killed.
    former: Link,
    /// What is released as soon as the lane is connected again, a bit for each token: see [`debt`].
    owed: [u8; 3],
}

/// Where a release is written down that is owed: one of a lock by the form that it has, and one of a place at the gate.
fn debt(message: Message) -> Option<usize> {
    match message.verb() {
        Verb::Release => Some(usize::from(message.value())),
        Verb::LeaveGate => Some(2),
        _ => None,
    }
}

impl Lane {
    /// Nothing is on its way to the node.
    pub(crate) fn is_quiet(&self) -> bool {
        self.wire.is_empty() && self.former.is_empty() && self.owed == [0; 3]
    }

    /// Submits a request: `false` where the lane is down. Releases are owed then, all else is not sent.
    pub(crate) fn submit(&mut self, message: Message) -> bool {
        match self.down {
            false => self.wire.push(message),
            true => self.owe(message),
        }
        !self.down
    }

    fn owe(&mut self, message: Message) {
        if let Some(debt) = debt(message) {
            self.owed[debt] |= 1 << message.token();
        }
    }

    pub(crate) fn has_sent(&self) -> bool {
        !self.wire.is_empty()
    }

    pub(crate) fn has_former(&self) -> bool {
        !self.former.is_empty()
    }

    /// What the node serves next.
    pub(crate) fn next(&mut self) -> Message {
        self.wire.pop()
    }

    /// What the node serves next of the connection that broke.
    pub(crate) fn next_of_former(&mut self) -> Message {
        self.former.pop()
    }

    /// The connection breaks. Of what was on its way any first part may yet be served; releases are owed.
    pub(crate) fn break_off(&mut self) {
        self.wire.iter().for_each(|message| self.owe(message));
        self.down = true;
        self.former = std::mem::take(&mut self.wire);
        self.former.forget_rounds();
    }

    /// The node has ended: what was on its way is lost with it.
    pub(crate) fn lose_all(&mut self) {
        if !self.down {
            self.break_off();
        }
        self.former = Link::default();
    }

    /// A new connection. It kills the former one, unless that has been forgotten.
    pub(crate) fn connect(&mut self, kills: bool) {
        if kills {
            self.former = Link::default();
        }
        self.down = false;
        let owed = std::mem::take(&mut self.owed);
        for (debt, tokens) in owed.into_iter().enumerate() {
            for token in (1..8).filter(|token| tokens >> token & 1 == 1) {
                let (verb, form) = match debt {
                    2 => (Verb::LeaveGate, 0),
                    form => (Verb::Release, form as u8),
                };
                self.wire.push(Message::new(verb, token, form, false));
            }
        }
    }

    pub(crate) fn forget_rounds(&mut self) {
        self.wire.forget_rounds();
    }
}

/// Shows only what is there.
impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", if self.down { "down" } else { "up" })?;
        if !self.wire.is_empty() {
            write!(f, " sent {:?}", self.wire)?;
        }
        if !self.former.is_empty() {
            write!(f, " former {:?}", self.former)?;
        }
        if self.owed != [0; 3] {
            write!(f, " owed {:?}", self.owed)?;
        }
        Ok(())
    }
}

/// What a node has said in a round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Vote {
    /// Nothing yet.
    #[default]
    Open,
    /// Yes, with the number of its fence.
    Granted(u8),
    /// Another has it.
    Refused,
    /// It has no such token.
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

/// What a client knows of a node, and its lane there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NodeSlot {
    pub(crate) lane: Lane,
    /// In the round that is not over.
    pub(crate) vote: Vote,
    /// An answer on its way.
    pub(crate) answer: Vote,
    /// Was asked to grant the lease, so may hold its key.
    pub(crate) asked: bool,
    /// Refused it.
    pub(crate) refused: bool,
    /// Its key is to be put back.
    pub(crate) restore: bool,
    /// The token before may be there yet.
    pub(crate) former: bool,
}

impl NodeSlot {
    /// Asks in a new round. A node whose lane is down is not asked, and its fault is counted at once (`Nodes::dispatch`).
    pub(crate) fn ask(&mut self, message: Message) -> bool {
        let sent = self.lane.submit(message);
        self.vote = if sent { Vote::Open } else { Vote::Fault };
        sent
    }

    /// No answer counts any more that was asked for in the round.
    pub(crate) fn end_round(&mut self) {
        self.vote = Vote::Open;
        self.answer = Vote::Open;
        self.lane.forget_rounds();
    }

    /// The connection is gone, and with it the answers to the requests on it. `true` if a vote comes of that.
    pub(crate) fn fall(&mut self, asking: bool) -> bool {
        self.answer = Vote::Open;
        let votes = asking && self.vote == Vote::Open;
        if votes {
            self.vote = Vote::Fault;
        }
        votes
    }
}

/// In three pieces, since most of the time goes into this.
impl Hash for NodeSlot {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let [exclusive, read, place] = self.lane.owed;
        let flags = [
            self.lane.down,
            self.asked,
            self.refused,
            self.restore,
            self.former,
        ];
        let flags = flags
            .into_iter()
            .fold(0, |all, flag| all << 1 | u8::from(flag));
        let [vote, answer] = [self.vote, self.answer].map(Vote::code);
        hasher.write_u128(self.lane.wire.0);
        hasher.write_u128(self.lane.former.0);
        hasher.write_u64(u64::from_le_bytes([
            exclusive, read, place, flags, vote, answer, 0, 0,
        ]));
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Won,
    Refused,
    Unavailable,
}

/// The decision table of `quorum.rs`: a verdict as soon as no vote that is still out can change it. `takes` is the question
/// of an attempt, as against "is it mine".
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
