//! The locks of a node as plain data. Fake nodes serve from it, and `store_conformance` compares it
//! with real servers.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use crate::protocol::holder::NodeHolder;
use crate::protocol::key::{Channel, Key};
use crate::protocol::kind::LeaseKind;
use crate::protocol::permits::FreePermits;
use crate::protocol::reply::{Blocker, Reply};
use crate::protocol::request::{Op, Request};
use crate::tests::fake_node::messages::WaitingList;
use crate::time::clock;

/// The locks, gate entries, reader markers and reader turns of a node.
#[derive(Debug, Default)]
pub(crate) struct NodeStore {
    locks: HashMap<Key, StoredLock>,
    /// The waiting list of each channel.
    pub(super) waiting: HashMap<Channel, WaitingList>,
    /// The minimum lifetime of reader markers and reader turns.
    pub(crate) min_marker_ttl: Duration,
}

/// One lock. Each token is stored with the time of its expiry.
#[derive(Clone, Debug, Default)]
pub(crate) struct StoredLock {
    /// The owner of an exclusive lock, or the writer.
    pub(crate) owner: Option<(String, Instant)>,
    pub(crate) readers: HashMap<String, Instant>,
    pub(crate) gate: HashMap<String, Instant>,
    /// The gate entries that have ended by time, and were not raised again.
    pub(crate) lapsed_gate_entries: Vec<String>,
    pub(crate) turn: Option<(ReaderTurn, Instant)>,
    /// The fence counter.
    pub(crate) fence: Option<u64>,
    /// The permits of a semaphore that are held; `count` is its total.
    pub(crate) permits: BTreeMap<u16, (String, Instant)>,
    pub(crate) count: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReaderTurn {
    Requested,
    Active,
}

impl NodeStore {
    /// Returns the lock of a key as it is at `now`.
    pub(crate) fn stored_lock(&mut self, key: &Key, now: Instant) -> &mut StoredLock {
        let lock = self.locks.entry(key.clone()).or_default();
        lock.sweep(now);
        lock
    }

    /// Returns all locks as they are at `now`, in no order.
    pub(crate) fn locks(&mut self, now: Instant) -> impl Iterator<Item = (&Key, &StoredLock)> {
        self.locks.values_mut().for_each(|lock| lock.sweep(now));
        self.locks.iter()
    }

    pub(crate) fn clear(&mut self) {
        self.locks.clear();
        self.waiting.clear();
    }

