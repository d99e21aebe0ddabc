//! One cell: a number of processes with one lock, for a while.

use std::time::{Duration, Instant};

use crate::Result;
use crate::process::Process;
use crate::side::Place;
use redguard_servers::Server;

/// What the processes of a cell reached together.
pub(crate) struct Cell {
    pub(crate) runs_per_second: f64,
    /// The waits for the lock, sorted.
    waits: Vec<Duration>,
    pub(crate) fewest: usize,
    pub(crate) most: usize,
    /// Mean number of runs of a process.
    mean: f64,
    /// Requests for a run on the node that has most of them; `None` without nodes.
    pub(crate) requests: Option<f64>,
}

impl Cell {
    pub(crate) fn measure(processes: usize, place: &Place, time: Duration) -> Result<Cell> {
        let (work, servers) = (place.work(), place.servers());
        let started = (0..processes).map(|_| Process::start(&work));
        let mut workers: Vec<Process> = started.collect::<Result<_>>()?;
        workers.iter_mut().try_for_each(Process::wait_until_ready)?;
        let before = requests(servers)?;
        let began = Instant::now();
        for worker in &mut workers {
            worker.begin(time)?;
        }
        let waits = workers.iter_mut().map(|worker| worker.waits(time));
        let each: Vec<Vec<Duration>> = waits.collect::<Result<_>>()?;
        let took = began.elapsed();
        let more = requests(servers)?.into_iter().zip(before);
        let most_requests = more.map(|(after, before)| after - before).reduce(f64::max);
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
            mean: runs / processes as f64,
            requests: most_requests.map(|most| most / runs),
        })
    }

    /// Returns the wait that this part of all waits did not exceed, in ms.
    pub(crate) fn wait(&self, percent: usize) -> f64 {
        let last = self.waits.len().saturating_sub(1);
        let wait = self.waits.get(last * percent / 100);
        wait.map_or(f64::NAN, |wait| wait.as_secs_f64() * 1e3)
    }

    /// Returns the fewest runs of a process as a part of the mean.
    pub(crate) fn fewest_of_mean(&self) -> f64 {
        self.fewest as f64 / self.mean
    }
}

/// The commands that a process sends; the others run inside scripts.
const REQUESTS: [&str; 6] = ["set", "pttl", "evalsha", "subscribe", "unsubscribe", "ping"];

/// Returns the number of requests that each server has processed.
fn requests(servers: &[Server]) -> Result<Vec<f64>> {
    let mut counts = Vec::new();
    for server in servers {
        let mut sum = 0.0;
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
        counts.push(sum);
    }
    Ok(counts)
}
