//! The read-write lock as a model: a writer and readers, with the gate and the downgrade (rule S10).
//!
//! What is left out is the readers' turn: it only refuses writers more, and no safety rests on it. A place at the gate may
//! lapse at any moment.

use stateright::{Model, Property};

use crate::model::lane::{NodeSlot, Verb, Verdict, Vote};

mod clients;

mod nodes;

/// A known mistake, put into the model to see that the checker finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bug {
    /// A reader looks whether there is a writer, and adds itself in a second request.
    ExistsThenAdd,
    /// One node is enough for a reader.
    ReadFromOne,
    /// The gate is heeded by everything that reads.
    GateStopsAll,
    /// A release of what was downgraded looks for the token among the readers only.
    ReleaseInOneForm,
    /// A downgrade deletes the writer in a request of its own, and the one that would enter the reader is lost.
    DowngradeInTwoSteps,
    /// The place at the gate is not left.
    StaysAtTheGate,
}

/// Who can take part.
pub(super) const CLIENTS: usize = 3;
/// Tokens of a client at the most.
const TOKENS: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Reader,
    Writer,
}

/// What is in the model, and how much of it.
#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) roles: [Role; CLIENTS],
    /// How many attempts each client makes, won or not.
    pub(super) attempts: [u8; CLIENTS],
    /// How many extensions each lease gets.
    pub(super) extensions: [u8; CLIENTS],
    /// For how many ticks a lease is valid to its client, and then kept by a node at the least.
    pub(super) validity: u8,
    /// How many connections break in all.
    pub(super) breaks: u8,
    /// Whether answers take their time, too. Without it only requests do.
    pub(super) answers_wait: bool,
    /// Whether writers may turn into readers.
    pub(super) downgrades: bool,
    /// Whether time stands still, where nothing rests on it.
    pub(super) still: bool,
    pub(super) bugs: Vec<Bug>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            roles: [Role::Writer, Role::Reader, Role::Reader],
            attempts: [1, 1, 0],
            extensions: [0; CLIENTS],
            validity: 2,
            breaks: 0,
            answers_wait: false,
            downgrades: false,
            still: false,
            bugs: Vec::new(),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Phase {
    #[default]
    Idle,
    Trying,
    Held,
}

/// The round of a lease that is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Round {
    #[default]
    None,
    Extend,
    Downgrade,
}

/// A client: `engine.rs`, `engine/acquire.rs`, `engine/attempt.rs`, and its lease, `lease.rs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Client {
    phase: Phase,
    /// Whether the lease claims to read (`Lease::claim`).
    reads: bool,
    /// How many attempts have begun; the last one has this number as its token.
    attempts: u8,
    /// Ticks since the attempt or the extension began.
    age: u8,
    /// How many ticks the lease is valid for, as its client sees it.
    left: u8,
    extensions: u8,
    round: Round,
    /// An extension was won, and keys are about to be put back.
    restoring: bool,
    /// The token of its place at the gate; 0 without one.
    place: u8,
}

/// Something that ends in so many ticks, less one; at 1 it may go at any moment. 0 is nothing.
type Life = u8;

/// A node, and what the clients know of it. All that has to do with one node is in here, so that nodes can change places.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Node {
    /// The client and the token in the writer's place.
    writer: Option<(u8, u8)>,
    writer_life: Life,
    readers: [[Life; TOKENS]; CLIENTS],
    /// A bit for each place, by the number of its token.
    gate: [u8; CLIENTS],
    /// Was asked to take a place into its gate.
    place_asked: [bool; CLIENTS],
    /// For readers that check first: what they found.
    found_free: [bool; CLIENTS],
    seats: [NodeSlot; CLIENTS],
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct State {
    clients: [Client; CLIENTS],
    nodes: [Node; 3],
    /// A gate has kept somebody out who had been in.
    gate_stopped: bool,
    breaks: u8,
}

/// What happens next. Clients and nodes by their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Tick,
    ExpireWriter(usize),
    ExpireReader(usize, usize, usize),
    ExpirePlace(usize, usize),
    Start(usize),
    Serve(usize, usize),
    ServeFormer(usize, usize),
    Deliver(usize, usize),
    /// The time of the round is over.
    TimeOut(usize),
    Extend(usize),
    Downgrade(usize),
    Restore(usize),
    Release(usize),
    /// The client looks at its lease, and finds that its time is over.
    SeeLost(usize),
    /// A writer stops waiting.
    LeaveGate(usize),
    Break(usize, usize),
    Connect(usize, usize),
}

