//! The public error type, with a failure for each node.

use std::fmt;
use std::time::Duration;

use crate::error::error;

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

    /// Another holder has the lock, and a limit on waiting or attempts was reached.
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

    /// The guard does not hold its lock any more: the lease expired, or a quorum of nodes replied
    /// that the lock is not ours.
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

    /// The operating system refused a thread, or random bytes for a token.
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

impl Error {
    /// Returns whether another holder has the lock: a later attempt may succeed.
    pub fn is_contended(&self) -> bool {
        matches!(
            self,
            Error::Contended { .. }
                | Error::WriteLockTimeout { .. }
                | Error::WriteLockHeld { .. }
                | Error::ReadersTimeout { .. }
        )
    }

    /// Returns whether too few nodes replied in time for a verdict: waiting may help. Returns
    /// `false` for an error that [`is_denied`](Error::is_denied).
    pub fn is_unavailable(&self) -> bool {
        let is_unknown = matches!(
            self,
            Error::InsufficientQuorum { .. }
                | Error::CircuitOpen { .. }
                | Error::ValidityExhausted { .. }
        );
        is_unknown && !self.is_denied()
    }

    /// Returns whether the nodes that deny access leave no quorum: other credentials, rights or
    /// certificates help, waiting does not.
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

    /// Returns the lock that [`is_contended`](Error::is_contended), and its holder if that is
    /// known.
    pub fn contended_lock(&self) -> Option<&ContendedLock> {
        match self {
            Error::Contended { lock, .. }
            | Error::WriteLockTimeout { lock, .. }
            | Error::WriteLockHeld { lock, .. }
            | Error::ReadersTimeout { lock, .. } => Some(lock),
            _ => None,
        }
    }

    /// Returns whether a held lock was lost.
    pub fn is_lost(&self) -> bool {
        matches!(self, Error::LockLost { .. })
    }

    /// Returns the exit code of a program that ends with this error, as in sysexits.h:
    ///
    /// | code | for | what helps |
    /// |---|---|---|
    /// | 64 | a wrong name, address, setting, TTL or lock token | correct it |
    /// | 69 | [`is_unavailable`](Error::is_unavailable) | come back later; look at the nodes |
    /// | 70 | [`is_lost`](Error::is_lost), and all others | stop, and check the work |
    /// | 75 | [`is_contended`](Error::is_contended) | come back later |
    /// | 77 | [`is_denied`](Error::is_denied) | other credentials, rights or certificates |
    ///
    /// ```
    /// use redguard::Error;
    /// use std::process::ExitCode;
    ///
    /// fn exit(result: Result<(), Error>) -> ExitCode {
    ///     let Err(error) = result else {
    ///         return ExitCode::SUCCESS;
    ///     };
    ///     eprintln!("report: {error}");
    ///     ExitCode::from(error.exit_code())
    /// }
    ///
    /// assert_eq!(exit(Err(Error::NoAddresses)), ExitCode::from(64));
    /// ```
    pub fn exit_code(&self) -> u8 {
        match self {
            _ if self.is_contended() => 75,
            _ if self.is_denied() => 77,
            _ if self.is_unavailable() => 69,
            Error::NoAddresses
            | Error::InvalidConfig(_)
            | Error::InvalidKey { .. }
            | Error::InvalidTtl { .. }
            | Error::InvalidLockToken => 64,
            _ => 70,
        }
    }
}

/// A lock that others hold, in [`Error::Contended`] and its like. `Display` says who holds it.
///
/// ```
/// use redguard::{LocalLocker, LockOptions, Locker};
/// use std::time::Duration;
///
/// # fn main() -> Result<(), redguard::Error> {
/// let locker = LocalLocker::new();
/// let options = LockOptions::new(Duration::from_secs(30)).wait_for(Duration::ZERO);
/// let _guard = locker.acquire("backup", &options.clone().owner_label("web-7:1234"))?;
/// let error = locker.acquire("backup", &options).unwrap_err();
/// let lock = error.contended_lock().unwrap();
/// assert_eq!((lock.key.as_str(), lock.owner_label.as_deref()), ("backup", Some("web-7:1234")));
/// assert_eq!(lock.to_string(), r#""backup" is held by web-7:1234"#);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ContendedLock {
    /// The lock's name as it was given; of several the name of a held one.
    pub key: String,
    /// The owner label of the holder, if a node reported it at the last attempt, or a thread of
    /// this process is the holder. `None` for readers and permits.
    pub owner_label: Option<String>,
    /// The number of permits of a semaphore, all of which are held.
    pub permits: Option<u32>,
}

