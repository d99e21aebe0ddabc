//! The public error type and its messages.
//!
//! Tests: in this file (messages); beside `classes.rs`, `details.rs`, `node_failure.rs`.

use std::fmt;
use std::time::Duration;

use crate::error::contended_lock::{ContendedLock, WaitText, Writer};
use crate::error::failed_node::{Appended, FailedNode, FailureList};
use crate::error::loss_reason::LossReason;
use crate::error::operation::Operation;

/// Why a lock was not acquired, extended or released.
///
/// *Held by another* ([`Contended`](Error::Contended) and its like for read-write locks) means that
/// a quorum of nodes replied. *Unavailable* ([`InsufficientQuorum`](Error::InsufficientQuorum) and
/// its like) means that no quorum replied in time. The two are never mixed up.
/// [`is_contended`](Error::is_contended), [`is_unavailable`](Error::is_unavailable),
/// [`is_denied`](Error::is_denied) and [`is_lost`](Error::is_lost) sort errors by the reaction to
/// them.
///
/// `Display` is one line for people, with the causes; `Debug` shows the fields. [The
/// guide](crate::guide::getting_started#exit-codes-and-signals) has a `main` that turns errors into
/// exit codes.
///
/// ```
/// use redguard::Error;
///
/// fn advice(error: &Error) -> &'static str {
///     match error {
///         Error::CircuitOpen { .. } => "come back in a minute",
///         _ if error.is_contended() => "held by another",
///         _ if error.is_unavailable() => "the nodes do not answer",
///         _ if error.is_denied() => "correct the password, the rights or the certificates",
///         _ if error.is_lost() => "stop, and check the work",
///         _ => "correct the program or its settings",
///     }
/// }
///
/// assert_eq!(advice(&Error::Closed), "correct the program or its settings");
/// assert!(Error::Closed.to_string().starts_with("nodes shut down"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is not a [`LockToken`](crate::LockToken).
    #[error("invalid lock token")]
    InvalidLockToken,

    /// The lock is held in this process alone, so no other process can adopt it. It is released.
    #[error("not on the nodes: the lock is held in this process alone")]
    NotOnNodes,

    /// The list of nodes is empty.
    #[error("no node addresses")]
    NoAddresses,

    /// A setting is out of range, or contradicts another. The text names the values.
    #[error("invalid configuration: {0}")]
    InvalidConfig(String),

    /// The lock name cannot be used.
    #[error("invalid lock name{}: {reason}", QuotedName(name))]
    InvalidKey {
        /// The name as it was given; a long one is shortened.
        name: String,
        /// Why it cannot be used.
        reason: String,
    },

    /// The TTL is too long for Redis, or too short for any attempt.
    #[error("invalid TTL of {ttl:?}: {reason}")]
    InvalidTtl {
        /// The TTL as it was given.
        ttl: Duration,
        /// Why it cannot be used.
        reason: String,
    },

    /// Fewer nodes than a quorum did as they were asked, and too few refused: the holder of the
    /// lock is unknown.
    #[error(
        "no quorum: {operation} {} of {total} nodes, {needed} are needed{}",
        operation.done(*total, causes),
        FailureList(causes)
    )]
    InsufficientQuorum {
        /// The request.
        operation: Operation,
        /// The quorum of the configured nodes, `total / 2 + 1`.
        needed: usize,
        /// The number of nodes that replied, errors included.
        reachable: usize,
        /// The number of configured nodes.
        total: usize,
        /// The failure of each node that did not do it, in the order of the configuration.
        causes: Box<[FailedNode]>,
    },

    /// The circuit breaker is open ([`Config::circuit_breaker`](crate::Config::circuit_breaker)):
    /// no quorum has replied for a number of rounds. Returned at once by calls that do not wait;
    /// others wait for the nodes, as [`RetryPolicy::max_outage`](crate::RetryPolicy::max_outage)
    /// says.
    #[error(
        "circuit breaker open (no quorum); next attempt in {retry_in:.0?} or with a quorum connected{}",
        Appended(causes)
    )]
    CircuitOpen {
        /// The longest time until the nodes are asked again; a quorum that is connected before ends
        /// it.
        retry_in: Duration,
        /// The last failure of each node that is not connected or did not reply, in the order of
        /// the configuration.
        causes: Box<[FailedNode]>,
    },

    /// Another holder has the lock, and a limit on waiting or attempts was reached. Also if several
    /// callers asked for a free lock at the same moment and none of them won
    /// ([`try_acquire`](crate::Locker::try_acquire)).
    #[error("{lock}{}", WaitText { remaining, waited, attempts })]
    Contended {
        /// The lock, and its holder if a node told it.
        lock: Box<ContendedLock>,
        /// The number of attempts. Each retry delay spent in the queue of this process counts as
        /// one.
        attempts: u32,
        /// The time since the call.
        waited: Duration,
        /// The time until the lock is free, unless its holder extends it; `None` if unknown.
        remaining: Option<Duration>,
    },

    /// A writer holds the lock or waits for it, and a limit on waiting for a read lock was reached.
    #[error(
        "{:?} is held or waited for by {}{}",
        lock.key,
        Writer(lock, "a writer"),
        WaitText { remaining, waited, attempts }
    )]
    WriteLockTimeout {
        /// The lock, and its holder if a node told it.
        lock: Box<ContendedLock>,
        /// The number of attempts. Each retry delay spent in the queue of this process counts as
        /// one.
        attempts: u32,
        /// The time since the call.
        waited: Duration,
        /// The time until the writer's lease ends, unless it is extended; `None` if unknown.
        remaining: Option<Duration>,
    },

    /// Another writer holds the lock, and a limit on waiting for a write lock was reached.
    #[error(
        "{:?} is held by {}{}",
        lock.key,
        Writer(lock, "another writer"),
        WaitText { remaining, waited, attempts }
    )]
    WriteLockHeld {
        /// The lock, and its holder if a node told it.
        lock: Box<ContendedLock>,
        /// The number of attempts. Each retry delay spent in the queue of this process counts as
        /// one.
        attempts: u32,
        /// The time since the call.
        waited: Duration,
        /// The time until the writer's lease ends, unless it is extended; `None` if unknown.
        remaining: Option<Duration>,
    },

    /// Readers hold the lock or have their turn, and a limit on waiting for a write lock was
    /// reached.
    #[error("{:?} is held by readers{}", lock.key, WaitText { remaining, waited, attempts })]
    ReadersTimeout {
        /// The lock, and its holder if a node told it.
        lock: Box<ContendedLock>,
        /// The number of attempts. Each retry delay spent in the queue of this process counts as
        /// one.
        attempts: u32,
        /// The time since the call.
        waited: Duration,
        /// The time until the last reader's lease ends, unless one is extended; `None` if unknown.
        remaining: Option<Duration>,
    },

    /// The nodes are too slow for the TTL: three attempts in a row, or the only one allowed, left
    /// less validity than [`Config::min_validity`](crate::Config::min_validity) asks for.
    #[error(
        "nodes too slow for a TTL of {ttl:?}: too little validity left after {attempts} attempts"
    )]
    ValidityExhausted {
        /// The number of attempts.
        attempts: u32,
        /// The TTL of the acquire.
        ttl: Duration,
    },

    /// A [`CancelToken`](crate::CancelToken) ended the wait. The lock is not held, and an attempt
    /// in progress is undone.
    #[error("wait for the lock cancelled")]
    Cancelled,

    /// The guard does not hold its lock any more: the lease expired, a quorum of nodes replied that
    /// the lock is not ours, or the nodes were shut down while it was held.
    #[error("{key:?}: lock lost: {reason}")]
    LockLost {
        /// The lock's name as it was given; of several the first in sorted order.
        key: String,
        /// Why the lock is lost.
        reason: LossReason,
    },

    /// The nodes are shut down, or the process is a forked child, which has none of their threads.
    /// A daemon connects after its fork.
    #[error("nodes shut down, or connected before a fork: connect in the child process")]
    Closed,

    /// The operating system refused a thread, or random bytes for a token. No lock is held after
    /// it: a lock whose thread for renewals, callbacks or notices is refused is released again.
    #[error("operating system refused {what}: {reason}")]
    System {
        /// The refused resource.
        what: &'static str,
        /// The system's own error text.
        reason: String,
    },
}

