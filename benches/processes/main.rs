//! How many processes share one lock: `cargo bench --bench processes -- [--short] [--only
//! SUBSTRING]`.
//!
//! Each of N processes acquires one lock again and again, for a job of 20 ms, as copies of a batch
//! program do. Beside redguard, the same with flock(1), which has no network and knows its waiters.
//! The processes are copies of this program; each reports its waits in a line on its output.
#![expect(
    clippy::disallowed_methods,
    reason = "a benchmark reads the clock and waits for time to pass"
)]

mod cell;
mod worker;

use std::error;
use std::io::{self, Write};
use std::time::Duration;

use clap::Parser;

use crate::cell::Cell;
use crate::worker::Work;
use redguard_servers::Server;

/// Any error ends the run: a failed lock is a failed measurement.
type Result<T> = std::result::Result<T, Box<dyn error::Error + Send + Sync>>;

/// How long each process keeps the lock.
const JOB: Duration = Duration::from_millis(20);

#[derive(Parser)]
#[command(about = "Processes that share one lock, with redguard and with flock(1)")]
struct Args {
    /// 2 s a cell instead of 20 s: shows that it runs
    #[arg(long)]
    short: bool,
    /// Only the rows whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Runs as one of the processes: the nodes, separated by commas, or the file of flock
    #[arg(long, hide = true)]
    work: Option<String>,
    /// Argument that `cargo bench` adds for every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    if let Some(work) = &args.work {
        return Work::parse(work)?.run();
    }
    let time = Duration::from_secs(if args.short { 2 } else { 20 });
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "{:<24}{:>8}{:>9}{:>9}{:>9}{:>8}{:>8}{:>20}",
        "processes, lock",
        "runs/s",
        "p50 ms",
        "p99 ms",
        "max ms",
        "fewest",
        "most",
        "requests/run, node"
    )?;
    for processes in [4, 16, 64] {
        for nodes in [0, 1, 3, 5] {
            let name = match nodes {
                0 => format!("{processes}, flock(1)"),
                1 => format!("{processes}, 1 node"),
                nodes => format!("{processes}, {nodes} nodes"),
            };
            if name.contains(&args.only) {
                let servers: Vec<Server> = (0..nodes)
                    .map(|_| Server::start())
                    .collect::<io::Result<_>>()?;
                let cell = Cell::measure(processes, &servers, time)?;
                writeln!(out, "{name:<24}{cell}")?;
            }
        }
    }
    Ok(())
}
