//! The tool as real processes on real servers: statuses, signals, terminals, losses, storms.
//!
//! The tables beside the code cannot find what the system does to a process.
#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test a panic is the report"
)]

mod doctor;
mod loss;
mod manners;
mod nodes;
mod operators;
mod races;
mod screen;
mod signals;
mod statuses;
mod support;
mod topologies;
