//! Readers and reloaders of one catalogue file, in several processes, under a read-write lock.
//!
//! `cargo run --release --example readers_writer -- [--processes N] [--reporters N] [--reloads N]
//! [--redis URL,URL,…]`
//!
//! The file is replaced in place, piece by piece, so that only the lock keeps a reporter from
//! reading a half-written file. `--without-locks` shows the difference. Three points matter:
//!
//! - a reporter holds its read lock only while it reads;
//! - a reloader calls `check` before each piece, because a lease can expire;
//! - a reloader that reads its own write *downgrades* its lock. A release and a new read lock would
//!   let another reloader in between.
//!
//! A real program also writes a new file and renames it, because no lock helps if a reloader dies
//! half-way.
#![expect(clippy::print_stdout, reason = "an example is there to be read")]

#[path = "readers_writer/catalogue.rs"]
mod catalogue;

use catalogue::Catalogue;
use lexopt::{Arg, Parser};
use redguard::{Config, LocalRwLocker, Nodes, RedisRwLocker, RwLocker};
use redguard_examples::{args, exit_status};
use redguard_servers::temp_dir::TempDir;
use redguard_servers::{self as servers, Server};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use std::{env, error, fmt, io, thread};

/// Name of the lock of the file.
const NAME: &str = "catalogue";
/// Much longer than a read or reload. The lock of a killed process blocks others for at most this
/// time.
const TTL: Duration = Duration::from_secs(10);

type Outcome<T> = Result<T, Box<dyn error::Error + Send + Sync>>;

const HELP: &str = "
Reads and reloads a shared catalogue, and checks that no reader sees a half-written one

Usage: readers_writer [OPTIONS]

  --processes N      Processes that share the catalogue [default: 3]
  --reporters N      Reporting threads in each process [default: 4]
  --reloads N        Reloads by each process [default: 10]
  --every TIME       Pause of a reloader before each reload [default: 50ms]
  --redis URL,URL,…  Addresses of the nodes; without it, three temporary ones if redis-server is on the
                     PATH, else one process with in-process locks
  --without-locks    Run without locks
  -h, --help         Shows this help

Exit status: 0 if no report read a half-written catalogue and no reload was lost, 1 if not, 64 for bad
usage, 69 without a quorum of the nodes, 77 if they deny access, else 70.
";

struct Cli {
    processes: u16,
    reporters: u16,
    reloads: u16,
    every: Duration,
    redis: Vec<String>,
    without_locks: bool,
    /// Run as one of the processes, with the catalogue in this file.
    catalogue: Option<PathBuf>,
}

impl Cli {
    fn read(parser: &mut Parser) -> Result<Option<Cli>, lexopt::Error> {
        let mut cli = Cli {
            processes: 3,
            reporters: 4,
            reloads: 10,
            every: Duration::from_millis(50),
            redis: Vec::new(),
            without_locks: false,
            catalogue: None,
        };
        while let Some(arg) = parser.next()? {
            match arg {
                Arg::Long("processes") => cli.processes = args::number(parser, 1..=32)?,
                Arg::Long("reporters") => cli.reporters = args::number(parser, 1..=64)?,
                Arg::Long("reloads") => cli.reloads = args::number(parser, 1..=10_000)?,
                Arg::Long("every") => cli.every = args::duration(parser)?,
                Arg::Long("redis") => cli.redis = args::addresses(parser)?,
                Arg::Long("without-locks") => cli.without_locks = true,
                Arg::Long("catalogue") => cli.catalogue = Some(parser.value()?.into()),
                Arg::Long("help") | Arg::Short('h') => return Ok(None),
                other => return Err(other.unexpected()),
            }
        }
        Ok(Some(cli))
    }
}

fn main() -> ExitCode {
    let cli = args::parse("readers_writer", HELP, Cli::read);
    let ended = match &cli.catalogue {
        Some(path) => process(&cli, path).map(|counts| {
            println!("{}", counts.to_line());
            ExitCode::SUCCESS
        }),
        None => parent(&cli),
    };
    ended.unwrap_or_else(|error| {
        eprintln!("readers_writer: {error}");
        let process: Option<&ProcessEnded> = error.downcast_ref();
        let status = process.and_then(|process| process.0.code());
        let status = status.and_then(|status| u8::try_from(status).ok());
        ExitCode::from(status.unwrap_or_else(|| exit_status::exit_status(&*error)))
    })
}

