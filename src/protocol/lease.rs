//! One lease, one latch: who holds what until when, decided by compare-and-exchange alone.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{Error, LossReason};
use crate::protocol::key::Key;
use crate::protocol::key_set::KeySet;
use crate::protocol::kind::LeaseKind;
use crate::protocol::quorum::NodeSet;
use crate::protocol::token::Token;
use crate::protocol::validity;
use crate::sync::primitives::{AtomicU64, Condvar, Mutex, Ordering};
use crate::time::clock;

const PENDING: u64 = 0;
const RELEASING: u64 = 1;
const ENDED: u64 = 2;
/// `LOST`, one for each reason.
const EXPIRED: u64 = 3;
const NOT_OURS: u64 = 4;
const SHUT_DOWN: u64 = 5;
/// Everything above is `Held`: the expiry in microseconds, moved up by this much.
const HELD: u64 = 6;

/// The wall clock may be set forward by so many µs, besides a hundredth of the time, before that counts as a suspend.
const SUSPEND_THRESHOLD_US: i64 = 100_000;

/// A lease that does not expire ends after this: never.
pub(crate) const NEVER_EXPIRES_AFTER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// A lease on a lock's keys, nearly always one, under one token, from the attempt that asks for it to its end (rule S7).
///
/// Nothing is ever looked up by name: requests, the local gate and the guard all carry the lease itself.
pub(crate) struct Lease {
    keys: KeySet,
    token: Token,
    claim: LeaseKind,
    /// Whether it claims to read only, having claimed to write: 0 or 1. There is no way back.
    downgraded: AtomicU64,
    /// # State table
    ///
    /// | from          | to            | by                                                                |
    /// |---------------|---------------|-------------------------------------------------------------------|
    /// | `TRYING`      | `Held(e)`     | [`activate`](Lease::activate): a quorum granted with validity left         |
    /// | `TRYING`      | `ENDED`       | [`abandon`](Lease::abandon): not won, too late or given up         |
    /// | `Held(e)`     | `Held(e')`    | [`extend_to`](Lease::extend_to): now < e ≤ e'                          |
    /// | `Held(e)`     | `LOST`        | whoever first sees e ≤ now, or [`mark_not_ours`](Lease::mark_not_ours) by a reply    |
    /// | `Held(e)`     | `RELEASING`   | [`begin_release`](Lease::begin_release): now < e                   |
    /// | `RELEASING`   | `ENDED`       | [`finish_release`](Lease::finish_release)                                                |
    ///
    /// There is no way back to `Held` from anywhere. `LOST` keeps the reason of the one who made it so.
    state: AtomicU64,
    /// The moment (in [`time::micros`]) after which the key can exist on no node that has answered, written by the lanes.
    exists_until: AtomicU64,
    /// The longest TTL that a node was asked for, in µs.
    max_ttl: AtomicU64,
    /// The nodes to whose connections a request to grant it was written.
    written: AtomicU64,
    /// Those of them that have not answered, so may run it at any later time.
    unanswered: AtomicU64,
    /// Its fencing token; 0 for none. Set before it is held.
    fencing_token: AtomicU64,
    /// The nodes that were asked to grant it, so may hold its key.
    contacted: AtomicU64,
    /// The wall clock's lead when the nodes were last asked, and when that was in [`time::micros`].
    wall_offset: AtomicU64,
    confirmed: AtomicU64,
    /// Whether an extension is on its way: at most one is (rule S5).
    extending: Mutex<bool>,
    /// An extension has ended, or the lease.
    changed: Condvar,
}

/// What a look at a lease finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LeaseState {
    /// Not won yet.
    Pending,
    /// Held until then.
    Held(Instant),
    /// Lost, by this very look: who gets this answer owes the release of the token, and the telling.
    JustLost,
    /// Lost before.
    Lost,
    /// Released, being released, or never won.
    Ended,
}

