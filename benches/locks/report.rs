//! The report: each row with its ratios and goals, and the rows beside the baselines as a table in
//! Markdown.

use std::fmt::Write;

use crate::format::word;
use crate::measurement::{COLUMNS, Sample};
use crate::stats::spread;
use crate::table::{BASELINES, Row};

/// The columns of a [`Sample`].
const RATE: usize = 0;
const P99: usize = 2;
const MAX: usize = 3;
const COSTS: [usize; 3] = [4, 5, 6];

/// A row with the samples of its sides in each turn.
pub(crate) type Measured = (&'static Row, Vec<Vec<Sample>>);

/// Returns the medians of all sides (for maxima the greatest), then the ratios of the first side to
/// the best of the others: median, minimum and maximum over the turns.
pub(crate) fn of_row((row, turns): &Measured) -> String {
    let mut text = format!("\n{:<32}", row.name);
    // Writing to a `String` cannot fail.
    COLUMNS
        .iter()
        .for_each(|name| _ = write!(text, "{name:>10}"));
    for (side, (label, _)) in row.sides.iter().enumerate() {
        _ = write!(text, "\n    {label:<28}");
        for column in 0..COLUMNS.len() {
            let [_, median, most] = spread(turns.iter().map(|turn| turn[side][column]));
            let value = if column == MAX { most } else { median };
            let digits = usize::from(COSTS.contains(&column));
            _ = write!(text, "{value:>10.digits$}");
        }
    }
    for (column, goal) in row.goals.into_iter().enumerate() {
        let [least, ratio, most] = ratios(turns, column);
        let (sign, reached) = match column {
            RATE => ('≥', ratio >= goal),
            _ => ('≤', ratio <= goal),
        };
        let label = format!("ratio of {}", COLUMNS[column]);
        _ = write!(
            text,
            "\n    {label:<28}{ratio:>10.2}  ({least:.2} to {most:.2})"
        );
        if goal > 0.0 {
            _ = write!(text, "  goal {sign} {goal:.2}: {}", word(reached));
        }
    }
    if row.tail > 0.0 {
        let [_, ratio, _] = spread(turns.iter().map(|turn| turn[0][P99] / turn[0][1]));
        let label = format!("{}, p99 to p50", row.sides[0].0);
        let word = word(ratio <= row.tail);
        _ = write!(
            text,
            "\n    {label:<28}{ratio:>10.2}  goal ≤ {}: {word}",
            row.tail
        );
    }
    text
}

/// Returns the rows beside the baselines as the table of ARCHITECTURE, section 15; `None` without
/// such a row.
pub(crate) fn in_markdown(all: &[Measured]) -> Option<String> {
    let rows = all.iter().filter(|(row, _)| row.is_beside_baselines());
    let rows: Vec<String> = rows.map(markdown_row).collect();
    let [ours, others @ ..] = BASELINES.map(|(label, _)| label);
    let head = format!(
        "\n| nodes, threads | {ours}: µs, server µs, switches | {} | pairs, ratio (range) | p99, ratio (range) |\n|---|---|---|---|---|---|\n",
        others.join(" | ")
    );
    (!rows.is_empty()).then(|| head + &rows.join("\n"))
}

fn markdown_row((row, turns): &Measured) -> String {
    let mut text = format!("| {}, {} |", row.nodes, row.threads[0]);
    for side in 0..row.sides.len() {
        let costs = COSTS.map(|column| {
            let [_, median, _] = spread(turns.iter().map(|turn| turn[side][column]));
            let digits = usize::from(median < 9.95);
            format!("{median:.digits$}")
        });
        // Writing to a `String` cannot fail.
        _ = write!(text, " {} |", costs.join(", "));
    }
    for column in [RATE, P99] {
        let [least, ratio, most] = ratios(turns, column);
        _ = write!(text, " {ratio:.2} ({least:.2}–{most:.2}) |");
    }
    text
}

/// Returns the ratio of the first side to the best of the others (the highest rate, or the shortest
/// time): minimum, median and maximum over the turns.
fn ratios(turns: &[Vec<Sample>], column: usize) -> [f64; 3] {
    spread(turns.iter().map(|turn| {
        let others = turn[1..].iter().map(|sample| sample[column]);
        let best = match column {
            RATE => others.fold(0.0, f64::max),
            _ => others.fold(f64::INFINITY, f64::min),
        };
        turn[0][column] / best
    }))
}
