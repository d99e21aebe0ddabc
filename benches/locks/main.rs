//! How fast locks are beside bare connections: `cargo bench --bench locks -- [--short] [--turns N]
//! [--only SUBSTRING]`.
//!
//! Both sides of a row are measured in turns on the same temporary servers, so that a noisy machine
//! affects them alike. A ratio is the median of the turns' ratios. A missed goal is `short`; the
//! exit status is still 0.
#![expect(
    clippy::disallowed_methods,
    reason = "a benchmark reads the clock and waits for time to pass"
)]

mod alloc_counter;
mod baseline;
mod client;
mod clients;
mod contention;
mod environment;
mod extra_rows;
mod format;
mod join;
mod measurement;
mod median;
mod outage;
mod overhead;
mod pipeline;
mod proc_stats;
mod renewal;
mod report;
mod stats;
mod table;

use std::error;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use clap::Parser;

use crate::environment::load;
use crate::extra_rows::EXTRAS;
use crate::report::Measured;
use crate::table::ROWS;
use redguard_servers::Server;

/// Any error ends the run: a failed lock is a failed measurement.
type Result<T> = std::result::Result<T, Box<dyn error::Error + Send + Sync>>;

/// Maximum number of nodes of a row.
const NODES: usize = 5;

#[global_allocator]
static HEAP: alloc_counter::Counting = alloc_counter::Counting;

#[derive(Parser)]
#[command(about = "Locks of redguard beside baselines made of bare connections")]
struct Args {
    /// One turn of 0.2 s per cell instead of five of 1 s: shows that it runs, the ratios mean
    /// little
    #[arg(long)]
    short: bool,
    /// Number of turns for the medians
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    turns: Option<u32>,
    /// Only the rows whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Only this number of pairs of one thread on all nodes, for `benches/instructions`
    #[arg(long)]
    pairs: Option<u32>,
    /// Pairs on bare connections
    #[arg(long, requires = "pairs")]
    baseline: bool,
    /// Argument that `cargo bench` adds for every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let (cell, turns) = match args.short {
        true => (Duration::from_millis(200), 1),
        false => (Duration::from_secs(1), 5),
    };
    let turns = args.turns.unwrap_or(turns);
    let began = Instant::now();
    let servers: Vec<Server> = (0..NODES)
        .map(|_| Server::start())
        .collect::<io::Result<_>>()?;
    if let Some(pairs) = args.pairs {
        return overhead::only_pairs(&servers, args.baseline, pairs);
    }
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "{}\nturns: {turns} of {cell:?} a cell",
        environment::line(&servers[0])?
    )?;

    let chosen = ROWS.iter().filter(|row| row.name.contains(&args.only));
    let mut chosen: Vec<Measured> = chosen.map(|row| (row, Vec::new())).collect();
    for turn in 0..turns {
        eprintln!("turn {} of {turns}, load {}", turn + 1, load());
        for (row, pairs) in &mut chosen {
            pairs.push(row.turn(&servers, cell, turn % 2 == 1)?);
        }
    }
    for measured in &chosen {
        writeln!(out, "{}", report::of_row(measured))?;
    }
    writeln!(out)?;
    for (name, extra) in EXTRAS.iter().filter(|(name, _)| name.contains(&args.only)) {
        let text = once_more(|| extra(&servers, args.short), &[name])?;
        writeln!(out, "{name}: {text}")?;
    }
    if let Some(table) = report::in_markdown(&chosen) {
        writeln!(out, "{table}\n")?;
    }
    writeln!(out, "took {:.0?}, load {}", began.elapsed(), load())?;
    Ok(())
}

/// Retries once: on a busy machine locks fail by timeouts, which says nothing about speed.
fn once_more<T>(measure: impl Fn() -> Result<T>, names: &[&str]) -> Result<T> {
    measure().or_else(|error| {
        eprintln!("{}: {error}: once more", names.join(", "));
        measure()
    })
}
