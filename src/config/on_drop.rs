//! `OnDrop`: the release in a guard's drop.
//!
//! Tests: below (`Display`); `src/tests/engine/leftovers.rs`.

use std::fmt;

/// Whether a guard's `Drop` waits for its release.
///
/// ```
/// use redguard::{Config, OnDrop};
///
/// let quick = Config::new(["10.0.0.1"]).on_drop(OnDrop::Background);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
#[cfg_attr(
    feature = "serde",
    derive(serde::Deserialize),
    serde(rename_all = "snake_case")
)]
pub enum OnDrop {
    /// `Drop` waits until a quorum of nodes has replied to the release, for at most `node_timeout`.
    /// It does not wait for nodes that are known to be unreachable.
    #[default]
    Wait,
    /// `Drop` returns when the release is queued; whether the nodes confirmed it is not reported.
    /// The last handle on the nodes, which may be a guard, sends queued releases and ends the
    /// threads before its drop returns, for at most `node_timeout`.
    Background,
}

impl fmt::Display for OnDrop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OnDrop::Wait => "wait",
            OnDrop::Background => "background",
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn on_drop_shown_is_its_word_in_settings() {
        for (on_drop, text) in [(OnDrop::Wait, "wait"), (OnDrop::Background, "background")] {
            assert_eq!(on_drop.to_string(), text);
            #[cfg(feature = "serde")]
            assert_eq!(
                serde_json::from_str::<OnDrop>(&format!("\"{text}\"")).unwrap(),
                on_drop
            );
        }
    }
}
