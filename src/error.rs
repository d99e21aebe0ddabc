//! What can go wrong, as a caller sees it: one small enum, and the cause that each node gave.

use std::fmt;
use std::time::Duration;

use crate::error;

/// Why a lock was not taken, kept or confirmed.
///
/// *Held by another* ([`Contended`](Error::Contended), and for read-write locks one variant for each side that can stand
/// in the way of which) and *could not find out* ([`InsufficientQuorum`](Error::InsufficientQuorum)) are never mixed up:
/// the first means that a quorum of the nodes answered. [`is_contended`](Error::is_contended), [`is_unavailable`](Error::is_unavailable),
/// [`is_denied`](Error::is_denied) and [`is_lost`](Error::is_lost) sort errors by what a program can do about them.
///
/// `Display` has one line for people, causes included; `Debug` has the fields. [The guide](crate::guide#a-programs-main) has a
/// `main` that makes exit codes of them.
///
/// ```
/// use redguard::Error;
///
/// fn advice(error: &Error) -> &'static str {
///     match error {
///         Error::CircuitOpen { retry_in, .. } if retry_in.as_secs() > 30 => "come back in a minute",
///         _ if error.is_contended() => "another one is at it",
///         _ if error.is_unavailable() => "the nodes do not answer",
///         _ if error.is_denied() => "mend the password, the rights or the certificates",
///         _ if error.is_lost() => "stop, and look at what was done",
///         _ => "mend the program or its settings",
///     }
/// }
///
/// assert_eq!(advice(&Error::Closed), "mend the program or its settings");
/// assert!(Error::Closed.to_string().starts_with("the nodes are shut down"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A text that should be a [`LockToken`](crate::LockToken) is none.
    #[error("not a token of a lock that was handed over")]
    InvalidLockToken,

    /// The lock is held in this process alone, so it cannot be handed over to another. It is released.
    #[error("the lock is held in this process alone")]
    NotOnNodes,

    /// The list of nodes is empty.
    #[error("no node addresses were given")]
    NoAddresses,

    /// A setting is out of range, or contradicts another. The text names what was given.
    #[error("invalid configuration: {0}")]
    InvalidConfig(String),

    /// A lock name that cannot be used.
    #[error("invalid lock name{}: {reason}", QuotedName(name))]
    InvalidKey {
        /// The name that was given, shortened when it is long.
        name: String,
        /// What is wrong with it.
        reason: String,
    },

    /// A TTL that Redis does not take, or that no attempt could be fast enough for.
    #[error("invalid TTL of {ttl:?}: {reason}")]
    InvalidTtl {
        /// The TTL that was given.
        ttl: Duration,
        /// What is wrong with it.
        reason: String,
    },

    /// Fewer nodes than a quorum did what was asked of them, and too few said that they will not: nobody knows who holds the
    /// lock.
    #[error(
        "no quorum: {operation} {} of {total} nodes, {needed} are needed{}",
        operation.done(*total, causes),
        FailureList(causes)
    )]
    InsufficientQuorum {
        /// What the nodes were asked to do.
        operation: Operation,
        /// The quorum of the configured nodes, `total / 2 + 1`.
        needed: usize,
        /// How many nodes answered anything, errors included.
        reachable: usize,
        /// How many nodes are configured.
        total: usize,
        /// What stood in the way on each node that did not do it, in the order of the configuration.
        causes: Box<[FailedNode]>,
    },

    /// No quorum has replied for so many rounds that the nodes are not asked for a while
    /// ([`Config::circuit_breaker`](crate::Config::circuit_breaker)), or only to see whether they are back. Returned at once by calls that do not
    /// wait; all others wait for the nodes, as [`RetryPolicy::max_outage`](crate::RetryPolicy::max_outage) says.
    #[error(
        "circuit breaker open (no quorum); next attempt in {retry_in:.0?} at the latest, sooner when nodes are back{}",
        Appended(causes)
    )]
    CircuitOpen {
        /// When the nodes are asked again at the latest; sooner if a quorum of them is connected before.
        retry_in: Duration,
        /// Why each node that is not connected is not, or did not reply when it was asked last, in the order of the configuration.
        causes: Box<[FailedNode]>,
    },

    /// The lock is held by another, and a limit on waiting ran out.
    #[error("held by another (attempts: {attempts}, waited {waited:.1?})")]
    Contended {
        /// How many attempts were made. A back-off delay that passed in the queue of this process counts as one.
        attempts: u32,
        /// How long the call waited.
        waited: Duration,
        /// When the lock is free at the latest if its holder does not extend it; `None` where that is unknown.
        remaining: Option<Duration>,
    },

    /// A read lock was waited for: a writer holds the lock, or waits for it, and a limit on waiting ran out.
    #[error("held or waited for by a writer (attempts: {attempts}, waited {waited:.1?})")]
    WriteLockTimeout {
        /// How many attempts were made. A back-off delay that passed in the queue of this process counts as one.
        attempts: u32,
        /// How long the call waited.
        waited: Duration,
        /// When the writer is gone at the latest if it does not extend; `None` where that is unknown.
        remaining: Option<Duration>,
    },

    /// A write lock was waited for: another writer holds it, and a limit on waiting ran out.
    #[error("held by another writer (attempts: {attempts}, waited {waited:.1?})")]
    WriteLockHeld {
        /// How many attempts were made. A back-off delay that passed in the queue of this process counts as one.
        attempts: u32,
        /// How long the call waited.
        waited: Duration,
        /// When the writer is gone at the latest if it does not extend; `None` where that is unknown.
        remaining: Option<Duration>,
    },

    /// A write lock was waited for: readers hold the lock, or have their turn, and a limit on waiting ran out.
    #[error("held by readers (attempts: {attempts}, waited {waited:.1?})")]
    ReadersTimeout {
        /// How many attempts were made. A back-off delay that passed in the queue of this process counts as one.
        attempts: u32,
        /// How long the call waited.
        waited: Duration,
        /// When the last of the readers is gone if none of them extends; `None` where that is unknown.
        remaining: Option<Duration>,
    },

    /// Three attempts in a row (or the only one that was allowed) won too late to leave the validity that
    /// [`Config::min_validity`](crate::Config::min_validity) asks for. The nodes are too slow for this TTL.
    #[error("nodes too slow for a TTL of {ttl:?}: {attempts} attempts left too little validity")]
    ValidityExhausted {
        /// How many attempts were made.
        attempts: u32,
        /// The TTL that was asked for.
        ttl: Duration,
    },

    /// The wait was ended by its [`CancelToken`](crate::CancelToken). Nothing is held, and what was asked for is undone.
    #[error("the wait for the lock was cancelled")]
    Cancelled,

    /// The guard no longer holds its lock: it expired, or a quorum of nodes says that it is not ours.
    #[error("the lock of {key:?} is lost: {reason}")]
    LockLost {
        /// The lock's name, as it was given; of several the first in their order.
        key: String,
        /// Why it is lost.
        reason: LossReason,
    },

    /// The nodes were shut down, or the process is a forked child without their threads: a daemon connects after it has forked.
    #[error("the nodes are shut down, or belong to the process before its fork: connect after it")]
    Closed,

    /// The operating system refused something: a thread, or random bytes for a token.
    #[error("the operating system refused {what}: {reason}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// The system's own words.
        reason: String,
    },
}

