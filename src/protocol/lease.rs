//! The state of a lease (S7). `key_existence.rs` tells on which nodes its key may still exist.
//!
//! - One atomic word says whether the lock is held and until when. Every change is a
//!   compare-and-exchange, so two threads never disagree.
//! - A lease that was lost or ended never becomes held again.
//! - Nothing here sends a request or reports a loss. The caller that gets `JustLost`, or `true`
//!   from `mark_lost` or `mark_not_ours`, does both.
//!
//! Tests: in this file (state); in `src/tests/engine/`: `loss.rs` (suspend), `danger.rs` (watch),
//! `min_hold.rs`.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::error::Error;
use crate::error::loss_reason::LossReason;
use crate::protocol::key::Key;
use crate::protocol::key_set::KeySet;
use crate::protocol::kind::LeaseKind;
use crate::protocol::token::Token;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::primitives::{Condvar, Mutex};
use crate::time::clock;
use crate::time::clock::whole_micros;

const PENDING: u64 = 0;
const RELEASING: u64 = 1;
const ENDED: u64 = 2;
/// `LOST`, one value per reason.
const EXPIRED: u64 = 3;
const NOT_OURS: u64 = 4;
const SHUT_DOWN: u64 = 5;
/// From here on `Held`: the expiry in µs plus this offset.
const HELD: u64 = 6;

/// The lifetime of a lease that does not expire. No process runs for as long.
pub(crate) const NEVER_EXPIRES_AFTER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// A lease on one or several keys under one token, from its attempt to its end.
///
/// Requests, the lock table and the guard carry the lease itself: nothing is looked up by name
/// (S3).
pub(crate) struct Lease {
    keys: KeySet,
    token: Token,
    kind: LeaseKind,
    /// Whether a write lease was downgraded to a read lease.
    downgraded: AtomicBool,
    /// Whether the acquire had a subscription when it ended.
    was_subscribed: AtomicBool,
    /// Whether a notice was published because a node has another token.
    notice_sent: AtomicBool,
    /// # State table
    ///
    /// | from        | to          | by                                                   |
    /// |-------------|-------------|------------------------------------------------------|
    /// | `PENDING`   | `Held(e)`   | `activate`: a quorum granted with validity left      |
    /// | `PENDING`   | `ENDED`     | `abandon`: no quorum, too late or cancelled          |
    /// | `Held(e)`   | `Held(e')`  | `extend_to`: now < e ≤ e'                            |
    /// | `Held(e)`   | `LOST`      | `expire_if_due`: e ≤ now                             |
    /// | `Held(e)`   | `LOST`      | `mark_not_ours`: a quorum of nodes reported it       |
    /// | `Held(e)`   | `LOST`      | `mark_lost`: the `Nodes` shut down                   |
    /// | `Held(e)`   | `RELEASING` | `begin_release`: release or detach, now < e          |
    /// | `RELEASING` | `ENDED`     | `finish_release`                                     |
    ///
    /// No state leads back to `Held`. `LOST` keeps the first reason.
    state: AtomicU64,
    /// The latest time at which the key expires on a node that is not in `unanswered`, in µs of
    /// [`clock::to_micros`].
    pub(super) exists_until: AtomicU64,
    /// The longest TTL that was sent to a node, in µs.
    pub(super) max_ttl: AtomicU64,
    /// The nodes to which a granting request was written, except those that granted nothing.
    pub(super) written: AtomicU64,
    /// The nodes among `written` whose connection broke before a reply: they may run the request at
    /// any later time, until that connection is killed.
    pub(super) unanswered: AtomicU64,
    /// The fencing token; 0 for none. Set before the lease is held.
    fencing_token: AtomicU64,
    /// The nodes whose connections got a granting request, written or still queued.
    pub(super) contacted: AtomicU64,
    /// The offset of the wall clock before the round that last confirmed the lease, in µs.
    wall_offset: AtomicU64,
    /// When a quorum last confirmed the lease, in µs; 0 before it is held.
    confirmed: AtomicU64,
    /// Until when a release keeps the key, in µs of [`clock::to_micros`]; 0 if it deletes the key.
    kept_until: AtomicU64,
    /// How long before its expiry the lease is endangered, in µs; 0 for no warning (L5).
    danger_margin: AtomicU64,
    /// Whether the last report on the lease is that it is endangered.
    danger_told: AtomicBool,
    /// Whether an extension is in flight. At most one is (S5).
    extending: Mutex<bool>,
    /// Notified when an extension or the lease ends.
    changed: Condvar,
}