impl Lease {
    pub(crate) fn new(keys: impl Into<KeySet>, token: Token, claim: LeaseKind) -> Lease {
        Lease {
            keys: keys.into(),
            token,
            claim,
            downgraded: AtomicU64::new(0),
            state: AtomicU64::new(PENDING),
            exists_until: AtomicU64::new(0),
            max_ttl: AtomicU64::new(0),
            written: AtomicU64::new(0),
            unanswered: AtomicU64::new(0),
            fencing_token: AtomicU64::new(0),
            contacted: AtomicU64::new(0),
            wall_offset: AtomicU64::new(0),
            confirmed: AtomicU64::new(0),
            extending: Mutex::new(false),
            changed: Condvar::new(),
        }
    }

    /// The only key of most leases; of several the first.
    pub(crate) fn key(&self) -> &Key {
        self.keys.first()
    }

    pub(crate) fn keys(&self) -> &KeySet {
        &self.keys
    }

    pub(crate) fn token(&self) -> &Token {
        &self.token
    }

    pub(crate) fn claim(&self) -> LeaseKind {
        match self.downgraded.load(Ordering::Acquire) {
            0 => self.claim,
            _ => LeaseKind::Read,
        }
    }

    /// From now on it claims to read, whatever the nodes know of that.
    pub(crate) fn downgrade(&self) {
        debug_assert_ne!(self.claim, LeaseKind::Exclusive);
        self.downgraded.store(1, Ordering::Release);
    }

    /// The attempt was won: held until `expiry`. `false` if it had been given up. `lead` is the wall clock's ([`time::lead`])
    /// from before the nodes were asked.
    pub(crate) fn activate(&self, expiry: Instant, lead: i64) -> bool {
        self.record_confirmation(lead);
        self.transition(PENDING, encode_held(expiry)).is_ok()
    }

    /// A quorum of nodes has said that it is held for as long as we think, after the wall clock had this lead.
    fn record_confirmation(&self, lead: i64) {
        self.confirmed
            .store(clock::to_micros(clock::now()), Ordering::Release);
        self.wall_offset.store(lead as u64, Ordering::Release);
    }

    /// Whether a quorum of nodes has said so since then.
    pub(crate) fn was_confirmed_since(&self, then: Instant) -> bool {
        self.confirmed.load(Ordering::Acquire) >= clock::to_micros(then)
    }

    /// Whether the wall clock has run ahead since the nodes were last asked, as after a suspend: then the lease may have
    /// ended on the nodes although it has not by our clock, and only they know (rule S11).
    pub(crate) fn is_in_doubt(&self) -> bool {
        let since =
            clock::to_micros(clock::now()).saturating_sub(self.confirmed.load(Ordering::Acquire));
        let lead = self.wall_offset.load(Ordering::Acquire) as i64;
        let ahead = clock::wall_offset().saturating_sub(lead);
        ahead > SUSPEND_THRESHOLD_US.saturating_add((since / 100) as i64)
    }

    /// Its number among all holders of the key, which strictly increases (rule S12).
    pub(crate) fn fencing_token(&self) -> Option<u64> {
        Some(self.fencing_token.load(Ordering::Acquire)).filter(|number| *number > 0)
    }

    pub(crate) fn set_fencing_token(&self, fence: u64) {
        self.fencing_token.store(fence, Ordering::Release);
    }

    /// The attempt was not won, or too late. What was asked for and is not sent yet need not be sent.
    pub(crate) fn abandon(&self) {
        // Fails only where the lease is not in its attempt any more, and then there is nothing to give up.
        let _ = self.transition(PENDING, ENDED);
    }

    /// Looks at the state; if the expiry has passed, this look makes it lost.
    pub(crate) fn expire_if_due(&self, now: Instant) -> LeaseState {
        let mut state = self.state.load(Ordering::Acquire);
        loop {
            let look = decode_state(state);
            match look {
                LeaseState::Held(expiry) if expiry <= now => {
                    match self.transition(state, EXPIRED) {
                        Ok(()) => {
                            self.notify_waiters();
                            return LeaseState::JustLost;
                        }
                        Err(newer) => state = newer,
                    }
                }
                _ => return look,
            }
        }
    }

    /// Looks without touching: an expiry that has passed reads as `Lost`, but nobody has been told yet.
    pub(crate) fn peek(&self, now: Instant) -> LeaseState {
        match decode_state(self.state.load(Ordering::Acquire)) {
            LeaseState::Held(expiry) if expiry <= now => LeaseState::Lost,
            look => look,
        }
    }

