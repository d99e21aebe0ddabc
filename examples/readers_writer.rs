//! Many read a catalogue and some reload it: threads of several processes, under read locks and write locks of one name.
//!
//! `cargo run --release --example readers_writer -- [--processes N] [--reporters N] [--reloads N] [--redis URL,URL,…]`
//!
//! The file is replaced in place, piece by piece, so that nothing but the lock keeps a reporter from a half-written one;
//! `--without-locks` shows what happens then. Watch for three things:
//!
//! - a reporter holds its read lock for as long as it reads, and no longer;
//! - a reloader looks before each piece whether the lock is still its own (`check`), since a lease can end;
//! - who wants to read what it has just written *downgrades*. To release and read again would let another reloader between.
//!
//! A real program writes a new file and renames it, too: no lock helps against a reloader that dies half-way.
#![expect(clippy::print_stdout, reason = "an example is there to be read")]

#[path = "readers_writer/catalogue.rs"]
mod catalogue;
#[path = "common/servers.rs"]
mod servers;

use catalogue::Catalogue;
use clap::Parser;
use redguard::{Config, LocalRwLocker, Nodes, RedisRwLocker, RwLocker};
use servers::Server;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use std::{env, error, io, thread};

/// The lock's name, for all who read or write the file.
const NAME: &str = "catalogue";
/// Far longer than a section takes. Who is killed keeps the others out for no longer.
const TTL: Duration = Duration::from_secs(10);
/// As `EX_UNAVAILABLE` of sysexits.h.
const NO_QUORUM: u8 = 69;

type Outcome<T> = Result<T, Box<dyn error::Error + Send + Sync>>;

/// Reports on a shared catalogue while others reload it, and checks that nobody sees one half-written
///
/// Without --redis there are three throw-away nodes if redis-server is on the PATH, else one process
/// with locks inside it.
///
/// The exit status is 0 if no report was about a half-written catalogue and every reload counted, 69 if
/// no quorum of the nodes was reachable, 2 for bad usage, else 1.
#[derive(Parser)]
#[command(name = "readers_writer", verbatim_doc_comment)]
struct Cli {
    /// Processes that share the catalogue
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=32), default_value_t = 3)]
    processes: u16,
    /// Threads in each process that report on it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64), default_value_t = 4)]
    reporters: u16,
    /// How often each process reloads it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000), default_value_t = 10)]
    reloads: u64,
    /// How long a reloader waits for the next delivery
    #[arg(long, value_name = "TIME", default_value = "50ms")]
    every: humantime::Duration,
    /// The nodes
    #[arg(long, value_name = "URL,URL,…", value_delimiter = ',')]
    redis: Vec<String>,
    /// Do the same without any lock, and see
    #[arg(long)]
    without_locks: bool,
    /// Be one of the processes, for the catalogue in this file
    #[arg(long, hide = true)]
    catalogue: Option<PathBuf>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let ended = match &cli.catalogue {
        Some(path) => process(&cli, path).map(|counts| {
            println!("{}", counts.to_line());
            ExitCode::SUCCESS
        }),
        None => parent(&cli),
    };
    ended.unwrap_or_else(|error| {
        eprintln!("readers_writer: {error}");
        let lock: Option<&redguard::Error> = error.downcast_ref();
        let process: Option<&ProcessEnded> = error.downcast_ref();
        let no_quorum = lock.is_some_and(redguard::Error::is_unavailable)
            || process.is_some_and(|process| process.0.code() == Some(NO_QUORUM.into()));
        match no_quorum {
            true => ExitCode::from(NO_QUORUM),
            false => ExitCode::FAILURE,
        }
    })
}

/// What a process has to tell at its end.
#[derive(Default)]
struct Counts {
    reports: usize,
    half_written: usize,
    /// Reloads that did not find after their downgrade what they had written.
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

/// Starts the nodes and the processes, and sums up.
fn parent(cli: &Cli) -> Outcome<ExitCode> {
    let mut nodes = Vec::new();
    let mut urls = cli.redis.clone();
    let mut processes = cli.processes;
    if urls.is_empty() && servers::available() {
        nodes = (0..3).map(|_| Server::start()).collect::<io::Result<_>>()?;
        urls = nodes.iter().map(Server::url).collect();
    } else if urls.is_empty() {
        eprintln!("no --redis and no redis-server: one process, with locks inside it");
        processes = 1;
    }
    let dir = tempfile::tempdir()?;
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

    let wanted = u64::from(processes) * cli.reloads;
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
    println!("{}", if good { "all is well" } else { "NOT WELL" });
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// One of the processes failed, and has said why.
#[derive(Debug, thiserror::Error)]
#[error("a process ended with {0}")]
struct ProcessEnded(ExitStatus);

/// This program once more; killed if it is dropped before its end.
struct Process(Child);

impl Process {
    fn start(cli: &Cli, urls: &[String], path: &Path) -> io::Result<Process> {
        let mut command = Command::new(env::current_exe()?);
        command.arg("--catalogue").arg(path);
        command.args(["--reporters", &cli.reporters.to_string()]);
        command.args(["--reloads", &cli.reloads.to_string()]);
        command.args(["--every", &cli.every.to_string()]);
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
        // Both fail where it has ended and been waited for.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// What each process does: its reporters go on until its reloader is done.
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
        let overtaken = shop.reload(cli.reloads, *cli.every);
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
        nodes.shutdown(Duration::from_secs(1));
    }
    Ok(Counts {
        most_at_once: shop.most.into_inner(),
        ..counts?
    })
}

/// What the threads of a process share.
struct Shop<'a> {
    locker: &'a dyn RwLocker,
    locked: bool,
    path: &'a Path,
    closed: AtomicBool,
    reporting: AtomicUsize,
    most: AtomicUsize,
}

impl Shop<'_> {
    /// A reporter. Answers how many reports it made, and how many catalogues were half-written.
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
            // What was read counts only if the lock was held to the end.
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

    /// The reloader. Answers how often another came between what it wrote and what it read.
    fn reload(&self, reloads: u64, every: Duration) -> Outcome<usize> {
        let mut overtaken = 0;
        for _ in 0..reloads {
            thread::park_timeout(every);
            let guard = match self.locked {
                true => Some(self.locker.write(NAME, TTL)?),
                false => None,
            };
            // Only without locks, or after one that died half-way, there is nothing to go on from.
            let catalogue = Catalogue::load(self.path)?
                .unwrap_or_else(Catalogue::first)
                .next();
            catalogue.store(self.path, || {
                guard.as_ref().map_or(Ok(()), |guard| guard.check())?;
                thread::yield_now(); // as a slow disk would
                Outcome::Ok(())
            })?;
            // Others may read now, but nobody writes before we have read, too.
            let guard = guard.map(|guard| guard.downgrade()).transpose()?;
            if Catalogue::load(self.path)?.as_ref() != Some(&catalogue) {
                overtaken += 1;
            }
            // Where too few nodes answered in time it ends by its TTL.
            match guard.map_or(Ok(()), |guard| guard.release()) {
                Err(error) if !error.is_unavailable() => return Err(error.into()),
                _ => {}
            }
        }
        Ok(overtaken)
    }
}