/// The state of a lease at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LeaseState {
    /// The attempt has no verdict yet.
    Pending,
    /// Held until this moment.
    Held(Instant),
    /// Lost by this call. The caller must queue the release of the token and report the loss (S11).
    JustLost,
    /// Lost before.
    Lost,
    /// Released, being released, or abandoned.
    Ended,
}

impl Lease {
    pub(crate) fn new(keys: impl Into<KeySet>, token: Token, kind: LeaseKind) -> Lease {
        Lease {
            keys: keys.into(),
            token,
            kind,
            downgraded: AtomicBool::new(false),
            was_subscribed: AtomicBool::new(false),
            notice_sent: AtomicBool::new(false),
            state: AtomicU64::new(PENDING),
            exists_until: AtomicU64::new(0),
            max_ttl: AtomicU64::new(0),
            written: AtomicU64::new(0),
            unanswered: AtomicU64::new(0),
            fencing_token: AtomicU64::new(0),
            contacted: AtomicU64::new(0),
            wall_offset: AtomicU64::new(0),
            confirmed: AtomicU64::new(0),
            kept_until: AtomicU64::new(0),
            danger_margin: AtomicU64::new(0),
            danger_told: AtomicBool::new(false),
            extending: Mutex::new(false),
            changed: Condvar::new(),
        }
    }

    /// Returns the key; of several keys the first in sorted order.
    pub(crate) fn key(&self) -> &Key {
        self.keys.first()
    }

    pub(crate) fn keys(&self) -> &KeySet {
        &self.keys
    }

    pub(crate) fn token(&self) -> &Token {
        &self.token
    }

    /// Returns the present kind of the lease: a downgraded write lease is a read lease.
    pub(crate) fn kind(&self) -> LeaseKind {
        match self.downgraded.load(Ordering::Acquire) {
            false => self.kind,
            true => LeaseKind::Read,
        }
    }

    /// Makes this a read lease, before any node has been asked to downgrade it.
    pub(crate) fn downgrade(&self) {
        debug_assert_ne!(self.kind, LeaseKind::Exclusive);
        self.downgraded.store(true, Ordering::Release);
    }

    /// Makes a pending lease held until `expiry`; returns `false` if it was abandoned.
    /// `wall_offset` is [`clock::wall_offset`] from before the nodes were asked.
    pub(crate) fn activate(&self, expiry: Instant, wall_offset: i64) -> bool {
        // First, so that a thread that reads `Held` reads this confirmation, too.
        self.record_confirmation(wall_offset);
        self.transition(PENDING, encode_held(expiry)).is_ok()
    }

    /// Records that a quorum confirmed the lease now. `wall_offset` is from before the nodes were
    /// asked.
    fn record_confirmation(&self, wall_offset: i64) {
        self.confirmed
            .store(clock::to_micros(clock::now()).max(1), Ordering::Release);
        self.wall_offset
            .store(wall_offset as u64, Ordering::Release);
    }

    /// Returns whether a quorum of nodes has confirmed the lease since `then`.
    pub(crate) fn was_confirmed_since(&self, then: Instant) -> bool {
        self.confirmed.load(Ordering::Acquire) >= clock::to_micros(then)
    }

