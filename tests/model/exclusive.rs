//! The exclusive lock as a model: two clients, three nodes, and every order of their messages.

use stateright::{Model, Property};

use crate::connection::{NodeSlot, Op, Verdict, Vote};
use crate::exclusive::clients::is_asking;

mod clients;

mod nodes;

/// A planted bug, which the checker must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bug {
    /// The quorum counts only nodes that are connected when an attempt begins (rule S1).
    QuorumOfReachable,
    /// Validity counts from the grant instead of the start of the attempt (rule S2).
    NoElapsed,
    /// All attempts of a client use one token (rule S3).
    OneToken,
    /// A release deletes the key of any owner (rule S3).
    UnlockByName,
    /// Failed attempts are not undone (rule S4).
    NoUndo,
    /// A new connection does not kill the former connection (rule S4).
    NoKill,
    /// An extension sets its TTL even if more time is left (rule S5).
    ExtensionShortens,
    /// A key that an extension missed is restored after the lock was released (rule S5).
    RestoreAfterRelease,
    /// The greatest counter is the token, whatever the counters of the other nodes (rule S12).
    NoSecondRound,
    /// A node that restarted without its data votes at once.
    NoQuarantine,
    /// A swap replaces the token of another owner too.
    SwapsForeign,
    /// A swap does not change the remaining TTL of the key.
    SwapKeepsTime,
    /// A failed swap releases only the next token.
    FormerForgotten,
    /// A failed swap releases only the former token.
    NextForgotten,
}

/// Bounds of the model.
#[derive(Clone, Debug)]
pub(super) struct Config {
    /// Number of attempts of each client.
    pub(super) attempts: [u8; 2],
    /// Whether a client that has attempts left may hand its lock to the next thread of its process.
    pub(super) hands_off: bool,
    /// Maximum number of extensions of each lease.
    pub(super) extensions: u8,
    /// Ticks for which a client's lease is valid, and for which a node then keeps it at least.
    pub(super) validity: u8,
    /// Maximum number of broken connections, without those of ended nodes.
    pub(super) breaks: u8,
    /// Maximum number of restarts with data.
    pub(super) restarts: u8,
    /// Maximum number of restarts without data.
    pub(super) losses: u8,
    /// Whether replies take time too, and not only requests.
    pub(super) replies_wait: bool,
    /// Whether an extension may be by a single tick.
    pub(super) short_extensions: bool,
    pub(super) fenced: bool,
    /// The nodes' fence counters at the start.
    pub(super) fences: [u8; 3],
    /// Whether a lost fence counter restarts above all others, as it does if the nodes' clocks
    /// agree.
    pub(super) clocks_in_step: bool,
    /// Whether no time passes, for rules that do not depend on it. A quarantine without earlier
    /// leases ends at once.
    pub(super) still: bool,
    pub(super) bugs: Vec<Bug>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            attempts: [1, 1],
            hands_off: false,
            extensions: 0,
            validity: 2,
            breaks: 0,
            restarts: 0,
            losses: 0,
            replies_wait: false,
            short_extensions: false,
            fenced: false,
            fences: [0; 3],
            clocks_in_step: true,
            still: false,
            bugs: Vec::new(),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Phase {
    #[default]
    Idle,
    Trying,
    /// A quorum has granted, and its fence counters are raised (`Engine::assign_fencing_token`).
    Raising,
    Held,
}

/// A client with its lease. Stands for `engine/` and `protocol/lease.rs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Client {
    phase: Phase,
    /// Number of attempts so far, which is the index of the latest token.
    attempts: u8,
    /// Ticks since the attempt or the extension began.
    age: u8,
    /// The lock was handed off, and the former token is not released yet.
    is_next: bool,
    /// Number of nodes in a quorum.
    quorum: u8,
    /// Ticks for which the lease is valid from the client's view.
    left: u8,
    fence: u8,
    /// Number of extensions of the lease so far.
    extensions: u8,
    /// The TTL of the running extension.
    extending: Option<u8>,
    /// An extension has succeeded, and keys are about to be restored.
    restoring: bool,
}

/// A node with the clients' views of it, so that nodes are interchangeable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Node {
    /// The client and the token under the key.
    owner: Option<(u8, u8)>,
    /// Remaining ticks of the key. At zero it may expire at any moment.
    life: u8,
    fence: u8,
    /// Remaining ticks in which the node grants nothing.
    quarantine: u8,
    slots: [NodeSlot; 2],
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct State {
    clients: [Client; 2],
    nodes: [Node; 3],
    /// The greatest fencing token so far, and the number of tokens.
    fence: u8,
    fences: u8,
    /// A fencing token was not greater than the one before.
    fence_fell: bool,
    breaks: u8,
    restarts: u8,
    losses: u8,
}

/// The next event. Clients and nodes are given by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Tick,
    Expire(usize),
    Start(usize),
    /// The holder releases the lock, and the next thread of its process acquires it in the same
    /// step.
    HandOn(usize),
    Serve(usize, usize),
    ServeFormer(usize, usize),
    Deliver(usize, usize),
    /// The round times out.
    TimeOut(usize),
    Extend(usize, u8),
    Restore(usize),
    Release(usize),
    /// The client reads its lease and finds it expired.
    SeeLost(usize),
    Break(usize, usize),
    Connect(usize, usize),
    Restart(usize),
    /// The node restarts without its data.
    LoseData(usize),
}

impl Config {
    fn has(&self, bug: Bug) -> bool {
        self.bugs.contains(&bug)
    }

    fn token(&self, client: &Client) -> u8 {
        match self.has(Bug::OneToken) {
            true => 1,
            false => client.attempts,
        }
    }
}

