//! Counters behind [`Nodes::stats`](crate::Nodes::stats), and the calls of the observer.
//!
//! Counting never blocks and never influences a lock: counters are relaxed atomics.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::error::Error;
use crate::protocol::mode::Mode;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::telemetry::observer;
use crate::telemetry::observer::{NodeReply, Observer};

/// Counts of all locks on a [`Nodes`](crate::Nodes) since it was connected:
/// [`Nodes::stats`](crate::Nodes::stats).
///
/// Each count only grows. The counts are read one after the other while other threads count, so
/// their sums may differ by the events in between.
///
/// ```no_run
/// use redguard::Nodes;
///
/// fn report(nodes: &Nodes) {
///     let stats = nodes.stats();
///     println!("{} locks in {} attempts, {} lost", stats.acquired, stats.attempts, stats.lost);
///     let held = stats.hold_time;
///     println!("held for {:?} on average, {:?} at most", held.mean(), held.max);
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Locks that were acquired.
    pub acquired: u64,
    /// Locks among `acquired` that are held in this process alone ([`Mode::Local`]).
    pub acquired_locally: u64,
    /// Acquires that ended because others held the lock, including `try_` calls.
    pub contended: u64,
    /// Acquires that ended without a verdict of a quorum ([`Error::is_unavailable`],
    /// [`Error::is_denied`]).
    pub unavailable: u64,
    /// Attempts: rounds that asked nodes for a lock. One acquire may need several.
    pub attempts: u64,
    /// Renewals that a quorum of nodes confirmed.
    pub renewals: u64,
    /// Locks that were lost while they were held, also by a shutdown.
    pub lost: u64,
    /// Guards that ended after their lock was lost.
    pub released_late: u64,
    /// Guards whose `Drop` could not release their lock:
    /// [`Nodes::drop_failures`](crate::Nodes::drop_failures).
    pub drop_failures: u64,
    /// Time from the call of an acquire until it returned its guard.
    pub wait_time: DurationSummary,
    /// Time from the return of a guard until its end, for locks on the nodes that were not lost.
    pub hold_time: DurationSummary,
    /// The counts per node, in the order of the configuration.
    pub nodes: Box<[NodeStats]>,
}

/// A table for people: the counts of all locks, and a line for each node.
impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, count) in [
            ("acquired", self.acquired),
            ("  in this process alone", self.acquired_locally),
            ("contended", self.contended),
            ("unavailable", self.unavailable),
            ("attempts", self.attempts),
            ("renewals", self.renewals),
            ("lost", self.lost),
            ("released late", self.released_late),
            ("drop failures", self.drop_failures),
        ] {
            writeln!(f, "{name:<25} {count:>10}")?;
        }
        writeln!(f, "{:<25} {}", "wait time", self.wait_time)?;
        write!(f, "{:<25} {}", "hold time", self.hold_time)?;
        self.nodes.iter().try_for_each(|node| write!(f, "\n{node}"))
    }
}

/// Counts of the replies of one node.
///
/// ```
/// use redguard::NodeStats;
///
/// fn line(node: &NodeStats) -> String {
///     let all = node.done + node.refused + node.errors + node.no_reply;
///     let (name, lost) = (&node.node, node.no_reply);
///     format!("{name}: {all} requests, {lost} without a reply, {:?}", node.latency.mean())
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeStats {
    /// The node's address, without credentials.
    pub node: String,
    /// Requests that the node executed: locks granted, extended or released, and other requests.
    pub done: u64,
    /// Requests that the node refused: the lock is held by another, or is not ours.
    pub refused: u64,
    /// Requests that the node replied to with an error.
    pub errors: u64,
    /// Requests without a reply: it was late, or the connection broke. Nothing is sent to a node
    /// that is known to be unreachable.
    pub no_reply: u64,
    /// Time from the sending of a batch of requests to each of its replies.
    pub latency: DurationSummary,
}

/// As "10.0.0.1:6379: 12 done, 3 refused, 0 errors, 1 no reply, latency mean 210.0µs, max 3.0ms".
impl fmt::Display for NodeStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NodeStats {
            node,
            done,
            refused,
            errors,
            no_reply,
            latency,
        } = self;
        write!(
            f,
            "{node}: {done} done, {refused} refused, {errors} errors, {no_reply} no reply, latency {latency}"
        )
    }
}

