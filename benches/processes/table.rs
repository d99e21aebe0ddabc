//! The table: a line of figures for each cell, and its goals.

use std::fmt::Write;

use crate::cell::Cell;
use crate::format::word;
use crate::side::Side;

/// The time in ms that a run takes of the lock: the job, and 2 ms until the next holder runs.
const SHARE: f64 = 22.0;

/// Explains the columns, and names them.
pub(crate) fn head() -> String {
    format!(
        "shares: p99 in fair shares of {SHARE} ms for each process; of mean: fewest runs of a process as a part of the mean;\n\
         requests: for a run, on the node that has most of them\n{:<28}{:>8}{:>9}{:>9}{:>9}{:>9}{:>8}{:>8}{:>6}{:>9}{:>10}",
        "processes, lock",
        "runs/s",
        "× flock",
        "p50 ms",
        "p99 ms",
        "max ms",
        "shares",
        "fewest",
        "most",
        "of mean",
        "requests"
    )
}

/// A cell beside flock(1).
pub(crate) struct Row<'a> {
    pub(crate) side: Side,
    pub(crate) processes: usize,
    pub(crate) cell: &'a Cell,
    /// Runs per second of flock(1) with the same number of processes; `None` if that failed.
    pub(crate) flock: Option<f64>,
}

impl Row<'_> {
    pub(crate) fn text(&self) -> String {
        let cell = self.cell;
        let mut text = format!(
            "{:<28}{:>8.1}{:>9}{:>9.0}{:>9.0}{:>9.0}{:>8.2}{:>8}{:>6}{:>9.2}{:>10}",
            self.side.row(self.processes),
            cell.runs_per_second,
            known(self.of_flock(), 2),
            cell.wait(50),
            cell.wait(99),
            cell.wait(100),
            self.shares(),
            cell.fewest,
            cell.most,
            cell.fewest_of_mean(),
            known(cell.requests, 1),
        );
        for (goal, reached) in self.goals() {
            // Writing to a `String` cannot fail.
            _ = write!(text, "  goal {goal}: {}", word(reached));
        }
        text
    }

    fn of_flock(&self) -> Option<f64> {
        Some(self.cell.runs_per_second / self.flock?)
    }

    fn shares(&self) -> f64 {
        self.cell.wait(99) / (self.processes as f64 * SHARE)
    }

    /// Returns the goals of this row, and whether they are reached.
    fn goals(&self) -> Vec<(&'static str, bool)> {
        let (requests, of_flock) = (self.cell.requests, self.of_flock());
        let few_requests = ("≤ 6 requests", requests.is_some_and(|most| most <= 6.0));
        let reaches = |goal: f64| of_flock.is_some_and(|ratio| ratio >= goal);
        match (self.processes, self.side) {
            (64, Side::Redguard(3)) => vec![
                ("≥ 0.95 × flock", reaches(0.95)),
                ("≤ 1.5 shares", self.shares() <= 1.5),
                ("≥ 0.5 of mean", self.cell.fewest_of_mean() >= 0.5),
            ],
            (64, Side::Redguard(5)) => {
                vec![("≥ 0.9 × flock", reaches(0.9)), few_requests]
            }
            (_, Side::Redguard(5)) => vec![few_requests],
            _ => Vec::new(),
        }
    }
}

/// Formats a value, or a dash where there is none.
fn known(value: Option<f64>, digits: usize) -> String {
    value.map_or("-".into(), |value| format!("{value:.digits$}"))
}