impl Config {
    /// Lets one tick pass for all clients and nodes.
    fn tick(&self, state: &mut State) {
        for client in &mut state.clients {
            if is_asking(client) {
                client.age = (client.age + 1).min(self.validity);
            }
            client.left = client.left.saturating_sub(1);
        }
        for node in &mut state.nodes {
            node.life = node.life.saturating_sub(1);
            node.quarantine = node.quarantine.saturating_sub(1);
        }
    }
}

impl Model for Config {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut state = State::default();
        for (node, fence) in state.nodes.iter_mut().zip(self.fences) {
            node.fence = fence;
        }
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if !self.still {
            actions.push(Action::Tick);
        }
        for (n, node) in state.nodes.iter().enumerate() {
            if node.owner.is_some() && node.life == 0 {
                actions.push(Action::Expire(n));
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
                } else if state.breaks < self.breaks && !slot.connection.has_former() {
                    actions.push(Action::Break(c, n));
                }
            }
            if state.restarts < self.restarts {
                actions.push(Action::Restart(n));
            }
            if state.losses < self.losses {
                actions.push(Action::LoseData(n));
            }
        }
        for (c, client) in state.clients.iter().enumerate() {
            if is_asking(client) {
                actions.push(Action::TimeOut(c));
            }
            if client.restoring {
                actions.push(Action::Restore(c));
            }
            match client.phase {
                Phase::Idle if client.attempts < self.attempts[c] => {
                    actions.push(Action::Start(c));
                }
                Phase::Held if client.left == 0 => actions.push(Action::SeeLost(c)),
                Phase::Held => {
                    actions.push(Action::Release(c));
                    if self.hands_off && client.attempts < self.attempts[c] && !client.restoring {
                        actions.push(Action::HandOn(c));
                    }
                    let idle = client.extending.is_none() && !client.restoring;
                    if idle && client.extensions < self.extensions {
                        actions.push(Action::Extend(c, self.validity));
                        if self.short_extensions {
                            actions.push(Action::Extend(c, 1));
                        }
                    }
                }
                _ => {}
            }
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
            Action::Expire(n) => state.nodes[n].free(),
            Action::Start(c) => self.start(&mut state, c),
            Action::HandOn(c) => self.hand_on(&mut state, c),
            Action::Serve(c, n) => {
                let node = &mut state.nodes[n];
                let message = node.slots[c].connection.next();
                let reply = self.serve(node, c, message);
                self.deliver(&mut state, (c, n), message, reply);
            }
            Action::ServeFormer(c, n) => {
                let node = &mut state.nodes[n];
                let message = node.slots[c].connection.next_of_former();
                self.serve(node, c, message);
            }
            Action::Deliver(c, n) => {
                let slot = &mut state.nodes[n].slots[c];
                slot.vote = std::mem::take(&mut slot.reply);
                self.count(&mut state, c);
            }
            Action::TimeOut(c) => self.decide(&mut state, c, Verdict::Unavailable),
            Action::Extend(c, ttl) => {
                let client = &mut state.clients[c];
                client.extensions += 1;
                client.extending = Some(ttl);
                self.ask_mine(&mut state, c, Op::Extend, ttl);
            }
            Action::Restore(c) => self.restore(&mut state, c),
            Action::Release(c) | Action::SeeLost(c) => self.undo(&mut state, c),
            Action::Break(c, n) => {
                state.breaks += 1;
                state.nodes[n].slots[c].connection.break_off();
                self.fall(&mut state, c, n);
            }
            Action::Connect(c, n) => {
                let kills = !self.has(Bug::NoKill);
                state.nodes[n].slots[c].connection.connect(kills);
            }
            Action::Restart(n) => {
                state.restarts += 1;
                self.restart(&mut state, n);
            }
            Action::LoseData(n) => {
                state.losses += 1;
                self.lose_data(&mut state, n);
                self.restart(&mut state, n);
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Config>> {
        vec![
            Property::always(crate::ONE_HOLDER, |_, state: &State| {
                !state.clients.iter().all(Client::holds)
            }),
            Property::always(crate::FENCE_INCREASES, |_, state: &State| !state.fence_fell),
            Property::always(crate::FREE_WHEN_LEFT, |_, state: &State| {
                !state.is_quiet() || state.nodes.iter().all(|node| node.owner.is_none())
            }),
            Property::sometimes("the last attempt of all is won", |config, state: &State| {
                let mut clients = state.clients.iter().zip(config.attempts);
                clients.all(|(client, most)| client.attempts == most)
                    && state.clients.iter().any(Client::holds)
                    && state
                        .clients
                        .iter()
                        .any(|client| client.phase == Phase::Idle)
            }),
            Property::sometimes("two get a fencing token", |config, state: &State| {
                !config.fenced || state.fences == 2
            }),
        ]
    }
}

impl Client {
    /// Returns whether the client believes that it holds the lock.
    fn holds(&self) -> bool {
        self.phase == Phase::Held && self.left > 0
    }
}

impl State {
    /// Returns whether no client holds or acquires the lock, and no message is on its way.
    fn is_quiet(&self) -> bool {
        let at_rest = |client: &Client| client.phase == Phase::Idle && !client.restoring;
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

    /// Returns the state with its nodes in order, and also the clients, if they have the same
    /// abilities.
    pub(super) fn in_order_of_equals(&self) -> State {
        let mut swapped = self.clone();
        swapped.clients.swap(0, 1);
        for node in &mut swapped.nodes {
            node.slots.swap(0, 1);
            node.owner = node.owner.map(|(client, token)| (1 - client, token));
        }
        self.in_order().min(swapped.in_order())
    }
}
