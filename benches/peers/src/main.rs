//! Measures redguard beside the other lock crates for Redis: `benches/run`, or, from the root of
//! the repository, `cargo run --release --manifest-path benches/peers/Cargo.toml -- [OPTIONS]`.
//! The options are `--short`, `--turns N`, `--time DURATION` and `--only SUBSTRING`.
//!
//! All peers are measured in turns in rotating order, on the same temporary servers, so that a
//! noisy machine affects them alike. A ratio is the median of the turns' ratios. Every cell is a
//! process of its own, which is killed if it does not end, so a hung peer delays no other. A missed
//! goal is `short`; the exit status is still 0.
#![expect(
    clippy::disallowed_methods,
    reason = "a benchmark reads the clock and makes threads"
)]

#[path = "../../locks/baseline.rs"]
mod baseline;
mod csv;
#[path = "../../locks/environment.rs"]
mod environment;
#[path = "../../processes/lines.rs"]
mod lines;
mod peers;
mod plot;
mod runner;
mod scenarios;
mod schedule;
#[path = "../../locks/stats.rs"]
mod stats;
mod summary;
mod table;

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};
use std::{error, fs};

use clap::{Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::peers::Peer;
use crate::schedule::Measured;
use redguard_servers::Server;

/// An error outside of a cell ends the run.
type Result<T> = std::result::Result<T, Box<dyn error::Error + Send + Sync>>;

/// Maximum number of nodes of a setting.
const NODES: usize = 5;

const LOCK_FILE: &str = include_str!("../Cargo.lock");

#[derive(Parser)]
#[command(about = "Locks of redguard beside those of other crates")]
struct Args {
    /// One turn of 0.1 s per cell of a few: shows that it runs, the figures mean nothing
    #[arg(long)]
    short: bool,
    /// Number of turns for the medians, by default 3
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    turns: Option<u32>,
    /// Time per cell, by default 500ms; doubled with a node out, tripled with one shared key
    #[arg(long)]
    time: Option<humantime::Duration>,
    /// Only the settings whose name contains this, such as "5 nodes, healthy" or "one key"
    #[arg(long, default_value = "")]
    only: String,
    /// Directory of results.csv and results.svg
    #[arg(long)]
    out: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Hidden>,
}

#[derive(Subcommand)]
enum Hidden {
    #[command(hide = true)]
    Cell(runner::Spec),
}

/// The environment of the figures.
struct Run {
    date: String,
    machine: String,
    redis: String,
}

fn main() -> Result<()> {
    let args = Args::parse();
    if let Some(Hidden::Cell(spec)) = args.command {
        // Every thread of the baseline has a connection to every node.
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
        return runner::run(&spec);
    }
    compare(&args)
}

/// Runs all turns of the chosen settings, and writes their tables and files.
fn compare(args: &Args) -> Result<()> {
    let (time, turns) = match args.short {
        true => (Duration::from_millis(100), 1),
        false => (Duration::from_millis(500), 3),
    };
    let time = args.time.map_or(time, Into::into);
    let turns = args.turns.unwrap_or(turns);
    let began = Instant::now();
    let servers: Vec<Server> = (0..NODES)
        .map(|_| Server::start())
        .collect::<io::Result<_>>()?;
    let run = Run::new(&servers[0])?;
    let mut out = io::stdout().lock();
    writeln!(out, "{}", environment::line(&servers[0])?)?;
    writeln!(out, "{}", run.title().join("\n"))?;
    writeln!(out, "turns: {turns} of {time:?} a cell")?;

    let all = measure(args, &servers, turns, time)?;
    for measured in &all {
        writeln!(out, "{}", table::setting(measured))?;
    }
    writeln!(out, "{}", table::goals(&all))?;
    // A partial run must not replace the full results.
    let whole = !args.short && args.only.is_empty();
    let out_of_whole = || whole.then(|| concat!(env!("CARGO_MANIFEST_DIR"), "/..").into());
    if let Some(dir) = args.out.clone().or_else(out_of_whole) {
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("results.csv"), csv::text(&run, &all))?;
        fs::write(dir.join("results.svg"), plot::svg(&run, &all)?)?;
        writeln!(out, "written: {}/results.csv and .svg", dir.display())?;
    }
    writeln!(
        out,
        "took {:.0?}, load {}",
        began.elapsed(),
        environment::load()
    )?;
    Ok(())
}

/// Runs `turns` turns of all chosen settings, each cell for `time`.
fn measure(args: &Args, servers: &[Server], turns: u32, time: Duration) -> Result<Vec<Measured>> {
    let settings = scenarios::settings(args.short).into_iter();
    let chosen = settings.filter(|setting| setting.name().contains(&args.only));
    let mut all: Vec<Measured> = chosen.map(Measured::new).collect();
    for turn in 0..turns {
        for measured in &mut all {
            let name = measured.setting.name();
            eprintln!(
                "turn {} of {turns}, load {}: {name}",
                turn + 1,
                environment::load()
            );
            measured.turn(turn as usize, servers, time)?;
        }
    }
    Ok(all)
}

impl Run {
    fn new(server: &Server) -> Result<Run> {
        let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        Ok(Run {
            date: now.chars().take(10).collect(),
            machine: environment::machine()?,
            redis: environment::redis(server)?,
        })
    }

    /// Versions of all peers, and of the environment.
    fn title(&self) -> [String; 2] {
        let mut names = Vec::new();
        for peer in Peer::ALL {
            let name = format!("{} {}", peer.package(), self.version(peer));
            if peer != Peer::Baseline && !names.contains(&name) {
                names.push(name);
            }
        }
        [
            names.join(", "),
            format!(
                "{}, redis-server {} on loopback, {}",
                self.machine, self.redis, self.date
            ),
        ]
    }

    /// Returns the version in Cargo.lock. It contains the crate `redis` three times, and ours is
    /// the last.
    fn version(&self, peer: Peer) -> &'static str {
        let head = format!("name = \"{}\"\nversion = \"", peer.package());
        let found = LOCK_FILE.rsplit_once(&head);
        found
            .and_then(|(_, rest)| rest.split('"').next())
            .unwrap_or("unknown")
    }
}
