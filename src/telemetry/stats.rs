//! What has happened to the locks of a [`Nodes`](crate::Nodes) since it was connected, in numbers.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::error::Error;
use crate::protocol::key::Key;
use crate::protocol::mode::Mode;
use crate::telemetry::observer;
use crate::telemetry::observer::{NodeReply, Observer};

/// Counts since the nodes were connected, for all locks on them: see [`Nodes::stats`](crate::Nodes::stats).
///
/// They are read one after the other while work goes on, so they need not fit together to the last one. Each only grows.
///
/// ```no_run
/// use redguard::Nodes;
///
/// fn report(nodes: &Nodes) {
///     let stats = nodes.stats();
///     println!("{} locks in {} attempts, {} lost", stats.acquired, stats.attempts, stats.lost);
///     println!("held for {:?} on average, {:?} at most", stats.hold_time.mean(), stats.hold_time.max);
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Locks that were handed out.
    pub acquired: u64,
    /// Those of them that are held in this process alone ([`Mode::Local`]).
    pub acquired_locally: u64,
    /// Acquires that ended because others held the lock, tries included.
    pub contended: u64,
    /// Acquires that ended because it could not be found out ([`Error::is_unavailable`], [`Error::is_denied`]).
    pub unavailable: u64,
    /// Rounds in which nodes were asked for a lock. Above `granted` by those that were in vain.
    pub attempts: u64,
    /// Renewals that a quorum confirmed.
    pub renewals: u64,
    /// Locks that were lost while they were held.
    pub lost: u64,
    /// Guards that ended after their lock was lost.
    pub released_late: u64,
    /// Guards whose `Drop` could not release their lock, as [`Nodes::drop_failures`](crate::Nodes::drop_failures).
    pub drop_failures: u64,
    /// How long acquires waited that got their lock, from the call on.
    pub wait_time: DurationSummary,
    /// How long locks on the nodes were held until their guard ended, unless they were lost.
    pub hold_time: DurationSummary,
    /// Each node, in the order of the configuration.
    pub nodes: Box<[NodeStats]>,
}

/// What one node has answered.
///
/// ```
/// use redguard::NodeStats;
///
/// fn line(node: &NodeStats) -> String {
///     let all = node.done + node.refused + node.errors + node.no_reply;
///     format!("{}: {all} requests, {} without an answer, {:?}", node.node, node.no_reply, node.latency.mean())
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeStats {
    /// Its address, without credentials.
    pub node: String,
    /// Requests that it did: locks that it granted, extended or released, and whatever else it was asked.
    pub done: u64,
    /// Requests that it refused.
    pub refused: u64,
    /// Requests that it answered with an error.
    pub errors: u64,
    /// Requests that were sent and have no answer. A node that is known to be unreachable is not asked.
    pub no_reply: u64,
    /// From the sending of a batch of requests to each answer.
    pub latency: DurationSummary,
}

/// How long something took that happened many times.
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
    /// How many times.
    pub count: u64,
    /// All of it together.
    pub total: Duration,
    /// The longest.
    pub max: Duration,
}

impl DurationSummary {
    /// The mean; zero where there was none.
    pub fn mean(&self) -> Duration {
        match self.count {
            0 => Duration::ZERO,
            count => Duration::from_nanos(nanos(self.total) / count),
        }
    }

    fn and(self, other: DurationSummary) -> DurationSummary {
        DurationSummary {
            count: self.count + other.count,
            total: self.total.saturating_add(other.total),
            max: self.max.max(other.max),
        }
    }
}

/// Counts what happens to locks, and tells the observer.
pub(crate) struct LockCounters {
    observer: Option<Arc<dyn Observer>>,
    granted: AtomicU64,
    granted_locally: AtomicU64,
    contended: AtomicU64,
    unavailable: AtomicU64,
    attempts: AtomicU64,
    renewals: AtomicU64,
    lost: AtomicU64,
    released_late: AtomicU64,
    drop_failures: AtomicU64,
    waits: DurationCounter,
    holds: DurationCounter,
}

impl LockCounters {
    pub(crate) fn new(observer: Option<Arc<dyn Observer>>) -> LockCounters {
        LockCounters {
            observer,
            granted: AtomicU64::new(0),
            granted_locally: AtomicU64::new(0),
            contended: AtomicU64::new(0),
            unavailable: AtomicU64::new(0),
            attempts: AtomicU64::new(0),
            renewals: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            released_late: AtomicU64::new(0),
            drop_failures: AtomicU64::new(0),
            waits: DurationCounter::default(),
            holds: DurationCounter::default(),
        }
    }

    pub(crate) fn attempted(&self, key: &Key) {
        count(&self.attempts);
        self.notify(|observer| observer.attempted(key.name()));
    }

