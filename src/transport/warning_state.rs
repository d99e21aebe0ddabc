//! The warnings logged for a node, so that each is logged once, not per connection or reconnect.
//!
//! The state decides whether a warning is new. It never logs itself, and no decision about a lock
//! depends on it.

use crate::protocol::key::Key;
use crate::protocol::kind::LeaseKind;
use crate::protocol::request::{Op, Request};
use crate::random::HashMap;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::primitives::Mutex;

/// The largest number of error codes of refused releases that are logged for a node.
const MAX_RELEASE_ERRORS: usize = 32;
/// The largest number of keys with foreign values that are kept, and logged, for a node.
const MAX_FOREIGN: usize = 256;
/// The largest number of keys with denied operations that are kept, and logged, for a node.
const MAX_DENIED: usize = 256;

/// The warnings logged for one node.
#[derive(Debug, Default)]
pub(super) struct WarningState {
    reported: Mutex<Reported>,
    /// The permissions that the node denied when it was asked last, as bits. Read with every reply,
    /// so not in the mutex.
    denied: AtomicU64,
    /// Whether a denial is known for any key. Read with every reply, so not in the mutex.
    has_denied_keys: AtomicBool,
    /// Whether any foreign value is known. Read with every reply, so not in the mutex.
    has_foreign: AtomicBool,
}

#[derive(Debug, Default)]
struct Reported {
    /// The number of connections that are down.
    down: usize,
    was_connected: bool,
    /// The run ids of the node's servers.
    run_ids: Option<String>,
    eviction_warning: Option<String>,
    clock_is_off: bool,
    is_too_far: bool,
    has_several_servers: bool,
    /// The run id of the last quarantine.
    quarantined: Option<String>,
    /// The codes of error replies to releases.
    release_errors: Vec<String>,
    /// The keys with foreign values, each with the first request that met its value.
    foreign: HashMap<Key, Asked>,
    /// The keys with a denial that was logged, each with the permissions as bits: a server may deny
    /// a right for some keys only.
    denied_keys: HashMap<Key, u64>,
}

/// The part of a request that decides which foreign values it meets: a foreign fence counter, for
/// example, refuses only fenced acquires, and a foreign waiting list only places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asked {
    kind: u32,
    is_fenced: bool,
    is_place: bool,
}

impl Asked {
    fn of(request: &Request) -> Asked {
        Asked {
            kind: kind_index(request.lease.kind()),
            is_fenced: request.min_fence.is_some(),
            is_place: matches!(request.op, Op::TakePlace | Op::LeavePlace),
        }
    }
}

/// A permission that a node can deny.
#[derive(Clone, Copy, Debug)]
pub(super) enum Permission {
    /// Connecting, with the configured credentials.
    Connect,
    /// Killing the former connection.
    Kill,
    /// An operation on a lease of this kind.
    Run(Op, LeaseKind),
}

/// The number of [`LeaseKind`]s, each of which has a bit per [`Op`].
const KINDS: u32 = 5;
// `Release` is the last operation: its bits must fit.
const PLACE_BIT: u32 = 2 + KINDS * (Op::Release as u32 + 1);
const _: () = assert!(PLACE_BIT < u64::BITS);

/// Returns the index of a kind, below [`KINDS`]. Leases of one kind need the same permissions and
/// meet the same foreign values.
fn kind_index(kind: LeaseKind) -> u32 {
    match kind {
        LeaseKind::Exclusive => 0,
        LeaseKind::Read => 1,
        LeaseKind::Write => 2,
        LeaseKind::GateEntry => 3,
        LeaseKind::Permit { .. } => 4,
    }
}

impl Permission {
    /// Returns the permission that a request needs.
    fn of(request: &Request) -> Permission {
        Permission::Run(request.op, request.lease.kind())
    }

    /// Returns the bit of the permission: two single bits, then [`KINDS`] bits per operation, then
    /// one for the waiting list.
    fn bit(self) -> u64 {
        match self {
            Permission::Run(Op::TakePlace | Op::LeavePlace, _) => 1 << PLACE_BIT,
            Permission::Connect => 1,
            Permission::Kill => 2,
            Permission::Run(op, kind) => 4 << (KINDS * op as u32 + kind_index(kind)),
        }
    }
}

impl WarningState {
    /// Counts a connection that went down. Returns whether it is the first one.
    pub(super) fn note_down(&self) -> bool {
        let mut reported = self.reported.lock();
        reported.down += 1;
        reported.down == 1
    }

