//! Reads the holders of one name, and of all names that match a pattern.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::args::SortBy;
use crate::config::Settings;
use crate::failure::Result;
use crate::locks::inspect::{self, MAX_NAMES};
use crate::locks::merge::merge;
use crate::locks::row::LockRow;
use crate::locks::scan::{NamePattern, Names};
use crate::nodes::fan_out::{Absent, Nodes};

/// The nodes, and the names that are looked for.
pub(crate) struct Survey {
    nodes: Nodes,
    pattern: NamePattern,
    quorum: usize,
}

/// The holders, and the nodes that could not be asked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) rows: Vec<LockRow>,
    pub(crate) absent: Vec<Absent>,
}

/// The result of a search for names.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) names: BTreeSet<String>,
    pub(crate) absent: Vec<Absent>,
    /// How long the busiest server was busy.
    pub(crate) took: Duration,
}

impl Survey {
    pub(crate) fn new(settings: &Settings, pattern: &str) -> Result<Survey> {
        Ok(Survey {
            nodes: Nodes::new(settings)?,
            pattern: NamePattern::new(&settings.prefix, pattern),
            quorum: settings.quorum(),
        })
    }

    pub(crate) fn total(&self) -> usize {
        self.nodes.total()
    }

    pub(crate) fn nodes_mut(&mut self) -> &mut Nodes {
        &mut self.nodes
    }

    /// Returns the names that are looked for, for people.
    pub(crate) fn title(&self) -> String {
        let NamePattern {
            prefix, pattern, ..
        } = &self.pattern;
        format!("{prefix}{pattern} on {} nodes", self.total())
    }

    /// Finds the names of locks. Returns a partial result when `keep_running` returns false.
    ///
    /// # Errors
    /// As [`Nodes::require_quorum`].
    pub(crate) fn find(&mut self, keep_running: &(dyn Fn() -> bool + Sync)) -> Result<Found> {
        let pattern = &self.pattern;
        let answers = self
            .nodes
            .ask(|connection| pattern.scan(connection, keep_running));
        self.nodes.require_quorum(&answers.absent)?;
        let servers: Vec<Names> = answers.by_node.into_iter().flatten().flatten().collect();
        let took = servers.iter().map(|names| names.took).max();
        Ok(Found {
            took: took.unwrap_or_default(),
            names: servers
                .into_iter()
                .flat_map(|server| server.names)
                .collect(),
            absent: answers.absent,
        })
    }

    /// Reads the holders of these names, at most [`MAX_NAMES`] of them.
    ///
    /// # Errors
    /// As [`Nodes::require_quorum`].
    pub(crate) fn read(&mut self, names: &[String]) -> Result<Seen> {
        let names = &names[..names.len().min(MAX_NAMES)];
        let prefix = &self.pattern.prefix;
        let answers = self
            .nodes
            .ask(|connection| inspect::inspect(connection, prefix, names));
        self.nodes.require_quorum(&answers.absent)?;
        let total = self.nodes.total();
        let mut rows = Vec::new();
        for (at, name) in names.iter().enumerate() {
            // Per node the reports of its servers on this name.
            let nodes = answers.by_node.iter().flatten();
            let reports: Vec<Vec<_>> = nodes
                .map(|servers| servers.iter().map(|reports| reports[at].clone()).collect())
                .collect();
            rows.extend(merge(name, &reports, self.quorum, total));
        }
        Ok(Seen {
            rows,
            absent: answers.absent,
        })
    }
}

/// Sorts rows, by name where they are otherwise equal.
pub(crate) fn sort(rows: &mut [LockRow], by: SortBy) {
    let end = |row: &LockRow| row.remaining.unwrap_or(Duration::MAX);
    rows.sort_by(|a, b| {
        let order = match by {
            SortBy::Name => std::cmp::Ordering::Equal,
            SortBy::Holder => a.holder().cmp(&b.holder()),
            SortBy::End => end(a).cmp(&end(b)),
        };
        order.then_with(|| a.place().cmp(&b.place()))
    });
}
