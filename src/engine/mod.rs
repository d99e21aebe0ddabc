//! Decides how one acquire, extend, release, handoff or adoption proceeds on the nodes.

mod acquire;
mod acquire_any;
mod acquire_wait;
mod admin;
mod adopt;
mod attach;
pub(crate) mod attempt;
pub(crate) mod attempt_result;
pub(crate) mod backend;
mod backoff;
mod breaker;
pub(crate) mod core;
mod extend;
mod fencing;
mod gate_entry;
mod handoff;
pub(crate) mod params;
mod permit;
mod release;
mod repeats;
mod shutdown;
mod split;
mod undo;
