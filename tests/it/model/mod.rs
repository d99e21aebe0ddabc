//! The protocol as a model, which a checker (`stateright`) goes through state by state, and known mistakes put into it.
//!
//! What is modelled are the safety rules of ARCHITECTURE.md, and what the rooms do that decide it; a test cannot import them, so that each
//! transition names the room that it stands for. Nodes, clients and what is between them:
//!
//! - **Time** goes in ticks, which can come at any moment; all lives are counted as what is left of them, so that there is
//!   no last tick. A lease is valid to its client for `validity` ticks less those since the attempt began. A node that was
//!   asked to keep a key for a TTL keeps it for as many ticks from when it served that, and may then drop it at any moment,
//!   or not for long: TTL less drift is the validity, so this is as early as the drift bound allows.
//! - **Messages** are first in, first out on one connection and take any time. A connection may break: then any first part
//!   of what was on it may still be served, until the next connection kills the former one; the rest is lost, and so are
//!   the answers. Releases are owed, and sent on the next connection, here before all else: they are of tokens that nobody asks for
//!   any more, so their place makes no difference. Nothing else is sent twice.
//! - **Nodes** may end and be back at once, with their data, or without and in quarantine.
//! - **Rounds** end at the first decided verdict, or at any moment at which their time may be over. Grants may come later.
//!
//! # Bounds
//!
//! Three nodes, a quorum of two; one tick is the shortest validity that is handed out. Two clients for the exclusive lock, and
//! two or three for the read-write lock. How many attempts, extensions, breaks, restarts and losses of data there are
//! in all is in each test; within that the checker goes through every state, but for the order of nodes (and of
//! clients that may do the same), which makes no difference. There is no bound on time or on delay.
//!
//! What `cargo test` goes through is about a million states. `REDGUARD_MODEL=large` adds bounds that are combined, 29 million
//! states, for which `--release` is a good idea:
//!
//! ```sh
//! REDGUARD_MODEL=large cargo test --release --test it model -- --nocapture
//! ```

pub(crate) mod exclusive;
pub(crate) mod exclusive_tests;
pub(crate) mod lane;
pub(crate) mod read_write;
pub(crate) mod read_write_tests;

use std::fmt::Debug;
use std::hash::Hash;

use stateright::{Checker, HasDiscoveries, Model};

pub(crate) const ONE_HOLDER: &str = "at most one client believes that it holds";
pub(crate) const FENCE_INCREASES: &str = "fencing tokens increase in the order of grants";
pub(crate) const ONE_WRITER: &str = "at most one client believes that it holds to write";
pub(crate) const READERS_OR_WRITER: &str = "nobody believes to hold beside a writer";
pub(crate) const GATE_STOPS_NEW_ONLY: &str = "a gate stops no extension and no restore";
pub(crate) const FREE_WHEN_LEFT: &str =
    "what was left is free at once, when all that was sent has come";

fn is_large() -> bool {
    std::env::var("REDGUARD_MODEL").is_ok_and(|size| size == "large")
}

/// Goes through all states of a model, and asserts that its properties hold in each, that they are not fewer than
/// `least`, and that each thing that should be able to happen does.
#[expect(
    clippy::print_stdout,
    reason = "how much was gone through is part of the result"
)]
fn hold_everywhere<M>(name: &str, model: M, in_order: fn(&M::State) -> M::State, least: usize)
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync,
    M::Action: Clone + Debug + PartialEq,
{
    let checker = model.checker().symmetry_fn(in_order).spawn_dfs().join();
    let states = checker.unique_state_count();
    println!(
        "model {name}: {states} states, depth {}",
        checker.max_depth()
    );
    checker.assert_properties();
    assert!(states >= least, "{name}: only {states} states");
}

/// Asserts that there are steps to a state in which a property does not hold, and shows them.
#[expect(
    clippy::print_stdout,
    reason = "how a known mistake shows is worth reading"
)]
fn counterexample<M>(
    name: &str,
    model: M,
    in_order: fn(&M::State) -> M::State,
    property: &'static str,
) where
    M: Model + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync,
    M::Action: Clone + Debug + PartialEq,
{
    let found = HasDiscoveries::AnyOf([property].into());
    let checker = model
        .checker()
        .symmetry_fn(in_order)
        .finish_when(found)
        .spawn_dfs()
        .join();
    let path = checker.discovery(property);
    let path = path.unwrap_or_else(|| panic!("{name}: nothing breaks the rule: {property}"));
    let (states, actions) = (checker.unique_state_count(), path.into_actions());
    println!("model with {name}: after {states} states {actions:?}");
}
