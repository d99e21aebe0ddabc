//! Clients, nodes and the network in simulated time.

pub(crate) mod checker;
pub(crate) mod client;
pub(crate) mod clock;
pub(crate) mod config;
pub(crate) mod connection;
pub(crate) mod faults;
pub(crate) mod hold;
pub(crate) mod node;
pub(crate) mod rounds;
pub(crate) mod runs;
pub(crate) mod simulator;