/// Result of a process.
#[derive(Default)]
struct Counts {
    reports: usize,
    half_written: usize,
    /// Reloads that read another catalogue than their own after the downgrade.
    overtaken: usize,
    most_at_once: usize,
}

impl Counts {
    fn to_line(&self) -> String {
        let Counts {
            reports,
            half_written,
            overtaken,
            most_at_once,
        } = self;
        format!("{reports} {half_written} {overtaken} {most_at_once}")
    }

    fn from_line(line: &str) -> Option<Counts> {
        let mut numbers = line.split_whitespace().map_while(|word| word.parse().ok());
        Some(Counts {
            reports: numbers.next()?,
            half_written: numbers.next()?,
            overtaken: numbers.next()?,
            most_at_once: numbers.next()?,
        })
    }
}

/// Starts the nodes and the processes, and prints the sums.
fn parent(cli: &Cli) -> Outcome<ExitCode> {
    let mut nodes = Vec::new();
    let mut urls = cli.redis.clone();
    let mut processes = cli.processes;
    if urls.is_empty() && servers::available() {
        nodes = (0..3).map(|_| Server::start()).collect::<io::Result<_>>()?;
        urls = nodes.iter().map(Server::url).collect();
    } else if urls.is_empty() {
        eprintln!("no --redis and no redis-server: one process with in-process locks");
        processes = 1;
    }
    let dir = TempDir::create("catalogue-")?;
    let path = dir.path().join("catalogue.tsv");
    Catalogue::first().store(&path, || Ok::<_, io::Error>(()))?;

    let children = (0..processes)
        .map(|_| Process::start(cli, &urls, &path))
        .collect::<io::Result<Vec<_>>>()?;
    let mut sum = Counts::default();
    for child in children {
        let counts = child.end()?;
        sum.reports += counts.reports;
        sum.half_written += counts.half_written;
        sum.overtaken += counts.overtaken;
        sum.most_at_once = sum.most_at_once.max(counts.most_at_once);
    }
    drop(nodes);

    let wanted = u64::from(processes) * u64::from(cli.reloads);
    let last = Catalogue::load(&path)?.map(|catalogue| catalogue.version);
    println!(
        "processes        {processes}, of {} reporters and a reloader each",
        cli.reporters
    );
    println!("reports          {}", sum.reports);
    println!(
        "  at once        {} at most in one process",
        sum.most_at_once
    );
    println!("  half-written   {}", sum.half_written);
    println!("reloads          {wanted}");
    println!(
        "  counted        {}",
        last.map_or("none: half-written".into(), |v| v.to_string())
    );
    println!("  overtaken      {}", sum.overtaken);
    let good = sum.half_written == 0 && sum.overtaken == 0 && last == Some(wanted);
    println!("{}", if good { "passed" } else { "FAILED" });
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Failure of a process, which has printed its error.
#[derive(Debug)]
struct ProcessEnded(ExitStatus);

impl fmt::Display for ProcessEnded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a process ended with {}", self.0)
    }
}

impl error::Error for ProcessEnded {}

/// Process of this program; killed on drop.
struct Process(Child);

impl Process {
    fn start(cli: &Cli, urls: &[String], path: &Path) -> io::Result<Process> {
        let mut command = Command::new(env::current_exe()?);
        command.arg("--catalogue").arg(path);
        command.args(["--reporters", &cli.reporters.to_string()]);
        command.args(["--reloads", &cli.reloads.to_string()]);
        command.args(["--every", &format!("{}us", cli.every.as_micros())]);
        if !urls.is_empty() {
            command.args(["--redis", &urls.join(",")]);
        }
        if cli.without_locks {
            command.arg("--without-locks");
        }
        command.stdout(Stdio::piped()).spawn().map(Process)
    }