impl Error {
    /// Whether the lock is held by another: trying again later may help.
    pub fn is_contended(&self) -> bool {
        matches!(
            self,
            Error::Contended { .. }
                | Error::WriteLockTimeout { .. }
                | Error::WriteLockHeld { .. }
                | Error::ReadersTimeout { .. }
        )
    }

    /// Whether nobody could find out, because too few nodes answered in time: waiting may help, unless it
    /// [`is_denied`](Error::is_denied).
    pub fn is_unavailable(&self) -> bool {
        let is_unknown = matches!(
            self,
            Error::InsufficientQuorum { .. }
                | Error::CircuitOpen { .. }
                | Error::ValidityExhausted { .. }
        );
        is_unknown && !self.is_denied()
    }

    /// Whether so many nodes deny access that no quorum is left without them: waiting does not help, but other credentials,
    /// rights or certificates do.
    pub fn is_denied(&self) -> bool {
        let Error::InsufficientQuorum {
            needed,
            total,
            causes,
            ..
        } = self
        else {
            return false;
        };
        let denied = causes
            .iter()
            .filter(|node| matches!(node.failure, NodeFailure::AccessDenied(_)));
        denied.count() > total.saturating_sub(*needed)
    }

    /// Whether a lock that was held is held no longer.
    pub fn is_lost(&self) -> bool {
        matches!(self, Error::LockLost { .. })
    }
}

/// What the nodes were asked to do, as an [`Error::InsufficientQuorum`] tells it.
///
/// ```
/// use redguard::Operation;
///
/// assert_eq!(format!("{} 1 of 3 nodes", Operation::Release), "released on 1 of 3 nodes");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// To accept a connection.
    Connect,
    /// To grant a lock.
    Acquire,
    /// To extend a lock, or to confirm that it is held.
    Extend,
    /// To release a lock.
    Release,
    /// To say who holds a lock, or to delete it whoever holds it.
    Inspect,
}

