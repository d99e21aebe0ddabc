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
///     println!("{} locks in {} attempts, {} lost", stats.granted, stats.attempts, stats.lost);
///     println!("held for {:?} on average, {:?} at most", stats.holds.mean(), stats.holds.longest);
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Locks that were handed out.
    pub granted: u64,
    /// Those of them that are held in this process alone ([`Mode::Local`]).
    pub granted_locally: u64,
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
    pub waits: Spans,
    /// How long locks on the nodes were held until their guard ended, unless they were lost.
    pub holds: Spans,
    /// Each node, in the order of the configuration.
    pub nodes: Box<[NodeStats]>,
}

/// What one node has answered.
///
/// ```
/// use redguard::NodeStats;
///
/// fn line(node: &NodeStats) -> String {
///     let all = node.done + node.refused + node.faults + node.unknown;
///     format!("{}: {all} requests, {} without an answer, {:?}", node.node, node.unknown, node.latency.mean())
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
    pub faults: u64,
    /// Requests that were sent and have no answer. A node that is known to be unreachable is not asked.
    pub unknown: u64,
    /// From the sending of a batch of requests to each answer.
    pub latency: Spans,
}

/// How long something took that happened many times.
///
/// ```
/// use redguard::Spans;
/// use std::time::Duration;
///
/// assert_eq!(Spans::default().mean(), Duration::ZERO);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Spans {
    /// How many times.
    pub count: u64,
    /// All of it together.
    pub total: Duration,
    /// The longest.
    pub longest: Duration,
}

impl Spans {
    /// The mean; zero where there was none.
    pub fn mean(&self) -> Duration {
        match self.count {
            0 => Duration::ZERO,
            count => Duration::from_nanos(nanos(self.total) / count),
        }
    }

    fn and(self, other: Spans) -> Spans {
        Spans {
            count: self.count + other.count,
            total: self.total.saturating_add(other.total),
            longest: self.longest.max(other.longest),
        }
    }
}

/// Counts what happens to locks, and tells the observer.
pub(crate) struct Meter {
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
    waits: Clocked,
    holds: Clocked,
}

impl Meter {
    pub(crate) fn new(observer: Option<Arc<dyn Observer>>) -> Meter {
        Meter {
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
            waits: Clocked::default(),
            holds: Clocked::default(),
        }
    }

    pub(crate) fn attempted(&self, key: &Key) {
        count(&self.attempts);
        self.tell(|observer| observer.attempted(key.name()));
    }

    /// An acquire has ended, after `waited`. One that was cancelled, say, is neither contended nor unavailable.
    pub(crate) fn acquired(&self, key: &Key, outcome: Result<Mode, &Error>, waited: Duration) {
        match outcome {
            Ok(mode) => {
                count(&self.granted);
                if mode == Mode::Local {
                    count(&self.granted_locally);
                }
                self.waits.note(waited);
                self.tell(|observer| observer.granted(key.name(), mode, waited));
            }
            Err(error) if error.is_contended() => {
                count(&self.contended);
                self.tell(|observer| observer.contended(key.name(), waited));
            }
            Err(error) if error.is_unavailable() || error.is_denied() => {
                count(&self.unavailable);
                self.tell(|observer| observer.unavailable(key.name(), waited));
            }
            Err(_) => {}
        }
    }

    pub(crate) fn renewed(&self, key: &Key) {
        count(&self.renewals);
        self.tell(|observer| observer.renewed(key.name()));
    }

    pub(crate) fn lost(&self, key: &Key) {
        count(&self.lost);
        self.tell(|observer| observer.lost(key.name()));
    }

    /// A guard has ended that was handed out `held` ago.
    pub(crate) fn released(&self, key: &Key, held: Duration, late: bool) {
        if late {
            count(&self.released_late);
        } else {
            self.holds.note(held);
        }
        self.tell(|observer| observer.released(key.name(), held, late));
    }

    pub(crate) fn drop_failed(&self) {
        count(&self.drop_failures);
    }

    pub(crate) fn drop_failures(&self) -> u64 {
        read(&self.drop_failures)
    }

