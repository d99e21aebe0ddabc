//! Reports lines, bytes and CRC-32 of every file of a tree, each file once a night, from several processes.
//!
//! `cargo run --release --example nightly_batch -- [--copies N] [--threads N] [--redis URL,URL,…] [--out FILE] [DIR]`
//!
//! The first process (this file) starts temporary nodes unless it is given some, starts the copies
//! (`worker.rs`), shows their progress and reads the report at the end. The copies share only the tree, the
//! report and the locks. A copy writes a row under the lock of its file, and only if the report, read under
//! that lock, has no row of this night.
//!
//! No lock can prevent one case: a copy that pauses for longer than `--ttl` between its last check of the
//! lock and its write may write a second row. The final report counts it as a duplicate.
#![expect(clippy::print_stdout, reason = "an example is there to be read")]

#[path = "common/exit_status.rs"]
mod exit_status;
#[path = "nightly_batch/fault.rs"]
mod fault;
#[path = "nightly_batch/report.rs"]
mod report;
#[path = "common/servers.rs"]
mod servers;
#[path = "nightly_batch/worker.rs"]
mod worker;

use clap::{CommandFactory, Parser, error::ErrorKind};
use fault::{Disturb, Disturbance};
use indicatif::{ProgressBar, ProgressStyle};
use report::{Entry, Report};
use servers::Server;
use std::collections::BTreeSet;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, SystemTime};
use std::{env, error, thread};
use worker::Counts;

const TICK: Duration = Duration::from_millis(20);
/// Time between Ctrl-C and the kill of copies that are still running.
const GRACE: Duration = Duration::from_secs(3);

type Outcome<T> = Result<T, Box<dyn error::Error + Send + Sync>>;

/// Reports lines, bytes and CRC-32 of every file of a tree, each once a night, with any number of copies
///
/// Each thread of a copy reads the files in random order, each file under the lock of its path, and
/// appends a row to the report. Programs that share a report need the same nodes in --redis or
/// REDIS_URLS. Without either, the program starts three temporary nodes if redis-server is on the PATH,
/// else one copy with in-process locks.
///
/// Exit status: 0 if each file has exactly one row, 1 if rows are missing or duplicated, 64 for bad
/// usage, 69 if rows are missing because no quorum of the nodes answered, 77 because they deny access,
/// 70 because of another failure, 130 after Ctrl-C.
#[derive(Parser)]
#[command(name = "nightly_batch", verbatim_doc_comment)]
struct Cli {
    /// Processes that share the tree [default: 2, without Redis 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    copies: Option<u16>,
    /// Threads in each copy
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256), default_value_t = 4)]
    threads: u16,
    /// Addresses of the nodes; process lists show them, unlike those in REDIS_URLS
    #[arg(long, value_name = "URL,URL,…", value_delimiter = ',')]
    redis: Vec<String>,
    /// Report to append to; files with a row of this night are done [default: a new file]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Name of this night in the report [default: the date in UTC]
    #[arg(long, value_name = "NAME", value_parser = night_name)]
    night: Option<String>,
    /// TTL of the locks: how long the lock of a killed copy blocks other copies
    #[arg(long, value_name = "TIME", default_value = "10s")]
    ttl: humantime::Duration,
    /// Fault of a temporary node after a quarter of the rows
    #[arg(long, value_enum, value_name = "HOW")]
    disturb: Option<Disturb>,
    /// Run as one of the copies; the end of standard input stops it
    #[arg(long, hide = true)]
    copy: bool,
    /// Root of the tree
    #[arg(default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/src"))]
    dir: PathBuf,
}

fn night_name(text: &str) -> Result<String, &'static str> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    match (1..=64).contains(&text.len()) && text.chars().all(fits) {
        true => Ok(text.to_owned()),
        false => Err("1 to 64 letters, digits, '-', '_' and '.'"),
    }
}

fn main() -> ExitCode {
    let mut cli: Cli = exit_status::parse();
    if let (true, Ok(urls)) = (cli.redis.is_empty(), env::var("REDIS_URLS")) {
        cli.redis = urls.split(',').map(str::to_owned).collect();
    }
    cli.redis.retain(|url| !url.trim().is_empty());
    let ended = match cli.copy {
        true => worker::run(&cli).map(|()| ExitCode::SUCCESS),
        false => first(&cli),
    };
    ended.unwrap_or_else(|error| {
        eprintln!("nightly_batch: {error}");
        ExitCode::from(exit_status::exit_status(&*error))
    })
}

