//! How many processes share one lock: `cargo bench --bench processes -- [--short] [--only
//! SUBSTRING]`.
//!
//! Each of N processes runs `sleep` for 20 ms under one lock, again and again, as copies of a batch
//! program do. Beside redguard, the same with flock(1), and with `etcdctl lock` where etcd and
//! etcdctl are installed. The processes are copies of this program; each reports its waits in a line
//! on its output. A failed cell is a row that says so, and an exit status of 1 at the end. A missed
//! goal is `short`.
#![expect(
    clippy::disallowed_methods,
    reason = "a benchmark reads the clock and waits for time to pass"
)]

mod cell;
#[path = "../../cli/benches/beside/etcd.rs"]
mod etcd;
#[path = "../locks/format.rs"]
mod format;
mod lines;
mod process;
mod side;
mod table;
mod worker;

use std::error;
use std::io::{self, Write};
use std::time::Duration;

use clap::Parser;

use crate::cell::Cell;
use crate::side::Side;
use crate::table::Row;
use crate::worker::Work;

type Result<T> = std::result::Result<T, Box<dyn error::Error + Send + Sync>>;

/// How long each process keeps the lock.
const JOB: Duration = Duration::from_millis(20);

#[derive(Parser)]
#[command(about = "Processes that share one lock: redguard, flock(1) and etcdctl lock")]
struct Args {
    /// 2 s a cell instead of 20 s: shows that it runs
    #[arg(long)]
    short: bool,
    /// Only the rows whose name contains this, and flock(1) with as many processes
    #[arg(long, default_value = "")]
    only: String,
    /// Argument of the other benchmarks: a cell is one turn here, long enough for its p99
    #[arg(long, hide = true)]
    turns: Option<u32>,
    /// Runs as one of the processes: `redguard` and the nodes, or a command that locks
    #[arg(long, hide = true, num_args = 1.., allow_hyphen_values = true)]
    work: Vec<String>,
    /// Argument that `cargo bench` adds for every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    if !args.work.is_empty() {
        return Work::parse(&args.work)?.run();
    }
    let time = Duration::from_secs(if args.short { 2 } else { 20 });
    let mut out = io::stdout().lock();
    let mut failed = 0;
    writeln!(out, "{}", table::head())?;
    for processes in [4, 16, 64] {
        let is_chosen = |side: &Side| side.row(processes).contains(&args.only);
        if !Side::ALL.iter().any(is_chosen) {
            continue;
        }
        let mut flock = None;
        let is_measured = |side: &Side| *side == Side::Flock || is_chosen(side);
        for side in Side::ALL.into_iter().filter(is_measured) {
            let text = match measure(side, processes, time) {
                Ok(Some(cell)) => {
                    if side == Side::Flock {
                        flock = Some(cell.runs_per_second);
                    }
                    let cell = &cell;
                    Row {
                        side,
                        processes,
                        cell,
                        flock,
                    }
                    .text()
                }
                Ok(None) => format!(
                    "{:<28}left out: etcd or etcdctl is not on the PATH",
                    side.row(processes)
                ),
                Err(error) => {
                    failed += 1;
                    format!("{:<28}failed: {error}", side.row(processes))
                }
            };
            writeln!(out, "{text}")?;
        }
    }
    match failed {
        0 => Ok(()),
        failed => Err(format!("cells that failed: {failed}").into()),
    }
}

fn measure(side: Side, processes: usize, time: Duration) -> Result<Option<Cell>> {
    let place = side.start()?;
    place
        .map(|place| Cell::measure(processes, &place, time))
        .transpose()
}