/// Number, sum and maximum of durations.
///
/// ```
/// use redguard::DurationSummary;
/// use std::time::Duration;
///
/// assert_eq!(DurationSummary::default().mean(), Duration::ZERO);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DurationSummary {
    /// Number of durations.
    pub count: u64,
    /// Sum of the durations.
    pub total: Duration,
    /// The longest duration; zero if there is none.
    pub max: Duration,
}

/// As "mean 1.2ms, max 30.0ms".
impl fmt::Display for DurationSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mean {:.1?}, max {:.1?}", self.mean(), self.max)
    }
}

impl DurationSummary {
    /// Returns the mean duration; zero if there is none.
    pub fn mean(&self) -> Duration {
        match self.count {
            0 => Duration::ZERO,
            count => Duration::from_nanos(nanos(self.total) / count),
        }
    }

    fn merge(self, other: DurationSummary) -> DurationSummary {
        DurationSummary {
            count: self.count + other.count,
            total: self.total.saturating_add(other.total),
            max: self.max.max(other.max),
        }
    }
}

/// Counts the events of all locks and calls the observer. `name` is the lock's first key.
pub(crate) struct LockCounters {
    observer: Option<Arc<dyn Observer>>,
    acquired: AtomicU64,
    acquired_locally: AtomicU64,
    contended: AtomicU64,
    unavailable: AtomicU64,
    attempts: AtomicU64,
    renewals: AtomicU64,
    lost: AtomicU64,
    released_late: AtomicU64,
    drop_failures: AtomicU64,
    wait_time: DurationCounter,
    hold_time: DurationCounter,
}

impl LockCounters {
    pub(crate) fn new(observer: Option<Arc<dyn Observer>>) -> LockCounters {
        LockCounters {
            observer,
            acquired: AtomicU64::new(0),
            acquired_locally: AtomicU64::new(0),
            contended: AtomicU64::new(0),
            unavailable: AtomicU64::new(0),
            attempts: AtomicU64::new(0),
            renewals: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            released_late: AtomicU64::new(0),
            drop_failures: AtomicU64::new(0),
            wait_time: DurationCounter::default(),
            hold_time: DurationCounter::default(),
        }
    }

    pub(crate) fn attempted(&self, name: &str) {
        count(&self.attempts);
        self.notify(|observer| observer.attempted(name));
    }

    /// Records the end of an acquire after `waited`. Errors that are neither contended, unavailable
    /// nor denied are not counted: a cancelled acquire, for example.
    pub(crate) fn acquired(&self, name: &str, outcome: Result<Mode, &Error>, waited: Duration) {
        match outcome {
            Ok(mode) => {
                count(&self.acquired);
                if mode == Mode::Local {
                    count(&self.acquired_locally);
                }
                self.wait_time.record(waited);
                self.notify(|observer| observer.acquired(name, mode, waited));
            }
            Err(error) if error.is_contended() => {
                count(&self.contended);
                self.notify(|observer| observer.contended(name, waited));
            }
            Err(error) if error.is_unavailable() || error.is_denied() => {
                count(&self.unavailable);
                self.notify(|observer| observer.unavailable(name, waited));
            }
            Err(_) => {}
        }
    }

    pub(crate) fn renewed(&self, name: &str) {
        count(&self.renewals);
        self.notify(|observer| observer.renewed(name));
    }

    pub(crate) fn lost(&self, name: &str) {
        count(&self.lost);
        self.notify(|observer| observer.lost(name));
    }

    /// Records the end of a guard after `held`; `late` if its lock was lost before.
    pub(crate) fn released(&self, name: &str, held: Duration, late: bool) {
        if late {
            count(&self.released_late);
        } else {
            self.hold_time.record(held);
        }
        self.notify(|observer| observer.released(name, held, late));
    }

    pub(crate) fn record_failed_drop(&self) {
        count(&self.drop_failures);
    }

    pub(crate) fn drop_failures(&self) -> u64 {
        read(&self.drop_failures)
    }

    pub(crate) fn stats(&self, nodes: Box<[NodeStats]>) -> Stats {
        Stats {
            acquired: read(&self.acquired),
            acquired_locally: read(&self.acquired_locally),
            contended: read(&self.contended),
            unavailable: read(&self.unavailable),
            attempts: read(&self.attempts),
            renewals: read(&self.renewals),
            lost: read(&self.lost),
            released_late: read(&self.released_late),
            drop_failures: self.drop_failures(),
            wait_time: self.wait_time.read(),
            hold_time: self.hold_time.read(),
            nodes,
        }
    }

    fn notify(&self, event: impl FnOnce(&dyn Observer)) {
        observer::notify(self.observer.as_ref(), event);
    }
}

