//! Fake nodes, the simulator and white-box tests.

#[cfg(all(test, not(loom)))]
pub(crate) mod background;
#[cfg(all(test, not(loom)))]
pub(crate) mod config;
#[cfg(all(test, not(loom)))]
pub(crate) mod engine;
#[cfg(all(test, not(loom)))]
pub(crate) mod fake_node;
pub(crate) mod fixtures;
pub(crate) mod local;
#[cfg(all(test, not(loom)))]
pub(crate) mod simulation;
#[cfg(all(test, not(loom)))]
pub(crate) mod store_conformance;
#[cfg(all(test, not(loom)))]
pub(crate) mod transport;
