//! One operation on one lease, as it is sent to every node. Decides which requests may share a call
//! and which must keep their order (S4).
//!
//! Tests: beside `send_check.rs` and `batch.rs`; `src/tests/transport/pipeline.rs` (order).

use std::collections::HashSet;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::protocol::kind::LeaseKind;
use crate::protocol::lease::Lease;

/// An operation that a node is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// Acquires the lock if it is free (Redlock, "Correct implementation with a single instance"):
    /// `SET NX PX`, or a script that grants several keys together. A foreign value is left
    /// untouched.
    Acquire,
    /// Replaces the detached token by ours.
    Adopt,
    /// Hands the lock off to the next thread of this process: replaces the former token, or none,
    /// by ours.
    Swap,
    /// Extends the lock (S5).
    Extend,
    /// Restores the lock on a node that lost it while a quorum kept it (S5). The node checks as for
    /// `Acquire`, except the gate and reader turns, which are for new holders.
    Restore,
    /// Turns a write lock into a read lock.
    Downgrade,
    /// Raises the fence counter of a lock that is ours or pending (S12).
    RaiseFence,
    /// Wakes our own release listener by a message in its private channel, which the lease's key
    /// names.
    WakeListener,
    /// Publishes a notice: tells the holders of the lease's key to check it.
    Notify,
    /// Reports the holder of an exclusive lock, for an operator.
    Inspect,
    /// Deletes an exclusive lock regardless of its holder, at an operator's request.
    ForceRelease,
    /// Deletes the lease's token where a node has it: ends a lease, undoes an attempt (S4), removes
    /// a gate entry.
    Release,
    /// Takes a place in the waiting list of an exclusive lock, or asks for our present place. The
    /// token is our wake channel; `ttl` is the time that the caller has waited.
    TakePlace,
    /// Gives up the place in the waiting list.
    LeavePlace,
}

impl Op {
    /// Returns whether the operation can create a lease's key.
    pub(crate) fn grants(self) -> bool {
        matches!(self, Op::Acquire | Op::Adopt | Op::Swap | Op::Restore)
    }
}

/// Whether the nodes that run a release tell callers that wait for the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Publish {
    Never,
    /// Only a node that had the token, and has deleted it: the undo of an attempt that may have
    /// refused callers on that node alone.
    IfDeleted,
    /// Every node, because waiters may listen to a node that never had the token.
    Always,
}

/// The word for the operation in logs.
impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Op::Acquire => "acquire",
            Op::Adopt => "adopt",
            Op::Swap => "handoff",
            Op::Extend => "extend",
            Op::Restore => "restore",
            Op::Downgrade => "downgrade",
            Op::RaiseFence => "raise fence counter",
            Op::WakeListener | Op::Notify => "publish",
            Op::TakePlace => "take place",
            Op::LeavePlace => "leave place",
            Op::Inspect => "inspect",
            Op::ForceRelease => "force release",
            Op::Release => "release",
        })
    }
}

/// The tokens that the requests of a batch name, by [`order_id`].
#[derive(Default)]
pub(crate) struct TokenSet(HashSet<u64, BuildHasherDefault<IdHasher>>);

impl TokenSet {
    /// Adds the tokens of a request.
    pub(crate) fn insert(&mut self, request: &Request) {
        self.0.extend(request.tokens());
    }

    /// Returns whether the set has a token of the request.
    pub(crate) fn shares_token(&self, request: &Request) -> bool {
        request.tokens().any(|id| self.0.contains(&id))
    }

    /// Removes all tokens, and keeps the memory.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

/// Returns an id of the token. A token that was not drawn here has no random bits: of those, all for
/// one key have one id, because a node must see the requests of one key in their order, and those of
/// other keys share a batch.
fn order_id(lease: &Lease) -> u64 {
    match lease.token().id() {
        0 => lease.key().to_hash(),
        id => id,
    }
}

/// Hashes an id to itself, because its bits are random or a hash.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0 << 8 | u64::from(byte);
        }
    }

    fn write_u64(&mut self, id: u64) {
        self.0 = id;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// One operation on one lease. It owns its lease, so it outlives a caller that has stopped waiting.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) op: Op,
    pub(crate) lease: Arc<Lease>,
    /// In ms; not used by `Release`.
    pub(crate) ttl: u64,
    /// The interval in which a waiting writer refreshes its gate entry, and the length of a reader
    /// turn. Zero if the request leaves neither: the caller does not wait, or it is an undo.
    pub(crate) refresh_interval: Duration,
    /// Whether a refusal is to report the owner label, for an `Acquire` whose error tells it.
    pub(crate) wants_owner: bool,
    /// Whether waiting callers are notified: by a release or a downgrade, and by the undo of the
    /// last attempt of a call. For `TakePlace`, whether our own caller is woken if the lock is
    /// free.
    pub(crate) publish: Publish,
    /// The gate entry of a waiting writer, for `Acquire`.
    pub(crate) gate_entry: Option<Arc<Lease>>,
    /// The minimum of the node's fence counter, for `RaiseFence` and for a fenced `Acquire`,
    /// `Adopt` or `Swap`.
    pub(crate) min_fence: Option<u64>,
    /// The encoded request, where several nodes get the same bytes
    /// ([`with_encoded`](crate::protocol::encode::with_encoded)).
    pub(crate) encoded: Option<Box<[u8]>>,
    /// The lease of the token that is replaced, for `Adopt` and `Swap`.
    pub(crate) former_lease: Option<Arc<Lease>>,
}

