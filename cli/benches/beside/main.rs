//! The tool beside flock(1) and etcdctl(1): `cargo bench --package redguard-cli -- [--short]`.
//!
//! The first table has the time of a whole process around `true`, the programs in turns. In the
//! second one six contenders take one lock again and again, each for a job of 20 ms. The figures of
//! README.md are from here. etcdctl is left out where it or etcd is not installed.

mod etcd;

use std::error;
use std::fmt;
use std::io::{self, Write};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use redguard_servers::Server;
use tempfile::NamedTempFile;

use crate::etcd::Etcd;

/// Any error ends the run: a failed lock is a failed measurement.
type Result<T> = std::result::Result<T, Box<dyn error::Error + Send + Sync>>;

const TOOL: &str = env!("CARGO_BIN_EXE_redguard");

const CONTENDERS: usize = 6;

/// The job of a contender, which lasts 20 ms.
const JOB: [&str; 2] = ["sleep", "0.02"];

/// A program that runs a command under a lock.
struct Program {
    name: &'static str,
    /// The words before the command; none for the command alone.
    words: Vec<String>,
}

fn main() -> Result<()> {
    let is_short = std::env::args().any(|arg| arg == "--short");
    let (runs, time) = match is_short {
        true => (20, Duration::from_secs(1)),
        false => (500, Duration::from_secs(10)),
    };
    let file = NamedTempFile::new()?;
    let servers: Vec<Server> = (0..3).map(|_| Server::start()).collect::<io::Result<_>>()?;
    let addresses: Vec<String> = servers.iter().map(Server::addr).collect();
    let etcd = Etcd::start(3)?;
    let mut programs = vec![
        Program::new("the command alone", &[]),
        Program::new("flock", &["flock", &file.path().display().to_string()]),
        Program::redguard("redguard, 1 node", &addresses[..1]),
        Program::redguard("redguard, 3 nodes", &addresses),
    ];
    if let Some(etcd) = &etcd {
        let words = ["etcdctl", "--endpoints", &etcd.endpoints(), "lock", "k"];
        programs.push(Program::new("etcdctl, 3 etcd", &words));
    }
    let mut out = io::stdout().lock();
    writeln!(out, "{:<24}{:>9}{:>9}", "around true, ms", "p50", "p99")?;
    for (program, times) in programs.iter().zip(start_up(&programs, runs)?) {
        writeln!(out, "{:<24}{times:.1}", program.name)?;
    }
    let head = "6 contenders, 20 ms";
    writeln!(
        out,
        "\n{head:<24}{:>9}{:>9}{:>9}{:>9}{:>9}",
        "p50", "p99", "runs/s", "fewest", "most"
    )?;
    for program in programs.iter().filter(|program| !program.words.is_empty()) {
        writeln!(out, "{:<24}{}", program.name, contend(program, time)?)?;
    }
    Ok(())
}

impl Program {
    fn new(name: &'static str, words: &[&str]) -> Program {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        Program { name, words }
    }

    fn redguard(name: &'static str, nodes: &[String]) -> Program {
        let nodes = nodes.join(",");
        Program::new(name, &[TOOL, "run", "--redis", &nodes, "--key", "k", "--"])
    }

    /// Runs a command once. Returns how long the whole process took.
    fn once(&self, command: &[&str]) -> Result<Duration> {
        let mut words = self
            .words
            .iter()
            .map(String::as_str)
            .chain(command.iter().copied());
        let mut process = Command::new(words.next().unwrap_or_default());
        process
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let start = Instant::now();
        let status = process.status()?;
        match status.success() {
            true => Ok(start.elapsed()),
            false => Err(format!("{}: {status}", self.name).into()),
        }
    }
}

/// Runs each program around `true`, in turns.
fn start_up(programs: &[Program], runs: usize) -> Result<Vec<Times>> {
    let mut times = vec![Vec::with_capacity(runs); programs.len()];
    for _ in 0..runs {
        for (program, times) in programs.iter().zip(&mut times) {
            times.push(program.once(&["true"])?);
        }
    }
    Ok(times.into_iter().map(Times::new).collect())
}

/// Runs contenders for one lock for a while.
fn contend(program: &Program, time: Duration) -> Result<Contention> {
    let start = Instant::now();
    let contender = || {
        let mut times = Vec::new();
        while start.elapsed() < time {
            times.push(program.once(&JOB)?);
        }
        Ok(times)
    };
    let each: Vec<Vec<Duration>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..CONTENDERS).map(|_| scope.spawn(contender)).collect();
        let results = threads.into_iter().map(|thread| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        results.collect::<Result<_>>()
    })?;
    let took = start.elapsed();
    let counts: Vec<usize> = each.iter().map(Vec::len).collect();
    Ok(Contention {
        runs_per_second: counts.iter().sum::<usize>() as f64 / took.as_secs_f64(),
        fewest: counts.iter().copied().min().unwrap_or_default(),
        most: counts.iter().copied().max().unwrap_or_default(),
        times: Times::new(each.concat()),
    })
}

/// Sorted times of whole processes.
struct Times(Vec<Duration>);

impl Times {
    fn new(mut times: Vec<Duration>) -> Times {
        times.sort_unstable();
        Times(times)
    }

    fn percentile(&self, percent: usize) -> f64 {
        let at = self.0.len().saturating_sub(1) * percent / 100;
        self.0
            .get(at)
            .map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or_default();
        let (p50, p99) = (self.percentile(50), self.percentile(99));
        write!(f, "{p50:>9.digits$}{p99:>9.digits$}")
    }
}

/// What contenders reached together.
struct Contention {
    runs_per_second: f64,
    /// Wait, job and process.
    times: Times,
    fewest: usize,
    most: usize,
}

impl fmt::Display for Contention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Contention {
            runs_per_second,
            times,
            fewest,
            most,
        } = self;
        write!(f, "{times}{runs_per_second:>9.1}{fewest:>9}{most:>9}")
    }
}