    /// Counts a connection that came up, which was down or is new. Returns whether the node has
    /// come up with it: by its first connection, or because no connection is down any more.
    pub(super) fn note_up(&self, was_down: bool) -> bool {
        let mut reported = self.reported.lock();
        reported.down -= usize::from(was_down);
        let is_first = !std::mem::replace(&mut reported.was_connected, true);
        reported.down == 0 && (was_down || is_first)
    }

    /// Records the run ids of the node's servers. Returns whether others were recorded before: a
    /// server has restarted, or the address leads to another one.
    pub(super) fn note_runs(&self, run_ids: &str) -> bool {
        let mut reported = self.reported.lock();
        let is_same = reported.run_ids.as_deref() == Some(run_ids);
        !is_same && reported.run_ids.replace(run_ids.to_owned()).is_some()
    }

    /// Returns whether this warning about the eviction policy is new.
    pub(super) fn is_new_eviction_warning(&self, warning: Option<&str>) -> bool {
        let mut reported = self.reported.lock();
        let is_new = reported.eviction_warning.as_deref() != warning;
        reported.eviction_warning = warning.map(str::to_owned);
        is_new && warning.is_some()
    }

    /// Returns whether it is new that the clock of the node is off.
    pub(super) fn is_new_clock_warning(&self, is_off: bool) -> bool {
        let was_off = std::mem::replace(&mut self.reported.lock().clock_is_off, is_off);
        is_off && !was_off
    }

    /// Returns whether it is new that round trips are too long for `node_timeout`.
    pub(super) fn is_new_distance_warning(&self, is_too_far: bool) -> bool {
        let was = std::mem::replace(&mut self.reported.lock().is_too_far, is_too_far);
        is_too_far && !was
    }

    /// Returns whether it is new that several servers share the address.
    pub(super) fn is_new_several_servers(&self) -> bool {
        !std::mem::replace(&mut self.reported.lock().has_several_servers, true)
    }

    /// Returns whether it is new that this run of the node is quarantined.
    pub(super) fn is_new_quarantine(&self, run_id: &str) -> bool {
        let mut reported = self.reported.lock();
        let is_new = reported.quarantined.as_deref() != Some(run_id);
        reported.quarantined = Some(run_id.to_owned());
        is_new
    }

    /// Returns whether it is new that releases fail with this error code.
    pub(super) fn is_new_release_error(&self, code: &str) -> bool {
        let codes = &mut self.reported.lock().release_errors;
        let is_new = codes.len() < MAX_RELEASE_ERRORS && !codes.iter().any(|known| known == code);
        if is_new {
            codes.push(code.to_owned());
        }
        is_new
    }

    /// Returns whether it is new that the node denies this permission.
    pub(super) fn is_newly_denied(&self, permission: Permission) -> bool {
        let before = self.denied.fetch_or(permission.bit(), Ordering::Relaxed);
        before & permission.bit() == 0
    }

    /// Returns whether it is new that this key, or a key derived from it, has a foreign value. The
    /// `request` has met it.
    pub(super) fn is_new_foreign(&self, key: &Key, request: &Request) -> bool {
        let foreign = &mut self.reported.lock().foreign;
        let is_new = foreign.len() < MAX_FOREIGN && !foreign.contains_key(key);
        if is_new {
            foreign.insert(key.clone(), Asked::of(request));
        }
        self.has_foreign.store(true, Ordering::Relaxed);
        is_new
    }

    /// Returns whether it is new that the node denies this request. A grant for another key does
    /// not make it new again.
    pub(super) fn is_newly_denied_key(&self, request: &Request) -> bool {
        let permission = Permission::of(request);
        if !self.is_newly_denied(permission) {
            return false;
        }
        let denied = &mut self.reported.lock().denied_keys;
        let key = request.lease.keys().first();
        let has_room = denied.len() < MAX_DENIED;
        let is_new = match denied.get_mut(key) {
            Some(bits) => {
                let before = std::mem::replace(bits, *bits | permission.bit());
                before & permission.bit() == 0
            }
            None if has_room => {
                denied.insert(key.clone(), permission.bit());
                true
            }
            None => false,
        };
        self.has_denied_keys.store(true, Ordering::Relaxed);
        is_new
    }