    pub(crate) fn serve(&mut self, request: &Request, now: Instant) -> Reply {
        let (lease, until) = (&request.lease, now + Duration::from_millis(request.ttl));
        if lease.keys().single().is_none() {
            return self.serve_multi_key(request, until, now);
        }
        let token = &*lease.token().text();
        let is_new = request.op == Op::Acquire;
        let marker_end = |end: Duration| now + end.max(self.min_marker_ttl);
        let (marker_until, turn_until) = (
            marker_end(request.marker_ttl()),
            marker_end(request.refresh_interval),
        );
        let lock = self.stored_lock(lease.key(), now);
        // A refused `SET` reports the owner label only where it is asked for.
        let label = lock.owner.as_ref().and_then(|(owner, _)| label_of(owner));
        let label = label.filter(|_| !request.is_plain_set() || request.wants_owner);
        match (request.op, lease.kind()) {
            // `NodeStore::run` serves notices and the waiting list.
            (Op::WakeListener | Op::Notify | Op::TakePlace | Op::LeavePlace, _) => Reply::Done,
            (Op::Inspect, _) => match &lock.owner {
                None => Reply::Absent,
                Some((token, end)) => Reply::Holder(Box::new(NodeHolder {
                    digest: token.clone(),
                    owner: label_of(token),
                    remaining: Some(end.saturating_duration_since(now)),
                    since: None,
                })),
            },
            (Op::Adopt, _) => {
                let former = request
                    .former_lease
                    .as_ref()
                    .map(|lease| lease.token().text());
                match &lock.owner {
                    Some((owner, _)) if Some(owner) != former.as_ref() => return Reply::OtherToken,
                    None => return Reply::Absent,
                    Some(_) => lock.owner = Some((token.to_owned(), until)),
                }
                match request.min_fence {
                    Some(_) => Reply::Fenced(lock.next_fence(now)),
                    None => Reply::Done,
                }
            }
            (Op::Swap, _) => {
                let former = request
                    .former_lease
                    .as_ref()
                    .map(|lease| lease.token().text());
                let owner = lock.owner.as_ref().map(|(owner, _)| owner);
                let is_absent = owner.is_none();
                if !is_absent && owner != former.as_ref() {
                    return Reply::OtherToken;
                }
                lock.owner = Some((token.to_owned(), until));
                let fence = request.min_fence.map(|_| lock.next_fence(now));
                match (is_absent, fence) {
                    (true, fence) => Reply::SwappedAbsent(fence),
                    (false, Some(fence)) => Reply::Fenced(fence),
                    (false, None) => Reply::Done,
                }
            }
            (Op::ForceRelease, _) => done_if(lock.owner.take().is_some()),
            (
                op,
                LeaseKind::Permit {
                    index: permit,
                    total,
                },
            ) => lock.serve_permit(op, permit, total, (token, until), now),
            (_, LeaseKind::GateEntry) => done_if(lock.gate.remove(token).is_some()),
            (Op::Acquire | Op::Restore, LeaseKind::Read) => {
                let refused = lock.refuses_reader(is_new);
                if refused.is_none() {
                    lock.readers.insert(token.to_owned(), until);
                } else if !request.refresh_interval.is_zero() && !lock.turn_is(ReaderTurn::Active) {
                    lock.turn = Some((ReaderTurn::Requested, marker_until));
                }
                match refused {
                    Some((Blocker::Owner, end)) => held(Blocker::Owner, end, label, now),
                    Some((by, end)) => held(by, end, None, now),
                    None => Reply::Done,
                }
            }
            (Op::Acquire | Op::Restore, _) => {
                let refused = lock.refuses_writer(is_new);
                if refused.is_none() {
                    lock.owner = Some((token.to_owned(), until));
                    if request.min_fence.is_some() {
                        return Reply::Fenced(lock.next_fence(now));
                    }
                } else if let Some(gate_entry) = &request.gate_entry {
                    lock.raise_gate_entry(&gate_entry.token().text(), now + request.marker_ttl());
                }
                match refused {
                    Some((Blocker::Owner, end)) => held(Blocker::Owner, end, label, now),
                    Some((by, end)) => held(by, end, None, now),
                    None => Reply::Done,
                }
            }
            (Op::RaiseFence, _) => lock.with_owner(token, |lock, _| {
                lock.fence = lock.fence.max(request.min_fence);
            }),
            (Op::Extend | Op::Release, LeaseKind::Read) => {
                let owned = lock.owner.take_if(|(owner, _)| owner == token);
                if owned.is_some()
                    && request.op == Op::Release
                    && !request.refresh_interval.is_zero()
                {
                    lock.begin_turn(now + request.refresh_interval);
                }
                let found = lock.readers.remove(token).or(owned.map(|(_, end)| end));
                if let (Some(end), Op::Extend) = (found, request.op) {
                    lock.readers.insert(token.to_owned(), end.max(until));
                }
                done_if(found.is_some())
            }
            (Op::Downgrade, _) => {
                if lock.readers.contains_key(token) {
                    return Reply::Done;
                }
                lock.with_owner(token, |lock, end| {
                    lock.owner = None;
                    lock.readers.insert(token.to_owned(), end);
                    lock.begin_turn(turn_until);
                })
            }
            (Op::Extend, _) => lock.with_owner(token, |lock, end| {
                lock.owner = Some((token.to_owned(), end.max(until)));
            }),
            (Op::Release, _) => lock.with_owner(token, |lock, _| {
                lock.owner = kept(request, now);
                if !request.refresh_interval.is_zero() {
                    lock.begin_turn(turn_until);
                }
            }),
        }
    }
}

impl NodeStore {
    /// Serves a request for several keys: all of them or none.
    fn serve_multi_key(&mut self, request: &Request, until: Instant, now: Instant) -> Reply {
        let (keys, token) = (
            request.lease.keys().as_slice(),
            &*request.lease.token().text(),
        );
        let owners: Vec<Option<(String, Instant)>> = keys
            .iter()
            .map(|key| self.stored_lock(key, now).owner.clone())
            .collect();
        let is_other = |owner: &Option<(String, Instant)>| {
            owner.as_ref().is_some_and(|(other, _)| other != token)
        };
        let is_acquire = matches!(request.op, Op::Acquire | Op::Restore);
        let others = (0..keys.len()).filter(|key| is_other(&owners[*key]));
        // Among keys with the same expiry, scripts report the first.
        let end = |key: &usize| owners[*key].as_ref().map(|(_, end)| *end);
        let longest = others.rev().max_by_key(end);
        if let (Some(key), true) = (longest, is_acquire) {
            let end = end(&key).unwrap_or(now);
            let label = owners[key].as_ref().and_then(|(owner, _)| label_of(owner));
            return held(Blocker::OwnerOfKey(key), end, label, now);
        }
        let absent = owners.iter().any(Option::is_none);
        let ours = longest.is_none() && !absent;
        let fences = (is_acquire && request.min_fence.is_some()).then(|| {
            let each = keys
                .iter()
                .map(|key| self.stored_lock(key, now).next_fence(now));
            each.max().unwrap_or_default()
        });
        for (key, owner) in keys.iter().zip(owners) {
            let lock = self.stored_lock(key, now);
            let is_owner = owner.as_ref().is_some_and(|(other, _)| other == token);
            let end = owner.map_or(until, |(_, end)| end.max(until));
            match request.op {
                Op::Acquire | Op::Restore => {
                    lock.owner = Some((token.to_owned(), end));
                    lock.fence = fences.or(lock.fence);
                }
                Op::Extend if ours => lock.owner = Some((token.to_owned(), end)),
                Op::RaiseFence if ours => lock.fence = lock.fence.max(request.min_fence),
                Op::Release if is_owner => lock.owner = kept(request, now),
                _ => {}
            }
        }
        match (is_acquire, fences) {
            (true, Some(fence)) => Reply::Fenced(fence),
            (true, None) => Reply::Done,
            (false, _) if longest.is_some() => Reply::OtherToken,
            (false, _) => done_if(!absent),
        }
    }
}

impl StoredLock {
    fn sweep(&mut self, now: Instant) {
        self.owner.take_if(|(_, end)| *end <= now);
        self.readers.retain(|_, end| *end > now);
        let lapsed = self.gate.extract_if(|_, end| *end <= now);
        self.lapsed_gate_entries
            .extend(lapsed.map(|(token, _)| token));
        self.turn.take_if(|(_, end)| *end <= now);
        self.permits.retain(|_, (_, end)| *end > now);
    }

