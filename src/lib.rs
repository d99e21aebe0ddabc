//! Distributed locks on Redis for threaded programs.

#![forbid(unsafe_code)]

mod config;
mod engine;
mod error;
#[cfg(all(test, not(loom)))]
mod fake;
mod guard;
mod inbox;
mod key;
mod lease;
mod local;
mod locker;
mod node;
mod nodes;
mod quorum;
mod retry;
mod round;
mod script;
mod sync;
mod time;
mod worker;

pub use crate::{
    config::{Config, Endpoint, OnDrop},
    error::{Cause, Error, NodeCause},
    guard::{LockGuard, Mode},
    locker::{LocalLocker, LockOptions, Locker, RedisLocker},
    nodes::Nodes,
    retry::RetryPolicy,
};
