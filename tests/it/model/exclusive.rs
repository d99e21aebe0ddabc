//! The exclusive lock as a model: two clients, three nodes, all that can happen to what they say to each other.

use stateright::{Model, Property};

use crate::model::exclusive::clients::is_asking;
use crate::model::lane::{NodeSlot, Verb, Verdict, Vote};

mod clients;

mod nodes;

/// A known mistake, put into the model to see that the checker finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bug {
    /// A quorum of the nodes that are connected when an attempt begins (rule S1).
    QuorumOfReachable,
    /// Validity counts from the grant, not from the start of the attempt (rule S2).
    NoElapsed,
    /// One token for all attempts of a client (rule S3).
    OneToken,
    /// A release deletes the key whoever's it is (rule S3).
    UnlockByName,
    /// Attempts that failed are not undone (rule S4).
    NoUndo,
    /// A new connection does not kill the former one (rule S4).
    NoKill,
    /// An extension sets its TTL where more is left (rule S5).
    ExtensionShortens,
    /// A key that an extension missed is put back although the lock was released in between (rule S5).
    RestoreAfterRelease,
    /// The greatest number is the token, whatever the other nodes' numbers are (rule S12).
    NoSecondRound,
    /// A node that restarted without its data votes at once.
    NoQuarantine,
    /// A swap puts the next token in the place of another owner's, too.
    SwapsForeign,
    /// A swap leaves the key the time that it has.
    SwapKeepsTime,
    /// Of a swap that failed only the next token is released.
    FormerForgotten,
    /// Of a swap that failed only the former token is released.
    NextForgotten,
}

/// What is in the model, and how much of it.
#[derive(Clone, Debug)]
pub(super) struct Config {
    /// How many attempts each client makes, won or not.
    pub(super) attempts: [u8; 2],
    /// Whether a client that is left attempts may hand its lock on to the next thread of its process.
    pub(super) hands_on: bool,
    /// How many extensions each lease gets.
    pub(super) extensions: u8,
    /// For how many ticks a lease is valid to its client, and then kept by a node at the least.
    pub(super) validity: u8,
    /// How many connections break in all, besides those of nodes that end.
    pub(super) breaks: u8,
    /// How many times a node ends and is back with its data.
    pub(super) restarts: u8,
    /// How many times a node comes back without its data.
    pub(super) losses: u8,
    /// Whether answers take their time, too. Without it only requests do.
    pub(super) answers_wait: bool,
    /// Whether an extension may be by a single tick.
    pub(super) short_extensions: bool,
    pub(super) fenced: bool,
    /// The nodes' fences when it begins.
    pub(super) fences: [u8; 3],
    /// Whether a fence that a node has lost begins anew above all others, as it does if the nodes' clocks are in step.
    pub(super) clocks_in_step: bool,
    /// Whether time stands still, where nothing rests on it. A quarantine that nobody lives to see is over at once.
    pub(super) still: bool,
    pub(super) bugs: Vec<Bug>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            attempts: [1, 1],
            hands_on: false,
            extensions: 0,
            validity: 2,
            breaks: 0,
            restarts: 0,
            losses: 0,
            answers_wait: false,
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
    /// A quorum has granted, and its fences are raised (`Engine::assign_fencing_token`).
    Raising,
    Held,
}

/// A client: `engine.rs`, `engine/attempt.rs`, and its lease, `lease.rs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Client {
    phase: Phase,
    /// How many attempts have begun; the last one has this number as its token.
    attempts: u8,
    /// Ticks since the attempt or the extension began.
    age: u8,
    /// It was handed the lock, and the token before its own is not given back yet.
    is_next: bool,
    /// How many of the nodes are a quorum.
    quorum: u8,
    /// How many ticks the lease is valid for, as its client sees it.
    left: u8,
    fence: u8,
    /// How many extensions the lease has had.
    extensions: u8,
    /// The TTL of the extension on its way.
    extending: Option<u8>,
    /// An extension was won, and keys are about to be put back.
    restoring: bool,
}