    /// An acquire has ended, after `waited`. One that was cancelled, say, is neither contended nor unavailable.
    pub(crate) fn acquired(&self, key: &Key, outcome: Result<Mode, &Error>, waited: Duration) {
        match outcome {
            Ok(mode) => {
                count(&self.granted);
                if mode == Mode::Local {
                    count(&self.granted_locally);
                }
                self.waits.record(waited);
                self.notify(|observer| observer.acquired(key.name(), mode, waited));
            }
            Err(error) if error.is_contended() => {
                count(&self.contended);
                self.notify(|observer| observer.contended(key.name(), waited));
            }
            Err(error) if error.is_unavailable() || error.is_denied() => {
                count(&self.unavailable);
                self.notify(|observer| observer.unavailable(key.name(), waited));
            }
            Err(_) => {}
        }
    }

    pub(crate) fn renewed(&self, key: &Key) {
        count(&self.renewals);
        self.notify(|observer| observer.renewed(key.name()));
    }

    pub(crate) fn lost(&self, key: &Key) {
        count(&self.lost);
        self.notify(|observer| observer.lost(key.name()));
    }

    /// A guard has ended that was handed out `held` ago.
    pub(crate) fn released(&self, key: &Key, held: Duration, late: bool) {
        if late {
            count(&self.released_late);
        } else {
            self.holds.record(held);
        }
        self.notify(|observer| observer.released(key.name(), held, late));
    }

    pub(crate) fn record_failed_drop(&self) {
        count(&self.drop_failures);
    }

    pub(crate) fn drop_failures(&self) -> u64 {
        read(&self.drop_failures)
    }

    pub(crate) fn stats(&self, nodes: Box<[NodeStats]>) -> Stats {
        Stats {
            acquired: read(&self.granted),
            acquired_locally: read(&self.granted_locally),
            contended: read(&self.contended),
            unavailable: read(&self.unavailable),
            attempts: read(&self.attempts),
            renewals: read(&self.renewals),
            lost: read(&self.lost),
            released_late: read(&self.released_late),
            drop_failures: self.drop_failures(),
            wait_time: self.waits.read(),
            hold_time: self.holds.read(),
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

/// What one lane's node has answered.
#[derive(Debug, Default)]
pub(crate) struct NodeCounters {
    done: AtomicU64,
    refused: AtomicU64,
    faults: AtomicU64,
    unknown: AtomicU64,
    latency: DurationCounter,
}

impl NodeCounters {
    pub(crate) fn record(&self, reply: NodeReply, latency: Duration) {
        match reply {
            NodeReply::Done => count(&self.done),
            NodeReply::Refused => count(&self.refused),
            NodeReply::Error => count(&self.faults),
            NodeReply::NoReply => return count(&self.unknown),
        }
        self.latency.record(latency);
    }

    /// Adds it up with a node's other lanes.
    pub(crate) fn add_to(&self, stats: &mut NodeStats) {
        stats.done += read(&self.done);
        stats.refused += read(&self.refused);
        stats.errors += read(&self.faults);
        stats.no_reply += read(&self.unknown);
        stats.latency = stats.latency.and(self.latency.read());
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

/// Spans as they are added up, in nanoseconds: enough for some hundred years.
#[derive(Debug, Default)]
struct DurationCounter {
    count: AtomicU64,
    total: AtomicU64,
    longest: AtomicU64,
}

impl DurationCounter {
    fn record(&self, took: Duration) {
        let took = nanos(took);
        count(&self.count);
        self.total.fetch_add(took, Ordering::Relaxed);
        if took > self.longest.load(Ordering::Relaxed) {
            self.longest.fetch_max(took, Ordering::Relaxed);
        }
    }

    fn read(&self) -> DurationSummary {
        DurationSummary {
            count: read(&self.count),
            total: Duration::from_nanos(read(&self.total)),
            max: Duration::from_nanos(read(&self.longest)),
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
    fn spans_add_up() {
        let clocked = DurationCounter::default();
        assert_eq!(clocked.read().mean(), Duration::ZERO);
        for took in [ms(1), ms(5), ms(3)] {
            clocked.record(took);
        }
        let spans = clocked.read();
        assert_eq!((spans.count, spans.total), (3, ms(9)));
        assert_eq!((spans.max, spans.mean()), (ms(5), ms(3)));
        let both = spans.and(DurationSummary {
            count: 1,
            total: ms(7),
            max: ms(7),
        });
        assert_eq!((both.count, both.total, both.max), (4, ms(16), ms(7)));
    }

    #[test]
    fn a_reply_is_counted_as_what_it_is_and_none_has_no_latency() {
        let traffic = NodeCounters::default();
        for (reply, times) in [
            (NodeReply::Done, 1),
            (NodeReply::Refused, 2),
            (NodeReply::Error, 3),
            (NodeReply::NoReply, 4),
        ] {
            (0..times).for_each(|_| traffic.record(reply, ms(1)));
        }
        let mut stats = NodeStats::of("a");
        traffic.add_to(&mut stats);
        traffic.add_to(&mut stats); // another lane with the same counts
        assert_eq!((stats.done, stats.refused), (2, 4));
        assert_eq!((stats.errors, stats.no_reply), (6, 8));
        assert_eq!((stats.latency.count, stats.latency.total), (12, ms(12)));
    }
}
