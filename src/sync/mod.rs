//! Mutexes, condition variables and threads.

pub(crate) mod primitives;
pub(crate) mod threads;