    #[cfg(feature = "testing")]
    pub(crate) fn is_held(&self) -> bool {
        matches!(self.peek(clock::now()), LeaseState::Held(_))
    }

    /// When it ends, if it is held and does end.
    pub(crate) fn expiry(&self, now: Instant) -> Option<Instant> {
        match self.peek(now) {
            LeaseState::Held(expiry) if expiry < now + NEVER_EXPIRES_AFTER / 2 => Some(expiry),
            _ => None,
        }
    }

    /// The nodes said that it is not ours: lost, whatever the clock says. `true` for the one who made it so.
    pub(crate) fn mark_not_ours(&self) -> bool {
        self.mark_lost(LossReason::NotOurs)
    }

    /// The same for another reason.
    pub(crate) fn mark_lost(&self, reason: LossReason) -> bool {
        let lost = match reason {
            LossReason::Expired => EXPIRED,
            LossReason::NotOurs => NOT_OURS,
            LossReason::ShutDown => SHUT_DOWN,
        };
        let mut state = self.state.load(Ordering::Acquire);
        while state >= HELD {
            match self.transition(state, lost) {
                Ok(()) => {
                    self.notify_waiters();
                    return true;
                }
                Err(newer) => state = newer,
            }
        }
        false
    }

    /// Why it is lost, if it is.
    pub(crate) fn loss_reason(&self, now: Instant) -> Option<LossReason> {
        match self.state.load(Ordering::Acquire) {
            NOT_OURS => Some(LossReason::NotOurs),
            SHUT_DOWN => Some(LossReason::ShutDown),
            EXPIRED => Some(LossReason::Expired),
            state => matches!(decode_state(state), LeaseState::Held(expiry) if expiry <= now)
                .then_some(LossReason::Expired),
        }
    }

    /// What a caller is told who needs it to be held.
    pub(crate) fn lost_error(&self) -> Error {
        // What was never held, or is released, is not ours either.
        self.lost_error_for(
            self.loss_reason(clock::now())
                .unwrap_or(LossReason::NotOurs),
        )
    }

    /// The same where the reason is not in its state: nodes say so to a release, or to an adoption.
    pub(crate) fn lost_error_for(&self, reason: LossReason) -> Error {
        Error::LockLost {
            key: self.key().name().to_owned(),
            reason,
        }
    }

    /// A quorum has extended it: moves the expiry on to `expiry`, never back, if it is still held at `now`. Answers as
    /// [`expire_if_due`](Lease::expire_if_due); `lead` as for [`activate`](Lease::activate).
    pub(crate) fn extend_to(&self, now: Instant, expiry: Instant, lead: i64) -> LeaseState {
        loop {
            let look = self.expire_if_due(now);
            match look {
                LeaseState::Held(old) if encode_held(old) < encode_held(expiry) => {
                    if self
                        .transition(encode_held(old), encode_held(expiry))
                        .is_ok()
                    {
                        self.record_confirmation(lead);
                        return LeaseState::Held(expiry);
                    }
                }
                LeaseState::Held(old) if encode_held(old) == encode_held(expiry) => {
                    self.record_confirmation(lead);
                    return look;
                }
                _ => return look,
            }
        }
    }

    /// Begins the release of a lease that is held; answers `Held` if this call began it, else what stands in the way.
    pub(crate) fn begin_release(&self, now: Instant) -> LeaseState {
        loop {
            let look = self.expire_if_due(now);
            match look {
                LeaseState::Held(expiry) => {
                    if self.transition(encode_held(expiry), RELEASING).is_ok() {
                        self.notify_waiters();
                        return look;
                    }
                }
                _ => return look,
            }
        }
    }

    /// The release has had its answer, or its time.
    pub(crate) fn finish_release(&self) {
        let _ = self.transition(RELEASING, ENDED);
    }

    /// Waits until no extension of this lease is on its way; then the caller's may be, until the answer is dropped.
    /// Blocks for one round of each thread that asked before.
    pub(crate) fn lock_extension(self: &Arc<Lease>) -> ExtensionGuard {
        let mut extending = self.extending.lock();
        while *extending {
            self.changed.wait(&mut extending);
        }
        *extending = true;
        ExtensionGuard(Arc::clone(self))
    }