impl Operation {
    /// How many of the nodes did it. All others have a cause, but some of these are answers.
    fn done(self, total: usize, causes: &[FailedNode]) -> usize {
        let is_answer =
            |cause: &NodeFailure| *cause == NodeFailure::NotOurs || cause.is_permanent();
        let others = causes
            .iter()
            .filter(|node| self != Operation::Inspect || !is_answer(&node.failure));
        total.saturating_sub(others.count())
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Operation::Connect => "connected to",
            Operation::Acquire => "granted by",
            Operation::Extend => "extended on",
            Operation::Release => "released on",
            Operation::Inspect => "answered by",
        })
    }
}

/// Why a lock is lost that was held.
///
/// ```
/// use redguard::{LockGuard, LossReason};
///
/// fn explain(guard: &LockGuard) {
///     match guard.watch().loss_reason() {
///         None => println!("held, or released"),
///         Some(LossReason::Expired) => println!("paused for too long, or no quorum to renew it on"),
///         Some(reason) => println!("{reason}"),
///     }
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum LossReason {
    /// Its lease ended: it was not extended in time, or could not be.
    #[error("its lease ended")]
    Expired,

    /// A quorum of nodes says that another has it, or nobody: it expired there, was deleted, taken away or adopted.
    #[error("a quorum of nodes says that it is not ours")]
    NotOurs,

    /// The nodes were shut down while it was held ([`Nodes::shutdown`](crate::Nodes::shutdown)): it is left to its TTL.
    #[error("the nodes were shut down")]
    ShutDown,
}

/// One node's part in an [`Error::InsufficientQuorum`].
///
/// ```
/// use redguard::{NodeFailure, Error};
///
/// /// The nodes with which it takes an operator: waiting for them does not help.
/// fn denied(error: &Error) -> Vec<&str> {
///     let Error::InsufficientQuorum { causes, .. } = error else {
///         return Vec::new();
///     };
///     let denied = causes.iter().filter(|c| matches!(c.failure, NodeFailure::AccessDenied(_)));
///     denied.map(|c| c.node.as_str()).collect()
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FailedNode {
    /// The node's address, without credentials.
    pub node: String,
    /// What it answered, or why it did not.
    pub failure: NodeFailure,
    /// The limit that a time-out exceeded.
    pub(crate) limit: Option<AnswerLimit>,
}

impl fmt::Display for FailedNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.failure, &self.limit) {
            (NodeFailure::TimedOut, Some(limit)) => {
                write!(f, "{}: no answer within {limit}", self.node)
            }
            _ => write!(f, "{}: {}", self.node, self.failure),
        }
    }
}

/// How long a node had to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AnswerLimit {
    /// It was connected. A round trip took so long when it was connected to, which tells a limit that is too short from a node
    /// that hangs.
    Node {
        node_timeout: Duration,
        connecting: Duration,
    },
    /// It was being connected to.
    Connect { connect_timeout: Duration },
}

impl fmt::Display for AnswerLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AnswerLimit::Node {
                node_timeout,
                connecting,
            } => {
                let [limit, connecting] = [*node_timeout, *connecting].map(error::in_words);
                write!(f, "{limit} (node_timeout; connecting took {connecting})")
            }
            AnswerLimit::Connect { connect_timeout } => {
                let limit = error::in_words(*connect_timeout);
                write!(f, "{limit} (connect_timeout)")
            }
        }
    }
}

impl Error {
    /// Adds the limits that nodes exceeded, which `of` returns for a node of this name.
    pub(crate) fn with_limits(mut self, of: impl Fn(&str) -> AnswerLimit) -> Error {
        if let Error::InsufficientQuorum { causes, .. } | Error::CircuitOpen { causes, .. } =
            &mut self
        {
            for cause in causes
                .iter_mut()
                .filter(|it| it.failure == NodeFailure::TimedOut)
            {
                cause.limit = Some(of(&cause.node));
            }
        }
        self
    }
}

