//! The rows of the table: the compared sides, and the goals for their ratios.

use std::fmt::Write;
use std::time::Duration;

use redguard::OnDrop;

use crate::clients::Side;
use crate::format::word;
use crate::measurement::{self, COLUMNS, Sample};
use crate::stats::spread;
use crate::{Result, once_more};
use redguard_servers::Server;

const OURS: Side = Side::Redguard(OnDrop::Wait);

/// The sides of a row that compares with the baselines.
const BASELINES: [(&str, Side); 3] = [
    ("redguard", OURS),
    ("connections of each thread", Side::Bare),
    ("one pipeline per node", Side::Pipeline),
];

pub(crate) const ROWS: [Row; 26] = [
    Row::new("1 node, 1 thread", 1, 1, [1.9, 1.0, 0.0]),
    Row::new("1 node, 4 threads", 1, 4, [1.1, 1.0, 0.0]),
    Row::new("1 node, 16 threads", 1, 16, [1.1, 1.0, 0.0]),
    Row::new("1 node, 64 threads", 1, 64, [1.1, 1.0, 0.0]),
    Row::new("1 node, 256 threads", 1, 256, [1.1, 1.0, 0.0]),
    Row::new("3 nodes, 1 thread", 3, 1, [1.9, 1.0, 0.0]),
    Row::new("3 nodes, 4 threads", 3, 4, [1.1, 1.0, 0.0]),
    Row::new("3 nodes, 16 threads", 3, 16, [1.1, 1.0, 0.0]),
    Row::new("3 nodes, 64 threads", 3, 64, [1.1, 1.0, 0.0]),
    Row::new("3 nodes, 256 threads", 3, 256, [1.1, 1.0, 0.0]),
    Row::new("5 nodes, 1 thread", 5, 1, [1.1, 1.0, 0.0]),
    Row::new("5 nodes, 4 threads", 5, 4, [1.1, 1.0, 0.0]),
    Row::new("5 nodes, 16 threads", 5, 16, [1.1, 1.0, 0.0]),
    Row::new("5 nodes, 64 threads", 5, 64, [1.1, 1.0, 0.0]),
    Row::new("5 nodes, 256 threads", 5, 256, [1.1, 1.0, 0.0]),
    Row {
        sides: &[("256 threads", OURS), ("64 threads", OURS)],
        threads: [256, 64],
        tail: 8.0,
        ..Row::new("5 nodes, 256 threads beside 64", 5, 64, [0.95, 0.0, 0.0])
    },
    Row::beside_healthy("5 nodes, one stopped, 1 thread", 1, 1, [0.0, 1.1, 2.0]),
    Row::beside_healthy("5 nodes, two stopped, 1 thread", 2, 1, [0.0, 1.2, 0.0]),
    Row::beside_healthy("5 nodes, two stopped, 16 threads", 2, 16, [0.8, 0.0, 0.0]),
    Row::handed_off("1 node, hand-off, 1 thread", 1),
    Row::handed_off("5 nodes, hand-off, 1 thread", 5),
    Row::beside_exclusive(
        "1 node, read, 1 thread",
        1,
        1,
        &[("read", Side::Read), ("exclusive", OURS)],
        0.7,
    ),
    Row::beside_exclusive(
        "1 node, write, 1 thread",
        1,
        1,
        &[("write", Side::Write), ("exclusive", OURS)],
        0.7,
    ),
    Row::beside_exclusive(
        "5 nodes, read, 1 thread",
        5,
        1,
        &[("read", Side::Read), ("exclusive", OURS)],
        0.7,
    ),
    Row::beside_exclusive(
        "5 nodes, write, 1 thread",
        5,
        1,
        &[("write", Side::Write), ("exclusive", OURS)],
        0.7,
    ),
    Row::beside_exclusive(
        "5 nodes, read of one key, 64 threads",
        5,
        64,
        &[("read", Side::ReadOne), ("exclusive", OURS)],
        0.6,
    ),
];

/// Sides that do the same on the same nodes.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    nodes: usize,
    /// Threads of the first side, and of each other side.
    threads: [usize; 2],
    sides: &'static [(&'static str, Side)],
    /// Number of nodes, from the last, that are stopped while the first side is measured.
    stopped: usize,
    /// Goals for the ratios of the first side to the best of the others: minimum for the rate,
    /// maximum for the times. Zero means no goal.
    goals: [f64; 3],
    /// Maximum ratio of the first side's p99 to its p50, or zero.
    tail: f64,
}

impl Row {
    const fn new(name: &'static str, nodes: usize, threads: usize, goals: [f64; 3]) -> Row {
        Row {
            name,
            nodes,
            threads: [threads; 2],
            sides: &BASELINES,
            stopped: 0,
            goals,
            tail: 0.0,
        }
    }