    /// The same without waiting: `None` while one is on its way.
    pub(crate) fn try_begin_extension(self: &Arc<Lease>) -> Option<ExtensionGuard> {
        let mut extending = self.extending.lock();
        (!std::mem::replace(&mut *extending, true)).then(|| ExtensionGuard(Arc::clone(self)))
    }

    /// Waits while it is held and nothing changes, at most until `end`. May end for no reason.
    pub(crate) fn wait_change(&self, end: Option<Instant>) {
        let mut extending = self.extending.lock();
        if self.state.load(Ordering::Acquire) < HELD {
            return;
        }
        match end {
            Some(end) => _ = self.changed.wait_until(&mut extending, end),
            None => self.changed.wait(&mut extending),
        }
    }

    /// Wakes who waits for a change: it is not held any more.
    fn notify_waiters(&self) {
        // Who has seen it held, and is about to wait, has the lock.
        drop(self.extending.lock());
        self.changed.notify_all();
    }

    /// Nodes' lanes are about to be given a request to grant it.
    pub(crate) fn record_contacted(&self, nodes: NodeSet) {
        self.contacted.fetch_or(nodes.bits(), Ordering::AcqRel);
    }

    /// The nodes whose lanes were given a request to grant it. What became of that, each lane knows ([`may_exist`](Lease::may_exist)).
    pub(crate) fn contacted(&self) -> NodeSet {
        NodeSet::from_bits(self.contacted.load(Ordering::Acquire))
    }

    /// A request that can make the key exist for `ttl` is about to be written to a node.
    pub(crate) fn record_sent(&self, node: usize, now: Instant, ttl: Duration) {
        self.note_extended(now, ttl);
        self.written
            .fetch_or(NodeSet::single(node).bits(), Ordering::AcqRel);
    }

    /// A request that can keep the key for `ttl` where it is there is about to be written to a node.
    pub(crate) fn note_extended(&self, now: Instant, ttl: Duration) {
        self.max_ttl.fetch_max(life(ttl), Ordering::AcqRel);
        self.note_exists(now, life(ttl));
    }

    fn note_exists(&self, now: Instant, life: u64) {
        let until = clock::to_micros(now).saturating_add(life);
        self.exists_until.fetch_max(until, Ordering::AcqRel);
    }

    /// The node has answered the only request to grant it there, and nothing came of it.
    pub(crate) fn note_not_granted(&self, node: usize) {
        self.written
            .fetch_and(!NodeSet::single(node).bits(), Ordering::AcqRel);
    }

    /// A request to grant it has no answer, and the node may run it at any later time.
    pub(crate) fn record_unanswered(&self, node: usize) {
        self.unanswered
            .fetch_or(NodeSet::single(node).bits(), Ordering::AcqRel);
    }

    /// The connection of all that the node has not answered is killed by now: what it has run, it ran before.
    pub(crate) fn note_killed(&self, node: usize, now: Instant) {
        let bit = NodeSet::single(node).bits();
        if self.unanswered.load(Ordering::Acquire) & bit != 0 {
            self.note_exists(now, self.max_ttl.load(Ordering::Acquire));
            self.unanswered.fetch_and(!bit, Ordering::AcqRel);
        }
    }

    /// A request to extend it has no answer, and may run for as long as the key is there.
    pub(crate) fn record_unanswered_extension(&self, ttl: Duration) {
        let more = life(ttl);
        let later = |until: u64| Some(until.saturating_add(more));
        // Fails only where there is nothing to be stored.
        let _ = self
            .exists_until
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, later);
    }

    /// Whether the key can still be there on a node: if not, nobody needs to release it there.
    pub(crate) fn may_exist(&self, node: usize, now: Instant) -> bool {
        let is_in =
            |nodes: &AtomicU64| NodeSet::from_bits(nodes.load(Ordering::Acquire)).contains(node);
        let is_alive = || clock::to_micros(now) <= self.exists_until.load(Ordering::Acquire);
        is_in(&self.written) && (is_in(&self.unanswered) || is_alive())
    }
}

/// How long a key with this TTL is there at the longest by our clock, in µs.
fn life(ttl: Duration) -> u64 {
    let life = ttl.saturating_add(validity::drift(ttl));
    u64::try_from(life.as_micros()).unwrap_or(u64::MAX)
}