/// Why a node did not grant.
///
/// ```
/// use redguard::NodeFailure;
///
/// let cause = NodeFailure::Unreachable("Connection refused (os error 111)".to_owned());
/// assert_eq!(cause.to_string(), "unreachable: Connection refused (os error 111)");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NodeFailure {
    /// No connection, or it broke. The text is the operating system's.
    #[error("unreachable: {0}")]
    Unreachable(String),

    /// The connection stands, but no answer came in time.
    #[error("no answer in time")]
    TimedOut,

    /// The credentials are wrong, missing, or not allowed to do what is needed; or one side does not accept the other's
    /// certificate.
    #[error("access denied: {0}")]
    AccessDenied(String),

    /// The server answered with an error (`READONLY`, `LOADING`, `OOM` …), given in its own words.
    #[error("server error: {0}")]
    ServerError(String),

    /// The lock is held by another there, for `remaining` at most if the holder does not extend it.
    #[error("held by another")]
    Held {
        /// The rest of the holder's TTL; `None` if the key has no expiry.
        remaining: Option<Duration>,
    },

    /// Readers hold the lock there, or have their turn; for `remaining` at most if none of them extends.
    #[error("held by readers")]
    HeldByReaders {
        /// Until the last of them ends.
        remaining: Option<Duration>,
    },

    /// A writer waits for the lock there, and new readers stand back.
    #[error("a writer waits for it")]
    WriterWaiting {
        /// Until it has to say again that it waits.
        remaining: Option<Duration>,
    },

    /// The node has started so short a time ago that it may have lost locks which are still held
    /// ([`Config::restart_quarantine`](crate::Config::restart_quarantine)): it does not vote on new ones.
    #[error("in quarantine after its start")]
    Quarantined {
        /// Until it votes.
        remaining: Duration,
    },

    /// The semaphore has another number of permits there, of which one is held.
    #[error("the semaphore has {permits} permits there")]
    PermitCountMismatch {
        /// How many it has there.
        permits: u32,
    },

    /// The lock is not ours there (any more).
    #[error("not ours")]
    NotOurs,

    /// A value of another type stands under one of the lock's keys, or what is no number under its fence counter. It is left
    /// untouched.
    #[error("a value of another type stands under the key")]
    WrongType,

    /// The node is a cluster, and the keys that are asked for together do not share one of its slots.
    #[error("the keys do not share a slot of the cluster")]
    CrossSlot,
}

impl NodeFailure {
    /// Whether it does not pass by asking again.
    pub(crate) fn is_permanent(&self) -> bool {
        matches!(self, NodeFailure::WrongType | NodeFailure::CrossSlot)
    }

    /// Whether the node could not be reached, did not reply, or is loading its data: then it serves nobody else either, as far as
    /// can be told. Any other error is a reply of a node that could also serve another holder (rule S9).
    pub(crate) fn is_outage(&self) -> bool {
        match self {
            NodeFailure::Unreachable(_) | NodeFailure::TimedOut => true,
            // With a place before it where a sentinel named the server. At its limit a server refuses the connection itself.
            NodeFailure::ServerError(text) => {
                let is_loading = text.starts_with("LOADING") || text.contains(": LOADING");
                is_loading || text.contains("max number of clients")
            }
            _ => false,
        }
    }

    /// Whether a node replied with this error.
    pub(crate) fn is_reply(&self) -> bool {
        self.is_permanent()
            || matches!(
                self,
                NodeFailure::ServerError(_) | NodeFailure::AccessDenied(_)
            )
    }

    /// For how long this stands in the way, if that is known.
    pub(crate) fn remaining(&self) -> Option<Duration> {
        match self {
            NodeFailure::Held { remaining } | NodeFailure::HeldByReaders { remaining } => {
                *remaining
            }
            NodeFailure::Quarantined { remaining } => Some(*remaining),
            // A writer that waits may have the lock before it is free for us.
            _ => None,
        }
    }
}

/// A name in a message, if there is one.
struct QuotedName<'a>(&'a str);

impl fmt::Display for QuotedName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            "" => Ok(()),
            name => write!(f, " {name:?}"),
        }
    }
}

/// Causes as they stand at the end of a message.
struct FailureList<'a>(&'a [FailedNode]);

impl fmt::Display for FailureList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, cause) in self.0.iter().enumerate() {
            write!(f, "{}{cause}", if i == 0 { ": " } else { "; " })?;
        }
        Ok(())
    }
}

/// Causes behind a message that has an end of its own.
struct Appended<'a>(&'a [FailedNode]);

impl fmt::Display for Appended<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|cause| write!(f, "; {cause}"))
    }
}