impl Request {
    /// Creates a request that leaves no gate entry or reader marker and starts no reader turn.
    pub(crate) fn new(op: Op, lease: &Arc<Lease>, ttl: u64) -> Request {
        Request {
            op,
            lease: Arc::clone(lease),
            ttl,
            refresh_interval: Duration::ZERO,
            wants_owner: false,
            publish: Publish::Never,
            gate_entry: None,
            min_fence: None,
            encoded: None,
            former_lease: None,
        }
    }

    /// Returns for how long a release keeps the lock at `now`, in whole ms rounded up; 0 if it
    /// deletes the lock. Only exclusive locks are kept.
    pub(crate) fn keep_millis(&self, now: Instant) -> u64 {
        let end = match self.lease.kind() {
            LeaseKind::Exclusive => self.lease.kept_until(now),
            _ => None,
        };
        end.map_or(0, |end| {
            let left = end.saturating_duration_since(now);
            u64::try_from(left.as_micros().div_ceil(1_000)).unwrap_or(u64::MAX)
        })
    }

    /// Returns the leases of which the request can leave a key on a node.
    pub(crate) fn written_leases(&self) -> impl Iterator<Item = &Arc<Lease>> {
        std::iter::once(&self.lease).chain(&self.gate_entry)
    }

    /// Returns whether both requests name one token, so that their order matters to a node. Requests
    /// of one key whose tokens were not drawn here count as such.
    pub(crate) fn shares_token(&self, other: &Request) -> bool {
        let mut ours = self.tokens();
        ours.any(|id| other.tokens().any(|other| other == id))
    }

    fn tokens(&self) -> impl Iterator<Item = u64> {
        let leases = self.written_leases().chain(&self.former_lease);
        leases.map(|lease| order_id(lease))
    }

    /// Returns whether the request is a plain `SET NX PX`, which never needs a script to be loaded.
    pub(crate) fn is_plain_set(&self) -> bool {
        matches!(self.op, Op::Acquire | Op::Restore) && self.is_single_exclusive()
    }

    /// Returns whether the request is for an unfenced exclusive lock of one key.
    pub(crate) fn is_single_exclusive(&self) -> bool {
        let has_one_key = self.lease.keys().as_slice().len() == 1;
        has_one_key && self.lease.kind() == LeaseKind::Exclusive && !self.wants_fencing_token()
    }

    /// Returns whether a grant increments the node's fence counter and replies with it.
    pub(crate) fn wants_fencing_token(&self) -> bool {
        matches!(self.op, Op::Acquire | Op::Adopt | Op::Swap) && self.min_fence.is_some()
    }

    /// Returns whether the request can share a call with `other`, which precedes it in the batch.
    /// One call acquires or releases for several readers of one key.
    pub(crate) fn can_join(&self, other: &Request) -> bool {
        self.is_commutative_read()
            && other.is_commutative_read()
            && (self.op, self.ttl, self.refresh_interval)
                == (other.op, other.ttl, other.refresh_interval)
            && self.publish == other.publish
            && self.lease.key() == other.lease.key()
    }

    /// Returns whether the request commutes with every other one of the same key for which this
    /// holds.
    pub(crate) fn is_commutative_read(&self) -> bool {
        matches!(self.op, Op::Acquire | Op::Release) && self.lease.kind() == LeaseKind::Read
    }

    /// Returns the TTL of a gate entry or reader marker: three intervals, so that a late refresh
    /// does not let it expire.
    pub(crate) fn marker_ttl(&self) -> Duration {
        3 * self.refresh_interval
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::protocol::token::Token;
    use crate::tests::fixtures::lease;

    #[test]
    fn token_set_has_the_tokens_of_its_requests_only() {
        let acquire = || Request::new(Op::Acquire, &lease("x"), 1);
        let swap_of = |former: &Request| {
            let mut swap = Request::new(Op::Swap, &lease("x"), 0);
            swap.former_lease = Some(Arc::clone(&former.lease));
            swap
        };
        let requests: Vec<_> = (0..300).map(|_| acquire()).collect();
        let mut set = TokenSet::default();
        assert!(!set.shares_token(&requests[0]));
        requests.iter().for_each(|request| set.insert(request));
        for request in &requests {
            assert!(set.shares_token(&swap_of(request)));
            assert!(!set.shares_token(&swap_of(&acquire())));
        }
        set.insert(&swap_of(&acquire()));
        set.clear();
        assert!(!set.shares_token(&requests[0]));
    }

    #[test]
    fn requests_without_a_drawn_token_keep_their_order_by_key() {
        let of = |op, token: Token, key: &str| {
            let key = lease(key).key().clone();
            Request::new(
                op,
                &Arc::new(Lease::new(key, token, LeaseKind::Exclusive)),
                0,
            )
        };
        let place = |op, key| of(op, Token::existing("redguard:listener:0"), key);
        let mut set = TokenSet::default();
        set.insert(&place(Op::TakePlace, "x"));
        for (request, shares) in [
            (place(Op::TakePlace, "y"), false),
            (place(Op::LeavePlace, "x"), true),
            (of(Op::Notify, Token::empty(), "y"), false),
            (of(Op::Notify, Token::empty(), "x"), true),
            (Request::new(Op::Acquire, &lease("x"), 1), false),
        ] {
            assert_eq!(set.shares_token(&request), shares, "{:?}", request.op);
            let first = place(Op::TakePlace, "x");
            assert_eq!(first.shares_token(&request), shares, "{:?}", request.op);
        }
    }
}
