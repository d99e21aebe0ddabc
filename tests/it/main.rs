//! Tests of the library on real `redis-server` processes and through bad networks, without fakes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test a panic is the report; `.clippy.toml` allows it in the test functions only, not in their helpers"
)]

mod architecture;
mod chaos;
mod locks;
mod nodes;
mod support;
mod wire;