/// A result with this crate's [`Error`].
///
/// ```
/// fn report(locker: &dyn redguard::Locker) -> redguard::Result<()> {
///     locker.lock("report", std::time::Duration::from_secs(30))?.release()
/// }
///
/// report(&redguard::LocalLocker::new()).unwrap();
/// ```
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A quoted name in a message, or nothing if it is empty.
struct QuotedName<'a>(&'a str);

impl fmt::Display for QuotedName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            "" => Ok(()),
            name => write!(f, " {name:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::node_failure::NodeFailure;
    use crate::tests::fixtures::insufficient;

    #[test]
    fn insufficient_quorum_names_each_node_and_failure() {
        for (operation, verb) in [
            (Operation::Connect, "connected to"),
            (Operation::Acquire, "granted by"),
            (Operation::Extend, "extended on"),
            (Operation::Release, "released on"),
            (Operation::Inspect, "answered by"),
        ] {
            let error = insufficient(
                operation,
                &[NodeFailure::TimedOut, NodeFailure::Held { remaining: None }],
            );
            assert_eq!(
                error.to_string(),
                format!(
                    "no quorum: {verb} 1 of 3 nodes, 2 are needed: n0: no answer in time; n1: held by another"
                )
            );
            assert!(error.is_unavailable() && !error.is_contended() && !error.is_lost());
        }
    }

    #[test]
    fn contention_names_lock_holder_and_end() {
        let (waited, left) = (Duration::from_millis(2_010), Duration::from_millis(28_500));
        for (label, permits, remaining, attempts, expected) in [
            (
                Some("web-7/1234"),
                None,
                Some(left),
                4,
                "\"backup\" is held by web-7/1234, free in 29 s at the latest unless renewed (waited 2.0 s, 4 attempts)",
            ),
            (
                None,
                None,
                None,
                1,
                "\"backup\" is held by another (waited 2.0 s, 1 attempt)",
            ),
            (
                None,
                Some(3),
                Some(Duration::from_millis(30)),
                2,
                "all 3 permits of \"backup\" are held, free in 30 ms at the latest unless renewed (waited 2.0 s, 2 attempts)",
            ),
            (
                None,
                Some(1),
                Some(Duration::ZERO),
                2,
                "the only permit of \"backup\" is held (waited 2.0 s, 2 attempts)",
            ),
        ] {
            let error = Error::Contended {
                lock: lock(label, permits),
                attempts,
                waited,
                remaining,
            };
            assert_eq!(error.to_string(), expected);
            assert!(error.is_contended() && error.contended_lock().is_some());
        }
    }

    #[test]
    fn contention_of_readers_and_writers_names_the_side_that_holds() {
        let waited = Duration::from_millis(2_010);
        let (attempts, remaining) = (2, None);
        for (label, expected) in [
            (None, ["a writer", "another writer"]),
            (Some("w/1"), ["the writer w/1", "the writer w/1"]),
        ] {
            let refused_reader = Error::WriteLockTimeout {
                lock: lock(label, None),
                attempts,
                waited,
                remaining,
            };
            let refused_writer = Error::WriteLockHeld {
                lock: lock(label, None),
                attempts,
                waited,
                remaining,
            };
            let end = "(waited 2.0 s, 2 attempts)";
            let [by_reader, by_writer] = expected;
            let reader_text = format!("\"backup\" is held or waited for by {by_reader} {end}");
            assert_eq!(refused_reader.to_string(), reader_text);
            let writer_text = format!("\"backup\" is held by {by_writer} {end}");
            assert_eq!(refused_writer.to_string(), writer_text);
        }
        let by_readers = Error::ReadersTimeout {
            lock: lock(None, None),
            attempts,
            waited,
            remaining: Some(Duration::from_millis(1_234)),
        };
        assert_eq!(
            by_readers.to_string(),
            "\"backup\" is held by readers, free in 1.3 s at the latest unless renewed (waited 2.0 s, 2 attempts)"
        );
    }

    fn lock(label: Option<&str>, permits: Option<u32>) -> Box<ContendedLock> {
        Box::new(ContendedLock {
            key: "backup".into(),
            owner_label: label.map(str::to_owned),
            permits,
        })
    }

    #[test]
    fn circuit_open_names_the_last_failures() {
        let cause = |node: &str| FailedNode {
            node: node.into(),
            failure: NodeFailure::TimedOut,
            limit: None,
        };
        let error = Error::CircuitOpen {
            retry_in: Duration::from_secs(60),
            causes: Box::new([cause("a:1"), cause("b:2")]),
        };
        let timed_out = NodeFailure::TimedOut.to_string();
        assert_eq!(
            error.to_string(),
            format!(
                "circuit breaker open (no quorum); next attempt in 60s or with a quorum connected; a:1: {timed_out}; b:2: {timed_out}"
            )
        );
        assert!(error.is_unavailable());
    }

    #[test]
    fn invalid_key_without_a_name_shows_no_quotes() {
        for (name, text) in [
            ("", "invalid lock name: none was given"),
            ("a:gate", "invalid lock name \"a:gate\": none was given"),
        ] {
            let error = Error::InvalidKey {
                name: name.into(),
                reason: "none was given".into(),
            };
            assert_eq!(error.to_string(), text);
        }
    }

    #[test]
    fn error_size_is_at_most_64_bytes() {
        assert!(size_of::<Error>() <= 64, "{}", size_of::<Error>());
    }
}
