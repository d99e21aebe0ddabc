//! The protocol as a model, which a checker (`stateright`) enumerates state by state, and planted
//! bugs in it.
//!
//! The model covers the safety rules of ARCHITECTURE.md and the decisions of the modules behind
//! them. A test cannot import these modules, so each transition names the module that it stands
//! for. Nodes, clients and connections:
//!
//! - **Time** passes in ticks, which can come at any moment. Lifetimes are counted as remaining
//!   ticks, so there is no last tick. A client's lease is valid for `validity` ticks less those
//!   since the attempt began. A node keeps a key for as many ticks from when it served the request,
//!   and may then drop it at any moment, or much later. TTL less drift is the validity, so this is
//!   as early as the drift bound allows.
//! - **Messages** are first in, first out on one connection and take any time. A connection may
//!   break: then the node may still serve any prefix of its requests, until the next connection
//!   kills the former connection. The rest is lost, and so are the replies. Releases become pending
//!   and are sent first on the next connection: no later request uses their tokens, so their order
//!   makes no difference. No other request is sent twice.
//! - **Nodes** may restart at once, with their data, or without it and in quarantine.
//! - **Rounds** end at the first decided verdict, or at any moment after a possible timeout. Grants
//!   may arrive later.
//!
//! # Bounds
//!
//! There are three nodes with a quorum of two. One tick is the shortest validity of a lease. The
//! exclusive lock has two clients, the read-write lock two or three. Each test states the total
//! numbers of attempts, extensions, breaks, restarts and losses of data. Within them the checker
//! enumerates every state up to the order of nodes (and of clients with the same abilities), which
//! makes no difference. Time and delays are unbounded.
//!
//! `cargo test --workspace` enumerates about a million states. `REDGUARD_MODEL=large` adds combined
//! bounds with 29 million states, for which `--release` is advisable:
//!
//! ```sh
//! REDGUARD_MODEL=large cargo test --release --package redguard-model -- --nocapture
//! ```

#![cfg(test)]

mod connection;
mod exclusive;
mod exclusive_tests;
mod read_write;
mod read_write_tests;

use std::fmt::Debug;
use std::hash::Hash;

use stateright::{Checker, HasDiscoveries, Model};

pub(crate) const ONE_HOLDER: &str = "at most one client believes that it holds the lock";
pub(crate) const FENCE_INCREASES: &str = "fencing tokens increase in the order of grants";
pub(crate) const ONE_WRITER: &str = "at most one client believes that it writes";
pub(crate) const READERS_OR_WRITER: &str =
    "no client believes that it holds the lock beside a writer";
pub(crate) const GATE_STOPS_NEW_ONLY: &str = "a gate stops no extension and no restore";
pub(crate) const FREE_WHEN_LEFT: &str =
    "what was left is free at once, when all that was sent has come";

fn is_large() -> bool {
    std::env::var("REDGUARD_MODEL").is_ok_and(|size| size == "large")
}

/// Enumerates all states of a model. Asserts that its properties hold in each, that there are at
/// least `least` states, and that every event that should be possible occurs.
#[expect(
    clippy::print_stdout,
    reason = "the number of states is part of the result"
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

/// Asserts that a sequence of steps violates a property, and prints the sequence.
#[expect(clippy::print_stdout, reason = "the counterexample is worth reading")]
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