    /// Returns whether the lease is held, or was.
    pub(crate) fn was_held(&self) -> bool {
        self.confirmed.load(Ordering::Acquire) > 0
    }

    /// Returns whether the wall clock has run ahead since the last confirmation, as after a
    /// suspend. The lease may then have expired on the nodes, so a check must ask them (S11).
    pub(crate) fn is_in_doubt(&self) -> bool {
        self.is_in_doubt_at(clock::now(), clock::wall_offset())
    }

    /// Returns [`is_in_doubt`](Lease::is_in_doubt) by these clocks.
    pub(crate) fn is_in_doubt_at(&self, now: Instant, wall_offset: i64) -> bool {
        let confirmed = self.confirmed.load(Ordering::Acquire);
        let since = clock::to_micros(now).saturating_sub(confirmed);
        let confirmed_offset = self.wall_offset.load(Ordering::Acquire) as i64;
        let ahead = wall_offset.saturating_sub(confirmed_offset);
        clock::is_suspend(ahead, since)
    }

    /// Returns the fencing token of a fenced lease (S12).
    pub(crate) fn fencing_token(&self) -> Option<u64> {
        Some(self.fencing_token.load(Ordering::Acquire)).filter(|token| *token > 0)
    }

    pub(crate) fn set_fencing_token(&self, token: u64) {
        self.fencing_token.store(token, Ordering::Release);
    }

    /// Ends a pending lease. Its granting requests that are still queued are then not sent (S4).
    pub(crate) fn abandon(&self) {
        // Fails only if the lease is not pending any more.
        let _ = self.transition(PENDING, ENDED);
    }

    /// Returns the state at `now`; makes the lease lost if its expiry has passed.
    pub(crate) fn expire_if_due(&self, now: Instant) -> LeaseState {
        let mut word = self.state.load(Ordering::Acquire);
        loop {
            let state = decode_state(word);
            match state {
                LeaseState::Held(expiry) if expiry <= now => match self.transition(word, EXPIRED) {
                    Ok(()) => {
                        self.notify_waiters();
                        return LeaseState::JustLost;
                    }
                    Err(newer) => word = newer,
                },
                _ => return state,
            }
        }
    }

    /// Returns the state at `now` without changing it. A passed expiry reads as `Lost`, although
    /// the loss may not be reported yet.
    pub(crate) fn peek(&self, now: Instant) -> LeaseState {
        match decode_state(self.state.load(Ordering::Acquire)) {
            LeaseState::Held(expiry) if expiry <= now => LeaseState::Lost,
            state => state,
        }
    }

    #[cfg(feature = "testing")]
    pub(crate) fn is_held(&self) -> bool {
        matches!(self.peek(clock::now()), LeaseState::Held(_))
    }

    /// Returns the expiry of a held lease that has one.
    pub(crate) fn expiry(&self, now: Instant) -> Option<Instant> {
        match self.peek(now) {
            LeaseState::Held(expiry) if expiry < now + NEVER_EXPIRES_AFTER / 2 => Some(expiry),
            _ => None,
        }
    }

    /// Returns `true` once: the caller is to publish a notice, because a node has another token.
    ///
    /// Each holder of that name checks its lease then, this one too. A notice after each check
    /// would have no end.
    pub(crate) fn begin_notice(&self) -> bool {
        !self.notice_sent.swap(true, Ordering::AcqRel)
    }

    /// Records that the acquire had a subscription: it has waited, or another thread of its process
    /// waited for the lock, at most a moment before. The release then looks for processes in the
    /// waiting list even if none is subscribed. Set before the guard exists.
    pub(crate) fn set_was_subscribed(&self) {
        self.was_subscribed.store(true, Ordering::Release);
    }

    /// Returns whether the acquire had a subscription.
    pub(crate) fn was_subscribed(&self) -> bool {
        self.was_subscribed.load(Ordering::Acquire)
    }

