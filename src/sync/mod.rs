//! Mutexes, condition variables, channels, atomics and threads.

pub(crate) mod atomic;
pub(crate) mod channel;
pub(crate) mod primitives;
pub(crate) mod threads;