    fn end(mut self) -> Outcome<Counts> {
        let stdout = self.0.stdout.take().map(io::read_to_string);
        let line = stdout.transpose()?.unwrap_or_default();
        let status = self.0.wait()?;
        let counts = Counts::from_line(&line).filter(|_| status.success());
        Ok(counts.ok_or(ProcessEnded(status))?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail for a process that has ended, which is the usual case.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// Runs one process: its reporters run until its reloader has finished.
fn process(cli: &Cli, path: &Path) -> Outcome<Counts> {
    let nodes = match cli.redis.is_empty() {
        true => None,
        false => Some(Nodes::connect(Config::new(&cli.redis))?),
    };
    let locker: Box<dyn RwLocker> = match &nodes {
        Some(nodes) => Box::new(RedisRwLocker::new(nodes)),
        None => Box::new(LocalRwLocker::new()),
    };
    let shop = Shop {
        locker: &*locker,
        locked: !cli.without_locks,
        path,
        closed: AtomicBool::new(false),
        reporting: AtomicUsize::new(0),
        most: AtomicUsize::new(0),
    };
    let counts = thread::scope(|scope| {
        let reporters: Vec<_> = (0..cli.reporters)
            .map(|_| scope.spawn(|| shop.report()))
            .collect();
        let overtaken = shop.reload(cli.reloads, cli.every);
        shop.closed.store(true, Ordering::Relaxed);
        let mut counts = Counts::default();
        for reporter in reporters {
            let (reports, half_written) = reporter.join().map_err(|_| "a reporter panicked")??;
            counts.reports += reports;
            counts.half_written += half_written;
        }
        counts.overtaken = overtaken?;
        Outcome::Ok(counts)
    });
    if let Some(nodes) = &nodes {
        _ = nodes.shutdown(Duration::from_secs(1));
    }
    Ok(Counts {
        most_at_once: shop.most.into_inner(),
        ..counts?
    })
}

/// State that the threads of a process share.
struct Shop<'a> {
    locker: &'a dyn RwLocker,
    locked: bool,
    path: &'a Path,
    closed: AtomicBool,
    reporting: AtomicUsize,
    most: AtomicUsize,
}

impl Shop<'_> {
    /// Runs a reporter; returns the numbers of reports and of half-written catalogues.
    fn report(&self) -> Outcome<(usize, usize)> {
        let (mut reports, mut half_written) = (0, 0);
        while !self.closed.load(Ordering::Relaxed) {
            let guard = match self.locked {
                true => Some(self.locker.read(NAME, TTL)?),
                false => None,
            };
            let now = self.reporting.fetch_add(1, Ordering::Relaxed) + 1;
            self.most.fetch_max(now, Ordering::Relaxed);
            let catalogue = Catalogue::load(self.path);
            self.reporting.fetch_sub(1, Ordering::Relaxed);
            // The report counts only if the lock was held until the end of the read.
            if guard.is_some_and(|guard| guard.release().is_err()) {
                continue;
            }
            match catalogue? {
                Some(catalogue) => {
                    std::hint::black_box(catalogue.total()); // the report
                    reports += 1;
                }
                None => half_written += 1,
            }
        }
        Ok((reports, half_written))
    }

    /// Runs the reloader; returns how often another reload came between its write and its read.
    fn reload(&self, reloads: u16, every: Duration) -> Outcome<usize> {
        let mut overtaken = 0;
        for _ in 0..reloads {
            thread::park_timeout(every);
            let guard = match self.locked {
                true => Some(self.locker.write(NAME, TTL)?),
                false => None,
            };
            // The file is half-written without locks, and after a reloader that died half-way.
            let catalogue = Catalogue::load(self.path)?
                .unwrap_or_else(Catalogue::first)
                .next();
            catalogue.store(self.path, || {
                guard.as_ref().map_or(Ok(()), |guard| guard.check())?;
                thread::yield_now(); // stands for a slow disk
                Outcome::Ok(())
            })?;
            // Readers are admitted now, but no other writer before this read.
            let guard = guard.map(|guard| guard.downgrade()).transpose()?;
            if Catalogue::load(self.path)?.as_ref() != Some(&catalogue) {
                overtaken += 1;
            }
            // If too few nodes answer in time, the lock ends with its TTL.
            match guard.map_or(Ok(()), |guard| guard.release()) {
                Err(error) if !error.is_unavailable() => return Err(error.into()),
                _ => {}
            }
        }
        Ok(overtaken)
    }
}
