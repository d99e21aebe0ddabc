//! How the cost of a lock grows with threads, held keys, waiters of one key, and nodes:
//! `benches/scale [--short] [--turns N] [--only SUBSTRING]`. Writes `benches/scale.csv` and
//! `benches/scale.svg`.
//!
//! The cost is processor time of this process per lock, without the servers, because it depends
//! less on other programs than the time that passes; for held keys also memory. Each value is the
//! median of three turns, or one turn once the run has taken [`TIME_FOR_TURNS`], and from [`ONE_TURN_FROM`] on. With
//! `--short`, one turn of the small values shows that it runs. A thread takes up to four mappings of
//! memory and a process id: 10,000 of them are well within Linux' usual limits of 65,530 and 32,768.
#![expect(
    clippy::disallowed_methods,
    reason = "a benchmark reads the clock and makes threads"
)]

#[path = "../../../../locks/alloc_counter.rs"]
mod alloc_counter;
mod chart;
#[path = "../../../../locks/environment.rs"]
mod environment;
#[path = "../../../../locks/join.rs"]
mod join;
mod measure;
#[path = "../../../../locks/stats.rs"]
mod stats;

use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::time::{Duration, Instant, SystemTime};

use clap::Parser;
use redguard_servers::Server;

use crate::measure::{heap, locker, pairs, pairs_beside, waiting};
use crate::stats::spread;

#[global_allocator]
static HEAP: alloc_counter::Counting = alloc_counter::Counting;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// The time after which each further value is measured once, which bounds the run.
const TIME_FOR_TURNS: Duration = Duration::from_secs(180);
/// The least value that is always measured once, since a turn takes half a minute or more.
const ONE_TURN_FROM: usize = 1_000_000;
/// The largest value of a short run.
const SHORT: usize = 1_000;
/// Number of nodes where that is not the measured quantity.
const NODES: usize = 3;

/// A measured quantity: its name, its unit, its values, and the measurement at one of them.
struct Series {
    name: &'static str,
    unit: &'static str,
    values: &'static [usize],
    measure: fn(&[Server], usize) -> Result<f64>,
}

const COST: &str = "µs of processor time per lock";

#[derive(Parser)]
#[command(about = "How the cost of a lock grows")]
struct Args {
    /// One turn of the small values: shows that it runs
    #[arg(long)]
    short: bool,
    /// Number of turns for the medians
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    turns: u32,
    /// Only the series whose name contains this; writes no file
    #[arg(long, default_value = "")]
    only: String,
}

const ALL: [Series; 5] = [
    Series {
        name: "threads, own keys, 3 nodes",
        unit: COST,
        values: &[1, 4, 16, 64, 256, 1_000],
        measure: |servers, threads| pairs(&locker(&servers[..NODES])?, threads, 6_000),
    },
    Series {
        name: "keys held meanwhile, 1 thread, 3 nodes",
        unit: COST,
        values: &[1, 100, 1_000, 10_000, 100_000, ONE_TURN_FROM],
        measure: |servers, keys| pairs_beside(&locker(&servers[..NODES])?, keys),
    },
    Series {
        name: "keys held at once, 3 nodes",
        unit: "bytes of heap per key",
        values: &[1_000, 10_000, 100_000, 300_000, ONE_TURN_FROM],
        measure: |servers, keys| heap(&locker(&servers[..NODES])?, keys),
    },
    Series {
        name: "threads that wait for one key, 3 nodes",
        unit: COST,
        values: &[1, 10, 100, 1_000, 4_000, 10_000],
        measure: |servers, waiters| waiting(&locker(&servers[..NODES])?, waiters),
    },
    Series {
        name: "nodes, 1 thread",
        unit: COST,
        values: &[1, 3, 5, 7, 9],
        measure: |servers, nodes| pairs(&locker(&servers[..nodes])?, 1, 3_000),
    },
];

fn main() -> Result<()> {
    let (args, began) = (Args::parse(), Instant::now());
    let servers: Vec<Server> = (0..9).map(|_| Server::start()).collect::<io::Result<_>>()?;
    let mut measured = Vec::new();
    let mut csv = String::from("series,unit,value,turns,measured,date,machine\n");
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let (date, machine) = (&now[..10], environment::machine()?);
    let mut out = io::stdout().lock();
    writeln!(out, "{}", environment::line(&servers[0])?)?;
    for series in ALL.iter().filter(|series| series.name.contains(&args.only)) {
        let mut points = Vec::new();
        let is_small = |value: &&usize| !args.short || **value <= SHORT;
        for &value in series.values.iter().filter(is_small) {
            let is_once = args.short || value >= ONE_TURN_FROM || began.elapsed() > TIME_FOR_TURNS;
            let turns = if is_once { 1 } else { args.turns };
            let turns = (0..turns).map(|_| (series.measure)(&servers, value));
            let values = turns.collect::<Result<Vec<f64>>>()?;
            let turns = values.len();
            let [_, middle, _] = spread(values.into_iter());
            let (name, unit) = (series.name, series.unit);
            writeln!(
                csv,
                "\"{name}\",{unit},{value},{turns},{middle:.1},{date},\"{machine}\""
            )?;
            let took = began.elapsed();
            writeln!(out, "{name}: {value}: {middle:.1} {unit}, after {took:.0?}")?;
            points.push((value as f64, middle));
        }
        measured.push((series, points));
    }
    // A partial run must not replace the full results.
    if !args.short && args.only.is_empty() {
        fs::write("benches/scale.csv", &csv)?;
        fs::write("benches/scale.svg", chart::svg(&measured)?)?;
    }
    Ok(())
}
