//! The rows of the table: the compared sides, and the goals for their ratios.

use std::time::Duration;

use redguard::OnDrop;

use crate::clients::Side;
use crate::measurement::{self, Sample};
use crate::{Result, once_more};
use redguard_servers::Server;

const OURS: Side = Side::Redguard(OnDrop::Wait);

/// The sides of a row that compares with the baselines.
pub(crate) const BASELINES: [(&str, Side); 3] = [
    ("redguard", OURS),
    ("connections of each thread", Side::Bare),
    ("one pipeline per node", Side::Pipeline),
];

pub(crate) const ROWS: [Row; 26] = [
    Row::beside_baselines("1 node, 1 thread", 1, 1, 1.9),
    Row::beside_baselines("1 node, 4 threads", 1, 4, 1.1),
    Row::beside_baselines("1 node, 16 threads", 1, 16, 1.1),
    Row::beside_baselines("1 node, 64 threads", 1, 64, 1.1),
    Row::beside_baselines("1 node, 256 threads", 1, 256, 1.1),
    Row::beside_baselines("3 nodes, 1 thread", 3, 1, 1.9),
    Row::beside_baselines("3 nodes, 4 threads", 3, 4, 1.1),
    Row::beside_baselines("3 nodes, 16 threads", 3, 16, 1.1),
    Row::beside_baselines("3 nodes, 64 threads", 3, 64, 1.1),
    Row::beside_baselines("3 nodes, 256 threads", 3, 256, 1.1),
    Row::beside_baselines("5 nodes, 1 thread", 5, 1, 1.1),
    Row::beside_baselines("5 nodes, 4 threads", 5, 4, 1.1),
    Row::beside_baselines("5 nodes, 16 threads", 5, 16, 1.1),
    Row::beside_baselines("5 nodes, 64 threads", 5, 64, 1.1),
    Row::beside_baselines("5 nodes, 256 threads", 5, 256, 1.1),
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
    pub(crate) nodes: usize,
    /// Threads of the first side, and of each other side.
    pub(crate) threads: [usize; 2],
    pub(crate) sides: &'static [(&'static str, Side)],
    /// Number of nodes, from the last, that are stopped while the first side is measured.
    stopped: usize,
    /// Goals for the ratios of the first side to the best of the others: minimum for the rate,
    /// maximum for the times. Zero means no goal.
    pub(crate) goals: [f64; 3],
    /// Maximum ratio of the first side's p99 to its p50, or zero.
    pub(crate) tail: f64,
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

    /// Locks beside the baselines: a goal for the rate, and never a longer time to acquire.
    const fn beside_baselines(name: &'static str, nodes: usize, threads: usize, goal: f64) -> Row {
        Row::new(name, nodes, threads, [goal, 1.0, 1.0])
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

    pub(crate) fn is_beside_baselines(&self) -> bool {
        self.sides.iter().any(|(_, side)| *side == Side::Bare)
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
}