    /// Makes a release keep the key until `end`. Set before the guard exists.
    pub(crate) fn keep_until(&self, end: Instant) {
        self.kept_until
            .store(clock::to_micros(end), Ordering::Release);
    }

    /// Returns whether a release may keep the key.
    pub(crate) fn has_min_hold(&self) -> bool {
        self.kept_until.load(Ordering::Acquire) != 0
    }

    /// Returns until when a release at `now` keeps the key; `None` if it deletes the key.
    pub(crate) fn kept_until(&self, now: Instant) -> Option<Instant> {
        match self.kept_until.load(Ordering::Acquire) {
            0 => None,
            end => clock::from_micros(end).filter(|end| *end > now),
        }
    }

    /// Sets how long before its expiry the lease is endangered (L5). Set before the guard exists.
    pub(crate) fn set_danger_margin(&self, margin: Duration) {
        self.danger_margin
            .store(whole_micros(margin), Ordering::Release);
    }

    /// Returns how long before its expiry the lease is endangered; zero without a warning.
    pub(crate) fn danger_margin(&self) -> Duration {
        Duration::from_micros(self.danger_margin.load(Ordering::Acquire))
    }

    /// Returns when a lease with this expiry becomes endangered: at the expiry without a margin.
    pub(crate) fn danger_start(&self, expiry: Instant) -> Instant {
        let margin = self.danger_margin.load(Ordering::Acquire);
        if margin == 0 {
            return expiry;
        }
        let start = clock::to_micros(expiry).saturating_sub(margin);
        clock::from_micros(start).map_or(expiry, |start| start.min(expiry))
    }

    /// Records whether the last report on the lease is that it is endangered.
    pub(crate) fn set_danger_told(&self, told: bool) {
        self.danger_told.store(told, Ordering::Release);
    }

    /// Returns whether the last report on the lease is that it is endangered.
    pub(crate) fn is_danger_told(&self) -> bool {
        self.danger_told.load(Ordering::Acquire)
    }

    /// Makes a held lease lost, because the nodes said that it is not ours. Returns `true` if this
    /// call did so.
    pub(crate) fn mark_not_ours(&self) -> bool {
        self.mark_lost(LossReason::NotOurs)
    }

    /// Makes a held lease lost for `reason`. Returns `true` if this call did so.
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

    /// Returns the reason of the loss; `None` if the lease is not lost at `now`.
    pub(crate) fn loss_reason(&self, now: Instant) -> Option<LossReason> {
        match self.state.load(Ordering::Acquire) {
            NOT_OURS => Some(LossReason::NotOurs),
            SHUT_DOWN => Some(LossReason::ShutDown),
            EXPIRED => Some(LossReason::Expired),
            state => matches!(decode_state(state), LeaseState::Held(expiry) if expiry <= now)
                .then_some(LossReason::Expired),
        }
    }

    /// Returns `LockLost` for a lease that is not held.
    pub(crate) fn lost_error(&self) -> Error {
        // A lease that was never held or is released is not ours.
        self.lost_error_for(
            self.loss_reason(clock::now())
                .unwrap_or(LossReason::NotOurs),
        )
    }

    /// Returns `LockLost` for a reason that is not in the state: the nodes' replies to a release or
    /// an adoption.
    pub(crate) fn lost_error_for(&self, reason: LossReason) -> Error {
        Error::LockLost {
            key: self.key().name().to_owned(),
            reason,
        }
    }