impl fmt::Display for ContendedLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        match (self.permits, &self.owner_label) {
            (Some(1), _) => write!(f, "the only permit of {key:?} is held"),
            (Some(permits), _) => write!(f, "all {permits} permits of {key:?} are held"),
            (None, Some(label)) => write!(f, "{key:?} is held by {label}"),
            (None, None) => write!(f, "{key:?} is held by another"),
        }
    }
}

/// The request that an [`Error::InsufficientQuorum`] reports on. `Display` is the verb of its text.
///
/// ```
/// use redguard::Operation;
///
/// assert_eq!(format!("{} 1 of 3 nodes", Operation::Release), "released on 1 of 3 nodes");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// Connect to the nodes.
    Connect,
    /// Acquire a lock.
    Acquire,
    /// Extend a lock, or confirm that it is held.
    Extend,
    /// Release a lock.
    Release,
    /// Read the holder of a lock, or delete the lock by force.
    Inspect,
}

impl Operation {
    /// Returns the number of nodes that did it. All others have a cause; for `Inspect` some causes
    /// are replies, too.
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

/// Why a held lock was lost.
///
/// ```
/// use redguard::{LockGuard, LossReason};
///
/// fn explain(guard: &LockGuard) {
///     match guard.watch().loss_reason() {
///         None => println!("held, or released"),
///         Some(LossReason::Expired) => println!("paused too long, or no quorum"),
///         Some(reason) => println!("{reason}"),
///     }
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum LossReason {
    /// The lease expired: it was not extended in time, or could not be.
    #[error("lease expired")]
    Expired,

    /// On a quorum of nodes the lock is not ours any more: it expired there, or was deleted,
    /// force-released or adopted.
    #[error("not ours on a quorum of nodes")]
    NotOurs,

    /// The nodes were shut down while the lock was held
    /// ([`Nodes::shutdown`](crate::Nodes::shutdown)). It is left to its TTL.
    #[error("nodes shut down")]
    ShutDown,
}

/// A node and its failure, in an [`Error::InsufficientQuorum`] or [`Error::CircuitOpen`].
///
/// ```
/// use redguard::{NodeFailure, Error};
///
/// /// The nodes that need an operator: waiting does not help.
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
    /// The error that it replied, or why it did not reply.
    pub failure: NodeFailure,
    /// For a time-out the limit that was exceeded.
    pub(crate) limit: Option<ReplyLimit>,
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

/// The time limit of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReplyLimit {
    /// The node was connected. `connecting` is the round trip measured then: it distinguishes a
    /// short limit from a hung node.
    Node {
        node_timeout: Duration,
        connecting: Duration,
    },
    /// The node was being connected to.
    Connect { connect_timeout: Duration },
}

impl fmt::Display for ReplyLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReplyLimit::Node {
                node_timeout,
                connecting,
            } => {
                let [limit, connecting] = [*node_timeout, *connecting].map(error::format_duration);
                write!(f, "{limit} (node_timeout; connecting took {connecting})")
            }
            ReplyLimit::Connect { connect_timeout } => {
                let limit = error::format_duration(*connect_timeout);
                write!(f, "{limit} (connect_timeout)")
            }
        }
    }
}

impl Error {
    /// Returns the remaining time of an error that [`is_contended`](Error::is_contended).
    pub(crate) fn contended_for(&self) -> Option<Duration> {
        match self {
            Error::Contended { remaining, .. }
            | Error::WriteLockTimeout { remaining, .. }
            | Error::WriteLockHeld { remaining, .. }
            | Error::ReadersTimeout { remaining, .. } => *remaining,
            _ => None,
        }
    }

    /// Replaces the attempts and the wait in an error of an exclusive lock's contention.
    pub(crate) fn with_effort(mut self, all_attempts: u32, whole_wait: Duration) -> Error {
        if let Error::Contended {
            attempts, waited, ..
        } = &mut self
        {
            (*attempts, *waited) = (all_attempts, whole_wait);
        }
        self
    }

    /// Adds the limits that nodes exceeded. `limit_of` returns the limit of a node by its name.
    pub(crate) fn with_limits(mut self, limit_of: impl Fn(&str) -> ReplyLimit) -> Error {
        if let Error::InsufficientQuorum { causes, .. } | Error::CircuitOpen { causes, .. } =
            &mut self
        {
            for cause in causes
                .iter_mut()
                .filter(|it| it.failure == NodeFailure::TimedOut)
            {
                cause.limit = Some(limit_of(&cause.node));
            }
        }
        self
    }
}

