//! Notes lines, bytes and CRC-32 of every file of a tree, each file once a night, however many copies of it run.
//!
//! `cargo run --release --example nightly_batch -- [--copies N] [--threads N] [--redis URL,URL,…] [--out FILE] [DIR]`
//!
//! The first process (this file) starts the nodes, unless it is given some, and the copies (`copy.rs`), shows how far they
//! are, and reads the report back at the end. The copies share nothing but the tree, the report and the locks: a row is
//! written under the lock of its file, and only if the report, read under that lock, has none of this night.
//!
//! What no lock can promise is not promised here: a copy that stands still for longer than `--ttl` exactly between its last
//! look at the lock and its write may write a row twice. The end of the program would say so.
#![expect(clippy::print_stdout, reason = "an example is there to be read")]

#[path = "nightly_batch/copy.rs"]
mod copy;
#[path = "nightly_batch/disturb.rs"]
mod disturb;
#[path = "nightly_batch/report.rs"]
mod report;
#[path = "common/servers.rs"]
mod servers;

use clap::{CommandFactory, Parser, error::ErrorKind};
use copy::Counts;
use disturb::{Disturb, Disturbance};
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

const TICK: Duration = Duration::from_millis(20);
/// How long the copies may take to end after Ctrl-C, before they are killed.
const GRACE: Duration = Duration::from_secs(3);
/// As `EX_UNAVAILABLE` of sysexits.h.
const NO_QUORUM: u8 = 69;

type Outcome<T> = Result<T, Box<dyn error::Error + Send + Sync>>;

/// Notes lines, bytes and CRC-32 of every file of a tree, each once a night, by any number of copies
///
/// Each copy has threads which take files in an order of their own, each file under the lock of its
/// path, and append a row to the report. Programs that share a report need the same nodes: give them
/// the same --redis or REDIS_URLS. Without either there are three throw-away nodes if redis-server is
/// on the PATH, else one copy with locks inside its process.
///
/// The exit status is 0 if in the end each file has exactly one row, 69 if rows are missing because no
/// quorum of the nodes was reachable, 130 after Ctrl-C, 2 for bad usage, else 1.
#[derive(Parser)]
#[command(name = "nightly_batch", verbatim_doc_comment)]
struct Cli {
    /// Processes that share the tree [default: 2, without Redis 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    copies: Option<u16>,
    /// Threads in each copy
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256), default_value_t = 4)]
    threads: u16,
    /// The nodes; in REDIS_URLS they are not seen by others who list processes
    #[arg(long, value_name = "URL,URL,…", value_delimiter = ',')]
    redis: Vec<String>,
    /// The report, appended to: files with a row of this night in it are done [default: a new file]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// What the report calls this night [default: the date in UTC]
    #[arg(long, value_name = "NAME", value_parser = night_name)]
    night: Option<String>,
    /// How long the lock of a copy that was killed keeps others from its file
    #[arg(long, value_name = "TIME", default_value = "10s")]
    ttl: humantime::Duration,
    /// Do this to a throw-away node when a quarter of the rows are written
    #[arg(long, value_enum, value_name = "HOW")]
    disturb: Option<Disturb>,
    /// Be one of the copies. The end of standard input means: stop
    #[arg(long, hide = true)]
    copy: bool,
    /// The tree
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
    let mut cli = Cli::parse();
    if let (true, Ok(urls)) = (cli.redis.is_empty(), env::var("REDIS_URLS")) {
        cli.redis = urls.split(',').map(str::to_owned).collect();
    }
    cli.redis.retain(|url| !url.trim().is_empty());
    let ended = match cli.copy {
        true => copy::run(&cli).map(|()| ExitCode::SUCCESS),
        false => first(&cli),
    };
    ended.unwrap_or_else(|error| {
        eprintln!("nightly_batch: {error}");
        let lock: Option<&redguard::Error> = error.downcast_ref();
        match lock.is_some_and(redguard::Error::is_unavailable) {
            true => ExitCode::from(NO_QUORUM),
            false => ExitCode::FAILURE,
        }
    })
}