    fn raise_gate_entry(&mut self, token: &str, end: Instant) {
        self.lapsed_gate_entries.retain(|lapsed| lapsed != token);
        self.gate.insert(token.to_owned(), end);
    }

    fn serve_permit(
        &mut self,
        op: Op,
        permit: u16,
        total: u16,
        (token, until): (&str, Instant),
        now: Instant,
    ) -> Reply {
        let held = self.permits.get(&permit).cloned();
        let is_owner = held.as_ref().is_some_and(|(owner, _)| owner == token);
        let last = held.as_ref().map_or(until, |(_, end)| until.max(*end));
        let next = self.permits.values().map(|(_, end)| *end - now).min();
        match (op, next) {
            (Op::Acquire | Op::Restore, Some(_)) if self.count != total => {
                return Reply::PermitCountMismatch(self.count);
            }
            (Op::Acquire | Op::Restore, Some(next)) if held.is_some() && !is_owner => {
                let mut words = vec![0; usize::from(total.div_ceil(32))];
                for free in (0..total).filter(|permit| !self.permits.contains_key(permit)) {
                    words[usize::from(free / 32)] |= 1 << (free % 32);
                }
                let free = FreePermits::from_words(&words, total);
                return free.map_or(Reply::OtherToken, |free| Reply::PermitTaken(free, next));
            }
            (Op::Acquire | Op::Restore, _) => self.count = total,
            (Op::Extend, _) if is_owner => {}
            (Op::Release, _) if is_owner => {
                self.permits.remove(&permit);
                return Reply::Done;
            }
            _ if held.is_some() => return Reply::OtherToken,
            _ => return Reply::Absent,
        }
        self.permits.insert(permit, (token.to_owned(), last));
        Reply::Done
    }

