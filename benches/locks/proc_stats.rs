//! Statistics of the system about all threads of this process. `None` without such a `/proc`.

use std::fs;
use std::time::Duration;

use crate::extra_rows::word;

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
