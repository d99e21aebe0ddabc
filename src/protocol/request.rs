//! What we say to a node, and what its answers mean.
//!
//! A take of an exclusive lock with one key is Redis' own `SET NX PX`, half as dear to a server as a script that says the same; who is
//! refused asks how long the holder has left. What must look before it acts is an atomic script, sent by its SHA-1
//! (`EVALSHA`), with all keys in KEYS and integers as replies.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::protocol::kind::LeaseKind;
use crate::protocol::lease::Lease;

/// What a request asks a node to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// Give us the lock if it is free, as in the Redlock text ("Correct implementation with a single instance"):
    /// `SET NX PX`, or for several keys a script, since they are had together or not at all. A foreign value of any kind is
    /// left untouched.
    Acquire,
    /// Put our token in the place of one that was handed over to us.
    Adopt,
    /// Give the lock of one thread to the next of the same process in one step: our token in the place of the former one, or
    /// of none.
    Swap,
    /// Keep it for us for longer.
    Extend,
    /// Take it again on a node that lost it while a quorum kept it: the same command as `Take`, the same checks. Only the
    /// gate and the turns, which are for newcomers, do not count.
    Restore,
    /// Make a write lock a read lock.
    Downgrade,
    /// Raise the fence of a lock that is ours, or is about to be.
    RaiseFence,
    /// Wake our own listener: a message to its private channel, which has the name of the lease's key.
    WakeListener,
    /// Tell who holds an exclusive lock, for an operator to see.
    Inspect,
    /// Delete an exclusive lock whoever holds it, since an operator says so.
    ForceRelease,
    /// Delete it if it is ours. Also the undo of an attempt, and the leaving of a place at the gate.
    Release,
}

impl Op {
    /// Whether it can bring a lease's key into being.
    pub(crate) fn grants(self) -> bool {
        matches!(self, Op::Acquire | Op::Adopt | Op::Swap | Op::Restore)
    }
}

/// What the log calls it.
impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Op::Acquire => "acquire",
            Op::Adopt => "adopt",
            Op::Swap => "handoff",
            Op::Extend => "extend",
            Op::Restore => "restore",
            Op::Downgrade => "downgrade",
            Op::RaiseFence => "raise the fence",
            Op::WakeListener => "publish",
            Op::Inspect => "holder",
            Op::ForceRelease => "break",
            Op::Release => "release",
        })
    }
}

/// One verb on one lease. It owns what it speaks of, so it outlives the caller that has stopped waiting.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) verb: Op,
    pub(crate) lease: Arc<Lease>,
    /// In whole milliseconds; without meaning for `Release`.
    pub(crate) ttl: u64,
    /// The interval in which a writer that waits says so again, and how long a turn of the readers is. Zero for requests
    /// that are to leave nothing of the kind: of one that does not wait, or the undo of an attempt.
    pub(crate) refresh_interval: Duration,
    /// Whether those that wait are to hear of it: of a release or a downgrade, never of an undo.
    pub(crate) publish: bool,
    /// For a `Take` by a writer that waits: its place at the gate.
    pub(crate) gate_entry: Option<Arc<Lease>>,
    /// For a `Take`, an `Adopt` or a `Swap` that is to be numbered, and for a `Raise`: what the node's fence is to be at least.
    pub(crate) min_fence: Option<u64>,
    /// As it goes over the wire, where several nodes are told the same ([`with_encoded`]).
    pub(crate) encoded: Option<Arc<[u8]>>,
    /// For an `Adopt` or a `Swap`: the lease whose token was handed over.
    pub(crate) former_lease: Option<Arc<Lease>>,
}

impl Request {
    /// A request that leaves no traces of waiting and gives no turn.
    pub(crate) fn new(verb: Op, lease: &Arc<Lease>, ttl: u64) -> Request {
        Request {
            verb,
            lease: Arc::clone(lease),
            ttl,
            refresh_interval: Duration::ZERO,
            publish: false,
            gate_entry: None,
            min_fence: None,
            encoded: None,
            former_lease: None,
        }
    }

    /// The leases that this can leave something of on a node.
    pub(crate) fn written_leases(&self) -> impl Iterator<Item = &Arc<Lease>> {
        std::iter::once(&self.lease).chain(&self.gate_entry)
    }

    /// Whether both speak of one token, so that it matters to a node which of them comes first.
    pub(crate) fn shares_token(&self, other: &Request) -> bool {
        let mut ours = self.tokens();
        ours.any(|id| other.tokens().any(|other| other == id))
    }

    fn tokens(&self) -> impl Iterator<Item = u64> {
        let leases = self.written_leases().chain(&self.former_lease);
        leases.map(|lease| lease.token().id())
    }

    /// Whether it is a command of Redis' own, which a server never asks to have again.
    pub(crate) fn is_plain_set(&self) -> bool {
        matches!(self.verb, Op::Acquire | Op::Restore) && self.is_single_exclusive()
    }

    /// Whether it is about one key of an exclusive lock, and no number of it is wanted.
    pub(crate) fn is_single_exclusive(&self) -> bool {
        let is_one = self.lease.keys().as_slice().len() == 1;
        is_one && self.lease.claim() == LeaseKind::Exclusive && !self.wants_fencing_token()
    }

    /// Whether a grant is to come with a number of the node's fence.
    pub(crate) fn wants_fencing_token(&self) -> bool {
        matches!(self.verb, Op::Acquire | Op::Adopt | Op::Swap) && self.min_fence.is_some()
    }

    /// Whether this can be told to a node in one call with `other`, which is before it in a batch: readers of one key that
    /// come, or leave, are granted, refused and released together.
    pub(crate) fn can_join(&self, other: &Request) -> bool {
        self.is_commutative_read()
            && other.is_commutative_read()
            && (self.verb, self.ttl, self.refresh_interval)
                == (other.verb, other.ttl, other.refresh_interval)
            && self.publish == other.publish
            && self.lease.key() == other.lease.key()
    }

    /// Whether it does not matter which of two requests for one key comes first, if this holds for both.
    pub(crate) fn is_commutative_read(&self) -> bool {
        matches!(self.verb, Op::Acquire | Op::Release) && self.lease.claim() == LeaseKind::Read
    }

    /// How long a place at the gate or a reader's mark stays if it is not refreshed: three intervals, so that one that is
    /// late does not matter.
    pub(crate) fn marker_ttl(&self) -> Duration {
        3 * self.refresh_interval
    }
}

/// The codes of errors with which a server refuses a command before it runs any of it.
pub(crate) const NOT_RUN: [&str; 16] = [
    "ASK",
    "BUSY",
    "CLUSTERDOWN",
    "CROSSSLOT",
    "LOADING",
    "MASTERDOWN",
    "MISCONF",
    "MOVED",
    "NOAUTH",
    "NOPERM",
    "NOREPLICAS",
    "NOSCRIPT",
    "OOM",
    "READONLY",
    "TRYAGAIN",
    "WRONGPASS",
];
/// How servers say that an error comes from a command within a script, which may have changed something before: Redis from 7.0
/// on and Valkey at the end of the text, Redis 6.2 at its beginning.
pub(crate) const WITHIN_SCRIPT: [&str; 4] = [
    "script:",
    "rror running script",
    "ACL failure in script",
    "executing the script",
];