    pub(crate) fn stats(&self, nodes: Box<[NodeStats]>) -> Stats {
        Stats {
            granted: read(&self.granted),
            granted_locally: read(&self.granted_locally),
            contended: read(&self.contended),
            unavailable: read(&self.unavailable),
            attempts: read(&self.attempts),
            renewals: read(&self.renewals),
            lost: read(&self.lost),
            released_late: read(&self.released_late),
            drop_failures: self.drop_failures(),
            waits: self.waits.read(),
            holds: self.holds.read(),
            nodes,
        }
    }

    fn tell(&self, event: impl FnOnce(&dyn Observer)) {
        observer::tell(self.observer.as_ref(), event);
    }
}

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stats(Box::default()).fmt(f)
    }
}

/// What one lane's node has answered.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    done: AtomicU64,
    refused: AtomicU64,
    faults: AtomicU64,
    unknown: AtomicU64,
    latency: Clocked,
}

impl Traffic {
    pub(crate) fn note(&self, reply: NodeReply, latency: Duration) {
        match reply {
            NodeReply::Done => count(&self.done),
            NodeReply::Refused => count(&self.refused),
            NodeReply::Fault => count(&self.faults),
            NodeReply::Unknown => return count(&self.unknown),
        }
        self.latency.note(latency);
    }

    /// Adds it up with a node's other lanes.
    pub(crate) fn add_to(&self, stats: &mut NodeStats) {
        stats.done += read(&self.done);
        stats.refused += read(&self.refused);
        stats.faults += read(&self.faults);
        stats.unknown += read(&self.unknown);
        stats.latency = stats.latency.and(self.latency.read());
    }
}

impl NodeStats {
    pub(crate) fn of(node: &str) -> NodeStats {
        NodeStats {
            node: node.to_owned(),
            done: 0,
            refused: 0,
            faults: 0,
            unknown: 0,
            latency: Spans::default(),
        }
    }
}

/// Spans as they are added up, in nanoseconds: enough for some hundred years.
#[derive(Debug, Default)]
struct Clocked {
    count: AtomicU64,
    total: AtomicU64,
    longest: AtomicU64,
}

impl Clocked {
    fn note(&self, took: Duration) {
        let took = nanos(took);
        count(&self.count);
        self.total.fetch_add(took, Ordering::Relaxed);
        if took > self.longest.load(Ordering::Relaxed) {
            self.longest.fetch_max(took, Ordering::Relaxed);
        }
    }

    fn read(&self) -> Spans {
        Spans {
            count: read(&self.count),
            total: Duration::from_nanos(read(&self.total)),
            longest: Duration::from_nanos(read(&self.longest)),
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
        let clocked = Clocked::default();
        assert_eq!(clocked.read().mean(), Duration::ZERO);
        for took in [ms(1), ms(5), ms(3)] {
            clocked.note(took);
        }
        let spans = clocked.read();
        assert_eq!((spans.count, spans.total), (3, ms(9)));
        assert_eq!((spans.longest, spans.mean()), (ms(5), ms(3)));
        let both = spans.and(Spans {
            count: 1,
            total: ms(7),
            longest: ms(7),
        });
        assert_eq!((both.count, both.total, both.longest), (4, ms(16), ms(7)));
    }

    #[test]
    fn a_reply_is_counted_as_what_it_is_and_none_has_no_latency() {
        let traffic = Traffic::default();
        for (reply, times) in [
            (NodeReply::Done, 1),
            (NodeReply::Refused, 2),
            (NodeReply::Fault, 3),
            (NodeReply::Unknown, 4),
        ] {
            (0..times).for_each(|_| traffic.note(reply, ms(1)));
        }
        let mut stats = NodeStats::of("a");
        traffic.add_to(&mut stats);
        traffic.add_to(&mut stats); // another lane with the same counts
        assert_eq!((stats.done, stats.refused), (2, 4));
        assert_eq!((stats.faults, stats.unknown), (6, 8));
        assert_eq!((stats.latency.count, stats.latency.total), (12, ms(12)));
    }
}
