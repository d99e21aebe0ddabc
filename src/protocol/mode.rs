//! Whether a lock is held on a quorum of nodes or in this process alone (S9).
//!
//! Tests: `src/tests/engine/outage.rs`.

use std::fmt;

/// The place where a lock is held.
///
/// ```
/// use redguard::{LockGuard, Mode};
///
/// /// Returns whether all other processes are excluded.
/// fn may_migrate(guard: &LockGuard) -> bool {
///     guard.mode() == Mode::Quorum
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mode {
    /// On a quorum of the configured nodes: excludes every process that uses them.
    Quorum,
    /// In this process alone: the lock does not expire, and other processes are not excluded.
    Local,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Quorum => "on a quorum of nodes",
            Mode::Local => "in this process alone",
        })
    }
}
