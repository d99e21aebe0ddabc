//! The rows of the table: the compared sides, and the goals for their ratios.

use std::fmt::Write;
use std::time::Duration;

use redguard::OnDrop;

use crate::clients::Side;
use crate::extra_rows::word;
use crate::measurement::{self, COLUMNS, Sample};
use crate::servers::Server;
use crate::stats::spread;
use crate::{Result, once_more};

const OURS: Side = Side::Redguard(OnDrop::Wait);

pub(crate) const ROWS: [Row; 16] = [
    Row::new("1 node, 1 thread", 1, 1, [0.95, 0.0, 0.0]),
    Row::new("1 node, 16 threads", 1, 16, [2.2, 0.0, 0.0]),
    Row::new("5 nodes, 1 thread", 5, 1, [1.15, 0.0, 0.0]),
    Row::new("5 nodes, 16 threads", 5, 16, [3.5, 0.0, 0.0]),
    Row::new("5 nodes, 64 threads", 5, 64, [5.0, 0.0, 0.0]),
    Row {
        sides: [("256 threads", OURS), ("64 threads", OURS)],
        threads: [256, 64],
        tail: 8.0,
        ..Row::new("5 nodes, 256 threads beside 64", 5, 64, [0.95, 0.0, 0.0])
    },
    Row::beside_healthy("5 nodes, one stopped, 1 thread", 1, 1, [0.0, 1.1, 2.0]),
    Row::beside_healthy("5 nodes, two stopped, 1 thread", 2, 1, [0.0, 1.2, 0.0]),
    Row::beside_healthy("5 nodes, two stopped, 16 threads", 2, 16, [0.8, 0.0, 0.0]),
    Row::handed_off("1 node, hand-off, 1 thread", 1),
    Row::handed_off("5 nodes, hand-off, 1 thread", 5),
    Row::beside_exclusive("1 node, read, 1 thread", 1, 1, Side::Read, 0.7),
    Row::beside_exclusive("1 node, write, 1 thread", 1, 1, Side::Write, 0.7),
    Row::beside_exclusive("5 nodes, read, 1 thread", 5, 1, Side::Read, 0.7),
    Row::beside_exclusive("5 nodes, write, 1 thread", 5, 1, Side::Write, 0.7),
    Row::beside_exclusive(
        "5 nodes, read of one key, 64 threads",
        5,
        64,
        Side::ReadOne,
        0.6,
    ),
];

/// Two sides that do the same on the same nodes.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    nodes: usize,
    /// Threads of each side.
    threads: [usize; 2],
    sides: [(&'static str, Side); 2],
    /// Number of nodes, from the last, that are stopped while the first side is measured.
    stopped: usize,
    /// Goals for the ratios of the first side to the second: minimum for the rate, maximum for the
    /// times. Zero means no goal.
    goals: [f64; 3],
    /// Maximum ratio of the first side's p99 to its p50, or zero.
    tail: f64,
}

impl Row {
    const fn new(name: &'static str, nodes: usize, threads: usize, goals: [f64; 3]) -> Row {
        let baseline = if nodes == 1 { "raw" } else { "scatter" };
        Row {
            name,
            nodes,
            threads: [threads; 2],
            sides: [("redguard", OURS), (baseline, Side::Bare)],
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
            sides: [("some stopped", OURS), ("all healthy", OURS)],
            stopped,
            ..Row::new(name, 5, threads, goals)
        }
    }

    /// Guards whose release is queued for the workers, beside guards that wait for it.
    const fn handed_off(name: &'static str, nodes: usize) -> Row {
        Row {
            sides: [
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
        side: Side,
        goal: f64,
    ) -> Row {
        Row {
            sides: [("read-write", side), ("exclusive", OURS)],
            ..Row::new(name, nodes, threads, [goal, 0.0, 0.0])
        }
    }

    /// Measures both sides, the second first if `reversed`. Returns them in the row's order.
    pub(crate) fn turn(
        &self,
        servers: &[Server],
        time: Duration,
        reversed: bool,
    ) -> Result<[Sample; 2]> {
        let mut samples = [Sample::default(); 2];
        for side in if reversed { [1, 0] } else { [0, 1] } {
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
        let clients = self.sides[side].1.clients(servers, self.threads[side])?;
        let some = if side == 0 { self.stopped } else { 0 };
        let stopped = &servers[servers.len() - some..];
        // Stopped after the warm-up, because the detection of a hung node is part of the
        // measurement.
        let stop = || Ok(stopped.iter().try_for_each(Server::stop)?);
        let sample = measurement::run(clients, time, stop);
        stopped.iter().try_for_each(Server::resume)?;
        sample
    }

    /// Returns the medians of both sides (for maxima the greatest), then the ratios: median,
    /// minimum and maximum over the turns.
    pub(crate) fn report(&self, turns: &[[Sample; 2]]) -> String {
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
                _ = write!(text, "{value:>10.0}");
            }
        }
        for (column, goal) in self.goals.into_iter().enumerate() {
            let [least, ratio, most] = spread(turns.iter().map(|[a, b]| a[column] / b[column]));
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
            let [_, ratio, _] = spread(turns.iter().map(|[first, _]| first[2] / first[1]));
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
