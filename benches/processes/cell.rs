//! One cell: a number of processes on a number of nodes, for a while.

use std::env;
use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;

use crate::Result;
use redguard_servers::Server;

/// What the processes of a cell reached together.
pub(crate) struct Cell {
    runs_per_second: f64,
    /// The waits for the lock, sorted.
    waits: Vec<Duration>,
    fewest: usize,
    most: usize,
    /// Requests on each node for a run; `NaN` without nodes.
    requests: f64,
}

impl Cell {
    pub(crate) fn measure(processes: usize, servers: &[Server], time: Duration) -> Result<Cell> {
        let file = NamedTempFile::new()?;
        let work = match servers {
            [] => format!("flock:{}", file.path().display()),
            servers => {
                let nodes: Vec<String> = servers.iter().map(|s| s.addr().to_string()).collect();
                nodes.join(",")
            }
        };
        let started = (0..processes).map(|_| Process::start(&work));
        let mut workers: Vec<Process> = started.collect::<Result<_>>()?;
        workers.iter_mut().try_for_each(Process::wait_until_ready)?;
        let before = requests(servers)?;
        let began = Instant::now();
        for worker in &mut workers {
            worker.begin(time)?;
        }
        let waits = workers.iter_mut().map(Process::waits);
        let each: Vec<Vec<Duration>> = waits.collect::<Result<_>>()?;
        let took = began.elapsed();
        let after = requests(servers)?;
        let counts = || each.iter().map(Vec::len);
        let (fewest, most) = (counts().min(), counts().max());
        let runs = counts().sum::<usize>() as f64;
        let mut waits: Vec<Duration> = each.iter().flatten().copied().collect();
        waits.sort_unstable();
        Ok(Cell {
            runs_per_second: runs / took.as_secs_f64(),
            waits,
            fewest: fewest.unwrap_or_default(),
            most: most.unwrap_or_default(),
            requests: (after - before) / runs / servers.len() as f64,
        })
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last = self.waits.len().saturating_sub(1);
        let at = |percent: usize| {
            let wait = self.waits.get(last * percent / 100);
            wait.map_or(f64::NAN, |wait| wait.as_secs_f64() * 1e3)
        };
        write!(
            f,
            "{:>8.1}{:>9.0}{:>9.0}{:>9.0}{:>8}{:>8}{:>20.1}",
            self.runs_per_second,
            at(50),
            at(99),
            at(100),
            self.fewest,
            self.most,
            self.requests,
        )
    }
}

/// The commands that a process sends; the others run inside scripts.
const REQUESTS: [&str; 6] = ["set", "pttl", "evalsha", "subscribe", "unsubscribe", "ping"];

/// Returns the number of requests that all servers have processed together.
fn requests(servers: &[Server]) -> Result<f64> {
    let mut sum = 0.0;
    for server in servers {
        let mut connection = redis::Client::open(server.url())?.get_connection()?;
        let mut info = redis::cmd("INFO");
        let info: String = info.arg("commandstats").query(&mut connection)?;
        for line in info.lines() {
            let Some((name, stats)) = line.split_once(":calls=") else {
                continue;
            };
            let (calls, _) = stats.split_once(',').unwrap_or((stats, ""));
            let name = name.trim_start_matches("cmdstat_");
            if REQUESTS.contains(&name) {
                sum += calls.parse::<f64>()?;
            }
        }
    }
    Ok(sum)
}

/// A copy of this program that works. It is killed on drop.
struct Process {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Process {
    fn start(work: &str) -> Result<Process> {
        let mut child = Command::new(env::current_exe()?)
            .args(["--work", work])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().ok_or("no output")?;
        Ok(Process {
            child,
            output: BufReader::new(output),
        })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        match self.line()?.trim() {
            "ready" => Ok(()),
            other => Err(format!("a process said {other:?} instead of ready").into()),
        }
    }

    fn begin(&mut self, time: Duration) -> Result<()> {
        let input = self.child.stdin.as_mut().ok_or("no input")?;
        Ok(writeln!(input, "{}", time.as_millis())?)
    }

    fn waits(&mut self) -> Result<Vec<Duration>> {
        let line = self.line()?;
        let waits = line.split_whitespace();
        waits
            .map(|wait| Ok(Duration::from_micros(wait.parse()?)))
            .collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only for a process that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
