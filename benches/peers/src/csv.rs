//! All figures as CSV, one line per cell.

use std::fmt::Write;

use crate::Run;
use crate::schedule::Measured;
use crate::summary::Summary;

/// No value contains a comma except the machine, which is quoted.
pub(crate) fn text(run: &Run, all: &[Measured]) -> String {
    let mut text = String::from(
        "library,version,nodes,state,keys,threads,turns,pairs_per_s,pairs_least,pairs_most,p50_us,p99_us,max_us,longest_wait_us,\
         failed,given_up,word,date,machine\n",
    );
    for measured in all {
        for (peer, samples) in &measured.cells {
            let (setting, summary) = (measured.setting, Summary::of(samples));
            let [least, rate, most] = summary.rate;
            let figure = |value: f64| match value.is_nan() {
                true => String::new(),
                false => format!("{value:.1}"),
            };
            // Writing to a `String` cannot fail.
            _ = writeln!(
                text,
                "{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},\"{}\"",
                peer.name(),
                run.version(*peer),
                setting.nodes,
                setting.health.name(),
                if setting.one_key { "one" } else { "own" },
                setting.threads,
                samples.len(),
                figure(rate),
                figure(least),
                figure(most),
                figure(summary.p50),
                figure(summary.p99),
                figure(summary.max),
                figure(summary.longest),
                summary.failed,
                summary.hung,
                summary.word().unwrap_or_default(),
                run.date,
                run.machine,
            );
        }
    }
    text
}
