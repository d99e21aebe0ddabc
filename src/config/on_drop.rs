//! What a guard does when it is dropped.

/// How long a guard's `Drop` waits for its release.
///
/// ```
/// use redguard::{Config, OnDrop};
///
/// let quick = Config::new(["10.0.0.1"]).on_drop(OnDrop::Background);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OnDrop {
    /// Until a quorum of nodes has answered the release, at most `node_timeout`. Nodes that are known to be
    /// unreachable are not waited for.
    #[default]
    Wait,
    /// Not at all: it returns when the release is queued. Whether it was confirmed is not reported. (The last handle
    /// of all, which may be a guard, still sends what is queued before it goes.)
    Background,
}