/// A node, and what the clients know of it. All that has to do with one node is in here, so that nodes can change places.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Node {
    /// The client and the token under the key.
    owner: Option<(u8, u8)>,
    /// So many ticks the key is kept yet. At zero it may go at any moment.
    life: u8,
    fence: u8,
    /// So many ticks it grants nothing yet.
    quarantine: u8,
    seats: [NodeSlot; 2],
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct State {
    clients: [Client; 2],
    nodes: [Node; 3],
    /// The greatest fencing token that was given out, and how many were.
    fence: u8,
    fences: u8,
    /// One was given out that was not greater.
    fence_fell: bool,
    breaks: u8,
    restarts: u8,
    losses: u8,
}

/// What happens next. Clients and nodes by their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Tick,
    Expire(usize),
    Start(usize),
    /// The holder releases it, and the next thread of its process takes it in the same step.
    HandOn(usize),
    Serve(usize, usize),
    ServeFormer(usize, usize),
    Deliver(usize, usize),
    /// The time of the round is over.
    TimeOut(usize),
    Extend(usize, u8),
    Restore(usize),
    Release(usize),
    /// The client looks at its lease, and finds that its time is over.
    SeeLost(usize),
    Break(usize, usize),
    Connect(usize, usize),
    Restart(usize),
    /// The node is back without its data.
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
                } else if state.breaks < self.breaks && !seat.lane.has_former() {
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
                    if self.hands_on && client.attempts < self.attempts[c] && !client.restoring {
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
                if state == *last {
                    return None;
                }
            }
            Action::Expire(n) => state.nodes[n].free(),
            Action::Start(c) => self.start(&mut state, c),
            Action::HandOn(c) => self.hand_on(&mut state, c),
            Action::Serve(c, n) => {
                let node = &mut state.nodes[n];
                let message = node.seats[c].lane.next();
                let answer = self.serve(node, c, message);
                self.answer(&mut state, c, n, message, answer);
            }
            Action::ServeFormer(c, n) => {
                let node = &mut state.nodes[n];
                let message = node.seats[c].lane.next_of_former();
                self.serve(node, c, message);
            }
            Action::Deliver(c, n) => {
                let seat = &mut state.nodes[n].seats[c];
                seat.vote = std::mem::take(&mut seat.answer);
                self.count(&mut state, c);
            }
            Action::TimeOut(c) => self.decide(&mut state, c, Verdict::Unavailable),
            Action::Extend(c, ttl) => {
                let client = &mut state.clients[c];
                client.extensions += 1;
                client.extending = Some(ttl);
                self.ask_mine(&mut state, c, Verb::Extend, ttl);
            }
            Action::Restore(c) => self.restore(&mut state, c),
            Action::Release(c) | Action::SeeLost(c) => self.undo(&mut state, c),
            Action::Break(c, n) => {
                state.breaks += 1;
                state.nodes[n].seats[c].lane.break_off();
                self.fall(&mut state, c, n);
            }
            Action::Connect(c, n) => {
                let kills = !self.has(Bug::NoKill);
                state.nodes[n].seats[c].lane.connect(kills);
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
            Property::always(crate::model::ONE_HOLDER, |_, state: &State| {
                !state.clients.iter().all(Client::holds)
            }),
            Property::always(crate::model::FENCE_INCREASES, |_, state: &State| {
                !state.fence_fell
            }),
            Property::always(crate::model::FREE_WHEN_LEFT, |_, state: &State| {
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
    /// Whether it believes that it holds the lock.
    fn holds(&self) -> bool {
        self.phase == Phase::Held && self.left > 0
    }
}

impl State {
    /// Nobody has the lock or wants it at the moment, and nothing is on its way.
    fn is_quiet(&self) -> bool {
        let at_rest = |client: &Client| client.phase == Phase::Idle && !client.restoring;
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

    /// The same for clients that may do the same things.
    pub(super) fn in_order_of_equals(&self) -> State {
        let mut swapped = self.clone();
        swapped.clients.swap(0, 1);
        for node in &mut swapped.nodes {
            node.seats.swap(0, 1);
            node.owner = node.owner.map(|(client, token)| (1 - client, token));
        }
        self.in_order().min(swapped.in_order())
    }
}