/// The two forms of a script, for what claims to read and what claims to write.
const AS_READER: u8 = 1;
const AS_WRITER: u8 = 0;

impl Config {
    fn has(&self, bug: Bug) -> bool {
        self.bugs.contains(&bug)
    }

    /// Whether two can come to hold it to read.
    fn can_share(&self) -> bool {
        let reads = |(role, attempts): &(Role, u8)| {
            *attempts > 0 && (self.downgrades || *role == Role::Reader)
        };
        self.roles
            .into_iter()
            .zip(self.attempts)
            .filter(reads)
            .count()
            > 1
    }
}

impl Client {
    /// Whether it believes that it holds the lock.
    fn holds(&self) -> bool {
        self.phase == Phase::Held && self.left > 0
    }

    fn holds_to_write(&self) -> bool {
        self.holds() && !self.reads
    }

    fn holds_to_read(&self) -> bool {
        self.holds() && self.reads
    }

    fn form(&self) -> u8 {
        if self.reads { AS_READER } else { AS_WRITER }
    }

    /// Whether a round of it is on its way.
    fn is_asking(&self) -> bool {
        self.phase == Phase::Trying || self.round != Round::None
    }
}

/// A tick brings everything closer to its end.
fn age(life: &mut Life) {
    *life = (*life).min(1).max(life.saturating_sub(1));
}

