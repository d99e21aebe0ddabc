//! The read-write lock as a model: a writer and readers, with the gate and the downgrade (rule
//! S10).
//!
//! The reader turn is left out: it only refuses more writers, and no safety rule depends on it. A
//! gate entry may expire at any moment.

use stateright::{Model, Property};

use crate::connection::{NodeSlot, Op, Verdict, Vote};

mod clients;

mod nodes;

/// A planted bug, which the checker must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bug {
    /// A reader reads whether there is a writer, and adds itself in a second request.
    ExistsThenAdd,
    /// A reader needs only one node.
    ReadFromOne,
    /// The gate refuses every request of a reader.
    GateStopsAll,
    /// The release of a downgraded lock looks for the token among the readers only.
    ReleaseInOneForm,
    /// A downgrade deletes the writer in a request of its own, and the request that would add the
    /// reader is lost.
    DowngradeInTwoSteps,
    /// A writer does not delete its gate entry.
    StaysAtTheGate,
}

/// Number of clients.
pub(super) const CLIENTS: usize = 3;
/// Maximum number of tokens per client.
const TOKENS: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Reader,
    Writer,
}

/// Bounds of the model.
#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) roles: [Role; CLIENTS],
    /// Number of attempts of each client.
    pub(super) attempts: [u8; CLIENTS],
    /// Maximum number of extensions of each lease.
    pub(super) extensions: [u8; CLIENTS],
    /// Ticks for which a client's lease is valid, and for which a node then keeps it at least.
    pub(super) validity: u8,
    /// Maximum number of broken connections.
    pub(super) breaks: u8,
    /// Whether replies take time too, and not only requests.
    pub(super) replies_wait: bool,
    /// Whether writers may downgrade.
    pub(super) downgrades: bool,
    /// Whether no time passes, for rules that do not depend on it.
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
            replies_wait: false,
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

/// The round of a held lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Round {
    #[default]
    None,
    Extend,
    Downgrade,
}

/// A client with its lease. Stands for `engine/` and `protocol/lease.rs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Client {
    phase: Phase,
    /// Whether the lease is a read lease (`Lease::kind`).
    reads: bool,
    /// Number of attempts so far, which is the index of the latest token.
    attempts: u8,
    /// Ticks since the attempt or the extension began.
    age: u8,
    /// Ticks for which the lease is valid from the client's view.
    left: u8,
    extensions: u8,
    round: Round,
    /// An extension has succeeded, and keys are about to be restored.
    restoring: bool,
    /// The token of its gate entry; 0 without one.
    gate_entry: u8,
}

/// Remaining ticks plus one; at 1 the entry may expire at any moment. 0 means no entry.
type Life = u8;

/// A node with the clients' views of it, so that nodes are interchangeable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Node {
    /// The client and the token of the writer.
    writer: Option<(u8, u8)>,
    writer_life: Life,
    readers: [[Life; TOKENS]; CLIENTS],
    /// One bit per gate entry, by the index of its token.
    gate: [u8; CLIENTS],
    /// The node was asked to add a gate entry.
    gate_entry_asked: [bool; CLIENTS],
    /// Results for readers that check first.
    found_free: [bool; CLIENTS],
    slots: [NodeSlot; CLIENTS],
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct State {
    clients: [Client; CLIENTS],
    nodes: [Node; 3],
    /// A gate has refused a reader that was present before.
    gate_stopped: bool,
    breaks: u8,
}

/// The next event. Clients and nodes are given by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Tick,
    ExpireWriter(usize),
    ExpireReader(usize, usize, usize),
    ExpireGateEntry(usize, usize),
    Start(usize),
    Serve(usize, usize),
    ServeFormer(usize, usize),
    Deliver(usize, usize),
    /// The round times out.
    TimeOut(usize),
    Extend(usize),
    Downgrade(usize),
    Restore(usize),
    Release(usize),
    /// The client reads its lease and finds it expired.
    SeeLost(usize),
    /// A writer stops waiting.
    LeaveGate(usize),
    Break(usize, usize),
    Connect(usize, usize),
}

/// The two forms of a script, for read leases and for write leases.
const AS_READER: u8 = 1;
const AS_WRITER: u8 = 0;

impl Config {
    fn has(&self, bug: Bug) -> bool {
        self.bugs.contains(&bug)
    }

    /// Returns whether two clients can hold the lock to read.
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
    /// Returns whether the client believes that it holds the lock.
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

    /// Returns whether the client has a running round.
    fn is_asking(&self) -> bool {
        self.phase == Phase::Trying || self.round != Round::None
    }
}

/// Lets one tick pass.
fn age(life: &mut Life) {
    *life = (*life).min(1).max(life.saturating_sub(1));
}

impl Config {
    /// Lets one tick pass for all clients and nodes.
    fn tick(&self, state: &mut State) {
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
    }