    /// Increments the fence counter. An absent counter starts at the time in µs, as on a server.
    fn next_fence(&mut self, now: Instant) -> u64 {
        let next = self.fence.unwrap_or_else(|| clock::to_micros(now)) + 1;
        self.fence = Some(next);
        next
    }

    fn turn_is(&self, turn: ReaderTurn) -> bool {
        self.turn.is_some_and(|(now, _)| now == turn)
    }

    fn begin_turn(&mut self, end: Instant) {
        if self.turn_is(ReaderTurn::Requested) {
            self.turn = Some((ReaderTurn::Active, end));
        }
    }

    fn refuses_reader(&self, respects_gate: bool) -> Option<(Blocker, Instant)> {
        match (&self.owner, self.gate.values().max()) {
            (Some((_, end)), _) => Some((Blocker::Owner, *end)),
            (None, Some(end)) if respects_gate && !self.turn_is(ReaderTurn::Active) => {
                Some((Blocker::WaitingWriter, *end))
            }
            _ => None,
        }
    }

    fn refuses_writer(&self, respects_turn: bool) -> Option<(Blocker, Instant)> {
        match (&self.owner, self.readers.values().max(), self.turn) {
            (Some((_, end)), _, _) => Some((Blocker::Owner, *end)),
            (None, Some(end), _) => Some((Blocker::Readers, *end)),
            (None, None, Some((ReaderTurn::Active, end))) if respects_turn => {
                Some((Blocker::ReaderTurn, end))
            }
            _ => None,
        }
    }

    fn with_owner(&mut self, token: &str, act: impl FnOnce(&mut StoredLock, Instant)) -> Reply {
        match self.owner.clone() {
            None => Reply::Absent,
            Some((owner, _)) if owner != token => Reply::OtherToken,
            Some((_, end)) => {
                act(self, end);
                Reply::Done
            }
        }
    }
}

/// Returns for how long a release keeps the lock, in ms; 0 if it deletes the lock. A simulated
/// release has that time in place of a TTL.
pub(super) fn keep_millis(request: &Request, now: Instant) -> u64 {
    request.keep_millis(now).max(request.ttl)
}

/// Returns the owner after a release: none, or the former one for the rest of its minimum time.
fn kept(request: &Request, now: Instant) -> Option<(String, Instant)> {
    let left = keep_millis(request, now);
    let end = now + Duration::from_millis(left);
    (left > 0).then(|| (request.lease.token().text(), end))
}

fn done_if(found: bool) -> Reply {
    match found {
        true => Reply::Done,
        false => Reply::Absent,
    }
}

fn held(by: Blocker, end: Instant, label: Option<Box<str>>, now: Instant) -> Reply {
    Reply::Held(by, Some(end.saturating_duration_since(now)), label)
}

/// Returns the owner label of a token.
fn label_of(token: &str) -> Option<Box<str>> {
    token.rsplit_once(':').map(|(label, _)| Box::from(label))
}