/// Why a node did not do as it was asked.
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
    /// The node is not connected, or the connection broke. The text is the operating system's.
    #[error("unreachable: {0}")]
    Unreachable(String),

    /// The node is connected, but did not reply in time.
    #[error("no answer in time")]
    TimedOut,

    /// The credentials are wrong or missing, a right is missing, or one side does not accept the
    /// other's certificate.
    #[error("access denied: {0}")]
    AccessDenied(String),

    /// The server replied an error (`READONLY`, `LOADING`, `OOM` …). The text is the server's.
    #[error("server error: {0}")]
    ServerError(String),

    /// Another holder has the lock on the node.
    #[error("held by another")]
    Held {
        /// The rest of the holder's TTL, unless it is extended; `None` if the key does not expire.
        remaining: Option<Duration>,
    },

    /// Readers hold the lock on the node, or have their turn.
    #[error("held by readers")]
    HeldByReaders {
        /// The time until the last reader's lease ends, unless one is extended.
        remaining: Option<Duration>,
    },

    /// A writer waits for the lock on the node, so new readers are refused.
    #[error("a writer is waiting")]
    WriterWaiting {
        /// The time until the writer's gate entry ends, unless it is refreshed.
        remaining: Option<Duration>,
    },

    /// The node has started so recently that it may have lost locks which are still held. It does
    /// not vote on new locks ([`Config::restart_quarantine`](crate::Config::restart_quarantine)).
    #[error("quarantined after its start")]
    Quarantined {
        /// The time until the node votes.
        remaining: Duration,
    },

    /// The semaphore has another number of permits on the node, where one of them is held.
    #[error("semaphore of {permits} permits")]
    PermitCountMismatch {
        /// The number of permits on the node.
        permits: u32,
    },

    /// The lock is not ours on the node, or not any more.
    #[error("not ours")]
    NotOurs,

    /// One of the lock's keys has a value of another type on the node, or its fence counter is not
    /// a number. The value is left untouched.
    #[error("value of another type under the key")]
    WrongType,

    /// The node is a cluster, and the keys of the lock are in different hash slots.
    #[error("keys in different cluster slots")]
    CrossSlot,
}

impl NodeFailure {
    /// Returns whether a repeated request would fail in the same way.
    pub(crate) fn is_permanent(&self) -> bool {
        matches!(self, NodeFailure::WrongType | NodeFailure::CrossSlot)
    }

    /// Returns whether the node could not be reached, did not reply, or is loading its data: then
    /// it serves no other holder either. Any other error is a reply of a node that could serve
    /// another holder (S9).
    pub(crate) fn is_outage(&self) -> bool {
        match self {
            NodeFailure::Unreachable(_) | NodeFailure::TimedOut => true,
            // The text starts with an address if a sentinel named the server. A server at its
            // client limit refuses to connect.
            NodeFailure::ServerError(text) => {
                let is_loading = text.starts_with("LOADING") || text.contains(": LOADING");
                is_loading || text.contains("max number of clients")
            }
            _ => false,
        }
    }

    /// Returns whether the failure is an error that the node replied.
    pub(crate) fn is_reply(&self) -> bool {
        self.is_permanent()
            || matches!(
                self,
                NodeFailure::ServerError(_) | NodeFailure::AccessDenied(_)
            )
    }

    /// Returns for how long the node will refuse, if that is known.
    pub(crate) fn remaining(&self) -> Option<Duration> {
        match self {
            NodeFailure::Held { remaining } | NodeFailure::HeldByReaders { remaining } => {
                *remaining
            }
            NodeFailure::Quarantined { remaining } => Some(*remaining),
            // A waiting writer may acquire the lock first.
            _ => None,
        }
    }
}

/// A writer in a message: by its owner label, or else as the text says.
struct Writer<'a>(&'a ContendedLock, &'static str);

impl fmt::Display for Writer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.owner_label {
            Some(label) => write!(f, "the writer {label}"),
            None => f.write_str(self.1),
        }
    }
}

/// The end of a contention message: when the lock is free, and what the caller has done.
struct WaitText<'a> {
    remaining: &'a Option<Duration>,
    waited: &'a Duration,
    attempts: &'a u32,
}

