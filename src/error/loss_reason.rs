//! Why a held lock was lost.

/// Why a held lock was lost.
///
/// ```
/// use redguard::{LockGuard, LossReason};
///
/// fn explain(guard: &LockGuard) {
///     match guard.watch().loss_reason() {
///         None => println!("held, or released"),
///         Some(LossReason::Expired) => println!("paused too long, or no quorum"),
///         Some(reason) => println!("{reason}"),
///     }
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum LossReason {
    /// The lease expired: it was not extended in time, or could not be.
    #[error("lease expired")]
    Expired,

    /// On a quorum of nodes the lock is not ours any more: it expired there, or was deleted,
    /// force-released or adopted.
    #[error("not ours on a quorum of nodes")]
    NotOurs,

    /// The nodes were shut down while the lock was held
    /// ([`Nodes::shutdown`](crate::Nodes::shutdown)). It is left to its TTL.
    #[error("nodes shut down")]
    ShutDown,
}
