//! One lease, one latch: who holds what until when, decided by compare-and-exchange alone.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{Error, LossReason};
use crate::protocol::key::Key;
use crate::protocol::key_set::Keys;
use crate::protocol::kind::Claim;
use crate::protocol::quorum::NodeSet;
use crate::protocol::token::Token;
use crate::protocol::validity;
use crate::sync::primitives::{AtomicU64, Condvar, Mutex, Ordering};
use crate::time::clock;

const TRYING: u64 = 0;
const RELEASING: u64 = 1;
const ENDED: u64 = 2;
/// `LOST`, one for each reason.
const EXPIRED: u64 = 3;
const NOT_OURS: u64 = 4;
const SHUT_DOWN: u64 = 5;
/// Everything above is `Held`: the expiry in microseconds, moved up by this much.
const HELD: u64 = 6;

/// The wall clock may be set forward by so many µs, besides a hundredth of the time, before that counts as a suspend.
const MOST_LEAD: i64 = 100_000;

/// A lease that does not expire ends after this: never.
pub(crate) const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// A lease on a lock's keys, nearly always one, under one token, from the attempt that asks for it to its end (rule S7).
///
/// Nothing is ever looked up by name: requests, the local gate and the guard all carry the lease itself.
pub(crate) struct Lease {
    keys: Keys,
    token: Token,
    claim: Claim,
    /// Whether it claims to read only, having claimed to write: 0 or 1. There is no way back.
    downgraded: AtomicU64,
    /// # State table
    ///
    /// | from          | to            | by                                                                |
    /// |---------------|---------------|-------------------------------------------------------------------|
    /// | `TRYING`      | `Held(e)`     | [`hold`](Lease::hold): a quorum granted with validity left         |
    /// | `TRYING`      | `ENDED`       | [`abandon`](Lease::abandon): not won, too late or given up         |
    /// | `Held(e)`     | `Held(e')`    | [`prolong`](Lease::prolong): now < e ≤ e'                          |
    /// | `Held(e)`     | `LOST`        | whoever first sees e ≤ now, or [`lose`](Lease::lose) by a reply    |
    /// | `Held(e)`     | `RELEASING`   | [`begin_release`](Lease::begin_release): now < e                   |
    /// | `RELEASING`   | `ENDED`       | [`end`](Lease::end)                                                |
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
    fence: AtomicU64,
    /// The nodes that were asked to grant it, so may hold its key.
    asked: AtomicU64,
    /// The wall clock's lead when the nodes were last asked, and when that was in [`time::micros`].
    lead: AtomicU64,
    confirmed: AtomicU64,
    /// Whether an extension is on its way: at most one is (rule S5).
    extending: Mutex<bool>,
    /// An extension has ended, or the lease.
    changed: Condvar,
}