impl fmt::Debug for LockCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stats(Box::default()).fmt(f)
    }
}

/// Counts the replies on one node connection.
#[derive(Debug, Default)]
pub(crate) struct NodeCounters {
    done: AtomicU64,
    refused: AtomicU64,
    errors: AtomicU64,
    no_reply: AtomicU64,
    latency: DurationCounter,
}

impl NodeCounters {
    pub(crate) fn record(&self, reply: NodeReply, latency: Duration) {
        match reply {
            NodeReply::Done => count(&self.done),
            NodeReply::Refused => count(&self.refused),
            NodeReply::Error => count(&self.errors),
            NodeReply::NoReply => return count(&self.no_reply),
        }
        self.latency.record(latency);
    }

    /// Adds the counts of one connection to `stats`, which sums up all connections of the node.
    pub(crate) fn add_to(&self, stats: &mut NodeStats) {
        stats.done += read(&self.done);
        stats.refused += read(&self.refused);
        stats.errors += read(&self.errors);
        stats.no_reply += read(&self.no_reply);
        stats.latency = stats.latency.merge(self.latency.read());
    }
}

impl NodeStats {
    pub(crate) fn of(node: &str) -> NodeStats {
        NodeStats {
            node: node.to_owned(),
            done: 0,
            refused: 0,
            errors: 0,
            no_reply: 0,
            latency: DurationSummary::default(),
        }
    }
}

/// Adds up durations in nanoseconds, which suffices for 584 years.
#[derive(Debug, Default)]
struct DurationCounter {
    count: AtomicU64,
    total: AtomicU64,
    max: AtomicU64,
}

impl DurationCounter {
    fn record(&self, duration: Duration) {
        let duration = nanos(duration);
        count(&self.count);
        self.total.fetch_add(duration, Ordering::Relaxed);
        if duration > self.max.load(Ordering::Relaxed) {
            self.max.fetch_max(duration, Ordering::Relaxed);
        }
    }

    fn read(&self) -> DurationSummary {
        DurationSummary {
            count: read(&self.count),
            total: Duration::from_nanos(read(&self.total)),
            max: Duration::from_nanos(read(&self.max)),
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn durations_are_counted_summed_and_merged() {
        let counter = DurationCounter::default();
        assert_eq!(counter.read().mean(), Duration::ZERO);
        for duration in [ms(1), ms(5), ms(3)] {
            counter.record(duration);
        }
        let summary = counter.read();
        assert_eq!((summary.count, summary.total), (3, ms(9)));
        assert_eq!((summary.max, summary.mean()), (ms(5), ms(3)));
        let merged = summary.merge(DurationSummary {
            count: 1,
            total: ms(7),
            max: ms(7),
        });
        assert_eq!((merged.count, merged.total, merged.max), (4, ms(16), ms(7)));
    }

    #[test]
    fn reply_is_counted_by_its_kind_and_a_missing_one_has_no_latency() {
        let counters = NodeCounters::default();
        for (reply, times) in [
            (NodeReply::Done, 1),
            (NodeReply::Refused, 2),
            (NodeReply::Error, 3),
            (NodeReply::NoReply, 4),
        ] {
            (0..times).for_each(|_| counters.record(reply, ms(1)));
        }
        let mut stats = NodeStats::of("a");
        counters.add_to(&mut stats);
        counters.add_to(&mut stats); // a second connection with the same counts
        assert_eq!((stats.done, stats.refused), (2, 4));
        assert_eq!((stats.errors, stats.no_reply), (6, 8));
        assert_eq!((stats.latency.count, stats.latency.total), (12, ms(12)));
    }

    #[test]
    fn stats_are_shown_as_a_table() {
        let node = NodeStats {
            done: 12,
            no_reply: 1,
            ..NodeStats::of("a:1")
        };
        let summary = DurationSummary {
            count: 2,
            total: ms(4),
            max: ms(3),
        };
        let counters = LockCounters::new(None);
        counters.acquired("x", Ok(Mode::Local), ms(2));
        let stats = Stats {
            wait_time: summary,
            ..counters.stats(Box::new([node]))
        };
        let shown = stats.to_string();
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines.len(), 12, "{shown}");
        assert_eq!(lines[0], "acquired                           1");
        assert_eq!(lines[1], "  in this process alone            1");
        assert_eq!(lines[9], "wait time                 mean 2.0ms, max 3.0ms");
        let node = "a:1: 12 done, 0 refused, 0 errors, 1 no reply, latency mean 0.0ns, max 0.0ns";
        assert_eq!(lines[11], node);
    }
}