/// Runs the first process.
#[expect(
    clippy::too_many_lines,
    reason = "the whole batch, from the servers to the report, in its order"
)]
fn first(cli: &Cli) -> Outcome<ExitCode> {
    let misuse = |text| {
        let error = Cli::command().error(ErrorKind::ArgumentConflict, text);
        exit_status::end_with(&error)
    };
    let own = cli.redis.is_empty() && servers::available();
    let local = cli.redis.is_empty() && !own;
    if local && cli.copies.is_some_and(|copies| copies > 1) {
        misuse(
            "more than one copy needs Redis: give --redis or REDIS_URLS, or install redis-server",
        );
    }
    if !own && cli.disturb.is_some() {
        misuse(
            "--disturb needs temporary nodes: install redis-server, and omit --redis and REDIS_URLS",
        );
    }
    // Before the copies and nodes start, so that Ctrl-C always ends in their destructors.
    let (events, inbox) = mpsc::channel();
    let interrupts = events.clone();
    ctrlc::set_handler(move || _ = interrupts.send(Event::Interrupted))?;

    let mut nodes = Vec::new();
    let mut urls = cli.redis.clone();
    if own {
        // Synced before each reply, so that a killed node restarts with all that it granted.
        let start = |_| Server::options().append_always().start();
        nodes = (0..3).map(start).collect::<io::Result<_>>()?;
        urls = nodes.iter().map(Server::url).collect();
        println!("nodes            three temporary ones: {}", urls.join(", "));
    } else if local {
        println!("nodes            no --redis and no redis-server: in-process locks, one copy");
    } else {
        println!("nodes            {} given", urls.len());
    }
    let out = match &cli.out {
        Some(out) => out.clone(),
        None => {
            let dir = tempfile::Builder::new().prefix("nightly-").tempdir()?;
            dir.keep().join("report.tsv")
        }
    };
    let night = match &cli.night {
        Some(night) => night.clone(),
        None => humantime::format_rfc3339(SystemTime::now()).to_string()[..10].to_owned(),
    };
    let report = Report::open(&out, &night)?;
    let out = out.canonicalize()?;
    let mut run = Run {
        cli,
        urls,
        copies: cli.copies.unwrap_or(if local { 1 } else { 2 }).into(),
        files: report::list(&cli.dir, &out)?,
        report,
        out,
        disturbance: None,
        sum: Counts::default(),
        complaints: BTreeSet::new(),
        failed: None,
        interrupted: false,
    };
    if let Some(how) = cli.disturb {
        run.disturbance = Some(Disturbance::new(how, &nodes[0], run.files.len()));
    }
    println!(
        "copies           {}, of {} threads each",
        run.copies, cli.threads
    );
    println!("report           {}", run.out.display());
    let took = run.supervise(events, &inbox)?;
    for line in &run.complaints {
        eprintln!("{line}");
    }
    run.read_back(took)
}

enum Event {
    /// The number of a copy that has ended, its standard output and its standard error.
    Ended(usize, String, String),
    Interrupted,
}

struct Run<'a> {
    cli: &'a Cli,
    urls: Vec<String>,
    copies: usize,
    out: PathBuf,
    report: Report,
    files: Vec<Entry>,
    disturbance: Option<Disturbance<'a>>,
    sum: Counts,
    /// A set, because all copies report the same outage and the same unreadable files.
    complaints: BTreeSet<String>,
    /// Exit status of the first copy that failed.
    failed: Option<u8>,
    interrupted: bool,
}