/// A duration as it is read by people.
pub(crate) fn in_words(duration: Duration) -> String {
    match duration.as_millis() {
        ms @ ..10_000 => format!("{ms} ms"),
        _ => format!("{:.1} s", duration.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_each_node_and_cause() {
        for (operation, words) in [
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
                    "no quorum: {words} 1 of 3 nodes, 2 are needed: n0: no answer in time; n1: held by another"
                )
            );
            assert!(error.is_unavailable() && !error.is_contended() && !error.is_lost());
        }
    }

    /// Of three nodes, with the causes of those that did not do it.
    fn insufficient(operation: Operation, causes: &[NodeFailure]) -> Error {
        let causes = causes.iter().enumerate().map(|(node, cause)| FailedNode {
            node: format!("n{node}"),
            failure: cause.clone(),
            limit: None,
        });
        let causes: Box<[FailedNode]> = causes.collect();
        Error::InsufficientQuorum {
            operation,
            needed: 2,
            reachable: 3 - causes.len(),
            total: 3,
            causes,
        }
    }

    #[test]
    fn denial_of_so_many_nodes_that_no_quorum_is_left_is_no_outage() {
        let (down, denied) = (
            NodeFailure::TimedOut,
            NodeFailure::AccessDenied("WRONGPASS".into()),
        );
        for (causes, is_denied) in [
            (vec![&denied, &denied], true),
            (vec![&denied, &denied, &denied], true),
            (vec![&down, &denied, &denied], true),
            (vec![&denied, &down], false),
            (vec![&denied, &down, &down], false),
            (vec![&down, &down], false),
        ] {
            let causes: Vec<NodeFailure> = causes.into_iter().cloned().collect();
            let error = insufficient(Operation::Acquire, &causes);
            assert_eq!(error.is_denied(), is_denied, "{error}");
            assert_eq!(error.is_unavailable(), !is_denied, "{error}");
        }
        assert!(!Error::Closed.is_denied());
    }

    #[test]
    fn timed_out_node_is_told_with_the_limit_that_it_exceeded() {
        let ms = Duration::from_millis;
        let timed_out = |node: &str, cause| FailedNode {
            node: node.into(),
            failure: cause,
            limit: None,
        };
        let error = Error::InsufficientQuorum {
            operation: Operation::Connect,
            needed: 2,
            reachable: 0,
            total: 3,
            causes: Box::new([
                timed_out("a:1", NodeFailure::TimedOut),
                timed_out("b:2", NodeFailure::TimedOut),
                timed_out("c:3", NodeFailure::Unreachable("gone".into())),
            ]),
        };
        let told = error.with_limits(|node| match node {
            "a:1" => AnswerLimit::Node {
                node_timeout: ms(200),
                connecting: ms(264),
            },
            _ => AnswerLimit::Connect {
                connect_timeout: ms(1000),
            },
        });
        let told = told.to_string();
        let words = ": a:1: no answer within 200 ms (node_timeout; connecting took 264 ms); \
                     b:2: no answer within 1000 ms (connect_timeout); c:3: unreachable: gone";
        assert!(told.ends_with(words), "{told}");
        let open = Error::CircuitOpen {
            retry_in: Duration::from_secs(60),
            causes: Box::new([timed_out("a:1", NodeFailure::TimedOut)]),
        };
        let told = open.with_limits(|_| AnswerLimit::Node {
            node_timeout: ms(200),
            connecting: ms(1),
        });
        let told = told.to_string();
        let words = "; a:1: no answer within 200 ms (node_timeout; connecting took 1 ms)";
        assert!(told.ends_with(words), "{told}");
    }

    #[test]
    fn an_open_breaker_names_the_last_causes() {
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
                "circuit breaker open (no quorum); next attempt in 60s at the latest, sooner when nodes are back; a:1: {timed_out}; b:2: {timed_out}"
            )
        );
        assert!(error.is_unavailable());
    }

    #[test]
    fn only_silence_refusal_to_connect_and_loading_are_outages() {
        let server = |text: &str| NodeFailure::ServerError(text.into());
        for (cause, expected) in [
            (NodeFailure::TimedOut, true),
            (NodeFailure::Unreachable("refused".into()), true),
            (
                server("LOADING Redis is loading the dataset in memory"),
                true,
            ),
            (server("10.0.0.1:6379: LOADING Redis is loading"), true),
            (server("ERR max number of clients reached"), true),
            (server("OOM command not allowed"), false),
            (server("TRYAGAIN Multiple keys"), false),
            (server("MISCONF Redis is configured to save"), false),
            (server("BUSY Redis is busy running a script"), false),
            (server("MASTERDOWN Link with MASTER is down"), false),
            (server("CLUSTERDOWN the cluster is down"), false),
            (server("ERR value is not an integer or out of range"), false),
            (NodeFailure::AccessDenied("NOPERM".into()), false),
            (NodeFailure::WrongType, false),
            (NodeFailure::Held { remaining: None }, false),
        ] {
            assert_eq!(cause.is_outage(), expected, "{cause}");
        }
    }

    #[test]
    fn a_name_that_is_none_is_not_shown() {
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
    fn an_error_stays_small() {
        assert!(size_of::<Error>() <= 64, "{}", size_of::<Error>());
    }
}
