//! Reports lines, bytes and CRC-32 of every file of a tree, each file once a night, from several
//! processes.
//!
//! `cargo run --release --example nightly_batch [-- [--kill-a-node] [--copies N] [--threads N]
//! [--redis URL,URL,…] [DIR]]`
//!
//! The first process (this file) starts temporary nodes unless it is given some, starts the copies
//! (`worker.rs`), shows their progress and reads the report at the end. The copies share only the
//! tree, the report and the locks. A copy writes a row under the lock of its file, and only if the
//! report, read under that lock, has no row of this night.
//!
//! With `--kill-a-node` a node is killed, one hangs, and a copy is killed with its locks in hand
//! (`fault.rs`).
//!
//! No lock can prevent one case: a copy that pauses for longer than `--ttl` between its last check
//! of the lock and its write may write a second row. The final report counts it as a duplicate.
#![expect(clippy::print_stdout, reason = "an example is there to be read")]

#[path = "nightly_batch/cli.rs"]
mod cli;
#[path = "nightly_batch/counts.rs"]
mod counts;
#[path = "nightly_batch/fault.rs"]
mod fault;
#[path = "nightly_batch/process.rs"]
mod process;
#[path = "nightly_batch/progress.rs"]
mod progress;
#[path = "nightly_batch/report.rs"]
mod report;
#[path = "nightly_batch/summary.rs"]
mod summary;
#[path = "nightly_batch/worker.rs"]
mod worker;

use cli::Cli;
use fault::Faults;
use process::Process;
use progress::Progress;
use redguard_examples::{args, exit_status};
use redguard_servers::Server;
use redguard_servers::temp_dir::TempDir;
use report::{Entry, Report};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, SystemTime};
use std::{env, error, io, thread};
use summary::Summary;

const TICK: Duration = Duration::from_millis(20);
/// Time between Ctrl-C and the kill of copies that are still running.
const GRACE: Duration = Duration::from_secs(3);

type Outcome<T> = Result<T, Box<dyn error::Error + Send + Sync>>;

fn main() -> ExitCode {
    let mut cli = args::parse(cli::NAME, cli::HELP, Cli::read);
    if let (true, Ok(urls)) = (cli.redis.is_empty(), env::var("REDIS_URLS")) {
        cli.redis = args::split_addresses(&urls);
    }
    let ended = match cli.copy {
        true => worker::run(&cli).map(|()| ExitCode::SUCCESS),
        false => first(&cli),
    };
    ended.unwrap_or_else(|error| exit_status::fail(cli::NAME, &*error))
}

/// Runs the first process.
fn first(cli: &Cli) -> Outcome<ExitCode> {
    let own = cli.redis.is_empty() && redguard_servers::available();
    cli.check_nodes(own);
    // Before the copies and nodes start, so that Ctrl-C always ends in their destructors.
    let (events, inbox) = mpsc::channel();
    let interrupts = events.clone();
    ctrlc::set_handler(move || _ = interrupts.send(Event::Interrupted))?;

    let mut nodes = Vec::new();
    if own {
        // Synced before each reply, so that a killed node restarts with all that it granted.
        let start = |_| Server::options().append_always().start();
        nodes = (0..3).map(start).collect::<io::Result<_>>()?;
    }
    let night = match &cli.night {
        Some(night) => night.clone(),
        None => humantime::format_rfc3339(SystemTime::now()).to_string()[..10].to_owned(),
    };
    let out = match &cli.out {
        Some(out) => out.clone(),
        None => TempDir::create("nightly-")?.keep().join("report.tsv"),
    };
    let report = Report::open(&out, &night)?;
    let out = out.canonicalize()?;
    let mut run = Run {
        cli,
        urls: match own {
            true => nodes.iter().map(Server::url).collect(),
            false => cli.redis.clone(),
        },
        copies: cli.copies(own),
        files: report::list(&cli.dir, &out)?,
        report,
        out,
        done_before: 0,
        faults: Faults::default(),
        summary: Summary::default(),
        complaints: BTreeSet::new(),
        failed: None,
        interrupted: false,
    };
    if cli.kill_a_node {
        run.faults = Faults::of(&nodes, run.files.len());
    }
    run.announce(own);
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
    /// Number of rows that the report had of this night and these files.
    done_before: u32,
    faults: Faults<'a>,
    summary: Summary,
    /// A set, because all copies report the same outage and the same unreadable files.
    complaints: BTreeSet<String>,
    /// Exit status of the first copy that failed.
    failed: Option<u8>,
    interrupted: bool,
}