impl Run<'_> {
    /// Runs the copies and shows their progress. Blocks until all have ended; returns how long that took.
    fn supervise(&mut self, events: Sender<Event>, inbox: &Receiver<Event>) -> Outcome<Duration> {
        self.report.end_torn_line()?;
        // The report may have rows of other trees; new rows count as rows of this tree.
        let foreign = {
            let seen = self.report.catch_up()?;
            let ours = |file: &&Entry| seen.rows.contains_key(&file.id);
            seen.rows.len() - self.files.iter().filter(ours).count()
        };
        let style = ProgressStyle::with_template("{bar:40} {pos}/{len} files, {elapsed}")?;
        let bar = ProgressBar::new(self.files.len() as u64).with_style(style);
        thread::scope(|scope| {
            let mut copies = Vec::new();
            for number in 0..self.copies {
                let mut copy = Process::start(self)?;
                let (said, complained) = (copy.0.stdout.take(), copy.0.stderr.take());
                copies.push(copy);
                let events = events.clone();
                scope.spawn(move || {
                    // Standard output is one line, which fits into its pipe while standard error is read.
                    let (complained, said) = (read_all(complained), read_all(said));
                    _ = events.send(Event::Ended(number, said, complained));
                });
            }
            let mut running = copies.len();
            let mut end = Duration::MAX;
            while running > 0 && bar.elapsed() < end {
                match inbox.recv_timeout(TICK) {
                    Ok(Event::Ended(number, said, complained)) => {
                        running -= 1;
                        self.note(number, &mut copies[number], &said, &complained)?;
                    }
                    Ok(Event::Interrupted) => {
                        self.interrupted = true;
                        end = end.min(bar.elapsed() + GRACE);
                        // The end of its standard input stops a copy after the current file.
                        copies.iter_mut().for_each(|copy| drop(copy.0.stdin.take()));
                    }
                    Err(_) => {}
                }
                let rows = self.report.catch_up()?.rows.len() - foreign;
                bar.set_position(rows as u64);
                if let Some(disturbance) = &mut self.disturbance {
                    disturbance.step(rows, bar.elapsed())?;
                }
            }
            let took = bar.elapsed();
            bar.finish_and_clear();
            Ok(took)
        })
    }

    fn note(
        &mut self,
        number: usize,
        copy: &mut Process,
        said: &str,
        complained: &str,
    ) -> io::Result<()> {
        let status = copy.0.wait()?;
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        self.failed = self.failed.or(code.filter(|code| *code != 0));
        if let Some(counts) = Counts::parse(said) {
            self.sum += counts;
        } else if complained.is_empty() {
            let killed = format!("nightly_batch: copy {number} ended early: {status}");
            self.complaints.insert(killed);
        }
        let lines = complained.lines().map(str::to_owned);
        self.complaints.extend(lines);
        Ok(())
    }

    /// Reads the report again, prints its figures of this night, and returns the exit status.
    fn read_back(&self, took: Duration) -> Outcome<ExitCode> {
        let report = Report::open(&self.out, &self.report.night)?;
        let seen = report.catch_up()?;
        let (mut rows, mut duplicates, mut missing) = (0, 0, 0);
        for file in &self.files {
            match seen.rows.get(&file.id) {
                Some(&n) => (rows, duplicates) = (rows + n, duplicates + n - 1),
                // A file that was deleted meanwhile is not missing.
                None => missing += u32::from(file.path.symlink_metadata().is_ok()),
            }
        }
        println!("files            {}", self.files.len());
        println!("rows             {rows}, {} of them new", self.sum.rows);
        println!("duplicates       {duplicates}");
        println!("missing          {missing}");
        println!(
            "locks acquired   {}, {} lost",
            self.sum.acquired, self.sum.lost
        );
        println!("contended tries  {}", self.sum.contended);
        println!("time             {:.2} s", took.as_secs_f64());
        if let (false, Some(disturbance)) = (self.interrupted, &self.disturbance) {
            println!("disturbed        {}", disturbance.done()?);
        }
        Ok(match (duplicates, missing) {
            _ if self.interrupted => ExitCode::from(130),
            (0, 0) => ExitCode::SUCCESS,
            (0, _) => self.failed.map_or(ExitCode::FAILURE, ExitCode::from),
            _ => ExitCode::FAILURE,
        })
    }
}

/// Process of a copy; killed on drop. It also ends with its standard input, if this program is killed.
struct Process(Child);

impl Process {
    fn start(run: &Run) -> io::Result<Process> {
        let child = Command::new(env::current_exe()?)
            .args(["--copy", "--night", &run.report.night])
            .args(["--threads", &run.cli.threads.to_string()])
            .args(["--ttl", &run.cli.ttl.to_string(), "--out"])
            .args([&run.out, Path::new("--"), &run.cli.dir])
            .env("REDIS_URLS", run.urls.join(","))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C reaches only the first process, which lets the copies finish their current files.
            .process_group(0)
            .spawn()?;
        Ok(Process(child))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail for a process that has ended, which is the usual case.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

fn read_all(pipe: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        _ = pipe.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
