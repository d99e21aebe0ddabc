//! The library on real `redis-server` processes and through bad networks; nothing in here is faked.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test a panic is the report; `.clippy.toml` allows it in the test functions only, not in their helpers"
)]

mod at_the_end;
mod cancellation;
mod chaos;
#[cfg(feature = "cluster")]
mod clusters;
mod conformance;
mod expiry;
mod fencing;
mod foreign;
mod handover;
mod hostile;
mod idle;
mod inside;
mod keeping;
mod metrics;
mod model;
mod network;
mod nodes;
mod one_shot;
mod out_of_memory;
mod outage;
mod parts;
mod processes;
mod relay;
mod rig;
mod rights;
mod rw_conformance;
mod rw_processes;
mod rw_published;
mod rw_starvation;
mod rw_wire;
mod semaphore;
#[cfg(feature = "sentinel")]
mod sentinels;
mod servers_work;
mod several;
mod shapes;
mod sockets;
mod support;
mod support_works;
#[cfg(feature = "tls")]
mod tls;
mod tool;
mod wire;