impl Run<'_> {
    fn announce(&self, own: bool) {
        let nodes = match (own, self.urls.len()) {
            (true, n) => format!("{n} temporary ones: {}", self.urls.join(", ")),
            (false, 0) => "none: in-process locks, one copy".to_owned(),
            (false, n) => format!("{n} given"),
        };
        println!("nodes    {nodes}");
        println!(
            "copies   {}, of {} threads each, for {} files",
            self.copies,
            self.cli.threads,
            self.files.len()
        );
        println!("report   {}", self.out.display());
    }

    /// Runs the copies and shows their progress. Blocks until all have ended; returns how long that
    /// took.
    fn supervise(&mut self, events: Sender<Event>, inbox: &Receiver<Event>) -> Outcome<Duration> {
        self.report.end_torn_line()?;
        // The report may have rows of other trees; new rows count as rows of this tree.
        let foreign = {
            let seen = self.report.catch_up()?;
            let rows = |file: &Entry| seen.rows.get(&file.id).copied();
            let ours: Vec<u32> = self.files.iter().filter_map(rows).collect();
            self.done_before = ours.iter().sum();
            seen.rows.len() - ours.len()
        };
        let mut progress = Progress::start(self.files.len());
        thread::scope(|scope| {
            let mut copies = Vec::new();
            for number in 0..self.copies {
                let mut copy = Process::start(self)?;
                let output = copy.take_output();
                copies.push(copy);
                let events = events.clone();
                scope.spawn(move || {
                    let (said, complained) = output.read();
                    _ = events.send(Event::Ended(number, said, complained));
                });
            }
            let mut running = copies.len();
            let mut end = Duration::MAX;
            while running > 0 && progress.elapsed() < end {
                match inbox.recv_timeout(TICK) {
                    Ok(Event::Ended(number, said, complained)) => {
                        running -= 1;
                        self.note(number, &mut copies[number], &said, &complained)?;
                    }
                    Ok(Event::Interrupted) => {
                        self.interrupted = true;
                        end = end.min(progress.elapsed() + GRACE);
                        copies.iter_mut().for_each(Process::ask_to_stop);
                    }
                    Err(_) => {}
                }
                let rows = self.report.catch_up()?.rows.len() - foreign;
                for line in self.faults.step(rows, &mut copies)? {
                    progress.tell(&line);
                }
                progress.show(rows, self.faults.nodes_down());
            }
            Ok(progress.end())
        })
    }

    /// Takes what a copy that has ended wrote.
    fn note(
        &mut self,
        number: usize,
        copy: &mut Process,
        said: &str,
        complained: &str,
    ) -> io::Result<()> {
        let status = copy.wait()?;
        let is_ours = self.faults.killed_copy() == Some(number);
        self.failed = self.failed.or(status
            .code()
            .and_then(|code| u8::try_from(code).ok())
            .filter(|code| *code != 0));
        if !self.summary.add(number, said) && complained.is_empty() && !is_ours {
            let ended = format!("{}: copy {} ended early: {status}", cli::NAME, number + 1);
            self.complaints.insert(ended);
        }
        self.complaints
            .extend(complained.lines().map(str::to_owned));
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
        print!("{}", self.summary.table(self.copies));
        println!(
            "files {}, rows {rows} ({} of them new), duplicates {duplicates}, missing {missing}, {:.2} s",
            self.files.len(),
            rows - self.done_before,
            took.as_secs_f64()
        );
        if !self.interrupted {
            self.faults.check_done()?;
        }
        let verdict = match (duplicates, missing) {
            (0, 0) => "every file was done once",
            _ => "NOT every file was done once",
        };
        println!("{verdict}{}", self.faults.conclusion());
        Ok(match (duplicates, missing) {
            _ if self.interrupted => ExitCode::from(130),
            (0, 0) => ExitCode::SUCCESS,
            (0, _) => self.failed.map_or(ExitCode::FAILURE, ExitCode::from),
            _ => ExitCode::FAILURE,
        })
    }
}
