//! Counts of the events that histories are to contain, so that a check without events is seen.

use std::collections::BTreeMap;

/// Counts of events, by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Coverage(pub(crate) BTreeMap<&'static str, u64>);

impl Coverage {
    /// Counts an event.
    pub(crate) fn count(&mut self, event: &'static str) {
        *self.0.entry(event).or_default() += 1;
    }

    /// Adds the counts of another history.
    pub(crate) fn add(&mut self, other: &Coverage) {
        for (event, count) in &other.0 {
            *self.0.entry(event).or_default() += count;
        }
    }

    /// Returns how often an event happened.
    pub(crate) fn of(&self, event: &str) -> u64 {
        self.0.get(event).copied().unwrap_or_default()
    }
}
