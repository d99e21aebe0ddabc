//! How often the events happened that histories are to contain.

use std::collections::BTreeMap;

/// Counts of events, by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Coverage(pub(crate) BTreeMap<&'static str, u64>);

impl Coverage {
    pub(crate) fn count(&mut self, event: &'static str) {
        *self.0.entry(event).or_default() += 1;
    }

    pub(crate) fn add(&mut self, other: &Coverage) {
        for (event, count) in &other.0 {
            *self.0.entry(event).or_default() += count;
        }
    }

    pub(crate) fn of(&self, event: &str) -> u64 {
        self.0.get(event).copied().unwrap_or_default()
    }
}