/// What a look at a lease finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// Not won yet.
    Trying,
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
    pub(crate) fn new(keys: impl Into<Keys>, token: Token, claim: Claim) -> Lease {
        Lease {
            keys: keys.into(),
            token,
            claim,
            downgraded: AtomicU64::new(0),
            state: AtomicU64::new(TRYING),
            exists_until: AtomicU64::new(0),
            max_ttl: AtomicU64::new(0),
            written: AtomicU64::new(0),
            unanswered: AtomicU64::new(0),
            fence: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            lead: AtomicU64::new(0),
            confirmed: AtomicU64::new(0),
            extending: Mutex::new(false),
            changed: Condvar::new(),
        }
    }

    /// The only key of most leases; of several the first.
    pub(crate) fn key(&self) -> &Key {
        self.keys.first()
    }

    pub(crate) fn keys(&self) -> &Keys {
        &self.keys
    }

    pub(crate) fn token(&self) -> &Token {
        &self.token
    }

    pub(crate) fn claim(&self) -> Claim {
        match self.downgraded.load(Ordering::Acquire) {
            0 => self.claim,
            _ => Claim::Read,
        }
    }

    /// From now on it claims to read, whatever the nodes know of that.
    pub(crate) fn downgrade(&self) {
        debug_assert_ne!(self.claim, Claim::Exclusive);
        self.downgraded.store(1, Ordering::Release);
    }

    /// The attempt was won: held until `expiry`. `false` if it had been given up. `lead` is the wall clock's ([`time::lead`])
    /// from before the nodes were asked.
    pub(crate) fn hold(&self, expiry: Instant, lead: i64) -> bool {
        self.confirm(lead);
        self.shift(TRYING, held(expiry)).is_ok()
    }

    /// A quorum of nodes has said that it is held for as long as we think, after the wall clock had this lead.
    fn confirm(&self, lead: i64) {
        self.confirmed
            .store(clock::micros(clock::now()), Ordering::Release);
        self.lead.store(lead as u64, Ordering::Release);
    }

    /// Whether the wall clock has run ahead since the nodes were last asked, as after a suspend: then the lease may have
    /// ended on the nodes although it has not by our clock, and only they know (rule S11).
    pub(crate) fn is_doubtful(&self) -> bool {
        let since =
            clock::micros(clock::now()).saturating_sub(self.confirmed.load(Ordering::Acquire));
        let lead = self.lead.load(Ordering::Acquire) as i64;
        let ahead = clock::lead().saturating_sub(lead);
        ahead > MOST_LEAD.saturating_add((since / 100) as i64)
    }

    /// Its number among all holders of the key, which strictly increases (rule S12).
    pub(crate) fn fence(&self) -> Option<u64> {
        Some(self.fence.load(Ordering::Acquire)).filter(|number| *number > 0)
    }

    pub(crate) fn number(&self, fence: u64) {
        self.fence.store(fence, Ordering::Release);
    }

    /// The attempt was not won, or too late. What was asked for and is not sent yet need not be sent.
    pub(crate) fn abandon(&self) {
        // Fails only where the lease is not in its attempt any more, and then there is nothing to give up.
        let _ = self.shift(TRYING, ENDED);
    }

    /// Looks at the state; if the expiry has passed, this look makes it lost.
    pub(crate) fn look(&self, now: Instant) -> Look {
        let mut state = self.state.load(Ordering::Acquire);
        loop {
            let look = read(state);
            match look {
                Look::Held(expiry) if expiry <= now => match self.shift(state, EXPIRED) {
                    Ok(()) => {
                        self.announce();
                        return Look::JustLost;
                    }
                    Err(newer) => state = newer,
                },
                _ => return look,
            }
        }
    }

    /// Looks without touching: an expiry that has passed reads as `Lost`, but nobody has been told yet.
    pub(crate) fn peek(&self, now: Instant) -> Look {
        match read(self.state.load(Ordering::Acquire)) {
            Look::Held(expiry) if expiry <= now => Look::Lost,
            look => look,
        }
    }

    #[cfg(feature = "testing")]
    pub(crate) fn is_held(&self) -> bool {
        matches!(self.peek(clock::now()), Look::Held(_))
    }

    /// When it ends, if it is held and does end.
    pub(crate) fn expiry(&self, now: Instant) -> Option<Instant> {
        match self.peek(now) {
            Look::Held(expiry) if expiry < now + FOR_EVER / 2 => Some(expiry),
            _ => None,
        }
    }

    /// The nodes said that it is not ours: lost, whatever the clock says. `true` for the one who made it so.
    pub(crate) fn lose(&self) -> bool {
        self.lose_for(LossReason::NotOurs)
    }

    /// The same for another reason.
    pub(crate) fn lose_for(&self, reason: LossReason) -> bool {
        let lost = match reason {
            LossReason::Expired => EXPIRED,
            LossReason::NotOurs => NOT_OURS,
            LossReason::ShutDown => SHUT_DOWN,
        };
        let mut state = self.state.load(Ordering::Acquire);
        while state >= HELD {
            match self.shift(state, lost) {
                Ok(()) => {
                    self.announce();
                    return true;
                }
                Err(newer) => state = newer,
            }
        }
        false
    }

    /// Why it is lost, if it is.
    pub(crate) fn loss(&self, now: Instant) -> Option<LossReason> {
        match self.state.load(Ordering::Acquire) {
            NOT_OURS => Some(LossReason::NotOurs),
            SHUT_DOWN => Some(LossReason::ShutDown),
            EXPIRED => Some(LossReason::Expired),
            state => matches!(read(state), Look::Held(expiry) if expiry <= now)
                .then_some(LossReason::Expired),
        }
    }

    /// What a caller is told who needs it to be held.
    pub(crate) fn lost(&self) -> Error {
        // What was never held, or is released, is not ours either.
        self.lost_for(self.loss(clock::now()).unwrap_or(LossReason::NotOurs))
    }

    /// The same where the reason is not in its state: nodes say so to a release, or to an adoption.
    pub(crate) fn lost_for(&self, reason: LossReason) -> Error {
        Error::LockLost {
            key: self.key().name().to_owned(),
            reason,
        }
    }

    /// A quorum has extended it: moves the expiry on to `expiry`, never back, if it is still held at `now`. Answers as
    /// [`look`](Lease::look); `lead` as for [`hold`](Lease::hold).
    pub(crate) fn prolong(&self, now: Instant, expiry: Instant, lead: i64) -> Look {
        loop {
            let look = self.look(now);
            match look {
                Look::Held(old) if held(old) < held(expiry) => {
                    if self.shift(held(old), held(expiry)).is_ok() {
                        self.confirm(lead);
                        return Look::Held(expiry);
                    }
                }
                Look::Held(old) if held(old) == held(expiry) => {
                    self.confirm(lead);
                    return look;
                }
                _ => return look,
            }
        }
    }

    /// Begins the release of a lease that is held; answers `Held` if this call began it, else what stands in the way.
    pub(crate) fn begin_release(&self, now: Instant) -> Look {
        loop {
            let look = self.look(now);
            match look {
                Look::Held(expiry) => {
                    if self.shift(held(expiry), RELEASING).is_ok() {
                        self.announce();
                        return look;
                    }
                }
                _ => return look,
            }
        }
    }

    /// The release has had its answer, or its time.
    pub(crate) fn end(&self) {
        let _ = self.shift(RELEASING, ENDED);
    }

    /// Waits until no extension of this lease is on its way; then the caller's may be, until the answer is dropped.
    /// Blocks for one round of each thread that asked before.
    pub(crate) fn begin_extension(self: &Arc<Lease>) -> Extension {
        let mut extending = self.extending.lock();
        while *extending {
            self.changed.wait(&mut extending);
        }
        *extending = true;
        Extension(Arc::clone(self))
    }

    /// The same without waiting: `None` while one is on its way.
    pub(crate) fn try_begin_extension(self: &Arc<Lease>) -> Option<Extension> {
        let mut extending = self.extending.lock();
        (!std::mem::replace(&mut *extending, true)).then(|| Extension(Arc::clone(self)))
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
    fn announce(&self) {
        // Who has seen it held, and is about to wait, has the lock.
        drop(self.extending.lock());
        self.changed.notify_all();
    }

    /// Nodes' lanes are about to be given a request to grant it.
    pub(crate) fn note_asked(&self, nodes: NodeSet) {
        self.asked.fetch_or(nodes.bits(), Ordering::AcqRel);
    }

    /// The nodes whose lanes were given a request to grant it. What became of that, each lane knows ([`may_exist`](Lease::may_exist)).
    pub(crate) fn asked(&self) -> NodeSet {
        NodeSet::from_bits(self.asked.load(Ordering::Acquire))
    }

    /// A request that can make the key exist for `ttl` is about to be written to a node.
    pub(crate) fn note_written(&self, node: usize, now: Instant, ttl: Duration) {
        self.note_extended(now, ttl);
        self.written
            .fetch_or(NodeSet::of(node).bits(), Ordering::AcqRel);
    }

    /// A request that can keep the key for `ttl` where it is there is about to be written to a node.
    pub(crate) fn note_extended(&self, now: Instant, ttl: Duration) {
        self.max_ttl.fetch_max(life(ttl), Ordering::AcqRel);
        self.note_exists(now, life(ttl));
    }

    fn note_exists(&self, now: Instant, life: u64) {
        let until = clock::micros(now).saturating_add(life);
        self.exists_until.fetch_max(until, Ordering::AcqRel);
    }

    /// The node has answered the only request to grant it there, and nothing came of it.
    pub(crate) fn note_not_granted(&self, node: usize) {
        self.written
            .fetch_and(!NodeSet::of(node).bits(), Ordering::AcqRel);
    }

    /// A request to grant it has no answer, and the node may run it at any later time.
    pub(crate) fn note_unanswered(&self, node: usize) {
        self.unanswered
            .fetch_or(NodeSet::of(node).bits(), Ordering::AcqRel);
    }

    /// The connection of all that the node has not answered is killed by now: what it has run, it ran before.
    pub(crate) fn note_killed(&self, node: usize, now: Instant) {
        let bit = NodeSet::of(node).bits();
        if self.unanswered.load(Ordering::Acquire) & bit != 0 {
            self.note_exists(now, self.max_ttl.load(Ordering::Acquire));
            self.unanswered.fetch_and(!bit, Ordering::AcqRel);
        }
    }

    /// A request to extend it has no answer, and may run for as long as the key is there.
    pub(crate) fn note_unanswered_extension(&self, ttl: Duration) {
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
        let is_alive = || clock::micros(now) <= self.exists_until.load(Ordering::Acquire);
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
            .field("state", &read(self.state.load(Ordering::Acquire)))
            .finish_non_exhaustive()
    }
}

