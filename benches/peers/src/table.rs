//! The table on stdout, and the goals.

use std::fmt::Write;

use crate::peers::Peer;
use crate::schedule::Measured;
use crate::summary::{PAIRS, Ratios, Summary, is_judged};

const HEADS: [&str; 6] = [
    "pairs/s",
    "p50 µs",
    "p99 µs",
    "max µs",
    "waited ms",
    "failed",
];

pub(crate) fn word(ok: bool) -> &'static str {
    if ok { "ok" } else { "short" }
}

/// Returns one setting: a line for each peer with the ratios of redguard to the peer.
pub(crate) fn setting(measured: &Measured) -> String {
    // Writing to a `String` cannot fail.
    let mut text = format!("\n{:<48}", measured.setting.name());
    HEADS.iter().for_each(|head| _ = write!(text, "{head:>10}"));
    for (peer, samples) in &measured.cells {
        let summary = Summary::of(samples);
        _ = write!(text, "\n    {:<44}", peer.name());
        let longest = summary.longest / 1e3;
        match summary.word() {
            Some(word) => _ = write!(text, "{word:>10}{:>40.0}{:>10.0}", longest, summary.failed),
            None => {
                let [p50, p99, max] = [summary.p50, summary.p99, summary.max];
                _ = write!(
                    text,
                    "{:>10.0}{p50:>10.0}{p99:>10.0}{max:>10.0}",
                    summary.rate[1]
                );
                _ = write!(text, "{longest:>10.0}{:>10.0}", summary.failed);
            }
        }
        let Some(ratios) = Ratios::of(measured, *peer) else {
            continue;
        };
        if summary.word().is_none() {
            let [least, pairs, most] = ratios.pairs;
            _ = write!(text, "  {pairs:.2} × pairs ({least:.2} to {most:.2})");
            let [least, p99, most] = ratios.p99;
            _ = write!(text, ", {p99:.2} × p99 ({least:.2} to {most:.2})");
            let [least, longest, most] = ratios.longest;
            _ = write!(text, ", {longest:.2} × wait ({least:.2} to {most:.2})");
        }
        if is_judged(*peer) {
            let ok = ratios.enough_pairs() && ratios.no_longer_p99() && ratios.no_longer_wait();
            let ok = word(ok);
            _ = write!(text, ": {ok}");
        }
    }
    text
}

/// Returns the goals: a line for each peer.
pub(crate) fn goals(all: &[Measured]) -> String {
    let mut text = format!(
        "\ngoals ≥ {PAIRS} × the pairs of each, never a longer p99 and never a longer longest wait: cells in which they are \
         reached\n{:<24}{:>14}{:>14}{:>14}{:>14}{:>14}{:>14}",
        "", "own keys", "p99", "wait", "one key", "p99", "wait"
    );
    for peer in Peer::ALL.into_iter().filter(|peer| is_judged(*peer)) {
        let count = |one_key: bool, reached: fn(&Ratios) -> bool| {
            let judged = all
                .iter()
                .filter(|measured| measured.setting.one_key == one_key);
            let ratios: Vec<Ratios> = judged
                .filter_map(|measured| Ratios::of(measured, peer))
                .collect();
            (
                ratios.iter().filter(|ratios| reached(ratios)).count(),
                ratios.len(),
            )
        };
        let counts = [
            count(false, Ratios::enough_pairs),
            count(false, Ratios::no_longer_p99),
            count(false, Ratios::no_longer_wait),
            count(true, Ratios::enough_pairs),
            count(true, Ratios::no_longer_p99),
            count(true, Ratios::no_longer_wait),
        ];
        if counts.iter().all(|(_, of)| *of == 0) {
            continue;
        }
        _ = write!(text, "\n    {:<20}", peer.name());
        for (reached, of) in counts {
            _ = write!(text, "{:>14}", format!("{reached} of {of}"));
        }
        let ok = counts.iter().all(|(reached, of)| reached == of);
        _ = write!(text, "  {}", word(ok));
    }
    text
}