impl Model for Config {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::default()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if !self.still {
            actions.push(Action::Tick);
        }
        for (n, node) in state.nodes.iter().enumerate() {
            if node.writer_life == 1 {
                actions.push(Action::ExpireWriter(n));
            }
            for (c, entries) in node.readers.iter().enumerate() {
                for (i, life) in entries.iter().enumerate() {
                    if *life == 1 {
                        actions.push(Action::ExpireReader(n, c, i));
                    }
                }
                if node.gate[c] != 0 {
                    actions.push(Action::ExpirePlace(n, c));
                }
            }
            for (c, seat) in node.seats.iter().enumerate() {
                if seat.lane.has_sent() {
                    actions.push(Action::Serve(c, n));
                }
                if seat.lane.has_former() {
                    actions.push(Action::ServeFormer(c, n));
                }
                if seat.answer != Vote::Open {
                    actions.push(Action::Deliver(c, n));
                }
                if seat.lane.down {
                    actions.push(Action::Connect(c, n));
                } else if state.breaks < self.breaks && self.attempts[c] > 0 {
                    actions.push(Action::Break(c, n));
                }
            }
        }
        for (c, client) in state.clients.iter().enumerate() {
            if client.is_asking() {
                actions.push(Action::TimeOut(c));
            }
            if client.restoring {
                actions.push(Action::Restore(c));
            }
            match client.phase {
                Phase::Idle => {
                    if client.attempts < self.attempts[c] {
                        actions.push(Action::Start(c));
                    }
                    if client.place > 0 {
                        actions.push(Action::LeaveGate(c));
                    }
                }
                Phase::Held if client.left == 0 => actions.push(Action::SeeLost(c)),
                Phase::Held => {
                    actions.push(Action::Release(c));
                    let idle = client.round == Round::None && !client.restoring;
                    if idle && client.extensions < self.extensions[c] {
                        actions.push(Action::Extend(c));
                    }
                    if idle && self.downgrades && !client.reads {
                        actions.push(Action::Downgrade(c));
                    }
                }
                Phase::Trying => {}
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Tick => {
                for client in &mut state.clients {
                    if client.is_asking() {
                        client.age = (client.age + 1).min(self.validity);
                    }
                    client.left = client.left.saturating_sub(1);
                }
                for node in &mut state.nodes {
                    age(&mut node.writer_life);
                    node.readers.as_flattened_mut().iter_mut().for_each(age);
                }
                if state == *last {
                    return None;
                }
            }
            Action::ExpireWriter(n) => state.nodes[n].free_writer(),
            Action::ExpireReader(n, c, i) => state.nodes[n].readers[c][i] = 0,
            Action::ExpirePlace(n, c) => state.nodes[n].gate[c] = 0,
            Action::Start(c) => self.start(&mut state, c),
            Action::Serve(c, n) => {
                let message = state.nodes[n].seats[c].lane.next();
                let answer = self.serve_seen(&mut state, c, n, message);
                let seat = &mut state.nodes[n].seats[c];
                match (message.is_awaited(), self.answers_wait) {
                    (false, _) => {}
                    (true, true) => seat.answer = answer,
                    (true, false) => {
                        seat.vote = answer;
                        self.count(&mut state, c);
                    }
                }
            }
            Action::ServeFormer(c, n) => {
                let message = state.nodes[n].seats[c].lane.next_of_former();
                self.serve_seen(&mut state, c, n, message);
            }
            Action::Deliver(c, n) => {
                let seat = &mut state.nodes[n].seats[c];
                seat.vote = std::mem::take(&mut seat.answer);
                self.count(&mut state, c);
            }
            Action::TimeOut(c) => self.decide(&mut state, c, Verdict::Unavailable),
            Action::Extend(c) => {
                let client = &mut state.clients[c];
                client.extensions += 1;
                client.round = Round::Extend;
                self.ask_mine(&mut state, c, Verb::Extend);
            }
            Action::Downgrade(c) => {
                let client = &mut state.clients[c];
                client.round = Round::Downgrade;
                // First of all, so that whatever follows looks for both forms.
                client.reads = true;
                self.ask_mine(&mut state, c, Verb::Downgrade);
            }
            Action::Restore(c) => self.restore(&mut state, c),
            Action::Release(c) | Action::SeeLost(c) => self.undo(&mut state, c),
            Action::LeaveGate(c) => self.leave_gate(&mut state, c),
            Action::Break(c, n) => {
                state.breaks += 1;
                let asking = state.clients[c].is_asking();
                let seat = &mut state.nodes[n].seats[c];
                seat.lane.break_off();
                if seat.fall(asking) {
                    self.count(&mut state, c);
                }
            }
            Action::Connect(c, n) => state.nodes[n].seats[c].lane.connect(true),
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Config>> {
        vec![
            Property::always(crate::model::ONE_WRITER, |_, state: &State| {
                state.count(Client::holds_to_write) <= 1
            }),
            Property::always(crate::model::READERS_OR_WRITER, |_, state: &State| {
                state.count(Client::holds_to_write) == 0 || state.count(Client::holds_to_read) == 0
            }),
            Property::always(crate::model::GATE_STOPS_NEW_ONLY, |_, state: &State| {
                !state.gate_stopped
            }),
            Property::always(crate::model::FREE_WHEN_LEFT, |_, state: &State| {
                !state.is_quiet() || state.nodes.iter().all(Node::is_free)
            }),
            Property::sometimes("two hold to read", |config, state: &State| {
                !config.can_share() || state.count(Client::holds_to_read) > 1
            }),
        ]
    }
}

impl State {
    fn count(&self, holds: fn(&Client) -> bool) -> usize {
        self.clients.iter().filter(|client| holds(client)).count()
    }

    /// Nobody has the lock or wants it at the moment, and nothing is on its way.
    fn is_quiet(&self) -> bool {
        let at_rest =
            |client: &Client| client.phase == Phase::Idle && client.place == 0 && !client.restoring;
        let quiet = |seat: &NodeSlot| seat.lane.is_quiet();
        self.clients.iter().all(at_rest)
            && self.nodes.iter().flat_map(|node| &node.seats).all(quiet)
    }

    /// The same state with the nodes in order: which is which makes no difference.
    pub(super) fn in_order(&self) -> State {
        let mut state = self.clone();
        state.nodes.sort_unstable();
        state
    }

    /// The same where the last two clients may do the same things.
    pub(super) fn in_order_of_equals(&self) -> State {
        let mut swapped = self.clone();
        swapped.clients.swap(1, 2);
        for node in &mut swapped.nodes {
            node.seats.swap(1, 2);
            node.readers.swap(1, 2);
            node.gate.swap(1, 2);
            node.place_asked.swap(1, 2);
            node.found_free.swap(1, 2);
            node.writer = node.writer.map(|(client, token)| match client {
                0 => (client, token),
                other => (3 - other, token),
            });
        }
        self.in_order().min(swapped.in_order())
    }
}