impl Lease {
    fn shift(&self, from: u64, to: u64) -> Result<(), u64> {
        self.state
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
            .map(|_| ())
    }
}

/// The turn of one extension; the next may begin when it is dropped.
#[derive(Debug)]
pub(crate) struct Extension(Arc<Lease>);

impl Drop for Extension {
    fn drop(&mut self) {
        *self.0.extending.lock() = false;
        self.0.changed.notify_all();
    }
}

/// The state for an expiry, in whole microseconds rounded down: a lease is never thought longer than it is.
fn held(expiry: Instant) -> u64 {
    clock::micros(expiry).saturating_add(HELD)
}

fn read(state: u64) -> Look {
    match state {
        TRYING => Look::Trying,
        EXPIRED | NOT_OURS | SHUT_DOWN => Look::Lost,
        RELEASING | ENDED => Look::Ended,
        // An expiry beyond the clock's range cannot be stored: `held` took it from an `Instant`.
        held => clock::instant(held - HELD).map_or(Look::Lost, Look::Held),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::protocol::kind::Claim;

    pub(crate) fn lease(name: &str) -> Arc<Lease> {
        lease_as(name, Claim::Exclusive)
    }

    pub(crate) fn lease_as(name: &str, claim: Claim) -> Arc<Lease> {
        let key = Key::parse("test:", name, claim.family()).unwrap();
        Arc::new(Lease::new(key, Token::fresh(None).unwrap(), claim))
    }

    #[cfg(not(loom))]
    mod table {
        use std::time::Duration;

        use super::*;
        use crate::error::LossReason;
        use crate::protocol::lease::Look;
        use crate::protocol::quorum::NodeSet;
        use crate::time::clock;

        const SECOND: Duration = Duration::from_secs(1);

        #[test]
        fn held_until_the_expiry_and_lost_at_it() {
            let now = clock::now();
            let lease = lease("x");
            assert_eq!(lease.look(now), Look::Trying);
            assert!(lease.hold(now + SECOND, 0));
            assert!(!lease.hold(now + 9 * SECOND, 0), "held twice");
            let Look::Held(expiry) = lease.look(now) else {
                panic!("{lease:?}")
            };
            assert!(expiry <= now + SECOND);
            assert_eq!(lease.peek(now + SECOND), Look::Lost);
            assert_eq!(lease.look(now + SECOND), Look::JustLost);
            assert_eq!(lease.look(now + SECOND), Look::Lost);
            assert_eq!(lease.look(now), Look::Lost, "nothing makes it held again");
            assert_eq!(lease.prolong(now, now + 9 * SECOND, 0), Look::Lost);
            assert_eq!(lease.begin_release(now), Look::Lost);
            assert!(!lease.lose());
            assert_eq!(lease.loss(now), Some(LossReason::Expired), "the first one");
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
                assert_eq!(lease.loss(now), None);
                lease.hold(now + SECOND, 0);
                assert_eq!(lease.loss(now), None);
                let by_clock = lease.loss(now + SECOND);
                assert_eq!(by_clock, Some(LossReason::Expired), "as it is peeked at");
                assert!(lease.lose_for(reason));
                assert_eq!(
                    (lease.loss(now), lease.look(now)),
                    (Some(reason), Look::Lost)
                );
                let text = lease.lost().to_string();
                assert_eq!(text, format!("the lock of \"x\" is lost: {reason}"));
            }
            let released = lease("x");
            released.hold(now + SECOND, 0);
            released.begin_release(now);
            assert_eq!(released.loss(now + SECOND), None);
        }

        #[test]
        fn an_extension_moves_the_expiry_forth_only() {
            let now = clock::now();
            let lease = lease("x");
            lease.hold(now + 2 * SECOND, 0);
            let first = lease.look(now);
            assert_eq!(lease.prolong(now, now + SECOND, 0), first);
            let Look::Held(_) = lease.prolong(now, now + 3 * SECOND, 0) else {
                panic!("{lease:?}")
            };
            assert!(matches!(lease.look(now + 2 * SECOND), Look::Held(_)));
            assert_eq!(
                lease.prolong(now + 3 * SECOND, now + 9 * SECOND, 0),
                Look::JustLost
            );
        }

        #[test]
        fn a_release_ends_it_for_good() {
            let now = clock::now();
            let lease = lease("x");
            lease.hold(now + SECOND, 0);
            assert!(matches!(lease.begin_release(now), Look::Held(_)));
            assert_eq!(lease.begin_release(now), Look::Ended);
            assert_eq!(lease.look(now + 9 * SECOND), Look::Ended, "not lost later");
            assert!(!lease.lose());
            lease.end();
            assert_eq!(lease.prolong(now, now + 9 * SECOND, 0), Look::Ended);
        }

        #[test]
        fn an_abandoned_attempt_cannot_be_held() {
            let now = clock::now();
            let lease = lease("x");
            lease.abandon();
            assert!(!lease.hold(now + SECOND, 0));
            assert_eq!(lease.look(now), Look::Ended);
        }

        const NODE: usize = 1;
        const LATER: Duration = Duration::from_millis(13);

        #[test]
        fn the_key_may_exist_until_the_last_write_has_run_out() {
            let now = clock::now();
            let lease = lease("x");
            assert!(!lease.may_exist(NODE, now), "nothing was written");
            lease.note_written(NODE, now, SECOND);
            lease.note_written(NODE, now, SECOND / 2);
            assert!(lease.may_exist(NODE, now + SECOND));
            assert!(!lease.may_exist(NODE, now + SECOND + LATER));
        }

        #[test]
        fn key_on_a_node_that_was_not_asked_never_exists() {
            let now = clock::now();
            let lease = lease("x");
            lease.note_asked(NodeSet::all(3));
            lease.note_written(NODE, now, SECOND);
            lease.note_unanswered(NODE);
            let may_exist = [0, 1, 2].map(|node| lease.may_exist(node, now));
            assert_eq!(may_exist, [false, true, false]);
            lease.note_not_granted(NODE);
            assert!(!lease.may_exist(NODE, now));
        }

        #[test]
        fn unanswered_request_counts_until_its_connection_is_killed_and_its_ttl_is_over() {
            let now = clock::now();
            let lease = lease("x");
            lease.note_written(NODE, now, SECOND);
            lease.note_unanswered(NODE);
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
            lease.note_written(NODE, now, SECOND);
            lease.note_unanswered_extension(SECOND);
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
        use crate::protocol::lease::{Lease, Look};
        use crate::sync::primitives::Ordering;
        use crate::time::clock;

        /// Runs two or three of the latch's verbs at once and hands their answers to `check`, for every order.
        fn race<const N: usize>(
            verbs: [fn(&Lease, Instant) -> Look; N],
            check: fn(&Lease, Instant, [Look; N]),
        ) {
            let start = clock::now();
            loom::model(move || {
                let lease = lease("x");
                assert!(lease.hold(start + Duration::from_secs(1), 0));
                let threads = verbs.map(|verb| {
                    let lease = Arc::clone(&lease);
                    loom::thread::spawn(move || verb(&lease, start))
                });
                let looks = threads.map(|thread| thread.join().unwrap());
                check(&lease, start, looks);
            });
        }

        fn expired(lease: &Lease, start: Instant) -> Look {
            lease.look(start + Duration::from_secs(2))
        }

        fn release(lease: &Lease, start: Instant) -> Look {
            lease.begin_release(start)
        }

        fn prolong(lease: &Lease, start: Instant) -> Look {
            lease.prolong(start, start + Duration::from_secs(5), 0)
        }

        fn taken(lease: &Lease, _: Instant) -> Look {
            if lease.lose() {
                Look::JustLost
            } else {
                Look::Lost
            }
        }

        #[test]
        fn loom_one_of_many_lookers_is_told_of_the_loss() {
            race([expired, taken, expired], |lease, start, looks| {
                let told = looks.iter().filter(|l| **l == Look::JustLost).count();
                assert_eq!(told, 1, "{looks:?}");
                assert_eq!(lease.look(start), Look::Lost);
            });
        }

        #[test]
        fn loom_a_lease_is_either_released_or_lost() {
            race([release, expired], |lease, start, looks| {
                let released = matches!(looks[0], Look::Held(_));
                let lost = looks.contains(&Look::JustLost);
                assert!(released != lost, "{looks:?}");
                let after = lease.look(start + Duration::from_secs(9));
                assert_eq!(after, if released { Look::Ended } else { Look::Lost });
            });
        }

        #[test]
        fn loom_an_extension_never_revives() {
            race([prolong, taken], |lease, start, looks| {
                assert_eq!(looks[1], Look::JustLost, "a held lease can be lost");
                assert_eq!(lease.look(start), Look::Lost);
            });
            race([prolong, release], |lease, start, looks| {
                assert!(matches!(looks[1], Look::Held(_)));
                assert_eq!(lease.look(start), Look::Ended);
            });
            race([prolong, expired], |lease, start, looks| {
                // Either the expiry had been seen before the extension, or it had moved on.
                let lost = looks.contains(&Look::JustLost);
                assert_eq!(lost, lease.look(start) == Look::Lost, "{looks:?}");
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
                    let turn = lease.begin_extension();
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