    /// Records that the node has granted this request.
    pub(super) fn clear_denied_key(&self, request: &Request) {
        let permission = Permission::of(request);
        self.clear_denied(permission);
        if self.has_denied_keys.load(Ordering::Relaxed) {
            let denied = &mut self.reported.lock().denied_keys;
            let key = request.lease.keys().first();
            if let Some(bits) = denied.get_mut(key) {
                *bits &= !permission.bit();
                if *bits == 0 {
                    denied.remove(key);
                }
            }
            self.has_denied_keys
                .store(!denied.is_empty(), Ordering::Relaxed);
        }
    }

    /// Forgets the foreign values that such a request has met, because this one was granted. A
    /// grant of another kind of request says nothing about them.
    pub(super) fn clear_foreign(&self, request: &Request) {
        if self.has_foreign.load(Ordering::Relaxed) {
            let foreign = &mut self.reported.lock().foreign;
            let asked = Asked::of(request);
            for key in request.lease.keys().as_slice() {
                if foreign.get(key) == Some(&asked) {
                    foreign.remove(key);
                }
            }
            self.has_foreign
                .store(!foreign.is_empty(), Ordering::Relaxed);
        }
    }

    /// Records that the node grants this permission.
    pub(super) fn clear_denied(&self, permission: Permission) {
        if self.denied.load(Ordering::Relaxed) & permission.bit() != 0 {
            self.denied.fetch_and(!permission.bit(), Ordering::Relaxed);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::tests::fixtures::lease_as;

    #[test]
    fn warning_repeated_is_not_new_until_it_changes() {
        let warnings = WarningState::default();
        assert!(
            !warnings.is_new_eviction_warning(None)
                && !warnings.is_new_clock_warning(false)
                && !warnings.is_new_distance_warning(false)
        );
        let mut first = true;
        for _ in 0..2 {
            assert!(
                warnings.is_new_eviction_warning(Some("evicts"))
                    && !warnings.is_new_eviction_warning(Some("evicts"))
            );
            assert!(
                warnings.is_new_eviction_warning(Some("else"))
                    && !warnings.is_new_eviction_warning(None)
            );
            assert!(
                warnings.is_new_clock_warning(true)
                    && !warnings.is_new_clock_warning(true)
                    && !warnings.is_new_clock_warning(false)
            );
            assert_eq!(
                warnings.is_new_several_servers(),
                std::mem::take(&mut first)
            );
            assert!(
                warnings.is_new_distance_warning(true)
                    && !warnings.is_new_distance_warning(true)
                    && !warnings.is_new_distance_warning(false)
            );
            assert!(!warnings.note_runs("a") && !warnings.note_runs("a"));
            assert!(warnings.note_runs("b") && !warnings.note_runs("b") && warnings.note_runs("a"));
            assert!(
                warnings.is_new_quarantine("a")
                    && !warnings.is_new_quarantine("a")
                    && warnings.is_new_quarantine("b")
            );
        }
    }

    #[test]
    fn release_error_is_new_once_per_code_up_to_the_limit() {
        let warnings = WarningState::default();
        assert!(
            warnings.is_new_release_error("MISCONF") && warnings.is_new_release_error("NOPERM")
        );
        assert!(
            !warnings.is_new_release_error("MISCONF") && !warnings.is_new_release_error("NOPERM")
        );
        let codes = (0..1_000).map(|code| code.to_string());
        let logged = codes
            .filter(|code| warnings.is_new_release_error(code))
            .count();
        assert_eq!(logged, MAX_RELEASE_ERRORS - 2);
    }

    fn acquire(name: &str, kind: LeaseKind, is_fenced: bool) -> Request {
        let mut request = Request::new(Op::Acquire, &lease_as(name, kind), 1_000);
        request.min_fence = is_fenced.then_some(0);
        request
    }

    #[test]
    fn foreign_value_is_new_once_until_such_a_request_is_granted() {
        let warnings = WarningState::default();
        let is_new =
            |request: &Request| warnings.is_new_foreign(request.lease.keys().first(), request);
        let plain = |name: &str| acquire(name, LeaseKind::Exclusive, false);
        for _ in 0..2 {
            assert!(is_new(&plain("a")) && is_new(&plain("b")));
            assert!(!is_new(&plain("a")) && !is_new(&plain("b")));
            warnings.clear_foreign(&plain("a"));
            assert!(is_new(&plain("a")));
            for name in ["a", "b"] {
                warnings.clear_foreign(&plain(name));
            }
        }
        let logged = (0..2 * MAX_FOREIGN).filter(|n| is_new(&plain(&n.to_string())));
        assert_eq!(logged.count(), MAX_FOREIGN);
    }

    #[test]
    fn foreign_value_met_by_some_requests_is_not_new_after_a_grant_of_others() {
        for (refused, granted) in [
            ((LeaseKind::Exclusive, true), (LeaseKind::Exclusive, false)),
            ((LeaseKind::Read, false), (LeaseKind::Write, false)),
            ((LeaseKind::Write, true), (LeaseKind::Write, false)),
        ] {
            let warnings = WarningState::default();
            let refused = acquire("a", refused.0, refused.1);
            let granted = acquire("a", granted.0, granted.1);
            let key = refused.lease.keys().first();
            assert!(warnings.is_new_foreign(key, &refused));
            for _ in 0..2 {
                warnings.clear_foreign(&granted);
                assert!(!warnings.is_new_foreign(key, &refused), "{refused:?}");
            }
            warnings.clear_foreign(&refused);
            assert!(warnings.is_new_foreign(key, &refused));
        }
    }

    #[test]
    fn foreign_waiting_list_is_not_new_after_a_grant_of_its_lock() {
        let warnings = WarningState::default();
        let granted = acquire("a", LeaseKind::Exclusive, false);
        let mut place = granted.clone();
        place.op = Op::TakePlace;
        let key = place.lease.keys().first();
        assert!(warnings.is_new_foreign(key, &place));
        warnings.clear_foreign(&granted);
        assert!(!warnings.is_new_foreign(key, &place));
        warnings.clear_foreign(&place);
        assert!(warnings.is_new_foreign(key, &place));
    }

    #[test]
    fn denial_of_one_key_is_not_new_after_a_grant_of_another() {
        let warnings = WarningState::default();
        let [denied, granted] = ["a", "b"].map(|name| acquire(name, LeaseKind::Exclusive, false));
        let written = acquire("a", LeaseKind::Write, false);
        for _ in 0..2 {
            assert!(warnings.is_newly_denied_key(&denied));
            for _ in 0..2 {
                assert!(!warnings.is_newly_denied_key(&denied));
                warnings.clear_denied_key(&granted);
                assert!(!warnings.is_newly_denied_key(&denied));
            }
            assert!(warnings.is_newly_denied_key(&written));
            warnings.clear_denied_key(&denied);
            assert!(!warnings.is_newly_denied_key(&written));
            warnings.clear_denied_key(&written);
        }
        let is_logged = |n: &usize| {
            warnings.clear_denied_key(&granted);
            warnings.is_newly_denied_key(&acquire(&n.to_string(), LeaseKind::Exclusive, false))
        };
        assert_eq!((0..2 * MAX_DENIED).filter(is_logged).count(), MAX_DENIED);
    }

    #[test]
    fn right_that_is_missing_for_all_keys_is_new_once() {
        let warnings = WarningState::default();
        let denied = (0..100).map(|n| acquire(&n.to_string(), LeaseKind::Exclusive, false));
        let logged = denied.filter(|request| warnings.is_newly_denied_key(request));
        assert_eq!(logged.count(), 1);
    }

    #[test]
    fn outage_of_all_connections_of_a_node_is_new_once() {
        let warnings = WarningState::default();
        assert!(warnings.note_up(false) && !warnings.note_up(false));
        assert!(warnings.note_down() && !warnings.note_down());
        assert!(!warnings.note_up(true) && warnings.note_up(true));
        assert!(warnings.note_down() && warnings.note_up(true));
    }

    #[test]
    fn permission_denied_is_new_by_operation_and_kind() {
        let ops = [
            Op::Acquire,
            Op::Extend,
            Op::Restore,
            Op::Downgrade,
            Op::RaiseFence,
            Op::WakeListener,
            Op::Release,
        ];
        let permit = LeaseKind::Permit { index: 1, total: 2 };
        let kinds = [
            LeaseKind::Exclusive,
            LeaseKind::Read,
            LeaseKind::Write,
            LeaseKind::GateEntry,
            permit,
        ];
        let run = |op| kinds.map(|kind| Permission::Run(op, kind));
        let mut permissions: Vec<Permission> = ops.into_iter().flat_map(run).collect();
        permissions.extend([Permission::Connect, Permission::Kill]);
        let warnings = WarningState::default();
        assert!(
            permissions
                .iter()
                .all(|permission| warnings.is_newly_denied(*permission))
        );
        for permission in permissions {
            assert!(!warnings.is_newly_denied(permission));
            warnings.clear_denied(permission);
            assert!(warnings.is_newly_denied(permission));
        }
    }
}