    /// Moves the expiry forward to `expiry`, never back, if the lease is held at `now` (S5).
    /// Returns the state as [`expire_if_due`](Lease::expire_if_due) does. `wall_offset` is as for
    /// [`activate`](Lease::activate).
    ///
    /// An extension to an earlier time than the present expiry does not count as a confirmation,
    /// because the nodes confirmed the lease only until that time.
    pub(crate) fn extend_to(&self, now: Instant, expiry: Instant, wall_offset: i64) -> LeaseState {
        loop {
            let state = self.expire_if_due(now);
            match state {
                LeaseState::Held(old) if encode_held(old) < encode_held(expiry) => {
                    if self
                        .transition(encode_held(old), encode_held(expiry))
                        .is_ok()
                    {
                        self.record_confirmation(wall_offset);
                        // The clock is read after the transition: a watch that told the danger
                        // and then read the former expiry has read an earlier time.
                        if self.danger_start(old) <= clock::now() {
                            self.notify_waiters(); // the lease is out of danger
                        }
                        return LeaseState::Held(expiry);
                    }
                }
                LeaseState::Held(old) if encode_held(old) == encode_held(expiry) => {
                    self.record_confirmation(wall_offset);
                    return state;
                }
                _ => return state,
            }
        }
    }

    /// Begins the release of a held lease. Returns `Held` if this call began it, else the state.
    pub(crate) fn begin_release(&self, now: Instant) -> LeaseState {
        loop {
            let state = self.expire_if_due(now);
            match state {
                LeaseState::Held(expiry) => {
                    if self.transition(encode_held(expiry), RELEASING).is_ok() {
                        self.notify_waiters();
                        return state;
                    }
                }
                _ => return state,
            }
        }
    }

    /// Ends the release, after its replies or its timeout.
    pub(crate) fn finish_release(&self) {
        let _ = self.transition(RELEASING, ENDED);
    }

    /// Blocks until no extension of this lease is in flight, and reserves the next one until the
    /// guard is dropped. Each thread that extends before it takes one round.
    pub(crate) fn lock_extension(self: &Arc<Lease>) -> ExtensionGuard {
        let mut extending = self.extending.lock();
        while *extending {
            self.changed.wait(&mut extending);
        }
        *extending = true;
        ExtensionGuard(Arc::clone(self))
    }

    /// Reserves the next extension; returns `None` while one is in flight.
    pub(crate) fn try_begin_extension(self: &Arc<Lease>) -> Option<ExtensionGuard> {
        let mut extending = self.extending.lock();
        (!std::mem::replace(&mut *extending, true)).then(|| ExtensionGuard(Arc::clone(self)))
    }

    /// Blocks while the lease is held until `expiry`, the caller's last reading, at most until
    /// `deadline`. May return early, and may sleep through an extension before the danger.
    pub(crate) fn wait_change(&self, expiry: Instant, deadline: Option<Instant>) {
        let mut extending = self.extending.lock();
        // The lease may have been extended or lost since the caller read its state.
        if self.state.load(Ordering::Acquire) != encode_held(expiry) {
            return;
        }
        match deadline {
            Some(deadline) => _ = self.changed.wait_until(&mut extending, deadline),
            None => self.changed.wait(&mut extending),
        }
    }

    /// Wakes the threads in `wait_change`, because the lease is not held any more, or out of
    /// danger.
    fn notify_waiters(&self) {
        // A thread that has found its expiry unchanged and is about to wait holds the mutex.
        drop(self.extending.lock());
        self.changed.notify_all();
    }
}

/// Shows the keys and the state, never the token.
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

/// The right to extend a lease. Dropping it lets the next extension begin.
#[derive(Debug)]
pub(crate) struct ExtensionGuard(Arc<Lease>);

impl Drop for ExtensionGuard {
    fn drop(&mut self) {
        *self.0.extending.lock() = false;
        self.0.changed.notify_all();
    }
}

/// Encodes an expiry in whole µs, rounded down, so that a lease never lasts longer than granted.
fn encode_held(expiry: Instant) -> u64 {
    clock::to_micros(expiry).saturating_add(HELD)
}

