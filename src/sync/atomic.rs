//! Atomics. The simulator replaces them in tests, and the model checker `loom` under `--cfg loom`.

#[cfg(not(test))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};

#[cfg(all(test, not(loom)))]
pub(crate) use crate::tests::simulation::runtime::atomic::{
    AtomicBool, AtomicU8, AtomicU64, AtomicUsize,
};
#[cfg(all(test, not(loom)))]
pub(crate) use std::sync::atomic::Ordering;

#[cfg(all(test, loom))]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
