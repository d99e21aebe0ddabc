//! What acquire, extend, release, handoff and adopt are on many nodes.

pub(crate) mod acquire;
pub(crate) mod admin;
pub(crate) mod adopt;
pub(crate) mod attempt;
pub(crate) mod backend;
pub(crate) mod backoff;
pub(crate) mod breaker;
pub(crate) mod core;
pub(crate) mod extend;
pub(crate) mod handoff;
pub(crate) mod permit;
pub(crate) mod split;
