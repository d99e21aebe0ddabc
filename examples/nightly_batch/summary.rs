//! The table at the end: what each copy locked, and for how long.

use crate::counts::Counts;
use std::collections::BTreeMap;
use std::time::Duration;

/// Counts of the copies by their numbers. A copy that was killed has none.
#[derive(Default)]
pub(crate) struct Summary(BTreeMap<usize, Counts>);

impl Summary {
    /// Takes what a copy wrote; returns `false` if these are no counts.
    pub(crate) fn add(&mut self, copy: usize, said: &str) -> bool {
        let counts = Counts::parse(said);
        let is_told = counts.is_some();
        self.0.extend(counts.map(|counts| (copy, counts)));
        is_told
    }

    /// Returns the table for this number of copies, with the longest holds below it.
    pub(crate) fn table(&self, copies: usize) -> String {
        let mut text = line(
            "copy",
            ["rows", "locks", "held", "in mean", "waits", "lost"],
        );
        for copy in 0..copies {
            let name = (copy + 1).to_string();
            text += &match self.0.get(&copy) {
                Some(counts) => row(&name, counts),
                None => line(&name, ["killed", "", "", "", "", ""]),
            };
        }
        let mut sum = Counts::default();
        self.0.values().for_each(|counts| sum += counts.clone());
        text += &row("all", &sum);
        text += "longest wait for a lock ";
        text += &time(sum.waited);
        text += ", longest holds\n";
        for (held, file) in &sum.longest {
            text += &format!("  {:>9}  {file}\n", time(*held));
        }
        text
    }
}

fn row(name: &str, counts: &Counts) -> String {
    let mean = counts.held.as_secs_f64() / counts.acquired.max(1) as f64;
    line(
        name,
        [
            &counts.rows.to_string(),
            &counts.acquired.to_string(),
            &time(counts.held),
            &time(Duration::from_secs_f64(mean)),
            &counts.contended.to_string(),
            &counts.lost.to_string(),
        ],
    )
}

fn line(name: &str, cells: [&str; 6]) -> String {
    let cells: String = cells.iter().map(|cell| format!("{cell:>10}")).collect();
    format!("{name:<5}{cells}").trim_end().to_owned() + "\n"
}

/// A time with three digits or so.
fn time(time: Duration) -> String {
    match time.as_secs_f64() {
        seconds if seconds >= 1.0 => format!("{seconds:.2} s"),
        seconds if seconds >= 0.1 => format!("{:.0} ms", seconds * 1e3),
        seconds => format!("{:.2} ms", seconds * 1e3),
    }
}