    /// Locks with some of five nodes stopped, beside locks with all nodes healthy.
    const fn beside_healthy(
        name: &'static str,
        stopped: usize,
        threads: usize,
        goals: [f64; 3],
    ) -> Row {
        Row {
            sides: &[("some stopped", OURS), ("all healthy", OURS)],
            stopped,
            ..Row::new(name, 5, threads, goals)
        }
    }

    /// Guards whose release is queued for the workers, beside guards that wait for it.
    const fn handed_off(name: &'static str, nodes: usize) -> Row {
        Row {
            sides: &[
                ("hand-off", Side::Redguard(OnDrop::Background)),
                ("wait", OURS),
            ],
            ..Row::new(name, nodes, 1, [1.6, 0.0, 0.0])
        }
    }

    /// Read-write locks of the library beside its exclusive locks.
    const fn beside_exclusive(
        name: &'static str,
        nodes: usize,
        threads: usize,
        sides: &'static [(&'static str, Side)],
        goal: f64,
    ) -> Row {
        Row {
            sides,
            ..Row::new(name, nodes, threads, [goal, 0.0, 0.0])
        }
    }

    /// Measures all sides, the last first if `reversed`. Returns them in the row's order.
    pub(crate) fn turn(
        &self,
        servers: &[Server],
        time: Duration,
        reversed: bool,
    ) -> Result<Vec<Sample>> {
        let mut samples = vec![Sample::default(); self.sides.len()];
        let mut order: Vec<usize> = (0..self.sides.len()).collect();
        if reversed {
            order.reverse();
        }
        for side in order {
            let cell = || self.cell(side, &servers[..self.nodes], time);
            samples[side] = once_more(cell, &[self.name, self.sides[side].0])?;
        }
        Ok(samples)
    }

    /// Measures one side. Its clients connect again each time, and no work of earlier cells
    /// remains.
    fn cell(&self, side: usize, servers: &[Server], time: Duration) -> Result<Sample> {
        for server in servers {
            let mut connection = redis::Client::open(server.url())?.get_connection()?;
            redis::cmd("PING").exec(&mut connection)?; // a stopped server has served its queue by now
            redis::cmd("FLUSHALL").exec(&mut connection)?;
        }
        let clients = self.sides[side]
            .1
            .clients(servers, self.threads[side.min(1)])?;
        let some = if side == 0 { self.stopped } else { 0 };
        let stopped = &servers[servers.len() - some..];
        // Stopped after the warm-up, because the detection of a hung node is part of the
        // measurement.
        let stop = || Ok(stopped.iter().try_for_each(Server::stop)?);
        let sample = measurement::run(clients, servers, time, stop);
        stopped.iter().try_for_each(Server::resume)?;
        sample
    }

    /// Returns the medians of all sides (for maxima the greatest), then the ratios of the first
    /// side to the best of the others: median, minimum and maximum over the turns.
    pub(crate) fn report(&self, turns: &[Vec<Sample>]) -> String {
        let mut text = format!("\n{:<32}", self.name);
        // Writing to a `String` cannot fail.
        COLUMNS
            .iter()
            .for_each(|name| _ = write!(text, "{name:>10}"));
        for (side, (label, _)) in self.sides.iter().enumerate() {
            _ = write!(text, "\n    {label:<28}");
            for column in 0..COLUMNS.len() {
                let [_, median, most] = spread(turns.iter().map(|turn| turn[side][column]));
                let value = if column == 3 { most } else { median };
                let digits = usize::from(column > 3);
                _ = write!(text, "{value:>10.digits$}");
            }
        }
        for (column, goal) in self.goals.into_iter().enumerate() {
            let [least, ratio, most] = spread(turns.iter().map(|turn| ratio_to_best(turn, column)));
            let (sign, reached) = match column {
                0 => ('≥', ratio >= goal),
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
        if self.tail > 0.0 {
            let [_, ratio, _] = spread(turns.iter().map(|turn| turn[0][2] / turn[0][1]));
            let label = format!("{}, p99 to p50", self.sides[0].0);
            let word = word(ratio <= self.tail);
            _ = write!(
                text,
                "\n    {label:<28}{ratio:>10.2}  goal ≤ {}: {word}",
                self.tail
            );
        }
        text
    }
}

/// Returns the ratio of the first side to the best of the others: the highest rate, or the shortest
/// time.
fn ratio_to_best(turn: &[Sample], column: usize) -> f64 {
    let others = turn[1..].iter().map(|sample| sample[column]);
    let best = match column {
        0 => others.fold(0.0, f64::max),
        _ => others.fold(f64::INFINITY, f64::min),
    };
    turn[0][column] / best
}
