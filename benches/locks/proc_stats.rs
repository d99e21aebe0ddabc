//! Statistics of the system about this process and the servers. `None` or `NaN` without such a
//! `/proc`.

use std::fs;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

use crate::format::word;
use redguard_servers::Server;

/// What this process and the servers have used so far.
pub(crate) struct Usage {
    /// Processor time of all threads of this process, ended ones included, in µs.
    own: f64,
    /// Processor time of the servers, in µs.
    servers: f64,
    /// How often a thread of this process lost its processor.
    switches: f64,
}

impl Usage {
    pub(crate) fn read(servers: &[Server]) -> Usage {
        let (mut own, mut switches) = (f64::NAN, f64::NAN);
        if let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) {
            let micros =
                usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
            own = micros as f64;
            let counts = usage.voluntary_context_switches() + usage.involuntary_context_switches();
            switches = counts as f64;
        }
        let of_server = |server: &Server| {
            let path = format!("/proc/{}/schedstat", server.pid()?);
            let nanos = fs::read_to_string(path).ok()?;
            nanos.split(' ').next()?.parse::<f64>().ok()
        };
        let nanos: Option<f64> = servers.iter().map(of_server).sum();
        Usage {
            own,
            servers: nanos.map_or(f64::NAN, |nanos| nanos / 1e3),
            switches,
        }
    }

    /// Returns what was used since `before`: own µs, µs of the servers, switches.
    pub(crate) fn since(&self, before: &Usage) -> [f64; 3] {
        [
            self.own - before.own,
            self.servers - before.servers,
            self.switches - before.switches,
        ]
    }
}

pub(crate) fn thread_count() -> Option<usize> {
    Some(fs::read_dir("/proc/self/task").ok()?.count())
}

/// Returns the processor time of the live threads, in nanoseconds if the system counts in them.
pub(crate) fn processor_time() -> Option<Duration> {
    let nanos = tasks("schedstat", |counts| counts.split(' ').next()?.parse().ok())?;
    Some(Duration::from_nanos(nanos))
}

/// Returns how often the live threads lost a processor, voluntarily or not.
pub(crate) fn switches() -> Option<u64> {
    tasks("status", |status| {
        let lines = status
            .lines()
            .filter(|line| line.contains("ctxt_switches:"));
        lines
            .map(|line| line.split_whitespace().last()?.parse::<u64>().ok())
            .sum()
    })
}

/// Returns the sum over all threads of a value in one of the files about each.
fn tasks(file: &str, value: impl Fn(&str) -> Option<u64>) -> Option<u64> {
    let mut sum = 0;
    for task in fs::read_dir("/proc/self/task").ok()? {
        sum += value(&fs::read_to_string(task.ok()?.path().join(file)).ok()?)?;
    }
    Some(sum)
}

pub(crate) fn of_a_core(used: Option<Duration>, watched: Duration, goal: f64) -> String {
    let Some(used) = used else {
        return "skipped: no /proc/self/task/*/schedstat here".into();
    };
    let percent = used.as_secs_f64() / watched.as_secs_f64() * 100.0;
    let word = word(percent < goal);
    format!("{percent:.2} % of one core, goal < {goal}: {word}")
}