    /// Adds the actions that a client may take.
    fn client_actions(&self, c: usize, client: &Client, actions: &mut Vec<Action>) {
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
                if client.gate_entry > 0 {
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
                    actions.push(Action::ExpireGateEntry(n, c));
                }
            }
            for (c, slot) in node.slots.iter().enumerate() {
                if slot.connection.has_sent() {
                    actions.push(Action::Serve(c, n));
                }
                if slot.connection.has_former() {
                    actions.push(Action::ServeFormer(c, n));
                }
                if slot.reply != Vote::Open {
                    actions.push(Action::Deliver(c, n));
                }
                if slot.connection.down {
                    actions.push(Action::Connect(c, n));
                } else if state.breaks < self.breaks && self.attempts[c] > 0 {
                    actions.push(Action::Break(c, n));
                }
            }
        }
        for (c, client) in state.clients.iter().enumerate() {
            self.client_actions(c, client, actions);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Tick => {
                self.tick(&mut state);
                if state == *last {
                    return None;
                }
            }
            Action::ExpireWriter(n) => state.nodes[n].free_writer(),
            Action::ExpireReader(n, c, i) => state.nodes[n].readers[c][i] = 0,
            Action::ExpireGateEntry(n, c) => state.nodes[n].gate[c] = 0,
            Action::Start(c) => self.start(&mut state, c),
            Action::Serve(c, n) => self.serve_next(&mut state, c, n),
            Action::ServeFormer(c, n) => {
                let message = state.nodes[n].slots[c].connection.next_of_former();
                self.serve_seen(&mut state, c, n, message);
            }
            Action::Deliver(c, n) => {
                let slot = &mut state.nodes[n].slots[c];
                slot.vote = std::mem::take(&mut slot.reply);
                self.count(&mut state, c);
            }
            Action::TimeOut(c) => self.decide(&mut state, c, Verdict::Unavailable),
            Action::Extend(c) => {
                let client = &mut state.clients[c];
                client.extensions += 1;
                client.round = Round::Extend;
                self.ask_mine(&mut state, c, Op::Extend);
            }
            Action::Downgrade(c) => {
                let client = &mut state.clients[c];
                client.round = Round::Downgrade;
                // First, so that every later request looks for both forms.
                client.reads = true;
                self.ask_mine(&mut state, c, Op::Downgrade);
            }
            Action::Restore(c) => self.restore(&mut state, c),
            Action::Release(c) | Action::SeeLost(c) => self.undo(&mut state, c),
            Action::LeaveGate(c) => self.leave_gate(&mut state, c),
            Action::Break(c, n) => {
                state.breaks += 1;
                let asking = state.clients[c].is_asking();
                let slot = &mut state.nodes[n].slots[c];
                slot.connection.break_off();
                if slot.fall(asking) {
                    self.count(&mut state, c);
                }
            }
            Action::Connect(c, n) => state.nodes[n].slots[c].connection.connect(true),
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Config>> {
        vec![
            Property::always(crate::ONE_WRITER, |_, state: &State| {
                state.count(Client::holds_to_write) <= 1
            }),
            Property::always(crate::READERS_OR_WRITER, |_, state: &State| {
                state.count(Client::holds_to_write) == 0 || state.count(Client::holds_to_read) == 0
            }),
            Property::always(crate::GATE_STOPS_NEW_ONLY, |_, state: &State| {
                !state.gate_stopped
            }),
            Property::always(crate::FREE_WHEN_LEFT, |_, state: &State| {
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

    /// Returns whether no client holds or acquires the lock, and no message is on its way.
    fn is_quiet(&self) -> bool {
        let at_rest = |client: &Client| {
            client.phase == Phase::Idle && client.gate_entry == 0 && !client.restoring
        };
        let quiet = |slot: &NodeSlot| slot.connection.is_quiet();
        self.clients.iter().all(at_rest)
            && self.nodes.iter().flat_map(|node| &node.slots).all(quiet)
    }

    /// Returns the state with its nodes in order, because their identity makes no difference.
    pub(super) fn in_order(&self) -> State {
        let mut state = self.clone();
        state.nodes.sort_unstable();
        state
    }

    /// Returns the state with its nodes in order, and also the last two clients, if they have the
    /// same abilities.
    pub(super) fn in_order_of_equals(&self) -> State {
        let mut swapped = self.clone();
        swapped.clients.swap(1, 2);
        for node in &mut swapped.nodes {
            node.slots.swap(1, 2);
            node.readers.swap(1, 2);
            node.gate.swap(1, 2);
            node.gate_entry_asked.swap(1, 2);
            node.found_free.swap(1, 2);
            node.writer = node.writer.map(|(client, token)| match client {
                0 => (client, token),
                other => (3 - other, token),
            });
        }
        self.in_order().min(swapped.in_order())
    }
}