/// Shows the name and the state, never the token.
impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("keys", &self.keys)
            .field("state", &decode_state(self.state.load(Ordering::Acquire)))
            .finish_non_exhaustive()
    }
}

impl Lease {
    fn transition(&self, from: u64, to: u64) -> Result<(), u64> {
        self.state
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
            .map(|_| ())
    }
}

/// The turn of one extension; the next may begin when it is dropped.
#[derive(Debug)]
pub(crate) struct ExtensionGuard(Arc<Lease>);

impl Drop for ExtensionGuard {
    fn drop(&mut self) {
        *self.0.extending.lock() = false;
        self.0.changed.notify_all();
    }
}

/// The state for an expiry, in whole microseconds rounded down: a lease is never thought longer than it is.
fn encode_held(expiry: Instant) -> u64 {
    clock::to_micros(expiry).saturating_add(HELD)
}

fn decode_state(state: u64) -> LeaseState {
    match state {
        PENDING => LeaseState::Pending,
        EXPIRED | NOT_OURS | SHUT_DOWN => LeaseState::Lost,
        RELEASING | ENDED => LeaseState::Ended,
        // An expiry beyond the clock's range cannot be stored: `held` took it from an `Instant`.
        held => clock::from_micros(held - HELD).map_or(LeaseState::Lost, LeaseState::Held),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::protocol::kind::LeaseKind;

    pub(crate) fn lease(name: &str) -> Arc<Lease> {
        lease_as(name, LeaseKind::Exclusive)
    }

    pub(crate) fn lease_as(name: &str, claim: LeaseKind) -> Arc<Lease> {
        let key = Key::parse("test:", name, claim.lock_kind()).unwrap();
        Arc::new(Lease::new(key, Token::fresh(None).unwrap(), claim))
    }

    #[cfg(not(loom))]
    mod table {
        use std::time::Duration;

        use super::*;
        use crate::error::LossReason;
        use crate::protocol::lease::LeaseState;
        use crate::protocol::quorum::NodeSet;
        use crate::time::clock;

        const SECOND: Duration = Duration::from_secs(1);

        #[test]
        fn held_until_the_expiry_and_lost_at_it() {
            let now = clock::now();
            let lease = lease("x");
            assert_eq!(lease.expire_if_due(now), LeaseState::Pending);
            assert!(lease.activate(now + SECOND, 0));
            assert!(!lease.activate(now + 9 * SECOND, 0), "held twice");
            let LeaseState::Held(expiry) = lease.expire_if_due(now) else {
                panic!("{lease:?}")
            };
            assert!(expiry <= now + SECOND);
            assert_eq!(lease.peek(now + SECOND), LeaseState::Lost);
            assert_eq!(lease.expire_if_due(now + SECOND), LeaseState::JustLost);
            assert_eq!(lease.expire_if_due(now + SECOND), LeaseState::Lost);
            assert_eq!(
                lease.expire_if_due(now),
                LeaseState::Lost,
                "nothing makes it held again"
            );
            assert_eq!(lease.extend_to(now, now + 9 * SECOND, 0), LeaseState::Lost);
            assert_eq!(lease.begin_release(now), LeaseState::Lost);
            assert!(!lease.mark_not_ours());
            assert_eq!(
                lease.loss_reason(now),
                Some(LossReason::Expired),
                "the first one"
            );
        }

        #[test]
        fn a_loss_has_a_reason_and_nothing_else_has() {
            let now = clock::now();
            for reason in [
                LossReason::Expired,
                LossReason::NotOurs,
                LossReason::ShutDown,
            ] {
                let lease = lease("x");
                assert_eq!(lease.loss_reason(now), None);
                lease.activate(now + SECOND, 0);
                assert_eq!(lease.loss_reason(now), None);
                let by_clock = lease.loss_reason(now + SECOND);
                assert_eq!(by_clock, Some(LossReason::Expired), "as it is peeked at");
                assert!(lease.mark_lost(reason));
                assert_eq!(
                    (lease.loss_reason(now), lease.expire_if_due(now)),
                    (Some(reason), LeaseState::Lost)
                );
                let text = lease.lost_error().to_string();
                assert_eq!(text, format!("the lock of \"x\" is lost: {reason}"));
            }
            let released = lease("x");
            released.activate(now + SECOND, 0);
            released.begin_release(now);
            assert_eq!(released.loss_reason(now + SECOND), None);
        }

        #[test]
        fn an_extension_moves_the_expiry_forth_only() {
            let now = clock::now();
            let lease = lease("x");
            lease.activate(now + 2 * SECOND, 0);
            let first = lease.expire_if_due(now);
            assert_eq!(lease.extend_to(now, now + SECOND, 0), first);
            let LeaseState::Held(_) = lease.extend_to(now, now + 3 * SECOND, 0) else {
                panic!("{lease:?}")
            };
            assert!(matches!(
                lease.expire_if_due(now + 2 * SECOND),
                LeaseState::Held(_)
            ));
            assert_eq!(
                lease.extend_to(now + 3 * SECOND, now + 9 * SECOND, 0),
                LeaseState::JustLost
            );
        }

        #[test]
        fn a_release_ends_it_for_good() {
            let now = clock::now();
            let lease = lease("x");
            lease.activate(now + SECOND, 0);
            assert!(matches!(lease.begin_release(now), LeaseState::Held(_)));
            assert_eq!(lease.begin_release(now), LeaseState::Ended);
            assert_eq!(
                lease.expire_if_due(now + 9 * SECOND),
                LeaseState::Ended,
                "not lost later"
            );
            assert!(!lease.mark_not_ours());
            lease.finish_release();
            assert_eq!(lease.extend_to(now, now + 9 * SECOND, 0), LeaseState::Ended);
        }

        #[test]
        fn an_abandoned_attempt_cannot_be_held() {
            let now = clock::now();
            let lease = lease("x");
            lease.abandon();
            assert!(!lease.activate(now + SECOND, 0));
            assert_eq!(lease.expire_if_due(now), LeaseState::Ended);
        }

        const NODE: usize = 1;
        const LATER: Duration = Duration::from_millis(13);

        #[test]
        fn the_key_may_exist_until_the_last_write_has_run_out() {
            let now = clock::now();
            let lease = lease("x");
            assert!(!lease.may_exist(NODE, now), "nothing was written");
            lease.record_sent(NODE, now, SECOND);
            lease.record_sent(NODE, now, SECOND / 2);
            assert!(lease.may_exist(NODE, now + SECOND));
            assert!(!lease.may_exist(NODE, now + SECOND + LATER));
        }

        #[test]
        fn key_on_a_node_that_was_not_asked_never_exists() {
            let now = clock::now();
            let lease = lease("x");
            lease.record_contacted(NodeSet::all(3));
            lease.record_sent(NODE, now, SECOND);
            lease.record_unanswered(NODE);
            let may_exist = [0, 1, 2].map(|node| lease.may_exist(node, now));
            assert_eq!(may_exist, [false, true, false]);
            lease.note_not_granted(NODE);
            assert!(!lease.may_exist(NODE, now));
        }

        #[test]
        fn unanswered_request_counts_until_its_connection_is_killed_and_its_ttl_is_over() {
            let now = clock::now();
            let lease = lease("x");
            lease.record_sent(NODE, now, SECOND);
            lease.record_unanswered(NODE);
            assert!(lease.may_exist(NODE, now + 1_000 * SECOND));
            let killed = now + 10 * SECOND;
            lease.note_killed(0, killed + SECOND);
            assert!(
                lease.may_exist(NODE, now + 1_000 * SECOND),
                "another node's"
            );
            lease.note_killed(NODE, killed);
            lease.note_killed(NODE, killed + 10 * SECOND);
            assert!(lease.may_exist(NODE, killed + SECOND));
            assert!(!lease.may_exist(NODE, killed + SECOND + LATER));
        }

        #[test]
        fn an_extension_without_an_answer_may_run_until_then_and_extend_it_from_there() {
            let now = clock::now();
            let lease = lease("x");
            lease.record_sent(NODE, now, SECOND);
            lease.record_unanswered_extension(SECOND);
            assert!(lease.may_exist(NODE, now + 2 * SECOND));
            assert!(!lease.may_exist(NODE, now + 2 * SECOND + 2 * LATER));
        }
    }

    /// All interleavings, by the model checker: `RUSTFLAGS="--cfg loom" cargo test --release --lib loom`.
    #[cfg(loom)]
    mod loom_latch {
        use std::sync::Arc;
        use std::time::{Duration, Instant};

        use super::*;
        use crate::protocol::lease::{Lease, LeaseState};
        use crate::sync::primitives::Ordering;
        use crate::time::clock;

        /// Runs two or three of the latch's verbs at once and hands their answers to `check`, for every order.
        fn race<const N: usize>(
            verbs: [fn(&Lease, Instant) -> LeaseState; N],
            check: fn(&Lease, Instant, [LeaseState; N]),
        ) {
            let start = clock::now();
            loom::model(move || {
                let lease = lease("x");
                assert!(lease.activate(start + Duration::from_secs(1), 0));
                let threads = verbs.map(|verb| {
                    let lease = Arc::clone(&lease);
                    loom::thread::spawn(move || verb(&lease, start))
                });
                let looks = threads.map(|thread| thread.join().unwrap());
                check(&lease, start, looks);
            });
        }

        fn expired(lease: &Lease, start: Instant) -> LeaseState {
            lease.expire_if_due(start + Duration::from_secs(2))
        }

        fn release(lease: &Lease, start: Instant) -> LeaseState {
            lease.begin_release(start)
        }

        fn prolong(lease: &Lease, start: Instant) -> LeaseState {
            lease.extend_to(start, start + Duration::from_secs(5), 0)
        }

        fn taken(lease: &Lease, _: Instant) -> LeaseState {
            if lease.mark_not_ours() {
                LeaseState::JustLost
            } else {
                LeaseState::Lost
            }
        }

        #[test]
        fn loom_one_of_many_lookers_is_told_of_the_loss() {
            race([expired, taken, expired], |lease, start, looks| {
                let told = looks.iter().filter(|l| **l == LeaseState::JustLost).count();
                assert_eq!(told, 1, "{looks:?}");
                assert_eq!(lease.expire_if_due(start), LeaseState::Lost);
            });
        }

        #[test]
        fn loom_a_lease_is_either_released_or_lost() {
            race([release, expired], |lease, start, looks| {
                let released = matches!(looks[0], LeaseState::Held(_));
                let lost = looks.contains(&LeaseState::JustLost);
                assert!(released != lost, "{looks:?}");
                let after = lease.expire_if_due(start + Duration::from_secs(9));
                assert_eq!(
                    after,
                    if released {
                        LeaseState::Ended
                    } else {
                        LeaseState::Lost
                    }
                );
            });
        }

        #[test]
        fn loom_an_extension_never_revives() {
            race([prolong, taken], |lease, start, looks| {
                assert_eq!(looks[1], LeaseState::JustLost, "a held lease can be lost");
                assert_eq!(lease.expire_if_due(start), LeaseState::Lost);
            });
            race([prolong, release], |lease, start, looks| {
                assert!(matches!(looks[1], LeaseState::Held(_)));
                assert_eq!(lease.expire_if_due(start), LeaseState::Ended);
            });
            race([prolong, expired], |lease, start, looks| {
                // Either the expiry had been seen before the extension, or it had moved on.
                let lost = looks.contains(&LeaseState::JustLost);
                assert_eq!(
                    lost,
                    lease.expire_if_due(start) == LeaseState::Lost,
                    "{looks:?}"
                );
            });
        }

        #[test]
        fn loom_extensions_take_turns() {
            loom::model(|| {
                let lease = lease("x");
                let other = Arc::clone(&lease);
                let busy = Arc::new(loom::sync::atomic::AtomicBool::new(false));
                let also = Arc::clone(&busy);
                let extend = |lease: &Arc<Lease>, busy: &loom::sync::atomic::AtomicBool| {
                    let turn = lease.lock_extension();
                    assert!(!busy.swap(true, Ordering::SeqCst), "two at once");
                    busy.store(false, Ordering::SeqCst);
                    drop(turn);
                };
                let thread = loom::thread::spawn(move || extend(&other, &also));
                extend(&lease, &busy);
                thread.join().unwrap();
            });
        }
    }
}
