//! What acquire, extend, release, handoff and adopt are on many nodes.

pub(crate) mod acquire;
pub(crate) mod admin;
pub(crate) mod adopt;
pub(crate) mod attempt;
pub(crate) mod attempt_result;
pub(crate) mod backend;
pub(crate) mod backoff;
pub(crate) mod breaker;
pub(crate) mod core;
pub(crate) mod extend;
pub(crate) mod fencing;
pub(crate) mod handoff;
pub(crate) mod params;
pub(crate) mod permit;
pub(crate) mod release;
pub(crate) mod repeats;
pub(crate) mod split;