fn decode_state(state: u64) -> LeaseState {
    match state {
        PENDING => LeaseState::Pending,
        EXPIRED | NOT_OURS | SHUT_DOWN => LeaseState::Lost,
        RELEASING | ENDED => LeaseState::Ended,
        // `encode_held` took it from an `Instant`, so it is within the clock's range.
        held => clock::from_micros(held - HELD).map_or(LeaseState::Lost, LeaseState::Held),
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::fixtures::lease;

    #[cfg(not(loom))]
    mod table {
        use std::time::{Duration, Instant};

        use super::*;
        use crate::error::loss_reason::LossReason;
        use crate::protocol::lease::{Lease, LeaseState};
        use crate::time::clock;

        const SECOND: Duration = Duration::from_secs(1);

        #[test]
        fn wait_for_a_change_that_came_after_the_reading_returns_at_once() {
            type Change = fn(&Lease, Instant) -> bool;
            let extend: Change = |lease, now| {
                let state = lease.extend_to(now, now + 200 * SECOND, 0);
                matches!(state, LeaseState::Held(_))
            };
            let lose: Change = |lease, _| lease.mark_not_ours();
            let release: Change =
                |lease, now| matches!(lease.begin_release(now), LeaseState::Held(_));
            for change in [extend, lose, release] {
                let (now, lease) = (clock::now(), lease("x"));
                assert!(lease.activate(now + 100 * SECOND, 0));
                let LeaseState::Held(expiry) = lease.peek(now) else {
                    panic!("{lease:?}")
                };
                assert!(change(&lease, now));
                lease.wait_change(expiry, Some(now + 60 * SECOND));
                assert!(clock::now() < now + 60 * SECOND, "slept on");
            }
        }

        #[test]
        fn lease_is_held_until_its_expiry_and_lost_from_then_on() {
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
        fn lease_has_a_loss_reason_only_if_lost() {
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
                assert_eq!(text, format!("\"x\": lock lost: {reason}"));
            }
            let released = lease("x");
            released.activate(now + SECOND, 0);
            released.begin_release(now);
            assert_eq!(released.loss_reason(now + SECOND), None);
        }

        #[test]
        fn extension_moves_the_expiry_only_forward() {
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
        fn danger_starts_the_margin_before_the_expiry() {
            let now = clock::now();
            let lease = lease("x");
            let expiry = now + 10 * SECOND;
            assert_eq!(lease.danger_start(expiry), expiry, "without a margin");
            for (margin, left) in [(SECOND, 9 * SECOND), (10 * SECOND, Duration::ZERO)] {
                lease.set_danger_margin(margin);
                let start = lease.danger_start(expiry);
                let off_by = start.max(now + left) - start.min(now + left);
                assert!(off_by <= Duration::from_micros(1), "{margin:?}");
                assert_eq!(lease.danger_margin(), margin);
            }
            lease.set_danger_margin(Duration::MAX);
            assert!(lease.danger_start(expiry) < now, "from the beginning");
        }

        #[test]
        fn released_lease_is_never_lost_later() {
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
        fn abandoned_lease_cannot_be_activated() {
            let now = clock::now();
            let lease = lease("x");
            lease.abandon();
            assert!(!lease.activate(now + SECOND, 0));
            assert_eq!(lease.expire_if_due(now), LeaseState::Ended);
        }
    }

    /// The transitions of a held lease, in all interleavings (CONTRIBUTING.md, "Running tests":
    /// loom).
    #[cfg(loom)]
    mod loom_latch {
        use std::sync::Arc;
        use std::time::{Duration, Instant};

        use super::*;
        use crate::protocol::lease::{Lease, LeaseState};
        use crate::sync::atomic::Ordering;
        use crate::time::clock;

        /// Runs transitions concurrently and checks the states that they return, for every order.
        fn race<const N: usize>(
            transitions: [fn(&Lease, Instant) -> LeaseState; N],
            check: fn(&Lease, Instant, [LeaseState; N]),
        ) {
            let start = clock::now();
            loom::model(move || {
                let lease = lease("x");
                assert!(lease.activate(start + Duration::from_secs(1), 0));
                let threads = transitions.map(|transition| {
                    let lease = Arc::clone(&lease);
                    loom::thread::spawn(move || transition(&lease, start))
                });
                let states = threads.map(|thread| thread.join().unwrap());
                check(&lease, start, states);
            });
        }

        fn expired(lease: &Lease, start: Instant) -> LeaseState {
            lease.expire_if_due(start + Duration::from_secs(2))
        }

        fn release(lease: &Lease, start: Instant) -> LeaseState {
            lease.begin_release(start)
        }

        fn extend(lease: &Lease, start: Instant) -> LeaseState {
            lease.extend_to(start, start + Duration::from_secs(5), 0)
        }

        fn mark_not_ours(lease: &Lease, _: Instant) -> LeaseState {
            if lease.mark_not_ours() {
                LeaseState::JustLost
            } else {
                LeaseState::Lost
            }
        }

        #[test]
        fn loom_loss_is_returned_to_one_thread() {
            race([expired, mark_not_ours, expired], |lease, start, states| {
                let reporters = states
                    .iter()
                    .filter(|l| **l == LeaseState::JustLost)
                    .count();
                assert_eq!(reporters, 1, "{states:?}");
                assert_eq!(lease.expire_if_due(start), LeaseState::Lost);
            });
        }

        #[test]
        fn loom_lease_is_either_released_or_lost() {
            race([release, expired], |lease, start, states| {
                let released = matches!(states[0], LeaseState::Held(_));
                let lost = states.contains(&LeaseState::JustLost);
                assert!(released != lost, "{states:?}");
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
        fn loom_extension_never_revives_a_lease() {
            race([extend, mark_not_ours], |lease, start, states| {
                assert_eq!(states[1], LeaseState::JustLost, "a held lease can be lost");
                assert_eq!(lease.expire_if_due(start), LeaseState::Lost);
            });
            race([extend, release], |lease, start, states| {
                assert!(matches!(states[1], LeaseState::Held(_)));
                assert_eq!(lease.expire_if_due(start), LeaseState::Ended);
            });
            race([extend, expired], |lease, start, states| {
                // The expiry is either found passed before the extension, or moved.
                let lost = states.contains(&LeaseState::JustLost);
                assert_eq!(
                    lost,
                    lease.expire_if_due(start) == LeaseState::Lost,
                    "{states:?}"
                );
            });
        }

        #[test]
        fn loom_extension_in_a_danger_wakes_a_watch() {
            const LEFT: Duration = Duration::from_secs(5);
            loom::model(|| {
                let (start, lease) = (clock::now(), lease("x"));
                lease.set_danger_margin(LEFT);
                assert!(lease.activate(start + LEFT, 0));
                let LeaseState::Held(expiry) = lease.peek(start) else {
                    panic!("{lease:?}")
                };
                let other = Arc::clone(&lease);
                let watch = loom::thread::spawn(move || other.wait_change(expiry, None));
                // The extending thread has read the time before the danger began.
                let before = start - Duration::from_secs(1);
                lease.extend_to(before, start + 2 * LEFT, 0);
                watch.join().unwrap();
            });
        }

        #[test]
        fn loom_only_one_extension_is_in_flight() {
            loom::model(|| {
                let lease = lease("x");
                let other = Arc::clone(&lease);
                let busy = Arc::new(loom::sync::atomic::AtomicBool::new(false));
                let also = Arc::clone(&busy);
                let extend_once = |lease: &Arc<Lease>, busy: &loom::sync::atomic::AtomicBool| {
                    let guard = lease.lock_extension();
                    assert!(!busy.swap(true, Ordering::SeqCst), "two at once");
                    busy.store(false, Ordering::SeqCst);
                    drop(guard);
                };
                let thread = loom::thread::spawn(move || extend_once(&other, &also));
                extend_once(&lease, &busy);
                thread.join().unwrap();
            });
        }
    }
}
