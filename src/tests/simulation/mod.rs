//! The shipped code above simulated servers, in simulated time.

pub(crate) mod checker;
pub(crate) mod network;
pub(crate) mod plan;
pub(crate) mod program;
pub(crate) mod runs;
pub(crate) mod runtime;
pub(crate) mod shrink;
pub(crate) mod world;
