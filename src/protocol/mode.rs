//! Where a lock is held: on a quorum or in this process.

/// Where a lock is held.
///
/// ```
/// use redguard::{LockGuard, Mode};
///
/// /// Whether no other process can be at it.
/// fn may_migrate(guard: &LockGuard) -> bool {
///     guard.mode() == Mode::Quorum
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mode {
    /// On a quorum of the configured nodes: excludes every process that uses them.
    Quorum,
    /// In this process alone: it does not expire, and other processes are not excluded.
    Local,
}