impl fmt::Display for WaitText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(remaining) = self.remaining.filter(|remaining| !remaining.is_zero()) {
            // Rounded up, because the lock is free at the latest then.
            let up = match remaining.as_secs() {
                0 => Duration::from_micros(999),
                1..10 => Duration::from_millis(99),
                _ => Duration::from_millis(999),
            };
            let remaining = format_wait(remaining.saturating_add(up));
            write!(f, ", free in {remaining} at the latest unless renewed")?;
        }
        let waited = format_wait(*self.waited);
        let plural = if *self.attempts == 1 { "" } else { "s" };
        write!(f, " (waited {waited}, {} attempt{plural})", self.attempts)
    }
}

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

/// Failures at the end of a message: `: a; b`.
struct FailureList<'a>(&'a [FailedNode]);

impl fmt::Display for FailureList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, cause) in self.0.iter().enumerate() {
            write!(f, "{}{cause}", if i == 0 { ": " } else { "; " })?;
        }
        Ok(())
    }
}

/// Failures after a complete message: `; a; b`.
struct Appended<'a>(&'a [FailedNode]);

impl fmt::Display for Appended<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|cause| write!(f, "; {cause}"))
    }
}

/// Formats a wait for people: `200 ms`, `2.0 s`, `29 s`.
pub(crate) fn format_wait(duration: Duration) -> String {
    match duration.as_millis() {
        ms @ ..1_000 => format!("{ms} ms"),
        ..10_000 => {
            let tenths = duration.as_millis() / 100;
            format!("{}.{} s", tenths / 10, tenths % 10)
        }
        _ => format!("{} s", duration.as_secs()),
    }
}

/// Formats a duration for people: `200 ms`, `12.5 s`.
pub(crate) fn format_duration(duration: Duration) -> String {
    match duration.as_millis() {
        ms @ ..10_000 => format!("{ms} ms"),
        _ => format!("{:.1} s", duration.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    /// Creates an error of three nodes, with the failures of the nodes that did not succeed.
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
    fn denial_that_leaves_no_quorum_is_denied_and_not_unavailable() {
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
    fn timed_out_node_names_the_limit_that_it_exceeded() {
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
        let error = error.with_limits(|node| match node {
            "a:1" => ReplyLimit::Node {
                node_timeout: ms(200),
                connecting: ms(264),
            },
            _ => ReplyLimit::Connect {
                connect_timeout: ms(1000),
            },
        });
        let text = error.to_string();
        let expected = ": a:1: no answer within 200 ms (node_timeout; connecting took 264 ms); \
                     b:2: no answer within 1000 ms (connect_timeout); c:3: unreachable: gone";
        assert!(text.ends_with(expected), "{text}");
        let open = Error::CircuitOpen {
            retry_in: Duration::from_secs(60),
            causes: Box::new([timed_out("a:1", NodeFailure::TimedOut)]),
        };
        let open = open.with_limits(|_| ReplyLimit::Node {
            node_timeout: ms(200),
            connecting: ms(1),
        });
        let text = open.to_string();
        let expected = "; a:1: no answer within 200 ms (node_timeout; connecting took 1 ms)";
        assert!(text.ends_with(expected), "{text}");
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
    fn outage_is_only_silence_refusal_to_connect_or_loading() {
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
    fn exit_code_is_one_of_five() {
        let denied = NodeFailure::AccessDenied("WRONGPASS".into());
        let contended = Error::Contended {
            lock: Box::new(ContendedLock {
                key: "x".into(),
                owner_label: None,
                permits: None,
            }),
            attempts: 1,
            waited: Duration::ZERO,
            remaining: None,
        };
        let lost = Error::LockLost {
            key: "x".into(),
            reason: LossReason::Expired,
        };
        let ttl = Duration::ZERO;
        let reason = String::new;
        for (error, code) in [
            (contended, 75),
            (
                insufficient(Operation::Acquire, &[denied.clone(), denied]),
                77,
            ),
            (
                insufficient(Operation::Acquire, &[NodeFailure::TimedOut]),
                69,
            ),
            (Error::ValidityExhausted { attempts: 3, ttl }, 69),
            (lost, 70),
            (Error::Closed, 70),
            (Error::Cancelled, 70),
            (Error::NotOnNodes, 70),
            (Error::NoAddresses, 64),
            (Error::InvalidLockToken, 64),
            (Error::InvalidConfig(reason()), 64),
            (
                Error::InvalidTtl {
                    ttl,
                    reason: reason(),
                },
                64,
            ),
            (
                Error::InvalidKey {
                    name: reason(),
                    reason: reason(),
                },
                64,
            ),
        ] {
            assert_eq!(error.exit_code(), code, "{error}");
        }
    }

    #[test]
    fn error_size_is_at_most_64_bytes() {
        assert!(size_of::<Error>() <= 64, "{}", size_of::<Error>());
    }
}