/// What the first process does.
fn first(cli: &Cli) -> Outcome<ExitCode> {
    let misuse = |text| {
        Cli::command()
            .error(ErrorKind::ArgumentConflict, text)
            .exit()
    };
    let own = cli.redis.is_empty() && servers::available();
    let local = cli.redis.is_empty() && !own;
    if local && cli.copies.is_some_and(|copies| copies > 1) {
        misuse("--copies above 1 need Redis: give --redis or REDIS_URLS, or install redis-server");
    }
    if !own && cli.disturb.is_some() {
        misuse(
            "--disturb is for throw-away nodes: with redis-server, without --redis and REDIS_URLS",
        );
    }
    // Set before there is anything to tidy up. Those who own the copies and the nodes tidy up, also after a panic.
    let (events, inbox) = mpsc::channel();
    let interrupts = events.clone();
    ctrlc::set_handler(move || _ = interrupts.send(Event::Interrupted))?;

    let mut nodes = Vec::new();
    let mut urls = cli.redis.clone();
    if own {
        // Synced before each reply: a node that is killed comes back with all that it had granted.
        let start = |_| Server::options().append_always().start();
        nodes = (0..3).map(start).collect::<io::Result<_>>()?;
        urls = nodes.iter().map(Server::url).collect();
        println!(
            "nodes            three throw-away ones: {}",
            urls.join(", ")
        );
    } else if local {
        println!("nodes            no --redis and no redis-server: in-process locks, one copy");
    } else {
        println!("nodes            {}, as given", urls.len());
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
        no_quorum: false,
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
    /// The copy of this number is at its end; what it wrote to standard output and to standard error.
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
    /// A set, for all copies meet the same outage and the same files that cannot be read.
    complaints: BTreeSet<String>,
    no_quorum: bool,
    interrupted: bool,
}

impl Run<'_> {
    /// Runs the copies and shows how far they are. Blocks until all have ended, and says how long that took.
    fn supervise(&mut self, events: Sender<Event>, inbox: &Receiver<Event>) -> Outcome<Duration> {
        self.report.end_torn_line()?;
        // The report may have rows of other trees too. What grows from here on is taken for ours.
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
                    // Standard output is one line, which its pipe holds until the other one has been read.
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
                        // The end of their input is what makes copies stop after the file at hand.
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
        self.no_quorum |= status.code() == Some(NO_QUORUM.into());
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

    /// Reads the report anew, prints what it says about this night, and makes the exit status of it.
    fn read_back(&self, took: Duration) -> Outcome<ExitCode> {
        let report = Report::open(&self.out, &self.report.night)?;
        let seen = report.catch_up()?;
        let (mut rows, mut duplicates, mut missing) = (0, 0, 0);
        for file in &self.files {
            match seen.rows.get(&file.id) {
                Some(&n) => (rows, duplicates) = (rows + n, duplicates + n - 1),
                // A file that was deleted meanwhile is not missed.
                None => missing += u32::from(file.path.symlink_metadata().is_ok()),
            }
        }
        println!("files            {}", self.files.len());
        println!("rows             {rows}, {} of them new", self.sum.rows);
        println!("duplicates       {duplicates}");
        println!("missing          {missing}");
        println!(
            "locks taken      {}, {} lost",
            self.sum.taken, self.sum.lost
        );
        println!("contended tries  {}", self.sum.contended);
        println!("time             {:.2} s", took.as_secs_f64());
        if let (false, Some(disturbance)) = (self.interrupted, &self.disturbance) {
            println!("disturbed        {}", disturbance.done()?);
        }
        Ok(match (duplicates, missing) {
            _ if self.interrupted => ExitCode::from(130),
            (0, 0) => ExitCode::SUCCESS,
            (0, _) if self.no_quorum => ExitCode::from(NO_QUORUM),
            _ => ExitCode::FAILURE,
        })
    }
}

/// A copy. It ends with this value, also by a panic; and when this program is killed, with its input.
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
            // Ctrl-C at the terminal is for the first process, which lets the copies finish what they have in hand.
            .process_group(0)
            .spawn()?;
        Ok(Process(child))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Neither does anything to one that was waited for.
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
